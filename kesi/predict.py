"""What a network says of image files.

    python -m kesi.predict runs/imagefolder-resnet20-filter/seed0/kesi photo.jpg more-photos/ --top 3
    python -m kesi.predict kesi.pth.tar photos/ --csv > predictions.csv

Images are cut, resized and scaled as test images were in training. A checkpoint of the released code does not
say how: name its data set with --dataset.
"""

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kesi import checkpoints, cli
from kesi.checkpoints import Checkpoint
from kesi.data.augment import Normalise
from kesi.data.decode import Storage, decode, is_image
from kesi.errors import KesiError, UsageError
from kesi.inputs import Inputs, add_flags, device_for, inputs_of
from kesi.steps import full_precision

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image: every class, most probable first; probabilities add up to 1."""

    path: Path
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    probabilities: tuple[float, ...]


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The paths themselves, and of folders all images below them, by name.

    Raises UsageError for what is not there, and for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if is_image(file.name) and file.is_file())
            if not inside:
                raise UsageError(f"no images in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"no such image or folder: {path}")
    return found


def predict_images(checkpoint: Checkpoint, paths: Iterable[str | Path], inputs: Inputs | None = None,
                   device: str = "cpu", unreadable: list[KesiError] | None = None) -> list[Prediction]:
    """What the network of a checkpoint says of image files, and of the images in folders, in order.

    ``inputs`` (default: what the checkpoint says) tells how images are scaled, and the names of the classes.
    Raises UsageError for paths that are not there and where the scaling is not known, KesiError that names the
    file for an unreadable image; with a list ``unreadable`` such errors are put there and the image is left out.
    """
    inputs = inputs or inputs_of(checkpoint)
    normalise = Normalise.of(*inputs.statistics(), device)
    storage, files = Storage(inputs.stored_size, False), image_files(paths)
    model = checkpoint.model.to(device=device, memory_format=torch.channels_last).eval()
    predictions: list[Prediction] = []
    for start in range(0, len(files), BATCH):
        part, decoded = [], []
        for path in files[start:start + BATCH]:
            try:
                decoded.append(decode(path, storage).pixels)
                part.append(path)
            except KesiError as error:
                if unreadable is None:
                    raise
                unreadable.append(error)
        if not part:
            continue
        pixels = torch.from_numpy(np.stack(decoded)).to(device)
        with torch.inference_mode(), full_precision():
            logits = model(inputs.augmentation.test(pixels, None, normalise))
        predictions += map(_prediction, part, logits.double().softmax(1).cpu(), [inputs] * len(part))
    return predictions


def _prediction(path: Path, probabilities: torch.Tensor, inputs: Inputs) -> Prediction:
    ordered, labels = probabilities.sort(descending=True, stable=True)
    names = tuple(inputs.classes[label] or str(label) for label in labels.tolist())
    return Prediction(path, names, tuple(labels.tolist()), tuple(ordered.tolist()))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = cli.parser(__doc__, "kesi.predict")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or the folder of its stage")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show (default: %(default)s)")
    parser.add_argument("--csv", action="store_true", help="print file,rank,class,label,probability")
    add_flags(parser)
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UsageError(f"--top must be at least 1, not {args.top}")
    checkpoint = checkpoints.load(args.checkpoint, args.arch)
    inputs = inputs_of(checkpoint, args.dataset, args.image_size, args.data)
    unreadable: list[KesiError] = []
    found = predict_images(checkpoint, args.images, inputs, device_for(args), unreadable)
    if args.csv:
        _print_csv(found, args.top)
    else:
        for one in found:
            shares = zip(one.classes[:args.top], one.probabilities[:args.top], strict=True)
            print(f"{one.path}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares), flush=True)
    if unreadable:
        others = f"{len(unreadable)} of {len(found) + len(unreadable)} images were left out; the first: "
        raise KesiError(others * (len(found) + len(unreadable) > 1) + str(unreadable[0]))


def _print_csv(predictions: Sequence[Prediction], top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "rank", "class", "label", "probability"])
    for one in predictions:
        ranked = list(zip(one.classes, one.labels, one.probabilities, strict=True))[:top]
        for rank, (name, label, share) in enumerate(ranked, start=1):
            writer.writerow([one.path, rank, name, label, f"{share:.6f}"])


if __name__ == "__main__":
    cli.run(main)
