"""A network that is so many times as fast: its widths are chosen by the latency of networks that
have them, measured before any training.

What was measured stands in run.json, and who continues the run takes it from there.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kesi import checkpoints, models
from kesi.checkpoints import fields
from kesi.data.split import Size
from kesi.method.algorithm import draw
from kesi.method.pruning.allocation import LATENCY
from kesi.method.recipes import Recipe
from kesi.method.sizes import channels_of
from kesi.method.snapshot import BASELINE, KESI
from kesi.runs.folder import chosen
from kesi.runs.record import Faster
from kesi.system import distributed
from kesi.system.describe import describe
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.system.provenance import device_name
from kesi.tools import latency
from kesi.tools.formats import need, onnx_bytes, runner


def speedup(text: str | float) -> float:
    """How many times as fast: "2x", "1.5". Raises UsageError for what is no number above 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x?", str(text))
    if found is None or not 1 < float(found[1]) <= 1000:
        raise UsageError(f"a latency is asked for as 2x or 1.5x, above 1 and at most 1000, "
                         f"not {str(text)[:40]}")
    return float(found[1])


def faster(recipe: Recipe, times: float, num_classes: int, image_size: Size, allocation: str,
           round_to: int, batch: int = 1, folder: Path | None = None) -> tuple[Recipe, Faster]:
    """The recipe that makes a network ``times`` as fast, and what was measured for it.

    ``folder``: of a run, which says it already if it is there. Raises UsageError for what cannot be
    reached, and where that run was asked for something else.
    """
    if not 1 <= batch <= 4096:
        raise UsageError(f"--latency-batch must be at least 1 and at most 4096, not {batch}")
    asked = {"speedup": times, "batch": batch, "allocation": allocation, "round_to": round_to,
             "rounds": len(recipe.rounds), "arch": recipe.arch,
             "rates": describe(recipe.rounds[0])}
    if folder is not None and (record := chosen(folder, LATENCY, asked)) is not None:
        rounds = record.recipe["rounds"]
        if not all(map(fields.several(fields.number), rounds)):
            raise KesiError(f"{folder} is damaged: its rounds are no rates of filters")
        return replace(recipe, rounds=tuple(map(tuple, rounds))), record.latency

    with _one_thread():
        where = device_name("cpu")
    unpruned = tuple(models.ARCHITECTURES[recipe.arch].cfg)
    pairs: dict[tuple, list[float]] = {}

    def cost(cfg: tuple) -> float:
        if cfg == unpruned:
            return 1.0
        if not pairs:
            print(f"measuring widths in {runtime()}, batch {batch}, {where} ...", flush=True)
        if cfg not in pairs:
            both = [draw(recipe.arch, num_classes, 0, one).network for one in (unpruned, cfg)]
            pairs[cfg] = seconds_of(both, image_size, batch)
        before, after = pairs[cfg]
        return after / before

    made = recipe.towards(LATENCY, 1 / times, num_classes, image_size, allocation, round_to, cost)
    return made, Faster(**asked, runtime=runtime(), threads=1, device=where,
                        seconds=pairs[tuple(made.widths())])


def reached(asked: Faster, seed: Path) -> Faster:
    """The same of the finished networks of a seed, measured once more."""
    loaded = [checkpoints.load(seed / name) for name in (BASELINE, KESI)]
    size = loaded[0].info.data["image_size"]
    seconds = seconds_of([one.network for one in loaded], size, asked.batch)
    return replace(asked, seconds=seconds, runtime=runtime())


def seconds_of(networks: Sequence[nn.Module], image_size: Size, batch: int) -> list[float]:
    """The latency of networks, of a batch on one thread of the CPU; their calls alternate.

    The fastest call counts: what else a machine does only adds to the others, and here two numbers
    decide. The same in all processes of torchrun, the mean, so that all choose the same.
    """
    with _one_thread():
        images = latency.noise(batch, image_size, channels_of(networks[0]))
        found = latency.alternated([_call(network, images, runtime()) for network in networks],
                                   min)
    return distributed.mean(found)


def runtime() -> str:
    """What latency is measured in: onnxruntime where that is installed, else torch."""
    try:
        need("onnx", "onnxscript", "onnxruntime")
    except UsageError:
        return "torch"
    return "onnxruntime"


def _call(network: nn.Module, images: torch.Tensor, kind: str) -> Callable[[], object]:
    if kind == "torch":
        return latency.eager(network, images)
    try:
        run = runner(encoded(network, tuple(images.shape[2:])), "onnx")
        run(images)
    except (KesiError, MemoryError):
        raise
    except Exception as error:  # of torch's exporter or the runtime, about somebody's network: any
        raise UsageError(f"no latency can be measured: {network.arch} does not run in onnxruntime "
                         f"({first_line(error)}); ask for macs or params instead") from error
    return lambda: run(images)


def encoded(network: nn.Module, image_size: Size) -> bytes:
    """The network as an ONNX file, by the exporter that says nothing."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return onnx_bytes(network.eval(), image_size, {})


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
