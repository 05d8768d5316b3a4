"""The whole method on a network of one's own: any nn.Module that classifies images.

    result = kesi.compress(network, (images, labels), (test_images, test_labels))
    kesi.register("mine", Mine); network = kesi.load_model("runs/images-mine-filter/seed0/kesi")

A checkpoint never holds code, and so not the network's: whoever loads one says how it is built
(kesi.own.registry). The last form imports a module that does so, and then runs one of KESI's
commands.
"""

import copy
import operator
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from kesi import checkpoints, models
from kesi.checkpoints import fields
from kesi.checkpoints.records import Info
from kesi.data import Dataset
from kesi.data.arrays import Pairs, from_arrays
from kesi.method import recipes
from kesi.method.pruning import Masks
from kesi.method.pruning.allocation import ALLOCATIONS
from kesi.method.pruning.filters import pruned_widths
from kesi.method.pruning.weights import conv_weights
from kesi.method.recipes import Recipe
from kesi.method.snapshot import BASELINE, Snapshot
from kesi.method.training import Options
from kesi.own import checks
from kesi.own.graphs import Graph
from kesi.own.registry import RATE, SPARSITIES, Factory, register, reserved
from kesi.report.report import Report, report
from kesi.runs import pipeline
from kesi.runs.folder import move_aside
from kesi.runs.record import Faster
from kesi.runs.results import load_run
from kesi.system import execution
from kesi.system.errors import UsageError, first_line
from kesi.system.locks import held
from kesi.system.provenance import provenance
from kesi.tools.targets import faster

START = "start.pth.tar"


@dataclass(frozen=True)
class Compressed:
    """What compress() made.

    ``network``: the compressed network, of the class that was given, in eval mode on the CPU;
    ``masks`` of its weights, or None after filter pruning. ``accuracies``: in percent on the test
    images by stage ("baseline", "onecycle-1" ..., "ensemble", "kesi"), means over the seeds.
    ``checkpoint``: the file of ``network``, which is that of the first seed. ``latency``: where it
    was asked for, that of the baseline and of ``network``, in ``seconds``.
    """

    network: nn.Module
    masks: Masks | None
    folder: Path
    checkpoint: Path
    accuracies: dict[str, float]
    report: Report
    latency: Faster | None = None


def compress(model: nn.Module | Factory, train: Pairs | Dataset, test: Pairs | None = None,
             method: str = "filter", *, name: str | None = None, folder: str | Path | None = None,
             rounds: int | None = None, rates: float | dict[str, float] | None = None,
             sparsities: Sequence[float] | None = None, epochs: tuple[int, int, int] | None = None,
             batch_size: int | None = None, lr: float | None = None, recipe: Recipe | None = None,
             seeds: Sequence[int] = (0,), trained: bool = False, compare: bool = False,
             flip: bool = True, options: Options | None = None, fresh: bool = False,
             ignore: Sequence[str] = (), mean: float | Sequence[float] | None = None, std: float
             | Sequence[float] | None = None, accuracy: float | None = None,
             latency: float | str | None = None, latency_batch: int = 1) -> Compressed:
    """Train, prune, retrain, repeat and distil a network;
    the same call with the same folder continues.

    ``model``: a network, which stays as it is and whose weights are where training starts (with
    ``trained`` they are the baseline, and step 1 is left out); or a function that builds one, with
    weights drawn anew for each seed. ``train``, ``test``: pairs of uint8 images and labels,
    mirrored in training where ``flip``, see kesi.data.arrays.from_arrays; or a kesi.data.Dataset
    and nothing. ``method``: "filter" or "weight".

    ``rounds`` of pruning (default: five). ``rates``: the share of filters that goes in a round, one
    for all or by the name of a convolution, where those not named keep theirs (default: 0.2).
    ``sparsities``: the share of zero weights after each round. ``epochs`` of baseline, retraining
    and distillation, ``batch_size``, and ``lr``, the highest rate of baseline and one-cycle
    retraining, replace those of the paper's CIFAR recipe; or give a whole ``recipe``. ``compare``:
    also retrain the usual way.

    ``latency``: how many times as fast the network is to be, 2 or "2x", as measured on one thread
    here with ``latency_batch`` images at a time, in onnxruntime if it is installed, else in torch;
    ``rates`` then tell in what proportion layers lose filters.

    ``ignore``: the names of layers, or of what holds them, that keep all filters. ``mean``, ``std``
    of each channel of images scaled to 0..1, which a network that was trained elsewhere expects
    (default: those of the training images). ``accuracy``: what a ``trained`` network reaches on the
    test images in percent, as far as you know: one that is more than five points below, or without
    it one that answers like chance, is refused with the likeliest reason.

    ``name``: what the network is called in checkpoints (default: its class). ``folder``: default
    runs/<data>-<name>-<method>; ``fresh`` moves what is there aside. ``options``: the machine
    (default: a GPU if there is one). Raises UsageError for arguments that do not fit, KesiError for
    files.
    """
    _check_arguments(model, method, rounds, epochs, batch_size, lr, seeds)
    given = None
    if isinstance(model, nn.Module):
        checks.check_weights(model)
        checks.check_whole(model)
        given = _copy(model)
    if given is None and trained:
        raise UsageError(
            "trained=True needs a network with its weights, not a function that builds one")
    dataset = _normalised(_dataset(train, test, flip), mean, std)
    name = name or _name(model)
    graph = register(name, model if given is None else lambda: copy.deepcopy(given),
                     dataset.num_classes, dataset.image_size)
    if recipe is None:
        amounts = _amounts(graph, method, rounds, rates, sparsities)
        if ignore:
            amounts = _without(graph, method, amounts, ignore)
        recipe = recipes.recipe(name, dataset.name, method)
        recipe = recipe.changed(epochs, batch_size=batch_size, lr=lr, compare=compare)
        recipe = replace(recipe, rounds=amounts)
    elif latency is not None:
        raise UsageError("a whole recipe says itself what every layer loses: leave latency out")
    elif ignore:
        raise UsageError("a whole recipe says itself what every layer loses: leave ignore out")
    _check(graph, name, dataset.num_classes, method, recipe)
    folder = Path("runs") / f"{dataset.name}-{name}-{method}" if folder is None else Path(folder)
    options = options or Options(execution.device_for("auto"))
    measured = None
    if latency is not None:
        if dataset.shape != (3, dataset.shape[1], dataset.shape[1]):
            raise UsageError("latency is measured with square RGB images, and these are "
                             f"{dataset.shape}")
        recipe, measured = faster.faster(
            recipe, faster.speedup(latency), dataset.num_classes, dataset.image_size,
            ALLOCATIONS[0], 8, latency_batch, None if fresh else folder)
    if trained and (fresh or not (folder / START).is_file()):
        checks.check_baseline(copy.deepcopy(given), dataset, accuracy, options.device)
    if fresh and (aside := move_aside(folder)):
        print(f"the run before was moved to {aside}")
    start = None if given is None else _start(name, given, dataset, folder, trained)
    seeds = tuple(map(operator.index, seeds))
    pipeline.run(pipeline.Settings(recipe, dataset, folder, seeds, str(start) if trained else None,
                                   options=options, latency=measured))
    done = _collect(folder, folder / f"seed{seeds[0]}" / "kesi")
    return replace(done, latency=measured and faster.reached(measured, done.checkpoint.parents[1]))


