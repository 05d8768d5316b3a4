"""All images: kesi2-many with one of its parts otherwise. How and when it is distilled, what is
pruned, and the numbers of its trainings, at equal work.

    kesi study studies/parts.py --data FOLDER --image-size 16 --seeds 0 1 2

The lengths are those of many.py, with which this study, and controls.py with --set IMAGES=50000,
can share a folder. Without a last step its four epochs and one of the baseline go to the
retrainings.
"""

from dataclasses import replace

from kesi.method.objectives import Dist, KullbackLeibler, Standardised, WithLabels
from kesi.method.recipes import kesi2, kesi2_many, recipe
from kesi.runs.study import Variant

paper = recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(12, 3, 4), compare=False)
few = Variant(kesi2(paper))
whole = Variant(kesi2_many(paper))  # four fifths of the last step's loss are the labels'
rounds = whole.changed(teachers=None, epochs=(11, 4, 4))  # the last number is of no training
SHARE = 2_143_360 / 10_138_240  # of the MACs, that five rounds at a rate of 0.25 leave


def everywhere(**numbers) -> Variant:
    """kesi2-many with these numbers in all of its trainings."""
    return whole.changed(baseline=numbers, retraining=numbers, distillation=numbers)


VARIANTS = {
    "kesi2-many": whole,
    # how to distil
    "no labels": whole.changed(loss=KullbackLeibler(temperature=2.0)),
    "half labels": whole.changed(loss=WithLabels(temperature=2.0, alpha=0.5)),
    "standardised logits": whole.changed(loss=Standardised(alpha=0.8)),
    "DIST": whole.changed(loss=Dist(alpha=0.8)),
    "by Adam, as in the paper": whole.changed(distillation=paper.distillation),
    # when to distil
    "taught in every round and at the end": whole.changed(rounds_by="snapshots"),
    "taught in every round by the snapshots so far": rounds.changed(rounds_by="snapshots"),
    "never taught": rounds,
    # what to prune
    "batch-norm scales": whole.changed(criterion="batch-norm"),
    "L1, one ranking over all layers": replace(
        whole, recipe=whole.recipe.towards("macs", SHARE, 10, 16, "ranked", rounds=5)),
    # the rest of the recipe
    "decay 5e-4": everywhere(weight_decay=5e-4),
    "batches of 64": everywhere(batch_size=64),
    "17 + 5 x 2 + 4": whole.changed(epochs=(17, 2, 4)),
    "kesi2": few,
    "from scratch by labels, with kesi2's decay and batches": few.changed(
        start="fresh", teachers="labels", distillation=few.recipe.baseline.changed(epochs=31)),
}
