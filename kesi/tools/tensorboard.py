"""The curves of a run as TensorBoard event files.

A run may be finished or not; the same command again brings the files up to date, and an open
TensorBoard shows it. There is one folder for each seed and stage, so that TensorBoard shows stages
side by side. What changed is written anew into another file that begins by taking back what the
files before it say (SummaryWriter's purge_step): an open TensorBoard would not notice that a file
is gone. One folder has the curves of one run, whose stages are called as those of any other.
"""

import os
import time
from pathlib import Path

from kesi.runs.record import ASIDE, METRICS, RUN, read_epochs
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import make_folder, read_text, write_text

SCALARS = {"train_loss": "loss/train", "test_loss": "loss/test", "train_accuracy": "accuracy/train",
           "val_accuracy": "accuracy/val", "test_accuracy": "accuracy/test", "lr": "learning rate",
           "seconds": "seconds an epoch"}

EVENTS = "events.out.tfevents.*.kesi"  # ours, in a folder where others may lie

OF = ".kesi-run"  # in the log folder: the run whose curves it has


def write_events(run: Path, logdir: Path) -> list[Path]:
    """Write the metrics of all stages of a run folder below ``logdir``; returns their folders.

    A stage that has not changed since is left alone. Raises UsageError where ``run`` is no run
    folder, ``logdir`` has the curves of another, or tensorboard is missing, KesiError for damaged
    metrics or where nothing can be written.
    """
    run, logdir = Path(run), Path(logdir)
    if not (run / RUN).is_file():
        raise UsageError(f"{run} is not a run folder: it has no {RUN}")
    stages = [_Stage(metrics, logdir) for metrics in sorted(run.glob(f"seed*/*/{METRICS}"))
              if not ASIDE.search(metrics.parent.name)]
    if not stages:
        raise KesiError(f"no stage of {run} has finished an epoch yet")
    _claim(logdir, run)
    for stage in stages:
        if not stage.is_up_to_date():
            stage.update()
            stage.close()
    return [stage.folder for stage in stages]


def _claim(logdir: Path, run: Path) -> None:
    """Note whose curves ``logdir`` has. Raises UsageError where they are those of another run."""
    here, note = run.resolve(), logdir / OF
    if note.is_file():
        other = (logdir / read_text(note).strip()).resolve()
        if other != here:
            raise UsageError(f"{logdir} has the curves of another run, {other}: use another "
                             "--logdir")
        return
    # within a run from there, so that both may move
    inside = logdir.resolve().is_relative_to(here)
    make_folder(logdir)
    write_text(note, f"{os.path.relpath(here, logdir.resolve()) if inside else here}\n")


class Live:
    """Event files that grow with a run, epoch by epoch: a kesi.runs.stage.Watch."""

    def __init__(self, run: Path, logdir: Path):
        """Raises UsageError where the package tensorboard is missing."""
        _writer()
        self._run, self._logdir, self._stage = Path(run), Path(logdir), None

    def after_epoch(self, folder: Path) -> None:
        """Write what is new in the stage in ``folder``. Raises KesiError if that is impossible."""
        if self._stage is None or self._stage.metrics.parent != folder:
            self._stage = _Stage(folder / METRICS, self._logdir)
        self._stage.update()

    def after_stage(self) -> None:
        """Close the files of this stage, and write those of stages that were finished before."""
        if self._stage is not None:
            self._stage.close()
        self._stage = None
        if any(self._run.glob(f"seed*/*/{METRICS}")):  # a baseline that was taken over has none
            write_events(self._run, self._logdir)


class _Stage:
    """The event files of one stage."""

    def __init__(self, metrics: Path, logdir: Path):
        self.metrics = metrics
        self.folder = logdir / metrics.parent.parent.name / metrics.parent.name
        self._make, self._writer, self._epochs, self._read = _writer(), None, 0, 0

    def is_up_to_date(self) -> bool:
        newest = self._newest()
        return newest is not None and newest.stat().st_mtime_ns == self.metrics.stat().st_mtime_ns

    def _newest(self) -> Path | None:
        """The last of our files, in the order in which TensorBoard reads them: what it shows."""
        return max(self.folder.glob(EVENTS), default=None)

    def update(self) -> None:
        """Write the epochs that this writer has not written yet: in a new file, all of them."""
        self._read = self.metrics.stat().st_mtime_ns  # before reading: an epoch may end meanwhile
        rows = read_epochs(self.metrics)
        began = self._read / 1e9 - sum(row.seconds or 0 for row in rows)
        try:
            if self._writer is None:
                if any(f".{int(time.time())}." in path.name for path in self.folder.glob(EVENTS)):
                    time.sleep(1)  # TensorBoard reads them by name, which begins with the second
                self._writer = self._make(str(make_folder(self.folder)), purge_step=0,
                                          filename_suffix=EVENTS.rsplit("*", 1)[1])
            for place, row in enumerate(rows[self._epochs:], start=self._epochs + 1):
                clock = began + sum(earlier.seconds or 0 for earlier in rows[:place])
                for name, tag in SCALARS.items():
                    if (value := getattr(row, name)) is not None:
                        self._writer.add_scalar(tag, value, row.epoch, walltime=clock)
            self._writer.flush()
        except OSError as error:
            raise KesiError(f"cannot write {self.folder}: {error.strerror or error}") from error
        self._epochs = len(rows)

    def close(self) -> None:
        """End the file; its time says what state of the metrics it has."""
        self._writer.close()
        os.utime(self._newest(), ns=(self._read, self._read))


def _writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UsageError(
            f'{error.name} is not installed: pip install -e ".[tensorboard]"') from error
    return SummaryWriter
