"""Few images: when to distil. kesi2, at the end, in every retraining, or both, at equal work.

    kesi study studies/when.py --data FOLDER --image-size 16 --seeds 0 1 2

Without a last step its fifteen epochs go to the five retrainings, three to each.
"""

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

whole = Variant(kesi2(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False)))
rounds = whole.changed(teachers=None, epochs=(60, 18, 15))  # the last number is of no training

VARIANTS = {
    "kesi2, taught at the end": whole,
    "taught in every round by the snapshots so far": rounds.changed(rounds_by="snapshots"),
    "taught in every round by the baseline": rounds.changed(rounds_by="baseline"),
    "taught in every round and at the end": whole.changed(rounds_by="snapshots"),
    "never taught": rounds,
}
