"""Every script through its command line on digits, by hand and as a pipeline,
and what happens to bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageOps

import models
from datagen import write_imagefolder
from doors import ROOT, fails, script, works
from kesi import checkpoints
from kesi.checkpoints.records import Reference
from kesi.cli import entry
from kesi.data import load
from kesi.method.pruning import prune_filters
from kesi.runs.lineage import check_images
from kesi.system.errors import UsageError
from saving import keep

SHORT = ("--epochs-scale", "0.02")  # two epochs for the baseline, one for everything else
TINY = ("--arch", "resnet20", "--dataset", "digits", *SHORT)


def same_weights(one, other):
    a, b = (checkpoints.load(path).network.state_dict() for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both methods' pipelines with two rounds, made once."""
    folder = tmp_path_factory.mktemp("runs")
    out = {}
    for method in ("filter", "weight"):
        out[method] = works("cifar/pipeline.py", *TINY, "--method", method, "--rounds", 2,
                            "--compare", "--seeds", 3, "--save", folder / method)
    return folder, out


STAGES = ("baseline", "onecycle-1", "onecycle-2", "usual-1", "usual-2", "kesi")


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_pipeline_leaves_every_stage_and_the_papers_table(runs, method):
    folder, out = runs[0] / method, runs[1][method]
    for stage in STAGES:
        result = json.loads((folder / "seed3" / stage / "result.json").read_text())
        assert (result["stage"] == stage and result["seed"] == 3
                and 0 <= result["test_accuracy"] <= 100)
        lines = (folder / "seed3" / stage / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == result["epochs"]
        assert not (folder / "seed3" / stage / "state.pth.tar").exists()
    name, short = f"{method} pruning", {"filter": "PFEC", "weight": "MWP"}[method]
    for row in ("baseline", f"{name} ({short}), usual retraining", f"{name} + one-cycle",
                f"{name} + KESI"):
        assert row in out
    assert "ensemble" in out and str(folder / "report") in out
    assert ({"table.md", "table.csv", "accuracy.png", "rounds.png", "disagreement.png", "lr.png"}
            <= set(os.listdir(folder / "report")))
    ensemble = json.loads((folder / "seed3" / "ensemble" / "result.json").read_text())
    assert ensemble["members"] == ["baseline", "onecycle-1", "onecycle-2"]
    usual = json.loads((folder / "seed3" / "ensemble-usual" / "result.json").read_text())
    assert usual["members"] == ["baseline", "usual-1", "usual-2"]


def test_masks_survive_the_whole_pipeline(runs):
    folder = runs[0] / "weight" / "seed3"
    for stage, share in (("onecycle-1", 0.22), ("onecycle-2", 0.39), ("usual-2", 0.39),
                         ("kesi", 0.39)):
        loaded = checkpoints.load(folder / stage / "checkpoint.pth.tar")
        assert loaded.masks.sparsity() == pytest.approx(share, abs=1e-4)
        for name, mask in loaded.masks.state_dict().items():
            weight = loaded.network.get_parameter(name)
            assert (not bool(weight[~mask].any())
                    and float((weight[mask] != 0).float().mean()) > 0.999)


def test_a_finished_pipeline_is_not_run_again_and_says_so(runs):
    folder = runs[0] / "filter"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}
    out = works("cifar/pipeline.py", *TINY, "--rounds", 2, "--seeds", 3, "--save", folder,
                "--no-report")
    assert out.count("is finished already") == 4
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}
    fails("cifar/train.py", *TINY[2:], "--arch", "resnet32", "--seed", 3, "--save",
          folder / "seed3" / "baseline", code=2, says="is a resnet20, not a resnet32")


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_scripts_by_hand_give_the_pipelines_networks_bit_for_bit(runs, method, tmp_path):
    pipeline, scripts = runs[0] / method / "seed3", f"cifar/{method}_pruning"
    works("cifar/train.py", *TINY, "--seed", 3, "--save", tmp_path / "baseline")
    for number in (1, 2):
        parent = tmp_path / ("baseline" if number == 1 else "onecycle-1")
        out = works(f"{scripts}/prune.py", "--model", parent)
        assert f"round {number}: 269,722 parameters" in out or number == 2
        works(f"{scripts}/finetune.py", "--refine", tmp_path / f"onecycle-{number}", *SHORT)
    out = works(f"{scripts}/ensemble_finetune.py", "--refine", tmp_path / "onecycle-2", *SHORT)
    assert "3 teachers, found beside" in out
    for stage in ("baseline", "onecycle-1", "onecycle-2", "kesi"):
        assert same_weights(pipeline / stage, tmp_path / stage), stage


