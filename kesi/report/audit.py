"""What kesi verify holds true of a finished run: a class that counts checks and collects what does not hold."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.fields import described
from kesi.data import Dataset
from kesi.method import sizes
from kesi.method.distillation import SnapshotEnsemble, agreement
from kesi.method.sizes import parameters
from kesi.method.training import evaluate
from kesi.runs.layout import CHECKPOINT, METRICS, PRUNED, RESULT
from kesi.runs.record import KEPT, METRICS_KEPT, history_digest, network_of, read_epochs, read_result
from kesi.system.errors import KesiError, first_line
from kesi.system.provenance import device_name, recipe_hash, versions

TOLERANCE, IMAGES = 0.1, 2  # elsewhere than where the run was made: percent of the test images, or so many

LOSSES = 0.02  # likewise of a loss, relative

ENSEMBLES = ("ensemble", "ensemble-usual")

PIPELINE = re.compile(r"(onecycle|usual)-\d+|ensemble-usual")  # what else lies there is nobody's claim

STAGES = {"baseline": "baseline", "onecycle": "retrain", "usual": "usual", "kesi": "distill"}  # as recipes call them


class Verifier:
    """Counts the checks of one run and collects what does not hold, a line each."""

    def __init__(self, run: Path, dataset: Dataset | None = None, device: str = "cpu", info: dict | None = None):
        """``dataset``: the images that accuracies are recomputed on; None leaves the accuracies alone.

        ``info``: what run.json says, which the stages are held against.
        """
        self.run, self.dataset, self.device = Path(run), dataset, device
        self.info, self.recipe = info, (info or {}).get("recipe")
        self.checks, self.failures = 0, []
        self._loaded: dict[Path, Checkpoint | None] = {}

    def check(self, where: str, holds: bool, trouble: str) -> bool:
        """Count a check; ``trouble`` is what to say where it does not hold."""
        self.checks += 1
        if not holds:
            self.failures.append(f"{where}: {trouble}")
        return holds

    def equal(self, where: str, what: str, recorded: object, found: object) -> bool:
        """check() that two values are the same."""
        return self.check(where, recorded == found, f"{what} is {_short(recorded)} in the result, but {_short(found)}")

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
        for path in sorted((self.run / f"seed{number}").glob("*/")):
            if PIPELINE.fullmatch(path.name) and path.name not in stages:
                self.check(f"seed{number}/{path.name}", False, "run.json does not speak of this stage")
        for stage in stages:
            where, folder = f"seed{number}/{stage}", self.run / f"seed{number}" / stage
            try:
                result = read_result(folder / RESULT)
            except KesiError as error:
                self.check(where, False, str(error) if (folder / RESULT).exists() else "is not finished")
                continue
            self.equal(where, "the stage", result.get("stage"), stage)
            self.equal(where, "the seed", result.get("seed"), number)
            if stage in ENSEMBLES:
                self._ensemble(where, folder, result)
            else:
                self._network(where, folder, result)
                self._lineage(where, folder, stage, result)

    def _network(self, where: str, folder: Path, result: dict) -> None:
        found = self.checkpoint(where, folder / CHECKPOINT)
        if found is None:
            return
        self.equal(where, "the checkpoint's digest", result.get("digest"), found.digest)
        if self.check(where, "image_size" in result, "does not say the image size"):
            self._sizes(where, found, result)
        for name in KEPT:
            self.equal(where, name.replace("_", " "), result.get(name), found.info.get(name))
        self._images(where, found, result)
        if self.recipe is not None:
            self.equal(where, "arch", result.get("arch"), self.recipe.get("arch"))
            self.equal(where, "the data set", result.get("dataset"), self.recipe.get("dataset"))
        self._descent(where, folder, found)
        for teacher in found.info.get("teachers") or []:
            self._reference(where, "its teacher", folder, teacher)
        if "adopted_from" in result:
            self.equal(where, "the network it was taken over from", result["adopted_from"], found.network_digest)
        else:
            self._history(where, folder, found, result)
        self._figures_of(where, "", found, result, ("test_loss", "test_accuracy"))
        if result.get("pruned_accuracy") is not None and (folder / PRUNED).is_file():
            pruned = self.checkpoint(f"{where}/{PRUNED}", folder / PRUNED)
            self._figures_of(where, " before retraining", pruned, result, (None, "pruned_accuracy"))

    def _images(self, where: str, found: Checkpoint, result: dict) -> None:
        """What the result says of the images, and how many of them the network has seen."""
        said = found.info.get("dataset") or {}
        if not self.check(where, described(said), "its checkpoint says nonsense of its images"):
            return
        self.equal(where, "the data set", result.get("dataset"), said.get("name"))
        self.equal(where, "the image size", result.get("image_size"), said.get("image_size"))
        seen = (said.get("images") or {}).get("train", 0) * (result.get("epochs") or 0)
        self.equal(where, "the number of images", result.get("images"), seen)

    def _sizes(self, where: str, found: Checkpoint, result: dict) -> None:
        masks = found.masks
        self.equal(where, "network_digest", result.get("network_digest"), found.network_digest)
        said = network_of(found.model, masks, found.info.get("method"), result["image_size"])
        for name, value in said.items():
            self.equal(where, name, result.get(name), value)
        if masks is not None:
            broken = [name for name, mask in masks.state_dict().items()
                      if bool(found.model.get_parameter(name)[~mask].any())]
            self.check(where, not broken, f"pruned weights are not zero in {', '.join(broken)}")

    def _lineage(self, where: str, folder: Path, stage: str, result: dict) -> None:
        """That a stage was made from just the files that the method makes it from, and as the recipe says."""
        kind, _, number = stage.partition("-")
        if kind == "baseline":
            self._beginning(where, result)
            return
        found, beside = self.checkpoint(where, folder / CHECKPOINT), folder.parent
        if found is None:
            return
        if kind == "kesi":
            done = len(list(beside.glob(f"onecycle-*/{RESULT}")))
            rounds = done if self.recipe is None else len(self.recipe["rounds"])
            snapshots = [beside / name / CHECKPOINT for name in chain("onecycle", rounds)]
            self._made_from(where, folder, found.info.get("parent"), snapshots[-1])
            teachers = found.info.get("teachers") or []
            if self.equal(where, "the number of teachers", len(teachers), len(snapshots)):
                for teacher, snapshot in zip(teachers, snapshots, strict=True):
                    self._made_from(where, folder, teacher, snapshot)
            if self.recipe is not None:
                self.equal(where, "the temperature", found.info.get("temperature"), self.recipe.get("temperature"))
            return
        self._made_from(where, folder, found.info.get("parent"), folder / PRUNED)
        pruned = self.checkpoint(f"{where}/{PRUNED}", folder / PRUNED)
        if pruned is not None:
            before = chain(kind, int(number))[-2]
            self._made_from(f"{where}/{PRUNED}", folder, pruned.info.get("parent"), beside / before / CHECKPOINT)
            if self.recipe is not None:
                wanted = {"method": self.recipe["method"], "round": int(number),
                          "amount": self.recipe["rounds"][int(number) - 1]}
                for name, value in wanted.items():
                    self.equal(f"{where}/{PRUNED}", name, pruned.info.get(name), value)

    def _beginning(self, where: str, result: dict) -> None:
        """That the baseline was trained, taken over, or begun from other weights, as run.json says."""
        if self.info is None:
            return
        self.equal(where, "whether it was taken over", "adopted_from" in result, self.info.get("baseline") is not None)
        if "adopted_from" not in result:
            given = (result.get("settings") or {}).get("pretrained")
            self.equal(where, "what it began from", given, self.info.get("pretrained"))

    def _made_from(self, where: str, folder: Path, reference: dict | None, path: Path) -> None:
        named = None if reference is None else (folder / reference["path"]).resolve()
        self.check(where, named == path.resolve(), f"it says that it was made from {named}, and not from {path}")

    def _descent(self, where: str, folder: Path, found: Checkpoint) -> None:
        """The chain of parents up to the baseline, which each file names by its digest."""
        here = found
        while here is not None and here.info.get("parent"):
            parent = self._reference(where, "its parent", folder, here.info["parent"])
            if parent is None:
                return
            if parent.masks is not None and self.check(where, here.masks is not None, "its parent's masks are lost"):
                ours = here.masks.state_dict()
                grown = [name for name, mask in parent.masks.state_dict().items() if bool((ours[name] & ~mask).any())]
                self.check(where, not grown, f"weights that its parent had pruned live again in {', '.join(grown)}")
            here, folder = parent, parent.path.parent

    def _reference(self, where: str, what: str, folder: Path, reference: dict) -> Checkpoint | None:
        """The file that a checkpoint says it was made from; one that lies outside of the run may be gone."""
        path = (folder / reference["path"]).resolve()
        if not path.is_file() and not path.is_relative_to(self.run.resolve()):
            return None
        found = self.checkpoint(where, path)
        same = found is not None and self.check(where, found.is_named_by(reference),
                                                f"{what} {path} is not the file that it was made from")
        return found if same else None

    def _history(self, where: str, folder: Path, found: Checkpoint, result: dict) -> None:
        """The figures of the last epoch, which stand in three places, and those of all epochs by their digest."""
        stage, metrics = found.info.get("recipe") or {}, found.info.get("metrics") or {}
        self.equal(where, "the recipe hash", result.get("recipe_hash"), recipe_hash(stage))
        if self.recipe is not None:
            self.equal(where, "the recipe", stage, self.recipe.get(STAGES.get(result.get("kind"))))
        try:
            rows = read_epochs(folder / METRICS)
        except KesiError as error:
            self.check(where, False, str(error))
            return
        numbers = [row["epoch"] for row in rows]
        whole = len(rows) == result.get("epochs") and numbers == list(range(1, len(rows) + 1))
        if not self.check(where, whole, f"the number of epochs is {result.get('epochs')} in the result, but {METRICS} "
                                        f"has {len(rows)}"):
            return
        for name in METRICS_KEPT:
            self.equal(where, f"the {name.replace('_', ' ')}", result.get(name), metrics.get(name))
            self.equal(where, f"the {name.replace('_', ' ')}", result.get(name), rows[-1].get(name))
        digest = result.get("history_digest")
        self.equal(where, "the digest of the epochs", digest, found.info.get("history_digest"))
        self.check(where, digest == history_digest(rows), f"{METRICS} does not hold the epochs of this training")
        seconds = round(sum(row.get("seconds") or 0 for row in rows), 2)
        self.equal(where, "the number of seconds", result.get("seconds"), seconds)

    def _ensemble(self, where: str, folder: Path, result: dict) -> None:
        names, digests = result.get("members"), result.get("members_digests")
        if not self.check(where, bool(names and digests), "does not name its members"):
            return
        kind = "onecycle" if result.get("stage") == "ensemble" else "usual"
        if not self.equal(where, "the list of members", names, chain(kind, len(names) - 1)):
            return
        if self.recipe is not None:
            self.equal(where, "the number of members", len(names), len(self.recipe["rounds"]) + 1)
        members = [self.checkpoint(where, folder.parent / name / CHECKPOINT) for name in names]
        same = [self.check(where, one is not None and one.network_digest == digest, f"its member {name} has changed")
                for name, one, digest in zip(names, members, digests, strict=True)]
        if not all(same):
            return
        self.equal(where, "params", result.get("params"), sum(parameters(one.model) for one in members))
        if self.dataset is None:
            return
        ensemble = SnapshotEnsemble([one.model for one in members], names, self.device)
        found = agreement(ensemble.predict(self.dataset, self.dataset.test, self.device), self.dataset.test.labels)
        for name in ("accuracy", "growing_accuracy"):
            self._figures(where, name.replace("_", " "), result, result.get(name), getattr(found, name))
        self._figures(where, "test accuracy", result, [result.get("test_accuracy")], found.growing_accuracy[-1:])
        self._figures(where, "disagreement", result, sum(result.get("disagreement") or [], []),
                      sum(found.disagreement, []))
        self._loss(where, "test loss", result, result.get("test_loss"), found.loss)

    def _figures_of(self, where: str, when: str, found: Checkpoint | None, result: dict,
                    names: tuple[str | None, str]) -> None:
        """Loss and accuracy of a network, recomputed, under the names that they have in the result."""
        if found is None or self.dataset is None:
            return
        try:
            loss, accuracy = evaluate(found.model, self.dataset, self.dataset.test, self.device)
            val = None if self.dataset.val is None or when else evaluate(found.model, self.dataset, self.dataset.val,
                                                                        self.device)[1]
        except (RuntimeError, ValueError, IndexError) as error:
            self.check(where, False, f"cannot be evaluated on {self.dataset.name}: {first_line(error)}")
            return
        if not when:
            chance = accuracy <= sizes.chance(self.dataset.test.labels)
            self.equal(where, "whether it is at chance", result.get("at_chance"), chance)
        self._figures(where, f"{'test ' * (not when)}accuracy{when}", result, [result.get(names[1])], [accuracy])
        if names[0] is not None:
            self._loss(where, "test loss", result, result.get(names[0]), loss)
        if val is not None and "adopted_from" not in result:
            self._figures(where, "validation accuracy", result, [result.get("val_accuracy")], [val])

    def _here(self, result: dict) -> bool:
        """Whether figures have to come out to the last bit: on the machine of the run."""
        said = result.get("versions") or {}
        same = (result.get("device"), said.get("torch")) == (device_name(self.device), versions()["torch"])
        return same and torch.device(self.device).type == "cpu"  # a GPU chooses its algorithms in every process

    def _loss(self, where: str, what: str, result: dict, recorded: float | None, found: float) -> None:
        allowed = 0.0 if self._here(result) else LOSSES * max(1.0, abs(found))
        holds = recorded is not None and abs(recorded - found) <= allowed
        self.check(where, holds, f"the {what} is {recorded} in the result, and {found} recomputed")

    def _figures(self, where: str, what: str, result: dict, recorded: list, found: list[float]) -> None:
        allowed = 0.0 if self._here(result) else max(TOLERANCE, 100 * IMAGES / len(self.dataset.test)) + 1e-9
        holds = (isinstance(recorded, list) and len(recorded) == len(found) and all(
            isinstance(old, (int, float)) and abs(old - new) <= allowed
            for old, new in zip(recorded, found, strict=True)))
        self.check(where, holds, f"the {what} is {_words(recorded)} in the result, and {_words(found)} recomputed")


def chain(kind: str, rounds: int) -> list[str]:
    """The names of the baseline and the snapshots after it, "onecycle" or "usual"."""
    return ["baseline", *[f"{kind}-{number}" for number in range(1, rounds + 1)]]


def _words(values: object) -> str:
    return " ".join(f"{value:.3f} %" if isinstance(value, (int, float)) else str(value) for value in values) \
        if isinstance(values, list) else str(values)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
