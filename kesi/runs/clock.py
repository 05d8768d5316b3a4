"""How far a run is, and how long the rest of it takes."""

from collections.abc import Mapping
from pathlib import Path

from kesi.method.training import Progress
from kesi.runs.record import RESULT, Result, read_result
from kesi.system.errors import KesiError


class Clock:
    """The seconds that the trainings of a run took so far, and those that are left.

    ``work``: of every training, by its folder, in any unit (MACs, as kesi.method.plan counts them).
    What was finished, or begun, before an interruption counts with the seconds that it took then.
    """

    def __init__(self, work: Mapping[Path, float]):
        self._work = dict(work)
        # by folder: seconds so far, and the share that they were for
        self._spent = {folder: (seconds, 1.0) for folder in self._work
                       if (seconds := _seconds(folder)) is not None}

    def settle(self, planned: Path, folder: Path) -> None:
        """A training that was planned under another name, since its folder was not known yet; once
        that is settled it may be said again."""
        if planned in self._work:
            self._work[folder] = self._work.pop(planned)
        if (seconds := _seconds(folder)) is not None:
            self._spent[folder] = seconds, 1.0

    def after(self, folder: Path, progress: Progress) -> None:
        """Take note of an epoch of the training in ``folder``."""
        seconds = sum(row.seconds or 0 for row in progress.history)
        self._spent[folder] = seconds, progress.epoch / progress.epochs

    def left(self) -> float | None:
        """The seconds until the last training ends; None before anything was measured.

        A training at hand goes on at its own pace, those ahead at the mean one so far.
        """
        timed = {folder: (seconds, share) for folder, (seconds, share) in self._spent.items()
                 if seconds > 0}
        done = sum(self._work.get(folder, 0) * share for folder, (_, share) in timed.items())
        if not done:
            return None
        pace = sum(seconds for seconds, _ in timed.values()) / done
        ahead = sum(work for folder, work in self._work.items() if folder not in self._spent)
        return pace * ahead + sum(seconds * (1 - share) / share
                                  for seconds, share in timed.values())

    def said(self) -> str:
        """What is left, in words; nothing where nothing is known or left."""
        seconds = self.left()
        return f"about {spoken(max(1, seconds))} left" if seconds else ""


def spoken(seconds: float) -> str:
    """A time as people say it: 2.5 s, 45 s, 12 min, 3 h 30 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def epoch_line(progress: Progress) -> str:
    """One line about the last epoch."""
    row = progress.history[-1]
    figures = [f"loss {row.train_loss:.4f}", f"training accuracy {row.train_accuracy:.2f} %"]
    for name, value in (("validation", row.val_accuracy), ("test", row.test_accuracy)):
        if value is not None:
            figures.append(f"{name} accuracy {value:.2f} %")
    return f"epoch {row.epoch}/{progress.epochs}: {', '.join([*figures, f'{row.seconds:.1f} s'])}"


def _seconds(folder: Path) -> float | None:
    """What a finished training took; None where there is none."""
    try:
        result = read_result(folder / RESULT) if (folder / RESULT).is_file() else None
    except KesiError:  # which the stage itself tells of
        return None
    return result.seconds if isinstance(result, Result) else None
