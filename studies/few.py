"""Few images: what weight decay, SGD and labels are worth, beside controls of equal length.

    kesi study studies/few.py --data FOLDER --image-size 16 --unlabelled OTHERS --seeds 0 1 2

ResNet-20 on a folder of images, five rounds at a rate of 0.25, 60 + 5 x 15 + 15 epochs: every
variant processes as many images, and ends in a network of the same widths.
"""

from kesi.method.objectives import WithLabels
from kesi.method.recipes import recipe
from kesi.method.schedules import rewound
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False))
decay = paper.changed(baseline={"weight_decay": 5e-4}, retraining={"weight_decay": 5e-4})
whole = decay.changed(
    distillation={"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}, loss=WithLabels(alpha=0.1))
one_cycle = whole.recipe.retrainings["onecycle"]
baseline = whole.recipe.baseline
# in one round to the widths that five end in: 16 to 3, 32 to 6 and 64 to 15 filters
ONE_SHOT = [13 / 16] * 3 + [26 / 32] * 3 + [49 / 64] * 3

VARIANTS = {
    "the paper's order": paper,
    "decay 5e-4, last step by SGD with labels": whole,
    "the same on images without labels": whole.changed(images="unlabelled"),
    "the same, the baseline as only teacher": whole.changed(teachers="baseline"),
    "the same, more plain retraining": whole.changed(teachers="labels", distillation=one_cycle),
    "the same chain, the paper's last step": decay,
    # controls: the second variant with one thing otherwise
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
