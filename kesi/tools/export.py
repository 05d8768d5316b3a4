"""A checkpoint as a file that other programs run, tried against the original before it is kept.

onnx: opset 18, for onnxruntime and others. pt2: torch.export, for torch.export.load without this
package. safetensors: the weights and what network they belong to, for
kesi.tools.formats.load_safetensors. The first two take float32 images (batch, C, H, W) of any
number, RGB or grey scaled to 0..1, and give logits (batch, classes); normalisation is inside. A raw
file takes images that are normalised as in training.

The written file is loaded again and run on test images at several batch sizes; it appears under its
name only if it agrees with the checkpoint. A file in int8 cannot agree to the last digit: it has to
run, and its accuracy is measured beside the others'. Sizes and latencies are those of one run, the
baseline's in turn with the compressed network's. What pruning is worth in time is what is measured
here, and nothing that follows from MACs.
"""

import copy
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from kesi import models
from kesi.checkpoints import fields
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import DATASETS, Dataset, eval_batches, load
from kesi.data.augment import Normalise
from kesi.data.datasets import plain
from kesi.data.registry import SHIPPED
from kesi.data.split import spoken_size
from kesi.models import Network
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.system.files import write_atomic
from kesi.system.provenance import versions
from kesi.tools.formats import Normalised, Runner, encode, quantised, runner
from kesi.tools.inputs import Inputs, dataset_of

IMAGES = 100  # to hold the file against the checkpoint

CALIBRATION = 256  # training images that tell the ranges of an int8 file

BATCHES = (1, 2, 7)

TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by far less


@dataclass(frozen=True)
class Check:
    """How an exported file did on ``images`` images: the largest difference of a logit, equal
    predictions.

    ``largest``: the largest logit there is, for comparison.
    """

    images: int
    source: str
    difference: float
    largest: float
    equal: int


@dataclass(frozen=True)
class Exported:
    """An exported file, its size in bytes as it is and deflated (zlib, level 6), and how it was
    checked.
    """

    path: Path
    size: int
    deflated: int
    check: Check


def about_of(checkpoint: Checkpoint, inputs: Inputs, raw: bool) -> dict[str, Any]:
    """What an exported file says of itself: plain values, the accuracy with the images that it is
    of; none where those had another size than these inputs.
    """
    dataset = checkpoint.info.data
    tested = (dataset.get("images") or {}).get("test")
    right = checkpoint.info.metrics.get("test_accuracy")
    known = (tested and fields.number(right) and 0 <= right <= 100
             and dataset.get("image_size") == plain(inputs.image_size))
    size, colour = inputs.image_size, {1: "grey", 3: "RGB"}.get(inputs.channels, "all channels")
    steps = " px, then to ".join(map(spoken_size, inputs.resize))
    code = models.ARCHITECTURES[checkpoint.network.arch].code
    resized = (f"the shorter side resized to {steps} px (bilinear, antialiased)"
               if isinstance(size, int) else
               f"resized to cover {steps} px, height first (bilinear, antialiased)")
    return {"arch": checkpoint.network.arch, "classes": list(inputs.classes), "mean": inputs.mean,
            "std": inputs.std, "raw": raw, "image_size": plain(size),
            "resize": list(map(plain, inputs.resize)), "crop": plain(size),
            "preprocessing": f"{colour}; {resized}, the middle {spoken_size(size)} px cut out, "
                             "scaled to 0..1"
                             + ", then (x - mean) / std" * raw,
            "accuracy": {"percent": right, "images": f"{tested:,} test images of {dataset['name']}"}
            if known else None,
            "digest": checkpoint.file_digest, "made_with": f"KESI {versions()['kesi']}",
            **({"code": code} if code else {})}  # of a network that is not KESI's


def export(checkpoint: Checkpoint, inputs: Inputs, out: Path, kind: str, *, raw: bool = False,
           sparse: bool = False, root: str | Path = "data") -> Exported:
    """Write ``out`` in the format ``kind``, verified on the test images in ``root`` if they are
    there.

    Raises UsageError for a package that is missing or options that do not fit each other, and
    KesiError where the file does not give what the checkpoint gives (nothing is kept then) or
    cannot be written.
    """
    if sparse and kind != "safetensors":
        raise UsageError(f"--sparse goes with --format safetensors: {kind} keeps dense weights")
    if raw and kind == "safetensors":
        raise UsageError("--raw goes with onnx and pt2: a safetensors file holds weights, not a "
                         "computation, and has mean and std in its metadata")
    raw = raw or kind == "safetensors"
    reference = network_for(checkpoint.network, inputs, raw)
    content = encode(reference, inputs, kind, about_of(checkpoint, inputs, raw), sparse)
    return _written(content, out, kind, reference, *example_images(checkpoint, inputs, root, raw))


