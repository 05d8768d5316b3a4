"""What is installed: a wheel built from the checkout, in an environment that sees nothing of it."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import kesi.models
import models
from datagen import write_imagefolder
from kesi.tools.handover.folder import RUNTIME
from tinyrun import ROOT

EXTRAS = ("plots", "export", "own")
OWN = """
import torch, kesi
from torch import nn
torch.manual_seed(0)
images = torch.randint(256, (32, 3, 16, 16), dtype=torch.uint8), torch.arange(32) % 4
network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
done = kesi.compress(network, images, images, name="mine", macs=0.6, rounds=1, epochs=(1, 1, 1),
                     batch_size=8, folder="own")
print(len({network, done.network}), "networks")
"""


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


def environment(folder: Path, *extras: str) -> Path:
    """A virtual environment in which nothing is installed but what KESI declares that it needs,
    with these extras: links to where this process finds it."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                    folder).strip())
    for name in declared("kesi", *extras) - {"kesi"}:
        found = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    return python


def declared(name: str, *extras: str) -> set[str]:
    """The names of a distribution and of all that it needs, as their metadata say."""
    found, open_ = set(), [(name, extras)]
    while open_:
        name, wanted = open_.pop()
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            marks = [{"extra": extra} for extra in (*wanted, "")]
            if need.marker is None or any(map(need.marker.evaluate, marks)):
                inside = (need.name, tuple(need.extras))
                if inside not in found:
                    found.add(inside)
                    open_.append(inside)
    return {name} | {name for name, _ in found}


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
    python = environment(tmp_path / "empty", *EXTRAS)
    install(python, next(tmp_path.glob("kesi-*.whl")))
    run([python, "-c", "import importlib.util, kesi.models\n"
         "assert importlib.util.find_spec('models') is None\n"
         "assert kesi.models.create('wrn_16_8', 10).arch == 'wrn-16-8'\n"
         "assert str(kesi.models.__file__).startswith(r'" + str(tmp_path) + "')"], tmp_path)
    kesi_command = python.parent / "kesi"
    run([kesi_command, "run", "--arch", "resnet20", "--dataset", "digits", "--rounds", "1",
         "--epochs", "1", "1", "1", "--save", "run"], tmp_path)
    assert (tmp_path / "run" / "seed0" / "kesi" / "checkpoint.pth.tar").is_file()
    assert "resnet20" in run([kesi_command, "report", "run", "--html"], tmp_path)
    assert run([kesi_command, "export", "--help"], tmp_path).startswith("usage: kesi export")
    write_imagefolder(tmp_path / "photos")
    run([kesi_command, "compress", "photos", "--arch", "resnet20", "--rounds", "1", "--epochs", "1",
         "1", "1", "--image-size", "16", "--batch-size", "8", "--save", "small"], tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    assert "2 networks" in run([python, "own.py"], tmp_path)
    picture = next(tmp_path.glob("photos/test/*/0*"))
    assert "%" in run([kesi_command, "predict", "small/seed0/kesi", picture], tmp_path)
    if importlib.util.find_spec("onnxruntime"):
        (tmp_path / "web/dist").mkdir(parents=True)
        for name in ("package.json", *(f"dist/{name}" for name in RUNTIME)):
            (tmp_path / "web" / name).write_text('{"version": "0"}')
        run([kesi_command, "export", "small", "--out", "over", "--int8", "--web", "web",
             "--data", "photos"], tmp_path)
        assert (tmp_path / "over/index.html").is_file()
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
