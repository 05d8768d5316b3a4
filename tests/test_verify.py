"""kesi verify: a finished run holds, and every kind of change to it is found and named."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from doors import fails, script, works
from kesi import checkpoints
from kesi.data.split import digest_of
from kesi.method.training import evaluate
from kesi.report.verify import Verifier, images_of, verify
from kesi.system.errors import KesiError

pytest_plugins = ["tinyrun"]


@pytest.fixture
def copy(weight_run, tmp_path):
    """A copy of a run that a test may spoil."""
    return shutil.copytree(weight_run, tmp_path / weight_run.name)


@pytest.fixture(scope="module")
def images(weight_run):
    """What the run was tested on."""
    return images_of(weight_run, "data")


def test_a_finished_run_holds_and_its_accuracies_come_out_again(weight_run):
    out = works("kesi", "verify", weight_run)
    assert out.count("\n") == 1 and "checks hold" in out and "not recomputed" not in out


def test_files_alone_can_be_checked_without_images(filter_run):
    out = works("kesi", "verify", filter_run, "--no-accuracy", "--data", "nowhere")
    assert "(accuracies were not recomputed)" in out
    assert verify(filter_run, None).checks > 100


def resave(path, change):
    """Change a checkpoint the way somebody who knows its digest would."""
    content = torch.load(path, weights_only=True)
    change(content)
    content.pop("digest")
    return checkpoints.write(path, content)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def bits(run):
    path = run / "seed0" / "usual-1" / "checkpoint.pth.tar"
    content = bytearray(path.read_bytes())
    content[-4000:-3000] = b"\0" * 1000
    path.write_bytes(bytes(content))


def other_weights(run):
    path = run / "seed0" / "onecycle-1" / "checkpoint.pth.tar"
    digest = resave(path, lambda content: content["state_dict"]["fc.bias"].mul_(-50).add_(9))
    edit(path.with_name("result.json"), digest=digest)


def broken_mask(run):
    path = run / "seed0" / "kesi" / "checkpoint.pth.tar"

    def change(content):
        name, mask = next(iter(content["masks"].items()))
        content["state_dict"][name][tuple((~mask).nonzero()[0])] = 1e-3

    edit(path.with_name("result.json"), digest=resave(path, change))


def revived(run):
    path = run / "seed0" / "kesi" / "checkpoint.pth.tar"

    def change(content):
        name, mask = next(iter(content["masks"].items()))
        mask[tuple((~mask).nonzero()[0])] = True

    edit(path.with_name("result.json"), digest=resave(path, change))


def other_epoch(run):
    path = run / "seed0/baseline/metrics.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps(json.loads(first) | {"train_loss": 0.5}) + "\n" + rest)


def other_recipe(run):
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    recipe["trainings"]["onecycle"]["lr"] = 7.0
    edit(run / "run.json", recipe=recipe)


def other_criterion(run):
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    edit(run / "run.json", recipe=recipe | {"criterion": {"name": "random", "code": "0"}})


def without_usual(run):
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    del recipe["trainings"]["usual"]
    edit(run / "run.json", recipe=recipe)


def other_images(run):
    path = run / "seed0/kesi/checkpoint.pth.tar"
    digest = resave(path, lambda content: content["info"]["data"].update(mean=[0.1, 0.2, 0.3]))
    edit(path.with_name("result.json"), digest=digest)


def fewer_members(run):
    path = run / "seed0/ensemble/result.json"
    result = json.loads(path.read_text())
    fields = {name: result[name][:-1]
              for name in ("members", "members_digests", "accuracy", "growing_accuracy")}
    edit(path, **fields, disagreement=[row[:-1] for row in result["disagreement"][:-1]])


def other_temperature(run):
    path = run / "seed0/kesi/checkpoint.pth.tar"
    settings = json.loads(path.with_name("result.json").read_text())["settings"]
    settings["objective"]["loss"]["temperature"] = 1.0
    digest = resave(path, lambda content: content["info"].update(settings=settings))
    edit(path.with_name("result.json"), digest=digest, settings=settings)


def no_parents(run):
    path = run / "seed0/kesi/checkpoint.pth.tar"
    digest = resave(path, lambda content: content["info"].update(parent=None, teachers=[]))
    edit(path.with_name("result.json"), digest=digest, parent=None, teachers=[])


def own_parent(run):
    path = run / "seed0/kesi/checkpoint.pth.tar"
    parent = {"path": path.name, "stage": "kesi", "network": checkpoints.load(path).digest}
    resave(path, lambda content: content["info"].update(parent=parent))


def circle(run):
    here = run / "seed0/onecycle-1/checkpoint.pth.tar"
    parent = {"path": "../onecycle-1/checkpoint.pth.tar", "stage": "onecycle-1",
              "network": checkpoints.load(here).digest}
    resave(run / "seed0/baseline/checkpoint.pth.tar",
           lambda content: content["info"].update(parent=parent))


def other_amount(run):
    resave(run / "seed0/onecycle-1/pruned.pth.tar",
           lambda content: content["info"].update(amount=0.5))


def other_report(run):
    digest, table = (json.loads((run / "seed0/kesi/result.json").read_text())["digest"],
                     run / "report/stages.csv")
    table.write_text(table.read_text().replace(digest, "f" * 64))


FILES = [
    (bits, "seed0/usual-1: ", "damaged"),
    (lambda run: edit(run / "seed0/kesi/result.json", test_accuracy=99.9), "seed0/kesi: ", "99.9"),
    (lambda run: edit(run / "seed0/kesi/result.json", digest="0" * 64), "seed0/kesi: ",
     "digest is 000"),
    (lambda run: edit(run / "seed0/kesi/result.json", macs=17), "seed0/kesi: ", "macs is 17"),
    (lambda run: edit(run / "seed0/kesi/result.json", epochs=99), "seed0/kesi: ", "epochs is 99"),
    (lambda run: edit(run / "seed0/kesi/result.json", test_loss=0.5), "seed0/kesi: ",
     "test loss is 0.5"), (lambda run: edit(run / "seed0/kesi/result.json", command="other"),
                           "seed0/kesi: ", "command is other"),
    (lambda run: edit(run / "seed0/kesi/result.json", seconds=1), "seed0/kesi: ", "seconds is 1"),
    (lambda run: edit(run / "seed0/kesi/result.json", images=1), "seed0/kesi: ", "images is 1"),
    (lambda run: edit(run / "seed0/kesi/result.json", settings={}), "seed0/kesi: ",
     "settings is {}"), (lambda run: edit(run / "seed0/kesi/result.json", test_accuracy="99"),
                         "seed0/kesi: ", "test_accuracy is '99'"),
    (lambda run: edit(run / "run.json", recipe={}), "", "its recipe is none"),
    (lambda run: edit(run / "run.json", recipe=None), "", "its recipe is None"),
    (lambda run: edit(run / "run.json", data={}), "run.json: ", "does not say data"),
    (lambda run: edit(run / "run.json", method="filter"), "run.json: ", "method is filter"),
    (lambda run: edit(run / "run.json", pretrained="x"), "seed0/baseline: ",
     "what it began from is None"),
    (lambda run: edit(run / "run.json", baseline="x"), "seed0/baseline: ", "taken over is False"),
    (without_usual, "seed0/usual-1: ", "does not speak of this stage"),
    (without_usual, "seed0/ensemble-usual: ", "does not speak of this stage"),
    (other_images, "seed0/kesi: ", "its images is {"),
    (other_criterion, "seed0/onecycle-1/pruned.pth.tar: ", "criterion is {'name': 'magnitude'"),
    (fewer_members, "seed0/ensemble: ", "the number of members is 2"),
    (other_temperature, "seed0/kesi: ", "the loss is {"),
    (no_parents, "seed0/kesi: ", "made from None, and not from"),
    (no_parents, "seed0/kesi: ", "the number of teachers is 0"),
    (own_parent, "seed0/kesi: ", "descends from itself"),
    (circle, "seed0/onecycle-2: ", "descends from itself"),
    (other_amount, "seed0/onecycle-1/pruned.pth.tar: ", "amount is 0.5"),
    (lambda run: edit(run / "run.json", recipe_hash="0"), "run.json: ", "recipe hash is 0"),
    (other_epoch, "seed0/baseline: ", "metrics.jsonl does not hold the epochs"),
    (other_recipe, "seed0/onecycle-1: ", "the recipe is {"), (lambda run: edit(
        run / "seed0/kesi/result.json", parent=None), "seed0/kesi: ", "parent is None"),
    (lambda run: edit(run / "seed0/kesi/result.json", recipe_hash="x"), "seed0/kesi: ",
     "recipe hash is x"), (lambda run: (run / "seed0/usual-2/result.json").write_text("{"),
                           "seed0/usual-2: ", "not valid JSON"),
    (lambda run: shutil.rmtree(run / "seed0/usual-2"), "seed0/usual-2: ", "is not finished"),
    (lambda run: edit(run / "run.json", seeds=[0, 1]), "seed1/kesi: ", "is not finished"),
    (other_weights, "seed0/onecycle-2: ", "is not the file that it was made from"),
    (other_weights, "seed0/ensemble: ", "its member onecycle-1 has changed"),
    (other_weights, "seed0/kesi: ", "its teacher"),
    (broken_mask, "seed0/kesi: ", "pruned weights are not zero in conv1.weight"),
    (revived, "seed0/kesi: ", "live again in conv1.weight"),
    (other_report, "report, seed0/kesi: ", "digest"),
]
ACCURACIES = [
    (lambda run: edit(run / "seed0/usual-1/result.json", pruned_accuracy=0.0), "usual-1",
     "before retraining is 0.000"),
    (lambda run: edit(run / "seed0/ensemble/result.json", accuracy=[1, 2, 3]), "ensemble",
     "accuracy is 1.000 %"),
    (lambda run: edit(run / "seed0/ensemble/result.json", disagreement=[[1] * 3] * 3), "ensemble",
     "agreement is 1.0"), (lambda run: edit(run / "seed0/ensemble/result.json", test_loss=1e-3),
                           "ensemble", "test loss is 0.001"),
    (other_weights, "onecycle-1", "the test accuracy is"),
]


@pytest.mark.parametrize(("spoil", "where", "says"), FILES)
def test_a_changed_file_is_found_and_named(copy, spoil, where, says):
    spoil(copy)
    try:
        failures = verify(copy, None).failures
    except KesiError as error:  # there is nothing to check by
        failures = [str(error)]
    assert any(line.startswith(where) and says in line for line in failures), failures
    assert all("\n" not in line for line in failures)


@pytest.mark.parametrize(("spoil", "stage", "says"), ACCURACIES)
def test_an_accuracy_that_does_not_come_out_again_is_named(copy, images, spoil, stage, says):
    spoil(copy)
    verifier = Verifier(copy, images)
    verifier.seed(0, [stage])
    assert any(says in line and "recomputed" in line
               for line in verifier.failures), verifier.failures


def test_the_command_prints_a_line_a_failure_and_ends_with_1(copy):
    edit(copy / "seed0/kesi/result.json", params=1)
    outcome = script("kesi", "verify", copy, "--no-accuracy")
    assert (outcome.code == 1 and outcome.out.startswith("FAILED seed0/kesi: params is 1 in the "
                                                         "result, but 269722\n"))
    assert outcome.out.count("\n") == 2 and "FAILED report, seed0/kesi: params" in outcome.out
    assert (outcome.err.startswith("error: ") and "checks of" in outcome.err
            and outcome.err.count("\n") == 1)
    fails("kesi", "verify", copy.parent, code=2, says="is not a run folder")
    edit(copy / "run.json", data={"name": "digits", "classes": ["a"]})
    fails("kesi", "verify", copy, code=1, says="the classes of digits are not those of")


@pytest.mark.parametrize(("device", "images_off", "holds"),
                         [("elsewhere", 1, True), ("elsewhere", 3, False), (None, 1, False)])
def test_elsewhere_accuracies_may_differ_by_a_little(copy, images, device, images_off, holds):
    path = copy / "seed0/kesi/result.json"
    result = json.loads(path.read_text())
    result["test_accuracy"] += images_off * 100 / len(images.test)
    edit(path, test_accuracy=result["test_accuracy"], device=device or result["device"])
    verifier = Verifier(copy, images)
    verifier.seed(0, ["kesi"])
    assert not any("recomputed" in line for line in verifier.failures) == holds


@pytest.mark.parametrize(("images_off", "holds"), [(2, True), (3, False)])
def test_of_held_out_images_two_may_differ_too(copy, images, images_off, holds):
    held_out = replace(images, val=images.test.spread(100))
    _, found = evaluate(checkpoints.load_model(copy / "seed0/kesi"), held_out, held_out.val, "cpu")
    edit(copy / "seed0/kesi/result.json", device="elsewhere", val_accuracy=abs(found - images_off))
    verifier = Verifier(copy, images)
    verifier.dataset = held_out  # whose digests run.json does not know
    verifier.seed(0, ["kesi"])
    assert any("validation" in line for line in verifier.failures) != holds, verifier.failures


@pytest.mark.parametrize("name, old, new", [
    ("table.md", "| weight pruning + KESI | ", "| weight pruning + KESI | 9"),
    ("table.md", "- seeds: 0", "- seeds: 0, 1"),
    ("table.md", "## Weight pruning round", "| best | 99.9 |\n\n## Weight pruning round"),
    ("table.csv", "weight pruning + KESI,", "weight pruning + KESI,9"),
    ("stages.csv", ",kesi,", ",kesi ,")])
def test_a_table_that_shows_something_else_is_found(copy, name, old, new):
    path = copy / "report" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    found = verify(copy, None)
    assert any(failure.startswith((f"report/{name}", "report, "))
               for failure in found.failures), found.failures


def test_a_seed_of_which_the_run_does_not_know_is_found(copy):
    shutil.copytree(copy / "seed0", copy / "seed9")
    assert any("folders of [0, 9]" in failure for failure in verify(copy, None).failures)


def test_another_device_is_one_line(weight_run):
    fails("kesi", "verify", weight_run, "--no-accuracy", "--device", "toaster", code=2,
          says="--device toaster")


def test_images_that_no_name_leads_to_are_told_from_wrong_ones(copy):
    data = json.loads((copy / "run.json").read_text())["data"]
    edit(copy / "run.json", data=data | {"name": "images"})
    fails("kesi", "verify", copy, code=2,
          says="were handed over in Python ('images'), or by a file for --with")
    said = json.loads((copy / "run.json").read_text())
    edit(copy / "run.json", arch="mine", recipe=said["recipe"] | {"arch": "mine"})
    fails("kesi", "verify", copy, "--no-accuracy", code=2, says="kesi --with MODULE COMMAND")


def test_images_with_other_digests_are_refused(copy, images, monkeypatch):
    data = images.describe() | {"digests": {"test": "a" * 64}}
    edit(copy / "run.json", data=data)
    monkeypatch.setattr(type(images), "describe",
                        lambda self: data | {"digests": {"test": "b" * 64}})
    with pytest.raises(KesiError, match="the digests of digits are not those of"):
        verify(copy, images)


def test_pixels_that_are_not_those_of_their_digest_are_refused(copy, images):
    """A large cache is believed what stands beside it, but not here."""
    test = images.test
    other = replace(test, images=255 - test.images, pixels=digest_of(test.images))
    assert other.digest == test.digest
    with pytest.raises(KesiError, match="the digests of digits are not those of"):
        verify(copy, replace(images, test=other))


def test_what_lies_beside_the_stages_is_nobodys_claim(copy):
    for name in ("mine", "mine-3", "by-hand"):
        shutil.copytree(copy / "seed0/usual-1", copy / "seed0" / name)
    assert not [line for line in verify(copy, None).failures if "does not speak" in line]
