"""What kesi COMMAND --help prints: it stands in files, so that nobody waits for torch to read it.

After a change of flags, write the files anew: python -m tests.test_help
"""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from kesi.__main__ import COMMANDS, HELP
from kesi.system import provenance

ROOT = Path(__file__).parents[1]


def spoken(command: str) -> str:
    """What the parser of a command says, in lines that fit a terminal of 80 columns."""
    module, function, _ = COMMANDS[command]
    said = io.StringIO()
    with (mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}),
          contextlib.redirect_stdout(said), contextlib.suppress(SystemExit)):
        getattr(importlib.import_module(module), function)(["--help"])
    return said.getvalue()


def test_the_files_say_what_the_parsers_say(tmp_path):
    """In a process of its own: tests before this one may have registered networks."""
    subprocess.run([sys.executable, "-m", "tests.test_help", tmp_path], cwd=ROOT, check=True)
    for command in COMMANDS:
        kept, now = ((folder / f"{command}.txt").read_text(encoding="utf-8")
                     for folder in (HELP, tmp_path))
        # words alone: Python's versions break lines at other places
        assert kept.split() == now.split(), f"{command}: python -m tests.test_help writes it anew"


def test_help_needs_no_torch():
    code = ("import sys; from kesi.__main__ import COMMANDS, main\n"
            "for words in ([], ['--help'], *([name, '--help'] for name in COMMANDS)):\n"
            "    sys.argv = ['kesi', *words]; main()\n"
            "assert not {'torch', 'numpy'} & set(sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT)
    assert found.returncode == 0 and found.stdout.count("usage: kesi ") == 2 + len(COMMANDS), (
        found.stderr)


def test_the_version_of_everything_that_decides_a_result():
    found = subprocess.run([sys.executable, "-m", "kesi", "--version"], text=True,
                           capture_output=True, cwd=ROOT)
    assert found.returncode == 0 and found.stdout.count("\n") == 1, found.stderr
    for package, number in provenance.versions().items():
        assert f"{package} {number}" in found.stdout
    head, _ = provenance.commit()
    assert found.stdout.startswith("kesi ") and (not head or head[:12] in found.stdout)


if __name__ == "__main__":
    for name in COMMANDS:
        folder = Path(*sys.argv[1:]) if sys.argv[1:] else HELP
        (folder / f"{name}.txt").write_text(spoken(name), encoding="utf-8")
