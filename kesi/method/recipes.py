"""The paper's schedules and epochs, as data (sections 4 and 5, supplement); rates are in models/.

What the paper does not publish is ours and says so: the digits recipe, ResNet-20/32, and the baseline of
Tiny-ImageNet.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from kesi import models
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

BASELINES = {"cifar": CIFAR_BASELINE, "wrn": WRN_BASELINE}  # by Architecture.baseline

WEIGHT_BASELINE_BATCH = 128

TINYIMAGENET_EPOCHS = 25

# Ours, since none is published: the recipe of He et al. 2016 as torchvision's references train ResNet-18/34.
TINYIMAGENET_BASELINE = Training(epochs=90, batch_size=256, lr=0.1, schedule="multistep", milestones=(30, 60))

# Ours: the handwritten digits of the demonstration, minutes on two cores.
DIGITS_BASELINE = Training(epochs=80, batch_size=64, lr=0.1, schedule="multistep", milestones=(40, 60))

DIGITS_EPOCHS, DIGITS_BATCH, DIGITS_RATE = 25, 64, 0.25

def recipe(arch: str, dataset: str, method: str, family: str = "cifar") -> Recipe:
    """The paper's settings for a network, a data set and a method ("filter" or "weight").

    ``family`` decides for data sets of either size (imagefolder): "cifar" is the 32-px recipe,
    "tinyimagenet" the 224-px one. Raises UsageError for an unknown architecture, method or family.
    """
    for value, choices, what in ((arch, models.ARCHITECTURES, "architecture"), (method, METHODS, "method"),
                                 (family, FAMILIES, "family")):
        if value not in choices:
            raise UsageError(f"unknown {what} {value!r}; choose one of: {', '.join(choices)}")
    network = models.ARCHITECTURES[arch]
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
        baseline = BASELINES[network.baseline]
        if method == "weight":
            baseline = replace(baseline, batch_size=WEIGHT_BASELINE_BATCH)
    if method == "weight":
        rounds: Sequence = network.sparsities
    else:
        rates = network.rates
        rounds = [tuple(DIGITS_RATE for _ in rates) if digits else rates] * ROUNDS
    return Recipe(arch, dataset, method, family, baseline, retrain, usual, distill, TEMPERATURE, tuple(rounds))