def _check_arguments(model, method, rounds, epochs, batch_size, lr, seeds) -> None:
    """Raises UsageError for arguments of the wrong kind;
    what values are right is left to those who use them."""
    if not callable(model):
        raise UsageError(
            f"the model is a {type(model).__name__}: give a network, or a function that builds one")
    if method not in recipes.METHODS:
        raise UsageError(f"unknown method {method!r}; choose one of: {', '.join(recipes.METHODS)}")
    if not _whole_numbers(seeds) or not len(seeds) or min(seeds) < 0:
        raise UsageError(
            f"seeds are whole numbers of at least 0, such as (0, 1, 2), not {seeds!r:.60}")
    if epochs is not None and not (_whole_numbers(epochs) and len(epochs) == 3
                                   and min(epochs) >= 1):
        raise UsageError("epochs are three numbers of at least 1, of baseline, retraining and "
                         f"distillation, not {epochs!r:.60}")
    for name, value in (("rounds", rounds), ("batch_size", batch_size)):
        if value is not None and not (_whole_numbers([value]) and value > 0):
            raise UsageError(f"{name} must be at least 1, not {value!r:.60}")
    if lr is not None and not fields.number(lr):
        raise UsageError(f"lr is a number, not {lr!r:.60}")


def _whole_numbers(values) -> bool:
    """Whether something is a sequence of whole numbers, NumPy's included."""
    try:
        return len(list(map(operator.index, values))) == len(values)
    except TypeError:
        return False


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:  # of any type
        raise UsageError(f"the network cannot be copied ({first_line(error)}): give a "
                         f"function that builds it") from error


def _name(model: nn.Module | Factory) -> str:
    """A network's name by its class, or by the function that builds it."""
    said = (type(model).__name__ if isinstance(model, nn.Module)
            else getattr(model, "__name__", "network"))
    name = re.sub(r"[^\w.-]+", "", said).lower()
    return f"own-{name}" if reserved(name) else name


def _dataset(train: Pairs | Dataset, test: Pairs | None, flip: bool) -> Dataset:
    if isinstance(train, Dataset):
        if test is not None:
            raise UsageError("a kesi.data.Dataset has its test images already: leave test out")
        return train
    if test is None:
        raise UsageError("test images are missing: give test=(images, labels)")
    return from_arrays(train, test, flip=flip)


