"""All images: kesi2-many in five rounds of pruning and in one, each against controls of its own,
and in three.

    kesi study studies/rounds.py --data FOLDER --image-size 16 --seeds 3 4 5

In the lengths of many.py; --set LENGTH=2 for twice as long. All variants process as many images
and end in the same widths, three rounds in the same MACs to a hundredth. One round against five was
seen with seeds 0 to 2, in controls.py: so these are others. Three were added when these were seen.
"""

import os
from dataclasses import replace

from kesi.method.recipes import kesi2_many, recipe
from kesi.runs.study import Variant

length = int(os.environ.get("LENGTH", 1))
first, each, last = (length * epochs for epochs in (12, 3, 4))
paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(first, each, last), compare=False))
five = replace(paper, recipe=kesi2_many(paper.recipe))
# to the widths that five rounds end in: 16 to 3, 32 to 6 and 64 to 15 filters
one = five.changed(rounds=1, amounts=[13 / 16] * 3 + [26 / 32] * 3 + [49 / 64] * 3,
                   retraining={"epochs": 5 * each})
SHARE = 2_143_360 / 10_138_240  # of the MACs, that those widths have
plain = {"teachers": "labels",
         "distillation": paper.recipe.retrainings["onecycle"].changed(epochs=last)}

VARIANTS = {
    "five rounds": five,
    "five rounds, more plain retraining": five.changed(**plain),
    "one round": one,
    "one round, more plain retraining": one.changed(**plain),
    "one round, the baseline as only teacher": one.changed(teachers="baseline"),
    "one round, random filters": one.changed(criterion="random"),
    "the paper's order": paper,
    "three rounds": replace(five, recipe=five.recipe.towards(
        "macs", SHARE, 10, 16, rounds=3).changed(epochs=(first, 5 * each // 3, last))),
}
