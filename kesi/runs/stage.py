"""One training in a folder of its own: begun, or continued from its last saved epoch,
and its result.

    <folder>/checkpoint.pth.tar   the network          <folder>/metrics.jsonl   one line an epoch
    <folder>/result.json          what came out        <folder>/state.pth.tar   only while it runs

The folder is locked meanwhile (kesi.system.locks).
"""

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from kesi import checkpoints, models
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.records import Earlier, Info, Made, Origin, encode
from kesi.data import Dataset, Split
from kesi.data.datasets import plain
from kesi.method import sizes
from kesi.method.objectives import CrossEntropy, Objective
from kesi.method.recipes import described
from kesi.method.schedules import Training
from kesi.method.snapshot import BASELINE, KESI, Snapshot, StageName
from kesi.method.training import Epoch, Options, Progress, evaluate, fit
from kesi.runs import resume
from kesi.runs.clock import Clock, epoch_line
from kesi.runs.folder import dependent, finished, lost, refuse_changes, start_over
from kesi.runs.lineage import check_images, method_of, reference
from kesi.runs.record import CHECKPOINT, METRICS, OTHER, RESULT, Result, history_digest, network_of
from kesi.system import distributed, execution
from kesi.system.describe import describe
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import write_json, write_json_lines
from kesi.system.locks import held
from kesi.system.provenance import provenance, recipe_hash
from kesi.system.seeds import derive

# a line an epoch; commands show them where there is no terminal for a bar (kesi.cli.entry)
log = logging.getLogger("kesi")


class Watch(Protocol):
    """Somebody who wants to know how a run goes on; called in the first of several processes only.
    """

    def after_epoch(self, folder: Path) -> None:
        """An epoch of the stage in ``folder`` has ended, and stands in its metrics."""

    def after_stage(self) -> None:
        """A stage has ended."""


class _OtherNetwork(KesiError):
    """A stage that was lost came out otherwise when it was made anew."""


@dataclass(frozen=True)
class Context:
    """What the stages of one run share: images, seed, machine, and whether to start over.

    ``where``, for messages: "seed 0, 3/8". ``clock``: of the run that the stage is a part of, if it
    is of one. ``resume``: the state of another folder, to continue from.
    """

    dataset: Dataset
    seed: int
    options: Options = field(default_factory=Options)
    fresh: bool = False
    where: str = ""
    clock: Clock | None = None
    watch: Watch | None = None
    resume: Path | None = None

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        print(self.placed(text), flush=True)

    def placed(self, text: str) -> str:
        """The text after what stage of the run it is about."""
        return f"{self.where}: {text}" if self.where else text

    def unlabelled(self, objective: Objective) -> Split | None:
        """The images without labels that a training with this objective draws from, too."""
        return self.dataset.unlabelled if getattr(objective, "unlabelled", False) else None

    def settings(self, training: Training, objective: Objective, arch: str,
                 parent: Snapshot | None, pretrained: str | None = None) -> dict:
        """What decides the outcome of a stage; it continues only with the same."""
        code = models.ARCHITECTURES[arch].code  # of a network of somebody's own
        precision = execution.resolved(self.options.device, self.options.precision)
        more = self.unlabelled(objective)
        return {"seed": self.seed, "training": described(training), "data": self.dataset.describe(),
                "objective": describe(objective),
                "parent": None if parent is None else parent.digest,
                "pretrained": pretrained, "precision": precision, "sync_bn": self.options.sync_bn,
                **({} if more is None else {"unlabelled": more.digest}),
                **({"network's code": code} if code else {})}


