"""Few images, half of the MACs left, as `kesi compress` leaves them: kesi2 against the other
allocation of `--macs 0.5 --round-to 1`, one round, plain retraining and the paper's recipe.

    kesi study studies/half.py --data FOLDER --image-size 16 --seeds 0 1 2

The lengths are those of few.py; --set LENGTH=6 for six times as long, LENGTH=36 for as many images
as `kesi compress` has processed of 5,000. All variants process as many images.
"""

import os

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

length = int(os.environ.get("LENGTH", 1))
paper = recipe("resnet20", "imagefolder", "filter").changed(
    epochs=(60 * length, 15 * length, 15 * length), compare=False)
whole = kesi2(paper)


def to_half(one, allocation="paper", rounds=5):
    return Variant(one.towards("macs", 0.5, 10, 16, allocation, rounds=rounds))


VARIANTS = {
    "kesi2": to_half(whole),
    "all layers alike": to_half(whole, "uniform"),
    "one round": to_half(whole, rounds=1).changed(retraining={"epochs": 75 * length}),
    "more plain retraining": to_half(whole).changed(
        teachers="labels", distillation=whole.retrainings["onecycle"]),
    "the paper's order": to_half(paper),
}
