"""The benchmarks run and say what they should; how fast anything is, no test holds."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.classic import Classic, distillation_losses, hold_zeros
from benchmarks.scaling import tables
from benchmarks.sides import Job, Ours, Side, networks, recipe_of
from benchmarks.throughput import check, quartiles
from doors import ROOT, fails, works
from kesi.method.distillation import SnapshotEnsemble, distillation_loss
from kesi.method.pruning import prune_weights
from kesi.method.recipes import ONE_CYCLE
from kesi.system.errors import KesiError

pytestmark = pytest.mark.slow


def run(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=300)


def test_throughput_prints_its_table_and_writes_json(tmp_path):
    done = run("benchmarks.throughput", "--quick", "--rows", "distill", "matmul", "--threads", 1, "--json",
               tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "t.json").read_text())
    assert {"date", "threads", "versions", "device", "commit", "settings", "rows"} <= found.keys()
    distil, bf16, matmul = found["rows"]
    assert distil["check"]["loss_apart"] < 1e-3 and bf16["check"]["precision"] == "bf16"
    assert len(distil["ours"]["step_seconds"]) == 2 and min(distil["memory_mb"].values()) > 0
    assert math.isfinite(distil["ratio"]) and matmul["share"] > 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 and all(line.endswith("not measured |") for line in lines[2:])


def test_wrong_words_are_one_line():
    fails("benchmarks.throughput", "--threads", 0, code=2, says="--threads")
    fails("benchmarks.profile", "--round", 6, code=2, says="--round 6")
    fails("benchmarks.profile", "--arch", "alexnet", code=2, says="alexnet")


@pytest.mark.parametrize("words", [("--stage", "kesi"), ("--stage", "onecycle", "--method", "weight"),
                                   ("--stage", "baseline", "--precision", "bf16")])
def test_profile_shows_the_top_operations(words):
    out = works("benchmarks.profile", "--arch", "resnet20", "--batch-size", 4, "--steps", 1, "--top", 5, "--device",
                "cpu", *words)
    lines = out.splitlines()
    assert "convolution" in out and lines[-2].split()[1] == "others" and len(lines) == 2 + 5 + 2
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_one_kl_for_each_teacher_has_the_gradient_of_our_one_kl():
    *teachers, student = networks("resnet20", 8)[:4]
    images = torch.randn(5, 3, 8, 8)
    logits = student(images).detach().requires_grad_()
    classic = distillation_losses(logits, images, [teacher.eval() for teacher in teachers], 5.0)
    ours = distillation_loss(logits, SnapshotEnsemble(teachers).probabilities(images, 5.0), 5.0)
    one, other = (torch.autograd.grad(loss, logits)[0] for loss in (classic, ours))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert classic.item() > ours.item()


def test_masks_from_zeros_hold_the_zeros():
    model = networks("resnet20", 8)[0]
    masks = prune_weights(model, 0.5)
    classic = Classic(model, ONE_CYCLE, 100, torch.device("cpu"), 5.0, masked=True)
    for _ in range(2):
        classic.advance(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert sum(int((model.get_parameter(name) == 0).sum()) for name in masks.state_dict()) == masks.pruned()
    hold_zeros(model)


def test_the_weight_masks_of_both_sides(tmp_path):
    answers = []
    for name in ("classic", "ours"):
        side = Side(Job(name, "retrain", "resnet20", batch=4, images=8, size=16, masked=True, workers=0))
        answers.append(side.check(str(tmp_path / "gradient.pt")))
        assert side.masks(2)["seconds"] > 0 and side.memory()["mb"] > 0 and side.turn(1)["images"] == 4
    assert answers[0]["zeros"] == answers[1]["zeros"] > 0
    assert answers[0]["losses"] == pytest.approx(answers[1]["losses"], rel=1e-3)


@pytest.mark.parametrize("stage", ["retrain", "distill"])
def test_a_turn_is_steps_with_their_images(stage):
    job = Job("ours", stage, "resnet20", batch=4, images=10, size=16)
    turn = Side(job).turn(3)  # after two that are not counted: 2 | 4 4 2
    assert turn["steps"] == 3 and turn["images"] == 2 + 4 + 4 and turn["seconds"] > 0


class Answers:
    """A side that has done its steps already."""

    def __init__(self, losses, gradient, zeros=0):
        self.answer = {"losses": losses, "constant": [0.5] * 3, "zeros": zeros, "precision": "fp32"}
        self.gradient = torch.tensor(gradient)

    def ask(self, what, path):
        torch.save(self.gradient, path)
        return self.answer


def test_sides_that_compute_something_else_are_not_timed():
    classic = Answers([2.5, 2.5, 2.5], [1.0, 2.0])
    found = check({"classic": classic, "ours": Answers([2.0, 2.0, 2.0], [1.0, 2.0])})
    assert found["ours"]["loss_apart"] == 0
    for other in (Answers([2.0, 2.0, 2.1], [1.0, 2.0]), Answers([2.0, 2.0, math.nan], [1.0, 2.0]),
                  Answers([2.0, 2.0, 2.0], [1.0, -2.0]), Answers([2.0, 2.0, 2.0], [math.nan, 2.0]),
                  Answers([2.0, 2.0, 2.0], [1.0, 2.0], zeros=1)):
        with pytest.raises(KesiError, match="do not compute the same"):
            check({"classic": classic, "ours": other})


def test_ours_is_what_fit_runs():
    plan = recipe_of("resnet20")
    model = networks("resnet20", 16)[0]
    ours = Ours(Job("ours", "retrain", "resnet20", 4, 8, 16), model, plan.retrain, [], plan.temperature, None)
    assert next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert ours.optimizer.defaults["fused"] and ours.precision == "fp32"


def test_quartiles_and_tables():
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4) and quartiles([7]) == (7, 7, 7)
    text = tables({"images": [{"images": 128, "seconds": 1.0, "ms_an_image": 7.8}],
                   "batches": [{"batch": 32, "step_seconds": 0.1, "images_per_second": 320}],
                   "teachers": [{"teachers": 0, "step_seconds": 0.1, "predicted_seconds": 0.1}]})
    assert "| 128 | 1.000 | 7.800 |" in text and "| 0 | 100.0 | 100.0 | 1.000 |" in text
