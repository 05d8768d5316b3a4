"""kesi study: variants share their stages, come out like plain runs, and are compared in pairs."""

import itertools
import json
import os
import shutil
import statistics

import pytest
import torch

from datagen import write_imagefolder
from doors import ROOT, fails, script, table_of, works
from kesi import checkpoints
from kesi.cli import study as cli
from kesi.data import INFO, DatasetInfo, Images, load, register_dataset
from kesi.method import algorithm, plan, recipes
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import KullbackLeibler
from kesi.method.sizes import macs as macs_of
from kesi.method.teachers import Shares
from kesi.method.training import Options, predict
from kesi.runs.clock import Clock, spoken
from kesi.runs.study import Variant, keys_of
from kesi.system.errors import UsageError
from kesi.system.locks import held
from kesi.tools.targets import budget

FILE = '''
from kesi.method.recipes import recipe
from kesi.runs.study import Variant

paper = Variant(recipe("resnet20", "few", "filter").changed(epochs=(2, 1, 2), rounds=2,
                                                               amounts=0.5, batch_size=32))
VARIANTS = {
    "paper": paper,
    "labels": paper.changed(teachers="labels"),
    "nothing after": paper.changed(teachers=None),
    "taught in rounds": paper.changed(rounds_by="snapshots", teachers=None),
    "random": paper.changed(criterion="random", teachers=None),
    "the paper's again": paper.changed(loss="kl", temperature=5.0),
}
'''
# baseline, two of the chain, two last steps; two that are taught; two of random filters
STAGES = 5 + 2 + 2


@pytest.fixture(scope="module", autouse=True)
def few():
    """Digits, but only as many as a test needs."""
    def some(root, storage, download):
        digits = load("digits")
        return Images(digits.train.subset(torch.arange(96)), digits.test.subset(torch.arange(50)),
                      digits.classes)

    register_dataset("few", DatasetInfo(some, 10, 96, 50, 16, flip=False, recipe="digits",
                                        eval_every=0))
    yield
    del INFO["few"]


def tiny(**differences):
    recipe = recipes.recipe("resnet20", "few", "filter")
    return Variant(recipe.changed(epochs=(2, 1, 2), rounds=2, amounts=0.5,
                                  batch_size=32)).changed(**differences)


def words(file, folder, *more):
    return ["kesi", "study", file, "--save", folder, "--device", "cpu", "--threads", 1, *more]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two seeds: its folder, its file and what it said."""
    folder = tmp_path_factory.mktemp("study")
    file = folder / "tiny.py"
    file.write_text(FILE)
    return folder / "runs", file, works(*words(file, folder / "runs", "--seeds", 0, 1))


@pytest.mark.slow
def test_shared_stages_are_run_once(study):
    folder, file, said = study
    for seed in (0, 1):
        found = [path.parent.name for path in (folder / f"seed{seed}").glob("*/result.json")]
        assert len([name for name in found if not name.startswith("ensemble-")]) == STAGES
    rows = table_of(folder)
    assert rows["paper", 0]["stages"] == rows["the paper's again", 0]["stages"]
    chain = rows["paper", 0]["stages"].split()[:-1]
    assert rows["labels", 0]["stages"].split()[:-1] == chain == (
        rows["nothing after", 0]["stages"].split())
    assert rows["random", 0]["stages"].split()[0] == chain[0] != chain[1]
    assert rows["paper", 0]["images"] == str((2 + 1 + 1 + 2) * len(load("few").train))
    note = json.loads((folder / "seed1" / "study.json").read_text())
    assert rows["paper", 1]["stages"].split() in [one["stages"] for one in note.values()]
    assert f"The last trainings were made at commit {rows['paper', 1]['commit'][:8]}" in said


@pytest.mark.slow
def test_a_studys_folder_is_told_from_a_runs(study):
    fails("kesi", "report", study[0], code=2, says="belongs to a study, whose table is study.md")


@pytest.mark.slow
def test_the_ensemble_of_the_snapshots_stands_beside_them(study):
    """Once for a chain; found again by hand."""
    folder, file, said = study
    rows, data = table_of(folder), load("few")
    for name in ("paper", "random", "labels"):
        row = rows[name, 1]
        networks = [checkpoints.load(folder / "seed1" / one).network.eval()
                    for one in row["stages"].split()[:-1]]
        answers = torch.stack([predict(network, data, data.test) for network in networks])
        together = answers.double().softmax(2).mean(0).argmax(1)
        assert float(row["ensemble_accuracy"]) == pytest.approx(
            100 * (together == data.test.labels).double().mean().item())
        classes = answers.argmax(2)
        pairs = [100 * (one != other).double().mean().item()
                 for one, other in itertools.combinations(classes, 2)]
        assert float(row["disagreement"]) == pytest.approx(statistics.fmean(pairs))
    assert rows["paper", 1]["ensemble_accuracy"] == rows["labels", 1]["ensemble_accuracy"]


@pytest.mark.slow
def test_the_papers_order_has_the_bits_of_a_plain_run(study):
    folder, *_ = study
    variant = tiny()
    train = algorithm.in_memory(load("few"), 1, Options(eval_every=0))
    *_, last = algorithm.kesi(variant.recipe, load("few"), train, seed=1)
    assert table_of(folder)["paper", 1]["network_digest"] == last.digest


@pytest.mark.slow
def test_what_is_finished_stays_and_what_is_lost_comes_back(study, tmp_path, monkeypatch):
    """An interrupt in the middle of a shared stage; then the same command."""
    folder, file, _ = study
    before = table_of(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    lost = copy / "seed1" / before["random", 1]["stages"].split()[1]
    last = copy / "seed1" / before["paper", 1]["stages"].split()[-1]
    for stage in (lost, last):
        shutil.rmtree(stage)
    # after a try for each number of teachers of a variant; of 3 steps an epoch, in the second
    apply, left = torch.nn.functional.kl_div, [4 + 2 * 3 - 1]

    def counting(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return apply(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="continues from"):
        patch.setattr("torch.nn.functional.kl_div", counting)
        works(*words(file, copy, "--seeds", 0, 1))
    assert (last / "state.pth.tar").is_file() and not (last / "result.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in copy.glob("seed0/*/result.json")}
    said = works(*words(file, copy, "--seeds", 0, 1))
    assert "continues after epoch 1 of 2" in said
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    after = table_of(copy)
    assert {key: row["network_digest"] for key, row in after.items()} == {
        key: row["network_digest"] for key, row in before.items()}
    # what is damaged is made again
    ensemble = next(copy.glob("seed1/ensemble-*"))
    for damaged in (last, ensemble):
        (damaged / "result.json").write_text("{")
    works(*words(file, copy, "--seeds", 0, 1))
    assert table_of(copy) == after


def test_a_variant_is_trained_with_its_own_objective(tmp_path):
    file, folder = tmp_path / "own.py", tmp_path / "runs"
    file.write_text(FILE + """
