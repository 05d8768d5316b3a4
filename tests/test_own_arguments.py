"""What compress() takes besides a network and images, on a network of two convolutions."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import StochasticDepth

import kesi
import models
from datagen import write_imagefolder
from doors import fails, script, works
from kesi import checkpoints
from kesi.data import load
from kesi.data.arrays import from_arrays
from kesi.method import algorithm, recipes
from kesi.method.objectives import LOSSES, Dist, WithLabels
from kesi.method.pruning.criteria import FILTER_CRITERIA, Evidence
from kesi.method.snapshot import Snapshot
from kesi.method.teachers import ByConfidence, Shares
from kesi.method.training import Epoch, Options
from kesi.own.compress import START, Compressed
from kesi.report.verify import verify
from kesi.runs.record import read_epochs, read_result, read_run
from kesi.runs.study import Variant
from kesi.system.errors import UsageError

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.usefixtures("registry")

CPU = Options(device="cpu", eval_every=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def shown(wrong: bool = False):
    """Digits to test; or such that are all called 0, whatever they are."""
    test = load("digits").test
    return test.take(0, 60), torch.zeros_like(test.labels[:60]) if wrong else test.labels[:60]


def squeeze(folder, test=None, **arguments) -> Compressed:
    train = load("digits").train
    settings = {"rounds": 1, "epochs": (3, 2, 2), "batch_size": 32, "lr": 0.05} | arguments
    return kesi.compress(settings.pop("model", network()), (train.images, train.labels),
                         test or shown(), name="own", folder=folder, flip=False, options=CPU,
                         **settings)


def always_zero(logits, teachers, labels):
    """A last step that makes everything worse: the answer is 0."""
    return F.cross_entropy(logits, torch.zeros_like(labels))


def shifted(logits, images, labels):
    """Another class than the label, so that one sees who was asked."""
    return F.cross_entropy(logits, (labels + 1) % logits.shape[1])


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """A run whose last step learns to say 0, which is right on all test images."""
    folder = tmp_path_factory.mktemp("worse") / "run"
    rows = []
    result = squeeze(folder, shown(wrong=True), epochs=(15, 8, 8), loss=always_zero,
                     val_fraction=0.2, on_epoch=rows.append)
    return result, rows


def test_the_last_step_cannot_make_it_worse_and_test_images_have_no_say(worse):
    result, _ = worse
    assert result.accuracies["kesi"] > 50 > result.accuracies["onecycle-1"]
    assert result.stage == "onecycle-1" and result.checkpoint.parent.name == "onecycle-1"
    said = read_run(result.folder / "run.json")
    assert said.handed_over == {"seed0": "onecycle-1"}
    assert said.recipe["loss"]["name"] == "always_zero" and said.recipe["loss"]["code"]
    train = load("digits").train
    dataset = from_arrays((train.images, train.labels), shown(wrong=True), 10, flip=False,
                          val_fraction=0.2)
    assert verify(result.folder, dataset).failures == []


def test_what_is_handed_over_stays_while_another_seed_is_run(worse, tmp_path):
    folder = shutil.copytree(worse[0].folder, tmp_path / "run")

    def stop(row):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        squeeze(folder, shown(wrong=True), epochs=(15, 8, 8), loss=always_zero, val_fraction=0.2,
                seeds=(0, 1), on_epoch=stop)
    assert read_run(folder / "run.json").handed_over == {"seed0": "onecycle-1"}


def test_every_epoch_is_told_as_it_was_recorded(worse):
    result, rows = worse
    assert all(isinstance(row, Epoch) for row in rows)
    stages = [result.folder / "seed0" / name / "metrics.jsonl"
              for name in ("baseline", "onecycle-1", "kesi")]
    assert rows == [row for path in stages for row in read_epochs(path)]


def test_another_choice_than_the_held_out_images_is_noticed(worse, tmp_path):
    path = worse[0].folder / "run.json"
    before = path.read_text()
    said = json.loads(before)
    said["handed_over"] = {"seed0": "kesi"}
    path.write_text(json.dumps(said))
    try:
        assert any("handed over" in one for one in verify(worse[0].folder).failures)
    finally:
        path.write_text(before)


def test_an_objective_is_learned_recorded_and_belongs_to_the_run(tmp_path):
    result = squeeze(tmp_path / "run", epochs=(15, 8, 8), objective=shifted, criterion="l2",
                     loss="dist")
    assert max(result.accuracies.values()) < 10 and result.stage == "kesi"
    recipe = read_run(result.folder / "run.json").recipe
    assert recipe["objective"]["name"] == "shifted" and recipe["criterion"]["name"] == "l2"
    assert recipe["loss"]["name"] == "Dist"
    assert verify(result.folder).failures == []
    record = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(UsageError, match="objective"):
        squeeze(tmp_path / "run", epochs=(15, 8, 8), criterion="l2", loss="dist")
    assert (tmp_path / "run/run.json").read_bytes() == record
    with pytest.raises(UsageError, match="criterion"):
        squeeze(tmp_path / "run", epochs=(15, 8, 8), objective=shifted, loss="dist")
    images, labels = shown()
    for other in ((images.flip(2), labels), (images, (torch.as_tensor(labels) + 1) % 10)):
        with pytest.raises(UsageError, match="holds a run with other test images"):
            squeeze(tmp_path / "run", other, epochs=(15, 8, 8), objective=shifted, criterion="l2",
                    loss="dist")


@pytest.mark.parametrize("criterion", FILTER_CRITERIA)
def test_a_criterion_is_the_same_for_a_network_of_ones_own(criterion):
    """What is left of one whose convolutions have batch norms, and nothing else in between."""
    torch.manual_seed(0)
    kesi.register("normed", lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3, 2),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)), 10, 16)
    whole = models.create("normed", 10)
    for place in (1, 4):
        nn.init.normal_(whole[place].weight)
    recipe = recipes.recipe("normed", "digits", "filter").changed(
        rounds=1, amounts=0.5, criterion=criterion)
    smaller = algorithm.prune(Snapshot("start", whole), recipe, recipe.rounds[0], 1,
                              Evidence(load("digits"))).network
    assert [len(smaller[place].weight) for place in (0, 1, 3, 4)] == [8, 8, 6, 6]
    scores = FILTER_CRITERIA[criterion](whole, ["0", "3"], Evidence(load("digits")))
    if criterion == "batch-norm":
        scores = {"0": whole[1].weight.abs(), "3": whole[4].weight.abs()}
    for conv, norm in ((0, 1), (3, 4)):
        kept = scores[str(conv)].topk(len(smaller[norm].weight)).indices.sort().values
        assert torch.equal(smaller[norm].weight, whole[norm].weight[kept])


def test_layers_that_keep_all_their_filters_need_no_batch_norm(tmp_path):
    """The second convolution has none."""
    with pytest.raises(UsageError, match="no batch norm is known to scale the filters of 3"):
        squeeze(tmp_path / "refused", criterion="batch-norm")
    result = squeeze(tmp_path / "run", criterion="batch-norm", ignore=["3"], epochs=(1, 1, 1))
    assert [len(result.network[place].weight) for place in (0, 3)] == [12, 16]
    without = network()
    without[1] = nn.BatchNorm2d(16, affine=False)
    with pytest.raises(UsageError, match="no batch norm is known to scale the filters of 0"):
        squeeze(tmp_path / "refused too", model=without, criterion="batch-norm", ignore=["3"])


class Fickle(nn.Module):
    """Few steps go through ``b``, and training alone through ``aux``."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.aux = nn.Conv2d(16, 12, 3, 2), nn.Linear(16, 10)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.a(x).relu()
        if not self.training or random.random() < 0.1:
            x = x + self.b(x).relu()
        logits = self.head(self.c(x).relu().mean((2, 3)))
        return logits + 0.3 * self.aux(x.mean((2, 3))) if self.training else logits


