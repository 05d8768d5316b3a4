"""A result is asked for instead of rates: a share of MACs, of parameters, or of zeros."""

import csv
import io
import json

import pytest

from datagen import write_imagefolder
from doors import fails, works
from kesi.method.recipes import recipe


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


@pytest.mark.parametrize("words, says", [
    (("--macs", 0.01), "is the least that this allocation can leave"),
    (("--macs", 0), "above 0 and at most 1"), (("--params", 1.5), "above 0 and at most 1"),
    (("--macs", 0.5, "--params", 0.5), "ask for different things"),
    (("--macs", 0.5, "--percent", 0.2), "ask for different things"),
    (("--sparsity", 0.5), "--sparsity is for weight pruning"),
    (("--method", "weight", "--macs", 0.5), "--macs is for filter pruning"),
    (("--method", "weight", "--sparsity", 1), "at least 0 and below 1"),
    (("--macs", 0.5, "--round-to", 0), "multiple of at least 1")])
def test_what_cannot_be_is_said_before_any_training(words, says):
    fails("kesi", "plan", "--arch", "resnet20", "--dataset", "digits", *words, code=2, says=says)


def test_a_folder_of_images_in_and_a_smaller_network_out(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")
    out = works("kesi", "compress", photos, "--arch", "resnet20", "--epochs", 1, 1, 1, "--rounds",
                1, "--device", "cpu", "--image-size", 16, "--save", tmp_path / "run",
                "--val-fraction", 0.3)
    assert "kesi: " in out
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["handed_over"]["seed0"]
    assert f"held-out images: {tmp_path / 'run' / 'seed0' / chosen}\n" in out
    results = {name: json.loads((tmp_path / "run" / "seed0" / name / "result.json").read_text())
               for name in ("baseline", "kesi")}
    assert results["kesi"]["macs"] <= 0.5 * results["baseline"]["macs"]
    fails("kesi", "compress", tmp_path / "none", "--arch", "resnet20", code=1, says="none")


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
