"""The scripts as users call them, but within this process:
importing torch anew would take seconds each time."""

import contextlib
import csv
import io
import re
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def script(path: str, *arguments: object) -> Outcome:
    """Run ``python path arguments`` (or ``python -m path``, for a dotted name)
    and catch how it ends."""
    out, err = io.StringIO(), io.StringIO()
    before, show, code = sys.argv, warnings.showwarning, 0
    sys.argv = [str(ROOT / path), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(
                err), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy: the module is imported already
            if path.endswith(".py"):
                runpy.run_path(str(ROOT / path), run_name="__main__")
            else:
                runpy.run_module(path, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    finally:
        sys.argv, warnings.showwarning = before, show
    return Outcome(code, out.getvalue(), err.getvalue())


def works(path: str, *arguments: object) -> str:
    """script() that has to succeed; returns its output."""
    outcome = script(path, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def fails(path: str, *arguments: object, code: int, says: str) -> str:
    """script() that has to fail with this exit code and one line that contains ``says``;
    returns the line."""
    outcome = script(path, *arguments)
    assert outcome.code == code, (outcome.code, outcome.out, outcome.err)
    err = re.sub(r".*, epoch \d+/\d+: loss .*\n", "", outcome.err)  # of trainings before it
    assert err.count("\n") == 1 and err.startswith("error: "), outcome.err
    assert says in err, outcome.err
    return err


def table_of(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The outcomes of a study by variant and seed."""
    with open(folder / "study.csv") as file:
        return {(row["variant"], int(row["seed"])): row for row in csv.DictReader(file)}
