"""What is KESI worth? The paper's order against controls that process as many images.

    kesi study studies/worth.py --dry-run
    kesi study studies/worth.py --seeds 0 1 2 3 4

On the handwritten digits with a quarter of the epochs of their recipe, ResNet-20, five rounds.
"""

from kesi.method.recipes import recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "digits", "filter").changed(scale=0.25))
one_cycle = paper.recipe.retrainings["onecycle"]

VARIANTS = {
    "the paper's order": paper,
    # the last step's epochs as one more one-cycle retraining, with the labels
    "more plain retraining": paper.changed(
        teachers="labels", distillation=one_cycle.changed(epochs=paper.recipe.distillation.epochs)),
    "the baseline as only teacher": paper.changed(teachers="baseline"),
    "random filters": paper.changed(criterion="random"),
    # the small network by itself, for the epochs of all stages together
    "from scratch by labels": paper.changed(
        start="fresh", teachers="labels",
        distillation=paper.recipe.baseline.changed(epochs=paper.epochs)),
}