def test_scripts_by_hand_see_the_images_as_the_baseline_did(tmp_path):
    """Their size, mirroring and held-out share, which the filters' scores depend on, too."""
    images = write_imagefolder(tmp_path / "images")
    data = ("--data", images, "--batch-size", 8)
    how = ("--arch", "resnet20", "--dataset", "imagefolder", "--image-size", 16, "--no-flip",
           "--val-fraction", 0.3)
    out = works("cifar/pipeline.py", *how, *data, "--epochs", 1, 1, 1, "--rounds", 1, "--recipe",
                "paper", "--criterion", "taylor", "--save", tmp_path / "run", "--no-report")
    works("cifar/train.py", *how, *data, "--epochs", 1, "--save", tmp_path / "baseline")
    works(PRUNE, "--model", tmp_path / "baseline", "--criterion", "taylor", "--data", images)
    works(FINETUNE, "--refine", tmp_path / "onecycle-1", *data, "--epochs", 1)
    works("cifar/filter_pruning/ensemble_finetune.py", "--refine", tmp_path / "onecycle-1", *data,
          "--epochs", 1)
    for stage in ("baseline", "onecycle-1", "kesi"):
        assert same_weights(tmp_path / "run" / "seed0" / stage, tmp_path / stage), stage
        assert not checkpoints.load(tmp_path / stage).info.data["augmentation"]["flip"]
    said = works("cifar/train.py", "--evaluate", tmp_path / "kesi", "--dataset", "imagefolder",
                 "--data", images)
    accuracy = re.search(r"kesi.*test accuracy ([\d.]+) %", out).group(1)
    assert f"test accuracy {accuracy} %" in said


def test_pruning_again_leaves_the_file_of_which_the_snapshot_knows(runs, tmp_path):
    parent, words = runs[0] / "filter" / "seed3" / "baseline", ("--save", tmp_path / "onecycle-1")
    works("cifar/filter_pruning/prune.py", "--model", parent, *words)
    file = tmp_path / "onecycle-1" / "pruned.pth.tar"
    before = file.read_bytes()
    out = works("cifar/filter_pruning/prune.py", "--model", parent / "checkpoint.pth.tar", *words)
    assert "there already" in out and file.read_bytes() == before
    fails("cifar/filter_pruning/prune.py", "--model", parent, *words, "--percent", 0.5, code=2,
          says="was pruned with another amount (")
    fails("cifar/weight_pruning/prune.py", "--model", parent, *words, code=2,
          says="was pruned with another method")
    fails("cifar/filter_pruning/prune.py", "--model", runs[0] / "filter" / "seed3" / "onecycle-1",
          *words, code=2, says="was pruned with another network (")
    assert file.read_bytes() == before
    taylor = ("cifar/filter_pruning/prune.py", "--model", parent, "--criterion", "taylor",
              "--dataset", "digits", "--save", tmp_path / "by")  # which looks at images
    works(*taylor)
    assert "there already" in works(*taylor)
    fails(*taylor, "--image-size", 20, code=2, says="was pruned with another set of images (")


def test_other_classes_of_the_same_number_are_noticed(tmp_path):
    one, other = (write_imagefolder(tmp_path / name, classes, 3, 2)
                  for name, classes in (("one", ("ant", "bee")), ("other", ("ant", "fly"))))
    for notes in tmp_path.rglob("notes.txt"):  # which would be a line of its own
        notes.unlink()
    words = ("--arch", "resnet20", "--dataset", "imagefolder", "--epochs", 1, "--save",
             tmp_path / "run")
    works("cifar/train.py", *words, "--data", one)
    fails("cifar/train.py", *words, "--data", other, code=2,
          says="holds a run with other data classes (['ant', 'bee'], now ['ant', 'fly'])")
    fails("cifar/train.py", "--evaluate", tmp_path / "run", "--dataset", "imagefolder", "--data",
          other, code=2, says="knows other classes than imagefolder: 'bee' where 'fly' is")