from dataclasses import replace
def smoothed(logits, images, labels):
    from torch.nn.functional import cross_entropy
    return cross_entropy(logits, labels, label_smoothing=0.5)
short = paper.changed(rounds=1, teachers=None)
VARIANTS = {"plain": short,
            "smoothed": short.changed(recipe=replace(short.recipe, objective=smoothed))}
""")
    works(*words(file, folder))
    plain, smoothed = (table_of(folder)[name, 0] for name in ("plain", "smoothed"))
    assert not set(plain["stages"].split()) & set(smoothed["stages"].split())
    assert plain["network_digest"] != smoothed["network_digest"]


@pytest.mark.slow
def test_the_table_is_of_all_seeds_that_are_there(study, tmp_path):
    """What lost a stage is not among them, and no seed whose files are damaged."""
    folder, file, _ = study
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = table_of(copy)
    (copy / "study.csv").unlink()
    said = works(*words(file, copy, "--seeds", 1))
    assert "left" not in said and table_of(copy) == before
    # a study of the same folder, in which the name of one variant is that of another one here
    other = tmp_path / "other.py"
    other.write_text(FILE + 'VARIANTS = {"paper": paper, "random": VARIANTS["labels"]}')
    assert "epoch" not in works(*words(other, copy, "--seeds", 0, 1))
    works(*words(file, copy, "--seeds", 1))
    assert table_of(copy) == before
    shutil.rmtree(copy / "seed0" / before["random", 0]["stages"].split()[-1])
    works(*words(file, copy, "--seeds", 1))
    del before["random", 0]
    assert table_of(copy) == before
    said = (copy / "study.md").read_text()
    assert '"random" is finished with seeds 1, "paper" with 0 1: the difference is of' in said
    (line,) = (line for line in said.splitlines() if line.startswith("| random | "))
    against, alone = (float(before[name, 1]["test_accuracy"]) for name in ("paper", "random"))
    assert f"| {alone - against:+.2f} | – |" in line and line.endswith("| 1 |")
    (copy / "seed0" / "study.json").write_text("[]")
    done = script(*words(file, copy, "--seeds", 1))
    assert done.code == 0 and "seed 0 is left out" in done.err
    assert {seed for _, seed in table_of(copy)} == {1}
    note = json.loads((copy / "seed1" / "study.json").read_text())
    for stages in ([".."], [""], ["a/b"], ["a" * 5000], "baseline", None):
        for one in note.values():
            one["stages"] = stages
        (copy / "seed1" / "study.json").write_text(json.dumps(note))
        fails(*words(file, copy, "--seeds", 0, 1), code=1, says="damaged")


def test_what_is_written_wrongly_is_said_before_any_training(tmp_path):
    """A criterion and an objective that fail at their turn, which would be after the baseline."""
    file, wrong = tmp_path / "own.py", FILE + """
