"""Variants of the method against each other; a stage that several of them need is run once.

    <save>/study.json                   the images of all seeds, and how they are computed with
          /seed0/<stage>-<12 digits>/   an ordinary stage; the digits are of all that decides its
                                        outcome: settings, parent, teachers
          /seed0/ensemble-<12 digits>/  what networks say together; the digits are of theirs
          /seed0/study.json             the variants that are finished, by a digest of what they
                                        are, and the stages of each
"""

import warnings
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
from kesi.runs.folder import note_images, refuse_changes
from kesi.runs.record import RESULT, RUN, STUDY
from kesi.runs.stage import Context
from kesi.runs.study.outcomes import (
    ensemble_folder,
    made_of,
    noted,
    notes,
    outcome,
    said_of,
)
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
from kesi.system.errors import KesiError, PruningFailed, TrainingFailed, UsageError
from kesi.system.files import write_json
from kesi.system.locks import held, held_by_one, in_use
from kesi.system.seeds import MOST, derive


@dataclass(frozen=True)
class Study:
    """Variants to be run on a data set with some seeds, into a folder. ``root``: where the images
    are, noted for whoever looks at a stage."""

    variants: Mapping[str, Variant]
    dataset: Dataset
    folder: Path
    seeds: Sequence[int] = (0,)
    options: Options = Options()
    root: str | None = None


def run(study: Study) -> dict[str, str]:
    """Run every stage that is not finished yet; returns what went wrong, by the variant: one whose
    training fails, such as by diverging, stops no other.

    Raises UsageError where the folder is a study of other images, or computed with otherwise;
    KesiError where another process has one of the seeds, and where a file of theirs is damaged.
    """
    failed: dict[str, str] = {}
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
            done: dict[str, Checkpoint | str] = {}
            for name, variant in study.variants.items():
                made: list[Checkpoint] = []
                context = Context(study.dataset, seed, study.options, clock=clock)
                for key, step in zip(keys[name], variant.steps(), strict=True):
                    if key not in done:
                        where = f"seed {seed}, {len(done) + 1}/{len(plans)}, {name}"
                        done[key] = _attempt(root, key, replace(context, where=where),
                                             variant.recipe, step, made)
                    if isinstance(done[key], str):
                        failed.setdefault(name, f"{name}, seed {seed}: {done[key]}")
                        break
                    made.append(done[key])
                else:
                    _together(root, context, name, variant.members(made))
                    if distributed.is_main():
                        _note(study, root, name, [one.path.parent.name for one in made])
    distributed.barrier()
    return failed


def tried(variants: Mapping[str, Variant], dataset: Dataset) -> None:
    """Try every variant on a few images. Raises UsageError where one will not do."""
    for name, variant in variants.items():
        try:
            made = variant.steps()
            try_out(variant.recipe, dataset, sorted({len(one.teachers) for one in made} - {0}),
                    any(one.unlabelled for one in made))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def _begin(study: Study, keys: Mapping[str, Sequence[str]], clock: Clock) -> None:
    """Look at all that may be in the way of any seed before the first is trained, and tell the
    clock what is finished."""
    said = said_of(study.variants)
    for seed in study.seeds:
        root = study.folder / f"seed{seed}"
        if distributed.is_main() and (holder := in_use(root)) is not None:
            raise KesiError(f"{root} is in use by {holder}: wait for it, or leave out --seeds "
                            f"{seed}")
        for name, stages in made_of(root, said).items():
            try:
                outcome(root, stages, study.variants[name])
            except KesiError as error:
                warnings.warn(f"{error}: what is damaged is made again", stacklevel=2)
                continue
            for key, one in zip(keys[name], stages, strict=True):
                clock.settle(root / key, root / one)
    if distributed.is_main():
        with held_by_one(study.folder):
            before, whole = refuse_others(study.folder, study.dataset, study.options)
            if whole != before:
                write_json(study.folder / STUDY, whole)
            if study.root is not None:
                note_images(study.folder, study.dataset.name, study.root)


def refuse_others(folder: Path, dataset: Dataset,
                  options: Options | None = None) -> tuple[dict, dict]:
    """What a study's folder says of its images, and what it says together with these.

    Raises UsageError where it is of other images, or is computed with otherwise than ``options``
    say.
    """
    if (Path(folder) / RUN).exists():
        raise UsageError(f"{folder} holds a run, and no study: use another --save")
    now = {"data": dataset.describe()}
    if options is not None:
        now |= {"precision": execution.resolved(options.device, options.precision),
                "sync_bn": options.sync_bn}
    if dataset.unlabelled is not None:
        now["unlabelled"] = dataset.unlabelled.digest
    before = noted(Path(folder))
    whole = {**before, **now}
    refuse_changes(folder, {**now, **before}, whole, "use another --save")
    return before, whole


def _note(study: Study, root: Path, name: str, stages: list[str]) -> None:
    """Note what came out of a variant."""
    said = study.variants[name].describe()
    now = {"is": said, "stages": stages}
    write_json(root / STUDY, {**notes(root / STUDY), digest_of(said)[:12]: now})


def _attempt(root: Path, key: str, context: Context, recipe: Recipe, step: Step,
             made: Sequence[Checkpoint]) -> Checkpoint | str:
    """What _stage() makes, or why it cannot be trained, said at once."""
    try:
        return _stage(root, key, context, recipe, step, made)
    except (TrainingFailed, PruningFailed) as error:
        # in all processes, if there are several: a loss, and what is pruned, is of them all
        warnings.warn(context.placed(f"{step.name} failed: {error}"), stacklevel=2)
        return str(error)  # not itself, which would keep all that its training holds


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
    # by the parent's digest, as above, and not by its own: the bits of scores may not be the same
    # on another machine, or with more threads, and then what is in the folder stays
    pruned = algorithm.prune(start, recipe, recipe.rounds[step.round - 1], step.round,
                             Evidence(context.dataset, context.seed, device=device))
    with distributed.main_first():
        kept = steps.keep(pruned, folder)
    return steps.retrain(context, step.training, kept, folder, step.name, objective)


def _together(root: Path, context: Context, variant: str, members: Sequence[Checkpoint]) -> None:
    """Evaluate the ensemble of what a variant made before its last step, once for all variants."""
    if len(members) > 1:
        folder = root / ensemble_folder([one.digest for one in members])
        known = (folder / RESULT).is_file()
        found = steps.measure_ensemble(context, members, folder)
        if not known:
            context.say(f"seed {context.seed}, {variant}, ensemble of {len(members)} networks: "
                        f"test accuracy {found.test_accuracy:.2f} %")
