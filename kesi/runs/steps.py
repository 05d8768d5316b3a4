"""The five steps, one function each: a stage reads checkpoints and leaves one in a folder
of its own.

A finished stage is not run again, and an interrupted one continues from its last saved epoch
(kesi.runs.stage).
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.pretrained import load_pretrained
from kesi.checkpoints.records import Info, encode
from kesi.data import Dataset
from kesi.data.datasets import plain
from kesi.method import algorithm, sizes
from kesi.method.distillation import SnapshotEnsemble, agreement
from kesi.method.objectives import CrossEntropy, Objective
from kesi.method.pruning.criteria import Evidence
from kesi.method.recipes import Amount, Recipe, kind_of
from kesi.method.schedules import DIVERGED, Training
from kesi.method.sizes import parameters
from kesi.method.snapshot import BASELINE, ENSEMBLE, KESI, Pruned, Snapshot, StageName, digest_of
from kesi.method.training import Epoch, evaluate
from kesi.runs.folder import finished, lost
from kesi.runs.lineage import fitting, method_of, reference, warn_of_other_images
from kesi.runs.record import CHECKPOINT, PRUNED, RESULT, Ensemble, read_result
from kesi.runs.stage import Context, finished_info, result_of, train
from kesi.system import distributed
from kesi.system.describe import describe
from kesi.system.errors import KesiError, TrainingFailed, UsageError
from kesi.system.files import write_json
from kesi.system.locks import held
from kesi.system.provenance import provenance, recipe_hash


def train_baseline(context: Context, arch: str, training: Training, folder: Path,
                   pretrained: str | None = None,
                   objective: Objective = CrossEntropy()) -> Checkpoint:
    """Step 1: train a freshly drawn network, or one that starts from ``pretrained``."""
    def draw() -> Snapshot:
        start = algorithm.draw(arch, context.dataset.num_classes, context.seed)
        if pretrained is not None:
            load_pretrained(start.network, pretrained)
        return start

    return train(context, folder, BASELINE, training, draw, objective, pretrained, arch)


def adopt_baseline(context: Context, source: Path, arch: str, folder: Path) -> Checkpoint:
    """Instead of step 1: take the trained network of a checkpoint as the baseline;
    returns the copy.

    The copy carries the same weights, and says where they come from and by what training. Raises
    UsageError where it was pruned, or does not fit the architecture or the images.
    """
    parent = given_baseline(source, context.dataset, arch)
    distributed.barrier()  # all processes find the same in the folder
    with held(folder):
        done = None if context.fresh else finished(folder, {})
        if not context.fresh:
            refuse_other_baseline(folder, parent)
        if done is None:
            _adopt(context, parent, folder)
    distributed.barrier()  # the first has written it
    return checkpoints.load(folder / CHECKPOINT)


def refuse_other_baseline(folder: Path, given: Checkpoint) -> None:
    """Raises UsageError where a seed began with another network than ``given``, also where its
    copy of that is gone."""
    before = lost(folder, {})
    if before is not None and before.network_digest != given.digest:
        raise UsageError(
            f"{folder} holds another baseline than {given.path}: use another --save, or --fresh")


def given_baseline(source: Path, dataset: Dataset, arch: str) -> Checkpoint:
    """The checkpoint at ``source``. Raises UsageError where it was pruned, or does not fit the
    architecture or the images."""
    parent = fitting(source, dataset, arch)
    if method_of(parent) is not None or parent.round:
        raise UsageError(f"{parent.path} is a pruned network, not a baseline")
    return parent


def _adopt(context: Context, parent: Checkpoint, folder: Path) -> None:
    warn_of_other_images(parent, context.dataset)
    loss, accuracy = evaluate(parent.network, context.dataset, context.dataset.test,
                              context.options.device)
    _refuse_nonsense(loss, str(parent.path))
    row = Epoch(0, 0.0, 0.0, 0.0, loss, accuracy)  # nothing was trained here
    info = replace(finished_info(parent.info, [row]), stage=BASELINE, kind=BASELINE, round=0,
                   seed=context.seed, settings={}, data=context.dataset.describe(),
                   pruned_accuracy=None, teachers=[], earlier=[], history_digest=None,
                   parent=reference(parent, folder), **provenance(context.options.device))
    snapshot = Snapshot(BASELINE, parent.network)
    result = replace(result_of(snapshot, info, [row], context.dataset), epochs=0, images=0,
                     adopted_from=parent.digest)
    digest = checkpoints.save(folder / CHECKPOINT, snapshot, info)
    write_json(folder / RESULT, encode(replace(result, digest=digest)))
    context.say(f"baseline: {parent.path}, test accuracy {accuracy:.2f} %")


def _refuse_nonsense(loss: float, what: str) -> None:
    """Raises TrainingFailed where networks answer with numbers that are none."""
    if not abs(loss) < DIVERGED:
        raise TrainingFailed(f"the test loss of {what} is {loss}: this network gives no finite "
                             "answers, train it anew at a lower learning rate")


def prune(parent: Checkpoint, recipe: Recipe, amount: Amount, folder: Path,
          number: int, evidence: Evidence = Evidence()) -> Checkpoint:
    """Step 2: prune a checkpoint into ``folder``, unless that was done; see keep().

    ``amount``: filter rates (one, or one a width), or the cumulative sparsity. ``number``: the
    round. Raises UsageError for an amount that does not fit.
    """
    try:
        return keep(algorithm.prune(parent, recipe, amount, number, evidence), folder)
    except ValueError as error:
        raise UsageError(f"cannot prune {parent.path}: {error}") from error


def keep(pruned: Pruned, folder: Path) -> Checkpoint:
    """The pruned network of a checkpoint as a file, which is written unless it is there.

    Raises UsageError where ``folder`` has one of the same parent that was pruned in another way, or
    one of another parent that was retrained.
    """
    path, parent = Path(folder) / PRUNED, pruned.parent
    said = {name: describe(getattr(pruned, name))
            for name in ("method", "criterion", "round", "amount", "looked_at")}
    if path.is_file():
        try:
            found = checkpoints.load(path)
            if parent.is_named_by(found.info.parent):
                _refuse_other_pruning(path, found.info, said)
                return found
            if (path.parent / RESULT).is_file():
                raise UsageError(f"{path.parent} was pruned from another network (now "
                                 f"{parent.path}) and retrained: use another --save, or --fresh")
        except UsageError:
            raise
        except KesiError as error:
            warnings.warn(f"{error}: pruned again", stacklevel=2)
    if empty := sizes.empty_layers(pruned.masks):
        warnings.warn(f"round {pruned.round} prunes every weight of {', '.join(empty)}",
                      stacklevel=2)
    what = {name: said[name] for name in ("method", "criterion", "amount")}
    info = Info(stage=pruned.name,
                kind="pruned", seed=parent.info.seed, settings=parent.info.settings,
                data=parent.info.data, parent=reference(parent, path.parent), **said,
                recipe_hash=recipe_hash(what), **provenance("cpu"))
    with held(path.parent):
        checkpoints.save(path, pruned, info)
    return checkpoints.load(path)


def _refuse_other_pruning(path: Path, before: Info, now: dict) -> None:
    """Raises UsageError where a pruned network, of which ``before`` is the info,
    was not pruned like this."""
    for what, new in now.items():
        old = getattr(before, what)
        if what == "looked_at":
            what, old = "set of images", old or new  # of which an older file says nothing
        if old != new:
            raise UsageError(f"{path} was pruned with another {what} ({str(old)[:40]}, now "
                             f"{str(new)[:40]}): use another --save, or remove it")


def retrain(context: Context, training: Training, pruned: Checkpoint, folder: Path,
            name: str | None = None, objective: Objective = CrossEntropy()) -> Checkpoint:
    """Step 3: retrain a pruned network; returns the snapshot, which is named after its retraining.

    Raises TrainingFailed where so much was pruned that it answers every image alike, whatever it is
    taught.
    """
    if (empty := sizes.empty_layers(pruned.masks)) and sizes.deaf(pruned.network):
        raise TrainingFailed(f"{pruned.path} cannot learn: it answers every image alike, since no "
                             f"weight is left in {', '.join(empty)}; prune less")
    name = name or StageName(kind_of(training), pruned.round or 1).text
    return train(context, folder, name, training, pruned, objective)


def distill(context: Context, training: Training, objective: Objective, student: Checkpoint,
            folder: Path) -> Checkpoint:
    """Step 5: a snapshot learns as ``objective`` says, the paper's from its teachers;
    returns the last network."""
    last = train(context, folder, KESI, training, student, objective)
    before, after = (one.info.metrics.get("test_accuracy") for one in (student, last))
    if before is not None and after is not None and after < before:
        context.say(f"kesi: {before - after:.2f} points below the snapshot that it started from "
                    f"({before:.2f} %)")
    return last


def measure_ensemble(context: Context, members: Sequence[Checkpoint], folder: Path | None,
                     name: str = ENSEMBLE) -> Ensemble:
    """Evaluate the ensemble of checkpoints on the test images, each network once;
    returns its result.

    Written to ``folder``/result.json, if there is one: accuracy of each member and of the first
    one, two, ... together, and how much they disagree. Raises UsageError where that is the result
    of other members.
    """
    if folder is None:
        return _measure(context, members, name)
    done = folder / RESULT
    distributed.barrier()  # all processes find the same in the folder
    with held(folder):
        result = None if context.fresh else _measured(done, members, context.dataset)
        if result is None:
            result = _measure(context, members, name)
            write_json(done, encode(result))
    distributed.barrier()
    return result


def names_of(members: Sequence[Checkpoint]) -> list[str]:
    """What the members of an ensemble are called."""
    return [member.name or member.path.name for member in members]


def _measured(done: Path, members: Sequence[Checkpoint], dataset: Dataset) -> Ensemble | None:
    """What is known of an ensemble of just these members on these images;
    of members of these names that were made anew, nothing."""
    if not done.is_file():
        return None
    try:
        result = read_result(done)
        if not isinstance(result, Ensemble):
            raise KesiError(f"{done} is not the result of an ensemble")
    except KesiError as error:
        warnings.warn(f"{error}: the ensemble is evaluated again", stacklevel=3)
        return None
    if result.members != names_of(members):
        raise UsageError(f"{done} is of another ensemble ({', '.join(result.members)}; now "
                         f"{', '.join(names_of(members))}): use another --save")
    same = (result.members_digests == [member.digest for member in members]
            and result.tested_on in (None, _images(dataset)))
    return result if same else None


def _images(dataset: Dataset) -> str:
    """A digest of the test images, as a network sees them."""
    return digest_of([dataset.test.digest, *(plain(one) for one in (
        dataset.image_size, dataset.mean, dataset.std))])


def _measure(context: Context, members: Sequence[Checkpoint], name: str) -> Ensemble:
    names = names_of(members)
    ensemble = SnapshotEnsemble(members, context.options.device)
    logits = ensemble.predict(context.dataset, context.dataset.test, context.options.device)
    found = agreement(logits, context.dataset.test.labels)
    _refuse_nonsense(found.loss, ", ".join(names))
    return Ensemble(stage=name, kind=name, seed=context.seed, members=names,
                    members_digests=[member.digest for member in members], accuracy=found.accuracy,
                    growing_accuracy=found.growing_accuracy,
                    test_accuracy=found.growing_accuracy[-1],
                    test_loss=found.loss, disagreement=found.disagreement,
                    params=sum(parameters(member.network) for member in members),
                    tested_on=_images(context.dataset),
                    **provenance(context.options.device))
