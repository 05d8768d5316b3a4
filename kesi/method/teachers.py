"""What several teachers say together: the mean of their probabilities, and how each one counts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kesi.system.errors import UsageError


def mean_probabilities(teachers: torch.Tensor, temperature: float = 1.0,
                       weights: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over the teachers (K, B, C) of softmax(logits / temperature): (B, C).

    ``weights``, (K,) or (K, B), sum to 1 over the teachers; without them all count the same.
    """
    if weights is not None:
        weights = weights.reshape(len(teachers), -1, 1)  # (K, 1 or B, 1)
        return (torch.softmax(teachers / temperature, dim=2) * weights).sum(0)
    mean = None
    for logits in teachers:
        one = torch.softmax(logits / temperature, dim=1)
        mean = one if mean is None else mean.add_(one)
    return mean.div_(len(teachers))


@dataclass(frozen=True)
class Equal:
    """Every teacher counts the same: None stands for that."""

    def __call__(self, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
        return None


@dataclass(frozen=True)
class Shares:
    """Every teacher counts by a number of its own, in their order."""

    numbers: tuple[float, ...]

    def __post_init__(self):
        """Raises UsageError for numbers that are no weights."""
        if not self.numbers or not all(0 <= one < float("inf") for one in self.numbers) or (
                sum(self.numbers) <= 0):
            raise UsageError("teachers are weighted by numbers of at least 0, not all of them 0, "
                             f"not by {list(self.numbers)}")

    def __call__(self, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(teachers) != len(self.numbers):
            raise UsageError(f"there are {len(teachers)} teachers, "
                             f"but weights of {len(self.numbers)}")
        whole = sum(self.numbers)
        # filled on the device: a captured step may not copy from the host
        return torch.stack([teachers.new_full((), one / whole) for one in self.numbers])


@dataclass(frozen=True)
class ByAccuracy:
    """Every teacher counts by its accuracy on the held-out images, which a training measures before
    it begins (Distillation.prepare): Shares of these."""

    def __call__(self, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise UsageError("the held-out accuracies of the teachers are not known yet")


def by_accuracy(loss: object, held_out: bool) -> bool:
    """Whether a loss weights teachers by held-out accuracy.
    Raises UsageError where no images are held out for it."""
    asked = isinstance(getattr(loss, "weights", None), ByAccuracy)
    if asked and not held_out:
        raise UsageError("teachers are weighted by their accuracy on held-out images, and none are "
                         "held out: --val-fraction 0.1 (val_fraction) does")
    return asked


@dataclass(frozen=True)
class ByConfidence:
    """Per image (K, B), a teacher counts the more, the better it knows the label.

    (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1), CE_k the cross-entropy of teacher k (Zhang et al.
    2022, "Confidence-Aware Multi-Teacher Knowledge Distillation", equation 2); one teacher gets 1.
    """

    def __call__(self, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(teachers) == 1:
            return torch.ones_like(teachers[..., 0])
        losses = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in teachers])
        return (1 - torch.softmax(losses, dim=0)) / (len(teachers) - 1)