from dataclasses import replace
from kesi.method.objectives import Taught
from kesi.method.pruning.criteria import FILTER_CRITERIA
from kesi.method.schedules import SCHEDULES
def short(network, layers, evidence):
    return {layer: network.get_submodule(layer).weight[1:].sum((1, 2, 3)) for layer in layers}
def many(logits, images, labels):
    return logits.square().mean(1)
class Reading(Taught):
    def compare(self, logits, teachers, labels, weights):
        return logits.gather(1, labels[:, None]).mean()
FILTER_CRITERIA["short"] = short
SCHEDULES["typo"] = lambda optimizer, training, steps: training.epoch
"""
    for variant, says in (("paper.changed(criterion='short')", "theirs: the criterion short does "
                           "not work on resnet20: the criterion gives layer1.0.conv1 scores of "
                           "shape (15,): its filters take (16,)"),
                          ("paper.changed(retraining={'schedule': 'typo'})",
                           "theirs: the schedule 'typo' does not work: 'Training' object has no"),
                          # labels, which it says that it does not read, and mixed images have none
                          ("paper.changed(loss=Reading(), distillation={'mixup': True})",
                           "theirs: the loss does not work on a batch of four"),
                          ("paper.changed(recipe=replace(paper.recipe, objective=many))",
                           "theirs: the objective does not work on a batch of four")):
        file.write_text(wrong + f"VARIANTS = {{'paper': paper, 'theirs': {variant}}}")
        fails(*words(file, tmp_path / "runs"), code=2, says=says)
    fails("kesi", "--with", file, "run", "--arch", "resnet20", "--dataset", "few", "--criterion",
          "short", "--save", tmp_path / "runs", "--device", "cpu", code=2,
          says="the criterion short does not")
    assert not (tmp_path / "runs").exists()


def test_runs_and_studies_have_folders_of_their_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(FILE)
    for name, command in (
            ("study", ["kesi", "run", "--arch", "resnet20", "--dataset", "few", "--save",
                       tmp_path / "study", "--device", "cpu"]),
            ("run", words(file, tmp_path / "run"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("{}")
        fails(*command, code=2, says=f"{tmp_path / name} holds a {name}, and no ")
        assert [path.name for path in (tmp_path / name).iterdir()] == [f"{name}.json"]


def test_a_variant_that_fails_stops_no_other(tmp_path):
    file, folder = tmp_path / "wild.py", tmp_path / "runs"
    file.write_text(FILE + """
from kesi.method.pruning.criteria import FILTER_CRITERIA, l1
def late(network, layers, evidence):
    return {} if evidence.round == 2 else l1(network, layers, evidence)
FILTER_CRITERIA["late"] = late
wild = paper.changed(retraining={"lr": 1e12})
VARIANTS = {"paper": paper, "wild": wild, "wild, too": wild.changed(teachers=None),
            "late": paper.changed(criterion="late"),
            "the same": paper.changed(criterion="l1"), "short": paper.changed(teachers=None)}
""")
    done = script(*words(file, folder))
    assert done.code == 1, done.err
    assert "error: 3 of 6 variants failed: wild, seed 0: the training" in done.err
    assert done.err.count("onecycle-1 failed: the training diverges") == 1  # which they share
    assert "onecycle-2 failed: the criterion gives layer1.0.conv1 nothing" in done.err
    assert {name for name, _ in table_of(folder)} == {"paper", "the same", "short"}
    said = (folder / "study.md").read_text()
    assert '"the same" is "paper": it has the very same networks.' in said
    assert 'Not here, as no seed has finished it: "wild, too".' in said
    assert '"short" processes 0.67 times as many images as "paper".' in said
    assert "One seed tells nothing of chance: --seeds 0 1 2 gives intervals." in said


@pytest.mark.slow
def test_what_was_pruned_stays_when_its_scores_come_out_otherwise(tmp_path):
    """As they may with more threads: nothing is trained anew beside what is finished."""
    file, folder = tmp_path / "noisy.py", tmp_path / "runs"
    file.write_text(FILE + """
