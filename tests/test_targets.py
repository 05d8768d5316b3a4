"""A result is asked for instead of rates: a share of MACs, of parameters, or of zeros."""

import csv
import io
import json
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kesi
from datagen import write_imagefolder
from doors import fails, script, works
from kesi import models
from kesi.data import load
from kesi.method.algorithm import draw
from kesi.method.plan import Speed
from kesi.method.recipes import recipe
from kesi.method.sizes import macs, parameters
from kesi.method.training import Options
from kesi.system.errors import UsageError
from kesi.tools.targets import budget, faster

pytest_plugins = ["tinyrun"]


def planned(*words):
    """The sizes of every round, as kesi plan tells them."""
    text = works("kesi", "plan", "--arch", "resnet20", "--dataset", "digits", *words, "--csv")
    return [{name: float(value) for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(text))]


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("allocation", ["paper", "uniform"])
def test_the_share_that_was_asked_for_is_left(measure, allocation):
    rows = planned(f"--{measure}", 0.6, "--allocation", allocation, "--round-to", 1)
    left = [row[measure] / rows[0][measure] for row in rows]
    assert left == sorted(left, reverse=True) and 0.57 < left[-1] <= 0.6


def test_widths_are_rounded_and_fewer_rounds_reach_the_same():
    for rounds in (1, 3):
        rows = planned("--macs", 0.6, "--rounds", rounds)
        assert len(rows) == rounds + 1 and rows[-1]["macs"] <= 0.6 * rows[0]["macs"]


def test_zeros_of_weight_pruning():
    rows = planned("--method", "weight", "--sparsity", 0.9)
    zeros = [1 - row["nonzero_params"] / row["params"] for row in rows]
    assert zeros == sorted(zeros) and zeros[-1] == pytest.approx(0.9, abs=0.01)
    more = planned("--method", "weight", "--sparsity", 0.9, "--rounds", 8)
    assert len(more) == 9 and more[-1]["nonzero_params"] == rows[-1]["nonzero_params"]


@pytest.mark.parametrize("words, says", [
    (("--macs", 0.01), "can leave; widths that are no multiples of 8 go further"),
    (("--macs", 0.0001, "--round-to", 1), "is the least that this allocation can leave"),
    (("--macs", 0), "above 0 and at most 1"), (("--params", 1.5), "above 0 and at most 1"),
    (("--macs", 0.5, "--params", 0.5), "ask for different things"),
    (("--macs", 0.5, "--percent", 0.2), "ask for different things"),
    (("--sparsity", 0.5), "--sparsity is for weight pruning"),
    (("--method", "weight", "--macs", 0.5), "--macs is for filter pruning"),
    (("--method", "weight", "--sparsity", 1), "at least 0 and below 1"),
    (("--macs", 0.5, "--round-to", 0), "multiple of at least 1"),
    (("--round-to", 16), "round_to 16 says how a target is reached: give one as well, macs or"),
    (("--macs", 0.5, "--latency-batch", 8), "give one as well, latency"),
    (("--method", "weight", "--sparsity", 0.5, "--allocation", "uniform"), "allocation 'uniform'"),
    (("--dataset", "imagefolder", "--num-classes", 10**11), "--num-classes must be at least 2"),
    (("--latency", "fast"), "2x or 1.5x"), (("--latency", "1x"), "above 1"),
    (("--latency", "2x", "--latency-batch", 0), "--latency-batch must be at least 1"),
    (("--latency", "2x", "--macs", 0.5), "ask for different things"),
    (("--method", "weight", "--latency", "2x"), "--latency is for filter pruning")])
def test_what_cannot_be_is_said_before_any_training(words, says):
    fails("kesi", "plan", "--arch", "resnet20", "--dataset", "digits", *words, code=2, says=says)


