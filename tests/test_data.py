"""The data sets: digits, CIFAR through torchvision, folders of images, the validation split,
and the cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

import datagen
from doors import script, works
from kesi.data import (
    DATASETS,
    INFO,
    DatasetInfo,
    Images,
    TrainBatches,
    cache,
    eval_batches,
    load,
    register_dataset,
)
from kesi.data.datasets import load_described
from kesi.data.decode import Storage, decode
from kesi.data.sources import digits
from kesi.data.split import Split, fraction_of, hold_out
from kesi.system.errors import KesiError, UsageError


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return datagen.write_imagefolder(tmp_path / "photos")


# Digits


def test_digits_are_300_to_train_and_1497_to_test():
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.val) == (300, 1497, None)
    assert (digits.train.images.shape == (300, 16, 16, 3)
            and digits.train.images.dtype == torch.uint8)
    assert torch.bincount(digits.train.labels).tolist() == [30] * 10
    assert (torch.bincount(digits.test.labels).tolist()
            == [148, 152, 147, 153, 151, 152, 151, 149, 144, 150])
    assert digits.train.labels.dtype == torch.int64
    assert (digits.classes == tuple("0123456789") and digits.num_classes == 10
            and digits.image_size == 16)
    info = INFO["digits"]
    assert ((info.num_classes, info.image_size, info.train_images, info.test_images)
            == (10, 16, 300, 1497))
    together = torch.cat([digits.train.images, digits.test.images])
    assert (torch.equal(together[..., 0], together[..., 1])
            and torch.equal(together[..., 0], together[..., 2]))
    assert (together.min(), together.max()) == (0, 255)


def test_digits_are_enlarged_from_8_pixels():
    large, small = load("digits").train.images, load("digits", image_size=8).train.images
    with np.load(Path(digits.__file__).with_name("digits.npz")) as file:
        stored = file["images"][file["train"]]
    assert np.array_equal(small[..., 0].numpy(), np.round(stored.astype(float) * 255 / 16))
    planes = small.permute(0, 3, 1, 2).float()
    planes = torch.nn.functional.interpolate(planes, scale_factor=2, mode="bilinear",
                                             align_corners=False)
    assert torch.equal(planes.round().permute(0, 2, 3, 1), large.float())


def test_digits_are_not_mirrored_and_have_statistics_of_their_training_images():
    digits = load("digits")
    assert not digits.augmentation.flip and digits.augmentation.padding == 2
    values = digits.train.images.double() / 255
    assert digits.mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=1e-9)
    assert digits.std == pytest.approx(values.std((0, 1, 2), correction=0).tolist(), abs=1e-9)
    x = torch.cat([x for x, _ in eval_batches(digits, digits.train)])
    assert x.mean().abs() < 1e-3 and (x.std() - 1).abs() < 1e-2


def test_a_description_is_plain_and_complete():
    description = load("digits", val_fraction=0.1).describe()
    assert json.loads(json.dumps(description)) == description
    assert description["images"] == {"train": 270, "val": 30, "test": 1497}
    assert (description["augmentation"]
            == {"name": "PadCrop", "size": 16, "padding": 2, "flip": False})
    assert set(description["digests"]) == {"train", "val", "test"}
    description = load("digits", family="tinyimagenet", image_size=64).describe()
    assert json.loads(json.dumps(description)) == description


@pytest.mark.parametrize("change", [
    lambda split: replace(split, images=255 - split.images),
    lambda split: replace(split, images=split.images.flip(2)),
    lambda split: replace(split, labels=split.labels.roll(1)),
    lambda split: split.subset(torch.arange(len(split)).flip(0)),
    lambda split: replace(split, images=split.images[:, :, :1].repeat(1, 1, 16, 1)),
])
def test_other_pixels_labels_or_orders_have_another_digest(change):
    digits = load("digits")
    digests = digits.describe()["digests"]
    assert load("digits").describe()["digests"] == digests
    assert digests["train"] != digests["test"]
    other = replace(digits, train=change(digits.train)).describe()["digests"]
    assert other["train"] != digests["train"] and other["test"] == digests["test"]


def test_class_folders_that_changed_places_have_another_digest(folder):
    before = load("imagefolder", folder).describe()
    os.rename(folder / "train/ant", folder / "train/swap")
    os.rename(folder / "train/bee", folder / "train/ant")
    os.rename(folder / "train/swap", folder / "train/bee")
    after = load("imagefolder", folder).describe()
    assert before["digests"]["train"] != after["digests"]["train"]
    del before["digests"], after["digests"]
    assert before == after | {"mean": before["mean"], "std": before["std"]}


# Data sets from outside of the package

ADDITION = """
import torch
from kesi.data import DatasetInfo, Images, register_dataset, split_of

