"""Few images: how much of which layer, to half of the MACs: kesi2 in five rounds by the two
allocations of `kesi compress --macs 0.5 --round-to 1`, of which the first is the default.

    kesi study studies/allocation.py --data FOLDER --image-size 16 --seeds 0 1 2
"""

from kesi.method.recipes import kesi2, recipe
from kesi.runs.study import Variant

whole = kesi2(recipe("resnet20", "imagefolder", "filter").changed(
    epochs=(60, 15, 15), compare=False))

VARIANTS = {
    "in proportion to the paper's rates": Variant(whole.towards("macs", 0.5, 10, 16)),
    "all layers alike": Variant(whole.towards("macs", 0.5, 10, 16, "uniform")),
}
