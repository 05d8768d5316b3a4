"""The whole method: train, prune, retrain, repeat, distil the snapshots into the last one.

    runs/<dataset>-<arch>-<method>/run.json                      what is run here
                                  /seed0/{baseline,onecycle-1..5,usual-1..5,ensemble,kesi}/
                                  /report/                       the paper's table and its plots
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.pretrained import load_pretrained
from kesi.checkpoints.records import encode
from kesi.data import Dataset
from kesi.method import algorithm, plan
from kesi.method.objectives import CrossEntropy, Objective, check_labels
from kesi.method.pruning.criteria import Evidence
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training
from kesi.method.snapshot import BASELINE, ENSEMBLE, KESI, Pruned, Snapshot, chain, ensemble_name
from kesi.method.training import Options
from kesi.runs import steps
from kesi.runs.clock import Clock
from kesi.runs.folder import move_aside, note_images, refuse_changes
from kesi.runs.record import RUN, STUDY, Faster, Fitted, RunRecord, read_run
from kesi.runs.results import handed_over, load_run
from kesi.runs.stage import Context, Watch, warn_of_another_device
from kesi.runs.trial import try_out
from kesi.system import distributed
from kesi.system.describe import check_plain
from kesi.system.errors import UsageError
from kesi.system.files import remove_leftovers, write_json
from kesi.system.locks import held, held_for_all
from kesi.system.provenance import device_name, provenance, recipe_hash


@dataclass(frozen=True)
class Settings:
    """One run: a recipe on a data set, for some seeds, into a folder.

    ``baseline``: the path of a trained network to start from instead of step 1; ``{seed}`` in it
    stands for the seed. With ``shared`` it is a folder in which step 1 is done, unless another run
    has done it there already: runs of both methods start from one baseline. ``pretrained``:
    ImageNet weights from which step 1 starts. ``watch`` is told of every epoch and of the end of
    every training. ``latency``, ``budget``: see RunRecord. ``choose``: note which network is handed
    over (results.handed_over). ``root``: where the images are, which the run notes for those who
    look at it later.
    """

    recipe: Recipe
    dataset: Dataset
    folder: Path
    seeds: Sequence[int] = (0,)
    baseline: str | None = None
    shared: bool = False
    pretrained: str | None = None
    options: Options = Options()
    fresh: bool = False
    watch: Watch | None = None
    latency: Faster | None = None
    budget: Fitted | None = None
    choose: bool = False
    root: str | Path | None = None


def run(settings: Settings) -> Path:
    """Run every stage that is not finished yet, for every seed; returns the run's folder.

    Raises UsageError where the folder holds a run with other settings, KesiError where another
    process has it.
    """
    if settings.baseline is not None and not settings.shared:  # before anything is moved or written
        for seed in settings.seeds:
            found = checkpoints.find(_source(settings, seed))
            given = steps.given_baseline(found, settings.dataset, settings.recipe.arch)
            if "{seed}" not in settings.baseline and not settings.fresh:  # one for all seeds
                for begun in settings.folder.glob(f"seed*/{BASELINE}"):
                    steps.refuse_other_baseline(begun, given)
            if settings.fresh and found.resolve().is_relative_to(settings.folder.resolve()):
                raise UsageError(f"{found} lies in the run that --fresh moves aside: use another "
                                 "--save")
    check_recipe(settings.recipe)
    recipe = settings.recipe
    check_labels(recipe.loss, settings.dataset.unlabelled is not None, recipe.distillation.mixup)
    for training in (recipe.baseline, *recipe.retrainings.values()):
        check_labels(recipe.objective, False, training.mixup)
    try_out(settings.recipe, settings.dataset)
    begun = not settings.fresh and (settings.folder / RUN).exists()
    if settings.pretrained is not None and not begun:  # run.json would refuse another one later
        start = algorithm.draw(recipe.arch, settings.dataset.num_classes, 0)
        with distributed.main_first():
            load_pretrained(start.network, settings.pretrained)
    if settings.fresh and (aside := move_aside(settings.folder)):
        print(f"the run before was moved to {aside}")
    distributed.barrier()
    with held(settings.folder):
        _open(settings)
        if settings.root is not None:
            note_images(settings.folder, settings.dataset.name, settings.root)
        context = Context(settings.dataset, 0, settings.options, clock=_clock(settings),
                          watch=settings.watch)
        for place, seed in enumerate(settings.seeds):
            _one_seed(settings, _InFolder(settings, replace(context, seed=seed), place))
        if settings.choose:
            _choose(settings.folder)
    return settings.folder


def check_recipe(recipe: Recipe) -> None:
    """Raises UsageError for a recipe that is not for a run."""
    if recipe.ranked:
        raise UsageError("a ranking over all layers decides its widths while it runs, and a run "
                         "says them before: it is for studies, or for kesi.method.algorithm")
    check_plain("the recipe", recipe.describe())


def _one_seed(settings: Settings, train: "_InFolder") -> None:
    """Section 3 of the paper, as kesi.method.algorithm tells it,
    with the ensembles measured between."""
    recipe, context = settings.recipe, train.context
    baseline = train.baseline()
    evidence = Evidence(settings.dataset, context.seed, device=settings.options.device)
    chains = {}
    for retraining in recipe.retrainings:
        chains[retraining] = algorithm.iterate(recipe, baseline, train, evidence, retraining)
        name = ensemble_name(retraining, recipe.retrainings)
        ensemble = steps.measure_ensemble(context, chains[retraining], train.folder / name, name)
        if name == ENSEMBLE:
            context.say(f"seed {context.seed}, ensemble of {len(ensemble.members)} snapshots: test "
                        f"accuracy {ensemble.test_accuracy:.2f} %")
    algorithm.distil(recipe, next(iter(chains.values())), train, settings.options.device,
                     settings.dataset.unlabelled is not None)


@dataclass(frozen=True)
class _InFolder:
    """The algorithm's ``train``, a stage in a folder each:
    finished ones are loaded, interrupted ones continue."""

    settings: Settings
    context: Context
    place: int  # of the seed, among all

    @property
    def folder(self) -> Path:
        return self.settings.folder / f"seed{self.context.seed}"

    def baseline(self) -> Checkpoint:
        """Step 1, or what is taken instead of it."""
        settings, folder = self.settings, self.folder / BASELINE
        with self._stage(BASELINE) as here:
            if settings.baseline is None:
                return steps.train_baseline(here, settings.recipe.arch, settings.recipe.baseline,
                                            folder, settings.pretrained,
                                            settings.recipe.objective)
            source = _source(settings, here.seed)
            if settings.shared:
                # the other run may be at it; not the seed's own folder, which the training holds
                with held_for_all(source.with_name(f".{source.name}-waiting")):
                    steps.train_baseline(replace(here, fresh=False), settings.recipe.arch,
                                         settings.recipe.baseline, source, settings.pretrained,
                                         settings.recipe.objective)
            return steps.adopt_baseline(here, checkpoints.find(source), settings.recipe.arch,
                                        folder)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Context]:
        """The context of a stage, which says where in the run it stands."""
        names = [BASELINE, *(one for retraining in self.settings.recipe.retrainings for one in
                             chain(retraining, len(self.settings.recipe.rounds))[1:]), KESI]
        number = self.place * len(names) + names.index(name) + 1
        seed = f"seed {self.context.seed}, " if len(self.settings.seeds) > 1 else ""
        total = len(names) * len(self.settings.seeds)
        yield replace(self.context, where=f"{seed}{number}/{total}")
        if self.context.watch is not None:
            self.context.watch.after_stage()

    def __call__(self, name: str, start: Snapshot, training: Training,
                 objective: Objective = CrossEntropy()) -> Checkpoint:
        folder = self.folder / name
        with self._stage(name) as here:
            if not isinstance(start, Pruned):
                return steps.distill(here, training, objective, start, folder)
            with distributed.main_first():
                pruned = steps.keep(start, folder)
            return steps.retrain(here, training, pruned, folder, name, objective)


def _choose(folder: Path) -> None:
    """Note for every finished seed which network is handed over."""
    found = load_run(folder)
    chosen = {seed: handed_over(found, seed)
              for seed, results in sorted(found.seeds.items()) if KESI in results}
    write_json(folder / RUN, encode(replace(found.record, handed_over={
        f"seed{seed}": stage for seed, stage in chosen.items()})))
    for seed, stage in chosen.items():
        results = found.seeds[seed]
        other = "" if stage == KESI else f"; {KESI} has {results[KESI].val_accuracy:.2f} %"
        print(f"handed over: {folder / f'seed{seed}' / stage}, with "
              f"{results[stage].val_accuracy:.2f} % of the held-out images right{other}",
              flush=True)


def _open(settings: Settings) -> None:
    """Note what is run, or check that it is the same as before.

    Retrainings may be added to those of before, and none is forgotten.
    """
    folder, recipe, data = settings.folder, settings.recipe.describe(), settings.dataset.describe()
    remove_leftovers(folder / "report")
    seeds, latency, budget = set(settings.seeds), settings.latency, settings.budget
    chosen: dict[str, str] = {}
    if (folder / STUDY).exists() and not (folder / RUN).exists():
        raise UsageError(f"{folder} holds a study, and no run: use another --save")
    more = unlabelled.digest if (unlabelled := settings.dataset.unlabelled) else None
    baseline = _as_noted(settings.baseline, folder)
    if (folder / RUN).is_file():
        before = read_run(folder / RUN)
        old, new = before.recipe["trainings"], recipe["trainings"]
        refuse_changes(folder, {name: old[name] for name in old if name in new},
                       {name: new[name] for name in new if name in old})
        refuse_changes(folder, before.recipe, recipe | {"trainings": old})
        if not _same_baseline(before.baseline, baseline, folder):
            refuse_changes(folder, {"baseline": before.baseline}, {"baseline": baseline})
        refuse_changes(folder, {"pretrained": before.pretrained},
                       {"pretrained": settings.pretrained})
        refuse_changes(folder, before.data, data)
        refuse_changes(folder, {"images without labels": before.unlabelled},
                       {"images without labels": more})
        warn_of_another_device(before.device, device_name(settings.options.device))
        last = new.pop(KESI)
        recipe["trainings"] = {**new, **{name: old[name] for name in old
                                         if name not in (*new, KESI)}, KESI: last}
        seeds |= set(before.seeds)
        chosen = before.handed_over  # until _choose() has looked at all of them again
        latency, budget = latency or before.latency, budget or before.budget
    write_json(folder / RUN, encode(RunRecord(
        arch=recipe["arch"], dataset=settings.dataset.name, method=recipe["method"], recipe=recipe,
        seeds=sorted(seeds), recipe_hash=recipe_hash(recipe), data=data, baseline=baseline,
        pretrained=settings.pretrained, fitted_to=settings.recipe.fitted_to, latency=latency,
        budget=budget, unlabelled=more, unlabelled_images=unlabelled and len(unlabelled),
        handed_over=chosen,
        **provenance(settings.options.device))))


def _as_noted(baseline: str | None, folder: Path) -> str | None:
    """The path of a baseline as run.json has it: from the run's folder where it lies in or beside
    that, so that both may move and be named in other ways; else absolute."""
    if baseline is None:
        return None
    path, home = Path(baseline).resolve(), folder.resolve()
    if path.is_relative_to(home.parent):
        path = Path(os.path.relpath(path, home))
    return path.as_posix()


def _same_baseline(before: str | None, now: str | None, folder: Path) -> bool:
    """Whether a run that noted one baseline may go on with another, which is noted as ``now``: of
    one network for all seeds that is decided by the network, see run(). Earlier versions noted a
    path as it was given."""
    if now in (before, _as_noted(before, folder)):
        return True
    return before is not None and now is not None and "{seed}" not in before + now


def _clock(settings: Settings) -> Clock:
    """Of all trainings of a run, with their MACs."""
    recipe, images = settings.recipe, len(settings.dataset.train)
    sizes = plan.sizes(recipe, settings.dataset.num_classes, settings.dataset.image_size)
    work = {}
    for seed in settings.seeds:
        for one in plan.stages(recipe, sizes):
            folder = settings.folder / f"seed{seed}" / one.name
            if one.name == BASELINE and settings.baseline is not None:
                if not settings.shared:
                    continue
                folder = _source(settings, seed)
            work[folder] = one.work(images)
    return Clock(work)


def _source(settings: Settings, seed: int) -> Path:
    """Where the baseline of a seed comes from, or is trained for several runs."""
    return Path(settings.baseline.replace("{seed}", str(seed)))
