"""Every stage of a run: its result is made anew from its checkpoint and epochs, and its lineage
followed."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.records import Info, Reference, decode, encode
from kesi.data import Dataset
from kesi.method import recipes, sizes
from kesi.method.distillation import SnapshotEnsemble, agreement
from kesi.method.snapshot import BASELINE, ENSEMBLE, KESI, StageName, chain, ensemble_name
from kesi.method.training import Epoch, evaluate
from kesi.report.verify.checks import Checks
from kesi.runs.record import (
    ASIDE,
    CHECKPOINT,
    METRICS,
    PRUNED,
    RESULT,
    Ensemble,
    Result,
    read_epochs,
    read_result,
)
from kesi.runs.stage import finished_info, result_of
from kesi.system.errors import KesiError, first_line
from kesi.system.provenance import recipe_hash


class Verifier(Checks):
    """The checks of a run folder, which has every checkpoint."""

    def __init__(self, run: Path, dataset: Dataset | None = None, device: str = "cpu"):
        """Raises KesiError where ``dataset`` is not what the run was made with, UsageError where
        nobody said how its network is built."""
        super().__init__(run, dataset, device)
        checkpoints.require(self.record.arch, self.run)
        self._loaded: dict[Path, Checkpoint | None] = {}

    def checkpoint(self, where: str, path: Path) -> Checkpoint | None:
        """A checkpoint whose content matches its digest; None, and a failure, where it does not."""
        if path not in self._loaded:
            try:
                self._loaded[path] = checkpoints.load(path)
                self.checks += 1
            except KesiError as error:
                self._loaded[path] = None
                self.check(where, False, str(error))
        return self._loaded[path]

    def seed(self, number: int, stages: Sequence[str]) -> None:
        """All stages of one seed; ``stages`` are their names in the order in which they ran."""
        known = {*self.record.retrainings, *recipes.RETRAININGS}
        for path in sorted((self.run / f"seed{number}").glob("*/")):
            name = StageName.parse(path.name.removeprefix(f"{ENSEMBLE}-"))
            ours = name.kind in known and (name.round or name.text != path.name)
            if ours and path.name not in self.record.stages():  # anything else is nobody's claim
                self.check(f"seed{number}/{path.name}", False,
                           "run.json does not speak of this stage")
            elif path.name not in self.record.stages() and not ASIDE.search(path.name):
                with contextlib.suppress(KesiError):  # without a result it is in no report
                    said = read_result(path / RESULT).stage
                    self.check(f"seed{number}/{path.name}", said == path.name,
                               f"its result is that of {said}: it was renamed, or is a copy")
        for stage in stages:
            where, folder = f"seed{number}/{stage}", self.run / f"seed{number}" / stage
            try:
                result = read_result(folder / RESULT)
            except KesiError as error:
                exists = (folder / RESULT).exists()
                self.check(where, False, str(error) if exists else "is not finished")
                continue
            self.equal(where, "the stage", result.stage, stage)
            self.equal(where, "the seed", result.seed, number)
            chains = {ensemble_name(name, self.record.retrainings): chain(name, self.record.rounds)
                      for name in self.record.retrainings}
            kind = Ensemble if stage in chains else Result
            if not self.check(where, isinstance(result, kind), "its result is of another kind"):
                continue
            if isinstance(result, Ensemble):
                self._ensemble(where, folder, result, chains[stage])
            elif found := self.checkpoint(where, folder / CHECKPOINT):
                self._anew(where, folder, found, result)
                self._lineage(where, folder, found, result)
                self._evaluate(where, folder, found, result)

    def _anew(self, where: str, folder: Path, found: Checkpoint, result: Result) -> None:
        """Make a result from checkpoint and epochs, as training does, and name what differs."""
        info, adopted = found.info, result.adopted_from is not None
        self.equal(where, "its images", info.data, self.record.data)
        self.equal(where, "the recipe hash", info.recipe_hash,
                   recipe_hash(info.recipe) if info.recipe else None)
        try:
            if adopted:  # it was evaluated where it was taken over, and not trained
                history = [Epoch(0, 0.0, 0.0, 0.0, result.test_loss, result.test_accuracy)]
                if info.history_digest is None:  # else the source's own figures were kept
                    self.equal(where, "the test accuracy in its checkpoint", result.test_accuracy,
                               info.metrics.get("test_accuracy", result.test_accuracy))
            else:
                history = read_epochs(folder / METRICS)
                last, whole = finished_info(info, history), range(1, len(history) + 1)
                same = info.history_digest == last.history_digest and info.metrics == last.metrics
                self.check(where, same and [row.epoch for row in history] == [*whole],
                           f"{METRICS} does not hold the epochs of this training")
            made = result_of(found, info, history, _images(info, self.dataset))
            made = replace(made, started=result.started, digest=found.file_digest)
            if adopted:
                made = replace(made, epochs=0, images=0, adopted_from=found.digest)
            if self.dataset is None:  # whether that is chance, only the images tell
                made = replace(made, at_chance=result.at_chance)
            made = decode(Result, encode(made), folder / CHECKPOINT)
        except (KesiError, IndexError, TypeError, RuntimeError, ValueError) as error:
            self.check(where, False, f"no result can be made of it: {first_line(error)}")
            return
        for one in dataclasses.fields(Result):
            self.equal(where, one.name.replace("_", " "), getattr(result, one.name),
                       getattr(made, one.name))
        if found.masks is not None:
            broken = [name for name, mask in found.masks.state_dict().items()
                      if bool(found.network.get_parameter(name)[~mask].any())]
            self.check(where, not broken, f"pruned weights are not zero in {', '.join(broken)}")

    def _lineage(self, where: str, folder: Path, found: Checkpoint, result: Result) -> None:
        """That a stage was made from just the files, and by the recipe, of the method."""
        info, recipe, record = found.info, self.record.recipe, self.record
        name, beside, adopted = StageName.parse(folder.name), folder.parent, result.adopted_from
        self._descent(where, folder, found)
        for teacher in info.teachers:
            self._named(where, "its teacher", folder, teacher)
        if adopted is None:
            self.equal(where, "the recipe", info.recipe, recipe["trainings"].get(name.kind))
            parent = info.parent and info.parent.network
            for what, wanted in {"training": info.recipe, "data": info.data, "seed": info.seed,
                                 "parent": parent, "pretrained": info.pretrained}.items():
                self.equal(where, f"{what} in settings", info.settings.get(what), wanted)
            if name.text != KESI and "objective" in recipe:
                self.equal(where, "the objective", info.settings.get("objective"),
                           recipe["objective"])
        if name.text == BASELINE:
            self.equal(where, "whether it was taken over", adopted is not None,
                       record.baseline is not None)
            if adopted is None:
                self.equal(where, "what it began from", info.pretrained, record.pretrained)
        elif name.text == KESI:
            snapshots = [beside / one / CHECKPOINT
                         for one in chain(record.retrainings[0], record.rounds)]
            self._made_from(where, folder, info.parent, snapshots[-1])
            if self.equal(where, "the number of teachers", len(info.teachers), len(snapshots)):
                for teacher, snapshot in zip(info.teachers, snapshots, strict=True):
                    self._made_from(where, folder, teacher, snapshot)
            told = info.settings.get("objective") or {}
            self.equal(where, "the loss", told.get("loss"), recipe["loss"])
            self.equal(where, "the images without labels", info.settings.get("unlabelled"),
                       record.unlabelled)
            self.equal(where, "the teachers in settings", told.get("teachers"),
                       [teacher.network for teacher in info.teachers])
        else:
            self._made_from(where, folder, info.parent, folder / PRUNED)
            where = f"{where}/{PRUNED}"
            if (pruned := self.checkpoint(where, folder / PRUNED)) is None:
                return
            before = beside / chain(name.kind, name.round)[-2] / CHECKPOINT
            self._made_from(where, folder, pruned.info.parent, before)
            what = {"method": recipe["method"], "criterion": recipe["criterion"],
                    "amount": recipe["rounds"][name.round - 1]}
            what |= {"recipe_hash": recipe_hash(what), "round": name.round}
            for key, wanted in what.items():
                self.equal(where, key, getattr(pruned.info, key), wanted)

    def _made_from(self, where: str, folder: Path, said: Reference | None, path: Path) -> None:
        named = None if said is None else (folder / said.path).resolve()
        self.check(where, named == path.resolve(),
                   f"it says that it was made from {named}, and not from {path}")

    def _descent(self, where: str, folder: Path, found: Checkpoint) -> None:
        """The chain of parents up to the baseline, which each file names by its digest."""
        here, seen = found, {found.path.resolve()}
        while here.info.parent:
            parent = self._named(where, "its parent", folder, here.info.parent)
            if parent is None:
                return
            if parent.masks is not None and self.check(where, here.masks is not None,
                                                       "its parent's masks are lost"):
                ours = here.masks.state_dict()
                grown = [name for name, mask in parent.masks.state_dict().items()
                         if bool((ours[name] & ~mask).any())]
                self.check(where, not grown, f"weights that its parent had pruned live again in "
                                             f"{', '.join(grown)}")
            here, folder, path = parent, parent.path.parent, parent.path.resolve()
            if not self.check(where, path not in seen,
                              f"{path} descends from itself, by what the files say"):
                return
            seen.add(path)

    def _named(self, where: str, what: str, folder: Path, said: Reference) -> Checkpoint | None:
        """The file that a checkpoint names; one that lies outside of the run may be gone."""
        path = (folder / said.path).resolve()
        if not path.is_file() and not path.is_relative_to(self.run.resolve()):
            return None
        found = self.checkpoint(where, path)
        same = found is not None and self.check(
            where, found.is_named_by(said), f"{what} {path} is not the file that it was made from")
        return found if same else None

    def _ensemble(self, where: str, folder: Path, result: Ensemble, names: list[str]) -> None:
        """That an ensemble is of just these networks; what they say together, computed anew."""
        self.equal(where, "the number of members", len(result.members), len(names))
        if not self.equal(where, "the list of members", result.members, names):
            return
        members = [self.checkpoint(where, folder.parent / name / CHECKPOINT) for name in names]
        if not all([self.check(where, one is not None and one.digest == digest,
                               f"its member {name} has changed")
                    for name, one, digest in zip(names, members, result.members_digests,
                                                 strict=True)]):
            return
        params = sum(sizes.parameters(one.network) for one in members)
        self.equal(where, "params", result.params, params)
        if self.dataset is None:
            return
        images, labels = self.dataset.test, self.dataset.test.labels
        logits = SnapshotEnsemble(members, self.device).predict(self.dataset, images, self.device)
        found = agreement(logits, labels)
        for name in ("accuracy", "growing_accuracy"):
            self.close(where, name.replace("_", " "), result, getattr(result, name),
                        getattr(found, name))
        self.close(where, "disagreement", result, sum(result.disagreement, []),
                    sum(found.disagreement, []))
        self.close(where, "test accuracy", result, [result.test_accuracy],
                    found.growing_accuracy[-1:])
        self.close(where, "test loss", result, [result.test_loss], [found.loss], loss=True)

    def _evaluate(self, where: str, folder: Path, found: Checkpoint, result: Result) -> None:
        """Loss and accuracies of a network, and its accuracy before retraining, computed anew."""
        if self.dataset is None:
            return
        wanted = [("test", found, result.test_accuracy, "test accuracy")]
        if self.dataset.val is not None and result.adopted_from is None:
            wanted.append(("val", found, result.val_accuracy, "validation accuracy"))
        if result.pruned_accuracy is not None and (folder / PRUNED).is_file():
            pruned = self.checkpoint(f"{where}/{PRUNED}", folder / PRUNED)
            wanted.append(("test", pruned, result.pruned_accuracy, "accuracy before retraining"))
        for split, network, said, what in wanted:
            images = getattr(self.dataset, split)
            try:
                loss, accuracy = evaluate(network.network, self.dataset, images, self.device)
            except (AttributeError, RuntimeError, ValueError, IndexError) as error:
                self.check(where, False,
                           f"cannot be evaluated on {self.dataset.name}: {first_line(error)}")
                continue
            self.close(where, what, result, [said], [accuracy], images=len(images))
            if what == "test accuracy":
                self.close(where, "test loss", result, [result.test_loss], [loss], loss=True)


def _images(info: Info, dataset: Dataset | None) -> SimpleNamespace:
    """What result_of() asks of a data set, by what a checkpoint says of its images."""
    labels = torch.zeros(1, dtype=torch.int64) if dataset is None else dataset.test.labels
    return SimpleNamespace(name=info.data.get("name"), image_size=info.data.get("image_size") or 1,
                           train=range(info.data.get("images", {}).get("train", 0)),
                           test=SimpleNamespace(labels=labels))
