"""What a training minimises: the cross-entropy, or what teachers say (the losses of step 5)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from kesi.method.schedules import DIVERGED, as_floats
from kesi.method.teachers import ByConfidence, Equal, mean_probabilities
from kesi.system.errors import UsageError, check_choice


class Objective(Protocol):
    """A mean over the batch, from logits (B, C), images (B, 3, H, W) and labels (B,).

    What it is made of decides the outcome of a training: kesi.system.describe.describe() of it
    stands in the settings of a stage. One that asks teachers has them answer several batches at
    once if it comes in two parts, which are called instead: ``ask(images)``, their answers
    (K, B, C), and ``told(logits, answers, labels)``.
    """

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """The objective of steps 1 and 3."""

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels)


class Loss(Protocol):
    """What a student is told by its teachers: a small frozen dataclass with ``__call__``,
    entered in LOSSES.

    From the student's logits (B, C), the teachers' logits (K, B, C) and the labels (B,) it gives
    the mean over the batch.
    """

    def __call__(self, logits: torch.Tensor, teachers: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor: ...


def check_labels(told: object, unlabelled: bool, mixup: bool) -> None:
    """Raises UsageError where an objective, or a loss, reads labels that images do not have.

    One that does not say whose ``labels`` it reads may read all of them.
    """
    reads, name = getattr(told, "labels", "all"), getattr(told, "__name__", type(told).__name__)
    if unlabelled and reads == "all":
        raise UsageError(f"{name} reads the label of every image, and some have none: take a loss "
                         "that leaves them out, such as kl, labels, dist or standardised")
    if mixup and reads != "no":
        raise UsageError(f"{name} reads labels, and mixed images have none: mixup is for a last "
                         "step, or retrainings, that teachers teach without labels")


@dataclass(frozen=True)
class Taught:
    """What the losses share: they look at the teachers' mean probabilities at a ``temperature``.

    ``weights`` of the teachers in that mean: the ensemble is what the student is to become, so one
    distribution is imitated, not the teachers one by one. ``alpha``: the share of the cross-entropy
    against the labels, of images that have one, the rest is the teachers' (Hinton et al. 2015,
    section 2).
    """

    temperature: float = 5.0
    alpha: float = 0.0
    weights: Callable = Equal()

    def __post_init__(self):
        """Raises UsageError for a temperature that is not above 0, or a share outside [0, 1]."""
        as_floats(self)
        if not 0 < self.temperature < DIVERGED:
            raise UsageError(f"--temperature must be above 0 and below 1e18, not "
                             f"{self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"the labels' share must lie in [0, 1], not {self.alpha}")

    def __call__(self, logits: torch.Tensor, teachers: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        loss = self.compare(logits.float(), teachers, labels, self.weights(teachers, labels))
        if not self.alpha:
            return loss
        known = labels >= 0  # as a sum: of a batch without any label the mean would be 0 / 0
        told = F.cross_entropy(logits.float(), labels, reduction="sum") / known.sum().clamp_min(1)
        return (1 - self.alpha) * loss + self.alpha * told

    @property
    def labels(self) -> str:
        """Whose labels it reads: of "no" image, of "some", those that have one, or of "all"."""
        if isinstance(self.weights, ByConfidence):
            return "all"
        return "some" if self.alpha else "no"

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
    standardised by itself, so that none counts more because its logits are larger. Raises
    UsageError for fewer than three classes: two standardised logits are 1 and -1, whatever was
    said.
    """

    temperature: float = 2.0

    def compare(self, logits, teachers, labels, weights):
        if logits.shape[-1] < 3:
            raise UsageError("standardised logits of two classes say which is the larger and "
                             "nothing else, of which nothing can be learnt: take another loss, "
                             "such as kl")
        return super().compare(standardised(logits), standardised(teachers), labels, weights)


def standardised(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) of mean 0 and standard deviation 1 over the classes."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()


@dataclass(frozen=True)
class Dist(Taught):
    """How classes relate, within an image and over the batch, as 1 - Pearson's correlation.

    T^2 * (inter * mean over images + intra * mean over classes): Huang et al. 2022, "Knowledge
    Distillation from A Stronger Teacher", equations 8 to 10, with their numbers for CIFAR. Of two
    classes only the second term teaches: two numbers are always correlated by 1 or -1.
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
    labels = "all"

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
    """The loss of that name with these numbers where they are given.
    Raises UsageError where it has none."""
    check_choice("loss", name, LOSSES)
    given = {key: value for key, value in numbers.items() if value is not None}
    try:
        return LOSSES[name](**given)
    except TypeError as error:
        raise UsageError(f"the loss {name!r} has no {' or '.join(given)}") from error
