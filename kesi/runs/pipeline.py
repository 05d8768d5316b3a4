"""The whole method: train, prune, retrain, repeat, distil the snapshots into the last one.

    runs/<dataset>-<arch>-<method>/run.json                      what is run here
                                  /seed0/{baseline,onecycle-1..5,usual-1..5,ensemble,kesi}/
                                  /report/                       the paper's table and its plots
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from kesi import checkpoints
from kesi.data import Dataset
from kesi.method import plan
from kesi.method.recipes import Recipe
from kesi.method.training import Options
from kesi.runs import steps
from kesi.runs.folder import move_aside, refuse_changes
from kesi.runs.layout import PRUNED
from kesi.runs.record import read_run
from kesi.runs.stage import Context, Watch, warn_of_another_device
from kesi.system import distributed
from kesi.system.errors import KesiError
from kesi.system.files import remove_leftovers, write_json
from kesi.system.locks import held
from kesi.system.provenance import device_name, provenance, recipe_hash

RUN = "run.json"


@dataclass(frozen=True)
class Settings:
    """One run: a recipe on a data set, for some seeds, into a folder.

    ``baseline``: the path of a trained network to start from instead of step 1; ``{seed}`` in it stands for
    the seed. ``pretrained``: ImageNet weights from which step 1 starts. ``compare`` adds the usual
    retraining, so that all rows of the paper's table exist. ``watch`` is told of every epoch and of the end of every
    training.
    """

    recipe: Recipe
    dataset: Dataset
    folder: Path
    seeds: Sequence[int] = (0,)
    compare: bool = False
    baseline: str | None = None
    pretrained: str | None = None
    options: Options = Options()
    fresh: bool = False
    watch: Watch | None = None


def run(settings: Settings) -> Path:
    """Run every stage that is not finished yet, for every seed; returns the run's folder.

    Raises UsageError where the folder holds a run with other settings, KesiError where another process has it.
    """
    if settings.baseline is not None:  # before anything is moved or written
        for seed in settings.seeds:
            checkpoints.find(settings.baseline.replace("{seed}", str(seed)))
    if settings.fresh and (aside := move_aside(settings.folder)):
        print(f"the run before was moved to {aside}")
    distributed.barrier()
    with held(settings.folder):
        _open(settings)
        clock = _Clock(settings)
        for seed in settings.seeds:
            context = Context(settings.dataset, seed, settings.options, watch=settings.watch)
            _one_seed(settings, context, settings.folder / f"seed{seed}", clock)
    return settings.folder


def _one_seed(settings: Settings, context: Context, folder: Path, clock: "_Clock") -> None:
    """The paper's algorithm (its section 3), top to bottom."""
    recipe = settings.recipe
    with clock.stage(context, "baseline") as here:
        baseline = _baseline(settings, here, folder / "baseline")

    snapshots = _chain(settings, context, clock, baseline, "onecycle", folder)
    ensemble = steps.measure_ensemble(context, snapshots, folder / "ensemble")
    context.say(f"seed {context.seed}, ensemble of {len(snapshots)} snapshots: test accuracy "
                f"{ensemble['test_accuracy']:.2f} %")

    if settings.compare:
        usual = _chain(settings, context, clock, baseline, "usual", folder)
        steps.measure_ensemble(context, usual, folder / "ensemble-usual", "ensemble-usual")

    with clock.stage(context, "kesi") as here:
        steps.distill(here, recipe.distill, recipe.temperature, snapshots[-1], snapshots, folder / "kesi")


def _chain(settings: Settings, context: Context, clock: "_Clock", baseline: Path, kind: str,
           folder: Path) -> list[Path]:
    """Prune and retrain, round after round, "onecycle" or "usual": the baseline and the snapshots that follow it."""
    recipe = settings.recipe
    stage = recipe.retrain if kind == "onecycle" else recipe.usual
    snapshots = [baseline]
    for number, amount in enumerate(recipe.rounds, start=1):
        with clock.stage(context, f"{kind}-{number}") as here:
            with distributed.main_first():
                pruned = _prune(snapshots[-1], recipe, amount, folder / f"{kind}-{number}", number)
            snapshots.append(steps.retrain(here, stage, pruned, folder / f"{kind}-{number}"))
    return snapshots