def test_other_images_and_labels_of_the_same_number_are_noticed(tmp_path):
    """Classes that changed places, a test image that is inverted, a training image mirrored."""
    folder = write_imagefolder(tmp_path / "images", ("ant", "bee"), 3, 2)
    for notes in tmp_path.rglob("notes.txt"):
        notes.unlink()
    words = ("cifar/train.py", "--arch", "resnet20", "--dataset", "imagefolder", "--epochs", 1,
             "--save", tmp_path / "run", "--data")
    works(*words, folder)
    train, test = folder / "train", folder / "test"
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    for one, other in (("ant", "cat"), ("bee", "ant"), ("cat", "bee")):
        (swapped / "train" / one).rename(swapped / "train" / other)
    fails(*words, swapped, code=2, says="holds a run with other train images (")
    # (what is mirrored is cropped to another middle)
    for split, change, says in ((test, ImageOps.invert, "other test images"),
                                (train, ImageOps.mirror, "another data mean")):
        other = shutil.copytree(folder, tmp_path / says)
        path = next((other / split.name / "ant").glob("0*.png"), None) or next(
            (other / split.name / "ant").glob("0*"))
        with Image.open(path) as image:
            change(image.convert("RGB")).save(path.with_suffix(".png"))
        if path.suffix != ".png":
            path.unlink()
        fails(*words, other, code=2, says=f"holds a run with {says} (")
    assert "is finished already" in works(*words, folder)


def test_changed_settings_are_named_down_to_the_number(runs):
    words = ("--arch", "resnet20", "--dataset", "digits", "--seeds", 3, "--save",
             runs[0] / "filter", "--no-report")
    fails("cifar/pipeline.py", *words, *SHORT, "--rounds", 3, code=2,
          says="another number of rounds (2, now 3)")
    fails("cifar/pipeline.py", *words, "--rounds", 2, "--epochs", 5, 1, 1, code=2,
          says="other baseline epochs (2, now 5)")


@pytest.mark.parametrize("words, says", [
    (("--image-size", 8), "another image_size (16, now 8)"),
    (("--val-fraction", 0.1), "other images"),
    (("--seeds", 1, "--image-size", 8), "another image_size (16, now 8)"),
    (("--model", "typo"), "no such checkpoint: typo"),
    (("--fresh", "--model", "typo"), "no such checkpoint: typo"),
    (("--seeds", -1), "a seed is a whole number from 0"),
    (("--temperature", "inf"), "--temperature must be above 0")])
def test_a_refused_command_leaves_the_run_as_it_was(runs, words, says):
    folder = runs[0] / "filter"
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    fails("cifar/pipeline.py",
          *TINY, "--rounds", 2, *(() if "--seeds" in words else ("--seeds", 3)), "--save", folder,
          "--no-report", *words, code=2, says=says)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.json")}


def test_the_usual_retraining_by_hand(runs, tmp_path):
    pipeline = runs[0] / "filter" / "seed3"
    works("cifar/filter_pruning/prune.py", "--model", pipeline / "baseline", "--save",
          tmp_path / "usual-1")
    works("cifar/filter_pruning/finetune.py", "--refine", tmp_path / "usual-1", "--seed", 3,
          "--no-onecycle", *SHORT)
    assert same_weights(pipeline / "usual-1", tmp_path / "usual-1")


def test_teachers_can_be_named_and_are_all_checked_first(runs, tmp_path):
    pipeline = runs[0] / "filter" / "seed3"
    out = works("cifar/filter_pruning/ensemble_finetune.py", "--refine", pipeline / "onecycle-2",
                "--seed", 3, *SHORT,
                "--teachers", pipeline / "baseline", pipeline / "onecycle-1" / "checkpoint.pth.tar",
                "--temperature", 1, "--save", tmp_path / "kesi")
    assert "2 teachers, given" in out
    result = json.loads((tmp_path / "kesi" / "result.json").read_text())
    assert result["settings"]["objective"]["loss"]["temperature"] == 1
    assert [teacher["stage"] for teacher in result["teachers"]] == ["baseline", "onecycle-1"]
    assert not same_weights(pipeline / "kesi", tmp_path / "kesi")
    other = models.create("resnet20", 7)
    keep(tmp_path / "seven.pth.tar", other)
    fails("cifar/filter_pruning/ensemble_finetune.py", "--refine", pipeline / "onecycle-2", *SHORT,
          "--teachers", pipeline / "baseline", tmp_path / "seven.pth.tar", "--save",
          tmp_path / "k2", code=2, says="seven.pth.tar knows 7 classes, but digits has 10")
    assert not (tmp_path / "k2").exists()


