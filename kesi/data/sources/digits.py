"""The handwritten digits that ship with the project; digits.md beside this file says where from."""

from pathlib import Path

import numpy as np
import torch

from kesi.data.decode import Storage
from kesi.data.split import Images, Split, resized


def load_digits(root: Path, storage: Storage, download: bool) -> Images:
    """300 images to train and 1,497 to test, a fixed split; grey, repeated in every channel.

    The 8x8 originals hold 0 to 16, ink being 16. They are scaled to 0..255 and rounded, enlarged
    with bilinear interpolation (half-pixel centres, edges repeated) and rounded again.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        pixels, labels, train = (
            torch.from_numpy(file[key].astype(np.int64)) for key in ("images", "labels", "train")
        )
    grey = (pixels * 255 / 16).round().to(torch.uint8)  # (1797, 8, 8)
    images = resized(grey[..., None].expand(-1, -1, -1, storage.channels), storage.size)
    is_train = torch.zeros(len(labels), dtype=torch.bool)
    is_train[train] = True
    return Images(Split(images[is_train], labels[is_train]),
                  Split(images[~is_train], labels[~is_train]), tuple("0123456789"))
