"""What somebody else may have written, tried on a few images before any training: the criterion,
the loss, the objective and the schedules. At its turn it would fail after hours.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from kesi.data import Dataset
from kesi.data.batches import check_batch
from kesi.data.split import UNKNOWN
from kesi.method import algorithm
from kesi.method.pruning.criteria import Evidence
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training, learning_rates
from kesi.method.teachers import Equal, by_accuracy
from kesi.runs.lineage import check_images
from kesi.system import distributed
from kesi.system.errors import UsageError, first_line

IMAGES = 4


def try_out(recipe: Recipe, dataset: Dataset, teachers: Collection[int] | None = None,
            unlabelled: bool | None = None) -> None:
    """Prune a network that is not trained once, ask loss and objective for their gradients, and
    look at the schedule and the size of the batches of every training.

    ``teachers``: how many there are, in each step that has some (default: all snapshots in one).
    ``unlabelled``: whether images without labels are taught (default: if there are some).
    Raises UsageError that says what does not work.
    """
    some = torch.arange(min(IMAGES, len(dataset.train)))
    few = replace(dataset, train=dataset.train.subset(some), unlabelled=None)
    start = algorithm.draw(recipe.arch, dataset.num_classes, 0)
    check_images(start.network, dataset)
    try:
        algorithm.prune(start, recipe, recipe.rounds[0], 1, Evidence(few))
    except UsageError:
        raise
    except Exception as error:  # somebody else's code: anything
        raise UsageError(f"the criterion {recipe.criterion} does not work on {recipe.arch}: "
                         f"{first_line(error)}") from error
    try_losses(recipe, dataset, teachers, unlabelled)
    for training in recipe.trainings.values():
        check_batch(training.batch_size, len(dataset.train), distributed.world())
        _try_schedule(training, math.ceil(len(dataset.train) / training.batch_size))


def _try_schedule(training: Training, steps: int) -> None:
    """Take the first two learning rates of a schedule; ``steps``: batches an epoch."""
    try:
        with torch.random.fork_rng(devices=[]):
            learning_rates(training, steps, first=2)
    except Exception as error:  # somebody else's code: anything
        raise UsageError(f"the schedule {training.schedule!r} does not work: "
                         f"{first_line(error)}") from error


def try_losses(recipe: Recipe, dataset: Dataset, teachers: Collection[int] | None = None,
               unlabelled: bool | None = None) -> None:
    """Ask loss and objective for gradients; the loss, where images have no labels, without those
    that it says it does not read. Raises UsageError that says what does not work."""
    counts = {len(recipe.rounds) + 1} if teachers is None else teachers
    generator = torch.Generator().manual_seed(0)
    logits, *others = torch.randn(1 + max(counts, default=0), IMAGES, dataset.num_classes,
                                  generator=generator)
    images = torch.randn(IMAGES, *dataset.shape, generator=generator)
    labels = torch.arange(IMAGES) % dataset.num_classes
    loss = recipe.loss
    if by_accuracy(loss, dataset.val is not None):  # of teachers that are not there yet
        loss = replace(loss, weights=Equal())
    if unlabelled is None:
        unlabelled = dataset.unlabelled is not None
    known = labels.clone()
    if unlabelled or any(one.mixup for one in recipe.trainings.values()):
        known[IMAGES // 2 if getattr(loss, "labels", "all") == "some" else 0:] = UNKNOWN
    for count in counts:
        _tried("loss", loss, logits, torch.stack(others[:count]), known)
    _tried("objective", recipe.objective, logits, images, labels)


def _tried(what: str, function: Callable, logits: torch.Tensor, *others: torch.Tensor) -> None:
    """Raise UsageError for what is no loss. ``logits``: (B, C)."""
    logits = logits.clone().requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]):
            value = function(logits, *others)
            value.backward()
        fine = value.dim() == 0 and bool(value.isfinite()) and bool(logits.grad.isfinite().all())
    except Exception as error:  # somebody else's code: anything
        raise UsageError(f"the {what} does not work on a batch of four: "
                         f"{first_line(error)}") from error
    if not fine:
        raise UsageError(f"the {what} has to give one finite number, the mean over the batch, with "
                         f"finite gradients")