def test_the_list_at_the_head_of_the_script_is_used(runs, tmp_path):
    pipeline = runs[0] / "filter" / "seed3"
    text = (ROOT / "cifar/filter_pruning/ensemble_finetune.py").read_text()
    line = "checkpoint_paths: list[str] = []"
    assert line in text
    edited = tmp_path / "edited.py"
    edited.write_text(text.replace(line, f"checkpoint_paths = [{str(pipeline / 'baseline')!r}]"))
    out = (works(edited, "--refine", pipeline / "onecycle-2", *SHORT, "--save", tmp_path / "kesi")
           if isinstance(edited, str) else works(str(edited), "--refine", pipeline / "onecycle-2",
                                                 *SHORT, "--save", tmp_path / "kesi"))
    assert "1 teachers, given" in out


def test_a_moved_run_still_finds_its_snapshots_and_a_missing_one_is_named(runs, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs[0] / "filter" / "seed3", moved)
    (moved / "onecycle-1").rename(moved / "renamed")
    out = works("cifar/filter_pruning/ensemble_finetune.py", "--refine", moved / "onecycle-2",
                "--evaluate")
    assert "3 teachers" in out and str(moved / "renamed") in out
    shutil.rmtree(moved / "kesi")
    (moved / "renamed").rename(moved / "onecycle-1")  # whose images are others now
    last = ("cifar/filter_pruning/ensemble_finetune.py", "--refine", moved / "onecycle-2", *SHORT)
    before = json.loads((moved / "ensemble" / "result.json").read_text())
    outcome = script(*last, "--image-size", 20)
    assert outcome.code == 0 and "was trained on other images" in outcome.err
    after = json.loads((moved / "ensemble" / "result.json").read_text())
    assert after["members"] == before["members"] and after["test_loss"] != before["test_loss"]
    one = checkpoints.load(moved / "onecycle-2")
    named = Reference("checkpoint.pth.tar", one.name, one.digest)
    checkpoints.save(one.path, one, replace(one.info, parent=named))
    fails(*last, code=2, says="checkpoint.pth.tar descends from itself")
    shutil.copytree(runs[0] / "filter" / "seed3" / "onecycle-2", one.path.parent,
                    dirs_exist_ok=True)
    shutil.rmtree(moved / "onecycle-1")
    fails("cifar/filter_pruning/ensemble_finetune.py", "--refine", moved / "onecycle-2",
          "--evaluate", code=2, says="name the teachers with --teachers")


def test_evaluate_tells_accuracies_and_writes_nothing(runs, tmp_path):
    pipeline = runs[0] / "filter" / "seed3"
    accuracy = json.loads((pipeline / "baseline" / "result.json").read_text())["test_accuracy"]
    out = works("cifar/filter_pruning/prune.py", "--model", pipeline / "baseline", "--evaluate",
                "--save", tmp_path / "x")
    before_retraining = json.loads(
        (pipeline / "onecycle-1" / "result.json").read_text())["pruned_accuracy"]
    assert f"test accuracy {accuracy:.2f} % before, {before_retraining:.2f} % after pruning" in out
    out = works("cifar/train.py", "--dataset", "digits", "--evaluate", pipeline / "baseline")
    assert f"test accuracy {accuracy:.2f} %" in out
    fails("cifar/train.py", "--arch", "vgg16", "--dataset", "digits", "--evaluate",
          pipeline / "baseline", code=2, says="is a resnet20, not a vgg16")


