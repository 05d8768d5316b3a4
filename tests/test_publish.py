"""kesi publish: what others get of finished runs says nothing of the machine, loads, and holds."""

import json
import re
import shutil

import pytest
import torch

import kesi
from doors import ROOT, fails, script, works
from kesi import checkpoints
from kesi.report import published
from kesi.report.report import report
from kesi.report.verify import figures_only, publication
from kesi.runs.record import history_digest, read_epochs
from kesi.runs.results import load_runs
from kesi.tools.formats import load_with_metadata
from kesi.tools.handover.card import with_seeds
from tinyrun import same_command

pytest_plugins = ["tinyrun"]
pytest.importorskip("safetensors")

RESULTS = sorted(path.parent for path in (ROOT / "results").glob(f"*/{published.PUBLISHED}"))


@pytest.fixture(scope="module")
def shared(filter_run, weight_run, tmp_path_factory):
    """Both tiny runs, published."""
    out = tmp_path_factory.mktemp("published") / "digits"
    works("kesi", "publish", filter_run, weight_run, "--out", out)
    return out


@pytest.fixture
def copy(shared, tmp_path):
    """A published folder that a test may spoil."""
    return shutil.copytree(shared, tmp_path / "copy")


def test_it_holds_and_its_networks_are_those_of_the_runs(shared, filter_run, weight_run):
    out = works("kesi", "verify", shared)
    assert "checks hold (6 of 12 networks are not published" in out
    for run in (filter_run, weight_run):
        method = run.name.removeprefix("tinyrun-")
        for stage in ("baseline", "onecycle-2", "kesi"):
            network = kesi.from_pretrained(shared / method / "seed0" / stage)
            original = checkpoints.load(run / "seed0" / stage).network
            assert all(torch.equal(value, network.state_dict()[name])
                       for name, value in original.state_dict().items())


def test_nothing_says_where_files_lay(shared, filter_run):
    texts = [path.read_text() for path in shared.rglob("*")
             if path.suffix in (".json", ".md", ".csv", ".html", ".jsonl")]
    assert len(texts) > 30 and not any(str(filter_run.parent) in text for text in texts)
    assert "--save tinyrun-filter" in (shared / "table.md").read_text()
    beside, away = "../../../filter/seed0/kesi/a", "../../../../home/a"  # of a parent
    assert published.without_places({"is": [beside, away]}) == {"is": [beside, "a"]}


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def other_network(folder):
    here = folder / "filter" / "seed0"
    shutil.copy(here / "onecycle-2" / "model.safetensors", here / "kesi")


def fewer_epochs(folder):
    path = folder / "filter" / "seed0" / "usual-1" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 2'))


def better_members(folder):
    path = folder / "weight" / "seed0" / "ensemble" / "result.json"
    first, *rest = json.loads(path.read_text())["accuracy"]
    edit(path, accuracy=[first + 0.3, *rest])  # more images than rounding moves


def other_members(folder):
    path = folder / "weight" / "seed0" / "ensemble" / "result.json"
    edit(path, members_digests=json.loads(path.read_text())["members_digests"][::-1])


def a_stage_as_an_ensemble(folder):
    here = folder / "weight" / "seed0"
    shutil.copy(here / "ensemble" / "result.json", here / "onecycle-2")


def kept(folder, name, **said):
    """Another line of a result, which also the tables show."""
    edit(folder / name / "result.json", **said)
    report([folder / "filter", folder / "weight"], folder)


def another(what, value, file="model.safetensors"):
    """A network whose file says something else of itself."""
    def change(folder):
        path = folder / "filter" / "seed0" / "kesi" / file
        if path.suffix == ".json":
            edit(path, **{what: value})
            return
        from safetensors import safe_open
        from safetensors.torch import save_file
        with safe_open(path, "pt") as opened:
            said, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in
                                                opened.keys()}  # noqa: SIM118
        save_file(tensors, path, said | {what: json.dumps(value)})
    return change