def test_a_folder_of_images_in_and_a_smaller_network_out(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")
    out = works("kesi", "compress", photos, "--arch", "resnet20", "--epochs", 1, 1, 1, "--rounds",
                1, "--device", "cpu", "--image-size", 16, "--save", tmp_path / "run",
                "--val-fraction", 0.3, "--no-flip")
    assert "kesi: " in out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    chosen = tmp_path / "run" / "seed0" / record["handed_over"]["seed0"]
    assert f"handed over: {chosen}, with " in out
    assert record["data"]["augmentation"]["flip"] is False
    *_, said, command = out.splitlines()
    assert said == f"the network: {chosen}; to hand it over:"
    out = works(*shlex.split(command)[:-1], tmp_path / "made", "--no-latency")
    assert out.startswith(f"the network that the run hands over: {chosen}\n")
    assert "checks hold" in works("kesi", "verify", tmp_path / "run")  # with the images held out
    results = {name: json.loads((tmp_path / "run" / "seed0" / name / "result.json").read_text())
               for name in ("baseline", "kesi")}
    assert results["kesi"]["macs"] <= 0.5 * results["baseline"]["macs"]
    fails("kesi", "compress", tmp_path / "none", "--arch", "resnet20", code=1, says="none")
    fails("kesi", "compress", tmp_path / "none", "--dry-run", code=1, says="none is not a folder")


@pytest.mark.parametrize("words", [("--dry-run",), ("--dry-run", "--budget", "1h"),
                                   ("--budget", "1h")])
def test_what_takes_time_here_is_asked_of_images_that_fit(tmp_path, words):
    photos = write_imagefolder(tmp_path / "photos")
    for notes in photos.rglob("*.txt"):  # which would be a line of its own
        notes.unlink()
    fails("kesi", "compress", photos, "--arch", "resnet20", "--channels", 1, "--image-size", 16,
          "--save", tmp_path / "run", *words, code=2,
          says="resnet20 takes images of 3 channel(s), but imagefolder has 1: choose")
    assert not (tmp_path / "run").exists()


def test_photographs_that_are_seen_very_small_are_warned_of(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")
    for path in photos.glob("train/*/000*"):
        with Image.open(path) as image:
            image.convert("RGB").resize((200, 150)).save(path)
    words = ("kesi", "compress", photos, "--arch", "resnet20", "--dry-run", "--device", "cpu")
    assert "are about 150 px, and the network sees them at 32" in script(*words).err
    assert "px, and the network sees" not in script(*words, "--image-size", 32).err
    for path in (photos / "train/ant").iterdir():
        path.unlink()
    done = script(*words[:-3], "--save", tmp_path / "run")  # not a traceback of the look at sizes
    assert done.code == 1 and "ant has no image (" in done.err and "Traceback" not in done.err


RUN = ("kesi", "run", "--arch", "resnet20", "--dataset", "digits", "--device", "cpu", "--rounds", 1,
       "--no-report")


@pytest.fixture
def clock(monkeypatch):
    """A clock for which a network takes a second a million MACs, and a list of what it was asked.
    """
    asked = []

    def seconds_of(networks, image_size, batch):
        asked.append(batch)
        return [macs(network, image_size) / 1e6 for network in networks]

    monkeypatch.setattr(faster, "seconds_of", seconds_of)
    return asked


def result(run, stage):
    return json.loads((run / "seed0" / stage / "result.json").read_text())


def test_a_latency_is_reached_recorded_and_not_measured_again(tmp_path, clock):
    words = (*RUN, "--epochs-scale", 0.02, "--latency", "1.5x", "--latency-batch", 4, "--save",
             tmp_path / "run")
    out = works(*words)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    before, after = record["latency"]["seconds"]
    assert set(clock) == {4} and record["latency"]["threads"] == 1 and before / after >= 1.5
    assert after == result(tmp_path / "run", "kesi")["macs"] / 1e6  # widths are the measured ones
    assert out.count("(1.5x was asked for") == 2  # what was chosen, and what was reached
    clock.clear()
    assert "kesi is finished already" in works(*words)
    assert len(clock) == 1  # of the finished networks
    assert json.loads((tmp_path / "run" / "run.json").read_text())["latency"] == record["latency"]
    fails(*words[:-4], "--latency", "1.2x", "--save", tmp_path / "run", code=2, says="latency")


def test_a_latency_that_cannot_be_reached_trains_nothing(tmp_path, clock):
    fails(*RUN, "--latency", "100x", "--save", tmp_path / "run", code=2,
          says="cannot be made 100x as fast: 3.27x is the most that this allocation gives; widths")
    assert not (tmp_path / "run").exists() and len(clock) == 1


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_latency_is_measured_in_onnxruntime_or_torch(quick_clock, monkeypatch, runtime):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if runtime == "torch":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it was not installed
    assert faster.runtime() == runtime
    small, large = faster.seconds_of([draw("resnet20", 10, 0, cfg).network for cfg in (
        [1] * 9, models.ARCHITECTURES["resnet20"].cfg)], 32, 32)
    assert 0 < small < large


def own():
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def squeezed(folder, method="filter", **asked):
    noise = torch.Generator().manual_seed(0)
    images = (torch.randint(256, (24, 8, 8, 3), dtype=torch.uint8, generator=noise),
              torch.arange(24) % 2)
    return kesi.compress(asked.pop("model", own), images, images, method, name="own",
                         folder=folder, options=Options(eval_every=0),
                         **{"rounds": 2, "epochs": (1, 1, 1)} | asked)


def test_a_network_of_ones_own_gets_faster(tmp_path, clock, registry):
    made = squeezed(tmp_path / "run", latency="2x")
    before, after = made.latency.seconds
    assert before / after >= 2 and macs(made.network, 8) == after * 1e6
    with pytest.raises(UsageError, match=r"other latency rates \(\[0.2, 0.2\], now \[0.2, 0.1\]"):
        squeezed(tmp_path / "run", latency="2x", rates={"0": 0.2, "3": 0.1})
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    del said["latency"]["rates"]  # as records were before
    (tmp_path / "run" / "run.json").write_text(json.dumps(said))
    squeezed(tmp_path / "run", latency="2x")


class OfOneBatch(nn.Sequential):
    """Its export takes no other batch than the one that it was traced with."""

    def forward(self, images):
        return super().forward(images).reshape(int(images.size(0)), -1)


class Unknown(nn.Sequential):
    """Has an operation that ONNX does not know."""

    def forward(self, images):
        return super().forward(torch.special.i0e(images))


@pytest.mark.parametrize("kind", [OfOneBatch, Unknown])
def test_no_latency_of_what_onnxruntime_cannot_run(tmp_path, registry, kind):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(UsageError, match="own does not run in onnxruntime .*ask for macs or params"
                       ) as refused:
        squeezed(tmp_path / "run", latency="2x", model=lambda: kind(*own()))
    assert not {"\n", "\x1b"} & set(str(refused.value)) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "cfg"), [
    ({"macs": 0.5}, [24, 8]), ({"macs": 0.5, "round_to": 1}, [21, 10]),
    ({"params": 0.7, "ignore": ["0"]}, [32, 8]),
    ({"macs": 0.5, "allocation": "uniform"}, [24, 8])])
