"""What a training minimises."""

from typing import Protocol

import torch
import torch.nn.functional as F


class Objective(Protocol):
    """What a stage minimises: a mean over the batch, from logits (B, C), images (B, 3, H, W), labels (B,)."""

    def __call__(self, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor: ...


def cross_entropy(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The objective of steps 1 and 3."""
    return F.cross_entropy(logits, labels)
