"""A recipe against every control: it with one thing otherwise, at equal images processed or, where
it says so, equal work. The lengths are those of few.py, with which this study can share a folder.

    kesi study studies/controls.py --data FOLDER --image-size 16 --seeds 0 1 2 3 4

It is kesi2; --set RECIPE=paper for the paper's. --set IMAGES=50000 for a folder of so many training
images: kesi2-many, in the lengths of many.py.
"""

import os
from dataclasses import replace

from kesi.method.plan import sizes, stages
from kesi.method.recipes import kesi2, kesi2_many, recipe
from kesi.method.schedules import rewound
from kesi.runs.study import Variant
from kesi.system.errors import check_choice

many = int(os.environ.get("IMAGES", 5_000)) >= 20_000
first, each, last = (12, 3, 4) if many else (60, 15, 15)
total = first + 5 * each + last
paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(first, each, last), compare=False))
name, better = ("kesi2-many", kesi2_many) if many else ("kesi2", kesi2)
check_choice("RECIPE", asked := os.environ.get("RECIPE", name), ("paper", name))
by_paper = asked == "paper"
whole = paper if by_paper else replace(paper, recipe=better(paper.recipe))
baseline = whole.recipe.baseline
# in one round to the widths that five end in: 16 to 3, 32 to 6 and 64 to 15 filters
ONE_SHOT = [13 / 16] * 3 + [26 / 32] * 3 + [49 / 64] * 3
shorter = first * 3 // 4  # of two baselines
# of two baselines beside five rounds
two = first * 2 // 3
short = (total - 2 * two - last) // 5
# a chain, and its ensemble, which teaches for longer than the chain took
half, fifth = first // 2, max(1, each * 2 // 5)
# a whole run's multiply-adds, in epochs of its smallest network trained by labels
networks = sizes(whole.recipe, num_classes=10, image_size=16)
as_much_work = round(sum(one.work(1) for one in stages(whole.recipe, networks))
                     / (3 * networks[-1].macs))

VARIANTS = {
    "the paper's order" if by_paper else name: whole,
    "more plain retraining": whole.changed(
        teachers="labels", distillation=whole.recipe.retrainings["onecycle"].changed(epochs=last)),
    "the baseline as only teacher": whole.changed(teachers="baseline"),
    "the last snapshot as only teacher": whole.changed(teachers="last"),
    "two networks as teachers": whole.changed(
        teachers=2, epochs=(two, short, total - 2 * two - 5 * short)),
    **({} if by_paper else {"the paper's order in batches of 64": paper.changed(batch_size=64)}),
    "random filters": whole.changed(criterion="random"),
    "one shot": whole.changed(rounds=1, amounts=ONE_SHOT, retraining={"epochs": 5 * each}),
    "learning-rate rewinding": whole.changed(
        retraining=rewound(baseline.changed(epochs=2 * each), each)),
    "from scratch by labels": whole.changed(
        start="fresh", teachers="labels", distillation=baseline.changed(epochs=total)),
    "from scratch by labels, as much work": whole.changed(
        start="fresh", teachers="labels", distillation=baseline.changed(epochs=as_much_work)),
    "from scratch by the baseline": whole.changed(
        start="fresh", teachers="baseline", distillation={"epochs": total - first}),
    "from scratch by two networks": whole.changed(
        start="fresh", teachers=2, baseline={"epochs": shorter},
        distillation={"epochs": total - 2 * shorter}),
    "from scratch by the ensemble": whole.changed(
        start="fresh", epochs=(half, fifth, total - half - 5 * fifth)),
}
