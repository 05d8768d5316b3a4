"""The data sets, by name: two splits of uint8 images, and what a network needs to know about them.

`load` is the only way in. It gives the images in the form that the augmentation of the caller's scripts
wants: family "cifar" crops padded images of their final size, family "tinyimagenet" crops and resizes larger
ones.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from kesi.data.augment import Augmentation, PadCrop, RandomResizedCrop
from kesi.data.sources import cifar, digits, imagefolder, tinyimagenet
from kesi.data.split import Split, histogram, hold_out, mean_and_std
from kesi.system.errors import UsageError

LARGEST = 4096  # pixels of an image's side; kesi.checkpoints.fields holds files to the same
FAMILIES = ("cifar", "tinyimagenet")
DATASETS = ("cifar10", "cifar100", "digits", "imagefolder", "tinyimagenet")

CIFAR_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # mean and std as in the paper
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is loaded."""

    num_classes: int
    image_size: int  # pixels that the network sees by default
    train_images: int
    test_images: int


INFO = {
    "cifar10": DatasetInfo(10, 32, 50_000, 10_000),
    "cifar100": DatasetInfo(100, 32, 50_000, 10_000),
    "digits": DatasetInfo(10, 16, 300, 1_497),
    "tinyimagenet": DatasetInfo(200, 224, 100_000, 10_000),
}


@dataclass(frozen=True)
class Dataset:
    """A data set that is ready for `TrainBatches` and `eval_batches`."""

    name: str
    train: Split
    test: Split
    val: Split | None  # a stratified part of the training images that was held out, if asked for
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of images scaled to 0..1
    std: tuple[float, float, float]
    image_size: int  # pixels that the network sees
    augmentation: Augmentation

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def describe(self) -> dict:
        """What a checkpoint should say about its data; plain values that JSON takes."""
        augmentation = asdict(self.augmentation)
        augmentation = {key: list(v) if isinstance(v, tuple) else v for key, v in augmentation.items()}
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "images": {key: len(split) for key, split in splits.items() if split is not None},
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": {"name": type(self.augmentation).__name__, **augmentation},
        }


def family_of(said: dict) -> str:
    """The family with which the data set was loaded that describes itself like this."""
    return "tinyimagenet" if (said.get("augmentation") or {}).get("name") == RandomResizedCrop.__name__ else "cifar"


def load(
    name: str,
    root: str | Path = "data",
    *,
    image_size: int | None = None,
    val_fraction: float = 0.0,
    download: bool = True,
    family: str = "cifar",
) -> Dataset:
    """Loads a data set.

    name: one of DATASETS. root: the folder where its files are, or are downloaded to. image_size: pixels that
    the network sees; the default is the data set's own (32 for a folder of images), and 224 for family
    "tinyimagenet". val_fraction: the share of each class of the training images to hold out. Mean and std of
    "digits" and "imagefolder" are those of all their training images, held out or not.

    Raises UsageError for a bad argument and KesiError for missing or damaged files and a failed download.
    """
    _check(name, image_size, val_fraction, family)
    root, size = Path(root), image_size or _default_size(name, family)
    augmentation = _augmentation(name, family, size)
    statistics = None
    if name == "digits":
        classes = tuple("0123456789")
        train, test = digits.load_digits(size if family == "cifar" else INFO[name].image_size)
    elif name in ("cifar10", "cifar100"):
        train, test, classes = cifar.load_cifar(name, root, size if family == "cifar" else 32, download)
        statistics = CIFAR_STATISTICS
    elif name == "tinyimagenet":
        train, test, classes = tinyimagenet.load_tinyimagenet(
            root, size if family == "cifar" else tinyimagenet.SIDE, download
        )
        statistics = IMAGENET_STATISTICS
    else:
        stored = size if family == "cifar" else augmentation.test_size
        train, test, classes, statistics = imagefolder.load_imagefolder(
            root, stored, family == "tinyimagenet"
        )
    mean, std = statistics or mean_and_std(histogram(train.images))
    train, val = hold_out(train, val_fraction) if val_fraction else (train, None)
    return Dataset(name, train, test, val, classes, mean, std, size, augmentation)


def _check(name: str, image_size: int | None, val_fraction: float, family: str) -> None:
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}: choose from {', '.join(DATASETS)}")
    if family not in FAMILIES:
        raise UsageError(f"unknown family {family!r}: choose from {', '.join(FAMILIES)}")
    if image_size is not None:
        check_size(image_size)
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val fraction {val_fraction:g} is not a share: use 0 or more, and less than 1")


def check_size(image_size: int) -> None:
    """Raises UsageError for a size in pixels that no image has."""
    if image_size < 8:
        raise UsageError(f"image size {image_size} is too small: use 8 or more pixels")
    if image_size > LARGEST:
        raise UsageError(f"image size {image_size} is too large: use {LARGEST} pixels at most")


def _default_size(name: str, family: str) -> int:
    if family == "tinyimagenet":
        return 224
    if name == "tinyimagenet":
        return tinyimagenet.SIDE
    return INFO[name].image_size if name in INFO else 32


def _augmentation(name: str, family: str, size: int) -> Augmentation:
    flip = name != "digits"  # a mirrored digit is no digit
    if family == "tinyimagenet":
        return RandomResizedCrop(size, flip)
    return PadCrop(size, size // 8, flip)  # 4 pixels at 32 px, as in the paper