def train(context: Context, folder: Path, name: str, training: Training,
          start: Snapshot | Callable[[], Snapshot], objective: Objective = CrossEntropy(),
          pretrained: str | None = None, arch: str = "") -> Checkpoint:
    """Run one training into ``folder``, from wherever it stands;
    returns the network that comes out.

    ``start``: the checkpoint that is trained, which is the parent of what comes out; or a function
    that draws a network of ``arch``. Raises UsageError where the folder holds a run with other
    settings, KesiError where another process has it.
    """
    folder, path = Path(folder), Path(folder) / CHECKPOINT
    if context.fresh and any((folder / one).exists() for one in (METRICS, RESULT, CHECKPOINT)) and (
            aside := start_over(folder)):
        context.say(f"the run before was moved to {aside}")
    distributed.barrier()  # all processes find the same in the folder
    parent = start if isinstance(start, Checkpoint) else None
    settings = context.settings(training, objective, parent.network.arch if parent else arch,
                                parent, pretrained)
    drawn = None
    if callable(start) and (pretrained is not None or models.ARCHITECTURES[arch].code):
        # weights that are somebody's: a file of this name, or a factory, may give others by now
        drawn = start()
        settings["start"] = drawn.digest
    with held(folder):
        if finished(folder, settings) is not None:
            resume.remove(folder)  # a kill may have come between the result and this
            context.say(f"{name} is finished already: {path}")
            return checkpoints.load(path, arch or None)
        snapshot = drawn or (start() if callable(start) else start.copy(name))
        check_images(snapshot.network, context.dataset)
        info = _info(context, name, training, objective, parent, folder, settings, pretrained)
        with distributed.main_first():
            saved = _state(context, folder, snapshot.network.arch)
        if saved is not None:
            refuse_changes(folder, saved.info.settings, settings)
            snapshot = saved
            info = replace(info, pruned_accuracy=saved.info.pruned_accuracy,
                           earlier=_earlier(saved, info))
            warn_of_another_device(saved.info.device, info.device)
            context.say(
                f"{name} continues after epoch {saved.training['epoch']} of {training.epochs}")
        elif info.kind not in (BASELINE, KESI):
            before = evaluate(snapshot.network, context.dataset, context.dataset.test,
                              context.options.device)[1]
            info = replace(info, pruned_accuracy=before)
        _fit(context, folder, training, snapshot, info, objective, saved and saved.training)
        return checkpoints.load(path)


def _info(context: Context, name: str, training: Training, objective: Objective,
          parent: Checkpoint | None, folder: Path, settings: dict, pretrained: str | None) -> Info:
    stage, recipe = StageName.parse(name), described(training)
    ensemble = getattr(objective, "ensemble", None)
    number = parent.info.round if stage.kind == KESI and parent else stage.round
    more = context.unlabelled(objective)
    return Info(stage=name, kind=stage.kind, round=number, seed=context.seed, settings=settings,
                method=parent and (parent.info.method or method_of(parent)), recipe=recipe,
                recipe_hash=recipe_hash(recipe), pretrained=pretrained,
                data=context.dataset.describe(), unlabelled_images=more and len(more),
                parent=parent and reference(parent, folder),
                teachers=[reference(one, folder) for one in ensemble.snapshots] if ensemble else [],
                **provenance(context.options.device))


def _state(context: Context, folder: Path, arch: str) -> Checkpoint | None:
    """What to continue from: the folder's own state, or the one that was named.

    Raises UsageError if both are there.
    """
    own = folder / resume.STATE
    if context.resume is None or context.resume.resolve() == own.resolve():
        return resume.newest(folder, arch)
    if own.is_file():
        raise UsageError(f"{folder} has a state of its own, and continues from it without "
                         "--resume: use another --save, or --fresh without --resume")
    saved = checkpoints.load(context.resume, arch)
    if not resume.continuable(saved):
        raise KesiError(f"{context.resume} is not the state of an unfinished stage")
    return saved


def _earlier(saved: Checkpoint, now: Info) -> list[Earlier]:
    """Where the epochs before an interruption come from,
    as far as that is not where this process is."""
    names = [one.name for one in dataclasses.fields(Origin)]
    before, here = ({name: getattr(info, name) for name in names} for info in (saved.info, now))
    known = list(saved.info.earlier)
    if before == here:
        return known
    return [*known, Earlier(until_epoch=saved.training["epoch"], **before)]


def warn_of_another_device(before: str | None, now: str) -> None:
    """Say that what was begun on one machine, or with so many threads, goes on with another."""
    if before is not None and before != now:
        # in the words and from the line in which a pipeline has said it of the whole run: once
        warnings.warn(f"begun on {before}, and goes on with {now}: the result is not bit for bit "
                      "that of one or the other", stacklevel=1)


