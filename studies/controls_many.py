"""All images, short training: kesi2-many with one thing otherwise, at equal work. The lengths are
those of many.py, with which this study can share a folder.

    kesi study studies/controls_many.py --data FOLDER --image-size 16 --seeds 0 1 2
"""

from kesi.method.recipes import kesi2_many, recipe
from kesi.method.schedules import rewound
from kesi.runs.study import Variant

whole = Variant(kesi2_many(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(12, 3, 4), compare=False)))
baseline = whole.recipe.baseline
# in one round to the widths that five end in: 16 to 3, 32 to 6 and 64 to 15 filters
ONE_SHOT = [13 / 16] * 3 + [26 / 32] * 3 + [49 / 64] * 3

VARIANTS = {
    "kesi2-many": whole,
    "random filters": whole.changed(criterion="random"),
    "one shot": whole.changed(rounds=1, amounts=ONE_SHOT, retraining={"epochs": 5 * 3}),
    "learning-rate rewinding": whole.changed(retraining=rewound(baseline.changed(epochs=6), 3)),
    "from scratch by the baseline": whole.changed(
        start="fresh", teachers="baseline", distillation={"epochs": 19}),
    "from scratch by two networks": whole.changed(
        start="fresh", teachers=2, baseline={"epochs": 9}, distillation={"epochs": 13}),
}
