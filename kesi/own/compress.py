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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kesi import checkpoints, models
from kesi.checkpoints import fields
from kesi.checkpoints.records import Info
from kesi.data import Dataset
from kesi.data.arrays import Pairs, from_arrays
from kesi.method import recipes
from kesi.method.objectives import Loss, Objective
from kesi.method.pruning import Masks
from kesi.method.pruning.allocation import ALLOCATIONS, LATENCY
from kesi.method.recipes import Recipe, fits
from kesi.method.snapshot import BASELINE, KESI, Snapshot
from kesi.method.training import Epoch, Options
from kesi.own import arguments, checks
from kesi.own.registry import Factory, register, reserved
from kesi.report.report import Report, report
from kesi.runs import pipeline
from kesi.runs.folder import move_aside
from kesi.runs.record import METRICS, RUN, Faster, read_epochs
from kesi.runs.results import load_run
from kesi.system import execution
from kesi.system.errors import UsageError, controls, first_line
from kesi.system.locks import held
from kesi.system.provenance import provenance
from kesi.tools.targets import budget as budgets
from kesi.tools.targets import faster
from kesi.tools.targets.ways import ROUND_TO

START = "start.pth.tar"


@dataclass(frozen=True)
class Compressed:
    """What compress() made.

    ``network``: the compressed network, of the class that was given, in eval mode on the CPU;
    ``masks`` of its weights, or None after filter pruning. ``accuracies``: in percent on the test
    images by stage ("baseline", "onecycle-1" ..., "ensemble", "kesi"), means over the seeds.
    ``checkpoint``: the file of ``network``, which is that of the first seed; ``stage``: which one
    it is, "kesi" unless a snapshot of its size is clearly better on held-out images. ``latency``:
    where it was asked for, that of the baseline and of ``network``, in ``seconds``.
    """

    network: nn.Module
    masks: Masks | None
    folder: Path
    checkpoint: Path
    accuracies: dict[str, float]
    report: Report
    stage: str = KESI
    latency: Faster | None = None


