"""Step 5: the ensemble of all snapshots, and its distillation into the last of them
(paper, section 3)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kesi.data import Dataset, Split
from kesi.method.objectives import KullbackLeibler, Loss
from kesi.method.snapshot import Snapshot
from kesi.method.teachers import Shares, by_accuracy
from kesi.method.training import predict
from kesi.models import Network
from kesi.system.describe import describe
from kesi.system.errors import UsageError


def frozen(model: nn.Module) -> nn.Module:
    """A copy that only predicts: no gradients, eval mode,
    batch norms folded into the convolutions before."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for conv, bn in copied.conv_bn_pairs() if isinstance(copied, Network) else ():
        fused = fuse_conv_bn_eval(copied.get_submodule(conv), copied.get_submodule(bn))
        _replace(copied, conv, fused)
        _replace(copied, bn, nn.Identity())
    return copied.requires_grad_(False).to(memory_format=torch.channels_last)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose convolutions and linear layers hold their weights in ``dtype``,
    for use under autocast.

    Autocast would cast the very same weights anew in every step; what it leaves in fp32 stays that.
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
    return copied


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

    def held_in(self, dtype: torch.dtype) -> "SnapshotEnsemble":
        """The same ensemble, with members as in_dtype() makes them."""
        held = copy.copy(self)
        held.members = [in_dtype(member, dtype) for member in self.members]
        return held

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
    """What the members of an ensemble say of the same N images;
    all figures in percent but the loss.

    ``accuracy``: of each member. ``growing_accuracy``: of the first one, two, ... members together.
    ``disagreement``: K x K, the share of images that two members classify differently.
    """

    accuracy: list[float]
    growing_accuracy: list[float]
    loss: float
    disagreement: list[list[float]]


def agreement(logits: torch.Tensor, labels: torch.Tensor) -> Agreement:
    """Accuracy and diversity of an ensemble from its members' logits (K, N, C) and the labels (N,).
    """
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


class Distillation:
    """The objective of step 5: do what the teachers do, as a loss says;
    the paper's leaves the labels out.

    ``unlabelled``: also on the data set's images without labels.
    """

    def __init__(self, ensemble: SnapshotEnsemble, loss: Loss = KullbackLeibler(),
                 unlabelled: bool = False):
        self.ensemble, self.loss, self.unlabelled = ensemble, loss, unlabelled
        self._teachers, self._loss = ensemble, loss

    @property
    def labels(self) -> str:
        """Whose labels the loss reads (kesi.method.objectives.check_labels)."""
        return getattr(self.loss, "labels", "all")

    def prepare(self, dataset: Dataset, device: str = "cpu") -> None:
        """Before a training on ``device``: have the teachers there, and measure them on the
        held-out images, if the loss weights them by that.

        Raises UsageError where none are held out.
        """
        for member in self.ensemble.members:
            member.to(device)
        if by_accuracy(self.loss, dataset.val is not None):
            said = self.ensemble.predict(dataset, dataset.val, device)
            weights = Shares(tuple(agreement(said, dataset.val.labels).accuracy))
            self._loss = replace(self.loss, weights=weights)

    def hold_in(self, dtype: torch.dtype) -> None:
        """Have the teachers' weights in this type from now on; their logits stay in fp32."""
        self._teachers = self.ensemble.held_in(dtype)

    def ask(self, images: torch.Tensor) -> torch.Tensor:
        """What the teachers say of images (B, 3, H, W): (K, B, C) float32."""
        return self._teachers.logits(images)

    def told(self, logits: torch.Tensor, answers: torch.Tensor,
             labels: torch.Tensor) -> torch.Tensor:
        """The loss of logits (B, C), from what ask() gave."""
        return self._loss(logits, answers, labels)

    def __call__(self, logits: torch.Tensor, images: torch.Tensor,
                 labels: torch.Tensor) -> torch.Tensor:
        return self.told(logits, self.ask(images), labels)

    def describe(self) -> dict:
        """The loss with its numbers, and the teachers by their digests."""
        return {"name": "Distillation", "loss": describe(self.loss),
                "teachers": self.ensemble.describe()}
