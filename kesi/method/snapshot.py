"""A snapshot: a network at one point of the method, and how these points are called."""

import copy
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from kesi.method.pruning.masks import Masks
from kesi.models import Network

BASELINE, KESI, ENSEMBLE = "baseline", "kesi", "ensemble"


@dataclass(frozen=True)
class StageName:
    """The name of one training of the method: its ``kind``, and the round of pruning before it.

    The kinds are "baseline" and "kesi", which have no round in their name, and those of the
    retrainings ("onecycle", "usual" ...).
    """

    kind: str
    round: int = 0

    @property
    def text(self) -> str:
        """ "onecycle-3", as folders, files and reports call it."""
        return f"{self.kind}-{self.round}" if self.round else self.kind

    @staticmethod
    def parse(text: str) -> "StageName":
        """The name that ``text`` spells: the inverse of ``text``."""
        kind, _, number = text.rpartition("-")
        if kind and number.isdecimal() and number.isascii() and number == str(int(number)):
            return StageName(kind, int(number))
        return StageName(text)


def chain(retraining: str, rounds: int) -> list[str]:
    """The names of the baseline and of the snapshots that a retraining gives after each round."""
    return [BASELINE, *(StageName(retraining, number).text for number in range(1, rounds + 1))]


def ensemble_name(retraining: str, retrainings: Iterable[str]) -> str:
    """What the ensemble of a retraining's snapshots is called;
    of the first one, plainly "ensemble"."""
    return ENSEMBLE if retraining == next(iter(retrainings)) else f"{ENSEMBLE}-{retraining}"


@dataclass(frozen=True)
class Snapshot:
    """A network at one point of the method, with the masks of its pruned weights (None without)."""

    name: str
    network: Network
    masks: Masks | None = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the network and its masks, and of nothing that says where they come from.

        What was made from a network knows it by this: a damaged file that is made anew by another
        command, or at another commit, holds the same network, and its children are as good as
        before.
        """
        masks = None if self.masks is None else self.masks.state_dict()
        return digest_of({"arch": self.network.arch, "num_classes": self.network.num_classes,
                          "cfg": list(self.network.cfg), "masks": masks,
                          "state_dict": dict(self.network.state_dict())})

    @property
    def pruned_weights(self) -> int:
        """How many weights the masks hold at zero."""
        return 0 if self.masks is None else self.masks.pruned()

    def copy(self, name: str) -> "Snapshot":
        """The same network under another name, in memory of its own."""
        network = copy.deepcopy(self.network)
        masks = None if self.masks is None else Masks(network, self.masks.state_dict())
        return Snapshot(name, network, masks)


@dataclass(frozen=True)
class Pruned(Snapshot):
    """What a round of pruning left of its ``parent``, and how that was decided.

    ``criterion``: as kesi.system.describe gives it; ``amount``: the rates, or the share of zeros;
    ``looked_at``: the digest of the training images, if the criterion looked at them.
    """

    parent: Snapshot | None = None
    method: str = ""
    criterion: dict | None = None
    amount: Any = None
    round: int = 0
    looked_at: str | None = None


def digest_of(value: Any) -> str:
    """SHA-256 over nested dictionaries, lists, tensors, strings and numbers, in a canonical order.
    """
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu().contiguous()
            sha.update(f"tensor {item.dtype} {tuple(item.shape)}\n".encode())
            sha.update(item.flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            sha.update(f"dict {len(item)}\n".encode())
            for key in sorted(item, key=repr):
                feed(key)
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            sha.update(f"list {len(item)}\n".encode())
            for element in item:
                feed(element)
        else:
            sha.update(f"{type(item).__name__} {item!r}\n".encode())

    feed(value)
    return sha.hexdigest()
