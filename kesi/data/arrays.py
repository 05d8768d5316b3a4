"""Images that are in memory already, as a data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kesi.data.augment import PadCrop
from kesi.data.datasets import Dataset
from kesi.data.split import Split, histogram, hold_out, mean_and_std
from kesi.system.errors import UsageError

Pairs = tuple[Tensor | np.ndarray, Tensor | np.ndarray | Sequence[int]]


def from_arrays(train: Pairs, test: Pairs, classes: int | Sequence[str] | None = None, *, name: str = "images",
                padding: int | None = None, flip: bool = True, val_fraction: float = 0.0) -> Dataset:
    """A data set of (images, labels) pairs: uint8 images (N, 3, S, S) or (N, S, S, 3), whole labels (N,) from 0.

    ``classes``: their names or their number (default: as many as the labels say). Training crops the
    images out of themselves, padded by ``padding`` pixels (default: an eighth of S), and mirrors every other one
    where ``flip``. Mean and standard deviation are those of the training images; ``val_fraction`` of each class of
    them is held out. Raises UsageError for anything else than such images and labels.
    """
    train_split, test_split = _split(train, "train"), _split(test, "test")
    size = train_split.side
    if test_split.side != size:
        raise UsageError(f"the training images have {size} px and the test images {test_split.side}: make them equal")
    if classes is None:
        classes = max(int(split.labels.max()) for split in (train_split, test_split)) + 1
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    for which, split in (("training", train_split), ("test", test_split)):
        lowest, highest = int(split.labels.min()), int(split.labels.max())
        if lowest < 0 or highest >= len(names):
            raise UsageError(f"the {which} labels go from {lowest} to {highest}; {len(names)} classes are numbered "
                             f"0 to {len(names) - 1}")
    mean, std = mean_and_std(histogram(train_split.images))
    kept, held_out = hold_out(train_split, val_fraction) if val_fraction else (train_split, None)
    padding = size // 8 if padding is None else padding
    return Dataset(name, kept, test_split, held_out, names, mean, std, size, PadCrop(size, padding, flip))


def _split(pair: Pairs, which: str) -> Split:
    """One pair, checked, its images as (N, S, S, 3)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UsageError(f"{which} has to be a pair (images, labels) or a kesi.data.Dataset, "
                         f"not a {type(pair).__name__}")
    images, labels = torch.as_tensor(pair[0]), torch.as_tensor(pair[1])
    if images.dtype != torch.uint8:
        raise UsageError(f"the {which} images are {str(images.dtype).removeprefix('torch.')}: give them as uint8, "
                         f"0 to 255, not normalised")
    if images.dim() == 4 and images.shape[3] != 3 and images.shape[1] == 3:
        images = images.permute(0, 2, 3, 1)
    if images.dim() != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2] or images.shape[1] < 8:
        raise UsageError(f"the {which} images have shape {tuple(images.shape)}: give squares of 8 px or more, "
                         f"(N, 3, S, S) or (N, S, S, 3); grey ones repeated three times")
    if labels.shape != images.shape[:1] or not len(labels) or labels.is_floating_point() or labels.is_complex():
        raise UsageError(f"the {which} labels have shape {tuple(labels.shape)} and type {labels.dtype}: give one whole "
                         f"number for each of the {len(images)} images")
    return Split(images.contiguous().cpu(), labels.long().cpu())
