"""Anybody's images: `train/<class>/*` and `test/<class>/*`, of any sizes and modes."""

import contextlib
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from kesi.data.cache import Cached, cached
from kesi.data.decode import SUFFIXES, Storage, is_image
from kesi.data.split import UNKNOWN, Images, Split
from kesi.system.errors import KesiError, controls


def load_imagefolder(root: Path, storage: Storage, download: bool) -> Images:
    """The images in train/ and in test/, or in val/ where there is no test/.

    Of test images the centre is stored, of training images what `storage` says. Labels follow the
    sorted names of the folders in train/. Raises KesiError that names the folder or the file: a
    folder that is missing or empty, a class that train/ does not have, an unreadable image.
    """
    if not (root / "train").is_dir():
        raise KesiError(without_train(root))
    test_name = test_folder(root).name
    if not (root / test_name).is_dir():
        raise KesiError(f"{root / 'test'} is not there: put test images into "
                        f"{root / 'test'}/<class>/, or into val/")
    classes = _classes(root / "train")
    if len(classes) < 2:
        raise KesiError(f"{root / 'train'} has one class ({classes[0]}): a classifier needs two "
                        f"or more")
    unknown = sorted(set(_classes(root / test_name)) - set(classes))
    if unknown:
        raise KesiError(
            f"{root / test_name / unknown[0]} is a class without training images: "
            f"there is no {root / 'train' / unknown[0]}"
        )
    train, decoded = _split(root, "train", classes, storage)
    test, _ = _split(root, test_name, classes, replace(storage, squeeze=False))
    return Images(train, test, classes, decoded.mean, decoded.std)


def test_folder(root: Path) -> Path:
    """Where the test images are: in test/, or where that is not there, in val/."""
    return root / "test" if (root / "test").is_dir() else root / "val"


def without_train(root: Path) -> str:
    """What to say of a folder that holds no train/."""
    if not root.is_dir():
        return (f"{root} is not a folder: give the one that holds train/<class>/ and test/<class>/ "
                f"with --data")
    if root.name in ("train", "test", "val"):
        return f"{root / 'train'} is not there: did you mean --data {root.parent}?"
    return (f"{root / 'train'} is not there: put training images into {root / 'train'}/<class>/, "
            f"or say where they are with --data")


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of a split: its folders that are not hidden, sorted; none if it is not there."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir()
                        if path.is_dir() and not path.name.startswith(".")))


def counts(folder: Path) -> list[int]:
    """How many images each class of a split has, without opening one; none if it is not there."""
    return [sum(map(_is_one, (folder / name).iterdir())) for name in class_names(folder)]


def shorter_side(folder: Path) -> int | None:
    """Pixels of the shorter side of a split's images: the median over one of each class, as their
    first bytes say; None where none can be read."""
    sides = []
    for name in class_names(folder):
        for path in filter(_is_one, sorted((folder / name).iterdir())):
            with contextlib.suppress(OSError, Image.DecompressionBombError):
                with Image.open(path) as image:
                    sides.append(min(image.size))
            break
    return sorted(sides)[len(sides) // 2] if sides else None


def _is_one(path: Path) -> bool:
    return not path.name.startswith(".") and is_image(path.name) and path.is_file()


def load_unlabelled(root: Path, storage: Storage) -> Split:
    """All images in a folder and the folders in it, whose names mean nothing here.

    Raises KesiError where there is none, or for an unreadable one.
    """
    if not root.is_dir():
        raise KesiError(f"{root} is not a folder: --unlabelled takes one with images")
    files = []
    for here, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [str((Path(here) / name).relative_to(root)) for name in sorted(names)
                  if _is_one(Path(here) / name)]
    if not files:
        raise KesiError(f"{root} has no image ({', '.join(sorted(SUFFIXES))}) in it or its folders")
    decoded = cached(root, "unlabelled", files, storage)
    return Split(decoded.images, torch.full((len(files),), UNKNOWN),
                 sizes=decoded.sizes if storage.squeeze else None, pixels=decoded.pixels)


def _classes(folder: Path) -> tuple[str, ...]:
    names = class_names(folder)
    if not names:
        raise KesiError(f"{folder} has no class folder: put images into {folder}/<class>/")
    for name in filter(controls, names):
        raise KesiError(f"{folder} has a class {name!r:.60} with a control character in its name: "
                        f"rename it")
    return names


def _split(root: Path, name: str, classes: tuple[str, ...],
           storage: Storage) -> tuple[Split, Cached]:
    files, labels, others = [], [], []
    for label, class_name in enumerate(classes):
        folder = root / name / class_name
        if not folder.is_dir():  # a class may lack test images
            continue
        images = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if _is_one(path):
                images.append(path.name)
            else:
                others.append(path)
        if not images:
            raise KesiError(f"{folder} has no image ({', '.join(sorted(SUFFIXES))}): add some or "
                            f"remove the folder")
        files += [f"{name}/{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    if others:
        warnings.warn(
            f"{len(others)} of {len(files) + len(others)} entries in the class folders of "
            f"{root / name} are left out, {others[0]} for one: images are files directly in them, "
            f"named {', '.join(sorted(SUFFIXES))}", stacklevel=4)
    decoded = cached(root, name, files, storage)
    sizes = decoded.sizes if storage.squeeze else None
    labels = torch.tensor(labels)
    return Split(decoded.images, labels, sizes=sizes, pixels=decoded.pixels), decoded
