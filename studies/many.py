"""All images, short training: where few epochs are left for the last step, is it worth its images?

    kesi study studies/many.py --data FOLDER --image-size 16 --seeds 0 1 2

ResNet-20 on a folder of images, five rounds at a rate of 0.25, 12 + 5 x 3 + 4 epochs: every variant
processes as many images, and ends in a network of the same widths.
"""

from dataclasses import replace

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(12, 3, 4), compare=False))
whole = replace(paper, recipe=kesi2(paper.recipe))


def plain(variant: Variant) -> Variant:
    """The last step as one more one-cycle retraining, with the labels."""
    return variant.changed(teachers="labels", distillation=variant.recipe.retrainings[
        "onecycle"].changed(epochs=variant.recipe.distillation.epochs))


VARIANTS = {
    "the paper's order": paper,
    "more plain retraining": plain(paper),
    "kesi2": whole,
    "kesi2, more plain retraining": plain(whole),
    "kesi2, the baseline as only teacher": whole.changed(teachers="baseline"),
    "kesi2, from scratch by labels": whole.changed(
        start="fresh", teachers="labels", distillation=whole.recipe.baseline.changed(epochs=31)),
}