def test_a_network_of_ones_own_gets_as_small_as_asked_for(tmp_path, registry, asked, cfg):
    made = squeezed(tmp_path / "run", **asked)
    assert made.network.cfg == cfg
    size = {"macs": lambda one: macs(one, 8), "params": parameters}
    (measure, share), = ((name, asked[name]) for name in size if name in asked)
    assert size[measure](made.network) <= share * size[measure](own())


def test_a_sparsity_in_python(tmp_path, registry):
    for rounds in (2, 6):  # fewer and more than the default
        made = squeezed(tmp_path / str(rounds), "weight", sparsity=0.6, rounds=rounds,
                        epochs=np.array([1, 1, 1]))
        assert made.masks.sparsity() == pytest.approx(0.6, abs=0.001)
        assert f"onecycle-{rounds}" in made.accuracies


def test_a_budget_in_python_is_kept(tmp_path, registry, monkeypatch, capsys):
    speed = Speed((10**6, 10**5), (1e-2, 1e-2), (0.0, 0.0))  # a hundred images a second
    monkeypatch.setattr(budget, "speed", lambda *_: speed)
    said = {"epochs": (40, 20, 20), "macs": 0.5}
    squeezed(tmp_path / "run", budget="10s", **said)
    assert "budget 10 s: all epochs times" in capsys.readouterr().out
    made = epochs(tmp_path / "run")
    taken = 0.24 * (made["baseline"] + 2 * made["onecycle"] + made["kesi"])
    assert 7 < taken <= 9 and made["baseline"] == pytest.approx(2 * made["kesi"], abs=1)
    monkeypatch.setattr(budget, "speed", None)  # would fail
    squeezed(tmp_path / "run", budget=10, **said)
    with pytest.raises(UsageError, match="budget"):
        squeezed(tmp_path / "run", budget=20, **said)


@pytest.mark.parametrize(("asked", "says"), [
    ({"macs": 0.5, "params": 0.5}, "macs and params ask for different things"),
    ({"macs": 0.001}, "is the least"), ({"macs": "half"}, "a share, such as 0.5"),
    ({"sparsity": 0.5}, 'sparsity is for method="weight"'), ({"latency": "fast"}, "2x"),
    ({"macs": 0.5, "method": "weight"}, 'macs is for method="filter"'),
    ({"sparsity": 0.9, "sparsities": [0.5], "method": "weight"}, "different things"),
    ({"macs": 0.5, "allocation": "fair"}, "unknown allocation 'fair'"),
    ({"macs": 0.5, "allocation": "uniform", "ignore": ["0"]}, "leave rates and ignore out"),
    ({"macs": 0.5, "round_to": 1.5}, "round_to is a whole number"),
    ({"round_to": 4}, "round_to 4 says how a target is reached: give one as well, macs or params"),
    ({"latency": "2x", "latency_batch": 2.5}, "latency_batch is a whole number, not 2.5"),
    ({"macs": 0.5, "latency_batch": 8}, "latency_batch 8 says .* as well, latency"),
    ({"budget": "soon"}, "90s, 45m or 2h"), ({"budget": -1}, "90s, 45m or 2h"),
    ({"budget": 0.001}, "too small")])