def lost(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()
    return change


@pytest.mark.parametrize(("change", "trouble"), [
    *[(lost(f"filter/seed0/kesi/{name}"), f"filter/seed0/kesi: of its network {name} is missing")
      for name in ("model.safetensors", "config.json", "README.md")],
    (lambda folder: shutil.copytree(folder / "filter" / "seed0" / "kesi",
                                    folder / "filter" / "seed0" / "better"),
     "filter/seed0/better: a network, but of no finished stage"),
    (lost("report.html"), "report.html: it is missing"),
    (lost("accuracy.png"), "accuracy.png: it is missing"),
    (lambda folder: edit(folder / "filter" / "run.json", seeds=[]),
     "filter/run.json: it does not speak of seed 0"),
    *[(another(what, value), f"filter/seed0/kesi: model.safetensors says {what} ")
      for what, value in (("mean", [0.5] * 3), ("std", None), ("classes", list("abcdefghij")),
                          ("image_size", 32), ("accuracy", {"percent": 99.9}), ("accuracy", 9))],
    (another("mean", [0.5] * 3, "config.json"),
     "filter/seed0/kesi: config.json and model.safetensors differ in mean"),
    *[(lambda folder, said=said: kept(folder, "weight/seed0/kesi", **said),
       f"weight/seed0/kesi: {next(iter(said))} is".replace("_", " "))
      for said in ({"nonzero_params": 7}, {"sparsity": 0.99}, {"layers": [["conv1", 9, 1]]},
                   {"empty_layers": ["conv1"]}, {"cfg": [3] * 9}, {"arch": "resnet56"})],
    (lambda folder: edit(folder / "filter" / "seed0" / "kesi" / "result.json", image_size=1),
     "filter/seed0/kesi: macs is"),
    (a_stage_as_an_ensemble, "weight/seed0/onecycle-2: the stage"),
    (lambda folder: edit(folder / "weight" / "seed0" / "ensemble" / "result.json", stage="foo"),
     "weight/seed0/ensemble: the stage"),
    (lambda folder: edit(folder / "published.json", networks={"filter/seed0/kesi": [[1, "a"]]}),
     "filter/seed0/kesi: published.json has no answers of it"),
    (other_network, "filter/seed0/kesi: the digest of its network"),
    (fewer_epochs, "filter/seed0/usual-1: the digest of its epochs"),
    (other_members, "weight/seed0/ensemble: their networks"),
    (better_members, "weight/seed0/ensemble: their accuracy"),
    (lambda folder: edit(folder / "filter" / "seed0" / "kesi" / "result.json", test_accuracy=99.0),
     "filter/seed0/kesi: the test accuracy of the last epoch"),
    (lambda folder: edit(folder / "weight" / "run.json", data={}),
     "weight/seed0/onecycle-1: the images"),
    (lambda folder: shutil.rmtree(folder / "filter" / "seed0" / "usual-2"),
     "filter/seed0/usual-2: cannot read"),
    (lambda folder: (folder / "table.md").write_text("# A better table\n\nof nothing\n"),
     "table.md: it does not show these records")])
def test_what_was_changed_is_named(copy, change, trouble):
    change(copy)
    checks, failures, _ = publication.verify(copy, load_with_metadata)
    assert checks > 50 and any(line.startswith(trouble) for line in failures), failures


def test_an_accuracy_that_does_not_come_out_again(copy):
    here = copy / "filter" / "seed0" / "kesi"
    rows = (here / "metrics.jsonl").read_text().splitlines()
    rows[-1] = json.dumps(json.loads(rows[-1]) | {"test_accuracy": 99.0})
    (here / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    edit(here / "result.json", test_accuracy=99.0,
         history_digest=history_digest(read_epochs(here / "metrics.jsonl")))
    fails("kesi", "verify", copy, code=1, says="checks of")


def test_an_unfinished_run_says_so_and_a_folder_is_never_written_over(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    shutil.rmtree(run / "seed0" / "kesi")
    out = tmp_path / "out"
    done = script("kesi", "publish", run, "--out", out)
    assert done.code == 0 and done.out.splitlines()[-1].startswith("2 networks")
    assert (f"no seed of {run} has finished all of baseline, onecycle-2, kesi: its networks here "
            "are baseline, onecycle-2") in done.err
    assert json.loads((out / "published.json").read_text())["unfinished"] == ["filter/seed0/kesi"]
    works("kesi", "verify", out, "--no-accuracy")
    fails("kesi", "publish", run, "--out", out, code=2, says="is there already")


def test_the_networks_are_those_of_the_first_seed_that_is_finished(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    shutil.move(run / "seed0", run / "seed1")
    edit(run / "run.json", seeds=[0, 1])
    out = works("kesi", "publish", run, "--out", tmp_path / "out")
    assert "3 networks and all records" in out
    assert sorted(json.loads((tmp_path / "out" / "published.json").read_text())["networks"]) == [
        "filter/seed1/baseline", "filter/seed1/kesi", "filter/seed1/onecycle-2"]
    assert kesi.from_pretrained(tmp_path / "out" / "filter" / "seed1" / "kesi").arch == "resnet20"
    again = works("kesi", "publish", tmp_path / "out" / "filter", "--out", tmp_path / "again")
    assert "3 networks" in again


def test_seeds_that_were_run_apart_are_published_as_one_run(shared, filter_run, tmp_path):
    command = [*same_command(filter_run), "--seeds", "1"]
    command[command.index("--save") + 1] = str(tmp_path / "apart")
    works("kesi", "run", *command)
    works("kesi", "publish", shared / "filter", tmp_path / "apart", "--out", tmp_path / "both")

    together = shutil.copytree(filter_run, tmp_path / "together")
    shutil.copytree(tmp_path / "apart" / "seed1", together / "seed1")
    works("kesi", "run", *same_command(together), "--seeds", "0", "1")
    here, there = (figures_only((folder / "table.md").read_text().partition("## Where")[0])
                   for folder in (tmp_path / "both", together / "report"))
    assert here == there and len(here) > 20
    assert "checks hold (9 of 12" in works("kesi", "verify", tmp_path / "both")
    network = "filter/seed0/kesi/model.safetensors"
    assert (tmp_path / "both" / network).read_bytes() == (shared / network).read_bytes()
    card, alone = ((folder / network).with_name("README.md").read_text()
                   for folder in (tmp_path / "both", shared))
    assert "The same with 2 seeds: " in card and with_seeds(card, []) == alone

    assert len(load_runs([filter_run, together])) == 2  # a seed of both

    said = json.loads((tmp_path / "apart" / "run.json").read_text())  # as if the loss had changed
    said["recipe"]["loss"]["code"] = "0" * 12
    edit(tmp_path / "apart" / "run.json", **said)
    kesi_said = tmp_path / "apart" / "seed1" / "kesi" / "result.json"
    settings = json.loads(kesi_said.read_text())["settings"]
    settings["objective"]["loss"]["code"] = "0" * 12
    edit(kesi_said, settings=settings)
    two = ("publish", shared / "filter", tmp_path / "apart", "--out", tmp_path / "changed")
    assert len(load_runs([shared / "filter", tmp_path / "apart"])) == 2
    works("kesi", *two, "--across-code")
    table = (tmp_path / "changed" / "table.md").read_text()
    assert re.search(r"- code: kesi loss [0-9a-f]{12} \(seed 0\), 0{12} \(seed 1\)\n", table)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_the_results_of_this_project_hold(folder):
    """Records, reports, and each network's digest and answers; its images are not part of it."""
    _, failures, _ = publication.verify(folder, load_with_metadata)
    assert not failures


def test_no_place_of_the_machine_is_published():
    said = {"command": "kesi run --data=/home/a/images --out /home/a/runs/x --seeds 0",
            "parent": "/home/a/runs/x"}
    assert published.without_places(said) == {
        "command": "kesi run --data=images --out x --seeds 0", "parent": "x"}
    odd = "kesi run --data /home/a/secret=x/images --save=/home/a=b/runs"
    assert published.without_places({"command": odd}) == {
        "command": "kesi run --data images --save=runs"}
