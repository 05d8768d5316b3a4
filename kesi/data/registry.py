"""The data sets by name, and what is known of each before its images are there.

A data set is one file in `sources/` and its entry in INFO. From outside of the package, in a file
that is given with `--with`:

    def load(root, storage, download):
        return Images(split_of(images, labels), split_of(test_images, test_labels), ("cat", "dog"))

    register_dataset("pets", DatasetInfo(load, num_classes=2, side=64))
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kesi.data.augment import RandomResizedCrop
from kesi.data.decode import Storage
from kesi.data.sources import cifar, digits, imagefolder, tinyimagenet
from kesi.data.split import Images, Size
from kesi.system.errors import UsageError

FAMILIES = ("cifar", "tinyimagenet")

# Gives the images below `root`, downloaded first if they are missing and `download` allows it.
# A source of files of any size stores them as `Storage` says; another may leave them as they are.
Source = Callable[[Path, Storage, bool], Images]

CIFAR_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as in the paper
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetInfo:
    """A data set by name: how it is loaded, and what is known of it before that."""

    load: Source
    num_classes: int | None = None  # None: loading tells; so do the numbers of images
    train_images: int | None = None
    test_images: int | None = None
    side: Size | None = None  # pixels of its images; None: files of any size
    # mean and std by channel, of images scaled to 0..1; None: those of the training images
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    flip: bool = True  # whether a mirrored image is still one of its class
    family: str = "cifar"  # that of the scripts which the data set belongs to
    recipe: str | None = None  # the recipe made for it; None: the family's
    eval_every: int = 1  # epochs between two looks at the test accuracy, 0: after the last only
    in_paper: bool = False

    def default_size(self, family: str) -> Size:
        """Pixels that a network sees where nobody says otherwise."""
        return 224 if family == "tinyimagenet" else self.side or 32

    def stored_size(self, family: str, size: Size) -> Size:
        """Pixels of the stored images for a network that sees `size`."""
        if family == "cifar":
            return size
        return self.side or RandomResizedCrop(size).test_size

    @property
    def image_size(self) -> Size:
        """Pixels that a network sees by default in the data set's own family."""
        return self.default_size(self.family)


FOLDER = "imagefolder"  # images of one's own

INFO = {
    "cifar10": DatasetInfo(cifar.load_cifar10, 10, 50_000, 10_000, 32, CIFAR_STATISTICS,
                           in_paper=True),
    "cifar100": DatasetInfo(cifar.load_cifar100, 100, 50_000, 10_000, 32, CIFAR_STATISTICS,
                            in_paper=True),
    "digits": DatasetInfo(digits.load_digits, 10, 300, 1_497, 16, flip=False, recipe="digits",
                          eval_every=0),
    FOLDER: DatasetInfo(imagefolder.load_imagefolder),
    "tinyimagenet": DatasetInfo(tinyimagenet.load_tinyimagenet, 200, 100_000, 10_000, 64,
                                IMAGENET_STATISTICS, family="tinyimagenet", in_paper=True),
}
DATASETS = INFO.keys()  # the names, those that are registered later included
BUILT_IN = tuple(INFO)
SHIPPED = "digits"  # what is there without a download


def register_dataset(name: str, info: DatasetInfo) -> None:
    """Make a data set known by name to `load` and to all commands (see the head of this file).

    A name that was registered before is replaced. Raises UsageError for one of ours, and for one
    that could not be part of a path.
    """
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"a data set's name consists of letters, digits, '-' and '_', "
                         f"unlike {name!r:.60}")
    if name in BUILT_IN:
        raise UsageError(f"there is a data set {name} already: choose another name")
    if not isinstance(info, DatasetInfo) or info.family not in FAMILIES:
        raise UsageError(f"data set {name}: give kesi.data.DatasetInfo(load, ...), "
                         f"its family one of {', '.join(FAMILIES)}")
    INFO[name] = info
