"""Images and their labels: a split, what a source of images gives, and the stratified hold-out."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kesi.system.errors import UsageError, controls

HOLD_OUT_SEED = 0  # fixed: all runs of a comparison hold out the same images, whatever their seed

UNKNOWN = -100  # the label of an image that has none

Size = int | tuple[int, int]  # pixels: of a square, or (height, width)


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def spoken_size(size: Size) -> str:
    """A size as people write it: 32, or 32x48, height first."""
    return "x".join(map(str, dict.fromkeys(height_width(size))))


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together.

    `images` may hold more than this split (a memory-mapped file that the training and the
    validation split share): image i of the split is `images[rows[i]]`, or `images[i]` where `rows`
    is None. `take` looks them up.
    """

    images: Tensor  # uint8 (M, H, W, C), possibly memory-mapped
    labels: Tensor  # int64 (N,)
    rows: Tensor | None = None  # int64 (N,)
    sizes: Tensor | None = None  # int64 (N, 2): true height, width of photographs stored as squares
    pixels: str | None = None  # digest_of(images), where it is known already

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Height of the stored images in pixels."""
        return self.images.shape[1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, their order, true sizes and labels: of all that a network learns from.

        The pixels are read at the first call, unless the file they are mapped from is known.
        """
        digest = hashlib.sha256((self.pixels or digest_of(self.images)).encode())
        for part in (self.rows, self.sizes, self.labels):
            digest.update(b"-" if part is None else digest_of(part).encode())
        return digest.hexdigest()

    def indices(self) -> Tensor:
        """Where the images of this split lie in `images`: int64 (N,)."""
        return torch.arange(len(self)) if self.rows is None else self.rows

    def take(self, first: int, last: int) -> Tensor:
        """The images number first to last - 1 of the split: uint8 (last - first, H, W, C)."""
        if self.rows is None:
            return self.images[first:last]
        return self.images.index_select(0, self.rows[first:last])

    def subset(self, positions: Tensor) -> "Split":
        """The part of this split at int64 `positions`; shares the images."""
        sizes = None if self.sizes is None else self.sizes[positions]
        rows = self.indices()[positions]
        return Split(self.images, self.labels[positions], rows, sizes, self.pixels)

    def spread(self, count: int | None) -> "Split":
        """``count`` images at equal distances, of all classes also where these are in order; all of
        them for None, or where there are not so many."""
        if count is None or count >= len(self):
            return self
        return self.subset((torch.arange(count) * len(self)) // count)


def together(first: Split, second: Split) -> Split:
    """Both splits, of images of one shape, in one, with their images in memory."""
    sizes = None
    if not first.sizes is second.sizes is None:
        sizes = torch.cat([torch.full((len(one), 2), one.side) if one.sizes is None else one.sizes
                           for one in (first, second)])
    return Split(torch.cat([one.take(0, len(one)) for one in (first, second)]),
                 torch.cat([first.labels, second.labels]), sizes=sizes)


def digest_of(values: Tensor) -> str:
    """SHA-256 of the shape and the values of an integer tensor."""
    digest = digest_begun(tuple(values.shape))
    digest.update(values.contiguous().numpy())
    return digest.hexdigest()


def digest_begun(shape: tuple[int, ...]):
    """What digest_of() begins with, for values that come in parts."""
    return hashlib.sha256(json.dumps(shape).encode())


@dataclass(frozen=True)
class Images:
    """What a source of images gives (see kesi.data.datasets). Raises UsageError if it is not sound.

    Mean and standard deviation of the training images, scaled to 0..1, where the source knows them.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.classes:
            if controls(str(name)):  # it would begin a line of its own where it is shown
                raise UsageError(f"the class {str(name)!r:.60} holds a control character in its "
                                 f"name: rename it")
        for which, split in (("training", self.train), ("test", self.test)):
            images, labels = split.images, split.labels
            if images.dtype != torch.uint8 or images.dim() != 4 or labels.dtype != torch.int64:
                raise UsageError(f"the {which} images have to be uint8 (N, H, W, C) with int64 "
                                 f"labels: make them with kesi.data.split_of")
            if not len(labels) or split.rows is None and labels.shape != images.shape[:1]:
                raise UsageError(f"there are {len(images)} {which} images and {len(labels)} labels")
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= len(self.classes):
                raise UsageError(f"the {which} labels go from {lowest} to {highest}; "
                                 f"{len(self.classes)} classes are numbered 0 to "
                                 f"{len(self.classes) - 1}")
        shapes = [tuple(split.images.shape[1:]) for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            train, test = ("{}x{} px in {} channels".format(*shape) for shape in shapes)
            raise UsageError(f"the training images have {train} and the test images {test}: "
                             f"make them equal")


def fraction_of(split: Split, images: int) -> float:
    """The fraction at which hold_out() takes so many images, where there is one.

    Every class gives up more as the fraction grows, so as many in all are as many of each class.
    """
    counts = torch.unique(split.labels, return_counts=True)[1].tolist()
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        found = sum(held_out(middle, members) for members in counts)
        if found == images:
            break
        low, high = (middle, high) if found < images else (low, middle)
    return middle


def held_out(fraction: float, members: int) -> int:
    """How many of a class with so many members are held out."""
    return min(round(fraction * members), members - 1)


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Divides a split into (what is left, what is held out), `fraction` of each class, rounded.

    Which images these are depends on the data set and the fraction alone. Each class keeps at least
    one image. Raises UsageError where the fraction is so small that no image would be held out.
    """
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    kept, held = [], []
    for label in torch.unique(split.labels):
        members = torch.nonzero(split.labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = held_out(fraction, len(members))
        held.append(members[:count])
        kept.append(members[count:])
    chosen = torch.cat(held).sort().values
    if not len(chosen):
        raise UsageError(f"val fraction {fraction:g} holds out no image at all: use a larger one")
    return split.subset(torch.cat(kept).sort().values), split.subset(chosen)


def resized(images: Tensor, size: Size) -> Tensor:
    """uint8 (N, H, W, C) images at `size`: bilinear, half-pixel centres, antialiased."""
    if tuple(images.shape[1:3]) == height_width(size):
        return images
    parts = []
    for part in images.split(4096):
        planes = part.permute(0, 3, 1, 2).float()
        planes = functional.interpolate(planes, height_width(size), mode="bilinear", antialias=True)
        bytes_ = planes.round_().clamp_(0, 255).to(torch.uint8)
        parts.append(bytes_.permute(0, 2, 3, 1).contiguous())
    return torch.cat(parts)


def mean_and_std(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to 0..1, from counts: int64 (C, 256).

    A channel that never changes gets the std of one grey level: nothing is divided by zero.
    """
    values = np.arange(256) / 255
    total = histogram.sum(axis=1)
    mean = (histogram * values).sum(axis=1) / total
    std = np.sqrt((histogram * (values - mean[:, None]) ** 2).sum(axis=1) / total)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def statistic(what: str, values: Any, channels: int) -> tuple[float, ...] | None:
    """Mean or std (the last word of `what`) as given; None where none is. Raises UsageError for
    anything else than a finite number for each channel, of a std above 0."""
    if values is None:
        return None
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        numbers = ()
    shown = f"{what} {' '.join(repr(values).split()):.60}"
    if len(numbers) != channels:
        raise UsageError(f"{shown}: give {channels} number(s), one a channel")
    if not all(map(math.isfinite, numbers)) or what.endswith("std") and min(numbers) <= 0:
        raise UsageError(f"{shown}: give finite numbers, for std above 0")
    return numbers


def fixed_statistics(name: str, given: Any, channels: int) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) as a data set gives them, checked; None where it gives none."""
    pair = (None, None) if given is None else given
    if not isinstance(pair, (tuple, list)) or [one is None for one in pair] not in (
            [True, True], [False, False]):
        raise UsageError(f"data set {name}: give both mean and std of its images, or neither")
    mean, std = (statistic(f"data set {name}: {what}", values, channels)
                 for what, values in zip(("mean", "std"), pair, strict=True))
    return mean and (mean, std)


def histogram(images: Tensor) -> np.ndarray:
    """How often each value occurs in each channel of uint8 (N, H, W, C) images: int64 (C, 256)."""
    channels = images.flatten(0, 2).unbind(1)
    return np.stack([torch.bincount(channel, minlength=256).numpy() for channel in channels])
