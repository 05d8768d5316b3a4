"""Anybody's images: `train/<class>/*` and `test/<class>/*`, of any sizes and modes (see `kesi.data.decode`)."""

from pathlib import Path

import torch

from kesi.data.cache import Cached, cached
from kesi.data.decode import SUFFIXES, Storage, is_image
from kesi.data.split import Split
from kesi.errors import KesiError


def load_imagefolder(root: Path, size: int, photographs: bool) -> tuple[Split, Split, tuple[str, ...], tuple]:
    """Training split, test split, class names, and (mean, std) of the training images.

    The test images are those of test/, or of val/ where there is no test/. Images are stored as size x size:
    the centre of each, but for `photographs` the whole training image, squeezed. Labels follow the sorted
    names of the folders in train/. Raises KesiError that names the folder or the file: a folder that is
    missing or empty, a class that train/ does not have, an unreadable image.
    """
    if not (root / "train").is_dir():
        raise KesiError(f"{root / 'train'} is not there: put training images into {root / 'train'}/<class>/")
    test_name = "test" if (root / "test").is_dir() else "val"
    if not (root / test_name).is_dir():
        raise KesiError(f"{root / 'test'} is not there: put test images into {root / 'test'}/<class>/")
    classes = _classes(root / "train")
    unknown = sorted(set(_classes(root / test_name)) - set(classes))
    if unknown:
        raise KesiError(
            f"{root / test_name / unknown[0]} is a class without training images: "
            f"there is no {root / 'train' / unknown[0]}"
        )
    train, train_files = _split(root, "train", classes, Storage(size, photographs))
    test, _ = _split(root, test_name, classes, Storage(size, False))
    return train, test, classes, (train_files.mean, train_files.std)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise KesiError(f"{folder} has no class folder: put images into {folder}/<class>/")
    return tuple(names)


def _split(root: Path, name: str, classes: tuple[str, ...], storage: Storage) -> tuple[Split, Cached]:
    files, labels = [], []
    for label, class_name in enumerate(classes):
        folder = root / name / class_name
        if not folder.is_dir():  # a class may lack test images
            continue
        images = sorted(path.name for path in folder.iterdir() if is_image(path.name) and path.is_file())
        if not images:
            raise KesiError(
                f"{folder} has no image ({', '.join(sorted(SUFFIXES))}): add some or remove the folder"
            )
        files += [f"{name}/{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    decoded = cached(root, name, files, storage)
    sizes = decoded.sizes if storage.squeeze else None
    return Split(decoded.images, torch.tensor(labels), sizes=sizes), decoded
