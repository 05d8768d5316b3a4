"""The five steps, one function each: a stage reads checkpoints and leaves one in a folder of its own.

A finished stage is not run again, and an interrupted one continues from its last saved epoch (kesi.runs.stage).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import models
from kesi import checkpoints
from kesi.checkpoints import fields
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.pretrained import load_pretrained
from kesi.method import sizes
from kesi.method.distillation import Distillation, SnapshotEnsemble, agreement
from kesi.method.pruning import prune_filters, prune_weights
from kesi.method.schedules import DIVERGED, Training
from kesi.method.sizes import parameters
from kesi.method.training import evaluate
from kesi.runs import record
from kesi.runs.folder import finished, read_fields
from kesi.runs.layout import CHECKPOINT, RESULT
from kesi.runs.lineage import fitting, method_of, reference
from kesi.runs.stage import Context, result_of, train
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import write_json
from kesi.system.locks import held
from kesi.system.provenance import provenance, recipe_hash
from kesi.system.seeds import derive
from models import Network

NEEDED = ("stage", "members", "members_digests", "accuracy", "growing_accuracy", "test_accuracy", "disagreement")


def train_baseline(context: Context, arch: str, stage: Training, folder: Path, pretrained: str | None = None) -> Path:
    """Step 1: train a freshly drawn network, or one that starts from ``pretrained``; returns its checkpoint."""
    def draw() -> tuple[Network, None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(context.seed, "weights"))
            model = models.create(arch, context.dataset.num_classes)
        return (model if pretrained is None else load_pretrained(model, pretrained)), None

    describe = {"stage": "baseline", "kind": "baseline", "round": 0, "pretrained": pretrained}
    return train(context, folder, stage, draw, describe)


def adopt_baseline(context: Context, source: Path, arch: str, folder: Path) -> Path:
    """Instead of step 1: take the trained network of a checkpoint as the baseline; returns the copy.

    The copy carries the same weights and says where they come from. Raises UsageError where it was pruned,
    or does not fit the architecture or the images.
    """
    parent = fitting(source, context.dataset, arch)
    if method_of(parent) is not None or parent.round:
        raise UsageError(f"{parent.path} is a pruned network, not a baseline")
    path = folder / CHECKPOINT
    distributed.barrier()  # all processes find the same in the folder
    with held(folder):
        done = None if context.fresh else finished(folder, {})
        if done is None:
            _adopt(context, parent, folder)
        elif done.get("network_digest") != parent.network_digest:
            raise UsageError(f"{folder} holds another baseline than {source}: use another --save, or --fresh")
    return path


def _adopt(context: Context, parent: Checkpoint, folder: Path) -> None:
    loss, accuracy = evaluate(parent.model, context.dataset, context.dataset.test, context.options.device)
    _refuse_nonsense(loss, str(parent.path))
    info = {**parent.info, "stage": "baseline", "kind": "baseline", "round": 0, "seed": context.seed,
            "dataset": context.dataset.describe(), "settings": {}, "pruned_accuracy": None,
            "parent": reference(parent, folder), "recipe_hash": parent.info.get("recipe_hash"),
            **provenance(context.options.device)}
    row = {"test_accuracy": accuracy, "test_loss": loss, "val_accuracy": None}
    result = result_of(context, parent.model, None, info, [row], 0.0)
    result |= {"adopted_from": parent.network_digest, "epochs": 0, "images": 0}
    result["digest"] = checkpoints.save(folder / CHECKPOINT, parent.model.cpu(), info)
    write_json(folder / RESULT, result)
    context.say(f"baseline: {parent.path}, test accuracy {accuracy:.2f} %")


def _refuse_nonsense(loss: float, what: str) -> None:
    """Raises KesiError where networks answer with numbers that are none."""
    if not abs(loss) < DIVERGED:
        raise KesiError(f"the test loss of {what} is {loss}: this network gives no finite answers, train it anew at a "
                        f"lower learning rate")


def prune(parent: Checkpoint, method: str, amount: float | Sequence[float], path: Path,
          number: int | None = None) -> Path:
    """Step 2: write the pruned network of a checkpoint, without any data; returns its path.

    ``amount``: filter rates (one, or one a width), or the cumulative sparsity. ``number``: the round that
    this is (default: one more than the checkpoint's). Raises UsageError for an amount that does not fit.
    """
    path = Path(path)
    number = (parent.round or 0) + 1 if number is None else number
    masks = parent.masks
    try:
        if method == "filter":
            model = prune_filters(parent.model, amount)
            if masks is not None:
                raise ValueError("its weights were pruned, and filter pruning does not keep masks")
        else:
            model, masks = parent.model, prune_weights(parent.model, amount, masks)
    except ValueError as error:
        raise UsageError(f"cannot prune {parent.path}: {error}") from error
    inherited = {key: parent.info[key] for key in ("dataset", "seed", "settings") if key in parent.info}
    info = {**inherited, "stage": f"pruned-{number}", "kind": "pruned", "round": number, "method": method,
            "amount": list(amount) if isinstance(amount, Sequence) else amount,
            "parent": reference(parent, path.parent), **provenance("cpu")}
    info["recipe_hash"] = recipe_hash({name: info[name] for name in ("method", "amount")})
    if empty := sizes.empty_layers(masks):
        warnings.warn(f"round {number} prunes every weight of {', '.join(empty)}", stacklevel=2)
    with held(path.parent):
        checkpoints.save(path, model, info, masks)
    return path


def refuse_other_pruning(path: Path, before: dict, method: str, amount: float | Sequence[float],
                         number: int | None) -> None:
    """Raises UsageError where a pruned network, of which ``before`` is the info, was not pruned like this."""
    amount = list(amount) if isinstance(amount, Sequence) else amount
    for what, old, new in (("method", before.get("method"), method), ("amount", before.get("amount"), amount),
                           ("round", before.get("round"), number)):
        if old != new:
            raise UsageError(f"{path} was pruned with another {what} ({str(old)[:40]}, now {str(new)[:40]}): "
                             f"use another --save, or remove it")


def retrain(context: Context, stage: Training, refine: Path, folder: Path) -> Path:
    """Step 3: retrain a pruned network; returns the snapshot. One-cycle or usual is the stage's schedule.

    Raises KesiError where so much was pruned that it answers every image alike, whatever it is taught.
    """
    parent = fitting(refine, context.dataset)
    if (empty := sizes.empty_layers(parent.masks)) and sizes.deaf(parent.model):
        raise KesiError(f"{parent.path} cannot learn: it answers every image alike, since no weight is left in "
                        f"{', '.join(empty)}; prune less")
    number = parent.round or 1
    kind = "onecycle" if stage.schedule == "onecycle" else "usual"
    describe = {"stage": f"{kind}-{number}", "kind": kind, "round": number,
                "method": parent.info.get("method") or method_of(parent)}
    return train(context, folder, stage, lambda: (parent.model, parent.masks), describe, parent)


def distill(context: Context, stage: Training, temperature: float, refine: Path, teachers: Sequence[Path],
            folder: Path) -> Path:
    """Step 5: distil the ensemble of ``teachers`` into the snapshot ``refine``; returns the last network."""
    parent = fitting(refine, context.dataset)
    members = [fitting(path, context.dataset) for path in teachers]
    ensemble = SnapshotEnsemble([member.model for member in members], [str(member.path) for member in members],
                                context.options.device)
    objective = Distillation(ensemble, temperature)
    describe = {"stage": "kesi", "kind": "kesi", "round": parent.round,
                "method": parent.info.get("method") or method_of(parent), "temperature": temperature,
                "teachers": [reference(member, folder) for member in members]}
    path = train(context, folder, stage, lambda: (parent.model, parent.masks), describe, parent, objective)
    before = (parent.info.get("metrics") or {}).get("test_accuracy")
    after = read_fields(folder / RESULT).get("test_accuracy")
    if fields.number(before) and fields.number(after) and after < before:
        context.say(f"kesi: {before - after:.2f} points below the snapshot that it started from ({before:.2f} %)")
    return path


def measure_ensemble(context: Context, teachers: Sequence[Path], folder: Path | None,
                     kind: str = "ensemble") -> dict:
    """Evaluate the ensemble of checkpoints on the test images, each network once; returns its result.

    Written to ``folder``/result.json, if there is one: accuracy of each member and of the first one, two, ...
    together, and how much they disagree. Raises UsageError where that is the result of other members.
    """
    members = [fitting(path, context.dataset) for path in teachers]
    digests = [member.network_digest for member in members]
    if folder is None:
        return _measure(context, members, digests, kind)
    done = folder / RESULT
    distributed.barrier()  # all processes find the same in the folder
    with held(folder):
        result = None if context.fresh else _measured(done, digests, _names(members))
        if result is None:
            result = _measure(context, members, digests, kind)
            write_json(done, result)
    distributed.barrier()
    return result


def _names(members: Sequence[Checkpoint]) -> list[str]:
    return [member.stage or member.path.name for member in members]


def _measured(done: Path, digests: list[str], names: list[str]) -> dict | None:
    """What is known of an ensemble of just these members; of members of these names that were made anew, nothing."""
    try:
        result = record.read_result(done, NEEDED) if done.is_file() else {}
    except KesiError as error:
        warnings.warn(f"{error}: the ensemble is evaluated again", stacklevel=3)
        return None
    if result and result["members"] != names:
        raise UsageError(f"{done} is of another ensemble ({', '.join(result['members'])}; now {', '.join(names)}): use "
                         f"another --save")
    return result if result.get("members_digests") == digests else None


def _measure(context: Context, members: list[Checkpoint], digests: list[str], kind: str) -> dict:
    names = _names(members)
    ensemble = SnapshotEnsemble([member.model for member in members], names, context.options.device)
    logits = ensemble.predict(context.dataset, context.dataset.test, context.options.device)
    found = agreement(logits, context.dataset.test.labels)
    _refuse_nonsense(found.loss, ", ".join(names))
    return {"stage": kind, "kind": kind, "seed": context.seed, "members": names, "members_digests": digests,
            "accuracy": found.accuracy, "growing_accuracy": found.growing_accuracy,
            "test_accuracy": found.growing_accuracy[-1], "test_loss": found.loss,
            "disagreement": found.disagreement, "params": sum(parameters(m.model) for m in members),
            **provenance(context.options.device)}
