"""Step 5: the ensemble of all snapshots, and its distillation into the last of them (paper, section 3)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kesi.data import Dataset, Split
from kesi.method.snapshot import Snapshot
from kesi.method.training import predict
from kesi.system.describe import describe
from kesi.system.errors import UsageError
from models import Network


def frozen(model: nn.Module) -> nn.Module:
    """A copy that only predicts: no gradients, eval mode, batch norms folded into the convolutions before."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for conv, bn in copied.conv_bn_pairs() if isinstance(copied, Network) else ():
        fused = fuse_conv_bn_eval(copied.get_submodule(conv), copied.get_submodule(bn))
        _replace(copied, conv, fused)
        _replace(copied, bn, nn.Identity())
    return copied.requires_grad_(False).to(memory_format=torch.channels_last)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class SnapshotEnsemble:
    """Several networks that predict together: the mean of their softmax.

    The members are frozen copies (see frozen()); the snapshots given stay as they are.
    """

    def __init__(self, snapshots: Sequence[Snapshot], device: str = "cpu"):
        """Raises UsageError without members, or where they disagree on the number of classes."""
        if not snapshots:
            raise UsageError("an ensemble needs at least one network")
        classes = {one.name: getattr(one.network, "num_classes", None) for one in snapshots}
        if len(set(classes.values())) > 1:
            raise UsageError("the members of an ensemble have to know the same classes, but: "
                             + ", ".join(f"{name} has {n}" for name, n in classes.items()))
        self.snapshots = list(snapshots)
        self.members = [frozen(one.network).to(device) for one in snapshots]

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """What every member says: (K, B, C) float32 for images (B, 3, H, W)."""
        return torch.stack([member(images).float() for member in self.members])

    def predict(self, dataset: Dataset, split: Split, device: str = "cpu") -> torch.Tensor:
        """The logits of every member, (K, N, C) on the CPU: each network sees the images once."""
        return torch.stack([predict(member, dataset, split, device) for member in self.members])

    def describe(self) -> list[str]:
        """The digests of the members."""
        return [snapshot.digest for snapshot in self.snapshots]


@dataclass(frozen=True)
class Agreement:
    """What the members of an ensemble say of the same N images; all figures in percent but the loss.

    ``accuracy``: of each member. ``growing_accuracy``: of the first one, two, ... members together.
    ``disagreement``: K x K, the share of images that two members classify differently.
    """

    accuracy: list[float]
    growing_accuracy: list[float]
    loss: float
    disagreement: list[list[float]]


def agreement(logits: torch.Tensor, labels: torch.Tensor) -> Agreement:
    """Accuracy and diversity of an ensemble from its members' logits (K, N, C) and the labels (N,)."""
    def percent(hits: torch.Tensor) -> float:
        return 100 * int(hits.sum()) / len(labels)

    probabilities = torch.softmax(logits.double(), dim=2)
    # of equal weight at every length: the sum decides like the mean
    growing = probabilities.cumsum(0)
    classes = logits.argmax(2)
    mean = growing[-1] / len(logits)
    return Agreement(
        accuracy=[percent(one == labels) for one in classes],
        growing_accuracy=[percent(one.argmax(1) == labels) for one in growing],
        loss=float(F.nll_loss(mean.clamp_min(1e-300).log(), labels)),
        disagreement=[[percent(one != other) for other in classes] for one in classes])


