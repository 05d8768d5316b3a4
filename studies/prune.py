"""Few images: what to prune, and in how many rounds. kesi2 with another criterion, allocation or
number of rounds, at equal work and down to the same MACs.

    kesi study studies/prune.py --data FOLDER --image-size 16 --seeds 0 1 2
"""

from dataclasses import replace

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

whole = Variant(kesi2(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False)))
SHARE = 2_143_360 / 10_138_240  # of the MACs, that five rounds at a rate of 0.25 leave


def towards(rounds: int, allocation: str, **more) -> Variant:
    """kesi2 in so many rounds, 75 epochs together, towards the MACs of five at a rate of 0.25."""
    shorter = whole.recipe.changed(epochs=(60, 75 // rounds, 15))
    return replace(whole, recipe=shorter.towards("macs", SHARE, 10, 16, allocation, rounds=rounds,
                                                 **more))


VARIANTS = {
    "kesi2: L1, 5 rounds": whole,
    "batch-norm scales": whole.changed(criterion="batch-norm"),
    "FPGM": whole.changed(criterion="fpgm"),
    "Taylor": whole.changed(criterion="taylor"),
    "random filters": whole.changed(criterion="random"),
    "L1, one ranking over all layers": towards(5, "ranked"),
    "L1, 5 rounds in equal steps": towards(5, "uniform", steps="equal"),
    "L1, 1 round": towards(1, "uniform"),
    "L1, 3 rounds": towards(3, "uniform"),
    "L1, 15 rounds": towards(15, "uniform"),
}
