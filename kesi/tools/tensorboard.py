"""The curves of a run as TensorBoard event files.

A run may be finished or not; the same command again brings the files up to date, and an open TensorBoard shows it.
There is one folder for each seed and stage, so that TensorBoard shows stages side by side.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from kesi.runs.layout import METRICS, RESULT
from kesi.runs.record import read_epochs, read_result
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import make_folder

SCALARS = {"train_loss": "loss/train", "test_loss": "loss/test", "train_accuracy": "accuracy/train",
           "val_accuracy": "accuracy/val", "test_accuracy": "accuracy/test", "lr": "learning rate",
           "seconds": "seconds an epoch"}

SUFFIX = ".kesi"  # tells our event files from those of others in the same folder


def write_events(run: Path, logdir: Path) -> list[Path]:
    """Write the metrics of all stages of a run folder below ``logdir`` and return the event files.

    What is new is added to the event files that are there; a stage that has not changed since is left alone. Raises
    UsageError where ``run`` is no run folder or tensorboard is missing, KesiError for damaged metrics or where nothing
    can be written.
    """
    run, logdir = Path(run), Path(logdir)
    if not (run / "run.json").is_file():
        raise UsageError(f"{run} is not a run folder: it has no run.json")
    writer = _writer()
    files = []
    for stage in (metrics.parent for metrics in sorted(run.glob(f"seed*/*/{METRICS}"))):
        changed = _changed(stage)
        if {path.stat().st_mtime_ns for path in _written(logdir, stage)} != {changed}:
            events = _Events(writer, logdir, stage)
            events.update()
            events.close(changed)
        files += _written(logdir, stage)
    if not files:
        raise KesiError(f"no stage of {run} has finished an epoch yet")
    return files


class Live:
    """Event files that grow with a run, epoch by epoch: a kesi.runs.stage.Watch."""

    def __init__(self, run: Path, logdir: Path):
        """Raises UsageError where the package tensorboard is missing."""
        self._run, self._logdir, self._writer = Path(run), Path(logdir), _writer()
        self._stage: Path | None = None
        self._events: _Events | None = None

    def after_epoch(self, folder: Path) -> None:
        """Write what is new in the stage in ``folder``. Raises KesiError where that is not possible."""
        if self._stage != folder:
            self._events, self._stage = _Events(self._writer, self._logdir, folder), folder
        self._events.update()

    def after_stage(self) -> None:
        """Close the files of this stage, and write those of stages that were finished before."""
        if self._events is not None:
            self._events.close(_changed(self._stage))
        self._stage, self._events = None, None
        if any(self._run.glob(f"seed*/*/{METRICS}")):  # a baseline that was taken over has none
            write_events(self._run, self._logdir)


class _Events:
    """The event files of one stage: one for each process that trained it.

    What is there stays and is added to, since an open TensorBoard does not always notice that a file is gone; unless
    it holds other epochs than these, as those of a run that was started over.
    """

    def __init__(self, writer, logdir: Path, stage: Path):
        self._make, self._writer, self._logdir, self._stage = writer, None, logdir, stage
        self._folder = logdir / stage.parent.name / stage.name
        self._written, self._clock = 0, 0.0

    def _open(self, rows: Sequence[dict]) -> None:
        before, self._clock = _written(self._logdir, self._stage), _started(self._stage, rows)
        known = _known(self._folder) if before else []
        make_folder(self._folder)
        self._writer = self._make(str(self._folder), filename_suffix=SUFFIX)
        if known == [(row["epoch"], np.float32(row["lr"])) for row in rows[:len(known)] if row.get("lr") is not None]:
            self._written = len(known)
            self._clock += sum(row.get("seconds") or 0 for row in rows[:len(known)])
            return
        for old in before:
            old.unlink(missing_ok=True)

    def update(self) -> None:
        """Write the epochs that are not in the file yet."""
        rows = read_epochs(self._stage / METRICS)
        with self._explained():
            if self._writer is None:
                self._open(rows)
            for row in rows[self._written:]:
                self._clock += row.get("seconds") or 0
                for name, tag in SCALARS.items():
                    if row.get(name) is not None:
                        self._writer.add_scalar(tag, row[name], row["epoch"], walltime=self._clock)
            self._writer.flush()
        self._written = len(rows)

    def close(self, changed: int) -> None:
        """End the file; ``changed`` says what state of the stage it has: an epoch may have ended since reading."""
        with self._explained():
            self._writer.close()
            for path in self._folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                os.utime(path, ns=(changed, changed))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KesiError(f"cannot write {self._folder}: {error.strerror or error}") from error


def _written(logdir: Path, stage: Path) -> list[Path]:
    """The event files that there are of a stage."""
    return sorted((logdir / stage.parent.name / stage.name).glob(f"events.out.tfevents.*{SUFFIX}"))


def _known(folder: Path) -> list[tuple[int, np.float32]]:
    """(epoch, learning rate) of the epochs that the files of a folder hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tag = SCALARS["lr"]
    return [(event.step, np.float32(event.value)) for event in events.Scalars(tag)] if (
        tag in events.Tags()["scalars"]) else []


def _changed(stage: Path) -> int:
    """When a stage last wrote something that goes into its event file, in ns."""
    return max(path.stat().st_mtime_ns for path in (stage / METRICS, stage / RESULT) if path.is_file())


def _started(stage: Path, rows: Sequence[dict]) -> float:
    """When the stage began, in seconds since 1970; of one that still runs, from its last epoch back."""
    done = stage / RESULT
    if done.is_file() and (started := read_result(done).get("started")):
        try:
            return datetime.fromisoformat(started.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError) as error:
            raise KesiError(f"{done} is damaged: its started is {started!r:.40}") from error
    return (stage / METRICS).stat().st_mtime - sum(row.get("seconds") or 0 for row in rows)


def _writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed: pip install -e ".[tensorboard]"') from error
    return SummaryWriter
