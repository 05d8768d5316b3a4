"""Image files of any size and mode as uint8 of one size, RGB or grey.

How a photograph is stored decides what can be cropped from it later. Two ways:

- `crop`: resized until it just covers `size`, and the centre is kept. Exactly what test time looks
  at, and all there is at 32 px.
- `squeeze`: the whole photograph is resized to a square, whatever its shape, and its true height
  and width are kept beside it. RandomResizedCrop draws its boxes in the true shape and stretches
  them back, so it reaches every part of the photograph as it would in the file, and every image
  takes the same space. The price is resolution along the longer side: 256 px where 4:3 would have
  341. The boxes are enlarged to 224 px anyway for most draws.

Resizing is Pillow's BILINEAR, which is antialiased, in one step with the crop. Transparent parts
become white, CMYK, palette and the like are converted to RGB, 16-bit grey keeps its upper 8 bits,
EXIF orientation is applied, of an animation the first frame counts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kesi.data.split import Size, height_width
from kesi.system.errors import KesiError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Storage:
    """The form in which images are stored."""

    size: Size  # pixels
    squeeze: bool  # the whole photograph squeezed to this size, instead of its centre
    channels: int = 3  # 3: RGB, 1: grey

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a stored image."""
        return (*height_width(self.size), self.channels)


@dataclass(frozen=True)
class Decoded:
    pixels: np.ndarray  # uint8 (H, W, C)
    true_size: tuple[int, int]  # height and width in the file, upright
    histogram: list[int]  # C x 256 counts of `pixels`


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: known suffix, not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def decode(path: Path, storage: Storage) -> Decoded:
    """Reads an image file. Raises KesiError that names it if it is unreadable or far too large."""
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise KesiError(f"{path} has {image.width}x{image.height} pixels, more than "
                                f"{limit}: make it smaller")
            kind = image.format
            if kind == "TIFF":  # which Pillow turns upright when it is read, from some version on
                image.load()
            true_size = _upright_size(image)
            height, width, channels = storage.shape
            # JPEG decodes at 1/2, 1/4 or 1/8 for far less work; twice the size needed is enough.
            image.draft(None, (2 * width, 2 * height))
            image = _rgb(ImageOps.exif_transpose(image), kind)
            if channels == 1:
                image = image.convert("L")
            box = _box(image, storage)
            image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    except KesiError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KesiError(
            f"{path} is not a readable image ({reason}): repair or remove it") from error
    return Decoded(np.asarray(image).reshape(storage.shape), true_size, image.histogram())


def _upright_size(image: Image.Image) -> tuple[int, int]:
    orientation = image.getexif().get(0x0112, 1)
    turned = orientation in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _box(image: Image.Image, storage: Storage) -> tuple[float, float, float, float]:
    """The part of the image that is stored: the whole, or its centre in the shape of the storage.

    The centre is what Resize and CenterCrop of torchvision keep.
    """
    extents = image.size  # width, height
    if storage.squeeze:
        return 0, 0, *extents
    sides = height_width(storage.size)[::-1]
    tight = 0 if sides[0] * extents[1] >= sides[1] * extents[0] else 1  # cropped the other way
    box = []
    for extent, side in zip(extents, sides, strict=True):
        whole = sides[tight] * extent // extents[tight]  # pixels of the resized image
        start = round((whole - side) / 2)
        box.append((start * extent / whole, (start + side) * extent / whole))
    (left, right), (top, bottom) = box
    return left, top, right, bottom


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and kind == "TIFF"):  # others are of 16 bits
        what = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"{what} pixels; which value is white is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[grey == clear] = 65535
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
