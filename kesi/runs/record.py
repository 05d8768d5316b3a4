"""The names of files and folders in a run, and what stands in its JSON files."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from kesi.checkpoints import fields
from kesi.checkpoints.records import Count, Data, Made, Origin, decode
from kesi.data.split import Size
from kesi.method import sizes
from kesi.method.recipes import METHODS
from kesi.method.schedules import Training
from kesi.method.sizes import layers_of, macs, parameters
from kesi.method.snapshot import BASELINE, KESI, Snapshot, chain, digest_of, ensemble_name
from kesi.method.training import Epoch
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, read_text

CHECKPOINT, PRUNED = "checkpoint.pth.tar", "pruned.pth.tar"

# what a stage came out as whose own network was lost, and is named by others
OTHER = "other.pth.tar"

# where the images are on this machine: of use here only, and no part of what is published
IMAGES = "images.json"

METRICS, RESULT, RUN = "metrics.jsonl", "result.json", "run.json"

# what a study notes in its folder, where a run has RUN
STUDY = "study.json"

# what move_aside() calls a folder that is in the way of a fresh start
ASIDE = re.compile(r"\.old-\d+$")

Seeds = Annotated[list, fields.several(fields.whole(0))]


def seed_of(folder: Path) -> int | None:
    """The seed whose stages are in a folder of a run: 0 of "seed0"; None if it is no such folder.
    """
    number = folder.name.removeprefix("seed")
    return (int(number) if number != folder.name and number.isdecimal() and number.isascii()
            else None)


def _layer(value: object) -> bool:
    """[name, before, after]; see kesi.method.sizes.layers_of."""
    return isinstance(value, list) and len(value) == 3 and fields.text(value[0]) and (
        fields.several(fields.whole(0))(value[1:]))


def _width(value: object) -> bool:
    return value == "M" or fields.whole(0, 10**6)(value)


@dataclass(kw_only=True)
class Faster:
    """Widths that were chosen by latency: for ``speedup`` with a ``batch``, from ``seconds`` of the
    unpruned network to those of the last one. ``rates``: of the widths, in proportion to which they
    shrink; older records do not say them.
    """

    speedup: float
    batch: Count
    allocation: str
    round_to: Count
    rounds: Count
    arch: str
    runtime: str
    threads: Count
    device: str
    seconds: Annotated[list[float], lambda value: len(value) == 2 and min(value) > 0]
    rates: list[float] | None = None

    def text(self) -> str:
        """One line for the person who asked."""
        before, after = self.seconds
        return (f"latency, batch {self.batch}: {1e3 * before:.2f} ms -> {1e3 * after:.2f} ms, "
                f"{before / after:.2f}x ({self.speedup:g}x was asked for; {self.runtime}, "
                f"{self.threads} thread)")


@dataclass(kw_only=True)
class Fitted:
    """Epochs that were scaled to a budget of ``seconds``, and what they were expected to take.

    ``measured``: kesi.method.plan.Speed, as plain values.
    """

    seconds: float
    scale: float
    expected: float
    device: str
    measured: dict


@dataclass(kw_only=True)
class RunRecord(Origin):
    """run.json: what is run in a folder. ``recipe`` as Recipe.describe() gave it,
    ``data`` as Dataset.describe().

    ``baseline``: the path of a trained network instead of step 1, from the run's folder if it lies
    in it; ``pretrained``: weights that step 1 starts from. ``fitted_to``: see Recipe.
    ``handed_over``: the stage that is, by seed folder. ``unlabelled``: the digest of images without
    labels in the last step, ``unlabelled_images``: how many they are. ``latency``, ``budget``: what
    was measured before it began, where these were asked for; what followed stands in the recipe.
    """

    arch: str
    dataset: str
    method: Annotated[str, lambda value: value in METHODS]
    recipe: dict
    format: int = 2
    seeds: Seeds = field(default_factory=list)
    recipe_hash: str | None = None
    data: Data = field(default_factory=dict)
    baseline: str | None = None
    pretrained: str | None = None
    fitted_to: Count | None = None
    handed_over: dict[str, Annotated[str, fields.file_name]] = field(default_factory=dict)
    latency: Faster | None = None
    budget: Fitted | None = None
    unlabelled: str | None = None
    unlabelled_images: Count | None = None

    @property
    def rounds(self) -> int:
        """How often is pruned."""
        return len(self.recipe["rounds"])

    @property
    def retrainings(self) -> list[str]:
        """The names of the retrainings, the method's own first."""
        return [name for name in self.recipe["trainings"] if name not in (BASELINE, KESI)]

    def training(self, kind: str) -> Training | None:
        """The training of a kind of stage; None where this process does not know its schedule."""
        said = {name: value for name, value in self.recipe["trainings"][kind].items()
                if name != "schedule_code"}
        try:
            return Training(**said | {"milestones": tuple(said["milestones"])})
        except UsageError:
            return None

    def stages(self) -> list[str]:
        """The names of all stages of a complete seed, in the order in which they run."""
        return stage_names(self.retrainings, self.rounds)


def stage_names(retrainings: Sequence[str], rounds: int) -> list[str]:
    """The names of all stages of a seed, in the order in which they run."""
    names = [BASELINE]
    for retraining in retrainings:
        names += [*chain(retraining, rounds)[1:], ensemble_name(retraining, retrainings)]
    return [*names, KESI]