def compress(model: nn.Module | Factory, train: Pairs | Dataset, test: Pairs | None = None,
             method: str = "filter", *, name: str | None = None, folder: str | Path | None = None,
             rounds: int | None = None, rates: float | dict[str, float] | None = None,
             sparsities: Sequence[float] | None = None, epochs: tuple[int, int, int] | None = None,
             batch_size: int | None = None, lr: float | None = None,
             recipe: Recipe | str | None = None,
             seeds: Sequence[int] = (0,), trained: bool = False, compare: bool = False,
             flip: bool | None = None, options: Options | None = None, fresh: bool = False,
             ignore: Sequence[str] = (), mean: float | Sequence[float] | None = None,
             std: float | Sequence[float] | None = None, accuracy: float | None = None,
             criterion: str | None = None, loss: str | Loss | None = None,
             objective: Objective | None = None, val_fraction: float = 0.0,
             on_epoch: Callable[[Epoch], object] | None = None,
             macs: float | None = None, params: float | None = None,
             latency: float | str | None = None, latency_batch: int = 1,
             sparsity: float | None = None, allocation: str = ALLOCATIONS[0],
             round_to: int = ROUND_TO, budget: float | str | None = None,
             unlabelled: torch.Tensor | np.ndarray | None = None) -> Compressed:
    """Train, prune, retrain, repeat and distil a network;
    the same call with the same folder continues.

    ``model``: a network, which stays as it is and whose weights are where training starts (with
    ``trained`` they are the baseline, and step 1 is left out); or a function that builds one, with
    weights drawn anew for each seed. ``train``, ``test``: pairs of uint8 images and labels,
    mirrored in training unless ``flip=False``, see kesi.data.arrays.from_arrays; or a
    kesi.data.Dataset and nothing. ``method``: "filter" or "weight".

    ``rounds`` of pruning (default: five). ``rates``: the share of filters that goes in a round, one
    for all or by the name of a convolution, where those not named keep theirs (default: 0.2).
    ``sparsities``: the share of zero weights after each round. ``epochs`` of baseline, retraining
    and distillation, ``batch_size``, and ``lr``, the highest rate of baseline and one-cycle
    retraining, replace those of the recipe, whose epochs are otherwise made to fit the number of
    images (docs/data.md); ``recipe``: a name in RECIPES of kesi.method.recipes, or a whole one
    (default: by the number of images, docs/beyond.md). ``compare``:
    also retrain the usual way.

    A target instead of rates: ``macs`` or ``params``, the share that is to be left after the last
    round, 0.5 for half; ``latency``: how many times as fast the network is to be, 2 or "2x", as
    measured on one thread here with ``latency_batch`` images at a time, in onnxruntime if it is
    installed, else in torch; ``sparsity``: the share of zero weights after the last round. Layers
    lose filters in proportion to ``rates``, or all alike with ``allocation="uniform"``; widths
    become multiples of ``round_to``. ``budget``: the time that there is, "45m" or seconds; all
    epochs are scaled down until the whole fits, by the speed of a few training steps here.

    ``ignore``: the names of layers, or of what holds them, that keep all filters. ``mean``, ``std``
    of each channel of images scaled to 0..1, which a network that was trained elsewhere expects
    (default: those of the training images). ``accuracy``: what a ``trained`` network reaches on the
    test images in percent, as far as you know: one that is more than five points below, or without
    it one that answers like chance, is refused with the likeliest reason.

    ``criterion``: what is pruned first, a name in kesi.method.pruning.criteria. ``loss``: what the
    last network is told by its teachers, a name in LOSSES of kesi.method.objectives, or a function
    (logits (B, C), teachers' logits (K, B, C), labels (B,)) -> mean over the batch. ``objective``:
    what baseline and retrainings minimise instead of the cross-entropy, a function (logits, images,
    labels) -> mean. Functions are named ones or frozen dataclasses, and recorded with a digest of
    their code. ``val_fraction``: the share of every training class that is held out; a last
    snapshot that is clearly better on it than the distilled network is handed over instead
    (kesi.runs.results.clearly_above). ``on_epoch``: told of every epoch, a
    kesi.method.training.Epoch; an exception in it ends the run, which the same call continues.

    ``unlabelled``: more images without labels, an array; the last step draws as many an epoch as it
    would without, from these and the training images.

    ``name``: what the network is called in checkpoints (default: its class). ``folder``: default
    runs/<data>-<name>-<method>; ``fresh`` moves what is there aside. ``options``: the machine
    (default: a GPU if there is one). Raises UsageError for arguments that do not fit, KesiError for
    files.
    """
    arguments.check_arguments(model, method, rounds, epochs, batch_size, lr, seeds)
    arguments.check_kinds(name=(name, (str,)), folder=(folder, (str, Path)),
                          recipe=(recipe, (str, Recipe)), options=(options, (Options,)))
    epochs = None if epochs is None else tuple(map(operator.index, epochs))
    batch_size = batch_size and operator.index(batch_size)
    target = arguments.target(method, {"macs": macs, "params": params, "latency": latency,
                                       "sparsity": sparsity}, sparsities)
    arguments.check_allocation(target and target[0], allocation, round_to, latency_batch,
                               rates is not None or bool(ignore))
    seconds = None if budget is None else budgets.duration(
        f"{budget}s" if fields.number(budget) else str(budget))
    given = None
    if isinstance(model, nn.Module):
        checks.check_weights(model)
        checks.check_whole(model)
        given = _copy(model)
    if on_epoch is not None and not callable(on_epoch):
        raise UsageError(f"on_epoch is a function, not a {type(on_epoch).__name__}")
    if given is None and trained:
        raise UsageError(
            "trained=True needs a network with its weights, not a function that builds one")
    if accuracy is not None and not trained:
        raise UsageError("accuracy is that of a network that is trained already: leave it out, or "
                         "say trained=True")
    dataset = arguments.normalised(_dataset(train, test, flip, val_fraction, unlabelled), mean, std)
    name = name or _name(model)
    graph = register(name, model if given is None else lambda: copy.deepcopy(given),
                     dataset.num_classes, dataset.image_size, len(dataset.mean))
    if method == "filter" and graph.problem:
        raise UsageError(graph.problem)
    if recipe is None or isinstance(recipe, str):
        count = rounds if sparsity is None else None  # which is reached in any number of them
        amounts = arguments.amounts(graph, method, count, rates, sparsities)
        if ignore:
            amounts = arguments.without(graph, method, amounts, ignore)
        images = len(dataset.train) + len(dataset.val or ())
        paper = recipes.recipe(name, dataset.name, method)
        if recipe is None:
            recipe = recipes.suited(dataset.name, paper.family, images)
            if recipe != recipes.PAPER:
                print(recipes.choice(recipe, images))
        recipe = recipes.named(recipe, paper)
        if epochs is None and fits(dataset.name):
            recipe = recipe.fitted(images)
        recipe = recipe.changed(epochs, batch_size=batch_size, lr=lr, compare=compare)
        recipe = replace(recipe, rounds=amounts)
    else:
        fixed = {"ignore": ignore or None, "rounds": rounds, "rates": rates,
                 "sparsities": sparsities, "compare": compare or None}
        more = [target[0]] if target else []
        if more := more + [name for name, value in fixed.items() if value is not None]:
            raise UsageError("a whole recipe says itself what every layer loses, and how it is "
                             f"retrained: leave {' and '.join(more)} out")
        recipe = recipe.changed(epochs, batch_size=batch_size, lr=lr)
    recipe = arguments.taught(recipe, dataset, criterion, loss, objective)
    arguments.check_recipe(graph, name, dataset.num_classes, method, recipe)
    folder = Path("runs") / f"{dataset.name}-{name}-{method}" if folder is None else Path(folder)
    if controls(str(folder)):
        raise UsageError(f"the folder {str(folder)!r:.100} has a control character in its name")
    options = options or Options(execution.device_for("auto"))
    inputs, known = (dataset.num_classes, dataset.image_size), None if fresh else folder
    measured = fitted = None
    if target is not None and target[0] == LATENCY:
        recipe, measured = faster.faster(recipe, target[1], *inputs, allocation, round_to,
                                         latency_batch, known)
    elif target is not None:
        recipe = recipe.towards(*target, *inputs, allocation, round_to, rounds=rounds)
    if trained and (fresh or not _begun(folder)):
        checks.check_baseline(copy.deepcopy(given), dataset, accuracy, options.device)
    if seconds is not None:
        fitted = budgets.within(seconds, [recipe], dataset, len(seeds), options, trained,
                                [known] if known else [])
        print(budgets.told(fitted), flush=True)
        recipe = recipe.changed(scale=fitted.scale)
    if fresh and (aside := move_aside(folder)):
        print(f"the run before was moved to {aside}")
    start = None if given is None else _start(name, given, dataset, folder, trained)
    seeds = tuple(map(operator.index, seeds))
    if recipe.fitted_to is not None and fitted is None:
        print(recipe.fit())
    pipeline.run(pipeline.Settings(recipe, dataset, folder, seeds, str(start) if trained else None,
                                   options=options, watch=on_epoch and _Told(on_epoch),
                                   latency=measured, budget=fitted, choose=dataset.val is not None))
    done = _collect(folder, seeds[0])
    return replace(done, latency=measured and faster.reached(measured, done.checkpoint.parents[1]))


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