import torch
from kesi.method.pruning.criteria import FILTER_CRITERIA, weight
def noisy(network, layers, evidence):
    return {layer: torch.rand(len(weight(network, layer)), generator=drawn) for layer in layers}
drawn = torch.Generator()
drawn.seed()
FILTER_CRITERIA["noisy"] = noisy
VARIANTS = {"noisy": paper.changed(criterion="noisy", teachers=None), "paper": paper}
""")
    works(*words(file, folder))
    before = {path: path.read_bytes() for path in folder.glob("seed0/*/*.json")}
    works(*words(file, folder))
    assert before == {path: path.read_bytes() for path in folder.glob("seed0/*/*.json")}


@pytest.mark.slow
def test_what_is_in_the_way_of_any_seed_is_said_before_the_first_is_trained(study, tmp_path):
    folder, file, _ = study
    copy = shutil.copytree(folder, tmp_path / "copy")
    with held(copy / "seed1"):
        fails(*words(file, copy, "--seeds", 7, 1), code=1, says="leave out --seeds 1")
    for other, says in ((("--val-fraction", 0.2), "another data images train (96, now 78)"),
                        (("--precision", "bf16"), "another precision (fp32, now bf16)"),
                        (("--sync-bn",), "another sync_bn (False, now True)")):
        fails(*words(file, copy, "--seeds", 7, *other), code=2, says=says)
    assert not (copy / "seed7").exists()


@pytest.mark.slow
def test_the_time_that_is_left_knows_what_later_seeds_have_finished(study, tmp_path, monkeypatch):
    folder, file, _ = study
    copy, told, after = shutil.copytree(folder, tmp_path / "copy"), [], Clock.after
    shutil.rmtree(copy / "seed0" / table_of(copy)["random", 0]["stages"].split()[-1])

    def noting(clock, *arguments):
        after(clock, *arguments)
        told.append(clock.left())

    monkeypatch.setattr(Clock, "after", noting)
    works(*words(file, copy, "--seeds", 0, 1))
    assert told == [0]



@pytest.mark.slow
def test_the_table_and_the_picture(study):
    folder, file, said = study
    rows = table_of(folder)
    values = {name: [float(rows[name, seed]["test_accuracy"]) for seed in (0, 1)]
              for name in ("paper", "random")}
    first, second = (b - a for a, b in zip(*values.values(), strict=True))
    mean, half = (first + second) / 2, 12.706205 * abs(first - second) / 2
    line = next(line for line in said.splitlines() if line.startswith("random "))
    assert f"{mean:+.2f}" in line and f"{mean - half:+.2f} to {mean + half:+.2f}" in line
    assert ("yes" in line.split()) == (abs(mean) > half)
    again = next(line for line in said.splitlines() if line.startswith("the paper's again"))
    assert "+0.00" in again and " no " in again
    said = works(*words(file, folder, "--seeds", 0, 1, "--against", "random"))
    assert 'Differences are to "random"' in said
    line = next(line for line in said.splitlines() if line.startswith("paper "))
    assert f"{-mean:+.2f}" in line and f"{-mean - half:+.2f} to {-mean + half:+.2f}" in line
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "![study](study.png)" in (folder / "study.md").read_text()


@pytest.mark.slow
def test_a_long_name_leaves_room_for_the_picture(study, tmp_path):
    folder, file = shutil.copytree(study[0], tmp_path / "runs"), tmp_path / "tiny.py"
    name = "all the same, but that the filters which go are drawn at random, " * 3
    file.write_text(FILE.replace('"random"', f'"{name}"', 1))
    said = script(*words(file, folder, "--seeds", 0, 1))
    assert said.code == 0 and "constrained_layout not applied" not in said.err
    assert f"{name} " in said.out


def test_what_a_file_reads_from_the_environment_is_a_part_of_the_command(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text("import os\n" + FILE.replace("rounds=2", "rounds=int(os.environ['ROUNDS'])"))
    folder, more = tmp_path / "runs", ("--set", "ROUNDS=1", "--dry-run")
    said = works(*words(file, folder, *more))
    assert "onecycle-1" in said and "onecycle-2" not in said and "ROUNDS" not in os.environ
    said = works("reproduce", "--study", file, "--save", folder, *more)
    assert "--set ROUNDS=1" in said
    for wrong, says in (("ROUNDS", "takes NAME=VALUE, not 'ROUNDS'"), ("1=2", "takes NAME=VALUE"),
                        ("ROUND=1", f"{file} reads no ROUND")):
        fails(*words(file, folder, "--set", wrong), code=2, says=says)


def test_a_dry_run_tells_shared_stages_once_and_touches_nothing(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(FILE)
    said = works(*words(file, tmp_path / "runs", "--dry-run", "--seeds", 0, 1))
    images = len(load("few").train)
    epochs, alone = 2 + 1 + 1 + 2 + 2 + 4 * 1, 6 + 6 + 4 + 4 + 4 + 6
    assert f"{STAGES} trainings, shared ones once, of {epochs} epochs" in said
    assert f"{2 * epochs * images:,} images" in said and f"({2 * alone * images:,} if" in said
    assert " here, by a few training steps on " in said.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
    for wrong, says in (('distillation={"batch_size": 1}', "theirs: batch size 1 is too small"),
                        ('loss=5', "theirs: "),
                        ('loss=KullbackLeibler(weights=ByAccuracy())',
                         "theirs: teachers are weighted by their accuracy on held-out images")):
        file.write_text(FILE + "from kesi.method.objectives import KullbackLeibler\n"
                        "from kesi.method.teachers import ByAccuracy\n"
                        f"VARIANTS = {{'paper': paper, 'theirs': paper.changed({wrong})}}")
        fails(*words(file, tmp_path / "runs", "--dry-run"), code=2, says=says)
        fails(*words(file, tmp_path / "runs"), code=2, says=says)
    works(*words(file, tmp_path / "runs", "--dry-run", "--val-fraction", 0.1))
    assert not (tmp_path / "runs").exists()
    write_imagefolder(tmp_path / "images", ("ant", "bee"), 5, 2)
    folder = FILE.replace('"few"', '"imagefolder"')
    file.write_text(folder)
    # of each class 3 are left, though 7 are 70 % of all
    said = works(*words(file, tmp_path / "runs", "--dry-run", "--data", tmp_path / "images",
                        "--image-size", 16, "--val-fraction", 0.3))
    assert f"of {epochs} epochs together for each of 1 seed(s): {epochs * 6} images" in said
    said = works(*words(file, tmp_path / "runs", "--dry-run"))
    assert "say where they are with --data" in said and " ? images" in said


def test_the_hours_of_a_dry_run_count_every_pass_once(tmp_path, monkeypatch):
    file = tmp_path / "tiny.py"
    file.write_text(FILE + """