def test_what_only_some_steps_go_through_is_trained_and_what_reads_it_keeps_its_inputs(tmp_path):
    torch.manual_seed(0)
    model, found = Fickle(), []
    for seed in (1, 2):
        random.seed(seed)  # of the caller's; a training has its own
        found.append(squeeze(tmp_path / str(seed), model=model).network)
    first, second = (one.state_dict() for one in found)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [len(first[f"{name}.weight"]) for name in "abc"] == [16, 16, 9]


def captured(weight):
    def loss(logits, images, labels):
        return weight * F.cross_entropy(logits, labels)
    return loss


@pytest.mark.parametrize(("arguments", "says"), [
    ({"loss": "none"}, "unknown loss 'none'; choose one of: kl"),
    ({"loss": lambda *three: 0}, "a named function"),
    ({"loss": nn.CrossEntropyLoss()}, "a named function"),
    ({"objective": captured(2)}, "without values from around it"),
    ({"objective": F.cross_entropy}, "objective does not work"),
    ({"loss": WithLabels(alpha=torch.tensor([0.1]).numpy().mean())}, "alpha as a numpy.float32"),
    ({"loss": WithLabels(weights=Shares((1, 2, 3)))}, "there are 2 teachers, but weights of 3"),
    ({"criterion": "taste"}, "unknown criterion 'taste'"), ({"on_epoch": 3}, "on_epoch"),
    ({"val_fraction": 1.0}, "val_fraction 1.0"),
    ({"method": "weight", "sparsities": 0.9, "rounds": None}, "sparsities are shares, one a round"),
    ({"ignore": 5}, "ignore takes names of layers, not 5"),
    ({"recipe": recipes.recipe("resnet20", "digits", "filter"), "compare": True},
     "a whole recipe says itself .*: leave rounds and compare out"),
    ({"recipe": 3}, "recipe is a str or a Recipe, not 3"), ({"rounds": 1001}, "at most 1000"),
    ({"rounds": 3, "method": "weight", "sparsities": (0.5, 0.6)}, "2 sparsities, one a round"),
    ({"seeds": (10**19,)}, "seeds are whole numbers from 0 to"),
    ({"trained": True, "accuracy": 0.93}, "accuracy is in percent"),
    ({"accuracy": 95.0}, "accuracy is that of a network .*say trained=True"),
    ({"folder": "a\nb"}, "control character")])
