"""Variants of the method against each other; a stage that several of them need is run once.

    <save>/seed0/<stage>-<12 digits>/   an ordinary stage; the digits are of all that decides its
                                        outcome: settings, parent, teachers
          /seed0/study.json             the variants that are finished, and the stages of each
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import Dataset
from kesi.method import algorithm
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.pruning.criteria import Evidence
from kesi.method.recipes import Recipe
from kesi.method.snapshot import Snapshot, digest_of
from kesi.method.training import Options
from kesi.runs import stage, steps
from kesi.runs.clock import Clock
from kesi.runs.record import RESULT, Result, read_result
from kesi.runs.stage import Context
from kesi.runs.study.variants import (
    Step,
    Variant,
    drawn_widths,
    keys_of,
    planned,
    pruning_of,
)
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, write_json
from kesi.system.locks import held
from kesi.system.seeds import MOST, derive

NOTE = "study.json"


@dataclass(frozen=True)
class Study:
    """Variants to be run on a data set with some seeds, into a folder."""

    variants: Mapping[str, Variant]
    dataset: Dataset
    folder: Path
    seeds: Sequence[int] = (0,)
    options: Options = Options()


@dataclass(frozen=True)
class Outcome:
    """What a variant gave with one seed: the result of its last training.

    ``images``: processed in all of its trainings, also those that it shares. ``stages``: the names
    of their folders.
    """

    result: Result
    images: int
    stages: list[str]


def run(study: Study) -> dict[str, dict[int, Outcome]]:
    """Run every stage that is not finished yet; returns the outcomes by variant and seed, also of
    the seeds that the folder holds besides, as finished() does.

    Raises KesiError where another process has one of the seeds.
    """
    for name, variant in study.variants.items():
        if variant.images == "unlabelled" and study.dataset.unlabelled is None:
            raise UsageError(f"{name!r} is taught on images without labels: say where they are "
                             "with --unlabelled")
    finished(study.folder, study.variants)  # a damaged file is told of before anything is trained
    plans = planned(study.variants, study.dataset.num_classes, study.dataset.image_size)
    images = len(study.dataset.train)
    clock = Clock({study.folder / f"seed{seed}" / key: one.work(images)
                   for seed in study.seeds for key, one in plans.items()})
    keys = {name: keys_of(variant) for name, variant in study.variants.items()}
    for seed in study.seeds:
        with held(study.folder / f"seed{seed}") as root:
            done: dict[str, Checkpoint] = {}
            for name, variant in study.variants.items():
                made: list[Checkpoint] = []
                for key, step in zip(keys[name], variant.steps(), strict=True):
                    if key not in done:
                        where = f"seed {seed}, {len(done) + 1}/{len(plans)}, {name}"
                        context = Context(study.dataset, seed, study.options, where=where,
                                          clock=clock)
                        done[key] = _stage(root, key, context, variant.recipe, step, made)
                    made.append(done[key])
                if distributed.is_main():
                    _note(study, root, name, [one.path.parent.name for one in made])
    distributed.barrier()
    return finished(study.folder, study.variants, study.dataset)


def finished(folder: Path, variants: Mapping[str, Variant],
             dataset: Dataset | None = None) -> dict[str, dict[int, Outcome]]:
    """The outcomes by variant and seed of all seeds in a study's folder of which all variants are
    finished; of other images than ``dataset`` none, if it is given.

    Raises KesiError where a file is damaged.
    """
    found: dict[str, dict[int, Outcome]] = {name: {} for name in variants}
    seeds = {path.name.removeprefix("seed"): path for path in Path(folder).glob("seed*")}
    numbers = sorted(int(text) for text in seeds if text.isdecimal() and text == str(int(text)))
    said = {name: variant.describe() for name, variant in variants.items()}
    data = None if dataset is None else dataset.describe()
    for seed in numbers:
        root = seeds[str(seed)]
        noted = _notes(root / NOTE)
        if all(name in noted and noted[name]["is"] == said[name]
               and (data is None or noted[name]["data"] == data)
               and all((root / one / RESULT).is_file() for one in noted[name]["stages"])
               for name in variants):
            for name in variants:
                found[name][seed] = _outcome(root, noted[name]["stages"])
    return found


def _notes(path: Path) -> dict[str, dict]:
    """What is finished of a seed, by the names of the variants."""
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(
            isinstance(one, dict) and isinstance(one.get("is"), dict)
            and isinstance(one.get("data"), dict) and isinstance(one.get("stages"), list)
            and one["stages"] and all(isinstance(stage, str) and Path(stage).name == stage
                                      for stage in one["stages"])
            for one in found.values()):
        raise KesiError(f"{path} is damaged: remove it, and the same command writes it anew")
    return found


def _note(study: Study, root: Path, name: str, stages: list[str]) -> None:
    """Note what came out of a variant."""
    now = {"is": study.variants[name].describe(), "data": study.dataset.describe(),
           "stages": stages}
    write_json(root / NOTE, {**_notes(root / NOTE), name: now})


def _stage(root: Path, key: str, context: Context, recipe: Recipe, step: Step,
           made: Sequence[Checkpoint]) -> Checkpoint:
    """One step of a variant, after those that are ``made``, in the folder of all that decides its
    outcome; the clock knew it by its ``key``."""
    device, pruning, drawn = context.options.device, pruning_of(recipe, step), context
    if step.draw:  # as the baseline of another seed would be
        drawn = replace(context, seed=derive(context.seed, "teacher", step.draw) % MOST)
    if step.start is None:
        start: Snapshot = algorithm.draw(recipe.arch, context.dataset.num_classes, drawn.seed,
                                         drawn_widths(recipe, step))
    else:
        start = made[step.start]
    if pruning is not None:
        evidence = Evidence(context.dataset, context.seed, device=device)
        start = algorithm.prune(start, recipe, recipe.rounds[step.round - 1], step.round, evidence)
    teachers = [made[one] for one in step.teachers]
    objective = recipe.objective
    if teachers:
        objective = Distillation(SnapshotEnsemble(teachers, device), recipe.loss, step.unlabelled)
    decides = {"name": step.name, "pruned": pruning,
               **drawn.settings(step.training, objective, start)}
    folder = root / f"{step.name}-{digest_of(decides)[:12]}"
    context.clock.settle(root / key, folder)
    if step.start is None:
        return stage.train(drawn, folder, step.name, step.training, lambda: start, objective)
    if pruning is None:
        return steps.distill(context, step.training, objective, start, folder)
    with distributed.main_first():
        kept = steps.keep(start, folder)
    return steps.retrain(context, step.training, kept, folder, step.name, objective)


def _outcome(root: Path, stages: Sequence[str]) -> Outcome:
    results = []
    for name in stages:
        result = read_result(root / name / RESULT)
        if not isinstance(result, Result):
            raise KesiError(f"{root / name / RESULT} is damaged: it is no training's")
        results.append(result)
    return Outcome(results[-1], sum(one.images for one in results), list(stages))
