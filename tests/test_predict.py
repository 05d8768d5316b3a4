"""Predictions on image files are those that evaluation makes of the same images in a data set."""

import csv
import io

import pytest
import torch
from PIL import Image

import kesi
import models
from datagen import write_imagefolder
from doors import fails, script, works
from kesi import checkpoints
from kesi.cli import networks
from kesi.data import load
from kesi.method.training import predict as predict_split
from kesi.system.errors import KesiError, UsageError
from kesi.tools import predict
from saving import Grey, keep

pytest_plugins = ["tinyrun"]


def saved(path, arch, dataset):
    """An untrained network that says it was trained on a data set."""
    torch.manual_seed(3)
    model = models.create(arch, dataset.num_classes)
    keep(path, model, stage="baseline", data=dataset.describe())
    return checkpoints.load(path)


def test_digits_as_png_files(filter_run, tmp_path):
    digits, checkpoint = load("digits"), checkpoints.load(filter_run / "seed0/kesi")
    for number in range(12):
        Image.fromarray(digits.test.images[number].numpy()).save(tmp_path / f"{number:02d}.png")
    found = predict.predict_images(checkpoint, [tmp_path])
    expected = predict_split(checkpoint.network, digits, digits.test)[:12].double().softmax(1)
    assert [one.path.name for one in found] == [f"{number:02d}.png" for number in range(12)]
    for one, row in zip(found, expected, strict=True):
        assert sum(one.probabilities) == pytest.approx(1)
        assert one.classes == tuple(map(str, one.labels)) and sorted(one.labels) == list(range(10))
        assert torch.allclose(torch.tensor(one.probabilities).double(), row[list(one.labels)],
                              atol=1e-5)
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)


@pytest.mark.parametrize(("arch", "family", "size"),
                         [("resnet20", "cifar", 24), ("resnet18", "tinyimagenet", 40)])
def test_photographs_as_the_test_images_of_a_folder(tmp_path, arch, family, size):
    """Of any size, mode and orientation: what kesi.data makes of the same files."""
    root = write_imagefolder(tmp_path / "photos")
    dataset = load("imagefolder", root, image_size=size, family=family)
    checkpoint = saved(tmp_path / "c.pth.tar", arch, dataset)
    files = [path for name in dataset.classes
             for path in predict.image_files([root / "test" / name])]
    assert len(files) == len(dataset.test) > 6
    expected = predict_split(checkpoint.network, dataset, dataset.test).double().softmax(1)
    for one, row in zip(predict.predict_images(checkpoint, files), expected, strict=True):
        assert torch.allclose(torch.tensor(one.probabilities).double(), row[list(one.labels)],
                              atol=1e-5)
        assert one.classes == tuple(("ant", "bee", "cat")[label] for label in one.labels)


