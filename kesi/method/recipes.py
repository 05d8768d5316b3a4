"""Every number of the paper, as data: rates, sparsities, schedules, epochs (sections 4 and 5, supplement).

What the paper does not publish is ours and says so: the digits recipe, ResNet-20/32, and the baseline of
Tiny-ImageNet.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import models
from kesi.data.datasets import FAMILIES
from kesi.method.schedules import Training
from kesi.system.errors import UsageError

METHODS = ("filter", "weight")

STAGES = ("baseline", "retrain", "usual", "distill")  # of a Recipe


@dataclass(frozen=True)
class Recipe:
    """The five steps for one network, data set and pruning method.

    ``rounds`` has one entry a round. Filter pruning: the rates of that round, one for each width of the
    network's cfg. Weight pruning: the cumulative share of convolution weights that is zero after it.
    """

    arch: str
    dataset: str
    method: str
    family: str
    baseline: Training
    retrain: Training
    usual: Training
    distill: Training
    temperature: float
    rounds: tuple

    def scaled(self, factor: float) -> "Recipe":
        """The recipe with every stage shortened (or lengthened) in proportion. Raises UsageError if not > 0."""
        if not 0 < factor <= 1e6:
            raise UsageError(f"--epochs-scale must be above 0, not {factor}")
        return replace(self, **{name: getattr(self, name).scaled(factor) for name in STAGES})

    def changed(self, epochs: Sequence[int] | None = None, batch_size: int | None = None,
                lr: float | None = None) -> "Recipe":
        """The recipe with other epochs (of baseline, both retrainings, distillation), batch size, or learning rate.

        ``lr`` is that of the baseline and the peak of one-cycle retraining; the baseline's milestones stay where they
        were in proportion. Raises UsageError for numbers that will not do.
        """
        stages = {name: getattr(self, name) for name in STAGES}
        if epochs is not None:
            for name, number in zip(stages, (epochs[0], epochs[1], epochs[1], epochs[2]), strict=True):
                stages[name] = replace(stages[name].scaled(number / stages[name].epochs), epochs=number)
        if batch_size is not None:
            stages = {name: replace(stage, batch_size=batch_size) for name, stage in stages.items()}
        if lr is not None:
            stages |= {name: replace(stages[name], lr=lr) for name in ("baseline", "retrain")}
        return replace(self, **stages)

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists, as run.json and checkpoints keep them."""
        return _plain(asdict(self))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


ROUNDS = 5

TEMPERATURE = 5.0

# Retraining and distillation on CIFAR; Tiny-ImageNet differs by its 25 epochs.
ONE_CYCLE = Training(epochs=40, batch_size=128, lr=0.1, schedule="onecycle")

USUAL = Training(epochs=40, batch_size=128, lr=0.001, schedule="constant")

DISTILL = Training(epochs=40, batch_size=128, lr=0.001, schedule="onecycle", optimizer="adam", weight_decay=0.0)

CIFAR_BASELINE = Training(epochs=300, batch_size=64, lr=0.1, schedule="multistep", milestones=(150, 225))

WRN_BASELINE = Training(epochs=200, batch_size=64, lr=0.1, schedule="multistep", milestones=(60, 120, 160),
                     gamma=0.2, weight_decay=5e-4)

WEIGHT_BASELINE_BATCH = 128

TINYIMAGENET_EPOCHS = 25

# Ours, since none is published: the recipe of He et al. 2016 as torchvision's references train ResNet-18/34.
TINYIMAGENET_BASELINE = Training(epochs=90, batch_size=256, lr=0.1, schedule="multistep", milestones=(30, 60))

# Ours: the handwritten digits of the demonstration, minutes on two cores.
DIGITS_BASELINE = Training(epochs=80, batch_size=64, lr=0.1, schedule="multistep", milestones=(40, 60))

DIGITS_EPOCHS, DIGITS_BATCH, DIGITS_RATE = 25, 64, 0.25

# Filter rates by stage, and the (stage, block) pairs that are left alone; both count from 0.
STAGE_RATES = (0.1, 0.2, 0.3)

UNTOUCHED_BLOCKS = {
    "resnet20": ((1, 0), (2, 0)),  # not in the paper
    "resnet32": ((1, 0), (2, 0)),  # not in the paper
    "resnet56": ((0, 7), (1, 0), (2, 0), (2, 8)),
    "resnet110": ((0, 17), (1, 0), (2, 0)),
    "preresnet110": ((0, 17), (1, 0), (2, 0)),
    "preresnet164": ((0, 17), (1, 0), (2, 0)),
}

