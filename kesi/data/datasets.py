"""The data sets, by name: two splits of uint8 images, and what a network needs to know about them.

`load` is the only way in. It gives the images in the form that the augmentation of the caller's
scripts wants: family "cifar" crops padded images of their final size, family "tinyimagenet" crops
and resizes larger ones.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kesi.data.augment import Augmentation, PadCrop, RandomResizedCrop
from kesi.data.decode import Storage
from kesi.data.registry import FAMILIES, INFO
from kesi.data.sources import imagefolder
from kesi.data.split import (
    Images,
    Size,
    Split,
    fixed_statistics,
    fraction_of,
    height_width,
    histogram,
    hold_out,
    mean_and_std,
    resized,
)
from kesi.system.errors import KesiError, UsageError, check_choice, first_line

SMALLEST, LARGEST = 8, 4096  # pixels of a side that a network is shown


@dataclass(frozen=True)
class Dataset:
    """A data set that is ready for `TrainBatches` and `eval_batches`."""

    name: str
    train: Split
    test: Split
    val: Split | None  # a stratified part of the training images that was held out, if asked for
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # by channel, of images scaled to 0..1
    std: tuple[float, ...]
    image_size: Size  # pixels that the network sees
    augmentation: Augmentation
    unlabelled: Split | None = None  # more images, which teachers answer for; labels are UNKNOWN

    def __post_init__(self):
        """Raises UsageError where images without labels are test images, or held out."""
        for what, split in (("test", self.test), ("held-out", self.val)):
            if None not in (self.unlabelled, split):
                _refuse_shared(_shared(self.unlabelled, split), len(self.unlabelled), what,
                               self.name)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        return (len(self.mean), *height_width(self.image_size))

    def describe(self) -> dict:
        """What a checkpoint should say about its data; plain values that JSON takes.

        `digests` are SHA-256 of pixels and labels, see Split.digest. The first call reads the
        images once, unless they come from a decode cache, which knows.
        """
        splits = {"train": self.train, "val": self.val, "test": self.test}
        splits = {key: split for key, split in splits.items() if split is not None}
        augmentation = {"name": type(self.augmentation).__name__, **asdict(self.augmentation)}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "images": {key: len(split) for key, split in splits.items()},
            "image_size": plain(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": {key: plain(value) for key, value in augmentation.items()},
            # last: what differs before says more
            "digests": {key: split.digest for key, split in splits.items()},
        }


def plain(value):
    """A value as JSON gives it back: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


def family_of(said: dict) -> str:
    """The family with which the data set was loaded that describes itself like this."""
    name = (said.get("augmentation") or {}).get("name")
    return "tinyimagenet" if name == RandomResizedCrop.__name__ else "cifar"


def load_described(said: dict, root: str | Path, download: bool = False,
                   **given: object) -> Dataset:
    """Load the data set that describes itself like this, the same images held out; ``given``: what
    load() is to be told otherwise, if it is not None.

    Raises UsageError for a name that is not in INFO.
    """
    size = said.get("image_size")
    size = tuple(size) if isinstance(size, list) else size
    told = {"image_size": size, "family": family_of(said),
            "channels": len(said.get("mean") or "RGB"),
            "flip": (said.get("augmentation") or {}).get("flip")}
    told |= {name: value for name, value in given.items() if value is not None}
    found = load(said["name"], root, download=download, **told)
    held_out = said.get("images", {}).get("val")
    if not held_out or "val_fraction" in told:
        return found
    train, val = hold_out(found.train, fraction_of(found.train, held_out))
    return replace(found, train=train, val=val)