@dataclass(kw_only=True)
class Result(Made):
    """result.json of a trained network. Accuracies are in percent, MACs of one image.

    ``layers``: [name, before, after] of what can be pruned. ``images``: processed in training.
    ``digest`` is that of the checkpoint's file, ``network_digest`` that of the network alone.
    """

    stage: str
    arch: str
    dataset: str
    num_classes: Annotated[int, fields.whole(1, 10**6)]
    image_size: Annotated[Any, fields.size]  # of a square, or [height, width]
    cfg: Annotated[list, fields.several(_width)]
    params: Count
    nonzero_params: Count
    macs: Count
    sparsity: float | None = None
    empty_layers: list[str] = field(default_factory=list)
    layers: Annotated[list, fields.several(_layer)] = field(default_factory=list)
    at_chance: bool = False
    test_accuracy: float
    test_loss: float
    val_accuracy: float | None = None
    epochs: Annotated[int, fields.whole(0, 10**6)]
    images: Count
    seconds: float
    started: str | None = None
    adopted_from: str | None = None
    network_digest: str
    digest: str | None = None


@dataclass(kw_only=True)
class Ensemble(Origin):
    """result.json of an ensemble: what its members say together. All in percent but the loss.

    ``accuracy``: of each member; ``growing_accuracy``: of the first one, two, ... together;
    ``disagreement``: K x K, of the images that two members classify differently. ``tested_on``: a
    digest of the test images.
    """

    stage: str
    kind: str = "ensemble"
    seed: Count
    members: list[Annotated[str, fields.file_name]]
    members_digests: list[str]
    accuracy: list[float]
    growing_accuracy: list[float]
    disagreement: list[list[float]]
    test_accuracy: float
    test_loss: float
    params: Count
    tested_on: str | None = None


def read_run(path: Path) -> RunRecord:
    """What a run.json says. Raises KesiError where it is damaged."""
    record = decode(RunRecord, read_json(path), path)
    recipe = record.recipe
    try:
        names = list(recipe["trainings"])
        if names[:1] != [BASELINE] or names[-1] != KESI or len(names) < 3:
            raise ValueError("it has no baseline, retraining and distillation")
        for name in names:
            said = recipe["trainings"][name]
            for number in ("epochs", "batch_size"):
                if not fields.whole(1, 10**6)(said[number]):
                    raise ValueError(f"{name} {number} {fields.shown(said[number])}")
            if not (fields.number(said["lr"]) and fields.text(said["schedule"])
                    and fields.several(fields.whole(0))(said["milestones"])):
                raise ValueError(f"{name} has no learning rate or schedule")
            record.training(name)
        share = fields.several(lambda one: fields.number(one) or fields.several(fields.number)(one))
        if not share(recipe["rounds"]) or not 0 < len(recipe["rounds"]) <= 1000:
            raise ValueError("it has no rounds")
        for name in ("arch", "dataset", "method", "family"):
            if not fields.text(recipe[name]):
                raise ValueError(f"{name} {fields.shown(recipe[name])}")
        for name in ("loss", "criterion"):
            if not fields.dictionary(recipe[name]):
                raise ValueError(f"{name} {fields.shown(recipe[name])}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise KesiError(f"{path} is damaged: its recipe is none ({error})") from error
    return record


def read_result(path: Path) -> Result | Ensemble:
    """What a result.json says. Raises KesiError where it is damaged."""
    said = read_json(path)
    if not isinstance(said, dict) or "members" not in said:
        return decode(Result, said, path)
    record = decode(Ensemble, said, path)
    count = len(record.members)
    for name in ("members_digests", "accuracy", "growing_accuracy", "disagreement"):
        if len(getattr(record, name)) != count:
            raise KesiError(f"{path} is damaged: its {name} is not that of {count} members")
    if not count or any(len(row) != count for row in record.disagreement):
        raise KesiError(f"{path} is damaged: its disagreement is not that of {count} members")
    return record


def read_epochs(path: Path) -> list[Epoch]:
    """The rows of a metrics.jsonl, one an epoch, but for one that is being written.
    Raises KesiError if damaged."""
    rows = []
    lines = read_text(path).splitlines(keepends=True)
    for place, line in enumerate(lines, start=1):
        try:
            rows.append(decode(Epoch, json.loads(line), path))
        except (ValueError, RecursionError) as error:
            if place == len(lines) and not line.endswith("\n"):
                break
            raise KesiError(f"{path} is damaged: line {place} is not valid JSON") from error
    return rows


def history_digest(history: list[Epoch]) -> str:
    """SHA-256 of the figures of every epoch; not of the seconds, which no second run repeats."""
    return digest_of([{key: value for key, value in asdict(row).items() if key != "seconds"}
                      for row in history])


def network_of(snapshot: Snapshot, method: str | None, image_size: Size) -> dict:
    """What a result says of the network itself, which its checkpoint alone tells."""
    model, masks = snapshot.network, snapshot.masks
    params = parameters(model)
    return {"arch": model.arch, "num_classes": model.num_classes, "cfg": list(model.cfg),
            "params": params, "nonzero_params": params - snapshot.pruned_weights,
            "sparsity": masks.sparsity() if masks else None, "macs": macs(model, image_size),
            "empty_layers": sizes.empty_layers(masks),
            "layers": layers_of(model, masks, method) or [], "network_digest": snapshot.digest}
