"""The 224-px scripts through their command lines, on a small data set in Tiny-ImageNet's layout
and on photographs."""

import json
import shutil

import pytest
import torch
import torchvision

import models
from datagen import write_imagefolder, write_tiny_imagenet
from doors import fails, works
from kesi import checkpoints
from kesi.checkpoints.pretrained import load_pretrained
from kesi.method.recipes import recipe

# 64 px is the data set's native size; ResNet-18 at 224 px would only be slower
QUICK = ("--arch", "resnet18", "--image-size", 64, "--epochs-scale", "0.01", "--eval-every", 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_imagenet(folder, classes=3, per_class=8, val_per_class=4)
    # its real name says 200 classes to the planner, its files say 3 to everything else
    return folder


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_pipeline_on_the_layout_as_it_is_distributed(tiny, tmp_path, method):
    out = works("tinyimagenet/pipeline.py", *QUICK, "--data", tiny, "--method", method, "--rounds",
                2, "--save", tmp_path / "run", "--no-report")
    assert "kesi: test accuracy" in out
    last = json.loads((tmp_path / "run" / "seed0" / "kesi" / "result.json").read_text())
    assert (last["num_classes"], last["image_size"], last["dataset"]) == (3, 64, "tinyimagenet")
    loaded = checkpoints.load(tmp_path / "run" / "seed0" / "kesi")
    if method == "filter":  # stages 1 and 2 lose 0.1, stage 3 0.2, stage 4 0.3, twice
        assert loaded.network.cfg == [51, 51, 103, 103, 163, 163, 250, 250]
    else:
        share = recipe("resnet18", "tinyimagenet", "weight").rounds[1]
        assert loaded.masks.sparsity() == pytest.approx(share, abs=1e-4)
    shutil.rmtree(tmp_path / "run")  # ResNet-18 is 45 MB a checkpoint


def test_stages_by_hand_on_photographs_of_all_modes(tmp_path):
    data = write_imagefolder(tmp_path / "photos", classes=("cat", "dog", "owl"))
    common = ("--data", data, "--image-size", 64, "--epochs", 1)
    works("tinyimagenet/train.py", "--arch", "resnet18", "--dataset", "imagefolder", *common,
          "--save", tmp_path / "baseline")
    out = works("tinyimagenet/filter_pruning/prune.py", "--model", tmp_path / "baseline")
    assert "round 1: 11,178,051 parameters" in out
    works("tinyimagenet/filter_pruning/finetune.py", "--refine", tmp_path / "onecycle-1", *common)
    out = works("tinyimagenet/filter_pruning/ensemble_finetune.py", "--refine",
                tmp_path / "onecycle-1", *common)
    assert "2 teachers, found beside" in out
    info = checkpoints.load(tmp_path / "kesi").info.data
    assert (info["classes"] == ["cat", "dog", "owl"]
            and info["augmentation"]["name"] == "RandomResizedCrop")


def test_224_px_is_the_default_and_one_step_of_it_works(tmp_path):
    data = write_imagefolder(tmp_path / "photos", classes=("cat", "dog"))
    works("tinyimagenet/train.py", "--arch", "resnet18", "--dataset", "imagefolder", "--data", data,
          "--epochs", 1, "--save", tmp_path / "baseline")
    assert json.loads((tmp_path / "baseline" / "result.json").read_text())["image_size"] == 224


def test_recipes_are_the_papers_and_the_baseline_is_ours():
    found = recipe("resnet34", "tinyimagenet", "filter", "tinyimagenet")
    assert [stage.epochs for stage in (
        *found.retrainings.values(), found.distillation)] == [25, 25, 25]
    assert ((found.baseline.epochs, found.baseline.batch_size, found.baseline.milestones)
            == (90, 256, (30, 60)))
    assert found.rounds[0] == (0.1,) * 7 + (0.2,) * 6 + (0.3,) * 3


def test_plan_knows_its_sizes():
    lines = works("kesi", "plan", "--dataset", "tinyimagenet", "--arch", "resnet34", "--method",
                  "filter", "--csv")
    rounds = [line.split(",") for line in lines.splitlines()[1:]]
    assert round(int(rounds[0][1]) / 1e6, 2) == 21.39 and round(int(rounds[5][1]) / 1e6, 2) == 5.40
    assert round(int(rounds[5][3]) / 1e9, 4) == 1.5586


def test_a_missing_data_set_is_one_line(tmp_path):
    fails("tinyimagenet/train.py", "--data", tmp_path, "--save", tmp_path / "b", code=1,
          says="or add --download")


def test_pretrained_weights_start_the_baseline_and_the_last_layer_is_refitted(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = load_pretrained(models.create("resnet18", 7), str(tmp_path / "resnet18.pth"))
    images = torch.randn(2, 3, 64, 64)
    theirs.fc = ours.fc
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)
    # through the script: after one epoch at a learning rate of nothing the weights are still those
    data = write_imagefolder(tmp_path / "photos", classes=("cat", "dog"))
    works("tinyimagenet/train.py", "--arch", "resnet18", "--dataset", "imagefolder", "--data", data,
          "--image-size", 64, "--epochs", 1, "--lr", 1e-12, "--pretrained",
          tmp_path / "resnet18.pth", "--save", tmp_path / "b")
    trained = checkpoints.load(tmp_path / "b").network
    assert torch.allclose(trained.layer3[0].conv1.weight, theirs.layer3[0].conv1.weight, atol=1e-6)


def test_pretrained_weights_that_do_not_fit_are_one_line(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    (tmp_path / "text.pth").write_text("hello")
    data = write_imagefolder(tmp_path / "photos", classes=("cat", "dog"))
    for notes in data.rglob("*.txt"):  # which would be a line of its own
        notes.unlink()
    common = ("--dataset", "imagefolder", "--data", data, "--image-size", 64, "--save",
              tmp_path / "b")
    for arch, path, code, says in (
            ("resnet18", "resnet34.pth", 1, "not the weights of torchvision's resnet18"),
            ("resnet18", "text.pth", 1, "damaged or not a weights file"),
            ("resnet18", "none.pth", 2, "no such file"),
            ("resnet56", "resnet34.pth", 2, "no ImageNet weights for resnet56")):
        fails("tinyimagenet/train.py", "--arch", arch, *common, "--pretrained", tmp_path / path,
              code=code, says=says)
        # nothing is written that would refuse the corrected command
        fails("tinyimagenet/pipeline.py", "--arch", arch, *common[:-1], tmp_path / "run",
              "--epochs", 1, 1, 1, "--pretrained", tmp_path / path, code=code, says=says)
    assert not (tmp_path / "run" / "run.json").exists()
