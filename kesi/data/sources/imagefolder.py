"""Anybody's images: `train/<class>/*` and `test/<class>/*`, of any sizes and modes."""

import contextlib
import hashlib
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
from kesi.system.files import walk


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
        return f"{root} is not a folder: give the one that holds train/<class>/ and test/<class>/"
    if root.name in ("train", "test", "val"):
        return f"{root / 'train'} is not there: did you mean {root.parent}?"
    return (f"{root / 'train'} is not there: images are in train/<class>/ and test/<class>/ of the "
            f"folder that is given (docs/data.md has lines that part one without them)")


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of a split: its folders that are not hidden, sorted; none if it is not there."""
    if not folder.is_dir():
        return ()
    return tuple(path.name for path in _entries(folder)
                 if path.is_dir() and not path.name.startswith("."))


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted. Raises KesiError where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise KesiError(f"{folder} cannot be read: {error.strerror}") from error


def counts(folder: Path) -> list[int]:
    """How many images each class of a split has, without opening one; none if it is not there."""
    return [sum(map(_is_one, _entries(folder / name))) for name in class_names(folder)]


def shorter_side(folder: Path) -> int | None:
    """Pixels of the shorter side of a split's images: the median over one of each class, as their
    first bytes say; None where none can be read."""
    sides = []
    for name in class_names(folder):
        for path in filter(_is_one, _entries(folder / name)):
            with contextlib.suppress(Exception):  # damaged files make Pillow raise nearly anything
                with Image.open(path) as image:
                    sides.append(min(image.size))
            break
    return sorted(sides)[len(sides) // 2] if sides else None


def _is_one(path: Path) -> bool:
    return is_image(path.name) and os.path.isfile(path)  # no error where it may not be looked at


def load_unlabelled(root: Path, storage: Storage) -> Split:
    """All images in a folder and the folders in it, also linked ones, whose names mean nothing.

    Raises KesiError where there is none, or for an unreadable file or folder.
    """
    files, others = _images_below(root)
    if not files:
        raise KesiError(f"{root} has no image ({', '.join(sorted(SUFFIXES))}) in it or its folders")
    _tell_left_out(str(root), "files", others, len(files))
    decoded = cached(root, "unlabelled", files, storage)
    return Split(decoded.images, torch.full((len(files),), UNKNOWN),
                 sizes=decoded.sizes if storage.squeeze else None, pixels=decoded.pixels)


def _images_below(root: Path) -> tuple[list[str], list[Path]]:
    """The images in a folder and those in it, by their paths from it, and what else is there."""
    def unreadable(error: OSError) -> None:
        raise KesiError(f"{error.filename} cannot be read: {error.strerror}") from error

    if not root.is_dir():
        raise KesiError(f"{root} is not a folder: --unlabelled takes one with images")
    files, others = [], []
    for here, folders, names in walk(root, unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (here / name for name in sorted(names) if not name.startswith(".")):
            if _is_one(path):
                files.append(str(path.relative_to(root)))
            else:
                others.append(path)
    return files, others


def count_copies(folder: Path, others: Path) -> tuple[int, int]:
    """How many image files in a folder, or in those in it, are byte for byte in another one; and
    how many there are."""
    def digest(path: Path) -> bytes:
        return hashlib.sha256(path.read_bytes()).digest()

    known: dict[int, list[Path]] = {}  # by size: few files of one size have to be read
    for name in _images_below(others)[0]:
        known.setdefault((others / name).stat().st_size, []).append(others / name)
    digests: dict[int, set[bytes]] = {}
    found, files = 0, _images_below(folder)[0]
    for path in (folder / name for name in files):
        if (size := path.stat().st_size) in known:
            if size not in digests:
                digests[size] = set(map(digest, known[size]))
            found += digest(path) in digests[size]
    return found, len(files)


def _tell_left_out(where: str, what: str, others: list[Path], count: int) -> None:
    if others:
        warnings.warn(f"{len(others)} of {count + len(others)} entries in {where} are left out, "
                      f"{others[0]} for one: images are {what} named "
                      f"{', '.join(sorted(SUFFIXES))}", stacklevel=5)


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
        for path in _entries(folder):
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
    _tell_left_out(f"the class folders of {root / name}", "files directly in them,", others,
                   len(files))
    decoded = cached(root, name, files, storage)
    sizes = decoded.sizes if storage.squeeze else None
    labels = torch.tensor(labels)
    return Split(decoded.images, labels, sizes=sizes, pixels=decoded.pixels), decoded