def load(root, storage, download):
    pixels = torch.arange(24 * 20 * 20 * 3).view(24, 20, 20, 3).mul(7).remainder(251).byte()
    labels = torch.arange(24) % 3
    return Images(split_of((pixels, labels)), split_of((pixels[:6], labels[:6])), ("a", "b", "c"))

register_dataset("my-data", DatasetInfo(load, num_classes=3, train_images=24, test_images=6,
                                        side=20))
"""


@pytest.fixture
def addition(tmp_path):
    path = tmp_path / "my_data.py"
    path.write_text(ADDITION)
    yield path
    INFO.pop("my-data", None)


def test_a_data_set_from_a_file_goes_through_all_commands(addition, tmp_path):
    words, run = ("--with", addition), tmp_path / "run"
    options = ("--dataset", "my-data", "--arch", "resnet20")
    assert "3 classes, 20 px" in kesi("run", *words, *options, "--dry-run")
    assert "round" in kesi("plan", *words, *options, "--method", "filter")
    kesi("run", *words, *options, "--epochs", 1, 1, 1, "--rounds", 1, "--no-report", "--save", run)
    assert not (run / "images.json").exists()  # it reads no folder
    assert "checks hold" in kesi("verify", *words, run)
    assert "test images of my-data" in kesi(
        "export", *words, run / "seed0/kesi", "--format", "pt2", "--out", tmp_path / "a.pt2")
    INFO.pop("my-data")
    unknown = script("kesi", "run", *options)
    assert unknown.code == 2 and "my-data" in unknown.err


def kesi(*words):
    return works("kesi", *words)


def test_a_registered_data_set_is_brought_to_the_size_that_is_asked_for(addition):
    exec(addition.read_text(), {})
    assert "my-data" in DATASETS and INFO["my-data"].image_size == 20
    assert load("my-data", image_size=(16, 24)).train.images.shape == (24, 16, 24, 3)
    assert load("my-data", family="tinyimagenet", image_size=32).train.side == 20
    described = load("my-data", val_fraction=0.25).describe()
    assert load_described(described, "nowhere").describe() == described
    with pytest.raises(UsageError, match="there is a data set digits already"):
        register_dataset("digits", INFO["my-data"])
    with pytest.raises(UsageError, match="name consists of"):
        register_dataset("../my", INFO["my-data"])


@pytest.mark.parametrize("source, says", [
    (lambda *_: 1 / 0, "data set wrong cannot be loaded: ZeroDivisionError"),
    (lambda *_: None, "data set wrong gave a NoneType: return kesi.data.Images"),
    (lambda *_: Images(load("digits").train, load("digits").test, ("one",)),
     "labels go from 0 to 9"),
    (lambda *_: Images(load("digits").train, load("digits", image_size=20).test, ("one",) * 10),
     "make them equal"),
])
def test_a_wrong_source_is_answered_in_one_line(monkeypatch, source, says):
    monkeypatch.setitem(INFO, "wrong", DatasetInfo(source))
    with pytest.raises(KesiError) as error:
        load("wrong")
    assert says in one_line(error)


@pytest.mark.parametrize("by_source", [True, False])
@pytest.mark.parametrize("mean, std, says", [
    ((0.5,) * 3, None, "data set wrong: give both mean and std of its images, or neither"),
    (None, (0.5,) * 3, "or neither"),
    ((0.5,) * 2, (0.5,) * 2, "data set wrong: mean (0.5, 0.5): give 3 number(s), one a channel"),
    ((0.5,), (0.5,) * 3, "mean (0.5,): give 3 number(s)"),
    (0.5, 0.5, "mean 0.5: give 3 number(s)"),
    ((0.5,) * 3, np.ones((3, 3)), "give 3 number(s)"),
    ((float("nan"),) * 3, (0.5,) * 3, "give finite numbers"),
    ((0.5,) * 3, (0.5, 0.5, 0), "data set wrong: std (0.5, 0.5, 0): give finite numbers, for std"),
])
def test_wrong_statistics_are_answered_in_one_line(monkeypatch, by_source, mean, std, says):
    digits = load("digits")
    found = Images(digits.train, digits.test, digits.classes, *((mean, std) if by_source else ()))
    monkeypatch.setitem(INFO, "wrong", DatasetInfo(
        lambda *_: found, statistics=None if by_source else (mean, std)))
    with pytest.raises(UsageError) as error:
        load("wrong")
    assert says in one_line(error)


# Validation split


def test_the_held_out_part_is_stratified_and_disjoint():
    whole, digits = load("digits"), load("digits", val_fraction=0.2)
    assert torch.bincount(digits.val.labels).tolist() == [6] * 10
    assert torch.bincount(digits.train.labels).tolist() == [24] * 10
    kept, held = set(digits.train.rows.tolist()), set(digits.val.rows.tolist())
    assert not kept & held and kept | held == set(range(300))
    for split in (digits.train, digits.val):
        assert torch.equal(split.take(0, len(split)), whole.train.images[split.rows])
        assert torch.equal(split.labels, whole.train.labels[split.rows])
    assert torch.equal(load("digits", val_fraction=0.2).val.rows, digits.val.rows)
    assert digits.mean == whole.mean and len(digits.test) == 1497


@pytest.mark.parametrize("fraction", [0.04, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.77, 0.999])
def test_the_held_out_images_are_told_from_their_number(fraction):
    """Also where one fraction alone gives it: 0.1 of five images rounds down, of fifteen up."""
    labels = torch.cat([torch.full((members,), label) for label, members in
                        enumerate((5, 15, 7, 100, 1, 2, 6, 33))])
    split = Split(torch.zeros(len(labels), 8, 8, 3, dtype=torch.uint8), labels)
    kept, held_out = hold_out(split, fraction)
    again = hold_out(split, fraction_of(split, len(held_out)))
    assert torch.equal(again[0].rows, kept.rows) and torch.equal(again[1].rows, held_out.rows)


def test_a_class_keeps_an_image_and_a_fraction_too_small_is_refused():
    digits = load("digits", val_fraction=0.999)
    assert torch.bincount(digits.train.labels).tolist() == [1] * 10
    with pytest.raises(UsageError, match="holds out no image"):
        load("digits", val_fraction=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "mnist"},
            "unknown data set 'mnist'; choose one of: cifar10, cifar100, digits, imagefolder,",
        ),
        ({"name": "digits", "val_fraction": 1.0}, "val fraction 1 "),
        ({"name": "digits", "val_fraction": -0.1}, "val fraction -0.1"),
        ({"name": "digits", "image_size": 4}, "image size 4 is too small"),
        ({"name": "digits", "image_size": 100_000}, "image size 100000 is too large"),
        ({"name": "digits", "image_size": (32, 40), "family": "tinyimagenet"}, "not square"),
        ({"name": "digits", "channels": 0}, "images of 0 channels"),
        ({"name": "digits", "family": "svhn"}, "unknown family 'svhn'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(UsageError) as error:
        load(**options)
    assert message in one_line(error)


# CIFAR


class FakeCifar:
    """torchvision's data set, without the files."""

    url, filename, tgz_md5 = "http://127.0.0.1/cifar.tar.gz", "cifar.tar.gz", "0" * 32
    classes = ["plane", "car"]

    def __init__(self, root, train, download):
        values = np.full((6 if train else 4, 3, 32, 32), 100 if train else 50, dtype=np.uint8)
        self.data = values.transpose(0, 2, 3, 1)  # in the order of the files, as torchvision has it
        self.targets = [0, 1] * (3 if train else 2)