def test_command_prints_text_and_csv(filter_run, tmp_path, capsys, monkeypatch):
    digits = load("digits")
    path = tmp_path / "one, with a comma.png"
    Image.fromarray(digits.test.images[0].numpy()).save(path)
    networks.predict([str(filter_run / "seed0/kesi"), str(path), "--top", "2"])
    text = capsys.readouterr().out
    assert text.startswith(f"{path}: ") and text.count("%") == 2
    networks.predict([str(filter_run / "seed0/kesi"), str(path), "--top", "4", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"] and rows[0]["file"] == str(path)
    assert f"{rows[0]['class']} {float(rows[0]['probability']):.1%}" in text
    odd = tmp_path / "odd"
    odd.mkdir()
    path.rename(odd / "=1+\x1b[2J.png")
    (odd / "\n.png").write_bytes(b"nothing")
    monkeypatch.chdir(odd)
    said = script("kesi", "predict", filter_run / "seed0/kesi", ".", "--csv")
    assert said.out.splitlines()[1].startswith("'=1+?[2J.png,1,") and "\x1b" not in said.out
    assert said.code == 1 and said.err.count("\n") == 1


def test_linked_folders_are_looked_into_once(filter_run, tmp_path):
    for name in ("photos/own", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / name / "black.png")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/nothing.png").symlink_to(tmp_path / "gone.png")
    said = works("kesi", "predict", filter_run / "seed0/kesi", tmp_path / "photos")
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        str(tmp_path / "photos" / name) for name in ("linked/deep/black.png", "own/black.png")]


def test_released_code_needs_the_name_of_its_data(tmp_path):
    torch.manual_seed(0)
    model = models.create("resnet20", 10)
    torch.save({"state_dict": model.state_dict(), "best_prec1": 0.5}, tmp_path / "released.pth.tar")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    words = [str(tmp_path / "released.pth.tar"), str(tmp_path / "red.png")]
    with pytest.raises(UsageError, match="--dataset"):
        networks.predict(words)
    networks.predict([*words, "--dataset", "cifar10", "--data", str(tmp_path)])


def test_files_that_are_no_images(filter_run, tmp_path):
    checkpoint = checkpoints.load(filter_run / "seed0/kesi")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, or not")
    with pytest.raises(KesiError, match=r"broken\.png is not a readable image"):
        predict.predict_images(checkpoint, [tmp_path / "broken.png"])
    with pytest.raises(UsageError, match="nowhere.jpg"):
        predict.predict_images(checkpoint, [tmp_path / "nowhere.jpg"])
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    outcome = script("kesi", "predict", filter_run / "seed0/kesi", tmp_path)
    assert outcome.code == 1 and outcome.out.startswith(f"{tmp_path / 'good.png'}: ")
    assert (outcome.err.startswith("error: 1 of 2 images were left out; the first: ")
            and outcome.err.count("\n") == 1)
    fails("kesi", "predict", tmp_path / "net.onnx", tmp_path / "good.png", code=2,
          says="no such checkpoint")
    (tmp_path / "net.onnx").write_bytes(b"x")
    fails("kesi", "predict", tmp_path / "net.onnx", tmp_path / "good.png", code=2,
          says="net.onnx is an exported file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images in the folder"):
        predict.predict_images(checkpoint, [tmp_path / "empty"])


@pytest.mark.parametrize(("words", "message"), [
    (["--device", "abacus"], "--device abacus"), (["--threads", "0"], "--threads"),
    (["--top", "0"], "--top"), (["--image-size", "4"], "8 px or more")])
def test_flags_out_of_range(filter_run, tmp_path, words, message):
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    with pytest.raises(UsageError, match=message):
        networks.predict([str(filter_run / "seed0/kesi"), str(tmp_path / "black.png"), *words])


@pytest.mark.parametrize(("field", "value"), [
    ("image_size", "16"), ("image_size", 0), ("image_size", 60_000), ("image_size", None),
    ("mean", "abc"), ("mean", [0.5]), ("std", [1.0, 0.0, 1.0]), ("std", [1.0, float("nan"), 1.0]),
    ("classes", None), ("classes", [1] * 10), ("classes", ["a\nb"] * 10),
    ("name", ["digits"]), ("augmentation", [1])])
def test_what_a_file_says_of_its_images_is_not_believed_blindly(tmp_path, field, value):
    digits = load("digits")
    torch.manual_seed(3)
    keep(tmp_path / "odd.pth.tar", models.create("resnet20", 10), stage="baseline",
         data=digits.describe() | {field: value})
    Image.fromarray(digits.test.images[0].numpy()).save(tmp_path / "a.png")
    for command in (("kesi", "predict", tmp_path / "odd.pth.tar", tmp_path / "a.png"), (
            "kesi", "compare", tmp_path / "odd.pth.tar", tmp_path / "odd.pth.tar", "--no-latency")):
        fails(*command, code=1, says="odd.pth.tar is")


def test_images_of_a_senseless_size_are_refused(filter_run, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for size in (0, 100_000):
        fails("kesi", "predict", filter_run / "seed0/kesi", tmp_path / "a.png", "--image-size",
              size, code=2, says=f"--image-size {size}: it takes 1 to 4096 pixels")


def test_a_network_of_one_size_refuses_others(tmp_path, registry):
    kesi.register("grey", Grey, image_size=(20, 12), channels=1)
    keep(tmp_path / "c.pth.tar", models.create("grey", 3), stage="baseline",
         data={"name": "mine", "classes": ["a", "b", "c"], "image_size": [20, 12], "mean": [0.5],
               "std": [0.5]})
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    for command in (("predict", tmp_path / "c.pth.tar", tmp_path / "a.png"), (
            "compare", tmp_path / "c.pth.tar", "--no-accuracy"), (
            "export", tmp_path / "c.pth.tar", "--out", tmp_path / "net.onnx")):
        fails("kesi", *command, "--image-size", 24, code=2, says="--image-size 24: grey does not "
              "take such images (mat1 and mat2 shapes cannot be multiplied")
