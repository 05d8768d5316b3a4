"""Few images: what a held-out tenth of them is good for. The last
snapshot handed over where it is clearly better, and teachers weighted by their accuracy.

    kesi study studies/heldout.py --data FOLDER --image-size 16 --val-fraction 0.1 --seeds 0 1 2
"""

from kesi.method.objectives import WithLabels
from kesi.method.recipes import kesi2, recipe
from kesi.method.teachers import ByAccuracy
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False))
kesi = Variant(kesi2(paper.recipe))

VARIANTS = {
    "kesi2": kesi,
    "kesi2, a clearly better snapshot handed over": kesi.changed(hand_over="best"),
    "teachers by held-out accuracy": kesi.changed(loss=WithLabels(weights=ByAccuracy())),
    "the paper's order": paper,
    "the paper's order, a clearly better snapshot handed over": paper.changed(hand_over="best"),
}
