"""What the pipeline leaves on disk, read back:
a Run is a run folder with every finished result in it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from kesi.checkpoints.records import Origin
from kesi.data import INFO
from kesi.method import paper
from kesi.method.recipes import CODE, METHODS
from kesi.method.snapshot import BASELINE, KESI, chain, ensemble_name
from kesi.runs.folder import noted_images
from kesi.runs.record import (
    ASIDE,
    IMAGES,
    RESULT,
    RUN,
    Ensemble,
    Result,
    RunRecord,
    read_result,
    read_run,
    seed_of,
)
from kesi.system.errors import KesiError, UsageError, visible


@dataclass
class Run:
    """One run folder: what run.json says, and the result of every finished stage by seed
    and stage name.

    ``label``: what tables call its criterion; ``data_name``: what titles call its images.
    ``places``: the folders of seeds that were run apart from the others, and lie elsewhere.
    """

    folder: Path
    record: RunRecord
    seeds: dict[int, dict[str, Result | Ensemble]]
    label: str = ""
    data_name: str = ""
    places: dict[int, Path] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The network and the data set, for titles."""
        return f"{self.record.arch} on {self.data_name or self.record.dataset}"

    def place(self, seed: int) -> Path:
        """The folder of a seed's stages."""
        return self.places.get(seed, self.folder / f"seed{seed}")

    def results(self, stage: str) -> list[Result | Ensemble]:
        """The results of a stage, one for each seed that has finished it."""
        return [results[stage] for _, results in sorted(self.seeds.items()) if stage in results]

    def values(self, stage: str, name: str = "test_accuracy") -> list[float]:
        """One figure of a stage for each seed that has it."""
        found = [getattr(result, name, None) for result in self.results(stage)]
        return [value for value in found if value is not None]

    def growing(self, retraining: str, members: int) -> list[float]:
        """Accuracy (%) of the ensemble of the first ``members`` networks,
        for each seed that has it."""
        series = self.values(ensemble_name(retraining, self.record.retrainings), "growing_accuracy")
        return [accuracies[members - 1] for accuracies in series if len(accuracies) >= members]


def describe_run(folder: Path) -> Run:
    """What run.json says, without any result.
    Raises UsageError where there is none, KesiError if damaged."""
    if not (folder / RUN).is_file():
        what = ("belongs to a study, whose table is study.md: its stages, in seed folders, are for "
                "compare, predict and export" if (folder / "study.json").is_file() else
                "is not a run folder: it has no run.json")
        raise UsageError(f"{folder} {what}")
    record = read_run(folder / RUN)
    label = paper.criterion_label(record.method, record.recipe["criterion"].get("name"))
    return Run(folder, record, {seed: {} for seed in record.seeds}, label)


def load_run(folder: Path) -> Run:
    """Read a run folder. Raises UsageError where it is none, KesiError for damaged files."""
    run = describe_run(folder)
    for path in sorted(folder.glob(f"seed*/*/{RESULT}")):
        seed = seed_of(path.parent.parent)
        if seed is not None and not ASIDE.search(path.parent.name):
            run.seeds.setdefault(seed, {})[path.parent.name] = read_result(path)
    return run


def clearly_above(one: float, other: float, images: int) -> bool:
    """Whether an accuracy in percent of so many images is above another by more than the standard
    error of their difference, which is that of two independent shares. Networks of one chain err
    alike, so that theirs is smaller: what is clear here is rarely chance."""
    return one - other > (sum(share * (100 - share) for share in (one, other)) / images) ** 0.5


def handed_over(run: Run, seed: int) -> str:
    """The stage of a finished seed whose network a user gets: the distilled one, unless one of the
    last snapshots, which are of its size, is clearly above it on held-out images. The test images
    have no say."""
    last = [KESI, *(chain(name, run.record.rounds)[-1] for name in run.record.retrainings)]
    held_out = {name: run.seeds[seed][name].val_accuracy for name in last
                if name in run.seeds[seed]}
    images = run.record.data.get("images", {}).get("val")
    if not images or None in held_out.values():
        return KESI
    best = max(held_out, key=held_out.get)
    return best if clearly_above(held_out[best], held_out[KESI], images) else KESI


def stage_of(path: Path) -> Path:
    """``path``, or if that is the folder of a run, the folder of the stage that it hands over, of
    the first seed that is finished."""
    if not (path / RUN).is_file():
        return path
    record = read_run(path / RUN)
    found = [path / seed / record.handed_over.get(seed, KESI)
             for seed in (f"seed{number}" for number in sorted(record.seeds or [0]))]
    return next((stage for stage in found if (stage / RESULT).is_file()), found[0])


