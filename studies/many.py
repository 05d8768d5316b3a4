"""All images, short training: is the last step worth its images where only few epochs are left?

    kesi study studies/many.py --data FOLDER --image-size 16 --seeds 0 1 2

ResNet-20 on a folder of images, five rounds at a rate of 0.25, 12 + 5 x 3 + 4 epochs: every variant
processes as many images, and ends in a network of the same widths.
"""

from dataclasses import replace

from kesi.method.recipes import kesi2_many, recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(12, 3, 4), compare=False))
labels = replace(paper, recipe=kesi2_many(paper.recipe))

VARIANTS = {
    "the paper's order": paper,
    "more plain retraining": paper.changed(
        teachers="labels", distillation=paper.recipe.retrainings["onecycle"].changed(epochs=4)),
    "from scratch by labels": paper.changed(
        start="fresh", teachers="labels", distillation=paper.recipe.baseline.changed(epochs=31)),
    "last step by SGD, mostly labels": labels,
    "the same, the baseline as only teacher": labels.changed(teachers="baseline"),
}
