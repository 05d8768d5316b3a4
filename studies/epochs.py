"""How many epochs few images need: the paper's order, once, three and ten times as long.

    kesi study studies/epochs.py --data FOLDER --image-size 16 --seeds 0 1 2

ResNet-20, five rounds at a rate of 0.25; 12 + 5 x 3 + 4 epochs are those of many.py, for 50,000
images. The variants do not process as many images: what more of them is worth is the question.
"""

from kesi.method.recipes import recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    amounts=0.25, epochs=(12, 3, 4), compare=False))

VARIANTS = {"12 + 5 x 3 + 4 epochs": paper,
            "three times as long": paper.changed(scale=3.0),
            "ten times as long": paper.changed(scale=10.0)}