def test_what_cannot_be_asked_for_in_python_is_said_first(tmp_path, registry, monkeypatch, asked,
                                                          says):
    speed = Speed((10**6, 10**5), (1e-2, 1e-2), (0.0, 0.0))
    monkeypatch.setattr(budget, "speed", lambda *_: speed)
    with pytest.raises(UsageError, match=says):
        squeezed(tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def epochs(run):
    record = json.loads((run / "run.json").read_text())
    return {name: one["epochs"] for name, one in record["recipe"]["trainings"].items()}


def test_a_budget_scales_all_epochs_and_is_kept(tmp_path, monkeypatch):
    speed = Speed((10**7, 10**6), (1e-3, 1e-3), (0.0, 0.0))  # a thousand images a second
    monkeypatch.setattr(budget, "speed", lambda *_: speed)
    words = (*RUN, "--budget", "4s", "--save", tmp_path / "run")
    assert "budget 4 s: all epochs times" in works(*words)
    made = epochs(tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["budget"]
    taken = 0.3 * (made["baseline"] + made["onecycle"] + made["kesi"])
    assert 2.4 < taken <= 3.6 and taken == pytest.approx(kept["expected"])
    assert made["baseline"] == pytest.approx(80 * kept["scale"], abs=0.5)
    assert made["kesi"] == pytest.approx(25 * kept["scale"], abs=0.5)
    monkeypatch.setattr(budget, "speed", None)  # would fail
    assert "kesi is finished already" in works(*words)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["budget"] == kept
    fails(*RUN, "--budget", "20s", "--save", tmp_path / "run", code=2, says="budget")


@pytest.mark.parametrize("words, says", [
    (("--val-fraction", "nan", "--dry-run"), "is not a share"),
    (("--budget", "0.5s", "--dry-run"), "too small"), (("--budget", "soon"), "90s, 45m or 2h"),
    (("--budget", "0m"), "90s, 45m or 2h"),
    (("--budget", "1h", "--epochs-scale", 0.5), "ask for different things")])
def test_a_budget_that_cannot_be_is_said_before_any_training(tmp_path, monkeypatch, words, says):
    speed = Speed((10**7, 10**6), (1e-3, 1e-3), (0.0, 0.0))
    monkeypatch.setattr(budget, "speed", lambda *_: speed)
    fails(*RUN, *words, "--save", tmp_path / "run", code=2, says=says)
    assert not (tmp_path / "run").exists()


def test_times_as_people_write_them():
    assert [budget.duration(text) for text in ("90s", "45m", "2h", "1h30m", "0.5h")] == [
        90, 2700, 7200, 5400, 1800]


def test_a_dry_run_knows_images_classes_and_the_time_here(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")
    found = len(load("imagefolder", photos).train)
    out = works("kesi", "run", "--dataset", "imagefolder", "--data", photos, "--arch", "resnet20",
                "--epochs", 2, 1, 1, "--rounds", 1, "--device", "cpu", "--dry-run")
    classes = len(list((photos / "train").iterdir()))
    assert f"({classes} classes" in out and f"{2 * found:,}\n" in out
    assert " here, by a few training steps on " in out
    out = works("kesi", "compress", photos, "--method", "both", "--arch", "resnet20", "--device",
                "cpu", "--image-size", 16, "--dry-run")  # half of the MACs, and half of the weights
    assert "52.36 %" in out and "135,419" in out


def test_epochs_fit_the_number_of_photographs(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")  # 27 to train
    words = ("kesi", "compress", photos, "--arch", "resnet20", "--rounds", 2, "--dry-run")
    assert "epochs: 3,000 + 2 x 400 + 400, made to fit 27" in works(*words)
    for given in (("--epochs", 3, 2, 2), ("--epochs-scale", 0.1)):
        assert "made to fit" not in works(*words, *given)
    run = ("kesi", "run", "--arch", "resnet20", "--dry-run")
    assert "made to fit 27" in works(*run, "--dataset", "imagefolder", "--data", photos)
    for known in ("cifar10", "digits"):
        assert "made to fit" not in works(*run, "--dataset", known)


@pytest.mark.parametrize(("family", "images", "epochs"), [
    ("cifar", 50_000, (300, 40, 40)), ("cifar", 25_000, (600, 80, 80)),
    ("cifar", 10, (3000, 400, 400)), ("cifar", 10**8, (1, 1, 1)),
    ("tinyimagenet", 100_000, (90, 25, 25)), ("tinyimagenet", 1_000_000, (9, 2, 2))])
def test_the_rule_of_epochs(family, images, epochs):
    made = recipe("resnet18", "imagefolder", "filter", family).fitted(images)
    assert tuple(one.epochs for one in (made.baseline, made.retrainings["onecycle"],
                                        made.distillation)) == epochs
    assert all(1 <= place <= made.baseline.epochs for place in made.baseline.milestones)