def test_what_will_not_do_is_said_before_any_training(arguments, says, tmp_path):
    with pytest.raises(UsageError, match=says) as refused:
        squeeze(**({"folder": tmp_path / "run"} | arguments))
    assert "\n" not in str(refused.value) and not (tmp_path / "run" / "seed0").exists()


@pytest.mark.parametrize("name", ["flip", "val_fraction", "test"])
def test_what_a_data_set_says_itself_is_not_said_again(name, tmp_path):
    with pytest.raises(UsageError, match=f"a kesi.data.Dataset has its .*leave {name} out"):
        kesi.compress(network(), load("digits"), folder=tmp_path / "run", **{name: 0.5})


def test_what_was_begun_with_one_network_does_not_continue_with_another_of_its_weights(tmp_path):
    squeeze(tmp_path / "run")
    other = network()
    other[2] = nn.GELU()
    with pytest.raises(UsageError, match="holds a run with another network's code"):
        squeeze(tmp_path / "run", model=other)


def test_an_exception_in_on_epoch_ends_a_run_that_the_same_call_continues(tmp_path):
    def stop(row):
        if row.epoch == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        squeeze(tmp_path / "run", on_epoch=stop)
    rows = []
    squeeze(tmp_path / "run", on_epoch=rows.append)
    whole = squeeze(tmp_path / "whole")
    assert [row.epoch for row in rows] == [3, 1, 2, 1, 2]
    assert torch.equal(kesi.load_model(tmp_path / "run/seed0/kesi")[3].weight,
                       whole.network[3].weight)


class Stopped(Exception):
    pass


def test_epochs_fit_the_number_of_images_where_nobody_says_them(tmp_path, capsys):
    def stop(row):
        raise Stopped

    def recorded(folder, **arguments):
        with pytest.raises(Stopped):
            squeeze(folder, on_epoch=stop, **arguments)
        said = read_run(folder / "run.json")
        return [one["epochs"] for one in said.recipe["trainings"].values()], said.fitted_to

    assert recorded(tmp_path / "fitted", epochs=None) == ([3000, 400, 400], 300)
    assert "epochs: 3,000 + 1 x 400 + 400, made to fit 300" in capsys.readouterr().out
    assert recorded(tmp_path / "said") == ([3, 2, 2], None)


