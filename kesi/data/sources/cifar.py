"""CIFAR-10 and CIFAR-100, read (and downloaded once, with their checksums) by torchvision."""

from pathlib import Path

import torch
import torchvision

from kesi.data.split import Split, resized
from kesi.system.errors import KesiError


def load_cifar(name: str, root: Path, size: int, download: bool) -> tuple[Split, Split, tuple[str, ...]]:
    """Training split, test split and class names of "cifar10" or "cifar100".

    Images are 32x32 and are resized where `size` says otherwise. Raises KesiError with the place where the
    files belong if they are missing or damaged and cannot be downloaded.
    """
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    if download and (root / "train").is_dir() and not (root / source.base_folder).is_dir():
        raise KesiError(f"{root} holds train/ but not {name}: for a folder of images add --dataset imagefolder")
    try:
        parts = [source(str(root), train=train, download=download) for train in (True, False)]
    except Exception as error:  # torchvision lets through whatever urllib, tarfile, pickle or the disk raise
        reason = " ".join(str(error).split()) or type(error).__name__
        where = (
            f"put {source.filename} from {source.url} (MD5 {source.tgz_md5}) into {root}/ or unpack it there"
        )
        missing = "could not be downloaded or is damaged" if download else "is missing or damaged"
        raise KesiError(f"{name} {missing} ({reason}): {where}") from error
    train, test = (
        Split(resized(torch.from_numpy(part.data), size), torch.tensor(part.targets)) for part in parts
    )
    return train, test, tuple(parts[0].classes)
