"""The state of an unfinished stage on the disk: the last one saved, and the one before it.

    state.pth.tar   state.previous.pth.tar    gone when the stage is finished
    state.damaged.pth.tar                     what could not be read, until then
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.records import Info
from kesi.method.snapshot import Snapshot
from kesi.method.training import Progress
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError

STATE, PREVIOUS, DAMAGED = "state.pth.tar", "state.previous.pth.tar", "state.damaged.pth.tar"


def newest(folder: Path, arch: str) -> Checkpoint | None:
    """The last whole state in a folder; None where there is none, and the stage begins anew.

    A damaged one is warned of and set aside, so that it never takes the place of the one before it.
    Raises UsageError where the state is of another network.
    """
    for name, instead in ((STATE, f"trying {PREVIOUS}"), (PREVIOUS, "the stage starts over")):
        path = folder / name
        if not path.is_file():
            continue
        try:
            state = checkpoints.load(path, arch)
            if not continuable(state):
                raise KesiError(f"{path} is not the state of an unfinished stage")
            return state
        except UsageError:
            raise
        except KesiError as error:
            if not (folder / PREVIOUS).is_file():
                instead = "the stage starts over"
            warnings.warn(f"{error}: {instead}", stacklevel=2)
            path.replace(folder / DAMAGED)
    return None


def continuable(state: Checkpoint) -> bool:
    """Whether fit() can take this up; a file may have a right checksum and still be nonsense."""
    training, model = state.training or {}, state.network
    history, optimizer, schedule = (training.get(name)
                                    for name in ("history", "optimizer", "schedule"))
    shapes = [parameter.shape for parameter in model.parameters()]
    if not (isinstance(history, list) and history and all(isinstance(row, dict) for row in history)
            and training.get("epoch") == len(history) and isinstance(schedule, dict)
            and isinstance(schedule.get("last_epoch"), int) and isinstance(optimizer, dict)):
        return False
    said = state.info.settings.get("training")
    ema = training.get("ema", [])
    averaged = shapes if isinstance(said, dict) and said.get("ema") else []
    if not (isinstance(ema, list) and [getattr(one, "shape", None) for one in ema] == averaged):
        return False
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    if not (isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
            and groups[0].get("params") == list(range(len(shapes))) and isinstance(state, dict)):
        return False
    return all(place in range(len(shapes)) and isinstance(values, dict) and all(
        not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == shapes[place]
        for value in values.values()) for place, values in state.items())


def remove(folder: Path) -> None:
    """Remove all states of a stage that is finished."""
    if not distributed.is_main():
        return
    for name in (STATE, PREVIOUS, DAMAGED):
        (folder / name).unlink(missing_ok=True)


class Saver:
    """Saves the state of a stage every so many epochs,
    and that of the last whole epoch when it ends early.

    An interrupt does not wait for the epoch in progress: one of ImageNet takes minutes, and a
    cluster kills 30 s after it asked. That epoch is lost, and those before it are not: where not
    every epoch is saved, the state of the last one is copied to the host's memory (weights and
    optimiser, two or three times the network's size; much less work than a write), and an interrupt
    or an error writes it.
    """

    def __init__(self, folder: Path, info: Info, every: int):
        self._folder, self._info, self._every = folder, info, every
        self._unsaved: dict | None = None

    def after_epoch(self, snapshot: Snapshot, progress: Progress) -> None:
        """Save or keep the state of this moment;
        not after the last epoch, which the checkpoint follows.

        Raises KesiError where the state cannot be written or a weight is not finite; the state
        before stays.
        """
        if progress.epoch == progress.epochs:
            return
        content = checkpoints.contents(snapshot, self._info, progress.state())
        if progress.epoch % self._every:
            self._unsaved = on_host(content)
            return
        # not a copy: nothing trains until it is written, or the write is interrupted
        self._unsaved = content
        self._write()

    def rescue(self) -> int | None:
        """Write what after_epoch() kept and did not save;
        returns its epoch, None where there is nothing.

        Raises KesiError where that is not possible.
        """
        if self._unsaved is None:
            return None
        epoch = self._unsaved["training"]["epoch"]
        self._write()
        return epoch

    def _write(self) -> None:
        checkpoints.write(self._folder / STATE, self._unsaved, previous=self._folder / PREVIOUS)
        self._unsaved = None


def on_host(value: Any) -> Any:
    """A deep copy of nested dictionaries and lists, with every tensor in the host's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # a Counter, which a schedule has, stays one
        for key, item in value.items():
            copied[key] = on_host(item)
        return copied
    return [on_host(item) for item in value] if isinstance(value, (list, tuple)) else value
