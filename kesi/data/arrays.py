"""Images that are in memory already, or that Python gives one after the other, as a data set."""

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from kesi.data.augment import PadCrop
from kesi.data.datasets import SMALLEST, Dataset
from kesi.data.split import UNKNOWN, Images, Split, histogram, hold_out, mean_and_std, statistic
from kesi.system.errors import UsageError, first_line

# (images, labels); or (image, label) by position; or batches of (images, labels)
Pairs = tuple[Tensor | np.ndarray, Tensor | np.ndarray | Sequence[int]] | (
    data.Dataset | Iterable[tuple])

ITEMS = 512  # of a torch Dataset at a time, so that floats take little memory


def from_arrays(train: Pairs, test: Pairs, classes: int | Sequence[str] | None = None, *,
                name: str = "images", padding: int | None = None, flip: bool = True,
                val_fraction: float = 0.0, mean: Sequence[float] | None = None,
                std: Sequence[float] | None = None,
                unlabelled: Tensor | np.ndarray | None = None) -> Dataset:
    """A data set of images and whole labels from 0, in any form that split_of() takes.

    classes: their names or their number (default: as many as the labels say). Training crops the
    images out of themselves, padded by `padding` pixels (default: an eighth of the shorter side),
    and mirrors every other one where `flip`. mean, std: what a network trained elsewhere has seen
    subtracted and divided by, for each channel, of values scaled to 0..1 (default: those of the
    training images). val_fraction of each class of the training images is held out. unlabelled:
    more images, an array, for what needs no labels. Raises UsageError for anything else than such
    images and labels.
    """
    train_split, test_split = split_of(train, "training"), split_of(test, "test")
    names = _class_names(classes, train_split, test_split)
    images = Images(train_split, test_split, names)
    height, width, channels = train_split.images.shape[1:]
    counted = mean_and_std(histogram(train_split.images))
    mean, std = (statistic(what, given, channels) or own for what, given, own in
                 (("mean", mean, counted[0]), ("std", std, counted[1])))
    short = min(height, width)
    padding = short // 8 if padding is None else padding
    if type(padding) is not int or not 0 <= padding <= short:
        raise UsageError(f"padding {padding!r:.60}: give a whole number of pixels, 0 to {short}")
    if not isinstance(val_fraction, (int, float)) or not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction {val_fraction!r:.60} is not a share: use 0 or more, and "
                         f"less than 1")
    kept, held_out = hold_out(train_split, val_fraction) if val_fraction else (train_split, None)
    size = height if height == width else (height, width)
    return Dataset(str(name), kept, images.test, held_out, names, mean, std, size,
                   PadCrop(size, padding, bool(flip)), _unlabelled(unlabelled, train_split))


def _unlabelled(images: Tensor | np.ndarray | None, train: Split) -> Split | None:
    if images is None:
        return None
    pixels = _pixels(images, "unlabelled")
    if pixels.shape[1:] != train.images.shape[1:]:
        raise UsageError("the unlabelled images have {}x{} px in {} channels and the training "
                         "images {}x{} in {}: make them equal".format(*pixels.shape[1:],
                                                                      *train.images.shape[1:]))
    return Split(pixels, torch.full((len(pixels),), UNKNOWN))


def split_of(images: Pairs, which: str = "given") -> Split:
    """Images and their labels, checked, as a split. `images` is one of

    - a pair (images, labels) of tensors or arrays: images (N, C, H, W), (N, H, W, C) or (N, H, W),
      whole labels (N,). The fewer of C and H or W are the channels.
    - a torch Dataset of (image, label), without augmentation: it is read once, in order.
    - batches of (images, labels), such as a DataLoader; one that shuffles is read in order, and
      others whose order may change are refused.

    Images are uint8, or floats in 0..1 that came from uint8 (a multiple of 1/255 each), or
    Pillow's, RGB or grey. Raises UsageError for others; `which` says in the message whose images
    they are.
    """
    if _is_pair(images):
        parts: Iterable = [images]
    elif isinstance(images, data.DataLoader):
        parts = _in_order(images, which)
    elif isinstance(images, data.Dataset):
        parts = _batches(images, which)
    elif isinstance(images, Iterable) and not isinstance(
            images, (str, bytes, dict, Tensor, np.ndarray)):
        parts = images
    else:
        raise UsageError(f"the {which} images are a {type(images).__name__}: give a pair (images, "
                         f"labels), a torch Dataset or batches of (images, labels)")
    pixels, labels = [], []
    for part in parts:
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise UsageError(f"the {which} images come with a {type(part).__name__}: give pairs "
                             f"(images, labels)")
        pixels.append(_pixels(part[0], which))
        labels.append(_labels(part[1], len(pixels[-1]), which))
    if not pixels:
        raise UsageError(f"there are no {which} images")
    if len({part.shape[1:] for part in pixels}) > 1:
        raise UsageError(f"the {which} images are not of one size: resize them first")
    return Split(torch.cat(pixels), torch.cat(labels)) if len(pixels) > 1 else Split(
        pixels[0], labels[0])


def _is_pair(images: Any) -> bool:
    """Whether these are (images, labels), and not two batches of such pairs."""
    if not isinstance(images, (tuple, list)) or len(images) != 2:
        return False
    labels = images[1]
    return not (isinstance(labels, (tuple, list)) and len(labels)
                and getattr(labels[0], "ndim", 0) > 1)