def test_cifar_comes_from_torchvision_with_the_papers_statistics(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    cifar = load("cifar10", tmp_path)
    assert cifar.train.images.shape == (6, 32, 32, 3) and cifar.test.labels.tolist() == [0, 1, 0, 1]
    assert cifar.mean == (0.4914, 0.4822, 0.4465) and cifar.std == (0.2023, 0.1994, 0.2010)
    assert (cifar.augmentation.padding, cifar.augmentation.flip, cifar.image_size) == (4, True, 32)
    x, _ = next(eval_batches(cifar, cifar.test))
    expected = [(50 / 255 - mean) / std for mean, std in zip(cifar.mean, cifar.std, strict=True)]
    torch.testing.assert_close(x[0, :, 9, 9], torch.tensor(expected))
    assert load("cifar10", tmp_path, image_size=16).train.images.shape == (6, 16, 16, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_is_missing_says_where_the_files_belong(name, tmp_path):
    with pytest.raises(KesiError) as error:
        load(name, tmp_path / "empty", download=False)
    message = one_line(error)
    assert f"{name} is missing or damaged" in message and str(tmp_path / "empty") in message
    assert "python.tar.gz" in message and "MD5" in message


def test_a_failed_download_is_one_line(monkeypatch, tmp_path):
    class Unreachable(FakeCifar):
        def __init__(self, root, train, download):
            raise OSError("<urlopen error\n Name or service not known>")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Unreachable)
    with pytest.raises(KesiError) as error:
        load("cifar100", tmp_path)
    assert "could not be downloaded" in one_line(error) and "cifar.tar.gz" in one_line(error)


# Folders of images


def test_a_folder_of_images_of_any_mode_and_size(folder):
    photos = load("imagefolder", folder, image_size=24)
    assert photos.classes == ("ant", "bee", "cat") and photos.augmentation.padding == 3
    assert photos.train.images.shape == (27, 24, 24, 3) and len(photos.test) == 12
    assert photos.train.labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    values = photos.train.images.double() / 255
    assert photos.mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=1e-9)
    assert photos.std == pytest.approx(values.std((0, 1, 2), correction=0).tolist(), abs=1e-9)
    x, y = next(TrainBatches(photos, 9, seed=0).epoch(0))
    assert x.shape == (9, 3, 24, 24) and torch.isfinite(x).all() and len(set(y.tolist())) > 1


