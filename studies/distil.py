"""Few images: how to distil. kesi2 with another last step: loss, teachers, optimiser and length.

    kesi study studies/distil.py --data FOLDER --image-size 16 --seeds 0 1 2

All but the last two share one chain of snapshots, that of kesi2 in few.py; these two spend the same
images otherwise. Half labels at a temperature of 2 were added when each alone had been seen to do
well with seed 0 on CIFAR-10.
"""

from dataclasses import replace

from kesi.method.objectives import (
    Decoupled,
    Dist,
    KullbackLeibler,
    Standardised,
    WithLabels,
)
from kesi.method.recipes import kesi2, recipe
from kesi.method.teachers import ByConfidence
from kesi.runs.study import Variant

paper = recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False)
kesi = Variant(kesi2(paper))  # 60 + 5 x 15 + 15 epochs, a tenth of the last step's loss by labels

VARIANTS = {
    "kesi2": kesi,
    "no labels": kesi.changed(loss=KullbackLeibler()),
    "half labels": kesi.changed(loss=WithLabels(alpha=0.5)),
    "temperature 2": kesi.changed(loss=WithLabels(temperature=2.0)),
    "half labels at a temperature of 2": kesi.changed(loss=WithLabels(temperature=2.0, alpha=0.5)),
    "standardised logits": kesi.changed(loss=Standardised(alpha=0.1)),
    "DIST": kesi.changed(loss=Dist(alpha=0.1)),
    "DKD": kesi.changed(loss=Decoupled(alpha=0.1)),
    "teachers by confidence": kesi.changed(loss=WithLabels(weights=ByConfidence())),
    "the last snapshot as only teacher": kesi.changed(teachers="last"),
    "mixed images, no labels": kesi.changed(loss=KullbackLeibler(), distillation={"mixup": True}),
    "averaged weights": kesi.changed(distillation={"ema": 0.99}),
    "a peak of 0.03": kesi.changed(distillation={"lr": 0.03}),
    "by Adam, as in the paper": kesi.changed(
        distillation=replace(paper.distillation, batch_size=64)),
    "60 + 5 x 9 + 45 epochs": kesi.changed(epochs=(60, 9, 45)),
    "30 + 5 x 15 + 45 epochs": kesi.changed(epochs=(30, 15, 45)),
}
