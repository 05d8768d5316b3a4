"""What a recipe will give, before any training: sizes of every round, and the work of every stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kesi import models
from kesi.data.split import Size as ImageSize
from kesi.data.split import spoken_size
from kesi.method.pruning.weights import conv_weights, pruned_count
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training
from kesi.method.sizes import check_image_size, macs, parameters
from kesi.method.snapshot import BASELINE, KESI, chain


@dataclass(frozen=True)
class Size:
    """A network after a round (0: the baseline).
    ``macs`` are of one image, ``macs_saved`` is in percent."""

    round: int
    params: int
    nonzero_params: int
    macs: int
    macs_saved: float


@dataclass(frozen=True)
class StagePlan:
    """One training of the pipeline: its name, how it runs, and the sizes of its network and of its
    teachers."""

    name: str
    training: Training
    size: Size
    teachers: tuple[Size, ...] = ()

    def work(self, train_images: int) -> float:
        """MACs of the whole stage: forward and twice that backward, and a forward of each teacher.
        """
        per_image = 3 * self.size.macs + sum(teacher.macs for teacher in self.teachers)
        return float(self.training.epochs) * train_images * per_image

    def seconds(self, speed: "Speed", train_images: int, test_images: int,
                eval_every: int = 1) -> float:
        """How long it takes at this speed: training, teachers, every look at the test images, and
        that of averaged weights at the training images."""
        epochs = self.training.epochs
        looks = 1 + (-(-epochs // eval_every) if eval_every else 1)  # one before it is retrained
        each = speed.of(speed.train, self.size.macs) + sum(
            speed.of(speed.forward, teacher.macs) for teacher in self.teachers)
        looked = looks * test_images + (train_images if self.training.ema else 0)
        return epochs * train_images * each + looked * speed.of(speed.forward, self.size.macs)


@dataclass(frozen=True)
class Speed:
    """Seconds of an image in training and in a forward pass, measured at two sizes of a network.

    ``macs``: of these two, ``train`` and ``forward``: their seconds. Networks between them take
    what lies between on the line through both: fewer MACs do not take less time in proportion.
    """

    macs: tuple[int, int]
    train: tuple[float, float]
    forward: tuple[float, float]

    def of(self, seconds: tuple[float, float], macs: int) -> float:
        """Of an image, by ``train`` or ``forward``, of a network of these MACs."""
        (large, small), (slow, fast) = self.macs, seconds
        if large == small:
            return max(slow, fast)
        return max(0.0, fast + (slow - fast) * (macs - small) / (large - small))


def ensemble_seconds(members: Sequence[Size], speed: Speed, test_images: int) -> float:
    """How long a look of several networks at the test images takes at this speed."""
    return test_images * sum(speed.of(speed.forward, one.macs) for one in members)


def seconds(recipe: Recipe, network_sizes: Sequence[Size], speed: Speed, train_images: int,
            test_images: int, eval_every: int = 1, baseline: bool = True) -> float:
    """How long all stages of one seed take at this speed, looks at ensembles included. Without
    ``baseline`` step 1 is not counted.
    """
    ensembles = len(recipe.retrainings) * ensemble_seconds(network_sizes, speed, test_images)
    return ensembles + sum(one.seconds(speed, train_images, test_images, eval_every)
                           for one in stages(recipe, network_sizes)
                           if baseline or one.name != BASELINE)


def sizes(recipe: Recipe, num_classes: int, image_size: ImageSize) -> list[Size]:
    """The sizes of a recipe's networks at ``image_size`` px, from the baseline to the last round.

    Raises UsageError where such images are too small for the network.
    """
    found: list[Size] = []
    for number, cfg in enumerate(recipe.all_widths(num_classes)):
        with torch.device("meta"):
            model = models.create(recipe.arch, num_classes, cfg)
        check_image_size(model, image_size, recipe.dataset)
        params, zeros = parameters(model), 0
        if number and recipe.method == "weight":
            zeros = pruned_count(sum(weight.numel() for weight in conv_weights(model).values()),
                                 recipe.rounds[number - 1])
        cost = macs(model, image_size)
        first = found[0].macs if found else cost
        found.append(Size(number, params, params - zeros, cost, round(100 * (1 - cost / first), 2)))
    return found


def stages(recipe: Recipe, network_sizes: Sequence[Size]) -> list[StagePlan]:
    """The trainings of a pipeline for one seed, in the order in which they run."""
    found = [StagePlan(BASELINE, recipe.baseline, network_sizes[0])]
    for retraining, training in recipe.retrainings.items():
        names = chain(retraining, len(recipe.rounds))[1:]
        found += [StagePlan(name, training, size)
                  for name, size in zip(names, network_sizes[1:], strict=True)]
    return [*found, StagePlan(KESI, recipe.distillation, network_sizes[-1], tuple(network_sizes))]


def table(rows: Sequence[Size]) -> str:
    """The sizes as an aligned text table."""
    lines = [f"{'round':>5} {'params':>12} {'non-zero':>12} {'MACs':>15} {'MACs saved':>11}"]
    lines += [f"{row.round:>5} {row.params:>12,} {row.nonzero_params:>12,} {row.macs:>15,} "
              f"{row.macs_saved:>9.2f} %" for row in rows]
    return "\n".join(lines)


def overview(recipe: Recipe, num_classes: int, image_size: ImageSize,
             train_images: int | None, seeds: Sequence[int], folder: Path) -> str:
    """What run() would do, as text: sizes, stages, images to process. Needs no data."""
    network_sizes = sizes(recipe, num_classes, image_size)
    planned = stages(recipe, network_sizes)
    lines = [f"{recipe.arch} on {recipe.dataset} ({num_classes} classes, "
             f"{spoken_size(image_size)} px), {recipe.method} pruning, "
             f"seeds {' '.join(map(str, seeds))}, into {folder}", "",
             table(network_sizes), "", f"{'stage':<12} {'params':>12} {'MACs':>15} {'epochs':>7} "
             f"{'batch':>6} {'lr':>7} {'schedule':<10}{'images to process':>18}"]
    for one in planned:
        images = f"{one.training.epochs * train_images:,}" if train_images else "?"
        lines.append(f"{one.name:<12} {one.size.nonzero_params:>12,} {one.size.macs:>15,} "
                     f"{one.training.epochs:>7} {one.training.batch_size:>6} {one.training.lr:>7g} "
                     f"{one.training.schedule:<10}{images:>18}")
    epochs = sum(one.training.epochs for one in planned)
    lines += ["", f"{len(planned)} trainings of {epochs} epochs together for each of "
                  f"{len(seeds)} seed(s)"]
    if train_images:
        lines[-1] += f": {epochs * train_images * len(seeds):,} images to process"
        lines.append("the distillation also "
                     f"takes {recipe.distillation.epochs * train_images * len(network_sizes):,} "
                     "forward passes of teachers for each seed")
    return "\n".join(lines)
