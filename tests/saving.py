"""A checkpoint of any network, for tests that need a file; and a network for grey images."""

from pathlib import Path

import torch
from torch import nn

from kesi import checkpoints
from kesi.checkpoints.records import Info
from kesi.method.pruning import Masks
from kesi.method.snapshot import Snapshot


class Grey(nn.Module):
    """Takes one channel of 20x12 px and no others, and tells three classes apart."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3, 2), nn.Linear(6 * 9 * 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(images)).flatten(1))


def keep(path: Path, network: nn.Module, masks: Masks | None = None, **info: object) -> str:
    """Save a network that says ``info`` of itself; returns the digest of the file."""
    return checkpoints.save(path, Snapshot(info.get("stage", ""), network, masks), Info(**info))
