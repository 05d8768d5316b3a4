"""Images without labels: the last step is taught on them, and nothing else ever sees them."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import kesi
from datagen import write_imagefolder
from doors import fails, script, works
from kesi import checkpoints, models
from kesi.data import TrainBatches, load
from kesi.data.arrays import from_arrays
from kesi.data.split import UNKNOWN
from kesi.method.algorithm import draw
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import Decoupled, KullbackLeibler, WithLabels
from kesi.method.recipes import DISTILLATION
from kesi.method.snapshot import Snapshot
from kesi.method.training import Options, fit
from kesi.report.report import report
from kesi.runs.folder import noted_images
from kesi.system.errors import UsageError
from kesi.tools.export import about_of
from kesi.tools.handover.card import card
from kesi.tools.inputs import inputs_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes to train and test, and a folder of others: 12 below names that mean nothing."""
    root = tmp_path_factory.mktemp("images")
    write_imagefolder(root, ("ant", "bee"), 4, 2)
    write_imagefolder(root / "more", ("x", "y"), 6, 0)
    for notes in root.rglob("notes.txt"):  # which would be a line of its own
        notes.unlink()
    return root


def words(root, save, *more):
    return ("kesi", "run", "--arch", "resnet20", "--dataset", "imagefolder", "--data", root,
            "--image-size", 8, "--rounds", 1, "--epochs", 1, 1, 3, "--batch-size", 4, "--no-report",
            "--eval-every", 0, "--save", save, *more)


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """A run without such images, and one with them."""
    folder = tmp_path_factory.mktemp("runs")
    works(*words(images, folder / "without"))
    works(*words(images, folder / "with", "--unlabelled", images / "more"))
    return folder


def result(folder, stage):
    return json.loads((folder / "seed0" / stage / "result.json").read_text())


def test_only_the_last_step_sees_them(runs):
    for stage in ("baseline", "onecycle-1"):
        one, other = (result(runs / name, stage) for name in ("without", "with"))
        assert one["network_digest"] == other["network_digest"]
        assert one["settings"] == other["settings"]
    one, other = (result(runs / name, "kesi") for name in ("without", "with"))
    assert one["network_digest"] != other["network_digest"]
    assert one["images"] == other["images"] == 3 * 8  # as many are processed
    assert "unlabelled" not in one["settings"] and other["settings"]["unlabelled"]


def test_how_many_there_are_is_told_where_the_network_is(runs, images, tmp_path):
    fails(*words(images, runs / "none", "--unlabelled", images / "nowhere", "--dry-run"), code=2,
          says="there is no such folder")
    said = "the last step also drew from 12 images without labels"
    for name in ("with", "without"):
        checkpoint = checkpoints.load(runs / name / "seed0" / "kesi")
        text = card(checkpoint, about_of(checkpoint, inputs_of(checkpoint), False), None)
        assert ("the last step also on 12 images without labels" in text) == (name == "with")
        report([runs / name], tmp_path, plots=False)
        assert (said in (tmp_path / "table.md").read_text()) == (name == "with")


def test_a_run_continues_with_the_same_ones_only(runs, images, tmp_path):
    run = shutil.copytree(runs / "with", tmp_path / "run")
    fails(*words(images, run), code=2, says="other images without labels")
    fails(*words(images, run, "--unlabelled", images / "more" / "train" / "x"), code=2,
          says="other images without labels")
    shutil.rmtree(run / "seed0" / "kesi")
    works(*words(images, run, "--unlabelled", images / "more"))
    assert result(run, "kesi")["network_digest"] == (
        result(runs / "with", "kesi")["network_digest"])
    assert "checks hold" in works("kesi", "verify", run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"unlabelled": "0" * 64}))
    assert "images without labels" in script("kesi", "verify", run).out


def test_a_stage_by_hand_does_not_forget_them(runs, images, tmp_path):
    chain = [runs / "with/seed0" / name for name in ("baseline", "onecycle-1")]
    by_hand = ("cifar/filter_pruning/ensemble_finetune.py", "--refine", chain[-1], "--teachers",
               *chain, "--dataset", "imagefolder", "--data", images, "--image-size", 8, "--epochs",
               1, "--save", tmp_path / "kesi")
    works(*by_hand, "--unlabelled", images / "more")
    fails(*by_hand, code=2, says="holds a run with another unlabelled (")


