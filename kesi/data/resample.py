"""Crop and resize of batches, antialiased, as torchvision does it for one image.

The filter is the triangle of Pillow's BILINEAR and of torchvision's `antialias=True`: output pixel
i takes the input pixels j around its centre c with weight max(0, 1 - |j + 0.5 - c| / s), where s is
the scale in input pixels, but at least 1; the weights of an output pixel add up to 1, and pixels
outside of the crop do not count.

There are two ways, because a GPU and a CPU need different ones. On a GPU the weights of all images
form matrices, and resampling is two batched matrix products, columns and then rows (`crop_batch`);
almost all of these weights are zero, which costs a GPU little. On a CPU, torch's own kernel for one
uint8 image, which skips the zeros, is 5 to 12 times faster (`crop_each`). They agree to within the
rounding of uint8.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

BOUND = 256 * 2**20  # bytes of intermediate results of `resampled`, beside its input and output


def random_boxes(
    sizes: Tensor, numbers: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """The boxes of torchvision's RandomResizedCrop.get_params for N images.

    sizes: int64 (N, 2), height and width. numbers: float64 (N, 22), uniform in [0, 1): an area and
    an aspect ratio for each of ten tries, then the place. Returns int64 (N, 4): top, left, height,
    width in pixels of the image. The first try that fits is taken; where none does, the largest
    central box within the ratio limits.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    area = (height * width) * (scale[0] + (scale[1] - scale[0]) * numbers[:, 0:10])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * numbers[:, 10:20])
    tall, wide = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    first = fits.long().argmax(dim=1, keepdim=True)
    box = torch.cat([tall.gather(1, first), wide.gather(1, first)], dim=1)
    place = (numbers[:, 20:22] * (sizes - box + 1)).long()

    # Otherwise all of the image, but of its longer side no more than the ratio allows.
    tallest, widest = (width / ratio[0]).round().long(), (height * ratio[1]).round().long()
    box_fallback = torch.cat([torch.minimum(height, tallest), torch.minimum(width, widest)], dim=1)
    none = ~fits.any(dim=1, keepdim=True)
    box = torch.where(none, box_fallback, box)
    place = torch.where(none, (sizes - box) // 2, place)
    return torch.cat([place, box], dim=1)


def to_stored(boxes: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Boxes (N, 4) in images of `sizes` (N, 2), in whole pixels of these images at side x side."""
    first = (boxes[:, :2] * side / sizes).round().long().clamp_(max=side - 1)
    last = ((boxes[:, :2] + boxes[:, 2:]) * side / sizes).round().long()
    return torch.cat([first, (last - first).clamp_(min=1)], dim=1)


def crop_each(store: Tensor, rows: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Boxes (B, 4) of the images at `rows` of uint8 (N, H, W, C), resized one by one, on the CPU.

    They are mirrored where `flips` (B,) is true. Returns uint8 (B, size, size, C).
    """
    crops = []
    for row, box, flip in zip(rows.tolist(), boxes.tolist(), flips.tolist(), strict=True):
        top, left, tall, wide = box
        # A slice of one row, not an index: only so does torch see that the channels come last, and
        # is fast.
        window = store[row : row + 1, top : top + tall, left : left + wide]
        if flip:  # before, not after: the window is smaller than the result as a rule
            window = window.flip(2)
        planes = window.permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)
        crops.append(planes.permute(0, 2, 3, 1))
    return torch.cat(crops)


def crop_batch(store: Tensor, rows: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """As `crop_each`, for all images at once with matrix products, on any device.

    Returns float32 (B, size, size, C).
    """
    side = store.shape[1]
    low, extent = boxes[:, :2].float(), boxes[:, 2:].float()
    high, step = low + extent, extent / size
    across = _weights(
        torch.where(flips, high[:, 1], low[:, 1]),
        torch.where(flips, -step[:, 1], step[:, 1]),
        low[:, 1],
        high[:, 1],
        size,
        side,
    )
    down = _weights(low[:, 0], step[:, 0], low[:, 0], high[:, 0], size, side)
    return resampled(store.index_select(0, rows), down, across)


def center_crop(images: Tensor, sizes: Tensor, resize: int, size: int) -> Tensor:
    """Resizes the shorter side to `resize` and crops the centre, as torchvision does.

    images: uint8 (B, H, H, C), stored as squares. sizes: (B, 2) or (1, 2), their true height and
    width, which the result has again. Returns float32 (B, size, size, C).
    """
    side = images.shape[1]
    full = resize * sizes // sizes.amin(dim=1, keepdim=True)
    start = ((full - size) / 2).round()
    step = side / full
    none, whole = torch.zeros_like(step[:, 0]), torch.full_like(step[:, 0], side)
    down, across = (_weights(start[:, d] * step[:, d], step[:, d], none, whole, size, side)
                    for d in (0, 1))
    return resampled(images, down, across)


def _weights(start: Tensor, step: Tensor, low: Tensor, high: Tensor, size: int,
             side: int) -> Tensor:
    """The weights of `side` input pixels in `size` output pixels: float32 (B, size, side).

    For each of B images: output pixel i lies at start + (i + 0.5) * step; input pixels outside
    [low, high) are left out. A negative step mirrors.
    """
    places = torch.arange(size, device=start.device) + 0.5
    centres = start[:, None] + places * step[:, None]
    pixels = torch.arange(side, device=start.device) + 0.5
    reach = step.abs().clamp(min=1)[:, None, None]
    weights = (1 - (pixels - centres[:, :, None]).abs() / reach).clamp_(min=0)
    weights *= ((pixels > low[:, None]) & (pixels < high[:, None]))[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def resampled(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Applies weights (B or 1, S, H) down the rows and (B or 1, S, H) across the columns.

    images: uint8 (B, H, H, C). Returns float32 (B, S, S, C). Works through the batch in parts whose
    intermediate results take at most 256 MiB.
    """
    count, side, _, channels = images.shape
    size = down.shape[1]
    down, across = down.expand(count, -1, -1), across.expand(count, -1, -1)
    part = max(1, BOUND // (4 * channels * (side * side + 2 * size * side)))
    result = torch.empty((count, size, size * channels), device=images.device)
    for start in range(0, count, part):
        here = slice(start, start + part)
        # (B, column, row, C) times the column weights, turned to (B, row, column, C), times the row
        # weights: this order leaves the result in channels_last without another copy.
        columns = images[here].transpose(1, 2).float().reshape(-1, side, side * channels)
        columns = torch.bmm(across[here], columns).view(-1, size, side, channels)
        turned = columns.transpose(1, 2).reshape(-1, side, size * channels)
        torch.bmm(down[here], turned, out=result[here])
    return result.view(count, size, size, channels)