def _fit(context: Context, folder: Path, training: Training, snapshot: Snapshot, info: Info,
         objective: Objective, state: dict | None) -> None:
    """Train, and leave the checkpoint and the result; on the way the state to continue from."""
    saver = resume.Saver(folder, info, context.options.save_every)
    snapshot = Snapshot(info.stage, snapshot.network, snapshot.masks)
    clock = context.clock or Clock({folder: 1.0})  # a stage by itself is a run of one

    def on_epoch(progress: Progress) -> None:
        write_json_lines(folder / METRICS, [asdict(row) for row in progress.history],
                         durable=progress.epoch == progress.epochs)
        saver.after_epoch(snapshot, progress)
        clock.after(folder, progress)
        if distributed.is_main():
            left = clock.said()
            log.info("%s", context.placed(f"{info.stage}, {epoch_line(progress)}"
                                          + f"; {left}" * bool(left)))
        if context.watch is not None:
            context.watch.after_epoch(folder)

    # another order of the images in every stage: equal orders would make the snapshots alike
    seed = derive(context.seed, info.stage)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        history = fit(snapshot.network, context.dataset, training, seed=seed, objective=objective,
                      masks=snapshot.masks, options=context.options, resume=state,
                      on_epoch=on_epoch, label=_label(context, info.stage, clock))
        snapshot.network.cpu()
        info = finished_info(info, history)
        result = replace(result_of(snapshot, info, history, context.dataset), started=started)
        _refuse_others(folder, snapshot, info, result)
        result = replace(result, digest=checkpoints.save(folder / CHECKPOINT, snapshot, info))
    except _OtherNetwork:
        resume.remove(folder)  # it leads there again
        raise
    except BaseException as error:
        _rescue(context, saver, info.stage, error)
        raise
    write_json(folder / RESULT, encode(result))
    distributed.barrier()
    resume.remove(folder)
    _tell(context, result, folder / CHECKPOINT)


def _label(context: Context, name: str, clock: Clock) -> str:
    """What stands before the bar of a training."""
    return ", ".join(filter(None, [context.where, clock.said(), name]))


def _tell(context: Context, result: Result, path: Path) -> None:
    if result.at_chance:
        advice = "prune less" if result.round else "train longer, or at another --lr"
        warnings.warn(f"{result.stage} has learned nothing: its test accuracy of "
                      f"{result.test_accuracy:.2f} % is that of one answer to every image; "
                      f"{advice}, or look at {METRICS}", stacklevel=2)
    held_out = ("" if result.val_accuracy is None
                else f"validation accuracy {result.val_accuracy:.2f} %, ")
    context.say(f"{result.stage}: {held_out}test accuracy {result.test_accuracy:.2f} % with "
                f"{result.nonzero_params:,} parameters, {result.seconds:.0f} s -> {path}")


def _refuse_others(folder: Path, snapshot: Snapshot, info: Info, result: Result) -> None:
    """Keep a network aside that is not the one which was lost here,
    while others are made from that one.

    Raises KesiError then: the run cannot go on with both.
    """
    before = lost(folder, info.settings)
    if before is None or before.network_digest == result.network_digest:
        return
    child = dependent(folder.parent, before.network_digest)
    if child is None:
        return
    checkpoints.save(folder / OTHER, snapshot, info)
    distributed.barrier()
    then, now = (f"{one.device}, commit {str(one.commit)[:12]}" for one in (before, result))
    raise _OtherNetwork(
        f"{info.stage} came out as another network than the one that was lost, from which "
        f"{child} was made (then: {then}; now: {now}). Run it as it was made then, also with those "
        f"--threads, or start over in another --save; this network is kept in {folder / OTHER}")


def _rescue(context: Context, saver: resume.Saver, stage: str, error: BaseException) -> None:
    """An interrupt or an error ends the stage: save the last whole epoch, if it is not."""
    try:
        epoch = saver.rescue()
        if epoch is not None:
            context.say(f"{stage}: saved as it was after epoch {epoch}")
    except KesiError as trouble:
        if str(trouble) != str(error):  # a full disk is said once
            warnings.warn(str(trouble), stacklevel=2)


METRICS_KEPT = ("test_accuracy", "test_loss", "val_accuracy")


def finished_info(info: Info, history: list[Epoch]) -> Info:
    """What a checkpoint says of itself once it is trained."""
    metrics = {name: getattr(history[-1], name) for name in METRICS_KEPT}
    return replace(info, metrics=metrics, history_digest=history_digest(history))


def result_of(snapshot: Snapshot, info: Info, history: list[Epoch], dataset: Dataset) -> Result:
    """The result of a stage, from its checkpoint and its epochs: kesi verify makes it anew."""
    last = history[-1]
    shared = {one.name: getattr(info, one.name) for one in dataclasses.fields(Made)}
    seconds = sum(row.seconds or 0 for row in history)  # also of epochs before an interruption
    return Result(**shared, **network_of(snapshot, info.method, dataset.image_size),
                  dataset=dataset.name, image_size=plain(dataset.image_size),
                  at_chance=last.test_accuracy <= sizes.chance(dataset.test.labels),
                  test_accuracy=last.test_accuracy, test_loss=last.test_loss,
                  val_accuracy=last.val_accuracy, epochs=len(history),
                  images=len(history) * len(dataset.train), seconds=round(seconds, 2))
