"""Image files of any size and mode as squares of uint8 RGB.

How a photograph is stored decides what can be cropped from it later. Two ways:

- `crop`: the shorter side is resized to `size` and the centre square is kept. Exactly what test time looks
  at, and all there is at 32 px.
- `squeeze`: the whole photograph is resized to size x size, whatever its shape, and its true height and width
  are kept beside it. RandomResizedCrop draws its boxes in the true shape and stretches them back, so it
  reaches every part of the photograph as it would in the file, and every image takes the same space. The
  price is resolution along the longer side: 256 px where 4:3 would have 341. The boxes are enlarged to 224 px
  anyway for most draws.

Resizing is Pillow's BILINEAR, which is antialiased, in one step with the crop. Transparent parts become
white, CMYK, palette and the like are converted to RGB, 16-bit grey keeps its upper 8 bits, EXIF orientation
is applied, of an animation the first frame counts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kesi.system.errors import KesiError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Storage:
    """The form in which images are stored."""

    size: int  # pixels of the square
    squeeze: bool  # the whole photograph squeezed to the square, instead of its centre


@dataclass(frozen=True)
class Decoded:
    pixels: np.ndarray  # uint8 (size, size, 3)
    true_size: tuple[int, int]  # height and width in the file, upright
    histogram: list[int]  # 3 x 256 counts of `pixels`


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: known suffix, not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def decode(path: Path, storage: Storage) -> Decoded:
    """Reads an image file. Raises KesiError that names the file if it is unreadable or far too large."""
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise KesiError(
                    f"{path} has {image.width}x{image.height} pixels, more than {limit}: make it smaller"
                )
            true_size = _upright_size(image)
            # JPEG decodes at 1/2, 1/4 or 1/8 for far less work; twice the size needed is detail enough.
            image.draft(None, (2 * storage.size, 2 * storage.size))
            image = _rgb(ImageOps.exif_transpose(image))
            image = image.resize(
                (storage.size, storage.size), Image.Resampling.BILINEAR, _box(image, storage)
            )
    except KesiError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything, SyntaxError included
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KesiError(f"{path} is not a readable image ({reason}): repair or remove it") from error
    return Decoded(np.asarray(image), true_size, image.histogram())


def _upright_size(image: Image.Image) -> tuple[int, int]:
    orientation = image.getexif().get(0x0112, 1)
    return (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)


def _box(image: Image.Image, storage: Storage) -> tuple[float, float, float, float]:
    """The part of the image that becomes the square: the whole, or what Resize and CenterCrop of torchvision
    keep."""
    width, height = image.size
    if storage.squeeze:
        return 0, 0, width, height
    short = min(width, height)
    box = []
    for extent in (width, height):
        resized = storage.size * extent // short
        start = round((resized - storage.size) / 2)
        box.append((start * extent / resized, (start + storage.size) * extent / resized))
    (left, right), (top, bottom) = box
    return left, top, right, bottom


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; which value is white is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
