"""A split of a data set: uint8 images and their labels, and the stratified hold-out of one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kesi.system.errors import UsageError

HOLD_OUT_SEED = 0  # fixed: every run of a comparison must hold out the same images, whatever its own seed


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together.

    `images` may hold more than this split (a memory-mapped file that the training and the validation split
    share): image i of the split is `images[rows[i]]`, or `images[i]` where `rows` is None. `take` looks them
    up.
    """

    images: Tensor  # uint8 (M, H, W, 3), possibly memory-mapped
    labels: Tensor  # int64 (N,)
    rows: Tensor | None = None  # int64 (N,)
    sizes: Tensor | None = (
        None  # int64 (N, 2): true height and width of photographs that are stored as squares
    )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Height and width of the stored images in pixels."""
        return self.images.shape[1]

    def indices(self) -> Tensor:
        """Where the images of this split lie in `images`: int64 (N,)."""
        return torch.arange(len(self)) if self.rows is None else self.rows

    def take(self, first: int, last: int) -> Tensor:
        """The images number first to last - 1 of the split: uint8 (last - first, H, W, 3)."""
        if self.rows is None:
            return self.images[first:last]
        return self.images.index_select(0, self.rows[first:last])

    def subset(self, positions: Tensor) -> "Split":
        """The part of this split at int64 `positions`; shares the images."""
        sizes = None if self.sizes is None else self.sizes[positions]
        return Split(self.images, self.labels[positions], self.indices()[positions], sizes)


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Divides a split into (what is left, what is held out), `fraction` of each class, rounded, being held
    out.

    Which images these are depends on the data set and the fraction alone. Each class keeps at least one
    image. Raises UsageError where the fraction is so small that no image would be held out.
    """
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    kept, held = [], []
    for label in torch.unique(split.labels):
        members = torch.nonzero(split.labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(round(fraction * len(members)), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    held_out = torch.cat(held).sort().values
    if not len(held_out):
        raise UsageError(f"val fraction {fraction:g} holds out no image at all: use a larger one")
    return split.subset(torch.cat(kept).sort().values), split.subset(held_out)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, H, H, 3) images at `size` x `size`: bilinear, half-pixel centres, antialiased when they
    shrink."""
    if images.shape[1] == size:
        return images
    parts = []
    for part in images.split(4096):
        planes = part.permute(0, 3, 1, 2).float()
        planes = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
        parts.append(planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    return torch.cat(parts)


def mean_and_std(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale 0 to 1, from counts of values: int64 (3,
    256).

    A channel that never changes gets the std of one grey level, so that nothing is divided by zero.
    """
    values = np.arange(256) / 255
    total = histogram.sum(axis=1)
    mean = (histogram * values).sum(axis=1) / total
    std = np.sqrt((histogram * (values - mean[:, None]) ** 2).sum(axis=1) / total)
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def histogram(images: Tensor) -> np.ndarray:
    """How often each value occurs in each channel of uint8 (N, H, W, 3) images: int64 (3, 256)."""
    return np.stack([torch.bincount(images[..., c].flatten(), minlength=256).numpy() for c in range(3)])
