"""Few images: what weight decay, SGD and labels are worth, beside controls of equal length.

    kesi study studies/few.py --data FOLDER --image-size 16 --unlabelled OTHERS --seeds 0 1 2

ResNet-20 on a folder of images, five rounds at a rate of 0.25, 60 + 5 x 15 + 15 epochs: every
variant processes as many images.
"""

from kesi.method.objectives import WithLabels
from kesi.method.recipes import recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(60, 15, 15), compare=False))
decay = paper.changed(baseline={"weight_decay": 5e-4}, retraining={"weight_decay": 5e-4})
whole = decay.changed(
    distillation={"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}, loss=WithLabels(alpha=0.1))
one_cycle = whole.recipe.retrainings["onecycle"]

VARIANTS = {
    "the paper's order": paper,
    "decay 5e-4, last step by SGD with labels": whole,
    "the same on images without labels": whole.changed(images="unlabelled"),
    "the same, the baseline as only teacher": whole.changed(teachers="baseline"),
    "the same, more plain retraining": whole.changed(teachers="labels", distillation=one_cycle),
    "the same chain, the paper's last step": decay,
}
