"""A run that fits a budget: the epochs of all stages are scaled in proportion, by the speed of a
few training steps on this machine.

What was measured stands in run.json, and who continues the run takes it from there.
"""

import itertools
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import torch

from kesi.data import Dataset, TrainBatches
from kesi.method import plan
from kesi.method.algorithm import draw
from kesi.method.objectives import CrossEntropy
from kesi.method.plan import Speed
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training, optimizer_for
from kesi.method.sizes import macs
from kesi.method.training import Options
from kesi.models import Network
from kesi.runs.clock import spoken
from kesi.runs.folder import chosen
from kesi.runs.lineage import check_channels
from kesi.runs.record import Fitted
from kesi.system import distributed, execution
from kesi.system.errors import UsageError
from kesi.system.execution import make_step
from kesi.system.provenance import device_name

BUDGET = "budget"

SPARE = 0.1  # of a budget, for what no plan counts: files, pruning, the report, a busy machine

WARM, TIMED = 1, 3  # steps of training: not counted, and counted
WARM_ON_GPU, TIMED_ON_GPU = 6, 20

PARTS = 10_000  # of the recipe's epochs: scales are multiples of one

# Of a step that is timed on a CPU, at most: images, and MACs of their forward pass, but for two.
FEW, WORK = 32, 4 * 10**9


def duration(text: str) -> float:
    """Seconds of "90s", "45m", "2h" or "1h30m". Raises UsageError for what is none."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not 0 < seconds <= 1e8:
        raise UsageError(f"a budget is a time such as 90s, 45m or 2h, not {text[:40]}")
    return seconds


def told(made: Fitted) -> str:
    """One line for the person who asked."""
    return (f"budget {spoken(made.seconds)}: all epochs times {made.scale:g}, about "
            f"{spoken(made.expected)} as measured on {made.device}")


def within(budget: float, recipes: Sequence[Recipe], dataset: Dataset, seeds: int,
           options: Options, trained: bool = False, folders: Sequence[Path] = (),
           images: tuple[int, int] | None = None) -> Fitted:
    """The scale of all epochs with which recipes fit a budget in seconds; 1 where they do anyway.

    ``folders``: of runs, which say it already if they are there; the rest as for expected(). Raises
    UsageError where one epoch a stage is too much, and where a run was asked for something else.
    """
    for folder in folders:
        if (record := chosen(folder, BUDGET, {"seconds": budget})) is not None:
            return record.budget
    measured, seconds = expected(recipes, dataset, seeds, options, trained, images)
    usable, least = (1 - SPARE) * budget, seconds(1 / PARTS)
    if least > usable:
        raise UsageError(f"a budget of {spoken(budget)} is too small: with one epoch a stage it "
                         f"would take about {spoken(least / (1 - SPARE))} here")
    low, high = 1, PARTS
    while low < high:  # the most parts that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle / PARTS) <= usable else (low, middle - 1)
    return Fitted(seconds=budget, scale=low / PARTS, expected=seconds(low / PARTS),
                  device=device_name(options.device), measured=asdict(measured))


def expected(recipes: Sequence[Recipe], dataset: Dataset, seeds: int, options: Options,
             trained: bool = False, images: tuple[int, int] | None = None
             ) -> tuple[Speed, Callable[[float], float]]:
    """The speed here, and the seconds that all recipes take with their epochs scaled by a factor.

    Only the first recipe trains a baseline, and none does where one is given (``trained``).
    ``images``: of training and test, where ``dataset`` stands for one that has others.
    """
    measured = speed(recipes[0], dataset, options)
    images = images or (len(dataset.train), len(dataset.test) + len(dataset.val or ()))
    sizes = [plan.sizes(recipe, dataset.num_classes, dataset.image_size) for recipe in recipes]

    def seconds(scale: float) -> float:
        return seeds * sum(plan.seconds(recipe.changed(scale=scale), size, measured, *images,
                                        options.eval_every, not trained and number == 0)
                           for number, (recipe, size) in enumerate(zip(recipes, sizes,
                                                                       strict=True)))
    return measured, seconds


def speed(recipe: Recipe, dataset: Dataset, options: Options) -> Speed:
    """How fast this machine trains the recipe's first network and its last one. Raises UsageError
    where they take images of other channels."""
    widths = tuple(recipe.widths(0)), tuple(recipe.widths())
    networks = [draw(recipe.arch, dataset.num_classes, 0, cfg).network
                for cfg in dict.fromkeys(widths)]
    check_channels(networks[0], dataset)
    costs = [macs(network, dataset.image_size) for network in networks]
    batch = recipe.baseline.batch_size
    if torch.device(options.device).type != "cuda":
        batch = min(batch, FEW, WORK // costs[0])
    batch = max(batch, 2 * distributed.world())
    wanted = torch.arange(min(2 * batch, len(dataset.train)))
    few = replace(dataset, train=dataset.train.subset(wanted), val=None)
    training = replace(recipe.baseline, batch_size=batch)
    found = [distributed.mean(_clocked(network, few, training, options)) for network in networks]
    train, forward = zip(found[0], found[-1], strict=True)
    return Speed((costs[0], costs[-1]), train, forward)


def _clocked(network: Network, dataset: Dataset, training: Training,
             options: Options) -> tuple[float, float]:
    """Seconds an image, of all processes together: of a training step, and of a forward pass."""
    device = options.device
    network.to(device=device, memory_format=torch.channels_last).train()
    precision = execution.set_up(device, options.precision, options.deterministic)
    batches = TrainBatches(dataset, training.batch_size, 0, device, distributed.rank(),
                           distributed.world())
    step = make_step(network, CrossEntropy(), device, precision,
                     "off" if options.compile == "on" else options.compile, 1)
    optimizer = optimizer_for(network, training)
    cuda = torch.device(device).type == "cuda"
    warm, timed = (WARM_ON_GPU, TIMED_ON_GPU) if cuda else (WARM, TIMED)
    drawn = ((images, labels, number) for epoch in itertools.count(1)
             for number, (images, labels) in enumerate(batches.epoch(epoch)))

    def train() -> int:
        images, labels, number = next(drawn)
        step(images, labels, batches.weight(number))
        optimizer.step()
        return len(images)

    trained = _median(train, warm, timed, device)
    network.eval()
    images = next(drawn)[0]

    def look() -> int:
        with torch.inference_mode():
            network(images)
        return len(images)

    looked = _median(look, warm, timed, device)
    return trained / distributed.world(), looked / distributed.world()


def _median(call: Callable[[], int], warm: int, timed: int, device: str) -> float:
    """Seconds an image of a call that tells how many it saw; the first ones do not count."""
    found = []
    for _ in range(warm + timed):
        started = perf_counter()
        images = call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        found.append((perf_counter() - started) / images)
    return statistics.median(found[warm:])
