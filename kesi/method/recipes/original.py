"""The paper's schedules and epochs, as data (sections 4 and 5, supplement); rates are in models/.

What the paper does not publish is ours and says so: the digits recipe, ResNet-20/32, the batch size
of the baselines, and the baseline of Tiny-ImageNet.
"""

from kesi import models
from kesi.data.registry import FAMILIES, FOLDER, INFO
from kesi.method.objectives import KullbackLeibler
from kesi.method.recipes.definition import Recipe
from kesi.method.recipes.retrainings import RETRAININGS
from kesi.method.schedules import Training
from kesi.system.errors import check_choice

METHODS = {"filter": "l1", "weight": "magnitude"}  # of pruning, with the paper's criterion of each

ROUNDS = 5

DISTILLATION = Training(epochs=40, batch_size=128, lr=0.001, schedule="onecycle", optimizer="adam",
                        weight_decay=0.0)

# The authors link one baseline for both methods and do not publish its batch size; their script's
# default was 128 until August 2020, after the results were recorded.
CIFAR_BASELINE = Training(epochs=300, batch_size=128, lr=0.1, schedule="multistep",
                          milestones=(150, 225))

WRN_BASELINE = Training(epochs=200, batch_size=128, lr=0.1, schedule="multistep",
                        milestones=(60, 120, 160), gamma=0.2, weight_decay=5e-4)

BASELINES = {"cifar": CIFAR_BASELINE, "wrn": WRN_BASELINE}  # by Architecture.baseline

TINYIMAGENET_EPOCHS = 25

# Ours, since none is published: the recipe of He et al. 2016 as torchvision's references train
# ResNet-18/34.
TINYIMAGENET_BASELINE = Training(epochs=90, batch_size=256, lr=0.1, schedule="multistep",
                                 milestones=(30, 60))

# Ours: the handwritten digits of the demonstration, minutes on two cores.
DIGITS_BASELINE = Training(epochs=80, batch_size=64, lr=0.1, schedule="multistep",
                           milestones=(40, 60))

DIGITS_EPOCHS, DIGITS_BATCH, DIGITS_RATE = 25, 64, 0.25


def recipe(arch: str, dataset: str, method: str, family: str = "cifar") -> Recipe:
    """The paper's settings for a network, a data set and a method ("filter" or "weight").

    ``family`` decides for data sets of either size (imagefolder): "cifar" is the 32-px recipe,
    "tinyimagenet" the 224-px one. Raises UsageError for an unknown architecture, method or family.
    """
    check_choice("architecture", arch, models.ARCHITECTURES)
    check_choice("method", method, METHODS)
    check_choice("family", family, FAMILIES)
    network = models.ARCHITECTURES[arch]
    baseline, rates = BASELINES[network.baseline], network.rates
    made_for = INFO[dataset].recipe if dataset in INFO else None
    shorter: dict = {}
    if made_for == "digits":
        baseline, shorter = DIGITS_BASELINE, {"epochs": DIGITS_EPOCHS, "batch_size": DIGITS_BATCH}
        rates = (DIGITS_RATE,) * len(rates)
    elif family == "tinyimagenet":
        baseline, shorter = TINYIMAGENET_BASELINE, {"epochs": TINYIMAGENET_EPOCHS}
    retrainings = {name: one.training.changed(**shorter) for name, one in RETRAININGS.items()}
    rounds = [rates] * ROUNDS if method == "filter" else network.sparsities
    return Recipe(arch, dataset, method, family, baseline, retrainings,
                  DISTILLATION.changed(**shorter), KullbackLeibler(), METHODS[method],
                  tuple(rounds))


def fits(dataset: str) -> bool:
    """Whether epochs are made to fit the number of images where nobody says how many: of a folder
    of images, and of images in memory; a data set that is known by name has its recipe."""
    return dataset == FOLDER or dataset not in INFO