def test_a_study_gives_what_the_runs_give_and_is_of_the_same_ones(runs, images, tmp_path):
    file = tmp_path / "taught.py"
    file.write_text("""
from kesi.method.recipes import recipe
from kesi.runs.study import Variant
without = Variant(recipe("resnet20", "imagefolder", "filter").changed(
    rounds=1, epochs=(1, 1, 3), batch_size=4, compare=False))
VARIANTS = {"without": without, "with": without.changed(images="unlabelled")}
""")
    study = ("kesi", "study", file, "--data", images, "--image-size", 8, "--eval-every", 0,
             "--save", tmp_path / "study")
    fails(*study, code=2, says="'with' is taught on images without labels")
    works(*study, "--unlabelled", images / "more")
    stages = [one.parent for one in (tmp_path / "study").glob("seed0/*/result.json")]
    assert {noted_images(one) for one in stages} == {images}
    with open(tmp_path / "study" / "study.csv") as table:
        made = {row["variant"]: row["network_digest"] for row in csv.DictReader(table)}
    assert made == {name: result(runs / name, "kesi")["network_digest"] for name in made}
    shutil.copytree(images / "more" / "train" / "x", tmp_path / "fewer")
    fails(*study, "--unlabelled", tmp_path / "fewer", code=2, says="unlabelled")


def test_test_images_are_refused(images, tmp_path):
    fails(*words(images, tmp_path / "run", "--unlabelled", images), code=2, says="test images")
    shutil.copytree(images / "more", tmp_path / "more")
    shutil.copy(next((images / "test" / "bee").glob("*.png")), tmp_path / "more" / "hidden.png")
    fails(*words(images, tmp_path / "run", "--unlabelled", tmp_path / "more"), code=2,
          says="1 of the 13 images without labels are test images")
    shutil.copytree(images / "train", tmp_path / "train")
    fails(*words(images, tmp_path / "run", "--unlabelled", tmp_path / "train", "--val-fraction",
                 0.5), code=2, says="4 of the 8 images without labels are held-out images")
    # of photographs, those with labels are stored as a crop, those without as a whole
    photo = Image.fromarray((np.arange(40 * 80 * 3) % 251).astype(np.uint8).reshape(40, 80, 3))
    photo.save(tmp_path / "train" / "ant" / "wide.png")
    for folder in ("test/ant", "more"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / folder / "wide.png")
    (tmp_path / "more" / "hidden.png").unlink()
    with pytest.raises(UsageError, match="1 of the 13 images without labels are test images"):
        load("imagefolder", tmp_path, family="tinyimagenet", image_size=56,
             unlabelled=tmp_path / "more")
    (tmp_path / "none").mkdir()
    fails(*words(images, tmp_path / "run", "--unlabelled", tmp_path / "none"), code=1,
          says="has no image")
    assert not (tmp_path / "run").exists()


def test_linked_folders_count_and_what_is_no_image_is_told(images, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "linked").symlink_to(images / "more" / "train" / "x")
    (tmp_path / "more" / "deep" / "back").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "notes.txt").write_text("none")
    with pytest.warns(UserWarning, match=r"1 of 7 entries in .*more are left out, .*notes\.txt"):
        found = load("imagefolder", images, image_size=8, unlabelled=tmp_path / "more")
    assert len(found.unlabelled) == 6


def test_a_loss_that_needs_every_label_is_refused_before_any_training(images, tmp_path):
    fails(*words(images, tmp_path / "run", "--unlabelled", images / "more", "--loss", "dkd"),
          code=2, says="Decoupled reads the label of every image")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pool():
    """30 digits with labels, and 60 without."""
    digits = load("digits")
    pixels = digits.train.images
    return from_arrays((pixels[:30], digits.train.labels[:30]),
                       (digits.test.images[:20], digits.test.labels[:20]), 10, flip=False,
                       unlabelled=pixels[30:90].permute(0, 3, 1, 2))