VARIANTS["averaged"] = paper.changed(teachers=None, retraining={"ema": 0.9})""")
    # a second for an image in a forward pass, nothing for training
    monkeypatch.setattr(budget, "speed", lambda *_: plan.Speed((2, 1), (0.0, 0.0), (1.0, 1.0)))
    train, test = len(load("few").train), len(load("few").test)
    teachers = train * (2 * 3 + 1 + 2)  # of the last step for two epochs, and in two rounds
    ensembles = test * 3 * 4  # the paper's chain, taught, random and averaged
    looks = test * 2 * (STAGES + 2) + train * 2  # two of every stage; averages see their images
    said = works(*words(file, tmp_path / "runs", "--dry-run", "--seeds", *range(10)))
    assert f"about {spoken(10 * (teachers + ensembles + looks))} here" in said.splitlines()[-1]


@pytest.mark.parametrize("text, says", [
    ("VARIANTS = {", "SyntaxError"), ("x = 1", "does not say VARIANTS"),
    ("VARIANTS = {'a': 1, 'b': 2}", "does not say VARIANTS"),
    (FILE + "\nVARIANTS = {'one': paper}", "nothing to compare"),
    (FILE + "\npaper.changed(teachers='nobody')", "unknown teachers 'nobody'"),
    (FILE + "\npaper.changed(epocs=3)", "its trainings know: amounts, baseline, batch_size"),
    (FILE + "\npaper.changed(criterion=print)", "by its name: enter it in FILTER_CRITERIA"),
    (FILE + "\npaper.changed(criterion='none')", "unknown criterion 'none'"),
    (FILE + "\npaper.changed(retraining={'lr': -1})", "learning rate must be above 0"),
    (FILE + "\nVARIANTS = {'a': paper, 'a\\nb': paper}", "a line of text"),
    (FILE + "\nVARIANTS['c'] = Variant(recipe('resnet20', 'cifar10', 'filter'))",
     "all variants are of one dataset"),
    (FILE + "\nVARIANTS['c'] = Variant(recipe('resnet20', 'few', 'weight'), start='fresh')",
     "fresh start is for filter"),
    (FILE + "\nVARIANTS['c'] = paper.changed(images='unlabelled')", "say where they are with"),
    (FILE + "\npaper.changed(images='unlabelled', teachers='labels')", "need teachers"),
    (FILE + "\npaper.changed(images='unlabelled', loss='dkd')", "reads the label of every"),
    (FILE + "\npaper.changed(epochs=(2.5, 1, 1))", "epochs must be a whole number, not 2.5"),
    (FILE + "\npaper.changed(batch_size=32.0)", "must be a whole number, not 32.0"),
    (FILE + "\nimport numpy\nVARIANTS['c'] = paper.changed(amounts=numpy.float32(0.5))",
     "values that its note cannot keep"),
    (FILE + "\nimport numpy as n\nVARIANTS['c'] = paper.changed(retraining={'lr': n.float64(0.1)})",
     "'c' is said in values that its note cannot keep, lr as a numpy.float64: say float"),
    (FILE + "\nVARIANTS['c'] = Variant(recipe('vgg16', 'few', 'filter').changed(amounts=0.1))",
     "c: vgg16 needs images of 16 px or more, but few has 8 px"),
    (FILE + "\nrecipe('resnet20', 'few', 'weight').towards('sparsity', 0.5, 10, 16, 'sorted')",
     "unknown allocation 'sorted'"),
    (FILE + "\npaper.changed(teachers=0)", "at least 1 and at most 100, not 0"),
    (FILE + "\npaper.changed(retraining={'mixup': True})", "mixed images have none"),
    (FILE + "\npaper.changed(loss='labels', distillation={'mixup': True})",
     "mixed images have none"),
    (FILE + "\npaper.changed(recipe=paper.recipe.towards('macs', 0.5, 10, 16, 'ranked'), "
     "start='fresh')", "widths that are known before"),
    (FILE + "\npaper.recipe.towards('macs', 0.5, 10, 16, 'sorted')", "unknown allocation 'sorted'"),
    (FILE + "\nranked = paper.recipe.towards('macs', 0.5, 10, 16, 'ranked')"
     "\nranked.towards('macs', 0.4, 10, 16)", "no rates to go in proportion to"),
    (FILE + "\npaper.recipe.towards('macs', 0.001, 10, 16, 'ranked')",
     "cannot be pruned to 0.001 of its macs"),
    (FILE + "\nrecipe('resnet20', 'few', 'weight').towards('sparsity', 0.5, 10, 16, 'uniform')",
     "a sparsity takes no allocation"),
    (FILE + "\npaper.changed(retraining={'momentum': 0.5})", "0.5 would do nothing"),
    (FILE + "\npaper.changed(baseline={'milestones': (0.5,)})", "whole epochs of at least 0, not"),
    (FILE + "\nfrom dataclasses import replace"
     "\nVARIANTS['c'] = Variant(replace(paper.recipe, rounds=((0.5,),)))", "9 widths to prune"),
    (FILE + "\nfrom dataclasses import replace"
     "\nVARIANTS['c'] = Variant(replace(paper.recipe, arch='resnet21'))",
     "unknown arch 'resnet21' in 'c'")])
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, says):
    file = tmp_path / "bad.py"
    file.write_text(text)
    size = ("--image-size", 8) if "vgg16" in text else ()
    fails(*words(file, tmp_path / "runs", "--dry-run", *size), code=2, says=says)
    assert not (tmp_path / "runs").exists()


def test_rounds_are_said_with_their_target():
    """Changed afterwards they would miss it: every round has amounts of its own."""
    recipe = tiny().recipe
    once = recipe.towards("macs", 0.5, 10, 16, "uniform", rounds=1)
    often = recipe.towards("macs", 0.5, 10, 16, "uniform", rounds=4)
    for one in (once, often):
        ends = macs_of(algorithm.draw("resnet20", 10, 0, one.widths()).network, 16)
        assert 0.4 < ends / macs_of(algorithm.draw("resnet20", 10, 0).network, 16) <= 0.5
    assert (len(once.rounds), len(often.rounds)) == (1, 4)
    assert often.changed(rounds=4).rounds == often.rounds
    for wrong in (lambda: often.changed(rounds=1),
                  lambda: recipe.towards("macs", 0.5, 10, 16, rounds=0)):
        with pytest.raises(UsageError, match="rounds"):
            wrong()


@pytest.mark.slow
def test_a_ranking_over_all_layers_decides_the_widths_of_every_round(tmp_path):
    """What is left is the target, of widths that the trained networks choose; as in memory."""
    file, folder = tmp_path / "ranked.py", tmp_path / "runs"
    file.write_text(FILE + """
