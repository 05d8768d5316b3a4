"""A study (kesi study) as jobs that share a folder, one for each seed."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kesi.cli import flags
from kesi.cli import study as command
from kesi.cli.study import Asked
from kesi.method.recipes import Recipe
from kesi.runs.record import RUN, STUDY
from kesi.runs.study import Variant, is_finished, refuse_others
from kesi.system import locks
from kesi.system.errors import KesiError
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


def check(study: Asked) -> None:
    """Raises UsageError where the study's folder is of other images, or of a run."""
    if any((study.folder / name).is_file() for name in (RUN, STUDY)):
        refuse_others(study.folder, flags.dataset_for(study.args, study.recipe.family))


def jobs(study: Asked, words: Sequence[str]) -> list[Job]:
    """A job for each seed."""
    return [Job(study.args.file, study.variants, seed, study.folder, tuple(words))
            for seed in study.args.seeds]


def look(job: Job) -> Status:
    """How far a job is, from what its folder holds; where that is damaged, the job says so."""
    if (holder := locks.in_use(job.folder)) is not None:
        return Status(job, RUNNING, holder=holder)
    with contextlib.suppress(KesiError):
        if is_finished(job.save, job.variants, job.seed):
            return Status(job, DONE)
    return Status(job, MISSING)


def overview(statuses: Sequence[Status]) -> str:
    """What is done, running and missing, as text."""
    lines = [f"{'state':<8} seed"]
    lines += [f"{one.state:<8} {one.job.name} {one.holder.partition(' (')[0]}".rstrip()
              for one in statuses]
    return "\n".join([*lines, "", summary(statuses)])


def summary(statuses: Sequence[Status]) -> str:
    """The counts."""
    return f"{len(statuses)} {JOBS}: {counts(statuses)}"
