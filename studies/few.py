"""Few images: a recipe beside the paper's, step by step, and who should teach the last step.

    kesi study studies/few.py --data FOLDER --image-size 16 --unlabelled OTHERS --seeds 0 1 2 3 4

ResNet-20 on a folder of images, five rounds at a rate of 0.25, 60 + 5 x 15 + 15 epochs: every
variant processes as many images, and ends in a network of the same widths.
"""

from dataclasses import replace

from kesi.method.objectives import WithLabels
from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False))
decay = paper.changed(baseline={"weight_decay": 5e-4}, retraining={"weight_decay": 5e-4})
sgd = decay.changed(distillation={"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4},
                    loss=WithLabels(alpha=0.1))
whole = replace(paper, recipe=kesi2(paper.recipe))


def plain(variant: Variant) -> Variant:
    """The last step as one more one-cycle retraining, with the labels."""
    return variant.changed(teachers="labels", distillation=variant.recipe.retrainings["onecycle"])


VARIANTS = {
    "the paper's order": paper,
    # towards the recipe: one difference after the other
    "decay 5e-4": decay,
    "decay 5e-4, last step by SGD with labels": sgd,
    "the same on images without labels": sgd.changed(images="unlabelled"),
    "the same, the baseline as only teacher": sgd.changed(teachers="baseline"),
    "the same, more plain retraining": plain(sgd),
    "kesi2": whole,
    "kesi2 on images without labels": whole.changed(images="unlabelled"),
    "kesi2, the baseline as only teacher": whole.changed(teachers="baseline"),
    "kesi2, more plain retraining": plain(whole),
}