VGG_RATE = 0.25  # for the first convolution and for those of 512 filters

IMAGENET_RESNET_RATES = {64: 0.1, 128: 0.1, 256: 0.2, 512: 0.3}

# Cumulative shares of pruned weights, rounds 1 to 5. The paper gives them for the networks named first in
# each line; ResNet-20/32/18/34, PreResNet-110, WRN-28-10 and the other VGGs take those of their relatives.
_SHARES = (
    (("resnet56", "resnet20", "resnet32"), (0.22, 0.39, 0.51, 0.59, 0.66)),
    (("resnet110", "preresnet164", "preresnet110"), (0.27, 0.46, 0.60, 0.70, 0.80)),
    (("wrn-16-8", "wrn-28-10"), (0.27, 0.46, 0.60, 0.70, 0.77)),
    (("vgg16", "vgg11", "vgg13", "vgg19"), (0.20, 0.40, 0.60, 0.80, 0.95)),
    (("resnet18", "resnet34"), (0.27, 0.46, 0.60, 0.70, 0.80)),
)

SPARSITIES = {arch: shares for archs, shares in _SHARES for arch in archs}

# Ours, for networks that are not in models/: one rate for all widths, and ResNet-56's shares.
OWN_RATE, OWN_SPARSITIES = 0.2, SPARSITIES["resnet56"]


def filter_rates(arch: str) -> tuple[float, ...]:
    """The paper's share of filters to remove in a round: one rate for each width of the unpruned cfg."""
    cfg = models.ARCHITECTURES[arch].cfg
    if arch not in SPARSITIES:
        return (OWN_RATE,) * len(cfg)
    if arch.startswith("vgg"):
        widths = [width for width in cfg if width != "M"]
        return tuple(VGG_RATE if place == 0 or width == 512 else 0.0 for place, width in enumerate(widths))
    if arch in ("resnet18", "resnet34"):
        return tuple(IMAGENET_RESNET_RATES[width] for width in cfg)
    blocks = len(cfg) // len(STAGE_RATES)
    rates = [rate for rate in STAGE_RATES for _ in range(blocks)]
    for stage, block in UNTOUCHED_BLOCKS.get(arch, ()):
        rates[stage * blocks + block] = 0.0
    return tuple(rates)


def recipe(arch: str, dataset: str, method: str, family: str = "cifar") -> Recipe:
    """The paper's settings for a network, a data set and a method ("filter" or "weight").

    ``family`` decides for data sets of either size (imagefolder): "cifar" is the 32-px recipe,
    "tinyimagenet" the 224-px one. Raises UsageError for an unknown architecture, method or family.
    """
    for value, choices, what in ((arch, models.ARCHITECTURES, "architecture"), (method, METHODS, "method"),
                                 (family, FAMILIES, "family")):
        if value not in choices:
            raise UsageError(f"unknown {what} {value!r}; choose one of: {', '.join(choices)}")
    digits = dataset == "digits"
    retrain, usual, distill = ONE_CYCLE, USUAL, DISTILL
    if digits:
        baseline = DIGITS_BASELINE
        retrain, usual, distill = (replace(stage, epochs=DIGITS_EPOCHS, batch_size=DIGITS_BATCH)
                                   for stage in (retrain, usual, distill))
    elif family == "tinyimagenet":
        baseline = TINYIMAGENET_BASELINE
        retrain, usual, distill = (replace(stage, epochs=TINYIMAGENET_EPOCHS)
                                   for stage in (retrain, usual, distill))
    else:
        baseline = WRN_BASELINE if arch.startswith("wrn") else CIFAR_BASELINE
        if method == "weight":
            baseline = replace(baseline, batch_size=WEIGHT_BASELINE_BATCH)
    if method == "weight":
        rounds: Sequence = SPARSITIES.get(arch, OWN_SPARSITIES)
    else:
        rates = filter_rates(arch)
        rounds = [tuple(DIGITS_RATE for _ in rates) if digits else rates] * ROUNDS
    return Recipe(arch, dataset, method, family, baseline, retrain, usual, distill, TEMPERATURE, tuple(rounds))
