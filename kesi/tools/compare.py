"""Checkpoints, and files exported from them, side by side: size, MACs, latency, accuracy.

Latency of a checkpoint is the median of one forward pass in torch on this machine, the checkpoints
in turn. It and the MACs of a weight-pruned network are those of the dense one: zeros are multiplied
like other weights. That of a file is measured in its own runtime in the same way.
"""

import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import Dataset, Split, eval_batches
from kesi.data.split import Size
from kesi.method.distillation import agreement
from kesi.method.sizes import macs, parameters
from kesi.method.training import predict, score
from kesi.runs.lineage import check_same_test, snapshots_of
from kesi.system.errors import UsageError
from kesi.system.files import csv_text
from kesi.tools import latency
from kesi.tools.export import Exported, about_of, network_for, scaled
from kesi.tools.formats import Runner, encode, runner
from kesi.tools.inputs import Inputs, dataset_of, datasets_of, inputs_of

ACCURACY = 5000  # test images, at most, for the accuracies of exported files

CLOCKED = (1, 32, 128)  # batch sizes for the latencies of exported files


@dataclass(frozen=True)
class Entry:
    """What is known of a checkpoint: bytes of its file, MACs of one image, seconds, accuracy in
    percent.

    ``latency_1`` and ``latency_128`` are of a batch of so many images; None where nothing was
    measured, as is ``accuracy``.
    """

    name: str
    params: int
    nonzero_params: int
    bytes: int
    macs: int
    latency_1: float | None
    latency_128: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Comparison:
    """The entries, and ``same``: K x K, the percent of test images on which two networks predict
    one class.
    """

    entries: list[Entry]
    same: list[list[float]] | None
    images: str

    def text(self) -> str:
        """For a terminal."""
        wide = max(10, *(len(entry.name) for entry in self.entries))
        lines = [f"{'':<{wide}} {'params':>11} {'non-zero':>11} {'file':>10} {'MACs':>9} "
                 f"{'batch 1':>9} {'batch 128':>9} {'accuracy':>8}", f"{'':<{wide}} {'':>11} "
                 f"{'':>11} {'(kB)':>10} {'(M)':>9} {'(ms)':>9} {'(ms)':>9} {'(%)':>8}"]
        lines += [f"{one.name:<{wide}} {one.params:>11,} {one.nonzero_params:>11,} "
                  f"{one.bytes / 1e3:>10,.1f} "
                  f"{one.macs / 1e6:>9.2f} {_ms(one.latency_1):>9} {_ms(one.latency_128):>9} "
                  f"{'-' if one.accuracy is None else f'{one.accuracy:.2f}':>8}"
                  for one in self.entries]
        if self.same is not None:
            lines += ["", f"the same prediction (% of {self.images}):", f"{'':<{wide + 4}}"
                      + "".join(f"{f'[{place}]':>8}" for place in range(1, len(self.same) + 1))]
            lines += [f"{f'[{place}]':<4}{one.name:<{wide}}"
                      + "".join(f"{share:>8.2f}" for share in row)
                      for place, (one, row) in enumerate(zip(self.entries, self.same, strict=True),
                                                         start=1)]
        return "\n".join(lines)

    def csv(self) -> str:
        """A row a checkpoint: parameters, bytes, MACs and seconds as they are, agreement in columns
        of its own.
        """
        rows = [asdict(entry) for entry in self.entries]
        if self.same is not None:
            names = [f"same_as_{entry.name}" for entry in self.entries]
            rows = [row | dict(zip(names, shares, strict=True))
                    for row, shares in zip(rows, self.same, strict=True)]
        return csv_text(rows)


def compare(paths: Sequence[Path], arch: str | None = None, dataset: str | None = None,
            root: str | Path = "data", image_size: Size | None = None, *, accuracy: bool = True,
            clock: bool = True, download: bool = False, device: str = "cpu",
            chosen: bool = True) -> Comparison:
    """Measure checkpoints (files or folders of stages) against each other.

    ``dataset``: the images for all of them (default: what each says, which has to be the same).
    ``chosen``: somebody named ``root``; if not, the checkpoints have to be of the same images.
    Raises UsageError for paths that are no checkpoints or do not know the same classes, KesiError
    for missing images.
    """
    loaded = [checkpoints.load(path, arch) for path in paths]
    inputs = [inputs_of(checkpoint, dataset, image_size, root) for checkpoint in loaded]
    same, images, accuracies = None, "", [None] * len(loaded)
    if accuracy:
        if not chosen and dataset in (None, loaded[0].info.data.get("name")):
            check_same_test(loaded)
        accuracies, same, images = _predictions(loaded, inputs, root, download, device)
    times = _latencies(loaded, inputs, device) if clock else [(None, None)] * len(loaded)
    entries = []
    for checkpoint, one, name, clocked, right in zip(loaded, inputs, names(loaded), times,
                                                     accuracies, strict=True):
        params = parameters(checkpoint.network)
        zeros = checkpoint.masks.pruned() if checkpoint.masks else 0
        entries.append(Entry(name, params, params - zeros, checkpoint.path.stat().st_size,
                             macs(checkpoint.network, one.image_size), *clocked, right))
    return Comparison(entries, same, images)


def names(loaded: Sequence[Checkpoint]) -> list[str]:
    """What tells checkpoints apart: their paths from the folder that they share, without
    checkpoint.pth.tar.
    """
    paths = [checkpoint.path.resolve() for checkpoint in loaded]
    folders = {path.parent for path in paths}
    common = os.path.commonpath(folders) if len(folders) > 1 else paths[0].parent.parent
    short = [Path(os.path.relpath(path, common)) for path in paths]
    found = [str(path.parent) if path.name == "checkpoint.pth.tar" and path.parent.name
             else str(path) for path in short]
    return [f"{name} ({found[:place].count(name) + 1})" if found.count(name) > 1 else name
            for place, name in enumerate(found)]