ranked = paper.changed(recipe=paper.recipe.towards("macs", 0.5, 10, 16, "ranked", steps="equal"))
VARIANTS = {"uniform": paper.changed(recipe=paper.recipe.towards("macs", 0.5, 10, 16, "uniform")),
            "ranked": ranked, "nothing after": ranked.changed(teachers=None)}
""")
    assert "7 trainings, shared ones once" in works(*words(file, folder, "--dry-run"))
    works(*words(file, folder))
    rows, whole = table_of(folder), plan.sizes(tiny().recipe, 10, 16)[0].macs
    macs = {name: int(rows[name, 0]["macs"]) / whole for name in ("uniform", "ranked")}
    assert all(0.4 < share <= 0.5 for share in macs.values())
    recipe = tiny().recipe.towards("macs", 0.5, 10, 16, "ranked", steps="equal")
    train = algorithm.in_memory(load("few"), 0, Options(eval_every=0))
    baseline, first, second, last = algorithm.kesi(recipe, load("few"), train)
    assert rows["ranked", 0]["network_digest"] == last.digest
    assert rows["nothing after", 0]["network_digest"] == second.digest
    assert second.network.cfg != recipe.widths()  # which are only about
    for snapshot, share in ((first, 0.75), (second, 0.5)):
        assert share - 0.1 < macs_of(snapshot.network, 16) / whole <= share


def test_no_file_and_no_python(tmp_path):
    fails(*words(tmp_path / "none.py", tmp_path), code=2, says="there is no such file")
    fails(*words(tmp_path, tmp_path), code=2, says="no Python file")
    (tmp_path / "tiny.py").write_text(FILE)
    fails(*words(tmp_path / "tiny.py", tmp_path, "--against", "nobody"), code=2,
          says="no variant 'nobody' to hold the others against; it has: paper, labels")


def test_a_key_knows_all_that_decides():
    """Whatever differs between two variants gives other stages from there on, and none before."""
    paper, order = tiny(), ["baseline", "onecycle-1", "onecycle-2", "kesi"]
    for differs, since in (({"baseline": {"weight_decay": 5e-4}}, 0), ({"batch_size": 50}, 0),
                           ({"criterion": "l2"}, 1), ({"retraining": {"lr": 0.05}}, 1),
                           ({"amounts": 0.25}, 1), ({"rounds_by": "baseline"}, 1),
                           ({"distillation": {"optimizer": "sgd"}}, 3), ({"loss": "dist"}, 3),
                           ({"temperature": 2.0}, 3), ({"teachers": "last"}, 3),
                           ({"images": "unlabelled"}, 3), ({"distillation": {"mixup": True}}, 3),
                           ({"start": "fresh"}, 3)):
        same = [a == b for a, b in zip(keys_of(paper), keys_of(paper.changed(**differs)),
                                       strict=True)]
        assert same == [place < since for place in range(len(order))], differs
    assert keys_of(tiny(retraining={"weight_decay": 0}, temperature=5)) == keys_of(
        tiny(retraining={"weight_decay": 0.0}, temperature=5.0))
    with pytest.raises(UsageError, match="needs teachers"):
        paper.changed(start="fresh", teachers="last")


@pytest.mark.slow
def test_the_last_step_starts_from_a_fresh_network(tmp_path):
    """Drawn anew, of the last widths; by labels or by the baseline it needs no chain of snapshots.
    """
    file = tmp_path / "fresh.py"
    file.write_text(FILE + '''
VARIANTS = {name: paper.changed(start="fresh", teachers=name)
            for name in ("snapshots", "baseline", "labels")}
''')
    works(*words(file, tmp_path / "runs"))
    rows, images = table_of(tmp_path / "runs"), len(load("few").train)
    assert [int(row["images"]) // images for row in rows.values()] == [6, 4, 2]
    assert len({row["params"] for row in rows.values()}) == 1
    folder = tmp_path / "runs" / "seed0"
    snapshot = checkpoints.load(folder / rows["snapshots", 0]["stages"].split()[-2]).network
    recipe = tiny().recipe
    start = algorithm.draw("resnet20", 10, 0, snapshot.cfg)
    train = algorithm.in_memory(load("few"), 0, Options(eval_every=0))
    alone = train("kesi", start, recipe.distillation)
    assert rows["labels", 0]["network_digest"] == alone.digest


@pytest.mark.slow
def test_who_teaches_what_comes_out_and_how_teachers_are_weighted(tmp_path):
    """Teachers by the digests in the checkpoints; weights by accuracies that are measured here."""
    file = tmp_path / "taught.py"
    file.write_text(FILE + '''
from kesi.method.objectives import KullbackLeibler
from kesi.method.teachers import ByAccuracy
VARIANTS = {
    "all": paper, "last": paper.changed(teachers="last"),
    "first": paper.changed(teachers="baseline"),
    "rounds": paper.changed(rounds_by="snapshots", teachers=None),
    "rounds by the first": paper.changed(rounds_by="baseline", teachers=None),
    "weighted": paper.changed(loss=KullbackLeibler(weights=ByAccuracy())),
    "better": paper.changed(hand_over="best"),
}
''')
    fails(*words(file, tmp_path / "runs"), code=2, says="'better' hands over what is best on held")
    works(*words(file, tmp_path / "runs", "--val-fraction", 0.5))
    rows, folder = table_of(tmp_path / "runs"), tmp_path / "runs" / "seed0"
    made = {name: [checkpoints.load(folder / one) for one in rows[name, 0]["stages"].split()]
            for name, _ in rows}

    def taught(name):
        """The places of every stage's teachers among the stages before."""
        digests = [one.digest for one in made[name]]
        return [[digests.index(teacher.network) for teacher in one.info.teachers]
                for one in made[name]]

    assert taught("all") == taught("weighted") == [[], [], [], [0, 1, 2]]
    assert (taught("last")[3], taught("first")[3]) == ([2], [0])
    assert taught("rounds") == [[], [0], [0, 1]]
    assert taught("rounds by the first") == [[], [0], [0]]

    data = load("few", val_fraction=0.5)
    *teachers, last = made["weighted"]
    worth = [100 * float((predict(one.network, data, data.val).argmax(1) == data.val.labels
                          ).double().mean()) for one in teachers]
    assert len(set(worth)) > 1
    weighted = Distillation(SnapshotEnsemble(teachers), KullbackLeibler(
        weights=Shares(tuple(worth))))
    train = algorithm.in_memory(data, 0, Options(eval_every=0))
    alone = train("kesi", teachers[-1], tiny().recipe.distillation, weighted)
    assert alone.digest == last.digest != made["all"][-1].digest

    # the distilled network, unless the snapshot is above it by more than a standard error
    snapshot, last = made["better"][2:]
    count, path = len(data.val), snapshot.path.parent / "result.json"
    right = round(last.info.metrics["val_accuracy"] * count / 100)

    def error(hits):
        return float(torch.tensor([1.0] * hits + [0.0] * (count - hits)).var(correction=0)) / count

    clear = next(hits for hits in range(right, count)
                 if (hits - right) / count > (error(hits) + error(right)) ** 0.5)
    assert clear > right + 1
    for hits, chosen in ((clear, snapshot), (clear - 1, last)):
        path.write_text(json.dumps(json.loads(path.read_text())
                                   | {"val_accuracy": 100 * hits / count}))
        works(*words(file, tmp_path / "runs", "--val-fraction", 0.5))
        assert table_of(tmp_path / "runs")["better", 0]["network_digest"] == chosen.digest


