"""The paper's whole grid as pipelines: one for each network, data set, method and seed,
and how far each one is.

    <save>/<dataset>-<arch>-<method>-seed<N>/    an ordinary run folder, with its own run.json and
                                                 lock

A folder of its own lets two seeds of one row run at the same time, on whatever machines. How far a
pipeline is can be told from its folder alone, so nothing has to be agreed between the processes
that share a grid.
"""

import functools
import os
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kesi import checkpoints, models
from kesi.data import INFO, load
from kesi.method import paper, plan, recipes
from kesi.method.recipes import Recipe
from kesi.method.snapshot import BASELINE, KESI
from kesi.runs.record import CHECKPOINT, RUN, Ensemble, Result, stage_names
from kesi.runs.results import Run, load_run
from kesi.system import locks
from kesi.system.errors import KesiError, UsageError, first_line

ROOT = Path(__file__).resolve().parent.parent

TABLES = {"cifar": ("cifar10", "cifar100"), "tinyimagenet": ("tinyimagenet",),
          "digits": ("digits",)}

DIGITS_ARCH = "resnet20"  # ours: the grid to try everything with

DONE, RUNNING, MISSING = "done", "running", "missing"

JOBS = "pipelines"

TERA = 1e12


@dataclass(frozen=True)
class Job:
    """One pipeline: a recipe, a seed, its run folder, and further flags of the script
    (the machine's side)."""

    recipe: Recipe
    seed: int
    folder: Path
    flags: tuple[str, ...] = ()
    trains: bool = True  # its baseline, in the work that is estimated; else a job before it does

    @property
    def baselines(self) -> Path:
        """The folder of the baselines that the pipelines of both methods start from."""
        return self.folder.parent / f"{self.recipe.dataset}-{self.recipe.arch}-baselines"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stages(self) -> list[str]:
        """The stages of which all must be there for the job to be done."""
        return stage_names(list(self.recipe.retrainings), len(self.recipe.rounds))

    def words(self) -> list[str]:
        """The command without the interpreter: the pipeline script and its arguments."""
        used = self.recipe
        script = ROOT / used.family / "pipeline.py"
        if not script.is_file():
            raise KesiError(f"{script} is not there: reproduce needs the scripts of the checkout")
        shown = os.path.relpath(script)
        return [str(script) if shown.startswith("..") else shown, "--arch", used.arch, "--dataset",
                used.dataset, "--method",
                used.method, "--compare", "--seeds", str(self.seed), "--save", str(self.folder),
                "--baseline-folder", str(self.baselines), "--no-report", *self.flags]

    def command(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", *self.words()])


def pipelines(tables: Iterable[str]) -> list[tuple[str, str, str]]:
    """The (arch, dataset, method) of the paper's tables, as kesi.method.paper has figures for them.
    """
    found = []
    for dataset in dict.fromkeys(dataset for table in tables for dataset in TABLES[table]):
        for arch in models.ARCHITECTURES:
            found += [(arch, dataset, method) for method in recipes.METHODS
                      if paper.published(arch, dataset, method)
                      or (arch, dataset) == (DIGITS_ARCH, "digits")]
    return found


def jobs(chosen: Sequence[tuple[str, str, str]], seeds: Sequence[int], save: Path, rounds: int
         | None = None, epochs_scale: float | None = None, words: Sequence[str] = ()) -> list[Job]:
    """A job for each pipeline and seed: all of the first seed, then all of the second, ...; of a
    seed, first those that train a baseline, which others of it would wait for.

    ``rounds`` and ``epochs_scale`` shorten the paper's recipe; ``words`` are passed on. Raises
    UsageError where they do not fit.
    """
    words = list(words)
    words += ["--rounds", str(rounds)] if rounds is not None else []
    words += ["--epochs-scale", str(epochs_scale)] if epochs_scale is not None else []
    found = []
    for arch, dataset, method in chosen:
        family = INFO[dataset].family
        recipe = recipes.recipe(arch, dataset, method, family).changed(rounds=rounds,
                                                                       scale=epochs_scale)
        trains = not any(job.recipe.arch == arch and job.recipe.dataset == dataset for job in found)
        found += [Job(recipe, seed, save / f"{dataset}-{arch}-{method}-seed{seed}", tuple(words),
                      trains) for seed in dict.fromkeys(seeds)]
    place = {seed: number for number, seed in enumerate(seeds)}
    return sorted(found, key=lambda job: (place[job.seed], not job.trains))


def work(job: Job) -> dict[str, float]:
    """MACs of every training of a job, estimated:
    for 10 classes, which the last layer hardly shows."""
    used, info = job.recipe, INFO[job.recipe.dataset]
    costs = _macs(used.arch, used.method, used.rounds, info.image_size)
    networks = [plan.Size(number, 0, 0, cost, 0.0) for number, cost in enumerate(costs)]
    found = {one.name: one.work(info.train_images) for one in plan.stages(used, networks)}
    return found | {BASELINE: found[BASELINE] * job.trains}


@functools.cache
def _macs(arch: str, method: str, rounds: tuple, image_size: int) -> list[int]:
    """MACs of the networks of rounds 0, 1, ...; pruned weights change nothing in them."""
    recipe = replace(recipes.recipe(arch, "cifar10", method),
                     rounds=rounds if method == "filter" else ())
    found = [size.macs for size in plan.sizes(recipe, 10, image_size)]
    return found if method == "filter" else found * (len(rounds) + 1)


@dataclass(frozen=True)
class Status:
    """How far a job is: DONE, RUNNING (``holder`` says where) or MISSING,
    and the results of its stages by name."""

    job: Job
    state: str
    results: dict[str, Result | Ensemble] = field(default_factory=dict)
    holder: str = ""
    run: Run | None = None

    @property
    def finished(self) -> list[str]:
        return [stage for stage in self.job.stages if stage in self.results]

    @property
    def work_left(self) -> float:
        """MACs of the trainings that are not finished."""
        return sum(macs for stage, macs in work(self.job).items() if stage not in self.results)


def look(job: Job) -> Status:
    """How far a job is, from what its folder holds.

    Raises UsageError where the folder holds a run with other settings. Damaged files are warned of;
    what they belong to is missing.
    """
    run, results = None, {}
    try:
        if (job.folder / RUN).is_file():
            run = load_run(job.folder)
            _refuse_others(job, run)
            results = run.seeds.get(job.seed, {})
    except UsageError:
        raise
    except KesiError as error:
        run = None
        warnings.warn(f"{error}: {job.name} is not taken as finished", stacklevel=2)
    if all(stage in results for stage in job.stages) and not _whole(job, results[KESI]):
        results = {stage: result for stage, result in results.items() if stage != KESI}
    if (holder := locks.in_use(job.folder)) is not None:
        return Status(job, RUNNING, results, holder, run)
    return Status(job, DONE if all(stage in results for stage in job.stages) else MISSING, results,
                  run=run)


def _whole(job: Job, result: Result) -> bool:
    """Whether the last network of a job is the one that its result describes;
    warns where it is not."""
    path = job.folder / f"seed{job.seed}" / KESI / CHECKPOINT
    try:
        status = path.stat()
        if _digest(path, status.st_mtime_ns, status.st_size) == result.digest:
            return True
        reason = f"{path} is not the checkpoint that its result describes"
    except (OSError, KesiError) as error:
        reason = first_line(error)
    warnings.warn(f"{reason}: {job.name} is not taken as finished", stacklevel=3)
    return False


@functools.lru_cache(maxsize=10_000)
def _digest(path: Path, _changed: int, _size: int) -> str | None:
    return checkpoints.read(path).get("digest")


def _refuse_others(job: Job, run: Run) -> None:
    before, now = run.record.recipe, job.recipe.describe()
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(f"{job.folder} holds a run with other settings ({', '.join(changed)}): "
                         "use another --save")


def refuse_other_images(statuses: Sequence[Status], images: Path | None) -> None:
    """Raises UsageError where runs of one data set, whose seeds stand in one table, are not all of
    the same images, or not of those in ``images``, of which the missing ones would be; None: of a
    dry run, which opens no image."""
    known: dict[str, tuple[str, dict]] = {}
    for status in [one for one in statuses if one.run]:
        name, said = str(status.job.folder), status.run.record.data
        before, data = known.setdefault(status.job.recipe.dataset, (name, said))
        if said != data:
            raise UsageError(f"{name} is of other images than {before}: use another --save")
    missing = {status.job.recipe.dataset for status in statuses if status.state == MISSING}
    for dataset in sorted(missing & known.keys()) if images is not None else ():
        before, data = known[dataset]
        try:
            found = load(dataset, images, download=False, family=INFO[dataset].family)
        except KesiError:  # which the pipeline says, or fetches
            continue
        if found.describe() != data:
            raise UsageError(f"{before} is of other images than {images}: use another --save")


def overview(statuses: Sequence[Status]) -> str:
    """What is done, running and missing, and the work, as text."""
    wide = max(len(status.job.name) for status in statuses)
    lines = [f"{'state':<8} {'pipeline':<{wide}} {'stages':>7} {'work left (TMAC)':>17}"]
    for status in statuses:
        lines.append(f"{status.state:<8} {status.job.name:<{wide}} "
                     f"{f'{len(status.finished)}/{len(status.job.stages)}':>7} "
                     f"{status.work_left / TERA:>17,.1f}"
                     f"{'  ' + status.holder.partition(' (')[0] if status.holder else ''}")
    return "\n".join([*lines, "", summary(statuses)])


def counts(statuses: Sequence[Status]) -> str:
    """How many are done, running and missing."""
    return ", ".join(f"{sum(status.state == state for status in statuses)} {state}"
                     for state in (DONE, RUNNING, MISSING))


def summary(statuses: Sequence[Status]) -> str:
    """The counts, the work that is left, and, where something is finished,
    the time that this would take."""
    left, whole = (sum(amounts) for amounts in zip(
        *((status.work_left, sum(work(status.job).values())) for status in statuses), strict=True))
    text = (f"{len(statuses)} {JOBS}: {counts(statuses)}; {left / TERA:,.1f} of "
            f"{whole / TERA:,.1f} TMAC are left")
    hours = hours_left(statuses)
    if not left or hours is None:
        return text
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return f"{text}, about {time} at the speed so far, one by one"


def hours_left(statuses: Sequence[Status]) -> float | None:
    """Hours for all that is not finished at the speed of what is:
    the network's own, else that of all of them."""
    speeds: dict[str, list[float]] = {}
    for status in statuses:
        amounts = work(status.job)
        for stage, result in status.results.items():
            if stage in amounts and getattr(result, "seconds", None):
                for name in (status.job.recipe.arch, ""):
                    spent = speeds.setdefault(name, [0.0, 0.0])
                    spent[0], spent[1] = spent[0] + result.seconds, spent[1] + amounts[stage]
    if "" not in speeds:
        return None
    rates = {name: seconds / macs for name, (seconds, macs) in speeds.items()}
    return (sum(status.work_left * rates.get(status.job.recipe.arch, rates[""])
                for status in statuses) / 3600)
