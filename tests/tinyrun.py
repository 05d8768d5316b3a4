"""Two tiny finished pipeline runs on digits, made once for all tests of a session.

A test module that wants them says ``pytest_plugins = ["tinyrun"]`` and takes ``filter_run`` or
``weight_run``: the run's folder, to be read only; ``quick_clock`` makes latencies a matter of
milliseconds. The networks are hardly trained; what a test holds must not depend on that.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
               "CUDA_VISIBLE_DEVICES": ""}


def make_run(folder: Path, method: str) -> Path:
    """resnet20 on digits, two rounds, an epoch or two a stage, also retrained the usual way."""
    words = ["cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--method", method,
             "--compare",
             "--epochs-scale", "0.02", "--rounds", "2", "--device", "cpu", "--save", str(folder)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def same_command(run: Path) -> list[str]:
    """The words that made a run, for a copy of it in another folder."""
    words = json.loads((run / "run.json").read_text())["command"].split()[2:]
    words[words.index("--save") + 1] = str(run)
    return words


@contextlib.contextmanager
def _alone(path: Path):
    """One process at a time, where the system has locks:
    the workers of pytest-xdist share the runs."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError):
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shared(factory: pytest.TempPathFactory, method: str) -> Path:
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"tinyrun-{method}"
    with _alone(base / f"tinyrun-{method}.lock"):
        return folder if (folder / "report").is_dir() else make_run(folder, method)


@pytest.fixture(scope="session")
def filter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with filter pruning."""
    return _shared(tmp_path_factory, "filter")


@pytest.fixture(scope="session")
def weight_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with weight pruning."""
    return _shared(tmp_path_factory, "weight")


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured a few times only."""
    monkeypatch.setattr("kesi.tools.latency.SECONDS", 0.01)