@pytest.mark.slow
def test_independent_teachers_are_baselines_of_other_seeds(tmp_path):
    """Drawn and trained like the first one, which is the one that is pruned."""
    file = tmp_path / "independent.py"
    file.write_text(FILE + '''
VARIANTS = {"snapshots": paper, "independent": paper.changed(teachers=3)}
''')
    works(*words(file, tmp_path / "runs"))
    rows, folder = table_of(tmp_path / "runs"), tmp_path / "runs" / "seed0"
    chain, (*shared, second, third, last) = (rows[name, 0]["stages"].split()
                                             for name in ("snapshots", "independent"))
    assert shared == chain[:-1]
    told = checkpoints.load(folder / last).info.teachers
    assert [one.network for one in told] == [
        checkpoints.load(folder / name).digest for name in (shared[0], second, third)]
    assert len({one.network for one in told}) == 3
    # each is what that seed alone would give
    seed = checkpoints.load(folder / second).info.seed
    train = algorithm.in_memory(load("few"), seed, Options(eval_every=0))
    alone = train("baseline", algorithm.draw("resnet20", 10, seed), tiny().recipe.baseline)
    assert checkpoints.load(folder / second).digest == alone.digest


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.py")), ids=lambda one: one.stem)
def test_our_own_studies_compare_equal_work_and_macs(file, tmp_path):
    more = ["--val-fraction", "0.1"] * ("--val-fraction" in file.read_text())
    asked = cli.parse([str(file), "--data", str(tmp_path), "--unlabelled", str(tmp_path), *more])
    work = {name: sum(asked.planned[key].work(1) for key in keys_of(variant))
            for name, variant in asked.variants.items()}
    whole = work[next(iter(work))]
    epochs = {variant.epochs for name, variant in asked.variants.items()
              if not name.endswith("as much work")}
    assert max(epochs) <= 1.02 * min(epochs)
    assert all(abs(work[name] / whole - 1) <= 0.01 for name in work if name.endswith("work"))
    macs = [asked.planned[keys_of(variant)[-1]].size.macs for variant in asked.variants.values()]
    assert max(macs) <= 1.02 * min(macs)
