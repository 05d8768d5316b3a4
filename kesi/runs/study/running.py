"""Variants of the method against each other; a stage that several of them need is run once.

    <save>/study.json                   the images of all seeds, and how they are computed with
          /seed0/<stage>-<12 digits>/   an ordinary stage; the digits are of all that decides its
                                        outcome: settings, parent, teachers
          /seed0/ensemble-<12 digits>/  what networks say together; the digits are of theirs
          /seed0/study.json             the variants that are finished, by a digest of what they
                                        are, and the stages of each
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kesi.checkpoints import fields
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import Dataset
from kesi.method import algorithm
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.pruning.criteria import Evidence
from kesi.method.recipes import Recipe
from kesi.method.snapshot import ENSEMBLE, Snapshot, digest_of
from kesi.method.training import Options
from kesi.runs import stage, steps
from kesi.runs.clock import Clock
from kesi.runs.folder import refuse_changes
from kesi.runs.record import RESULT, Ensemble, Result, read_result
from kesi.runs.stage import Context
from kesi.runs.study.variants import (
    Step,
    Variant,
    drawn_widths,
    keys_of,
    planned,
    pruning_of,
)
from kesi.runs.trial import try_out
from kesi.system import distributed, execution
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, write_json
from kesi.system.locks import held, held_by_one, in_use
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
    """What a variant gave with one seed: the result of its last training, or of the one whose
    network it hands over.

    ``images``: processed in all of its trainings, also those that it shares. ``stages``: the names
    of their folders. ``ensemble``: of all networks that were made before the last step, if there
    are several.
    """

    result: Result
    images: int
    stages: list[str]
    ensemble: Ensemble | None = None


def run(study: Study) -> None:
    """Run every stage that is not finished yet.

    Raises UsageError where the folder is a study of other images, or computed with otherwise;
    KesiError where another process has one of the seeds, and where a file of theirs is damaged.
    """
    for name, variant in study.variants.items():
        variant.check(name, study.dataset.unlabelled is not None, study.dataset.val is not None)
    tried(study.variants, study.dataset)
    plans = planned(study.variants, study.dataset.num_classes, study.dataset.image_size)
    images = len(study.dataset.train)
    clock = Clock({study.folder / f"seed{seed}" / key: one.work(images)
                   for seed in study.seeds for key, one in plans.items()})
    keys = {name: keys_of(variant) for name, variant in study.variants.items()}
    with distributed.main_first():
        _begin(study, keys, clock)
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
                _together(root, Context(study.dataset, seed, study.options), name,
                          variant.members(made))
                if distributed.is_main():
                    _note(study, root, name, [one.path.parent.name for one in made])
    distributed.barrier()


def tried(variants: Mapping[str, Variant], dataset: Dataset) -> None:
    """Try every variant on a few images. Raises UsageError where one will not do."""
    for name, variant in variants.items():
        try:
            counts = {len(step.teachers) for step in variant.steps()} - {0}
            try_out(variant.recipe, dataset, sorted(counts))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def _begin(study: Study, keys: Mapping[str, Sequence[str]], clock: Clock) -> None:
    """Look at all that may be in the way of any seed before the first is trained, and tell the
    clock what is finished."""
    said = _said(study.variants)
    for seed in study.seeds:
        root = study.folder / f"seed{seed}"
        if distributed.is_main() and (holder := in_use(root)) is not None:
            raise KesiError(f"{root} is in use by {holder}: wait for it, or leave out --seeds "
                            f"{seed}")
        for name, stages in _made(root, said).items():
            _outcome(root, stages, study.variants[name])
            for key, one in zip(keys[name], stages, strict=True):
                clock.settle(root / key, root / one)
    if distributed.is_main():
        with held_by_one(study.folder):
            before, whole = refuse_others(study.folder, study.dataset, study.options)
            if whole != before:
                write_json(study.folder / NOTE, whole)


def refuse_others(folder: Path, dataset: Dataset,
                  options: Options | None = None) -> tuple[dict, dict]:
    """What a study's folder says of its images, and what it says together with these.

    Raises UsageError where it is of other images, or is computed with otherwise than ``options``
    say.
    """
    now = {"data": dataset.describe()}
    if options is not None:
        now |= {"precision": execution.resolved(options.device, options.precision),
                "sync_bn": options.sync_bn}
    if dataset.unlabelled is not None:
        now["unlabelled"] = dataset.unlabelled.digest
    path, before = Path(folder) / NOTE, {}
    if path.exists():
        before = fields.checked(path, read_json(path), {"data": fields.described}, ("data",))
    whole = {**before, **now}
    refuse_changes(folder, {**now, **before}, whole, "use another --save")
    return before, whole


def finished(folder: Path, variants: Mapping[str, Variant],
             seeds: Collection[int] = ()) -> dict[str, dict[int, Outcome]]:
    """The outcomes by variant and seed of all seeds in a study's folder of which all variants are
    finished.

    Raises KesiError where a file of one of ``seeds`` is damaged; of others it is said, and they
    are left out.
    """
    found: dict[str, dict[int, Outcome]] = {name: {} for name in variants}
    said = _said(variants)
    roots = {path.name.removeprefix("seed"): path for path in Path(folder).glob("seed*")}
    for seed in sorted(int(text) for text in roots if text.isdecimal() and text == str(int(text))):
        root = roots[str(seed)]
        try:
            made = _made(root, said)
            if len(made) == len(variants):
                outcomes = {name: _outcome(root, stages, variants[name])
                            for name, stages in made.items()}
                for name in variants:
                    found[name][seed] = outcomes[name]
        except KesiError as error:
            if seed in seeds:
                raise
            warnings.warn(f"seed {seed} is left out: {error}", stacklevel=2)
    return found


def is_finished(folder: Path, variants: Mapping[str, Variant], seed: int) -> bool:
    """Whether all variants are, of a seed. Raises KesiError where its note is damaged."""
    return len(_made(Path(folder) / f"seed{seed}", _said(variants))) == len(variants)


def _said(variants: Mapping[str, Variant]) -> dict[str, tuple[dict, int]]:
    """What variants are, and of how many stages, by name; once for all seeds, since it reads the
    code of losses and criteria."""
    return {name: (one.describe(), len(one.steps())) for name, one in variants.items()}


def _made(root: Path, said: Mapping[str, tuple[dict, int]]) -> dict[str, list[str]]:
    """The stages of those variants, as _said() says them, that a seed has finished."""
    noted = _notes(root / NOTE)
    stages = {name: noted[key]["stages"] for name, (now, _) in said.items()
              if (key := digest_of(now)[:12]) in noted}
    return {name: made for name, made in stages.items() if len(made) == said[name][1]
            and all((root / one / RESULT).is_file() for one in made)}


def _notes(path: Path) -> dict[str, dict]:
    """What is finished of a seed, also of other studies in this folder."""
    if not path.exists():
        return {}
    found = read_json(path)
    noted = {"is": fields.dictionary, "stages": fields.several(fields.folder_name)}
    if not isinstance(found, dict) or not all(
            isinstance(one, dict) and all(check(one.get(name)) for name, check in noted.items())
            for one in found.values()):
        raise KesiError(f"{path} is damaged: remove it, and the same command writes it anew")
    return found


def _note(study: Study, root: Path, name: str, stages: list[str]) -> None:
    """Note what came out of a variant."""
    said = study.variants[name].describe()
    now = {"is": said, "stages": stages}
    write_json(root / NOTE, {**_notes(root / NOTE), digest_of(said)[:12]: now})


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
               **drawn.settings(step.training, objective, recipe.arch, start)}
    folder = root / f"{step.name}-{digest_of(decides)[:12]}"
    context.clock.settle(root / key, folder)
    if step.start is None:
        return stage.train(drawn, folder, step.name, step.training, lambda: start, objective,
                           arch=recipe.arch)
    if pruning is None:
        return steps.distill(context, step.training, objective, start, folder)
    with distributed.main_first():
        kept = steps.keep(start, folder)
    return steps.retrain(context, step.training, kept, folder, step.name, objective)


def _together(root: Path, context: Context, variant: str, members: Sequence[Checkpoint]) -> None:
    """Evaluate the ensemble of what a variant made before its last step, once for all variants."""
    if len(members) > 1:
        folder = root / _ensemble([one.digest for one in members])
        known = (folder / RESULT).is_file()
        found = steps.measure_ensemble(context, members, folder)
        if not known:
            context.say(f"seed {context.seed}, {variant}, ensemble of {len(members)} networks: "
                        f"test accuracy {found.test_accuracy:.2f} %")


def _ensemble(digests: Sequence[str]) -> str:
    """The folder of the ensemble of the networks of these digests."""
    return f"{ENSEMBLE}-{digest_of(list(digests))[:12]}"


def _outcome(root: Path, stages: Sequence[str], variant: Variant) -> Outcome:
    results = []
    for name in stages:
        result = read_result(root / name / RESULT)
        if not isinstance(result, Result):
            raise KesiError(f"{root / name / RESULT} is damaged: it is no training's")
        results.append(result)
    members = [one.network_digest for one in variant.members(results)]
    path, ensemble = root / _ensemble(members) / RESULT, None
    if path.is_file() and not isinstance(ensemble := read_result(path), Ensemble):
        raise KesiError(f"{path} is damaged: it is no ensemble's")
    last = results[-1]
    if variant.hand_over == "best":  # the last one where they are alike
        alike = [one for one in reversed(results)
                 if (one.params, one.nonzero_params) == (last.params, last.nonzero_params)]
        last = max(alike, key=lambda one: one.val_accuracy)
    return Outcome(last, sum(one.images for one in results), list(stages), ensemble)
