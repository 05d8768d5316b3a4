"""One training in a folder of its own: begun, or continued from its last saved epoch, and its result.

    <folder>/checkpoint.pth.tar   the network          <folder>/metrics.jsonl   one line an epoch
    <folder>/result.json          what came out        <folder>/state.pth.tar   only while it runs

The folder is locked meanwhile (kesi.system.locks).
"""

import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data import Dataset
from kesi.method import sizes
from kesi.method.objectives import Objective, cross_entropy
from kesi.method.pruning import Masks
from kesi.method.schedules import Training
from kesi.method.training import Options, Progress, evaluate, fit
from kesi.runs import states
from kesi.runs.folder import dependent, finished, lost, refuse_changes, start_over
from kesi.runs.layout import CHECKPOINT, METRICS, OTHER, RESULT
from kesi.runs.lineage import check_images, reference
from kesi.runs.record import KEPT, METRICS_KEPT, history_digest, network_of
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError
from kesi.system.execution import resolved
from kesi.system.files import write_json, write_json_lines
from kesi.system.locks import held
from kesi.system.provenance import provenance, recipe_hash
from kesi.system.seeds import derive
from models import Network


class Watch(Protocol):
    """Somebody who wants to know how a run goes on; called in the first of several processes only."""

    def after_epoch(self, folder: Path) -> None:
        """An epoch of the stage in ``folder`` has ended, and stands in its metrics."""

    def after_stage(self) -> None:
        """A stage has ended."""


class _OtherNetwork(KesiError):
    """A stage that was lost came out otherwise when it was made anew."""


@dataclass(frozen=True)
class Context:
    """What the stages of one run share: images, seed, machine, and whether to start over."""

    dataset: Dataset
    seed: int
    options: Options = field(default_factory=Options)
    fresh: bool = False
    where: str = ""  # for messages: "seed 0, stage 3 of 8"
    watch: Watch | None = None
    resume: Path | None = None  # the state of another folder, to continue from here

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        print(f"{self.where}: {text}" if self.where else text, flush=True)


def _settings(context: Context, stage: Training, describe: dict, parent: Checkpoint | None) -> dict:
    """What decides the outcome of a stage; a run continues only with the same."""
    data = context.dataset.describe()
    return {"seed": context.seed, "stage": stage.__dict__ | {"milestones": list(stage.milestones)},
            "dataset": data["name"], "classes": data["classes"], "images": data["images"], "mean": data["mean"],
            "std": data["std"], "image_size": data["image_size"],
            "precision": context.options.precision, "sync_bn": context.options.sync_bn,
            "parent": parent.network_digest if parent else None, "temperature": describe.get("temperature"),
            "pretrained": describe.get("pretrained"),
            "teachers": [teacher["network"] for teacher in describe.get("teachers", [])]}


def train(context: Context, folder: Path, stage: Training, start, describe: dict, parent: Checkpoint | None = None,
           objective: Objective = cross_entropy) -> Path:
    """Run one training into ``folder``, from wherever it stands; ``start`` gives (network, masks)."""
    folder = Path(folder)
    if context.fresh and (folder / METRICS).exists() and (aside := start_over(folder)):
        context.say(f"the run before was moved to {aside}")
    distributed.barrier()  # all processes find the same in the folder
    settings = _settings(context, stage, describe, parent)
    path = folder / CHECKPOINT
    with held(folder):
        if finished(folder, settings) is not None:
            states.remove(folder)  # a kill may have come between the result and this
            context.say(f"{describe['stage']} is finished already: {path}")
            return path
        model, masks = start()
        check_images(model, context.dataset)
        resume, before, earlier, origin = None, None, [], provenance(context.options.device)
        with distributed.main_first():
            saved = _state(context, folder, model.arch)
        if saved is not None:
            refuse_changes(folder, saved.info.get("settings"), settings)
            model, masks, resume = saved.model, saved.masks, saved.training
            before, earlier = saved.info.get("pruned_accuracy"), _earlier(saved, origin)
            context.say(f"{describe['stage']} continues after epoch {resume['epoch']} of {stage.epochs}")
        elif describe["kind"] in ("onecycle", "usual"):
            before = evaluate(model, context.dataset, context.dataset.test, context.options.device)[1]
        info = {**describe, "dataset": context.dataset.describe(), "recipe": asdict(stage), "seed": context.seed,
                "settings": settings, "pruned_accuracy": before,
                "precision": resolved(context.options.device, context.options.precision),
                "parent": reference(parent, folder) if parent else None, **origin}
        if earlier:
            info["earlier"] = earlier
        info["recipe"]["milestones"] = list(stage.milestones)
        info["recipe_hash"] = recipe_hash(info["recipe"])
        return _fit(context, folder, stage, model, masks, info, objective, resume)


def _state(context: Context, folder: Path, arch: str) -> Checkpoint | None:
    """What to continue from: the folder's own state, or the one that was named. Raises UsageError if both are there."""
    own = folder / states.STATE
    if context.resume is None or context.resume.resolve() == own.resolve():
        return states.newest(folder, arch)
    if own.is_file():
        raise UsageError(f"{folder} has a state of its own, and continues from it without --resume: use another "
                         f"--save, or --fresh without --resume")
    saved = checkpoints.load(context.resume, arch)
    if not states.continuable(saved):
        raise KesiError(f"{context.resume} is not the state of an unfinished stage")
    return saved


