"""Tiny-ImageNet as it is distributed: `tiny-imagenet-200/`, 200 classes, 64x64 JPEG files.

    wnids.txt                              the classes
    words.txt                              wnid <tab> names, for far more than these classes
    train/<wnid>/images/*.JPEG             500 a class
    val/images/*.JPEG, val_annotations.txt 50 a class; the test split here (test/ has no labels)

Everything else in these folders is ignored. Labels follow the sorted wnids.
"""

from pathlib import Path

import torch

from kesi.data.cache import cached
from kesi.data.decode import Storage, is_image
from kesi.data.download import TINY_IMAGENET, Archive, fetch
from kesi.data.split import Images, Split
from kesi.system.errors import KesiError

FOLDER = "tiny-imagenet-200"


def load_tinyimagenet(root: Path, storage: Storage, download: bool,
                      archive: Archive = TINY_IMAGENET) -> Images:
    """The images of train/, and those of val/ to test.

    root: the folder tiny-imagenet-200, or the one that holds it or that it is downloaded to where
    it is missing. Raises KesiError that names the file: missing files, a class without images, an
    annotation for an unknown class or an image that is not there, an unreadable image, a failed
    download.
    """
    folder = _folder(root, download, archive)
    wnids = tuple(sorted(set(_lines(folder / "wnids.txt"))))
    if not wnids:
        raise KesiError(f"{folder / 'wnids.txt'} names no class: unpack the archive again")
    train_files, train_labels = _train_files(folder, wnids)
    test_files, test_labels = _val_files(folder, wnids)
    train, test = (
        Split(decoded.images, torch.tensor(labels), pixels=decoded.pixels)
        for decoded, labels in ((cached(folder, "train", train_files, storage), train_labels),
                                (cached(folder, "val", test_files, storage), test_labels)))
    return Images(train, test, _class_names(folder / "words.txt", wnids))


def _folder(root: Path, download: bool, archive: Archive) -> Path:
    for folder in (root, root / FOLDER):
        if (folder / "wnids.txt").is_file():
            return folder
    if (root / FOLDER).exists() or root.name == FOLDER and root.exists():
        where = root if root.name == FOLDER else root / FOLDER
        raise KesiError(f"{where / 'wnids.txt'} is not there: remove {where} and unpack the "
                        f"archive again")
    if not download:
        raise KesiError(f"tinyimagenet is not in {root}: unpack {archive.url} there, or add "
                        f"--download")
    return fetch(archive, root.parent if root.name == FOLDER else root, FOLDER)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise KesiError(f"{path} cannot be read ({error}): unpack the archive again") from error


def _class_names(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first name of each class in words.txt, with the wnid added where two classes share it."""
    names = dict(line.split("\t", 1) for line in _lines(path) if "\t" in line)
    first = [names.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return tuple(
        name if first.count(name) == 1 else f"{name} ({wnid})"
        for name, wnid in zip(first, wnids, strict=True)
    )


def _train_files(folder: Path, wnids: tuple[str, ...]) -> tuple[list[str], list[int]]:
    files, labels = [], []
    for label, wnid in enumerate(wnids):
        images = folder / "train" / wnid / "images"
        there = images.iterdir() if images.is_dir() else ()
        names = sorted(path.name for path in there if is_image(path.name))
        if not names:
            raise KesiError(f"{images} has no image, but wnids.txt lists {wnid}: unpack the "
                            f"archive again")
        files += [f"train/{wnid}/images/{name}" for name in names]
        labels += [label] * len(names)
    return files, labels


def _val_files(folder: Path, wnids: tuple[str, ...]) -> tuple[list[str], list[int]]:
    path = folder / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    files, labels = [], []
    for number, line in enumerate(_lines(path), start=1):
        name, wnid = (line.split() + ["", ""])[:2]
        if wnid not in label_of:
            raise KesiError(f"{path} line {number}: class {wnid!r} of {name} is not in wnids.txt")
        if Path(name).name != name or not (folder / "val" / "images" / name).is_file():
            raise KesiError(f"{path} line {number}: {folder / 'val' / 'images' / name} is not "
                            f"there")
        files.append(f"val/images/{name}")
        labels.append(label_of[wnid])
    if not files:
        raise KesiError(f"{path} lists no image: unpack the archive again")
    return files, labels