def test_a_trained_baseline_can_be_given(runs, tmp_path):
    command = ("cifar/pipeline.py", *TINY, "--method", "weight", "--rounds", 1, "--seeds", 3,
               "--no-report", "--model", str(runs[0] / "filter" / "seed{seed}" / "baseline"))
    for where, more in (("w", ()), ("other", ("--val-fraction", 0.2, "--image-size", 20))):
        outcome = script(*command, "--save", tmp_path / where, *more)
        assert outcome.code == 0, outcome.err
        # what is held out now was trained on before
        assert ("was trained on other images" in outcome.err) == bool(more)
        adopted = checkpoints.load(tmp_path / where / "seed3" / "baseline")  # as it does here
        said = json.loads((adopted.path.parent / "result.json").read_text())["test_accuracy"]
        assert adopted.info.metrics["test_accuracy"] == said
    assert same_weights(tmp_path / "w" / "seed3" / "baseline",
                        runs[0] / "filter" / "seed3" / "baseline")
    fails("cifar/pipeline.py",
          *TINY, "--rounds", 1, "--model", runs[0] / "filter" / "seed3" / "onecycle-1", "--save",
          tmp_path / "p", code=2, says="is a pruned network, not a baseline")
    assert not (tmp_path / "p").exists()
    fails(*command, "--fresh", "--save", runs[0] / "filter", code=2,
          says="lies in the run that --fresh moves aside")
    # one network for all seeds is known by itself, wherever it lies, and however much is lost
    one, other = tmp_path / "one", tmp_path / "two"
    shutil.copytree(runs[0] / "filter" / "seed3" / "baseline", one)
    works("cifar/train.py", *TINY, "--save", other)
    single = ("cifar/pipeline.py", *TINY, "--rounds", 1, "--no-report", "--save", tmp_path / "s")
    works(*single, "--model", one)
    pruned = tmp_path / "s" / "seed0" / "onecycle-1" / "pruned.pth.tar"
    before = pruned.read_bytes()
    one.rename(tmp_path / "elsewhere")
    assert "epoch" not in works(*single, "--model", tmp_path / "elsewhere")
    (tmp_path / "s" / "seed0" / "baseline" / "checkpoint.pth.tar").unlink()
    for more in ((), ("--seeds", 1)):
        fails(*single, *more, "--model", other, code=2, says="holds another baseline than")
    assert pruned.read_bytes() == before
    works("cifar/train.py", *TINY, "--fresh", "--save", tmp_path / "w" / "seed3" / "baseline")
    assert (tmp_path / "w" / "seed3" / "baseline.old-1" / "checkpoint.pth.tar").is_file()


def test_released_checkpoint_continues_here(tmp_path):
    torch.manual_seed(0)
    network = prune_filters(models.create("resnet20", 10), 0.25)
    torch.save({"cfg": network.cfg, "state_dict": network.state_dict()},
               tmp_path / "theirs.pth.tar")
    works("cifar/filter_pruning/finetune.py", "--refine", tmp_path / "theirs.pth.tar", "--dataset",
          "digits", *SHORT, "--save", tmp_path / "onecycle")
    assert checkpoints.load(tmp_path / "onecycle").network.cfg == network.cfg
    fails("cifar/filter_pruning/ensemble_finetune.py", "--refine", tmp_path / "theirs.pth.tar",
          "--dataset", "digits",
          code=2, says="does not say what it was made from: name the teachers")
    fails("cifar/filter_pruning/finetune.py", "--refine", tmp_path / "theirs.pth.tar", code=2,
          says="give --dataset")


def interrupted():
    raise KeyboardInterrupt


def large():
    torch.empty(2 ** 60, dtype=torch.uint8)  # more than a processor can address


@pytest.mark.parametrize(("main", "resumes", "code", "says"), [
    (interrupted, False, 130, "interrupted"),
    (interrupted, True, 130,
     "interrupted; the same command continues from the last saved epoch"),
    (large, True, 1, "error: out of memory: use smaller batches or images")])
