"""The curves of a run as TensorBoard event files.

    python -m kesi.tensorboard runs/digits-resnet20-filter --logdir logs
    tensorboard --logdir logs

A run may be finished or not; the same command again brings the files up to date. There is one folder for each
seed and stage, so that TensorBoard shows stages side by side.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from kesi import cli
from kesi.errors import KesiError, UsageError
from kesi.fields import checked_result, read_epochs
from kesi.files import make_folder, read_json
from kesi.folders import METRICS, RESULT

SCALARS = {"train_loss": "loss/train", "test_loss": "loss/test", "train_accuracy": "accuracy/train",
           "val_accuracy": "accuracy/val", "test_accuracy": "accuracy/test", "lr": "learning rate",
           "seconds": "seconds an epoch"}
SUFFIX = ".kesi"  # tells our event files from those of others in the same folder


def write_events(run: Path, logdir: Path) -> list[Path]:
    """Write the metrics of all stages of a run folder below ``logdir`` and return the event files.

    Event files that this function wrote there before are replaced; a stage that has not changed since is left
    alone. Raises UsageError where ``run`` is no run folder or tensorboard is missing,
    KesiError for damaged metrics or where nothing can be written.
    """
    run, logdir = Path(run), Path(logdir)
    if not (run / "run.json").is_file():
        raise UsageError(f"{run} is not a run folder: it has no run.json")
    writer = _writer()
    files = []
    for metrics in sorted(run.glob(f"seed*/*/{METRICS}")):
        stage = metrics.parent
        folder = make_folder(logdir / stage.parent.name / stage.name)
        before = sorted(folder.glob(f"events.out.tfevents.*{SUFFIX}"))
        changed = _changed(stage)
        if len(before) == 1 and before[0].stat().st_mtime_ns == changed:
            files.append(before[0])
            continue
        rows = read_epochs(metrics)
        try:
            _write(writer, folder, rows, _started(stage, rows))
        except OSError as error:
            raise KesiError(f"cannot write {folder}: {error.strerror or error}") from error
        for old in before:
            old.unlink(missing_ok=True)
        for new in sorted(folder.glob(f"events.out.tfevents.*{SUFFIX}")):
            os.utime(new, ns=(changed, changed))  # not the time of writing: an epoch may have ended since reading
            files.append(new)
    if not files:
        raise KesiError(f"no stage of {run} has finished an epoch yet")
    return files


def _changed(stage: Path) -> int:
    """When a stage last wrote something that goes into its event file, in ns."""
    return max(path.stat().st_mtime_ns for path in (stage / METRICS, stage / RESULT) if path.is_file())


def _started(stage: Path, rows: Sequence[dict]) -> float:
    """When the stage began, in seconds since 1970; of one that still runs, from its last epoch back."""
    done = stage / RESULT
    if done.is_file() and (started := checked_result(done, read_json(done)).get("started")):
        try:
            return datetime.fromisoformat(started.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError) as error:
            raise KesiError(f"{done} is damaged: its started is {started!r:.40}") from error
    return (stage / METRICS).stat().st_mtime - sum(row.get("seconds") or 0 for row in rows)


def _write(writer, folder: Path, rows: Sequence[dict], clock: float) -> None:
    with writer(str(folder), filename_suffix=SUFFIX) as events:
        for row in rows:
            clock += row.get("seconds") or 0
            for name, tag in SCALARS.items():
                if row.get(name) is not None:
                    events.add_scalar(tag, row[name], row["epoch"], walltime=clock)


def require() -> None:
    """Raises UsageError where the package tensorboard is missing."""
    _writer()


def _writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed: pip install -e ".[tensorboard]"') from error
    return SummaryWriter


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = cli.parser(__doc__, "kesi.tensorboard")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--logdir", type=Path, metavar="DIR", help="default: RUN/tensorboard")
    args = parser.parse_args(argv)
    logdir = args.logdir or args.run / "tensorboard"
    files = write_events(args.run, logdir)
    print(f"{len(files)} stages of {args.run}: tensorboard --logdir {logdir}")


if __name__ == "__main__":
    cli.run(main)
