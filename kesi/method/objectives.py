"""What a training minimises."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F


class Objective(Protocol):
    """A mean over the batch, from logits (B, C), images (B, 3, H, W) and labels (B,).

    What it is made of decides the outcome of a training: kesi.system.describe.describe() of it
    stands in the settings of a stage.
    """

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """The objective of steps 1 and 3."""

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels)