def _earlier(saved: Checkpoint, now: dict) -> list[dict]:
    """Where the epochs before an interruption come from, as far as that is not where this process is."""
    before = {key: saved.info.get(key) for key in now}
    known = list(saved.info.get("earlier", []))
    return known if before == now else [*known, {"until_epoch": saved.training["epoch"], **before}]


def _fit(context: Context, folder: Path, stage: Training, model: Network, masks: Masks | None, info: dict,
         objective: Objective, resume: dict | None) -> Path:
    """Train, and leave the checkpoint and the result; on the way the state to continue from."""
    saver = states.Saver(folder, info, masks, context.options.save_every)

    def on_epoch(progress: Progress) -> None:
        write_json_lines(folder / METRICS, progress.history, durable=progress.epoch == progress.epochs)
        saver.after_epoch(model, progress)
        if context.watch is not None:
            context.watch.after_epoch(folder)

    # another order of the images in every stage: equal orders would make the snapshots alike
    seed = derive(context.seed, info["stage"])
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        history = fit(model, context.dataset, stage, seed=seed, objective=objective, masks=masks,
                      options=context.options, resume=resume, on_epoch=on_epoch,
                      label=f"{context.where} {info['stage']}".strip())
        seconds = sum(row["seconds"] for row in history)  # also of the epochs before an interruption
        result = result_of(context, model, masks, info, history, seconds) | {"started": started}
        _refuse_others(folder, model, info, masks, result)
        info["metrics"] = {key: result[key] for key in METRICS_KEPT}
        info["history_digest"] = result["history_digest"] = history_digest(history)
        result["digest"] = checkpoints.save(folder / CHECKPOINT, model.cpu(), info, masks)
    except _OtherNetwork:
        states.remove(folder)  # it leads there again
        raise
    except BaseException as error:
        _rescue(context, saver, info["stage"], error)
        raise
    write_json(folder / RESULT, result)
    distributed.barrier()
    states.remove(folder)
    if result["at_chance"]:
        advice = "prune less" if info["round"] else "train longer, or at another --lr"
        warnings.warn(f"{info['stage']} has learned nothing: its test accuracy of {result['test_accuracy']:.2f} % "
                      f"is that of one answer to every image; {advice}, or look at {METRICS}", stacklevel=2)
    held_out = "" if result["val_accuracy"] is None else f"validation accuracy {result['val_accuracy']:.2f} %, "
    context.say(f"{info['stage']}: {held_out}test accuracy {result['test_accuracy']:.2f} % with "
                f"{result['nonzero_params']:,} parameters, {result['seconds']:.0f} s -> {folder / CHECKPOINT}")
    return folder / CHECKPOINT


def _refuse_others(folder: Path, model: Network, info: dict, masks: Masks | None, result: dict) -> None:
    """Keep a network aside that is not the one which was lost here, while others are made from that one.

    Raises KesiError then: the run cannot go on with both.
    """
    before = lost(folder, info["settings"])
    if before is None or before["network_digest"] == result["network_digest"]:
        return
    child = dependent(folder.parent, before["network_digest"])
    if child is None:
        return
    checkpoints.save(folder / OTHER, model.cpu(), info, masks)
    distributed.barrier()
    then, now = (f"{one.get('device')}, commit {str(one.get('commit'))[:12]}" for one in (before, result))
    raise _OtherNetwork(f"{info['stage']} came out as another network than the one that was lost, from which {child} "
                        f"was made (then: {then}; now: {now}). Run it as it was made then, also with those --threads, "
                        f"or start over with --fresh; this network is kept in {folder / OTHER}")


def _rescue(context: Context, saver: states.Saver, stage: str, error: BaseException) -> None:
    """An interrupt or an error ends the stage: save the last whole epoch, if it is not."""
    try:
        epoch = saver.rescue()
        if epoch is not None:
            context.say(f"{stage}: saved as it was after epoch {epoch}")
    except KesiError as trouble:
        if str(trouble) != str(error):  # a full disk is said once
            warnings.warn(str(trouble), stacklevel=2)


def result_of(context: Context, model: Network, masks: Masks | None, info: dict, history: list[dict],
            seconds: float) -> dict:
    """The one line of results of a stage."""
    last = history[-1]
    return {**{key: info[key] for key in KEPT if key in info},
            "dataset": context.dataset.name, "image_size": context.dataset.image_size,
            "network_digest": checkpoints.network_digest(model, masks),
            **network_of(model, masks, info.get("method"), context.dataset.image_size),
            "at_chance": last["test_accuracy"] <= sizes.chance(context.dataset.test.labels),
            "test_accuracy": last["test_accuracy"], "test_loss": last["test_loss"],
            "val_accuracy": last["val_accuracy"], "epochs": len(history),
            "images": len(history) * len(context.dataset.train), "seconds": round(seconds, 2)}
