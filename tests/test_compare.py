"""The comparison's figures, against the runs' own results and by hand."""

import csv
import json
from dataclasses import replace

import pytest
import torch

import models
from doors import fails, works
from kesi import checkpoints
from kesi.cli import networks
from kesi.data import load
from kesi.method.training import predict
from kesi.system.errors import UsageError
from kesi.tools import compare, latency
from saving import keep

pytest_plugins = ["tinyrun"]


def test_figures_are_those_of_the_runs(filter_run, weight_run, tmp_path, quick_clock, capsys):
    stages = [filter_run / "seed0/baseline", filter_run / "seed0/kesi", weight_run / "seed0/kesi"]
    networks.compare([*map(str, stages), "--csv", str(tmp_path / "c.csv")])
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    text = capsys.readouterr().out
    digits = load("digits")
    classes = [predict(checkpoints.load_model(stage), digits, digits.test).argmax(1)
               for stage in stages]
    for place, (stage, row) in enumerate(zip(stages, rows, strict=True)):
        result = json.loads((stage / "result.json").read_text())
        for name in ("params", "nonzero_params", "macs"):
            assert int(row[name]) == result[name]
        assert int(row["bytes"]) == (stage / "checkpoint.pth.tar").stat().st_size
        assert float(row["accuracy"]) == pytest.approx(result["test_accuracy"], abs=0.15)
        assert float(row["latency_1"]) > 0 and float(row["latency_128"]) > float(row["latency_1"])
        for other, name in enumerate(["tinyrun-filter/seed0/baseline", "tinyrun-filter/seed0/kesi",
                                      "tinyrun-weight/seed0/kesi"]):
            same = 100 * float((classes[place] == classes[other]).double().mean())
            assert float(row[f"same_as_{name}"]) == pytest.approx(same, abs=0.15)
        assert f"{result['nonzero_params']:,}" in text
    assert rows[0]["params"] != rows[1]["params"] and "1,497 test images of digits" in text


def test_names_tell_checkpoints_apart(filter_run):
    same = [checkpoints.load(filter_run / "seed0/kesi")] * 2
    assert compare.names(same) == ["kesi (1)", "kesi (2)"]
    stage = filter_run / "seed0/onecycle-1"
    loaded = [checkpoints.load(path)
              for path in (stage / "pruned.pth.tar", stage, filter_run / "seed0/kesi")]
    assert compare.names(loaded) == ["onecycle-1/pruned.pth.tar", "onecycle-1", "kesi"]


def test_checkpoints_of_other_classes_are_refused(filter_run, tmp_path):
    known = checkpoints.load(filter_run / "seed0/kesi")
    data = known.info.data | {"classes": ["ten", *known.info.data["classes"][1:]]}
    checkpoints.save(tmp_path / "other.pth.tar", known, replace(known.info, data=data))
    for words in ((known.path, tmp_path / "other.pth.tar", "--dataset", "digits"),
                  (tmp_path / "other.pth.tar",)):
        fails("kesi", "compare", *words, "--no-latency", code=2,
              says="knows other classes than digits: 'ten' where '0' is")


def test_other_images_of_the_same_name_are_not_taken_for_the_same(filter_run, tmp_path):
    known = checkpoints.load(filter_run / "seed0/kesi")
    data = known.info.data | {"digests": known.info.data["digests"] | {"test": "of other images"},
                              "mean": [0.5] * 3}
    checkpoints.save(tmp_path / "other.pth.tar", known, replace(known.info, data=data))
    words = ["kesi", "compare", known.path, tmp_path / "other.pth.tar", "--no-latency"]
    for more in ([], ["--dataset", "digits"]):
        said = fails(*words, *more, code=2, says="other.pth.tar were tested on different images, "
                                                 "both named digits: say with --data")
        assert str(known.path) in said
    fails("kesi", "landscape", *words[2:4], "--out", tmp_path / "line", code=2,
          says="different images")
    assert not (tmp_path / "line").exists()
    assert "the same prediction" in works(*words, "--data", tmp_path)
    works(*words, "--no-accuracy")


def test_without_images_and_times(filter_run, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"state_dict": models.create("resnet20", 10).state_dict()},
               tmp_path / "released.pth.tar")
    words = [str(tmp_path / "released.pth.tar"), str(filter_run / "seed0/kesi"), "--no-latency"]
    networks.compare([*words, "--no-accuracy"])
    text = capsys.readouterr().out
    assert "released.pth.tar" in text and "the same prediction" not in text
    with pytest.raises(UsageError, match="different data sets"):
        networks.compare(words)
    networks.compare([words[0], str(filter_run), "--dataset", "digits", "--no-latency"])
    text = capsys.readouterr().out
    assert "seed0/kesi " in text  # what a run hands over
    assert "the same prediction" in text


def test_images_that_nobody_can_load_again(tmp_path):
    keep(tmp_path / "c.pth.tar", models.create("resnet20", 10), stage="baseline",
         data=load("digits").describe() | {"name": "images"})
    said = "c.pth.tar were handed over in Python ('images') and cannot be loaded anew: give --data"
    fails("kesi", "compare", tmp_path / "c.pth.tar", "--no-latency", code=2, says=said)
    fails("kesi", "export", tmp_path / "c.pth.tar", "--out", tmp_path / "net", "--int8", code=2,
          says="--int8 needs training images for calibration: the images of")
    works("kesi", "compare", tmp_path / "c.pth.tar", "--no-latency", "--no-accuracy")


def test_latencies_alternate_and_are_medians(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(latency, "perf_counter", lambda: clock[0])
    durations = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 4.0, 4.0, 7.0])}

    def call(name):
        order.append(name)
        clock[0] += next(durations[name])

    # the first calls do not count
    assert latency.alternated([lambda: call("a"), lambda: call("b")]) == [2.0, 4.0]
    assert order == ["a", "b"] * 4