def load(
    name: str,
    root: str | Path = "data",
    *,
    image_size: Size | None = None,
    val_fraction: float = 0.0,
    download: bool = True,
    family: str = "cifar",
    channels: int | None = None,
    unlabelled: str | Path | None = None,
    flip: bool | None = None,
) -> Dataset:
    """Loads a data set.

    name: one of INFO. root: the folder where its files are, or are downloaded to. image_size:
    pixels that the network sees, a number or (height, width); the default is the data set's own (32
    for a folder of images), and 224 for family "tinyimagenet", which takes squares only.
    val_fraction: the share of each class of the training images to hold out. channels: 1 for grey,
    3 for RGB (default: the data set's own, 3 for a folder of images). unlabelled: a folder of more
    images, for what needs no labels, stored like the training images. flip: whether every other
    image is mirrored in training (default: the data set's own; yes for a folder of images). Mean
    and std are those of all training images, held out or not, where the data set does not fix them.

    Raises UsageError for a bad argument and KesiError for missing or damaged files and a failed
    download.
    """
    check_wanted(name, image_size, val_fraction, family, channels)
    info = INFO[name]
    size = image_size or info.default_size(family)
    photographs = family == "tinyimagenet"
    stored = info.stored_size(family, size)
    storage = Storage(stored, photographs and info.side is None, channels or 3)
    try:
        found = info.load(Path(root), storage, download)
    except (KesiError, MemoryError):
        raise
    except Exception as error:  # of somebody's own source: anything
        raise KesiError(f"data set {name} cannot be loaded: {type(error).__name__}: "
                        f"{first_line(error)}") from error
    _check_found(name, found, channels)
    train, test = (_at(split, stored) for split in (found.train, found.test))
    has = train.images.shape[3]
    mean, std = (fixed_statistics(name, info.statistics, has)
                 or fixed_statistics(name, (found.mean, found.std), has)
                 or mean_and_std(histogram(train.images)))
    others = None
    if unlabelled is not None:
        tested, folder = (path.resolve() for path in (imagefolder.test_folder(Path(root)),
                                                      Path(unlabelled)))
        if tested.is_relative_to(folder) or folder.is_relative_to(tested):
            raise UsageError(f"{unlabelled} holds the test images: --unlabelled takes others")
        # as files, before pixels are compared: test photographs are stored in another form
        if storage.squeeze and tested.is_dir():
            count, number = imagefolder.count_copies(folder, tested)
            _refuse_shared(count, number, "test", name)
        others = _at(imagefolder.load_unlabelled(
            Path(unlabelled), replace(storage, channels=found.train.images.shape[3])), stored)
    train, val = hold_out(train, val_fraction) if val_fraction else (train, None)
    flip = info.flip if flip is None else flip
    augmentation = RandomResizedCrop(size, flip) if photographs else (
        PadCrop(size, min(height_width(size)) // 8, flip))  # 4 px at 32, as in the paper
    return Dataset(name, train, test, val, found.classes, mean, std, size, augmentation,
                   others)


def _refuse_shared(count: int, number: int, what: str, name: str) -> None:
    if count:
        raise UsageError(f"{count:,} of the {number:,} images without labels are {what} images of "
                         f"{name}: leave them out")


def _shared(split: Split, others: Split) -> int:
    """How many images of a split are among others, pixel by pixel, where they are of one shape."""
    def digests(one: Split) -> Iterator[bytes]:
        for first in range(0, len(one), 4096):
            for image in one.take(first, min(first + 4096, len(one))).numpy():
                yield hashlib.sha256(image.tobytes()).digest()

    if split.images.shape[1:] != others.images.shape[1:]:
        return 0
    known = set(digests(others))
    return sum(one in known for one in digests(split))


def _at(split: Split, size: Size) -> Split:
    """The split with images of `size`."""
    images = resized(split.images, size)
    return split if images is split.images else replace(split, images=images, pixels=None)


def check_wanted(name: str, image_size: Size | None, val_fraction: float, family: str,
                 channels: int | None) -> None:
    """Raises UsageError for what load() cannot give, whatever the images are."""
    check_choice("data set", name, INFO)
    check_choice("family", family, FAMILIES)
    if image_size is not None:
        check_size(image_size)
    if family == "tinyimagenet" and not all(
            isinstance(size, int) for size in (image_size or 0, INFO[name].side or 0)):
        raise UsageError(f"{name}: images that are not square are for family cifar; "
                         f"family {family} crops squares")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val fraction {val_fraction:g} is not a share: use 0 or more, and less "
                         f"than 1")
    if channels is not None and channels < 1:
        raise UsageError(f"images of {channels} channels: use 1 for grey, 3 for RGB")


def check_size(image_size: Size) -> None:
    """Raises UsageError for a size in pixels that no image has."""
    sides = height_width(image_size)
    if min(sides) < SMALLEST:
        raise UsageError(f"image size {min(sides)} is too small: use {SMALLEST} or more pixels")
    if max(sides) > LARGEST:
        raise UsageError(f"image size {max(sides)} is too large: use at most {LARGEST} pixels")


def _check_found(name: str, found: Images, channels: int | None) -> None:
    if not isinstance(found, Images):
        raise UsageError(f"data set {name} gave a {type(found).__name__}: return "
                         f"kesi.data.Images(train, test, classes)")
    has = found.train.images.shape[3]
    if channels not in (None, has):
        raise UsageError(f"{name} has images of {has} channel(s), not {channels}")