GREY = """
import kesi
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

kesi.register("grey", lambda: nn.Sequential(
    nn.Conv2d(1, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2),
    nn.ReLU(), nn.Flatten(), nn.Linear(16 * 3 * 5, 3)), image_size=(16, 24), channels=1)
"""


@pytest.mark.slow
def test_grey_photographs_that_are_no_squares(tmp_path):
    photos = write_imagefolder(tmp_path / "photos")
    (tmp_path / "grey.py").write_text(GREY)
    known = ("kesi", "--with", tmp_path / "grey.py")
    images = ("--dataset", "imagefolder", "--data", photos, "--image-size", "16x24", "--epochs",
              1, 1, 1, "--rounds", 1, "--device", "cpu")
    run = (*known, "run", "--arch", "grey", *images, "--channels", 1, "--macs", 0.5)
    assert "(3 classes, 16x24 px)" in works(*run, "--dry-run")
    works(*run, "--save", tmp_path / "run")
    said = read_run(tmp_path / "run" / "run.json").data
    assert len(said["mean"]) == len(said["std"]) == 1 and said["image_size"] == [16, 24]
    works(*known, "verify", tmp_path / "run", "--data", photos)
    before, last = (tmp_path / "run" / "seed0" / name for name in ("baseline", "kesi"))
    made = read_result(last / "result.json")
    assert made.image_size == [16, 24]
    # 7 x 11 positions of a 3 x 3 window, then 3 x 5, and the last layer
    first, second = made.cfg
    assert made.macs == 7 * 11 * 9 * first + 3 * 5 * 9 * first * second + 3 * 15 * second
    photo = next((photos / "test").glob("*/*.png"))
    assert works(*known, "predict", last, photo).count("%") == 3
    assert "float32 (batch, 1, 16, 24), grey scaled to 0..1" in works(
        *known, "export", last, "--out", tmp_path / "out", "--no-latency")
    works(*known, "compare", before, last, "--no-latency")
    works(*known, "publish", tmp_path / "run", "--out", tmp_path / "published")
    works(*known, "verify", tmp_path / "published", "--data", photos)
    works(*known, "report", tmp_path / "run", "--html")
    for arch, channels, takes in (("grey", 3, 1), ("resnet20", 1, 3)):
        done = script(*known, "run", "--arch", arch, *images, "--channels", channels, "--save",
                      tmp_path / arch)
        assert done.code == 2 and "Traceback" not in done.err
        assert f"error: {arch} takes images of {takes} channel(s), but imagefolder has " in done.err


def test_arrays_of_one_channel_and_of_no_square(tmp_path):
    digits = load("digits")
    train, test = ((part.images[..., :1], part.labels) for part in (digits.train, digits.test))
    one = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
                        nn.Flatten(), nn.Linear(72, 10))
    result = kesi.compress(one, train, test, rounds=1, epochs=(1, 1, 1), batch_size=100, mean=0.5,
                           std=[0.25], folder=tmp_path / "run", options=CPU)
    assert result.network(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert read_run(tmp_path / "run" / "run.json").data["mean"] == [0.5]
    (train, labels), (test, others) = train, test
    four = [torch.cat([part] * 4, 3).permute(0, 3, 1, 2) for part in (train, test)]
    more = nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 10))
    batches = DataLoader(TensorDataset(four[0], labels), batch_size=64)
    of_four = kesi.compress(more, batches, TensorDataset(four[1], others), rounds=1,
                            epochs=(1, 1, 1), batch_size=100, folder=tmp_path / "four",
                            options=CPU)
    assert of_four.network(torch.zeros(2, 4, 16, 16)).shape == (2, 10)
    one[-1] = nn.Linear(8 * 2 * 3, 10)
    flat = kesi.compress(one, (train[:, 2:14], labels), (test[:, 2:14], others), rounds=1,
                         epochs=(1, 1, 1), batch_size=100, folder=tmp_path / "flat", options=CPU)
    assert flat.network(torch.zeros(2, 1, 12, 16)).shape == (2, 10)
    assert kesi.load_model(flat.checkpoint).cfg == flat.network.cfg