def test_photographs_are_stored_whole_for_training_and_cropped_for_testing(folder):
    photos = load("imagefolder", folder, family="tinyimagenet", image_size=56, val_fraction=0.3)
    assert photos.train.side == photos.test.side == photos.augmentation.test_size == 64
    assert photos.test.sizes is None and [61, 90] in photos.train.sizes.tolist()
    assert len(photos.val) == 9 and photos.val.sizes.shape == (9, 2)
    for split in (photos.train, photos.val, photos.test):
        x, _ = next(eval_batches(photos, split))
        assert x.shape == (len(split), 3, 56, 56)
    assert load("imagefolder", folder, family="tinyimagenet").image_size == 224


def test_a_folder_of_grey_images_that_are_not_square(folder):
    grey = load("imagefolder", folder, image_size=(20, 32), channels=1)
    assert grey.train.images.shape == (27, 20, 32, 1) and grey.shape == (1, 20, 32)
    assert len(grey.mean) == 1 and len(grey.describe()["std"]) == 1
    assert grey.describe()["image_size"] == [20, 32]
    x, _ = next(TrainBatches(grey, 9, seed=0).epoch(0))
    assert x.shape == (9, 1, 20, 32)
    photographs = load("imagefolder", folder, family="tinyimagenet", image_size=32, channels=1)
    for x, _ in (*TrainBatches(photographs, 9, seed=0).epoch(0),
                 *eval_batches(photographs, photographs.test)):
        assert x.shape[1:] == (1, 32, 32) and torch.isfinite(x).all()


