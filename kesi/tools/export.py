"""A checkpoint as a file that other programs run, tried against the original before it is kept.

onnx: opset 18, for onnxruntime and others. pt2: torch.export, for torch.export.load without this package.
safetensors: the weights and what network they belong to, for kesi.export.load_safetensors. The first two take
float32 images (batch, 3, S, S) of any number and give logits (batch, classes): RGB, scaled to 0..1 and then
normalised as in training, or with --normalise just 0..1.

The written file is loaded again and run on test images at several batch sizes; it appears under its name only
if it agrees with the checkpoint. Then sizes and latencies are measured, the baseline's in turn with the
compressed network's. What to expect of them: a filter-pruned network is smaller and faster. A weight-pruned one
is smaller once it is compressed (--sparse, or any zip), but not faster on dense hardware: a multiplication by
zero takes as long as any other.
"""

import copy
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import DATASETS, eval_batches, load
from kesi.data.augment import Normalise
from kesi.data.datasets import SHIPPED
from kesi.models import Network
from kesi.runs.lineage import snapshots_of
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.system.files import write_atomic
from kesi.tools import latency
from kesi.tools.formats import Normalised, Runner, encode, runner
from kesi.tools.inputs import Inputs, dataset_of, first_images

IMAGES = 100  # to hold the file against the checkpoint

BATCHES = (1, 2, 7)

TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by far less


@dataclass(frozen=True)
class Check:
    """How an exported file did on ``images`` images: the largest difference of a logit, equal predictions.

    ``largest``: the largest logit there is, for comparison.
    """

    images: int
    source: str
    difference: float
    largest: float
    equal: int


@dataclass(frozen=True)
class Exported:
    """An exported file, its size in bytes as it is and deflated (zlib, level 6), and how it was checked."""

    path: Path
    size: int
    deflated: int
    check: Check


def export(checkpoint: Checkpoint, inputs: Inputs, out: Path, kind: str, *, normalise: bool = False,
           sparse: bool = False, root: str | Path = "data") -> Exported:
    """Write ``out`` in the format ``kind``, verified on the test images in ``root`` if they are there.

    Raises UsageError for a package that is missing or options that do not fit each other, and KesiError where
    the file does not give what the checkpoint gives (nothing is kept then) or cannot be written.
    """
    if sparse and kind != "safetensors":
        raise UsageError(f"--sparse goes with --format safetensors: {kind} keeps dense weights")
    if normalise and kind == "safetensors":
        raise UsageError("--normalise needs a format that holds a computation (onnx, pt2); a safetensors file has "
                         "mean and std in its metadata")
    reference = network_for(checkpoint.network, inputs, normalise)
    images, source = example_images(checkpoint, inputs, root, normalise)
    content = encode(reference, inputs, kind, {"normalised": normalise}, sparse)
    checks = []

    def write_and_check(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        checks.append(verify(reference, runner(Path(file.name), kind), images, source))

    write_atomic(out, write_and_check)
    return Exported(out, len(content), len(zlib.compress(content, 6)), checks[0])


def network_for(model: Network, inputs: Inputs, normalise: bool) -> nn.Module:
    """A copy of the network in eval mode, behind its normalisation if that is asked for."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    return Normalised(model, *inputs.statistics()).eval() if normalise else model


def example_images(checkpoint: Checkpoint, inputs: Inputs, root: str | Path,
                   normalise: bool) -> tuple[torch.Tensor, str]:
    """Up to IMAGES test images (N, 3, S, S), 0..1 for ``normalise``, else normalised; and what they are.

    Of the checkpoint's data set, or of digits at its size where that is not there; nothing is downloaded.
    """
    only_scaled = normalise or inputs.mean is None
    mean, std = ((0.0,) * 3, (1.0,) * 3) if only_scaled else inputs.statistics()
    try:
        dataset = replace(dataset_of(checkpoint, inputs, root), mean=mean, std=std)
    except KesiError as error:
        shipped = first_images(load(SHIPPED, image_size=inputs.image_size).test, IMAGES)
        images = Normalise.of(mean, std)(shipped.take(0, len(shipped)))
        known = inputs.dataset is None or inputs.dataset in DATASETS
        why = f"for want of its own (--data): {first_line(error)}" if known else "its own were handed over in Python"
        return images.contiguous(), f"images of {SHIPPED} at {inputs.image_size} px, {why}"
    split = first_images(dataset.test, IMAGES)
    images = torch.cat([images for images, _ in eval_batches(dataset, split)])
    return images.contiguous(), f"test images of {dataset.name}"


def verify(reference: nn.Module, run: Runner, images: torch.Tensor, source: str) -> Check:
    """Hold an exported network against the original, whole and in batches. Raises KesiError where they differ."""
    with torch.inference_mode():
        expected = reference(images)
    largest = float(expected.abs().max())
    limit = TOLERANCE * largest
    worst = 0.0
    for batch in (len(images), *BATCHES):
        try:
            found = run(images[:batch]).detach()
        except Exception as error:  # each runtime raises types of its own
            raise KesiError(f"the exported network does not run at batch {batch}: {str(error)[:300]}") from error
        difference = float((found - expected[:batch]).abs().max())
        if not difference <= limit:  # also for NaN
            raise KesiError(f"the exported network differs from the checkpoint by {difference:.3g} at batch {batch} "
                            f"(at most {limit:.3g} is rounding): nothing was written")
        worst = max(worst, difference)
        if batch == len(images):
            equal = int((found.argmax(1) == expected.argmax(1)).sum())
    return Check(len(images), source, worst, largest, equal)


def baseline_of(checkpoint: Checkpoint, given: Path | None, arch: str | None) -> Checkpoint | None:
    """The checkpoint that this one descends from, ``given`` or found; None where there is none to be found."""
    if given is not None:
        return checkpoints.load(given, arch)
    try:
        return checkpoints.load(snapshots_of(checkpoint)[0])
    except UsageError:
        return None


def measured(compressed: Exported, baseline: Checkpoint, inputs: Inputs, kind: str, normalise: bool,
             clock: bool) -> list[tuple[str, float, float]]:
    """(what, of the baseline, of the compressed network): bytes, and with ``clock`` milliseconds.

    The baseline goes through the same format, dense, and both through the same runtime in turn.
    """
    content = encode(network_for(baseline.network, inputs, normalise), inputs, kind, {"normalised": normalise})
    rows = [("file (kB)", len(content) / 1e3, compressed.size / 1e3),
            ("file, deflated (kB)", len(zlib.compress(content, 6)) / 1e3, compressed.deflated / 1e3)]
    if not clock:
        return rows
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"baseline.{kind}"
        whole.write_bytes(content)
        runs = [runner(path, kind) for path in (whole, compressed.path)]
        rows += [(what, *(1e3 * seconds for seconds in times)) for what, times in latencies(runs, inputs)]
    return rows


def latencies(runs: Sequence[Runner], inputs: Inputs) -> list[tuple[str, list[float]]]:
    """(what, seconds of each), of networks in turn, for every size of batch."""
    found = []
    for batch in latency.BATCHES:
        images = latency.noise(batch, inputs.image_size)
        calls = [lambda run=run, images=images: run(images) for run in runs]
        found.append((f"latency, batch {batch} (ms)", latency.alternated(calls)))
    return found
