"""Lines and planes: the ends and the centre are the networks themselves,
and the way between is straight."""

import csv
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from doors import fails, works
from kesi import checkpoints
from kesi.cli import networks
from kesi.data import load
from kesi.method.training import evaluate
from kesi.system.errors import UsageError
from kesi.tools import landscape

pytest_plugins = ["tinyrun"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def few(digits):
    return digits.test.spread(60)


def network(run, stage):
    return checkpoints.load_model(run / "seed0" / stage)


def test_line_between_a_pruned_network_and_its_baseline(weight_run, digits, few):
    a, b = network(weight_run, "baseline"), network(weight_run, "onecycle-2")
    before = {name: value.clone() for name, value in a.state_dict().items()}
    found = landscape.line(a, b, digits, few, points=3)
    assert [point.position for point in found] == [0, 0.5, 1]
    for point, model in ((found[0], a), (found[2], b)):
        assert (point.loss, point.accuracy) == pytest.approx(evaluate(model, digits, few), rel=1e-5)
    middle = network(weight_run, "baseline")
    with torch.no_grad():
        for own, one, other in zip(middle.state_dict().values(), a.state_dict().values(),
                                   b.state_dict().values(), strict=True):
            own.copy_((one + other) / 2 if own.is_floating_point() else own)
    assert ((found[1].loss, found[1].accuracy)
            == pytest.approx(evaluate(middle, digits, few), rel=1e-4))
    assert all(torch.equal(value, before[name]) for name, value in a.state_dict().items())


def test_recomputed_statistics_are_those_of_the_training_images(weight_run, digits):
    model = network(weight_run, "onecycle-1")
    weights = {name: value.clone() for name, value in model.named_parameters()}
    for norm in (model.bn1, model.layer1[0].bn1):
        norm.running_mean.fill_(99.0)
        norm.running_var.fill_(99.0)
    landscape.recompute_statistics(model, digits)
    images = torch.cat([batch for batch, _ in landscape.TrainBatches(digits, 256, seed=0).epoch(1)])
    activations = functional.conv2d(images, model.conv1.weight, padding=1).detach()
    assert torch.allclose(model.bn1.running_mean, activations.mean((0, 2, 3)), atol=0.02)
    assert torch.allclose(model.bn1.running_var, activations.var((0, 2, 3)), rtol=0.1)
    assert (model.layer1[0].bn1.running_mean.abs().max() < 50 and not model.bn1.training
            and model.bn1.momentum == 0.1)
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_recomputing_matters_between_networks(weight_run, digits, few):
    """Two unrelated networks: half-way their mean statistics are wrong,
    and recomputing changes the loss."""
    a = network(weight_run, "baseline")
    b = landscape.copy.deepcopy(a)
    with torch.no_grad():  # the same function with its channels in another order
        order = torch.arange(16).flip(0)
        for layer in (b.layer1[0].conv1, b.layer1[0].bn1):
            for value in layer.state_dict().values():
                if value.dim():
                    value.copy_(value[order])
        b.layer1[0].conv2.weight.copy_(b.layer1[0].conv2.weight[:, order])
    plain = landscape.line(a, b, digits, few, points=3)
    assert plain[0].loss == pytest.approx(plain[2].loss, rel=1e-4)
    again = landscape.line(a, b, digits, few, points=3, recompute_bn=True)
    assert abs(again[1].loss - plain[1].loss) > 1e-3


def test_directions_have_the_norms_of_the_filters_and_keep_zeros(weight_run):
    model = network(weight_run, "kesi")
    one, other = landscape.directions(model, seed=0)
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    assert one.keys() == weights.keys()
    for name, weight in weights.items():
        for direction in (one[name], other[name]):
            norms = weight.flatten(1).norm(dim=1)
            assert torch.allclose(direction.flatten(1).norm(dim=1), norms, rtol=1e-4, atol=1e-6)
            assert not direction[weight == 0].any()
        assert not torch.equal(one[name], other[name])
    assert torch.equal(landscape.directions(model, seed=0)[1]["conv1.weight"],
                       other["conv1.weight"])
    assert not torch.equal(landscape.directions(model, seed=1)[0]["conv1.weight"],
                           one["conv1.weight"])


def test_plane_is_centred(weight_run, digits, few):
    model = network(weight_run, "kesi")
    found = landscape.plane(model, digits, few, radius=0.5, grid=3, seed=4)
    assert ([(point.x, point.y) for point in found]
            == [(x, y) for y in (-0.5, 0, 0.5) for x in (-0.5, 0, 0.5)])
    assert ((found[4].loss, found[4].accuracy)
            == pytest.approx(evaluate(model, digits, few), rel=1e-5))
    moved = landscape.copy.deepcopy(model)
    with torch.no_grad():
        for name, value in landscape.directions(model, 4)[0].items():
            moved.get_parameter(name).add_(0.5 * value)
    assert found[5].loss == pytest.approx(evaluate(moved, digits, few)[0], rel=1e-4)
    with pytest.raises(UsageError, match="radius"):
        landscape.plane(model, digits, few, radius=0)


def test_networks_of_different_shapes(filter_run, digits, few, tmp_path):
    a, b = network(filter_run, "baseline"), network(filter_run, "kesi")
    with pytest.raises(UsageError,
                       match="different shapes .*filter pruning makes networks smaller"):
        landscape.line(a, b, digits, few)
    same = landscape.line(network(filter_run, "onecycle-2"), b, digits, few, points=2)
    assert len(same) == 2
    words = [str(filter_run / "seed0/baseline"), str(filter_run / "seed0/kesi"), "--out",
             str(tmp_path)]
    with pytest.raises(UsageError, match="different shapes"):
        networks.landscape(words)
    with pytest.raises(UsageError, match="two checkpoints"):
        networks.landscape([words[0], "--out", str(tmp_path)])


def test_command_writes_csv_and_plots(weight_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    stages = [str(weight_run / "seed0" / name) for name in ("baseline", "onecycle-1", "onecycle-2")]
    words = [*stages, "--points", "3", "--images", "40", "--grid", "2", "--out", str(tmp_path)]
    networks.landscape([*words, "--plane", stages[2]])
    rows = list(csv.DictReader((tmp_path / "line.csv").open()))
    assert [(row["from"], row["to"]) for row in rows] == ([("baseline", "onecycle-1")] * 3
                                                          + [("onecycle-1", "onecycle-2")] * 3)
    assert float(rows[2]["loss"]) == pytest.approx(float(rows[3]["loss"]), rel=1e-5)
    assert len(list(csv.DictReader((tmp_path / "plane.csv").open()))) == 4
    for name in ("line.png", "plane.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "barrier" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "says"), [
    (["A", "B", "--grid", "3"], "--grid does nothing here: it goes with --plane"),
    (["A", "B", "--radius", "1"], "--radius does nothing here"),
    (["A", "B", "--seed", "0"], "--seed does nothing here"),
    (["--plane", "A", "--points", "3"], "--points does nothing here: it goes with two"),
    (["A", "B", "--points", "1"], "at least 2 points"),
    (["A", "B", "--plane", "A", "--radius", "0"], "a radius above 0"),
    (["A", "B", "--plane", "A", "--grid", "1"], "a grid of at least 2"),
    (["A", "B", "--plane", "nowhere"], "no such checkpoint: nowhere"),
    (["A", "B", "--plane", "other"], "knows other classes than digits")])
def test_what_is_wrong_is_said_before_anything_is_computed(weight_run, tmp_path, monkeypatch, words,
                                                           says):
    monkeypatch.chdir(tmp_path)
    known = checkpoints.load(weight_run / "seed0/kesi")
    data = known.info.data | {"classes": [*"987", *"0123456"]}
    checkpoints.save(tmp_path / "other", known, replace(known.info, data=data))
    stages = {"A": weight_run / "seed0/baseline", "B": weight_run / "seed0/onecycle-1"}
    fails("kesi", "landscape", *(stages.get(word, word) for word in words), "--out", "made",
          code=2, says=says)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_names_of_folders_are_no_formulas(weight_run, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("$a_{\\frac$", "$b_{\\frac$"):
        shutil.copytree(weight_run / "seed0/kesi", tmp_path / name)
    stages = sorted(tmp_path.iterdir())
    works("kesi", "landscape", *stages, "--points", "2", "--images", "10", "--plane", stages[0],
          "--grid", "2", "--out", tmp_path / "made")
    assert {"line.png", "plane.png"} < {path.name for path in (tmp_path / "made").iterdir()}


def test_without_matplotlib_there_is_the_csv(weight_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "kesi.tools.landscape_plots", raising=False)
    monkeypatch.delattr("kesi.tools.landscape_plots", raising=False)
    stages = [str(weight_run / "seed0" / name) for name in ("baseline", "onecycle-1")]
    networks.landscape([*stages, "--points", "2", "--images", "20", "--out", str(tmp_path)])
    assert 'pip install -e ".[plots]"' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["line.csv"]