def test_what_is_not_square_is_resized_and_cropped_at_the_centre(tmp_path):
    pixels = datagen.picture(np.random.default_rng(6), 50, 90, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for size, resize in (((30, 40), (30, 54)), ((20, 60), (33, 60)), ((60, 30), (60, 108))):
        found = decode(tmp_path / "a.png", Storage(size, False)).pixels
        whole = functional.resize(Image.fromarray(pixels), resize)
        expected = np.asarray(functional.center_crop(whole, size))
        assert found.shape == (*size, 3) and np.abs(found.astype(int) - expected).max() <= 1


def test_val_serves_where_there_is_no_test(tmp_path):
    datagen.write_imagefolder(tmp_path, test_name="val")
    assert len(load("imagefolder", tmp_path).test) == 12


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(("spoil", "names", "says"), [
    (lambda root: remove(root / "train"), "train", "is not there"),
    (lambda root: remove(root / "test"), "test", "is not there"), (lambda root: [
        remove(path) for path in (root / "train").iterdir()], "train", "no class folder"),
    (lambda root: [remove(path) for path in (root / "train" / "bee").iterdir()],
     "train/bee",
     "has no image"),
    (lambda root: [remove(path) for path in (root / "test" / "bee").iterdir()],
     "test/bee",
     "has no image"),
    (lambda root: (root / "test" / "dog").mkdir(), "test/dog", "without training images"),
    (lambda root: (root / "train/ant/bad.png").write_bytes(b"nothing"),
     "train/ant/bad.png",
     "not a readable"),
    (lambda root: (root / "train/bee").rename(root / "train/b\nee"), "train",
     "a class 'b\\nee' with a control character"),
    (lambda root: os.truncate(root / "train/ant/000.jpg", 700),
     "train/ant/000.jpg",
     "not a readable image"),
    (lambda root: os.symlink("gone", root / "test/ant/gone.png"), "", ""),
])
def test_what_is_wrong_with_a_folder_is_named(folder, spoil, names, says):
    spoil(folder)
    if not says:  # a link to nowhere is not a file
        assert len(load("imagefolder", folder).test) == 12
        return
    with pytest.raises(KesiError) as error:
        load("imagefolder", folder)
    assert str(folder / names) in one_line(error) and says in one_line(error)
    assert not list(folder.glob(".kesi-cache/.*.tmp"))


def test_all_images_that_cannot_be_read_are_named(folder):
    for place in ("train/ant/bad.png", "train/bee/bad.png", "train/bee/worse.png"):
        (folder / place).write_bytes(b"nothing")
    with pytest.raises(KesiError, match=r"ant/bad\.png is not a readable image .*; 2 more will "
                                        r"not do: train/bee/bad\.png, train/bee/worse\.png$"):
        load("imagefolder", folder)


def test_what_is_left_out_of_a_folder_is_said(folder):
    (folder / "train/ant/deeper").mkdir()
    with pytest.warns(UserWarning, match=r"4 of \d+ entries in the class folders of .*train "
                                         r"are left out") as said:
        load("imagefolder", folder)
    assert len(said) == 2 and "3 of" in str(said[1].message)  # three notes.txt in either


@pytest.mark.parametrize("place, says", [
    ("nowhere", "is not a folder"), ("photos/train", "did you mean .*photos[?]"),
    ("photos/train/ant", "are in train/<class>/ and test/<class>/ of the folder")])
def test_a_wrong_folder_is_answered_with_the_right_one(tmp_path, place, says):
    datagen.write_imagefolder(tmp_path / "photos")
    with pytest.raises(KesiError, match=says):
        load("imagefolder", tmp_path / place)


def test_one_class_and_a_folder_of_images_without_its_flag_are_said(tmp_path):
    datagen.write_imagefolder(tmp_path / "one", classes=("ant",))
    with pytest.raises(KesiError, match=r"has one class \(ant\)"):
        load("imagefolder", tmp_path / "one")
    with pytest.raises(KesiError, match="add --dataset imagefolder"):
        load("cifar10", tmp_path / "one")


def test_images_that_are_far_too_large_are_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(KesiError) as error:
        decode(folder / "train/ant/001.png", Storage(32, False))  # 90 x 61
    assert "001.png has 90x61 pixels, more than 4000" in one_line(error)


# One image


@pytest.mark.parametrize("kind", range(9))
def test_every_mode_gives_the_picture(tmp_path, kind):
    pixels = datagen.picture(np.random.default_rng(5), 64, 64, 1)
    result = decode(datagen.write_mixed(pixels, tmp_path / "image", kind), Storage(64, False))
    assert result.pixels.shape == (64, 64, 3) and result.pixels.dtype == np.uint8
    expected = (pixels if kind in (0, 1, 2, 3, 6)
                else np.asarray(Image.fromarray(pixels).convert("L"))[..., None])
    tolerance = 25 if kind == 1 else 3  # a palette of 64 colours
    if kind != 8:
        assert np.abs(result.pixels.astype(int) - expected).mean() < tolerance
    else:
        assert set(np.unique(result.pixels)) == {0, 255}
    assert np.array_equal(np.reshape(result.histogram, (3, 256)).sum(1), [64 * 64] * 3)


def test_transparent_parts_are_white(tmp_path):
    image = np.zeros((20, 20, 4), dtype=np.uint8)
    image[:, 10:] = (10, 20, 30, 255)
    Image.fromarray(image).save(tmp_path / "rgba.png")
    palette = Image.fromarray(image[..., 3] // 255).convert("P")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "palette.png"):
        pixels = decode(tmp_path / name, Storage(20, False)).pixels
        assert (pixels[:, :10] == 255).all() and (pixels[:, 10:] == (10, 20, 30)).all()


def test_grey_of_16_bits_keeps_the_upper_8_and_its_transparency(tmp_path):
    grey = np.array([[0, 1000, 65535]], dtype=np.uint16).repeat(8, 0).repeat(8, 1)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=1000)
    pixels = decode(tmp_path / "a.png", Storage((8, 24), False)).pixels
    assert [row[4].tolist() for row in np.split(pixels[4], 3)] == [[0] * 3, [255] * 3, [255] * 3]
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(KesiError, match="32-bit pixels; which value is white is not known"):
        decode(tmp_path / "a.tif", Storage((8, 24), False))


@pytest.mark.parametrize("shape", [(300, 400), (101, 53), (30, 64), (8, 700)])
def test_cropped_storage_is_torchvisions_resize_and_centre_crop(tmp_path, shape):
    pixels = datagen.picture(np.random.default_rng(6), *shape, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = decode(tmp_path / "a.png", Storage(32, False))
    expected = functional.center_crop(functional.resize(Image.fromarray(pixels), [32]), [32])
    assert (np.abs(result.pixels.astype(int) - np.asarray(expected)).max() <= 1
            and result.true_size == shape)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])  # Pillow turns the second by itself
