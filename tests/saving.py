"""A checkpoint of any network, for tests that need a file."""

from pathlib import Path

from torch import nn

from kesi import checkpoints
from kesi.checkpoints.records import Info
from kesi.method.pruning import Masks
from kesi.method.snapshot import Snapshot


def keep(path: Path, network: nn.Module, masks: Masks | None = None, **info: object) -> str:
    """Save a network that says ``info`` of itself; returns the digest of the file."""
    return checkpoints.save(path, Snapshot(info.get("stage", ""), network, masks), Info(**info))