def _baseline(settings: Settings, context: Context, folder: Path) -> Path:
    recipe = settings.recipe
    if settings.baseline is None:
        return steps.train_baseline(context, recipe.arch, recipe.baseline, folder, settings.pretrained)
    source = settings.baseline.replace("{seed}", str(context.seed))
    return steps.adopt_baseline(context, checkpoints.find(source), recipe.arch, folder)


def _prune(parent: Path, recipe: Recipe, amount: object, folder: Path, number: int) -> Path:
    """Prune a snapshot, unless that was done: what follows from the same file stays the same file."""
    path = folder / PRUNED
    loaded = checkpoints.load(parent)
    if path.is_file():
        try:
            found = checkpoints.load(path).info
        except KesiError as error:
            found = {}
            warnings.warn(f"{error}: pruned again", stacklevel=2)
        if loaded.is_named_by(found.get("parent") or {}):
            steps.refuse_other_pruning(path, found, recipe.method, amount, number)
            return path
    return steps.prune(loaded, recipe.method, amount, path, number)


def _open(settings: Settings) -> None:
    """Note what is run, or check that it is the same as before."""
    folder, recipe, data = settings.folder, settings.recipe.to_dict(), settings.dataset.describe()
    remove_leftovers(folder / "report")
    before = read_run(folder / RUN) if (folder / RUN).is_file() else {}
    if before:
        refuse_changes(folder, before.get("recipe"), recipe)
        refuse_changes(folder, before, {"baseline": settings.baseline, "pretrained": settings.pretrained})
        refuse_changes(folder, before.get("data"), data)
        warn_of_another_device(before.get("device"), device_name(settings.options.device))
    write_json(folder / RUN, {
        "format": 1, "arch": recipe["arch"], "dataset": settings.dataset.name, "method": recipe["method"],
        "compare": settings.compare or before.get("compare", False), "rounds": len(recipe["rounds"]),
        "seeds": sorted({*settings.seeds, *before.get("seeds", [])}), "recipe": recipe,
        "recipe_hash": recipe_hash(recipe),
        "baseline": settings.baseline, "pretrained": settings.pretrained, "data": data,
        **provenance(settings.options.device)})


class _Clock:
    """Says before every stage how far the run is, and, from the second one on, how long it will take."""

    def __init__(self, settings: Settings):
        self._sizes = plan.sizes(settings.recipe, settings.dataset.num_classes, settings.dataset.image_size)
        planned = plan.stages(settings.recipe, self._sizes, settings.compare)
        images = len(settings.dataset.train)
        self._work = {one.name: one.work(images, self._sizes if one.name == "kesi" else ()) for one in planned}
        if settings.baseline is not None:
            self._work["baseline"] = 0.0
        self._total = len(self._work) * len(settings.seeds)
        self._left = sum(self._work.values()) * len(settings.seeds)
        self._started, self._number, self._seconds, self._done = 0.0, 0, 0.0, 0.0
        self._name = ""
        self._seeds = len(settings.seeds)
        self._watch = settings.watch

    def stage(self, context: Context, name: str) -> "_Clock":
        self._number, self._name = self._number + 1, name
        eta = ""
        if self._done and self._seconds:
            minutes = self._left * self._seconds / self._done / 60
            eta = f", about {minutes:.0f} min left" if minutes >= 1 else ""
        seed = f"seed {context.seed}, " if self._seeds > 1 else ""
        self._context = replace(context, where=f"{seed}{self._number}/{self._total}{eta}")
        return self

    def __enter__(self) -> Context:
        self._started = perf_counter()
        return self._context

    def __exit__(self, kind: type | None, *_exception: object) -> None:
        if kind is None and self._watch is not None:
            self._watch.after_stage()
        seconds, work = perf_counter() - self._started, self._work[self._name]
        self._left -= work
        if seconds > 0.5:  # a stage that was finished before tells nothing about the speed
            self._seconds, self._done = self._seconds + seconds, self._done + work