def test_squeezed_storage_keeps_the_whole_and_the_true_size(tmp_path, name):
    pixels = datagen.picture(np.random.default_rng(7), 50, 120, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=exif)
    result = decode(tmp_path / name, Storage(40, True))
    expected = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(result.pixels, np.asarray(expected)) and result.true_size == (50, 120)


def test_large_jpeg_files_may_be_decoded_smaller(tmp_path):
    pixels = datagen.picture(np.random.default_rng(8), 600, 800, 0)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    result = decode(tmp_path / "a.jpg", Storage(64, True))
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(result.pixels.astype(int) - expected).max() < 8 and result.true_size == (600, 800)


# Cache


def arrays(folder: Path) -> dict[str, int]:
    """Inode by name: a file that was written again has another one."""
    return {path.name: path.stat().st_ino for path in (folder / ".kesi-cache").glob("*.npy")}


def test_images_are_decoded_once(folder, monkeypatch):
    first, names = load("imagefolder", folder), arrays(folder)
    monkeypatch.setattr(cache, "decode", None)
    second = load("imagefolder", folder)
    assert arrays(folder) == names and len(names) == 2
    assert torch.equal(first.train.images, second.train.images) and first.mean == second.mean
    assert isinstance(np.load(next(folder.glob(".kesi-cache/*.npy")), mmap_mode="r"), np.memmap)
    # another size is another array, which needs the decoder
    with pytest.raises(KesiError, match="NoneType"):
        load("imagefolder", folder, image_size=16)


