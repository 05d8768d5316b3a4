"""What a network says of image files.

Images are cut, resized and scaled as test images were in training. A checkpoint of the released
code does not say how: name its data set with --dataset.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data.augment import Normalise
from kesi.data.decode import Storage, decode, is_image
from kesi.system.errors import KesiError, UsageError
from kesi.system.execution import full_precision
from kesi.system.files import walk
from kesi.tools.inputs import Inputs, inputs_of, pictures_only

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image: every class, most probable first; probabilities add up to
    1.
    """

    path: Path
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    probabilities: tuple[float, ...]


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The paths themselves, and of folders all images below them, also in linked folders, by name.

    Raises UsageError for what is not there, and for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(here / name for here, _, names in walk(path) for name in names
                            if is_image(name) and (here / name).is_file())
            if not inside:
                raise UsageError(f"no images in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"no such image or folder: {path}")
    return found


def predict_images(checkpoint: Checkpoint,
                   paths: Iterable[str | Path], inputs: Inputs | None = None, device: str = "cpu",
                   unreadable: list[KesiError] | None = None) -> list[Prediction]:
    """What the network of a checkpoint says of image files, and of the images in folders, in order.

    ``inputs`` (default: what the checkpoint says) tells how images are scaled, and the names of the
    classes. Raises UsageError for paths that are not there and where the scaling is not known,
    KesiError that names the file for an unreadable image; with a list ``unreadable`` such errors
    are put there and the image is left out.
    """
    inputs = inputs or inputs_of(checkpoint)
    normalise = Normalise.of(*inputs.statistics(), device)
    pictures_only(checkpoint.network)
    storage = Storage(inputs.stored_size, False, inputs.channels)
    files = image_files(paths)
    model = checkpoint.network.to(device=device, memory_format=torch.channels_last).eval()
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
        predictions += map(_prediction, part, logits.double().softmax(1).cpu(),
                           [inputs] * len(part))
    return predictions


def _prediction(path: Path, probabilities: torch.Tensor, inputs: Inputs) -> Prediction:
    ordered, labels = probabilities.sort(descending=True, stable=True)
    names = tuple(inputs.classes[label] or str(label) for label in labels.tolist())
    return Prediction(path, names, tuple(labels.tolist()), tuple(ordered.tolist()))