def test_images_of_ones_own_take_the_recipe_that_is_for_as_many(tmp_path, capsys):
    """With a flag, the argument, or images or data that it is not for: the paper's, in silence."""
    for number, split in ((500, "train"), (1, "test")):
        for name in "ab":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for one in range(number):
                (tmp_path / "images" / split / name / f"{one}.png").touch()
    words = ("--arch", "resnet20", "--dry-run", "--device", "cpu", "--epochs", 2, 1, 1)
    said = works("kesi", "run", "--dataset", "imagefolder", "--data", tmp_path / "images", *words,
                 "--method", "both")
    assert said.count("recipe: kesi2, ") == 1 and "these are 1,000 (docs" in said
    compress = ("kesi", "compress", tmp_path / "images", *words)
    assert "recipe: kesi2, " in works(*compress)
    for more in (("--recipe", "paper"), ("--photos", "--image-size", 32)):
        assert "recipe:" not in works(*compress, *more)
    images, labels = torch.zeros(1000, 3, 16, 16, dtype=torch.uint8), torch.arange(1000) % 10
    for number, named, decay in ((1000, {}, 1e-3), (999, {}, 1e-4),
                                 (1000, {"recipe": "paper"}, 1e-4)):
        folder = tmp_path / f"{number}{len(named)}"
        kesi.compress(network(), (images[:number], labels[:number]), (images[:20], labels[:20]),
                      rounds=1, epochs=(1, 1, 1), batch_size=500, folder=folder, options=CPU,
                      **named)
        found = read_run(folder / "run.json").recipe["trainings"]["baseline"]["weight_decay"]
        assert (found, "recipe: kesi2, " in capsys.readouterr().out) == (decay, decay == 1e-3)
    assert [recipes.suited("imagefolder", "cifar", number) for number in (0, 19_999, 20_000)] == [
        "paper", "kesi2", "kesi2-many"]
    assert recipes.suited("cifar10", "cifar", 50_000) == "paper"


def test_a_whole_recipe_is_taken_as_it_is(tmp_path):
    """Of a network, and of a function that builds one; the same call continues."""
    images = load("digits").train
    kesi.register("own", network, 10, 16)
    whole = recipes.recipe("own", "arrays", "filter").changed(epochs=(1, 1, 1), batch_size=100,
                                                              rounds=1)
    for name, model in {"network": network(), "function": network}.items():
        for _ in range(2):
            made = kesi.compress(model, (images.images, images.labels), shown(), name="own",
                                 recipe=whole, folder=tmp_path / name, options=CPU)
        assert (tmp_path / name / START).is_file() == (name == "network")
        assert read_run(made.folder / "run.json").recipe == whole.describe()
    with pytest.raises(UsageError, match="CrossEntropy reads labels, and mixed images have none"):
        kesi.compress(network(), (images.images, images.labels), shown(), name="own",
                      recipe=whole.trained(retraining={"mixup": True}), folder=tmp_path / "mixed",
                      options=CPU)
    assert not (tmp_path / "mixed" / "seed0").exists()
    other = network()  # the call that was refused leaves nothing from which this one would start
    torch.nn.init.normal_(other[0].weight)
    kesi.compress(other, (images.images, images.labels), shown(), name="own", recipe=whole,
                  folder=tmp_path / "mixed", options=CPU)
    start = checkpoints.load(tmp_path / "mixed" / START).network
    assert torch.equal(start[0].weight, other[0].weight)


@pytest.mark.parametrize("make", [lambda share: StochasticDepth(share, "row"),
                                  lambda share: nn.MultiheadAttention(16, int(16 * share)),
                                  lambda share: nn.TransformerEncoderLayer(
                                      16, 2, activation="relu" if share < 1 else "gelu")])
def test_numbers_of_others_modules_tell_networks_apart(make):
    codes = []
    for share in (0.5, 1.0):
        def build(share=share):
            made = network()
            made[3].extra = make(share)
            return made

        kesi.register("own", build, 10, 16)
        codes.append(models.ARCHITECTURES["own"].code)
    assert codes[0] != codes[1]


