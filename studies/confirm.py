"""At 32 px and the paper's rates, with a tenth of its epochs: is kesi2-many above the paper's
order, and above the same images spent on labels, or on one teacher?

    kesi study studies/confirm.py --data FOLDER --image-size 32 --seeds 0 1 2

ResNet-20 on a folder of images, 30 + 5 x 4 + 4 epochs. The first and the last variant are what
`kesi run --method filter --batch-size 128 --epochs-scale 0.1` gives with `--recipe paper` and with
`--recipe kesi2-many`.
"""

from dataclasses import replace

from kesi.method.recipes import kesi2_many, recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    scale=0.1, batch_size=128, compare=False))
many = replace(paper, recipe=kesi2_many(paper.recipe))

VARIANTS = {
    "the paper's order": paper,
    "more plain retraining": paper.changed(
        teachers="labels", distillation=paper.recipe.retrainings["onecycle"]),
    "kesi2-many, the baseline as only teacher": many.changed(teachers="baseline"),
    "kesi2-many": many,
}
