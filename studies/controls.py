"""Few images: kesi2 with one thing otherwise, at equal work. The lengths are those of few.py, with
which this study can share a folder.

    kesi study studies/controls.py --data FOLDER --image-size 16 --seeds 0 1 2 3 4
"""

from dataclasses import replace

from kesi.method.recipes import kesi2, recipe
from kesi.method.schedules import rewound
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False))
whole = replace(paper, recipe=kesi2(paper.recipe))
baseline = whole.recipe.baseline
# in one round to the widths that five end in: 16 to 3, 32 to 6 and 64 to 15 filters
ONE_SHOT = [13 / 16] * 3 + [26 / 32] * 3 + [49 / 64] * 3

VARIANTS = {
    "kesi2": whole,
    "the paper's order in batches of 64": paper.changed(batch_size=64),
    "random filters": whole.changed(criterion="random"),
    "one shot": whole.changed(rounds=1, amounts=ONE_SHOT, retraining={"epochs": 5 * 15}),
    "learning-rate rewinding": whole.changed(retraining=rewound(baseline.changed(epochs=30), 15)),
    "from scratch by labels": whole.changed(
        start="fresh", teachers="labels", distillation=baseline.changed(epochs=150)),
    "from scratch by the baseline": whole.changed(
        start="fresh", teachers="baseline", distillation={"epochs": 90}),
    "from scratch by two networks": whole.changed(
        start="fresh", teachers=2, baseline={"epochs": 45}, distillation={"epochs": 60}),
}