class Loss(Protocol):
    """What a student is told by its teachers: a small frozen dataclass with ``__call__``, entered in LOSSES.

    From the student's logits (B, C), the teachers' logits (K, B, C) and the labels (B,) it gives the
    mean over the batch.
    """

    def __call__(self, logits: torch.Tensor, teachers: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor: ...


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
class ByAccuracy:
    """Every teacher counts by its accuracy on held-out images, given as numbers in their order."""

    accuracies: tuple[float, ...]

    def __post_init__(self):
        """Raises UsageError for numbers that are no weights."""
        if not self.accuracies or not all(0 <= one < float("inf") for one in self.accuracies) or (
                sum(self.accuracies) <= 0):
            raise UsageError("teachers are weighted by numbers of at least 0, not all of them 0, "
                             f"not by {list(self.accuracies)}")

    def __call__(self, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(teachers) != len(self.accuracies):
            raise UsageError(f"there are {len(teachers)} teachers, "
                             f"but weights of {len(self.accuracies)}")
        whole = sum(self.accuracies)
        # filled on the device: a captured step may not copy from the host
        return torch.stack([teachers.new_full((), one / whole) for one in self.accuracies])


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


WEIGHTS = {"equal": Equal, "accuracy": ByAccuracy, "confidence": ByConfidence}


@dataclass(frozen=True)
class Taught:
    """What the losses share: they look at the teachers' mean probabilities at a ``temperature``.

    ``weights`` of the teachers in that mean: the ensemble is what the student is to become, so one
    distribution is imitated, not the teachers one by one. ``alpha``: the share of the cross-entropy
    against the labels, the rest is the teachers' (Hinton et al. 2015, section 2).
    """

    temperature: float = 5.0
    alpha: float = 0.0
    weights: Callable = Equal()

    def __post_init__(self):
        """Raises UsageError for a temperature that is not above 0, or a share outside [0, 1]."""
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"the temperature must be above 0, not {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"the labels' share must lie in [0, 1], not {self.alpha}")

    def __call__(self, logits: torch.Tensor, teachers: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        loss = self.compare(logits.float(), teachers, labels, self.weights(teachers, labels))
        if not self.alpha:
            return loss
        return (1 - self.alpha) * loss + self.alpha * F.cross_entropy(logits.float(), labels)

    def compare(self, logits: torch.Tensor, teachers: torch.Tensor, labels: torch.Tensor,
                weights: torch.Tensor | None) -> torch.Tensor:
        """The loss without the labels' share."""
        raise NotImplementedError


@dataclass(frozen=True)
class KullbackLeibler(Taught):
    """T^2 * KL(teachers || softmax(logits / T)), the mean over a batch (Hinton et al. 2015, section
    2.1).

    With the teachers' mean probability this differs from the paper's mean of KL terms over teachers
    by a constant only (the teachers' own disagreement): same gradient, one loss.
    """

    def compare(self, logits, teachers, labels, weights):
        teacher = mean_probabilities(teachers, self.temperature, weights)  # (B, C)
        student = F.log_softmax(logits / self.temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean") * self.temperature ** 2


@dataclass(frozen=True)
class WithLabels(KullbackLeibler):
    """The paper's loss with the labels mixed in."""

    alpha: float = 0.1


@dataclass(frozen=True)
class Standardised(KullbackLeibler):
    """The same over standardised logits: the mean over the classes off, divided by their deviation.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1. Each teacher is
    standardised by itself, so that none counts more because its logits are larger.
    """

    temperature: float = 2.0

    def compare(self, logits, teachers, labels, weights):
        return super().compare(standardised(logits), standardised(teachers), labels, weights)


def standardised(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) of mean 0 and standard deviation 1 over the classes."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()


@dataclass(frozen=True)
class Dist(Taught):
    """How classes relate, within an image and over the batch, as 1 - Pearson's correlation.

    T^2 * (inter * mean over images + intra * mean over classes): Huang et al. 2022, "Knowledge
    Distillation from A Stronger Teacher", equations 8 to 10, with their numbers for CIFAR.
    """

    temperature: float = 4.0
    inter: float = 2.0
    intra: float = 2.0

    def compare(self, logits, teachers, labels, weights):
        teacher = mean_probabilities(teachers, self.temperature, weights)  # (B, C)
        student = torch.softmax(logits / self.temperature, dim=1)
        loss = (self.inter * (1 - correlation(student, teacher)).mean()
                + self.intra * (1 - correlation(student.T, teacher.T)).mean())
        return loss * self.temperature ** 2


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of the rows of two matrices (N, M): (N,)."""
    return F.cosine_similarity(first - first.mean(1, keepdim=True),
                               second - second.mean(1, keepdim=True), dim=1, eps=1e-8)


@dataclass(frozen=True)
class Decoupled(Taught):
    """The KL term in two: the label against all other classes, and the others among themselves.

    T^2 * (target * KL of the two + others * KL of the rest): Zhao et al. 2022, "Decoupled Knowledge
    Distillation", equation 7, with their numbers for CIFAR but without their warm-up of the loss.
    The teachers' mean is taken before it is parted, so that target = 1 and others = the teachers'
    probability of the other classes would be KullbackLeibler again.
    """

    temperature: float = 4.0
    target: float = 1.0
    others: float = 8.0

    def compare(self, logits, teachers, labels, weights):
        teacher = mean_probabilities(teachers, self.temperature, weights)  # (B, C)
        # bounded: the logarithm of a probability that underflowed would be infinite
        parted = [_parts(one, labels) for one in (logits / self.temperature,
                                                  teacher.clamp_min(1e-30).log())]
        two, rest = (F.kl_div(student, known, reduction="batchmean", log_target=True)
                     for student, known in zip(*parted, strict=True))
        return (self.target * two + self.others * rest) * self.temperature ** 2


def _parts(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of (label, any other), (B, 2), and of the others given not the label.

    The second is (B, C), where the label's place has none to speak of: -1e9 on either side.
    """
    whole = torch.logsumexp(logits, dim=1)
    others = logits.scatter(1, labels[:, None], -1e9)
    label = logits.gather(1, labels[:, None]).squeeze(1)
    two = torch.stack([label - whole, torch.logsumexp(others, dim=1) - whole], dim=1)
    return two, torch.log_softmax(others, dim=1)


LOSSES: dict[str, type[Loss]] = {"kl": KullbackLeibler, "labels": WithLabels, "dkd": Decoupled,
                                 "standardised": Standardised, "dist": Dist}


def loss_of(name: str, **numbers: float | None) -> Loss:
    """The loss of that name with these numbers where they are given. Raises UsageError where it has none."""
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}; choose one of: {', '.join(LOSSES)}")
    given = {key: value for key, value in numbers.items() if value is not None}
    try:
        return LOSSES[name](**given)
    except TypeError as error:
        raise UsageError(f"the loss {name!r} has no {' or '.join(given)}") from error


@dataclass(frozen=True)
class Distillation:
    """The objective of step 5: do what the teachers do, as a loss says; the paper's leaves the labels out."""

    ensemble: SnapshotEnsemble
    loss: Loss = KullbackLeibler()

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        return self.loss(logits, self.ensemble.logits(images), labels)

    def describe(self) -> dict:
        """The loss with its numbers, and the teachers by their digests."""
        return {"name": "Distillation", "loss": describe(self.loss), "teachers": self.ensemble.describe()}