def test_an_epoch_draws_as_many_from_all_of_them(pool):
    """Every image carries its own number in its pixels."""
    def numbered(split, first):
        numbers = torch.arange(first, first + len(split), dtype=torch.uint8)
        return replace(split, images=numbers[:, None, None, None].expand(-1, 16, 16, 3))

    pool = replace(pool, train=numbered(pool.train, 1), unlabelled=numbered(pool.unlabelled, 31),
                   mean=(0.0,) * 3, std=(1.0,) * 3)
    batches = TrainBatches(pool, 8, 0, unlabelled=True)
    drawn = [torch.cat([torch.stack([(255 * x.amax((1, 2, 3))).round().long(), y])
                        for x, y in batches.epoch(number)], dim=1) for number in range(1, 21)]
    seen = set()
    for numbers, labels in drawn:
        assert numbers.shape == (30,) and len(set(numbers.tolist())) == 30
        known = numbers <= 30
        assert torch.equal(labels[known], pool.train.labels[numbers[known] - 1])
        assert (labels[~known] == UNKNOWN).all()
        seen |= set(numbers.tolist())
    assert seen == set(range(1, 91))
    # resident or not, the images are the same
    other = TrainBatches(pool, 8, 0, resident_bytes=0, unlabelled=True)
    for (x, y), (same, label) in zip(batches.epoch(3), other.epoch(3), strict=True):
        assert torch.equal(x, same) and torch.equal(y, label)


def test_labels_count_where_there_are_some():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator).requires_grad_()
    teachers = torch.randn(2, 6, 4, generator=generator)
    labels = torch.tensor([1, UNKNOWN, 3, UNKNOWN, UNKNOWN, 0])
    told, known = KullbackLeibler()(logits, teachers, labels), labels >= 0
    none = torch.full((6,), UNKNOWN)
    for given, expected in (
            (labels, 0.7 * told + 0.3 * F.cross_entropy(logits[known], labels[known])),
            (none, 0.7 * told)):
        found = WithLabels(alpha=0.3)(logits, teachers, given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(*(torch.autograd.grad(one, logits, retain_graph=True)[0]
                                     for one in (found, expected)))


def test_what_labels_say_of_the_others_changes_nothing(pool):
    """Without labels in the loss they make no difference at all."""
    teacher = Snapshot("teacher", models.create("resnet20", 10))
    training = DISTILLATION.changed(epochs=2, batch_size=15)

    def taught(dataset):
        network = draw("resnet20", 10, 3).network
        objective = Distillation(SnapshotEnsemble([teacher]), KullbackLeibler(), True)
        history = fit(network, dataset, training, seed=1, objective=objective,
                      options=Options(eval_every=0))
        return torch.cat([one.flatten() for one in network.state_dict().values()]), history

    weights, history = taught(pool)
    labelled = replace(pool, unlabelled=replace(pool.unlabelled, labels=torch.zeros(60).long()))
    assert torch.equal(weights, taught(labelled)[0])
    assert not torch.equal(weights, taught(replace(pool, unlabelled=None))[0])
    assert all(0 <= row.train_accuracy <= 100 for row in history)


def test_a_network_of_ones_own_is_taught_on_an_array(pool, tmp_path, registry):
    def small():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8),
                                   torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                                   torch.nn.Flatten(), torch.nn.Linear(8, 10))

    def made(folder, more):
        return kesi.compress(small, (pool.train.images, pool.train.labels),
                             (pool.test.images, pool.test.labels), folder=tmp_path / folder,
                             rounds=1, epochs=(1, 1, 1), batch_size=15, unlabelled=more)

    one, other = made("a", None), made("b", pool.unlabelled.images)
    assert one.accuracies.keys() == other.accuracies.keys()
    assert not torch.equal(next(one.network.parameters()), next(other.network.parameters()))
    with pytest.raises(UsageError, match="make them equal"):
        made("c", pool.unlabelled.images[:, :12])
    with pytest.raises(UsageError, match="test images"):
        made("d", pool.test.images[:3])


def test_unknown_losses_may_read_labels(pool):
    ensemble = SnapshotEnsemble([Snapshot("teacher", models.create("resnet20", 10))])
    for loss in (Decoupled(), lambda logits, teachers, labels: logits.mean()):
        with pytest.raises(UsageError, match="reads the label of every image"):
            fit(models.create("resnet20", 10), pool, DISTILLATION.changed(epochs=1, batch_size=15),
                seed=0, objective=Distillation(ensemble, loss, True))