def _in_order(loader: data.DataLoader, which: str) -> Iterable:
    """What a DataLoader gives, where it can be the same at each reading; else UsageError."""
    sampler, batches = loader.sampler, loader.batch_sampler
    if batches is not None:  # which holds the sampler, or is one of somebody's own
        sampler = batches.sampler if type(batches) is data.BatchSampler else batches
    if isinstance(sampler, data.RandomSampler):
        return _batches(data.Subset(loader.dataset, range(len(sampler.data_source))), which)
    fixed = type(sampler) is data.SequentialSampler or isinstance(
        sampler, (Sequence, Tensor, np.ndarray)) or isinstance(loader.dataset, data.IterableDataset)
    if not fixed or not loader.in_order:
        raise UsageError(f"the {which} images come from a DataLoader whose order may change "
                         f"({'in_order=False' if fixed else type(sampler).__name__}): give its "
                         f"dataset, or torch.utils.data.Subset(dataset, numbers) for some of it")
    return loader


def _batches(dataset: data.Dataset, which: str) -> Iterator[tuple[Tensor, list]]:
    """The items of a torch Dataset in order, ITEMS at a time: (B, ...) and labels."""
    stream = isinstance(dataset, data.IterableDataset)
    try:
        items = iter(dataset) if stream else (dataset[i] for i in range(len(dataset)))
        while several := list(itertools.islice(items, ITEMS)):
            images, labels = zip(*several, strict=True)
            yield (torch.stack([_tensor(image, f"{which} images") for image in images]),
                   [operator.index(label) for label in labels])
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise UsageError(f"the {which} images cannot be read from a {type(dataset).__name__}: "
                         f"{first_line(error)}; it has to give (image, whole label), images of one "
                         f"size") from error


def _tensor(values: Any, what: str) -> Tensor:
    """Anything that holds numbers as a plain tensor on the CPU.

    Of Pillow's images these are grey ones and RGB. Others hold the numbers of colours, or bands of
    another meaning; those of more than 8 bits (I, F) are judged by their values, as arrays are.
    """
    for image in values if isinstance(values, (tuple, list)) else [values]:
        mode = image.mode if isinstance(image, Image.Image) else "L"
        if mode not in ("L", "RGB") and mode[0] not in "IF":
            raise UsageError(f"the {what} hold one of Pillow's mode {mode}: convert it to RGB")
    try:
        if not isinstance(values, Tensor):
            values = np.asarray(values)
            if values.dtype == object:
                raise TypeError("they are not numbers, or not all of one length")
            values = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), "CW"))
        if values.layout != torch.strided:
            raise TypeError("it is sparse")
        return values.detach().to("cpu").resolve_conj().resolve_neg()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UsageError(f"the {what} cannot be read: {first_line(error)}") from error


def _pixels(values: Any, which: str) -> Tensor:
    """Images as uint8 (N, H, W, C)."""
    images = _tensor(values, f"{which} images")
    if images.dim() == 3:
        images = images[..., None]
    if images.dim() != 4:
        raise UsageError(f"the {which} images have shape {tuple(images.shape)}: give (N, C, H, W), "
                         f"(N, H, W, C) or, grey, (N, H, W)")
    first, last = images.shape[1], images.shape[3]
    if first == last:
        raise UsageError(f"the {which} images have shape {tuple(images.shape)}: is their first or "
                         f"their last dimension the channels? Give fewer channels than pixels")
    if first < last:
        images = images.permute(0, 2, 3, 1)
    if min(images.shape[1:3]) < SMALLEST:
        raise UsageError(f"the {which} images are {images.shape[1]}x{images.shape[2]} px: give "
                         f"{SMALLEST} px or more")
    if images.dtype != torch.uint8:
        images = _bytes(images, which)
    return images.contiguous()


def _bytes(images: Tensor, which: str) -> Tensor:
    """Floats in 0..1 as the bytes that they came from."""
    kind = str(images.dtype).removeprefix("torch.")
    if not images.is_floating_point():
        raise UsageError(f"the {which} images are {kind}: give them as uint8, 0 to 255")
    if not len(images) or not 0 <= images.min() <= images.max() <= 1:  # false for NaN as well
        raise UsageError(f"the {which} images are {kind} and not in 0 to 1: give them as uint8, or "
                         f"scaled to 0..1, not normalised (mean= and std= say how)")
    tolerance = 255 * max(torch.finfo(images.dtype).eps, 1e-6)
    found = torch.empty(images.shape, dtype=torch.uint8)
    for part, out in zip(images.split(4096), found.split(4096), strict=True):
        scaled = part.double() * 255
        out.copy_(scaled.round())
        if (scaled - out).abs().max() > tolerance:
            raise UsageError(f"the {which} images are {kind} with values between those of 8 bits: "
                             f"give (images * 255).round() as uint8")
    return found


def _labels(values: Any, count: int, which: str) -> Tensor:
    """Labels as int64 (count,)."""
    labels = _tensor(values, f"{which} labels")
    whole = not labels.is_floating_point() and not labels.is_complex()
    if tuple(labels.shape) != (count,) or not count or not whole:
        raise UsageError(f"the {which} labels have shape {tuple(labels.shape)} and type "
                         f"{labels.dtype}: give one whole number for each of the {count} images")
    return labels.long()


def _class_names(classes: Any, *splits: Split) -> tuple[str, ...]:
    """The names of the classes, of which there are no more than images."""
    if isinstance(classes, (str, bytes)) or not isinstance(classes, (int, Sequence, type(None))):
        raise UsageError(f"classes {classes!r:.60}: give their names in a list, or their number")
    if classes is None:
        classes = max(int(split.labels.max()) for split in splits) + 1
    if not isinstance(classes, int):
        return tuple(map(str, classes))
    images = sum(map(len, splits))
    if not 1 <= classes <= images:
        raise UsageError(f"there would be {classes} classes, but there are {images} images: number "
                         f"the labels from 0 without gaps")
    return tuple(map(str, range(classes)))