def same_size_and_time(path: Path) -> None:
    """Another picture in an image file, as rsync --times would bring it."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "change",
    [
        lambda root: datagen.write_mixed(np.zeros((9, 9, 3), np.uint8), root / "train/ant/new", 2),
        lambda root: (root / "train/ant/000.jpg").unlink(),
        lambda root: os.utime(root / "train/ant/000.jpg", ns=(1, 1)),
        lambda root: (root / "train/ant/000.jpg").rename(root / "train/ant/0.jpg"),
        lambda root: same_size_and_time(root / "train/ant/000.jpg"),
    ],
)
def test_the_cache_follows_the_files(folder, change):
    load("imagefolder", folder)
    load(
        "imagefolder", folder, family="tinyimagenet", image_size=28
    )  # at the same 32 px, but whole photographs
    before = arrays(folder)
    assert len(before) == 3
    change(folder)
    photos, after = load("imagefolder", folder), arrays(folder)
    gone, new = set(before) - set(after), set(after) - set(before)
    assert len(gone) == len(new) == 1 and new.pop().startswith("train-cropped-32")
    assert len(photos.train) == len(photos.train.images)


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "manifest of nonsense",
                                    "manifest of a part", "manifest of another"])
def test_a_damaged_cache_is_built_again(folder, damage):
    expected = load("imagefolder", folder).train.images.clone()
    array = next(folder.glob(".kesi-cache/train*.npy"))
    manifest, before = array.with_suffix(".json"), arrays(folder)
    if damage == "truncated":
        os.truncate(array, array.stat().st_size - 1)
    elif damage == "no manifest":
        manifest.unlink()
        array.write_bytes(b"\0" * array.stat().st_size)
    else:
        text = manifest.read_text()
        other = text.replace('"shape": [27,', '"shape": [28,')
        manifest.write_text(
            {"nonsense": "[]", "a part": text[:99], "another": other}[damage.split(" of ")[-1]]
        )
    assert torch.equal(load("imagefolder", folder).train.images, expected)
    assert arrays(folder)[array.name] != before[array.name]


@pytest.mark.parametrize("large", [False, True])
def test_pixels_that_were_changed_in_the_cache_are_not_believed(folder, monkeypatch, large):
    if large:
        monkeypatch.setattr(cache, "CHECKED", 0)
    expected = load("imagefolder", folder)
    pixels = expected.train.images.clone()  # not mapped from the file
    array = next(folder.glob(".kesi-cache/train*.npy"))
    content, before = array.read_bytes(), array.stat()
    array.write_bytes(content[:128] + bytes(255 - byte for byte in content[128:]))
    os.utime(array, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(UserWarning, match="is damaged: the images are decoded anew"):
        found = load("imagefolder", folder)
    assert torch.equal(found.train.images, pixels)
    assert found.describe() == expected.describe()


def test_a_large_array_is_read_once_where_it_was_moved(folder, monkeypatch):
    monkeypatch.setattr(cache, "CHECKED", 0)
    load("imagefolder", folder)
    read = []
    digest_of = cache.digest_of
    monkeypatch.setattr(cache, "digest_of", lambda images: read.append(1) or digest_of(images))
    load("imagefolder", folder)
    assert not read
    array = next(folder.glob(".kesi-cache/train*.npy"))
    shutil.copy(array, folder / "copy")
    os.replace(folder / "copy", array)  # the same bytes in another file
    load("imagefolder", folder)
    load("imagefolder", folder)
    assert len(read) == 1


def test_an_unreadable_image_leaves_no_cache(folder):
    (folder / "train/cat/zzz.png").write_bytes(b"not an image")
    with pytest.raises(KesiError):
        load("imagefolder", folder)
    assert [path.name for path in (folder / ".kesi-cache").iterdir()] == []


BUILD = """
import sys, time
from kesi.data import cache, load
decode, decoded = cache.decode, []
def slow(*arguments):
    time.sleep(float(sys.argv[2]))
    decoded.append(arguments)
    return decode(*arguments)
cache.decode = slow
print(load("imagefolder", sys.argv[1]).train.images.sum().item(), len(decoded))
"""


def build_in_process(folder: Path, seconds_per_image: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, str(folder), str(seconds_per_image)]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_build_leaves_nothing_that_looks_finished(folder):
    process = build_in_process(folder, 0.5)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".kesi-cache/.train*.tmp")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(folder.glob(".kesi-cache/.*.tmp")) and not arrays(folder)
    assert len(load("imagefolder", folder).train) == 27
    assert not list(folder.glob(".kesi-cache/.*.tmp")) and len(arrays(folder)) == 2


def test_builders_at_the_same_time_share_the_work(folder):
    processes = [build_in_process(folder, 0.02) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    sums, decoded = zip(*(map(int, output.split()) for output, _ in results), strict=True)
    assert set(sums) == {load("imagefolder", folder).train.images.long().sum().item()}
    assert sum(decoded) == 27 + 12  # each image once, by either of them
    assert not list(folder.glob(".kesi-cache/.*.tmp")) and len(arrays(folder)) == 2


def test_a_folder_that_cannot_be_written_to_is_cached_elsewhere(folder, tmp_path, monkeypatch,
                                                                capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / ".kesi-cache").write_text("in the way")  # as good as read-only, for every user
    first = load("imagefolder", folder).train.images
    assert "is read-only: decoded images go to" in capsys.readouterr().err
    assert len(list((tmp_path / "cache" / "kesi").glob("*/train*.npy"))) == 1
    assert torch.equal(load("imagefolder", folder).train.images, first)
    assert not capsys.readouterr().err
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(KesiError) as error:
        load("imagefolder", folder)
    assert "no place for decoded images" in one_line(error)
