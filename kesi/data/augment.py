"""Augmentation of whole batches on the device that trains, each image with a draw of its own.

Both augmentations work on uint8 images (N, H, W, C) and give float32 (B, C, S, S), or (B, C, H, W),
in channels_last layout. All random numbers of an epoch are drawn at once on the CPU, so a GPU sees
the same images as a CPU.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kesi.data import resample
from kesi.data.split import Size, height_width


@dataclass(frozen=True)
class Normalise:
    """Scales values 0..255 to 0..1, subtracts the mean and divides by the std, in one pass."""

    scale: Tensor  # float32 (C,): 1 / (255 * std)
    bias: Tensor  # float32 (C,): -mean / std

    @classmethod
    def of(
        cls, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
    ) -> "Normalise":
        mean_, std_ = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        return cls((1 / (255 * std_)).float().to(device), (-mean_ / std_).float().to(device))

    def __call__(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        """Images (B, H, W, C), uint8 or float32, as normalised float32 (B, C, H, W), channels_last.

        The result is written to `out`, contiguous float32 (B, H, W, C), if given; float32 images
        are overwritten.
        """
        # Whole rows of C W values: a broadcast over a last dimension of 3 is slow on a CPU. Where
        # images lie in another order in memory, flatten() would copy, and the copy be normalised.
        values = images.float().contiguous() if out is None else out.copy_(images)
        rows, width = values.flatten(2), values.shape[2]
        torch.addcmul(self.bias.repeat(width), rows, self.scale.repeat(width), out=rows)
        return values.permute(0, 3, 1, 2)


class Augmentation(Protocol):
    """What `kesi.data.batches` asks of an augmentation."""

    size: Size  # pixels of the result
    flip: bool

    def prepared_bytes(self, images: Tensor) -> int:
        """Memory that `prepare` takes for these images."""

    def prepare(self, images: Tensor, device: torch.device | str) -> Tensor:
        """Images (N, H, W, C) in the form that `train` reads, on the device. Done once for a
        resident data set."""

    def draw(self, sizes: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """All random numbers for images of true `sizes` (N, 2), stored with `side` pixels: int64
        (N, K) on the CPU."""

    def train(self, prepared: Tensor, rows: Tensor, draws: Tensor, normalise: Normalise) -> Tensor:
        """The prepared images at `rows` (B,), augmented as `draws` (B, K) say: (B, C, S, S)."""

    def test(self, images: Tensor, sizes: Tensor | None, normalise: Normalise) -> Tensor:
        """Images (B, H, W, C) without augmentation: float32 (B, C, S, S)."""


@dataclass(frozen=True)
class PadCrop:
    """Random crop of the image padded with black, and a random flip: torchvision's
    RandomCrop(size, padding) and RandomHorizontalFlip. The images are padded once, and flipped once
    too: a batch is then one gather of pixel rows.
    """

    size: Size
    padding: int
    flip: bool = True

    @property
    def _padded(self) -> tuple[int, int]:
        height, width = height_width(self.size)
        return height + 2 * self.padding, width + 2 * self.padding

    def prepared_bytes(self, images: Tensor) -> int:
        tall, wide = self._padded
        return len(images) * tall * wide * images.shape[3] * (2 if self.flip else 1)

    def prepare(self, images: Tensor, device: torch.device | str) -> Tensor:
        """Padded images (N, H', W', C), followed by the same mirrored where there is a flip."""
        count, pad, (tall, wide) = len(images), self.padding, self._padded
        shape = (2 * count if self.flip else count, tall, wide, images.shape[3])
        prepared = torch.zeros(shape, dtype=torch.uint8, device=device)
        inside = prepared[:, pad : tall - pad, pad : wide - pad]
        for start in range(0, count, 4096):  # in parts: they may be mapped from a large file
            part = images[start : start + 4096].to(device)
            inside[start : start + len(part)] = part
            if self.flip:
                inside[count + start : count + start + len(part)] = part.flip(2)
        return prepared

    def draw(self, sizes: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """(N, 3): top and left of the crop in the padded image, uniform over 0..2*padding, and
        flip, 0 or 1."""
        offsets = torch.randint(2 * self.padding + 1, (len(sizes), 2), generator=generator)
        flips = torch.randint(2 if self.flip else 1, (len(sizes), 1), generator=generator)
        return torch.cat([offsets, flips], dim=1)

    def train(self, prepared: Tensor, rows: Tensor, draws: Tensor, normalise: Normalise) -> Tensor:
        _, tall, wide, channels = prepared.shape
        height, width = height_width(self.size)
        top, left, flip = draws.unbind(1)
        if self.flip:  # the crop at `left`, mirrored, is at the other end of the mirrored image
            rows = rows + flip * (len(prepared) // 2)
            left = torch.where(flip == 1, 2 * self.padding - left, left)
        first = ((rows * tall + top) * wide + left) * channels
        lines = first[:, None] + torch.arange(height, device=rows.device) * (wide * channels)
        # All runs of W * C bytes of the data set as rows of one matrix: a crop is H row numbers.
        run = width * channels
        runs = prepared.view(-1).as_strided((prepared.numel() - run + 1, run), (1, 1))
        crops = runs.index_select(0, lines.view(-1))
        return normalise(crops.view(len(rows), height, width, channels))

    def test(self, images: Tensor, sizes: Tensor | None, normalise: Normalise) -> Tensor:
        return normalise(images)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized, and a random flip: torchvision's
    RandomResizedCrop(size, scale, ratio) and RandomHorizontalFlip, antialiased. Test time: shorter
    side to size * 256 / 224, centre crop.

    Boxes are drawn in the pixels of the photograph as torchvision draws them; where the photograph
    is stored squeezed to a square (see `kesi.data.decode`), the box is rounded to stored pixels.
    """

    size: int
    flip: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def test_size(self) -> int:
        """Pixels of the shorter side before the crop of test time; photographs are stored so."""
        return round(self.size * 256 / 224)

    def prepared_bytes(self, images: Tensor) -> int:
        return images.nbytes

    def prepare(self, images: Tensor, device: torch.device | str) -> Tensor:
        return images.to(device)

    def draw(self, sizes: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """(N, 5): top, left, height, width of the box in stored pixels, and flip, 0 or 1."""
        parts = sizes.split(65536)  # because ten tries an image take memory
        boxes = torch.cat([self._boxes(part, side, generator) for part in parts])
        flips = torch.randint(2 if self.flip else 1, (len(sizes), 1), generator=generator)
        return torch.cat([boxes, flips], dim=1)

    def _boxes(self, sizes: Tensor, side: int, generator: torch.Generator) -> Tensor:
        numbers = torch.rand((len(sizes), 22), dtype=torch.float64, generator=generator)
        boxes = resample.random_boxes(sizes, numbers, self.scale, self.ratio)
        return resample.to_stored(boxes, sizes, side)

    def train(self, prepared: Tensor, rows: Tensor, draws: Tensor, normalise: Normalise) -> Tensor:
        boxes, flips = draws[:, :4], draws[:, 4] == 1
        if prepared.is_cpu:
            out = torch.empty((len(rows), self.size, self.size, prepared.shape[3]))
            for part in range(0, len(rows), 32):  # few at a time: memory, and the processor's cache
                here = slice(part, part + 32)
                crops = resample.crop_each(prepared, rows[here], boxes[here], flips[here],
                                           self.size)
                normalise(crops, out=out[here])
            return out.permute(0, 3, 1, 2)
        return normalise(resample.crop_batch(prepared, rows, boxes, flips, self.size))

    def test(self, images: Tensor, sizes: Tensor | None, normalise: Normalise) -> Tensor:
        side = images.shape[1]
        if sizes is None:
            sizes = torch.full((1, 2), side)
        sizes = sizes.to(images.device)
        return normalise(resample.center_crop(images, sizes, self.test_size, self.size))