def _dataset(train: Pairs | Dataset, test: Pairs | None, flip: bool | None,
             val_fraction: float, unlabelled: torch.Tensor | np.ndarray | None) -> Dataset:
    if isinstance(train, Dataset):
        for name, value, what in (("test", test, "test images"),
                                  ("unlabelled", unlabelled, "unlabelled images"),
                                  ("val_fraction", val_fraction or None, "held-out images"),
                                  ("flip", flip, "augmentation")):
            if value is not None:
                raise UsageError(f"a kesi.data.Dataset has its {what} already: leave {name} out, "
                                 "and give it where the data set is made")
        return train
    if test is None:
        raise UsageError("test images are missing: give test=(images, labels)")
    arguments.check_kinds(flip=(flip, (bool,)))
    return from_arrays(train, test, flip=flip is None or flip, val_fraction=val_fraction,
                       unlabelled=unlabelled)


def _start(name: str, given: nn.Module, dataset: Dataset, folder: Path, trained: bool) -> Path:
    """Keep the weights that were given, so that every later call starts from the very same."""
    path = folder / START
    if _begun(folder):
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


def _begun(folder: Path) -> bool:
    """Whether a run starts from the weights in a folder: a call that was refused left them, too."""
    return (folder / START).is_file() and (folder / RUN).is_file()


@dataclass(frozen=True)
class _Told:
    """A kesi.runs.stage.Watch that passes every epoch on."""

    on_epoch: Callable[[Epoch], object]

    def after_epoch(self, folder: Path) -> None:
        self.on_epoch(read_epochs(folder / METRICS)[-1])

    def after_stage(self) -> None:
        pass


def _collect(folder: Path, seed: int) -> Compressed:
    run = load_run(folder)
    stage = run.record.handed_over.get(f"seed{seed}", KESI)
    accuracies = {stage: statistics.fmean(run.values(stage)) for stage in run.record.stages()
                  if run.values(stage)}
    done = checkpoints.load(folder / f"seed{seed}" / stage)
    return Compressed(done.network, done.masks, folder, done.path, accuracies, report([folder]),
                      stage)
