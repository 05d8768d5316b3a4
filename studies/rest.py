"""Few images: the numbers of kesi2. Weight decay, batches, averaged weights, and the lengths of its
parts at an equal total.

    kesi study studies/rest.py --data FOLDER --image-size 16 --seeds 0 1 2
"""

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

paper = recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False)
whole = Variant(kesi2(paper))


def everywhere(**numbers) -> Variant:
    """kesi2 with these numbers in all of its trainings."""
    return whole.changed(baseline=numbers, retraining=numbers, distillation=numbers)


VARIANTS = {
    "kesi2: decay 1e-3, batches of 64, 60 + 5 x 15 + 15": whole,
    "from the paper's baseline": whole.changed(baseline=paper.baseline),
    "decay 1e-4, as in the paper": everywhere(weight_decay=1e-4),
    "decay 5e-4": everywhere(weight_decay=5e-4),
    "decay 2e-3": everywhere(weight_decay=2e-3),
    "batches of 128, as in the paper": everywhere(batch_size=128),
    "batches of 32": everywhere(batch_size=32),
    "averaged weights in every training": everywhere(ema=0.99),
    "90 + 5 x 9 + 15": whole.changed(epochs=(90, 9, 15)),
    "30 + 5 x 21 + 15": whole.changed(epochs=(30, 21, 15)),
}
