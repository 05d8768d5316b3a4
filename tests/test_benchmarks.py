"""The benchmarks run and say what they should; how fast anything is, no test holds."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.classic import Classic, distillation_losses, hold_zeros
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import choice, items
from benchmarks.scaling import tables
from benchmarks.sides import Job, Ours, Side, ensemble, networks, recipe_of
from benchmarks.throughput import check, quartiles
from doors import ROOT, fails, works
from kesi.method.objectives import KullbackLeibler
from kesi.method.pruning import prune_weights
from kesi.method.recipes import ONE_CYCLE, OWN
from kesi.system.errors import KesiError, UsageError

pytestmark = pytest.mark.slow


def run(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=300)


def test_throughput_prints_its_table_and_writes_json(tmp_path):
    done = run("benchmarks.throughput", "--quick", "--rows", "distill", "matmul", "--threads", 1,
               "--json", tmp_path / "t.json")
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
    fails("benchmarks.profile", "--batch-size", 0, code=2, says="at least 2")
    fails("benchmarks.waiting", "--turns", 0, code=2, says="--turns")
    fails("benchmarks.input", "--device", "cuda", code=2, says="cuda")
    fails("benchmarks.input", "--stored", 64, code=2, says="--stored is for --size 224")


@pytest.mark.parametrize("words",
                         [("--stage", "kesi"), ("--stage", "onecycle", "--method", "weight"),
                          ("--stage", "baseline", "--precision", "bf16")])
def test_profile_shows_the_top_operations(words):
    out = works("benchmarks.profile", "--arch", "resnet20", "--batch-size", 4, "--steps", 1,
                "--top", 5, "--device", "cpu", *words)
    lines = out.splitlines()
    # a CPU without instructions for bf16 computes its convolutions in torch's own loops
    plain = "bf16" in words and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert ("aten::_slow_conv2d" if plain else "convolution") in out
    assert lines[-2].split()[1] == "others" and len(lines) == 2 + 5 + 2
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_one_kl_for_each_teacher_has_the_gradient_of_our_one_kl():
    *teachers, student = networks("resnet20", 8)[:4]
    images = torch.randn(5, 3, 8, 8)
    logits = student(images).detach().requires_grad_()
    classic = distillation_losses(logits, images, [teacher.eval() for teacher in teachers], 5.0)
    labels = torch.zeros(5, dtype=torch.long)  # which the loss leaves out
    ours = KullbackLeibler(5.0)(logits, ensemble(teachers, "cpu").logits(images), labels)
    one, other = (torch.autograd.grad(loss, logits)[0] for loss in (classic, ours))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert classic.item() > ours.item()


def test_masks_from_zeros_hold_the_zeros():
    model = networks("resnet20", 8)[0]
    masks = prune_weights(model, 0.5)
    classic = Classic(model, ONE_CYCLE, 100, torch.device("cpu"), 5.0, masked=True)
    for _ in range(2):
        classic.advance(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert (sum(int((model.get_parameter(name) == 0).sum()) for name in masks.state_dict())
            == masks.pruned())
    hold_zeros(model)


def test_the_weight_masks_of_both_sides(tmp_path):
    answers = []
    for name in ("classic", "ours"):
        side = Side(Job(name, "retrain", "resnet20", batch=4, images=8, size=16, masked=True,
                        workers=0))
        answers.append(side.check(str(tmp_path / "gradient.pt")))
        assert (side.masks(2)["seconds"] > 0 and side.memory()["mb"] > 0
                and side.turn(1)["images"] == 4)
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
    ours = Ours(Job("ours", "retrain", "resnet20", 4, 8, 16), model, plan.trainings[OWN],
                [], plan.loss, None)
    assert next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert ours.optimizer.defaults["fused"] and ours.precision == "fp32"


def test_quartiles_and_tables():
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4) and quartiles([7]) == (7, 7, 7)
    text = tables({"images": [{"images": 128, "seconds": 1.0, "ms_an_image": 7.8}],
                   "batches": [{"batch": 32, "step_seconds": 0.1, "images_per_second": 320}],
                   "teachers": [{"teachers": 0, "step_seconds": 0.1, "predicted_seconds": 0.1}]})
    assert "| 128 | 1.000 | 7.800 |" in text and "| 0 | 100.0 | 100.0 | 1.000 |" in text


def row(precision, compile_, stage, step, gradient=0.0, first=0.0):
    return {"precision": precision, "compile": compile_, "stage": stage, "step_seconds": step,
            "batch": 128, "gradient_apart": gradient, "loss_apart": 0.0, "first_seconds": first}


def rows(precision, compile_, step, **more):
    return [row(precision, compile_, stage, step, **more) for stage in choice.JOBS]


def test_the_soonest_way_is_chosen_among_those_that_compute_the_same():
    fp32, bf16 = rows("fp32", "off", 3.0), rows("bf16", "capture", 1.0)
    found = choice.choose(fp32 + bf16, "resnet56")
    assert (found["precision"], found["compile"]) == ("bf16", "capture")
    found = choice.choose(fp32 + rows("bf16", "capture", 1.0, gradient=1.5), "resnet56")
    assert (found["precision"], found["compile"]) == ("fp32", "off")
    # seconds to compile, against half of a baseline
    for first, chosen in ((60.0, "auto"), (1e9, "capture")):
        compiled = row("bf16", "on", "baseline", 0.5, first=first)
        assert choice.choose([*fp32, *bf16, compiled], "resnet56")["compile"] == chosen
    with pytest.raises(KesiError, match="no precision"):
        choice.choose(fp32[:2], "resnet56")
    with pytest.raises(KesiError, match="measured on B and None"):
        choice.choose([*fp32[:2], fp32[2] | {"device": "B"}], "resnet56")


def plan(tmp_path, seconds=60.0):
    return items.Plan(tmp_path, "resnet20", "cpu", "digits", "data", 0.01,
                      time.monotonic() + seconds)


def test_what_is_done_is_not_done_again_and_a_failure_stops_nothing_else(tmp_path, monkeypatch,
                                                                         capsys):
    done = []

    def item(name):
        def call(_):
            done.append(name)
            if name == "b" and done.count("b") == 1:
                raise KesiError("out of order")
            if name == "d" and done.count("d") == 1:
                raise items.OutOfTime
            return {"says": f"{name} is well"}
        return call

    monkeypatch.setattr(gpu, "ITEMS", {name: item(name) for name in "abcd"})
    assert not gpu.go_through(plan(tmp_path)) and done == list("abcd")
    said = capsys.readouterr().out
    assert "b: FAILED (out of order)" in said and "d: the time is over" in said
    assert gpu.go_through(plan(tmp_path)) and done == list("abcd") + ["b", "d"]
    assert "- b: b is well" in gpu.summary(tmp_path) and "16 MB" not in gpu.summary(tmp_path)
    with open(tmp_path / "large.pth.tar", "wb") as file:
        file.truncate(gpu.LARGEST + 1)
    assert "- above 16 MB: large.pth.tar, 16 MB" in gpu.summary(tmp_path)


def test_what_runs_when_the_time_is_over_is_told_to_end(tmp_path):
    program = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: "
               "sys.exit(print('saved')));print('begun', flush=True); time.sleep(600)")
    with pytest.raises(items.OutOfTime):
        items.run(plan(tmp_path, 5.0), "-c", program, log="child")
    assert (tmp_path / "child.log").read_text() == "begun\nsaved\n"
    with pytest.raises(KesiError, match="more than 3 s"):
        items.run(plan(tmp_path), "-c", program, log="child", most=3)


def test_the_table_of_steps_is_measured_once(tmp_path):
    words = ("benchmarks.gpu.steps", tmp_path, "--arch", "resnet20", "--device", "cpu", "--quick",
             "--rows")
    assert works(*words, "off").count("measuring") == 6
    assert works(*words, "off", "on") == ""
    found = choice.measured(tmp_path)
    assert {(one["precision"], one["stage"]) for one in found} == {
        (precision, stage) for precision in ("fp32", "bf16") for stage in choice.JOBS}
    assert all(one["gradient_apart"] == 0 for one in found if one["precision"] == "fp32")
    assert all(one["kernels"] > 50 and one["step_seconds"] > 0 for one in found)
    assert all(one["teachers"] == choice.JOBS[one["stage"]][1] for one in found)
    assert choice.table(found).count("\n") >= 7


def test_what_is_killed_is_killed_within_its_training_and_continued(tmp_path):
    found = items.deterministic(plan(tmp_path, 600))
    assert found == {"says": "killed, continued; the same bits", "passed": True}


def test_a_folder_of_another_network_or_device_tells_nothing_of_this_one(tmp_path):
    asked = plan(tmp_path)
    for _ in range(2):
        gpu.refuse_others(asked)
    gpu.refuse_others(replace(asked, data="elsewhere", deadline=0.0))  # another machine
    words = ("benchmarks.gpu", "--save", tmp_path, "--device", "cpu", "--epochs-scale", 0.01)
    fails(*words, "--arch", "resnet32", code=2, says="was begun with --arch resnet20, now it is")
    with pytest.raises(UsageError, match="--device cpu, now it is cuda"):
        gpu.refuse_others(replace(asked, device="cuda:0"))


def test_the_gpu_tests_are_those_that_are_skipped_by_that_name():
    done = run("benchmarks.gpu.tests")
    assert (done.returncode == 0 and "passed" not in done.stdout
            and "skipped" in done.stdout), done.stdout
    fails("benchmarks.gpu", "--limit", 5, code=2, says="--limit")