def calibration_images(checkpoint: Checkpoint, inputs: Inputs, root: str | Path,
                       raw: bool) -> torch.Tensor:
    """Up to CALIBRATION training images (N, C, H, W), as scaled() gives them, for export_int8().

    Raises KesiError where they are not in ``root``, UsageError where nothing says which they are.
    """
    try:
        dataset = scaled(dataset_of(checkpoint, inputs, root), inputs, raw)
    except KesiError as error:
        where = "" if isinstance(error, UsageError) else " (--data)"  # which would not help
        raise type(error)(f"--int8 needs training images for calibration{where}: "
                          f"{error}") from error
    split = dataset.train.spread(CALIBRATION)
    return torch.cat([images for images, _ in eval_batches(dataset, split)]).contiguous()


def export_int8(checkpoint: Checkpoint, inputs: Inputs, whole: Path, out: Path,
                calibration: torch.Tensor, *, raw: bool = False,
                root: str | Path = "data") -> Exported:
    """Write ``out``: the ONNX file ``whole`` of this checkpoint in int8, see formats.quantised().

    It has to run at every batch size, or KesiError is raised; how far it agrees is in the check.
    """
    content = quantised(whole.read_bytes(), calibration)
    reference = network_for(checkpoint.network, inputs, raw)
    images, source = example_images(checkpoint, inputs, root, raw)
    return _written(content, out, "onnx", reference, images, source, tolerance=float("inf"))


def _written(content: bytes, out: Path, kind: str, reference: nn.Module, images: torch.Tensor,
             source: str, tolerance: float = TOLERANCE) -> Exported:
    """Write a file, load it as its users will, and keep it if it passes verify()."""
    checks = []

    def write_and_check(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        checks.append(verify(reference, runner(Path(file.name), kind), images, source, tolerance))

    write_atomic(out, write_and_check)
    return Exported(out, len(content), len(zlib.compress(content, 6)), checks[0])


def network_for(model: Network, inputs: Inputs, raw: bool) -> nn.Module:
    """A copy of the network in eval mode, behind its normalisation unless it takes ``raw`` images.

    Raises UsageError where nobody knows how images are normalised.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    if raw:
        return model
    if inputs.mean is None or inputs.std is None:
        raise UsageError("the checkpoint does not say how its images were scaled: give --dataset, "
                         "or --raw for a file that takes normalised images")
    return Normalised(model, *inputs.statistics()).eval()


def _scaling(inputs: Inputs, raw: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the images that a file takes, from 0..1."""
    return inputs.statistics() if raw and inputs.mean is not None else (
        (0.0,) * inputs.channels, (1.0,) * inputs.channels)


def scaled(dataset: Dataset, inputs: Inputs, raw: bool) -> Dataset:
    """The data set, its images as a file takes them: normalised for ``raw`` if it is known how,
    else 0..1.
    """
    mean, std = _scaling(inputs, raw)
    return replace(dataset, mean=mean, std=std)


def example_images(checkpoint: Checkpoint, inputs: Inputs, root: str | Path,
                   raw: bool) -> tuple[torch.Tensor, str]:
    """Up to IMAGES test images (N, C, H, W), as scaled() gives them; and what they are.

    Of the checkpoint's data set, or of digits at its size where that is not there; nothing is
    downloaded.
    """
    try:
        dataset = scaled(dataset_of(checkpoint, inputs, root), inputs, raw)
    except KesiError as error:
        shipped = load(SHIPPED, image_size=inputs.image_size).test.spread(IMAGES)
        digits = shipped.take(0, len(shipped))
        if inputs.channels != digits.shape[3]:  # they are grey, whatever they are stored as
            digits = digits[..., :1].repeat(1, 1, 1, inputs.channels)
        images = Normalise.of(*_scaling(inputs, raw))(digits)
        known = inputs.dataset is None or inputs.dataset in DATASETS
        why = (f"for want of its own (--data): {first_line(error)}" if known
               else "its own were handed over in Python")
        size = spoken_size(inputs.image_size)
        return images.contiguous(), f"images of {SHIPPED} at {size} px, {why}"
    split = dataset.test.spread(IMAGES)
    images = torch.cat([images for images, _ in eval_batches(dataset, split)])
    return images.contiguous(), f"test images of {dataset.name}"


def verify(reference: nn.Module, run: Runner, images: torch.Tensor, source: str,
           tolerance: float = TOLERANCE) -> Check:
    """Hold an exported network against the original, whole and in batches. Raises KesiError where
    they differ.
    """
    with torch.inference_mode():
        expected = reference(images)
    largest = float(expected.abs().max())
    limit = tolerance * largest
    worst = 0.0
    for batch in (len(images), *BATCHES):
        try:
            found = run(images[:batch]).detach()
        except Exception as error:  # each runtime raises types of its own
            raise KesiError(f"the exported network does not run at batch {batch}: "
                            f"{str(error)[:300]}") from error
        difference = float((found - expected[:batch]).abs().max())
        if not difference <= limit:  # also for NaN
            raise KesiError("the exported network differs from the checkpoint by "
                            f"{difference:.3g} at batch {batch} (at most {limit:.3g} is "
                            "rounding): nothing was written")
        worst = max(worst, difference)
        if batch == len(images):
            equal = int((found.argmax(1) == expected.argmax(1)).sum())
    return Check(len(images), source, worst, largest, equal)
