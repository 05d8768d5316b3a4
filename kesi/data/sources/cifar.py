"""CIFAR-10 and CIFAR-100, read (and downloaded once, with their checksums) by torchvision."""

from functools import partial
from pathlib import Path

import torch
import torchvision

from kesi.data.decode import Storage
from kesi.data.split import Images, Split
from kesi.system.errors import KesiError


def _load(name: str, root: Path, storage: Storage, download: bool) -> Images:
    """The images of torchvision's class `name`, 32x32.

    Raises KesiError with the place where the files belong if they are missing or damaged and cannot
    be downloaded.
    """
    source, name = getattr(torchvision.datasets, name), name.lower()
    if download and (root / "train").is_dir() and not (root / source.base_folder).is_dir():
        raise KesiError(f"{root} holds train/ but not {name}: for a folder of images add "
                        f"--dataset imagefolder")
    try:
        parts = [source(str(root), train=train, download=download) for train in (True, False)]
    except Exception as error:  # whatever urllib, tarfile, pickle or the disk raise
        reason = " ".join(str(error).split()) or type(error).__name__
        missing = "could not be downloaded or is damaged" if download else "is missing or damaged"
        raise KesiError(f"{name} {missing} ({reason}): put {source.filename} from {source.url} "
                        f"(MD5 {source.tgz_md5}) into {root}/ or unpack it there") from error
    # torchvision has them with the channels first in memory
    train, test = (Split(torch.from_numpy(part.data).contiguous(), torch.tensor(part.targets))
                   for part in parts)
    return Images(train, test, tuple(parts[0].classes))


load_cifar10, load_cifar100 = partial(_load, "CIFAR10"), partial(_load, "CIFAR100")
