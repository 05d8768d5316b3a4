"""Small data sets on disk for the tests, in the layouts of the real ones."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = [
    "n01443537",
    "n01629819",
    "n01641577",
    "n01644900",
    "n01698640",
    "n01742172",
    "n01768244",
    "n01770393",
]


def picture(rng: np.random.Generator, height: int, width: int, label: int) -> np.ndarray:
    """uint8 (height, width, 3): smooth noise on the colour of its class,
    so that a network can learn it."""
    coarse = rng.integers(0, 120, (4, 4, 3), dtype=np.uint8)
    noise = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    colour = np.array([(label * 67) % 128, (label * 151 + 40) % 128, (label * 29 + 90) % 128])
    return (noise.astype(int) + colour).clip(0, 255).astype(np.uint8)


def write_tiny_imagenet(folder: Path, classes: int = 4, per_class: int = 12,
                        val_per_class: int = 4) -> Path:
    """Writes `folder`/tiny-imagenet-200 with greyscale images and stray files,
    and returns its path."""
    root, rng = Path(folder) / "tiny-imagenet-200", np.random.default_rng(0)
    wnids = WNIDS[:classes]
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text(
        "".join(f"{wnid}\n" for wnid in reversed(wnids))
    )  # not sorted, as in reality
    names = [f"{wnid}\tcreature {number}, beast\n" for number, wnid in enumerate(WNIDS)]
    (root / "words.txt").write_text("n00001740\tentity\n" + "".join(names))
    annotations = []
    for label, wnid in enumerate(wnids):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(per_class):
            _save(picture(rng, 64, 64, label), images / f"{wnid}_{number}.JPEG", grey=number == 1)
        for number in range(val_per_class):
            name = f"val_{number * classes + label}.JPEG"
            _save(picture(rng, 64, 64, label), root / "val" / "images" / name, grey=number == 0)
            annotations.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    _save(picture(rng, 64, 64, 0), root / "test" / "images" / "test_0.JPEG")
    for stray in (root, root / "train", root / "train" / wnids[0] / "images",
                  root / "val" / "images"):
        (stray / ".DS_Store").write_bytes(b"stray")
    (root / "train" / "stray").mkdir()
    _save(picture(rng, 64, 64, 0), root / "val" / "images" / "val_stray.JPEG")
    return root


def write_imagefolder(
    folder: Path,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    per_class: int = 9,
    test_per_class: int = 4,
    test_name: str = "test",
) -> Path:
    """Writes train/<class>/ and `test_name`/<class>/ with images of mixed sizes and modes,
    and returns `folder`."""
    rng = np.random.default_rng(1)
    for split, count in (("train", per_class), (test_name, test_per_class)):
        for label, name in enumerate(classes):
            target = Path(folder) / split / name
            target.mkdir(parents=True)
            (target / "notes.txt").write_text("not an image")
            (target / ".hidden.png").write_bytes(b"not an image either")
            for number in range(count):
                height, width = (48 + 13 * number, 90) if number % 2 else (70, 50 + 17 * number)
                write_mixed(picture(rng, height, width, label), target / f"{number:03d}", number)
    return Path(folder)


def write_mixed(pixels: np.ndarray, path: Path, kind: int) -> Path:
    """Writes an image in one of nine ways, `kind` modulo 9, and returns its path with the suffix.
    """
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer has to turn it by a quarter
    ways = [
        lambda: image.save(path.with_suffix(".jpg"), quality=95),
        lambda: image.quantize(64).save(path.with_suffix(".png")),
        lambda: image.convert("RGBA").save(path.with_suffix(".PNG")),
        lambda: image.convert("CMYK").save(path.with_suffix(".jpeg"), quality=95),
        lambda: image.convert("L").save(path.with_suffix(".png")),
        lambda: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256 + 99).save(
            path.with_suffix(".png")
        ),
        lambda: image.transpose(Image.Transpose.ROTATE_90).save(
            path.with_suffix(".jpg"), quality=95, exif=exif
        ),
        lambda: image.convert("LA").save(path.with_suffix(".webp"), lossless=True),
        lambda: image.convert("1").save(path.with_suffix(".bmp")),
    ]
    ways[kind % len(ways)]()
    return next(path.parent.glob(path.name + ".*"))


def zip_folder(folder: Path, target: Path) -> Path:
    """Packs a folder, with its own name as the top of the archive."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def _save(pixels: np.ndarray, path: Path, grey: bool = False) -> None:
    image = Image.fromarray(pixels)
    (image.convert("L") if grey else image).save(path, "JPEG", quality=90)
