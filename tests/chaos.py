"""Kill the pipeline at random moments, start it again with the same command,
and compare with a run left alone.

    python -m tests.chaos --kills 100 --seed 0

Runs on digits: one run is left alone; the others are ended by SIGKILL again and again until they
are through, and then have to be the same in every weight, mask, metric and line of the report, bit
for bit. Each start is a process of its own, forked from this one, which has imported everything and
computes nothing: that saves the seconds that torch takes to import.
"""

import argparse
import collections
import contextlib
import csv
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

from kesi import checkpoints
from kesi.system.errors import KesiError
from kesi.system.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--rounds", "2",
           "--compare", "--device", "cpu", "--save", "run"]
KINDS = ("baseline", "onecycle", "ensemble", "usual", "kesi")  # in the order in which they run
BRIEF = 0.2  # seconds: an ensemble is only evaluated
CLOCK = ("seconds", "started")  # what is not the same in two runs
OFTEN = 5  # at most so many kills in a kind of stage, in one run


def start(folder: Path, words: list[str]) -> int:
    """Start the pipeline in ``folder`` as a process; its output goes to log.txt there.
    Returns the process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def run_whole(folder: Path, words: list[str]) -> None:
    """A run that nothing disturbs."""
    code = os.waitstatus_to_exitcode(os.waitpid(start(folder, words), 0)[1])
    if code:
        raise KesiError(f"the run left alone ended with {code}: {tail(folder)}")


def run_killed(folder: Path, words: list[str], aims: list[str], rng: random.Random, longest: float,
               kills: collections.Counter) -> int:
    """A run that is killed once for each of ``aims``, then left to come through;
    returns how often it was killed.

    Each kill comes up to ``longest`` seconds after the pipeline has entered a stage of the kind
    that is aimed at (or just after the start), wherever it is by then; ``kills`` counts what was
    hit.
    """
    number = 0
    for aim in [*aims, None]:
        process = start(folder, words)
        while (status := _ended(process)) is None and aim and not _entered(folder / "run", aim):
            time.sleep(0.002)
        end = time.monotonic() + rng.uniform(0, BRIEF if aim == "ensemble" else longest)
        while status is None and (aim is None or time.monotonic() < end):
            time.sleep(0.002)
            status = _ended(process)
        if status is None:
            os.kill(process, signal.SIGKILL)
            status = os.waitpid(process, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        if code == 0:  # it was faster
            return number
        if code != -signal.SIGKILL:
            raise KesiError(f"after {number} kills the pipeline ended with {code}: {tail(folder)}")
        number += 1
        kills[place := where(folder / "run")] += 1
        print(f"  kill {number:>3} in {place}", flush=True)
    return number


def _ended(process: int) -> int | None:
    done, status = os.waitpid(process, os.WNOHANG)
    return status if done else None


def _entered(run: Path, kind: str) -> bool:
    return kind == "start" or any(run.glob(f"seed0/{kind}*/.lock"))


def where(run: Path) -> str:
    """What a killed process was at, as the locks that it left behind tell."""
    held = sorted(path.parent.name for path in run.glob("seed*/*/.lock"))
    if held:
        return held[0]
    return "between stages" if (run / ".lock").exists() else "start or report"


def tail(folder: Path) -> str:
    """The last lines that a run printed."""
    return " / ".join((folder / "log.txt").read_text().splitlines()[-3:])


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs besides times; a line each."""
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
             for run in (one, other)]
    found = [f"{name} is in one run only" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        contents = [_content(run / name) for run in (one, other)]
        if contents[0] != contents[1]:
            found.append(f"{name} differs")
    return found


def _content(path: Path) -> object:
    """What a file says, without times: of a checkpoint its digest,
    which covers all of it and is verified."""
    if path.suffix == ".tar":
        return checkpoints.load(path).digest
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return [_timeless(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".md":
        return [line for line in path.read_text().splitlines() if "time of all stages" not in line]
    return path.read_bytes()


def _timeless(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if name not in CLOCK}


def campaign(folder: Path, kills: int, seed: int, words: list[str]) -> collections.Counter:
    """Killed runs, each compared with the one left alone, until there were ``kills``,
    of every kind enough.

    Returns the kills by stage. Raises KesiError where a run does not come through or differs.
    """
    rng, hits, number = random.Random(seed), collections.Counter(), 0
    started = time.monotonic()
    run_whole(folder / "whole", words)
    whole = time.monotonic() - started
    print(f"left alone: {whole:.1f} s", flush=True)
    while hits.total() < kills or min(_of(kind, hits) for kind in KINDS) < kills / 20:
        number += 1
        here = folder / f"killed-{number}"
        started = time.monotonic()
        aims = [kind for kind in ("start", *KINDS) for _ in range(rng.randint(1, OFTEN))]
        count = run_killed(here, words, aims, rng, whole / 8, hits)
        if found := differences(folder / "whole" / "run", here / "run"):
            raise KesiError(f"run {number}, killed {count} times, is another: {'; '.join(found)}")
        print(f"run {number}: through after {count} kills and {time.monotonic() - started:.1f} s; "
              "every weight, mask and metric and the report are those of the run left alone",
              flush=True)
    return hits


def _of(kind: str, hits: collections.Counter) -> int:
    return sum(count for name, count in hits.items() if name.partition("-")[0] == kind)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N",
                        help="at least so many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--epochs", nargs=3, default=["6", "3", "3"],
                        help="of baseline, retraining, distillation")
    parser.add_argument("--method", default="filter", help="filter or weight (default: filter)")
    parser.add_argument("--no-report", action="store_true", help="do not draw and compare reports")
    args = parser.parse_args()
    words = [*COMMAND, "--method", args.method, "--epochs", *args.epochs,
             *["--no-report"] * args.no_report]
    # remembered by every process, so that a commit in the meantime changes nothing
    provenance("cpu")
    # of forking with threads: there is none that computes
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            hits = campaign(Path(folder), args.kills, args.seed, words)
        except KesiError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(f"{hits.total()} kills by stage: "
          + ", ".join(f"{name} {count}" for name, count in sorted(hits.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
