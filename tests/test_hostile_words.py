"""What a second attack on flags and folders found: each is one line, and harms nothing."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from doors import fails, script
from kesi import checkpoints
from kesi.method.pruning.criteria import CRITERIA
from kesi.runs.lineage import reference
from tinyrun import same_command

pytest_plugins = ["tinyrun"]

TINY = ("--arch", "resnet20", "--dataset", "digits", "--device", "cpu")
NETWORKS = ("--no-latency", "--no-accuracy")


def test_what_is_no_file_is_never_replaced_by_one(filter_run, tmp_path):
    """A device or a pipe that somebody named as the place for a result, or a folder."""
    here, kesi = tmp_path / "here", filter_run / "seed0" / "kesi"
    os.mkfifo(here)
    fails("kesi", "compare", kesi, kesi, *NETWORKS, "--csv", here, code=1, says="and no file")
    assert here.is_fifo() and list(tmp_path.iterdir()) == [here]
    fails("kesi", "compare", kesi, kesi, *NETWORKS, "--csv", ".", code=1, says="and no file")
    # a flag that takes no FILE elsewhere, before a checkpoint; and a format with its name
    checkpoint = shutil.copy(kesi / "checkpoint.pth.tar", tmp_path)
    before = Path(checkpoint).read_bytes()
    fails("kesi", "compare", *NETWORKS, "--csv", checkpoint, kesi, code=2, says="is a checkpoint")
    fails("kesi", "export", kesi, "--format", "onnx", "--out", checkpoint, code=2,
          says="take another, such as checkpoint.onnx")
    assert Path(checkpoint).read_bytes() == before


def test_a_pipe_in_a_run_is_not_waited_for(filter_run, tmp_path):
    pytest.importorskip("tensorboard")
    run = shutil.copytree(filter_run, tmp_path / "run")
    metrics = run / "seed0" / "kesi" / "metrics.jsonl"
    metrics.unlink()
    os.mkfifo(metrics)
    fails("kesi", "tensorboard", run, code=1, says=f"cannot read {metrics}: it is a pipe")


@pytest.mark.parametrize(("words", "code", "says"), [
    (("--device", "meta"), 2, "--device meta: "), (("--save", "loop/x"), 1, "cannot write loop/x"),
    (("--save", "\udcff"), 2, "--save holds a control character"),
    (("--seeds", 0, 1, 0), 2, "--seeds names one of 0 1 0 twice"),
    (("--pretrained",), 2, "no ImageNet weights for resnet20"),
    (("--pretrained", "--dry-run"), 2, "no ImageNet weights for resnet20"),
    (("--baseline-folder", "exits.py/x"), 2, "--baseline-folder: exits.py is a file"),
    (("--baseline-folder", "exits.py", "--dry-run"), 2, "--baseline-folder: exits.py is a file"),
    (("--with", "exits.py"), 2, "exits.py: it ends the program")])
def test_words_of_a_run(tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)")
    before = sorted(tmp_path.iterdir())
    fails("kesi", "run", *TINY, *words, code=code, says=says)
    assert [one for one in sorted(tmp_path.iterdir()) if one.name != "__pycache__"] == before


def test_a_learning_rate_does_not_fall_before_the_first_epoch(tmp_path):
    fails("cifar/train.py", *TINY, "--schedule", 1, -1, "--save", tmp_path / "x", code=2,
          says="falls after whole epochs of at least 0, not 1, -1")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [("--radius", "1e308"), ("--radius", "nan"), ("--grid", 10**9),
                                   ("--grid", 1), ("--seed", 2**70), ("--points", 10**9)])
def test_a_landscape_has_a_size(filter_run, tmp_path, words):
    kesi = filter_run / "seed0" / "kesi"
    around = (kesi, kesi) if words[0] == "--points" else ("--plane", kesi)
    fails("kesi", "landscape", *around, *words, "--images", 1, "--out", tmp_path, code=2,
          says="a seed is" if words[0] == "--seed" else "at most 1000")


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_scores_that_are_no_numbers_prune_nothing(filter_run, tmp_path, monkeypatch, method):
    """They would be sorted somewhere, and a network come out."""
    def none(network, layers, evidence):
        weights = {layer: network.get_submodule(layer).weight for layer in layers}
        return {layer: torch.full(one.shape if method == "weight" else one.shape[:1], torch.nan)
                for layer, one in weights.items()}

    monkeypatch.setitem(CRITERIA[method], "none", none)
    given = ["0.5"] * (9 if method == "filter" else 1)
    fails(f"cifar/{method}_pruning/prune.py", "--model", filter_run / "seed0" / "baseline",
          "--percent", *given, "--criterion", "none", "--save", tmp_path / "x", code=1,
          says="scores that are no numbers")
    assert not list(tmp_path.rglob("*.tar"))


def test_a_stage_under_another_name_is_found(filter_run, tmp_path):
    """It would stand in the report's list of stages beside the one that is made in its place."""
    run = shutil.copytree(filter_run, tmp_path / "run")
    for name in ("baseline-renamed", "baseline.old-1"):  # the second is what --fresh leaves
        shutil.copytree(run / "seed0" / "baseline", run / "seed0" / name)
    said = script("kesi", "verify", run, "--no-accuracy").out
    assert "FAILED seed0/baseline-renamed: its result is that of baseline" in said
    assert "old-1: its" not in said


def test_a_link_in_a_run_changes_no_record(filter_run, tmp_path):
    """What a stage was made from is named where the run expects it, wherever a link leads."""
    run = shutil.copytree(filter_run, tmp_path / "run")
    pruned = run / "seed0" / "onecycle-1" / "pruned.pth.tar"
    pruned.rename(tmp_path / "elsewhere.pth.tar")
    pruned.symlink_to(tmp_path / "elsewhere.pth.tar")
    assert reference(checkpoints.load(pruned), pruned.parent).path == "pruned.pth.tar"
    assert script("cifar/pipeline.py", *same_command(run)).code == 0
