"""What the pipeline leaves on disk, read back: a Run is a run folder with every finished result in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kesi.method import paper
from kesi.runs.layout import RETRAININGS, seed_of
from kesi.runs.record import read_result, read_run
from kesi.system.errors import KesiError, UsageError


@dataclass
class Run:
    """One run folder: what run.json says, and the result of every finished stage by seed and stage name."""

    folder: Path
    info: dict
    seeds: dict[int, dict[str, dict]]
    label: str = ""

    @property
    def subject(self) -> str:
        """The network and the data set, for titles."""
        return f"{self.info['arch']} on {self.info.get('data_name') or self.info['dataset']}"

    @property
    def rounds(self) -> int:
        return int(self.info["rounds"])

    def ensemble(self, retraining: str) -> str:
        """The stage name of the ensemble of the snapshots of "onecycle" or "usual" retraining."""
        return "ensemble" if retraining == "onecycle" else "ensemble-usual"

    def retrainings(self) -> tuple[str, ...]:
        """The retrainings that this run is to make: one-cycle, and the usual one where it compares."""
        return RETRAININGS if self.info.get("compare") else RETRAININGS[:1]

    def stages(self) -> list[str]:
        """The names of all stages of a complete seed, in the order in which they run."""
        names = ["baseline"]
        for retraining in self.retrainings():
            names += [f"{retraining}-{number}" for number in range(1, self.rounds + 1)]
            names.append(self.ensemble(retraining))
        return [*names, "kesi"]

    def results(self, stage: str) -> list[dict]:
        """The results of a stage, one for each seed that has finished it."""
        return [results[stage] for _, results in sorted(self.seeds.items()) if stage in results]

    def values(self, stage: str, name: str = "test_accuracy") -> list[float]:
        """One figure of a stage for each seed that has it."""
        return [result[name] for result in self.results(stage) if result.get(name) is not None]

    def growing(self, retraining: str, members: int) -> list[float]:
        """Accuracy (%) of the ensemble of the first ``members`` networks, for each seed that has it."""
        series = self.values(self.ensemble(retraining), "growing_accuracy")
        return [accuracies[members - 1] for accuracies in series if len(accuracies) >= members]


def describe_run(folder: Path) -> Run:
    """What run.json says, without any result. Raises UsageError where there is none, KesiError if damaged."""
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder} is not a run folder: it has no run.json")
    info = read_run(folder / "run.json")
    return Run(folder, info, {seed: {} for seed in info.get("seeds", [])}, paper.CRITERIA[info["method"]])


def load_run(folder: Path) -> Run:
    """Read a run folder. Raises UsageError where it is none, KesiError for damaged files."""
    run = describe_run(folder)
    for path in sorted(folder.glob("seed*/*/result.json")):
        if (seed := seed_of(path.parent.parent)) is not None:
            run.seeds.setdefault(seed, {})[path.parent.name] = read_result(path)
    return run


def load_runs(folders: Sequence[Path], data_name: str | None = None) -> list[Run]:
    """Read the runs of one table, filter pruning first. Raises UsageError where they do not fit together.

    ``data_name``: what titles call the data set, such as what an "imagefolder" holds.
    """
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not unique:
        raise UsageError("name at least one run folder")
    runs = [load_run(folder) for folder in unique.values()]
    if data_name:
        for run in runs:
            run.info["data_name"] = data_name
    first = runs[0]
    for run in runs[1:]:
        for name in ("arch", "dataset"):
            if run.info[name] != first.info[name]:
                raise UsageError(f"one table is of one network and data set, but {name} is "
                                 f"{first.info[name]} in {first.folder} and {run.info[name]} in {run.folder}")
    if not any(results for run in runs for results in run.seeds.values()):
        raise KesiError(f"nothing is finished yet in {', '.join(str(run.folder) for run in runs)}")
    runs.sort(key=lambda run: list(paper.CRITERIA).index(run.info["method"]))
    if len({run.label for run in runs}) < len(runs):  # two runs of one method: told apart by folder
        common = os.path.commonpath(list(unique))
        for run in runs:
            run.label += f" [{os.path.relpath(run.folder.resolve(), common)}]"
    return runs


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds all ``folders`` (of a single one, itself); relative where it lies below here."""
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