def load_runs(folders: Sequence[Path], data_name: str | None = None,
              across_code: bool = False) -> list[Run]:
    """Read the runs of one table, filter pruning first; those that differ in nothing but their
    seeds become one run. Raises UsageError where they do not fit together.

    ``across_code``: also those that other code made, by its digests in their recipes.
    ``data_name``: what titles call the data set, such as what an "imagefolder" holds.
    """
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not unique:
        raise UsageError("name at least one run folder")
    runs = [load_run(folder) for folder in unique.values()]
    for run in runs:
        run.data_name = data_name or _folder_name(run)
    first = runs[0]
    for run in runs[1:]:
        for name in ("arch", "dataset"):
            old, new = getattr(first.record, name), getattr(run.record, name)
            if old != new:
                raise UsageError(f"one table is of one network and data set, but {name} is "
                                 f"{old} in {first.folder} and {new} in {run.folder}")
        if other := other_images(first.record.data, run.record.data):
            raise UsageError(f"one table is of one set of images, but {first.folder} and "
                             f"{run.folder} have other {other}")
    if not any(results for run in runs for results in run.seeds.values()):
        raise KesiError(f"nothing is finished yet in {', '.join(str(run.folder) for run in runs)}")
    runs = _joined(runs, across_code)
    runs.sort(key=lambda run: list(METHODS).index(run.record.method))
    if len({run.label for run in runs}) < len(runs):  # two runs of one method: told apart by folder
        common = os.path.commonpath([run.folder.resolve() for run in runs])
        for run in runs:
            run.label += f" [{visible(os.path.relpath(run.folder.resolve(), common))}]"
    return runs


def other_images(one: dict, other: dict) -> str:
    """In what the images of two records differ, which they describe (Dataset.describe()): "classes"
    or "test images", "" where in neither, as far as they say. At another size they are others."""
    if one.get("classes") != other.get("classes") and one.get("classes") and other.get("classes"):
        return "classes"
    first, second = (said.get("digests", {}).get("test") for said in (one, other))
    same_size = one.get("image_size") == other.get("image_size")
    return "test images" if first and second and first != second and same_size else ""


def _joined(runs: Sequence[Run], across_code: bool) -> list[Run]:
    """Runs whose seeds were run apart, in folders of their own, as one: of the same settings, and
    without a seed in common."""
    joined: list[Run] = []
    for run in runs:
        for place, other in enumerate(joined):
            same = _settings(other, across_code) == _settings(run, across_code)
            if same and not other.seeds.keys() & run.seeds.keys():
                first, second = sorted((other, run), key=lambda one: min(one.seeds, default=0))
                joined[place] = replace(
                    first, seeds={**first.seeds, **second.seeds},
                    record=replace(
                        first.record, seeds=sorted(first.seeds.keys() | second.seeds.keys()),
                        handed_over={**first.record.handed_over, **second.record.handed_over}),
                    places={seed: one.place(seed) for one in (first, second) for seed in one.seeds})
                break
        else:
            joined.append(run)
    return joined


def _settings(run: Run, across_code: bool) -> tuple:
    """What decides the outcome of a run beside its seeds: what run.json says but for its origin,
    and how its stages computed. Of a baseline that was taken over, its recipe, not its place."""
    made = {one.name for one in fields(Origin)} | {"seeds", "handed_over", "unlabelled_images"}
    said = {name: value for name, value in asdict(run.record).items() if name not in made}
    said["latency"] = said["latency"] and said["latency"] | {"seconds": None}  # as measured then
    said["budget"] = None  # its epochs stand in the recipe
    if said.pop("baseline") is not None:
        said["baseline"] = across_code or {results[BASELINE].recipe_hash
                                           for results in run.seeds.values() if BASELINE in results}
    if across_code:
        said = _without_code(said | {"recipe_hash": None})
    return said, {(result.settings.get("precision"), result.settings.get("sync_bn"))
                  for results in run.seeds.values() for result in results.values()
                  if isinstance(result, Result)}


def _without_code(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_code(one) for name, one in value.items()
                if name not in CODE}
    return [_without_code(one) for one in value] if isinstance(value, list) else value


def _folder_name(run: Run) -> str:
    """What titles call a folder of images: by its own name, where the run found them or else as
    the command had it; "" of other data sets, and where neither says."""
    info = INFO.get(run.record.dataset)
    if info is None or info.num_classes is not None:
        return ""
    noted = run.folder / IMAGES
    if noted.is_file() and (found := noted_images(run.folder, run.record.dataset)) is not None:
        return found.name
    try:
        words = shlex.split(run.record.command or "")
    except ValueError:  # quotes that do not close
        return ""
    flag = next((one for one in ("--data", "compress") if one in words[:-1]), None)
    said = words[words.index(flag) + 1] if flag else ""
    return "" if said.startswith("-") or Path(said).name == ".." else Path(said).name


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds all ``folders`` (of a single one, itself);
    relative where it lies below here."""
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