def test_a_variant_of_a_study_is_of_the_code_of_its_network():
    def described(name):
        return Variant(recipes.recipe(name, "digits", "filter")).describe()

    kesi.register("own", network, 10, 16)
    before = described("own")
    kesi.register("own", lambda: nn.Sequential(*network(), nn.Identity()), 10, 16)
    assert described("own") != before and "network's code" not in described("resnet20")


def test_a_recipe_by_name_is_the_papers_but_for_what_it_differs_in(tmp_path, monkeypatch):
    """As a flag, and in compress(); its numbers are said where evidence stands (docs/beyond.md)."""
    fails("kesi", "run", "--recipe", "none", code=2, says="unknown recipe 'none'; choose one of")
    works("kesi", "run", "--arch", "resnet20", "--dataset", "digits", "--recipe", "kesi2",
          "--rounds", 1, "--epochs", 1, 1, 1, "--device", "cpu", "--save", tmp_path / "run",
          "--no-report")
    squeeze(tmp_path / "own", recipe="kesi2", lr=None, batch_size=None)
    made = recipes.named("kesi2-many", recipes.recipe("resnet20", "digits", "filter")).describe()
    kept = recipes.recipe("resnet20", "digits", "filter").describe()
    for name, share in (("paper", 0.0), ("kesi2", 0.1)):  # labels are a matter of the recipe
        one = recipes.named(name, recipes.recipe("resnet20", "digits", "filter"))
        assert one.changed(loss="dist").loss == Dist(alpha=share)
    many = recipes.named("kesi2-many", recipes.recipe("resnet20", "digits", "filter"))
    assert many.changed(loss="labels") == many  # which it has
    sure = replace(many, loss=replace(many.loss, weights=ByConfidence()))
    assert sure.changed(loss="dist").loss == Dist(alpha=0.8, weights=ByConfidence())
    monkeypatch.setitem(LOSSES, "focal", lambda alpha=0.25: {"alpha": alpha})
    assert one.changed(loss="focal").loss == {"alpha": 0.25}  # which is another thing
    assert (made["loss"]["alpha"], made["loss"]["temperature"]) == (0.8, 2.0)
    assert made["trainings"]["kesi"]["optimizer"] == "sgd"
    assert (recipes.name_of(made), recipes.name_of(kept)) == ("kesi2-many", "paper")
    monkeypatch.setitem(recipes.RECIPES, "theirs", lambda paper: paper.changed(loss="dist"))
    theirs = recipes.named("theirs", recipes.recipe("resnet20", "digits", "filter")).describe()
    assert [recipes.name_of(one) for one in (theirs, made, kept)] == [
        "theirs", "kesi2-many", "paper"]
    del made["loss"], kept["loss"], made["trainings"]["kesi"], kept["trainings"]["kesi"]
    assert made == kept
    made = recipes.named("kesi2", recipes.recipe("resnet56", "cifar10", "filter"))
    # what the method is compared with stays
    assert {kind: training.batch_size for kind, training in made.trainings.items()} == {
        "baseline": 64, "onecycle": 64, "usual": 128, "kesi": 64}
    paper = recipes.recipe("resnet20", "digits", "filter").describe()["trainings"]
    for folder in ("run", "own"):
        recipe = read_run(tmp_path / folder / "run.json").recipe
        assert recipes.name_of(recipe) == "kesi2"
        assert recipes.name_of({**recipe, "arch": "gone"}) == "kesi2"
        changed = {**recipe["trainings"]["kesi"], "optimizer": "adam"}
        other = {**recipe, "trainings": {**recipe["trainings"], "kesi": changed}}
        assert recipes.name_of(other) is recipes.name_of({**recipe, "family": "none"}) is None
        assert recipe["loss"] == {"name": "WithLabels", **recipe["loss"], "alpha": 0.1}
        for kind, differs in (("baseline", {}), ("onecycle", {}),
                              ("kesi", {"optimizer": "sgd", "lr": 0.1})):
            wanted = paper[kind] | {"weight_decay": 1e-3} | differs
            found = recipe["trainings"][kind]
            for name in ("weight_decay", "optimizer", "lr", "momentum", "schedule"):
                assert found[name] == wanted[name], (folder, kind, name)