def test_how_a_script_ends_is_said_in_one_line(main, resumes, code, says, capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            entry.run(main, resumes)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (end.value.code, capsys.readouterr().err.strip()) == (code, says)


def test_an_interrupted_stage_continues_and_equals_a_whole_one(runs, tmp_path):
    arguments = ("--arch", "resnet20", "--dataset", "digits", "--epochs", 3, "--lr", 0.05, "--save",
                 tmp_path / "b")
    command = [sys.executable, str(ROOT / "cifar/train.py"), *map(str, arguments), "--epochs", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "b" / "state.pth.tar").exists() and killed.poll() is None:
        pass
    killed.terminate()
    assert killed.wait(60) == 130 and "the same command continues" in killed.stderr.read()
    out = works("cifar/train.py", *arguments, "--epochs", 20, "--eval-every", 0)
    assert "baseline continues after epoch" in out
    epochs = [json.loads(line)
              for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    seconds = json.loads((tmp_path / "b" / "result.json").read_text())["seconds"]
    # before and after
    assert seconds == pytest.approx(sum(epoch["seconds"] for epoch in epochs), abs=0.01)
    works("cifar/train.py", *arguments, "--epochs", 20, "--eval-every", 0, "--save",
          tmp_path / "whole")
    assert same_weights(tmp_path / "b", tmp_path / "whole")
    # and from a state that was copied elsewhere
    assert "is not the state of an unfinished stage" in fails(
        "cifar/train.py", *arguments, "--resume", tmp_path / "b" / "checkpoint.pth.tar", "--save",
        tmp_path / "c", code=2, says="checkpoint.pth.tar")


def test_other_settings_are_refused_and_fresh_moves_the_old_run_aside(runs, tmp_path):
    arguments = (*TINY, "--save", tmp_path / "b")
    works("cifar/train.py", *arguments)
    before = (tmp_path / "b" / "checkpoint.pth.tar").read_bytes()
    fails("cifar/train.py", *arguments, "--seed", 1, code=2,
          says="holds a run with another seed (0, now 1)")
    fails("cifar/train.py", *arguments, "--lr", 0.5, code=2,
          says="holds a run with another lr (0.1, now 0.5)")
    assert (tmp_path / "b" / "checkpoint.pth.tar").read_bytes() == before
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    (tmp_path / "c" / "checkpoint.pth.tar").unlink()
    fails("cifar/train.py", *TINY, "--save", tmp_path / "c", "--lr", 0.5, code=2,
          says="holds a run with another lr (0.1, now 0.5)")
    out = works("cifar/train.py", *arguments, "--seed", 1, "--fresh")
    assert "b.old-1" in out and (tmp_path / "b.old-1" / "checkpoint.pth.tar").read_bytes() == before
    fails("cifar/pipeline.py", *TINY, "--rounds", 2, "--seeds", 3, "--save", runs[0] / "filter",
          "--temperature", 2, code=2,
          says="holds a run with another loss temperature (5.0, now 2.0)")


def test_dry_run_touches_nothing_and_asks_nothing_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = works("cifar/pipeline.py", "--arch", "resnet56", "--dataset", "cifar10", "--compare",
                "--seeds", 0, 1, 2, "--dry-run")
    assert "283,816" in out and "51,094,144" in out and "59.28 %" in out
    assert "111,000,000 images to process" in out  # 3 seeds x (300 + 10 x 40 + 40) epochs x 50,000
    assert os.listdir(tmp_path) == []
    assert ("?" in works("cifar/pipeline.py", "--dataset", "imagefolder", "--num-classes", 3,
                         "--dry-run"))


def test_both_methods_have_one_report_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ("--dataset", "digits", "--method", "both", "--rounds", 1, "--epochs", 1, 1, 1)
    out = works("kesi", "run", "--arch", "resnet20", *tiny)
    assert "report: runs/digits-resnet20-both/report/table.md\n" in out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"digits-resnet20-{name}" for name in ("both", "filter", "weight")]
    works("kesi", "run", "--arch", "resnet20", *tiny, "--save", "both")
    (tmp_path / "both").rename(tmp_path / "moved")
    said = works("kesi", "run", "--arch", "resnet20", *tiny, "--save", tmp_path / "moved")
    assert said.count("is finished already") == 5


def test_plan_as_csv():
    lines = works("kesi", "plan", "--arch", "vgg16", "--dataset", "cifar10", "--method", "filter",
                  "--csv").splitlines()
    assert lines[0] == "round,params,nonzero_params,macs,macs_saved" and len(lines) == 7
    assert lines[-1].startswith("5,2714") or lines[-1].startswith("5,2715")
    weight = works("kesi", "plan", "--arch", "resnet20", "--method", "weight", "--percent", 0.5,
                   0.9, "--csv")
    assert len(weight.splitlines()) == 4


@pytest.mark.parametrize("path", [
    "cifar/train.py", "cifar/pipeline.py", "kesi plan", "kesi report", "kesi run",
    *(f"cifar/{method}_pruning/{name}.py" for method in ("filter", "weight")
      for name in ("prune", "finetune", "ensemble_finetune"))])
def test_help_begins_with_what_it_is_for_and_an_example(path):
    out = works(*path.split(), "--help")
    head = out.split("options:")[0]
    assert (path if path.startswith("kesi") else f"python {path}") in head.split("\n", 2)[2]


def test_the_flags_of_a_run_are_listed_in_groups():
    out = works("kesi", "run", "--help")
    heads = re.findall(r"^(\w+):$", out, re.MULTILINE)
    assert heads == ["options", "data", "method", "training", "machine", "output"]
    parts = dict(zip(heads, re.split(r"^\w+:$", out, flags=re.MULTILINE)[1:], strict=True))
    for head, flag in (("data", "--val-fraction"), ("method", "--macs"), ("training", "--seeds"),
                       ("machine", "--threads"), ("output", "--save")):
        assert [one for one in parts if f"  {flag} " in parts[one]] == [head]


PIPELINE, TRAIN = "cifar/pipeline.py", "cifar/train.py"
PRUNE, FINETUNE = "cifar/filter_pruning/prune.py", "cifar/filter_pruning/finetune.py"


@pytest.mark.parametrize(("command", "says"), [
    ((TRAIN, "--arch", "resnet57"), "invalid choice: 'resnet57' (choose from"),
    ((TRAIN, "--dataset", "mnist"), "invalid choice: 'mnist' (choose from"),
    ((TRAIN, "--nonsense"), "unrecognized arguments: --nonsense (see"),
    ((TRAIN, "--epoch", "3"), "unrecognized arguments: --epoch 3; did you mean --epochs? (see"),
    ((PIPELINE, "--dataset", "digits", "--batch-size", "0"),
     "batch size must be at least 1, not 0"),
    ((PIPELINE, "--dataset", "digits", "--lr", "0"), "learning rate must be above 0, not 0.0"),
    ((TRAIN, *TINY, "--lr", "-1"), "learning rate must be above 0"),
    ((TRAIN, *TINY, "--gamma", "-0.1"), "gamma, by which the learning rate falls, must be above"),
    ((TRAIN, *TINY, "--batch-size", "0"), "batch size must be at least 1"),
    ((TRAIN, *TINY, "--epochs", "2"), "give epochs, or what they are multiplied by"),
    ((TRAIN, *TINY, "--device", "cuda:77"), "--device cuda:77"),
    ((TRAIN, "--arch", "vgg16", "--dataset", "digits", "--image-size", "8"),
     "needs images of 16 px or more"), ((TRAIN, *TINY, "--val-fraction", "1.5"), "1.5"),
    ((PIPELINE, "--arch", "vgg16", "--dataset", "digits", "--image-size", "8"),
     "needs images of 16 px or more"),
    ((PIPELINE, *TINY, "--rounds", "0"), "--rounds must be at least 1"),
    ((PIPELINE, *TINY, "--percent", "1.0"), "at least 0 and below 1, not 1.0"),
    ((PIPELINE, *TINY, "--method", "weight", "--percent", "0.5", "0.4"), "never fall"),
    ((PIPELINE, *TINY, "--method", "weight", "--rounds", "9"), "there are 5 sparsities, not 9"),
    ((PIPELINE, "--dataset", "digits", "--epochs-scale", "0"), "--epochs-scale must be above 0"),
    ((PIPELINE, *TINY, "--temperature", "0"), "--temperature must be above 0"),
    ((PIPELINE, *TINY, "--model", "nowhere.pth.tar"), "no such checkpoint: nowhere.pth.tar"),
    ((PRUNE,), "required: --model"),
    ((PRUNE, "--model", "nowhere.pth.tar"), "no such checkpoint: nowhere.pth.tar"),
    ((FINETUNE, "--refine", "nowhere.pth.tar"), "no such checkpoint: nowhere.pth.tar"),
])
def test_wrong_usage_is_one_line_and_exit_code_2(command, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(*command, code=2, says=says)
    assert not list(tmp_path.rglob("*.*"))


def test_processes_without_an_image_to_test_are_refused(monkeypatch):
    digits = load("digits")
    check_images(models.create("resnet20", 10), digits)
    monkeypatch.setattr("kesi.system.distributed.world", lambda: len(digits.test) + 1)
    with pytest.raises(UsageError, match="there are fewer test images .* than processes"):
        check_images(models.create("resnet20", 10), digits)


def test_what_does_not_fit_is_said_in_one_line(runs, tmp_path):
    pipeline = runs[0] / "filter" / "seed3"
    weight = runs[0] / "weight" / "seed3"
    fails(FINETUNE, "--refine", pipeline / "baseline", code=2,
          says="was never pruned: run prune.py on it first")
    fails(FINETUNE, "--refine", pipeline / "onecycle-1" / "checkpoint.pth.tar", code=2,
          says="is retrained already")
    fails(FINETUNE, "--refine", pipeline / "onecycle-1", "--gamma", 0.5, code=2,
          says="--gamma would do nothing")
    fails(PRUNE, "--model", pipeline / "baseline", "--percent", 1.5, "--save", tmp_path, code=2,
          says="not 1.5")
    for words, says in ((("--device", "nosuch"), "--device nosuch"), (("--threads", -5), "-5"),
                        (("--save-every", 2), "unrecognized arguments: --save-every"),
                        (("--compile", "on"), "unrecognized arguments: --compile")):
        fails(PRUNE, "--model", pipeline / "baseline", "--save", tmp_path, *words, code=2,
              says=says)
    fails(PRUNE, "--model", pipeline / "baseline", "--percent", 0.1, 0.2, "--save", tmp_path,
          code=2, says="9 widths to prune, but 2 rates")
    fails(PRUNE, "--model", weight / "onecycle-1", "--save", tmp_path, code=2,
          says="its weights were pruned")
    fails("cifar/weight_pruning/prune.py", "--model", weight / "onecycle-2", "--percent", 0.1,
          "--save", tmp_path, code=2, says="lower than what is already pruned (0.3900)")
    fails("cifar/filter_pruning/ensemble_finetune.py", "--refine", pipeline / "baseline", code=2,
          says="was never pruned")
    fails(TRAIN, "--evaluate", pipeline / "baseline", "--dataset", "imagefolder", "--data",
          tmp_path / "none", code=1, says=str(tmp_path / "none"))
    assert not list(tmp_path.rglob("*.pth.tar"))
    outcome = script(PRUNE, "--model", pipeline / "baseline", "--percent", 0.99, "--save",
                     tmp_path / "one")
    assert outcome.code == 0 and "kept one" in outcome.err


def test_an_output_folder_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for command in ((TRAIN, *TINY), (PIPELINE, *TINY),
                    (PRUNE, "--model", runs[0] / "filter/seed3/baseline")):
        fails(*command, "--save", tmp_path / "file" / "x", code=1,
              says=f"cannot write {tmp_path / 'file' / 'x'}")
    assert (tmp_path / "file").read_text() == "in the way"


def test_no_network_for_a_download_is_one_line(tmp_path):
    fails(TRAIN, "--dataset", "cifar10", "--data", tmp_path / "d", "--no-download", "--save",
          tmp_path / "s", code=1, says="cifar10")


def test_a_script_as_its_own_process_tells_of_every_epoch_when_not_on_a_terminal(tmp_path):
    found = subprocess.run([sys.executable, str(ROOT / TRAIN), *TINY, "--save",
                            str(tmp_path / "b")], text=True, capture_output=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert found.returncode == 0
    # standard output stays one line a stage
    assert found.stdout.count("\n") == 1 and "baseline: test accuracy" in found.stdout
    first, last = found.stderr.splitlines()
    assert re.fullmatch(r"baseline, epoch 1/2: loss \d\.\d{4}, training accuracy [\d.]+ %, "
                        r"[\d.]+ s(; about \d+ s left)?", first)
    assert re.fullmatch(r"baseline, epoch 2/2: loss \d\.\d{4}, training accuracy [\d.]+ %, "
                        r"test accuracy [\d.]+ %, [\d.]+ s", last)
