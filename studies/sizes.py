"""For how many images, how much work and which method is which recipe?

    kesi study studies/sizes.py --set IMAGES=1000 --data FOLDER --image-size 16 --seeds 0 1 2

IMAGES is the number of training images in the folder, PROCESSED of those that are processed
(750,000): 300 + 5 x 75 + 75 epochs of 1,000 images, 20 + 5 x 5 + 5 of 15,000. ResNet-20, five
rounds; --set METHOD=weight for weight pruning. Every setting has a --save of its own.
"""

import os
from dataclasses import replace

from kesi.method.recipes import kesi2, kesi2_many, recipe
from kesi.runs.study import Variant

processed, images = (int(os.environ.get(name, number)) for name, number in
                     (("PROCESSED", 750_000), ("IMAGES", 5_000)))
method = os.environ.get("METHOD", "filter")
unit = processed / 10 / images  # epochs of a retraining
paper = Variant(recipe("resnet20", "imagefolder", method).changed(
    amounts=0.25 if method == "filter" else None,
    epochs=(round(4 * unit), round(unit), round(unit)), compare=False))
whole = replace(paper, recipe=kesi2(paper.recipe))
half = {"weight_decay": 5e-4}

VARIANTS = {
    "the paper's order": paper,
    "kesi2": whole,
    "kesi2 with a decay of 5e-4": whole.changed(baseline=half, retraining=half, distillation=half),
    "kesi2-many": replace(paper, recipe=kesi2_many(paper.recipe)),
}
