"""A study (kesi study) as jobs that share a folder, one for each seed."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kesi.cli import study as command
from kesi.cli.study import Asked
from kesi.method.recipes import Recipe
from kesi.report import study as reports
from kesi.runs.study import Variant, finished
from kesi.system import locks
from reproduce.grid import DONE, MISSING, RUNNING, Status, counts

JOBS = "seeds"


@dataclass(frozen=True)
class Job:
    """All variants of a study with one seed; ``folder`` is that of the seed, in the study's."""

    file: str
    variants: Mapping[str, Variant]
    seed: int
    save: Path
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.save / f"seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{Path(self.file).stem}-seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """The first variant's, of whose data set the others are."""
        return next(iter(self.variants.values())).recipe

    def words(self) -> list[str]:
        """The command without the interpreter."""
        return ["-m", "kesi", "study", self.file, "--seeds", str(self.seed), "--save",
                str(self.save), *self.flags]

    def command(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", *self.words()])


def asked(file: str, seeds: Sequence[int], save: Path | None, words: Sequence[str]) -> Asked:
    """What `kesi study` makes of it. Raises UsageError where it will not do, before any job does.
    """
    where = [] if save is None else ["--save", str(save)]
    return command.parse([file, "--seeds", *map(str, seeds), *where, *words])


def jobs(study: Asked, words: Sequence[str]) -> list[Job]:
    """A job for each seed."""
    return [Job(study.args.file, study.variants, seed, study.folder, tuple(words))
            for seed in study.args.seeds]


def look(job: Job) -> Status:
    """How far a job is, from what its folder holds. Raises KesiError where that is damaged."""
    if (holder := locks.in_use(job.folder)) is not None:
        return Status(job, RUNNING, holder=holder)
    done = all(job.seed in seeds for seeds in finished(job.save, job.variants).values())
    return Status(job, DONE if done else MISSING)


def overview(statuses: Sequence[Status]) -> str:
    """What is done, running and missing, as text."""
    lines = [f"{'state':<8} seed"]
    lines += [f"{one.state:<8} {one.job.name} {one.holder.partition(' (')[0]}".rstrip()
              for one in statuses]
    return "\n".join([*lines, "", summary(statuses)])


def summary(statuses: Sequence[Status]) -> str:
    """The counts."""
    return f"{len(statuses)} {JOBS}: {counts(statuses)}"


def report(study: Asked) -> str:
    """Write the study's table over all seeds that are finished, and return it as text."""
    found = finished(study.folder, study.variants)
    if not any(found.values()):
        return "nothing is finished yet"
    return reports.write(found, study.title, study.folder)