def _predictions(loaded: Sequence[Checkpoint], inputs: Sequence[Inputs], root: str | Path,
                 download: bool, device: str) -> tuple[list[float], list[list[float]], str]:
    """(accuracies, agreement matrix, what images): in percent, on the whole test split."""
    named = {one.dataset for one in inputs}
    if len(named) > 1:
        raise UsageError("the checkpoints know "
                         f"different data sets ({', '.join(map(str, named))}): name one with "
                         "--dataset, or leave accuracies out with --no-accuracy")
    looked_at = datasets_of(loaded, inputs, root, download)
    labels = looked_at[0].test.labels
    logits = [predict(checkpoint.network, one, one.test, device)
              for checkpoint, one in zip(loaded, looked_at, strict=True)]
    together = torch.stack(logits)
    found = agreement(together, labels)
    return ([score(one, labels)[1] for one in together],
            [[100 - share for share in row] for row in found.disagreement],
            f"{len(labels):,} test images of {inputs[0].dataset}")


def _latencies(loaded: Sequence[Checkpoint], inputs: Sequence[Inputs],
               device: str) -> list[tuple[float, ...]]:
    """Seconds of one pass at every batch size, by checkpoint."""
    columns = []
    for batch in latency.BATCHES:
        calls = [latency.eager(checkpoint.network, one.noise(batch), device)
                 for checkpoint, one in zip(loaded, inputs, strict=True)]
        columns.append(latency.alternated(calls))
    return list(zip(*columns, strict=True))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


@dataclass(frozen=True)
class Table:
    """Files side by side: a row is (what, its value in every column); the baseline is the first
    column.
    """

    columns: list[str]
    rows: list[tuple[str, list[float]]]

    def text(self) -> list[str]:
        """For a terminal: the values, then how many times the first column's each of the others is
        less.
        """
        others = self.columns[1:]
        ratios = ["ratio"] if len(others) == 1 else [f"/{name}" for name in others]
        lines = [f"{'':<26}" + "".join(f" {name:>12}" for name in [*self.columns, *ratios])]
        for what, values in self.rows:
            shares = ["-" if "accuracy" in what else f"{values[0] / one:.2f}x"
                      for one in values[1:]]
            lines.append(f"{what:<26}" + "".join(f" {f'{value:,.2f}':>12}" for value in values)
                         + "".join(f" {share:>12}" for share in shares))
        return lines if others else [line.rstrip() for line in lines]


def baseline_of(checkpoint: Checkpoint, given: Path | None, arch: str | None) -> Checkpoint | None:
    """The checkpoint that this one descends from, ``given`` or found; None where there is none or
    it is this one.
    """
    try:
        found = checkpoints.load(given, arch) if given is not None else snapshots_of(checkpoint)[0]
    except UsageError:
        if given is not None:
            raise
        return None
    return None if found.digest == checkpoint.digest else found


def compared(checkpoint: Checkpoint, baseline: Checkpoint | None, files: Sequence[Exported],
             inputs: Inputs, kind: str, *, raw: bool = False, root: str | Path = "data",
             clock: bool = True) -> Table:
    """Sizes, MACs, accuracies and latencies of the exported ``files`` (as it is, and in int8) and
    of the baseline.

    The baseline goes through the same format, dense; all run in the same runtime, in turn.
    Accuracies are taken where there is a file in int8 and its test images are there.
    """
    names = ["baseline"] * (baseline is not None) + ["compressed", "int8"][:len(files)]
    with tempfile.TemporaryDirectory() as folder:
        paths, sizes = [file.path for file in files], [(file.size, file.deflated) for file in files]
        cost = [macs(checkpoint.network, inputs.image_size)] * len(files)
        if baseline is not None:
            raw_ = raw or kind == "safetensors"
            content = encode(network_for(baseline.network, inputs, raw_), inputs, kind,
                             about_of(baseline, inputs, raw_))
            paths = [Path(folder) / f"baseline.{kind}", *paths]
            paths[0].write_bytes(content)
            sizes = [(len(content), len(zlib.compress(content, 6))), *sizes]
            cost = [macs(baseline.network, inputs.image_size), *cost]
        rows = [("file (kB)", [size / 1e3 for size, _ in sizes]),
                ("file, deflated (kB)", [size / 1e3 for _, size in sizes]),
                ("MACs (M)", [one / 1e6 for one in cost])]
        runs = [runner(path, kind) for path in paths]
        if len(files) > 1:
            dataset = scaled(dataset_of(checkpoint, inputs, root), inputs, raw)
            split = dataset.test.spread(ACCURACY)
            rows.append((f"accuracy, {len(split):,} images (%)",
                         [accuracy(run, dataset, split) for run in runs]))
        if clock:
            rows += [(what, [1e3 * one for one in seconds])
                     for what, seconds in latencies(runs, inputs)]
    return Table(names, rows)


def accuracy(run: Runner, dataset: Dataset, split: Split) -> float:
    """The percentage of the images of a split that a file classifies rightly."""
    right = sum(int((run(images.contiguous()).argmax(1) == labels).sum())
                for images, labels in eval_batches(dataset, split, batch_size=128))
    return 100 * right / len(split)


def latencies(runs: Sequence[Runner], inputs: Inputs) -> list[tuple[str, list[float]]]:
    """(what, seconds of each), of networks in turn, for every size of batch."""
    found = []
    for batch in CLOCKED:
        images = inputs.noise(batch)
        calls = [lambda run=run, images=images: run(images) for run in runs]
        found.append((f"latency, batch {batch} (ms)", latency.alternated(calls)))
    return found