def _normalised(dataset: Dataset, mean, std) -> Dataset:
    """The data set with another mean and standard deviation, where they are given."""
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        try:
            numbers = tuple(map(float, torch.as_tensor(value, dtype=torch.float64).expand(3)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{name} is one number, or one for each of three channels, "
                             f"not {value!r:.60}") from error
        if not all(fields.number(one) for one in numbers) or name == "std" and min(numbers) <= 0:
            raise UsageError(f"{name} is of images scaled to "
                             f"0..1{', and above 0' * (name == 'std')}, not {value!r:.60}")
        dataset = replace(dataset, **{name: numbers})
    return dataset


def _without(graph: Graph, method: str, amounts: tuple, ignore: Sequence[str]) -> tuple:
    """The rates of every round, with 0 for the widths that layers in ``ignore`` have a part in."""
    if method != "filter":
        raise UsageError('ignore is for method="filter"')
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)

    def inside(conv: str, name: str) -> bool:
        return conv == name or conv.startswith(f"{name}.")

    known = [conv for convs in (*graph.convs, graph.left_alone) for conv in convs]
    for name in ignore:
        if not any(inside(conv, name) for conv in known):
            raise UsageError(f"ignore: no convolution is or is in {name!r}; there are "
                             f"{', '.join(dict.fromkeys(known))}")
    stays = [any(inside(conv, name) for conv in convs for name in ignore) for convs in graph.convs]
    return tuple(tuple(0.0 if stay else rate for rate, stay in zip(rates, stays, strict=True))
                 for rates in amounts)


def _amounts(graph: Graph, method: str, rounds: int | None, rates: float | dict[str, float] | None,
             sparsities: Sequence[float] | None) -> tuple:
    """What every round prunes. Raises UsageError for what does not fit the method or each other."""
    if method == "filter":
        if sparsities is not None:
            raise UsageError('sparsities are for method="weight"; filter pruning takes rates')
        return (graph.rates(RATE if rates is None else rates),) * (rounds or recipes.ROUNDS)
    if rates is not None:
        raise UsageError('rates are for method="filter"; weight pruning takes sparsities')
    shares = tuple(sparsities or SPARSITIES)
    if rounds is not None and (rounds > len(shares) or sparsities is not None):
        raise UsageError(f"there are {len(shares)} sparsities, one a round: give as many as there "
                         "are to be rounds")
    return shares[:rounds]


def _check(graph: Graph, name: str, classes: int, method: str, recipe: Recipe) -> None:
    """That the recipe is for this network, before anything is trained.
    Raises UsageError where it is not."""
    if (recipe.arch, recipe.method) != (name, method):
        raise UsageError(f"the recipe is for {recipe.arch} and {recipe.method} pruning, not for "
                         f"{name} and {method}")
    if method == "weight":
        with torch.device("meta"):
            if not conv_weights(models.create(name, classes)):
                raise UsageError(f"{name} has no convolution, and no linear layer before the last "
                                 f"one: there are no weights to prune")
        shares = list(recipe.rounds)
        if not shares or shares != sorted(shares) or not all(0 <= share < 1 for share in shares):
            raise UsageError(
                f"sparsities are shares from 0 to below 1 that never fall, not {shares}")
        return
    if graph.problem:
        raise UsageError(graph.problem)
    if not graph.cfg:
        raise UsageError(
            f"{name} has no convolution that can lose single filters, and no linear layer "
            "before the last one that can lose outputs; prune its weights instead")
    try:
        for rates in recipe.rounds:
            pruned_widths(graph.cfg, rates)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if graph.left_alone:
        print(f"{name}: {len(graph.left_alone)} layers keep all channels, since these are split, "
              f"grouped, shuffled, scaled or normalised together: {', '.join(graph.left_alone)}")


def _start(name: str, given: nn.Module, dataset: Dataset, folder: Path, trained: bool) -> Path:
    """Keep the weights that were given, so that every later call starts from the very same."""
    path = folder / START
    if path.is_file():
        kept = checkpoints.load(path, name).network.state_dict()
        same = all(torch.equal(kept[key], value) for key, value in given.state_dict().items())
        if trained and not same:
            raise UsageError(f"{folder} holds a run from other weights than these: use another "
                             "folder, or fresh=True")
        if not same:
            print(f"starting from the weights of the first call, which are kept in {path}")
        given.load_state_dict(kept)
        return path
    with held(folder):
        info = Info(stage="start", kind=BASELINE, round=0, data=dataset.describe(),
                    **provenance("cpu"))
        checkpoints.save(path, Snapshot(info.stage, models.create(name, dataset.num_classes)), info)
    return path


def _collect(folder: Path, last: Path) -> Compressed:
    run = load_run(folder)
    accuracies = {stage: statistics.fmean(run.values(stage)) for stage in run.record.stages()
                  if run.values(stage)}
    done = checkpoints.load(last)
    return Compressed(done.network, done.masks, folder, done.path, accuracies, report([folder]))
