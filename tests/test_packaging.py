"""What is installed: a wheel built from the checkout, in an environment that sees nothing of it."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import kesi.models
import models
from datagen import write_imagefolder
from tinyrun import ROOT


def run(command: list, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files that a package is made of, without what lies about in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("kesi", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def environment(folder: Path) -> Path:
    """An empty virtual environment that finds torch and the others where this process does."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    # a path alone: what is installed there in editable mode, KESI for one, is not found by it
    Path(site.strip(), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *words) -> None:
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
         "--no-index", "--no-build-isolation", *words], python.parent)


def test_models_and_kesi_models_are_one():
    assert kesi.models is models
    assert sys.modules["kesi.models.vgg"] is models.vgg


def test_all_folders_with_modules_are_packages_of_the_wheel():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = [".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("kesi/**/*.py")]
    assert set(named) == {*there, "kesi.models"}


@pytest.mark.slow
def test_a_wheel_runs_the_method_and_brings_no_models(source, tmp_path):
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "-w", tmp_path, source], tmp_path)
    python = environment(tmp_path / "empty")
    install(python, next(tmp_path.glob("kesi-*.whl")))
    run([python, "-c", "import importlib.util, kesi.models\n"
         "assert importlib.util.find_spec('models') is None\n"
         "assert kesi.models.create('wrn_16_8', 10).arch == 'wrn-16-8'\n"
         "assert str(kesi.models.__file__).startswith(r'" + str(tmp_path) + "')"], tmp_path)
    kesi_command = python.parent / "kesi"
    run([kesi_command, "run", "--arch", "resnet20", "--dataset", "digits", "--rounds", "1",
         "--epochs", "1", "1", "1", "--save", "run"], tmp_path)
    assert (tmp_path / "run" / "seed0" / "kesi" / "checkpoint.pth.tar").is_file()
    assert "resnet20" in run([kesi_command, "report", "run"], tmp_path)
    assert run([kesi_command, "export", "--help"], tmp_path).startswith("usage: kesi export")
    write_imagefolder(tmp_path / "photos")
    run([kesi_command, "compress", "photos", "--arch", "resnet20", "--rounds", "1", "--epochs", "1",
         "1", "1", "--image-size", "16", "--batch-size", "8", "--save", "small"], tmp_path)
    picture = next(tmp_path.glob("photos/test/*/0*"))
    assert "%" in run([kesi_command, "predict", "small/seed0/kesi", picture], tmp_path)
    if importlib.util.find_spec("onnxruntime"):
        run([kesi_command, "export", "small/seed0/kesi", "--out", "over", "--no-latency", "--data",
             "photos"], tmp_path)
        assert "%" in run([python, "example.py", picture], tmp_path / "over")
        run([python, "-c", "import kesi; assert kesi.from_pretrained('over').arch == 'resnet20'"],
            tmp_path)


@pytest.mark.slow
def test_an_editable_install_runs_without_the_checkout_on_the_path(source, tmp_path):
    python = environment(tmp_path / "empty")
    install(python, "-e", source)
    run([python, "-c", "import importlib.util, kesi.models\n"
         "assert importlib.util.find_spec('models') is None\n"
         "assert kesi.models.create('vgg11', 10).arch == 'vgg11'"], tmp_path)
    out = run([python.parent / "kesi", "plan", "--arch", "resnet20", "--dataset", "digits",
               "--method", "filter"], tmp_path)
    assert out.startswith("round")
