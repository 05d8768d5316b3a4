"""The report, from run folders written by hand in the pipeline's layout with made-up figures."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import models
from doors import ROOT, fails, works
from kesi.method import paper, recipes, sizes
from kesi.method.pruning.filters import pruned_widths
from kesi.method.snapshot import StageName, chain, ensemble_name
from kesi.report import report, summary, tables
from kesi.report.page import page, tiles
from kesi.report.statistics import paired
from kesi.report.summary import summarise
from kesi.report.tables import NONE, Table
from kesi.runs import results
from kesi.runs.results import load_run
from kesi.system.errors import KesiError, UsageError
from kesi.system.markdown import plain

ROUNDS = 5
WHOLE, SMALL = 853_018, 284_000  # parameters
MACS, SMALL_MACS = 127_650_000, 52_710_000
BASELINE = {0: 93.4, 1: 93.6}
# test accuracy of the last round by seed; by hand: mean 92.25 and std sqrt(2 * 0.05^2) = 0.0707 for
# one-cycle
LAST = {"onecycle": {0: 92.2, 1: 92.3}, "usual": {0: 90.1, 1: 90.7}, "kesi": {0: 93.3, 1: 93.36}}
ORIGIN = {"commit": "0123abcd", "dirty": False, "versions": {"python": "3.12.1", "torch": "2.14.1"},
          "device": "a test processor, 2 threads",
          "command": "python cifar/pipeline.py --arch resnet56"}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder: Path, method="filter", arch="resnet56", dataset="cifar10", seeds=(0, 1),
              compare=True, rounds=ROUNDS, digest="baseline", **data) -> Path:
    """A finished run: sizes fall in equal steps to the last round's, accuracies too."""
    recipe = recipes.recipe(arch, dataset, method).changed(compare=compare, rounds=rounds)
    cfgs = [list(models.ARCHITECTURES[arch].cfg)]
    for rates in recipe.rounds:
        cfgs.append(pruned_widths(cfgs[-1], rates) if method == "filter" else cfgs[-1])
    write(folder / "run.json",
          {"arch": arch, "dataset": dataset, "method": method, "seeds": list(seeds),
           "recipe": recipe.describe(), "data": data, "format": 2, **ORIGIN})
    for seed in seeds:
        common = {"arch": arch,
                  "dataset": dataset, "method": method, "seed": seed, "num_classes": 10,
                  "seconds": 1.5, "epochs": 2, "images": 100, "image_size": 32, "test_loss": 0.3,
                  **ORIGIN}

        def trained(stage, share, accuracy, pruned=None, seed=seed, common=common):
            """A stage whose size lies ``share`` of the way from the baseline to the last round."""
            small = round(WHOLE + share * (SMALL - WHOLE))
            macs = round(MACS + share * (SMALL_MACS - MACS))
            name = StageName.parse(stage)
            write(folder / f"seed{seed}" / stage / "result.json", {
                **common, "stage": stage, "kind": name.kind, "round": name.round,
                "test_accuracy": accuracy, "params": small if method == "filter" else WHOLE,
                "nonzero_params": small, "macs": macs if method == "filter" else MACS,
                "pruned_accuracy": pruned, "cfg": cfgs[round(share * rounds)],
                "network_digest": f"{digest}-{stage}-{seed}"})

        trained("baseline", 0, BASELINE[seed])
        for retraining in recipe.retrainings:
            last = LAST[retraining][seed]
            for number, stage in enumerate(chain(retraining, rounds)[1:], start=1):
                share = number / rounds
                trained(stage, share, BASELINE[seed] + share * (last - BASELINE[seed]),
                        pruned=50.0 - number - 2 * seed)
            write_ensemble(folder / f"seed{seed}", retraining, rounds, common)
        trained("kesi", 1, LAST["kesi"][seed])
    return folder


def write_ensemble(folder: Path, retraining: str, rounds: int, common: dict) -> None:
    members = chain(retraining, rounds)
    name, gain = ensemble_name(retraining, LAST), 0.2 if retraining == "onecycle" else 0.05
    growing = [BASELINE[common["seed"]] + gain * place for place in range(len(members))]
    unit = 3.0 if retraining == "onecycle" else 1.1
    write(folder / name / "result.json", {
        **ORIGIN, "stage": name, "kind": name, "seed": common["seed"], "test_loss": 0.3, "params":
        1, "members": members, "members_digests": [f"digest of {member}" for member in members],
        "accuracy": [93.0] * len(members), "growing_accuracy": growing, "test_accuracy":
        growing[-1], "disagreement": [[unit * abs(i - j) ** 0.5 for j in range(rounds + 1)]
                                      for i in range(rounds + 1)]})


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_main_table_figures(tmp_path):
    made = report.report([write_run(tmp_path / "run")], plots=False)
    rows = rows_of(made.tables[0])
    assert list(rows) == ["baseline", "filter pruning (PFEC), usual retraining",
                          "filter pruning + one-cycle", "filter pruning + KESI",
                          "filter pruning, ensemble of 6, one-cycle",
                          "filter pruning, ensemble of 6, usual"]
    one_cycle = rows["filter pruning + one-cycle"]
    assert one_cycle["accuracy (%)"] == "92.25 ± 0.07" and one_cycle["seeds"] == "2"
    # 0.6 / sqrt(2)
    assert rows["filter pruning (PFEC), usual retraining"]["accuracy (%)"] == "90.40 ± 0.42"
    assert rows["baseline"]["accuracy (%)"] == "93.50 ± 0.14"
    assert one_cycle["params (M)"] == "0.284" and rows["baseline"]["params (M)"] == "0.853"
    assert one_cycle["MACs (M)"] == "52.71"
    assert one_cycle["MACs saved (%)"] == "58.71" and rows["baseline"]["MACs saved (%)"] == "0.00"
    ensemble = rows["filter pruning, ensemble of 6, one-cycle"]
    assert ensemble["accuracy (%)"] == "94.50 ± 0.14"
    # the sum of an arithmetic series of six sizes
    assert ensemble["params (M)"] == f"{6 * (WHOLE + SMALL) / 2 / 1e6:.3f}"
    assert ensemble["MACs saved (%)"] == NONE


def test_the_papers_columns_stand_apart(tmp_path):
    made = report.report([write_run(tmp_path / "run")], plots=False)
    table = made.tables[0]
    rows = rows_of(table)
    assert rows["filter pruning + KESI"]["paper: accuracy (%)"] == "93.34 ± 0.05"
    assert rows["filter pruning + KESI"]["paper: MACs saved (%)"] == "61.50"
    assert rows["baseline"]["paper: accuracy (%)"] == "93.42"
    assert rows["filter pruning, ensemble of 6, one-cycle"]["paper: accuracy (%)"] == NONE
    small = next(row for row in summary.main_rows([summary.summarise(
        run) for run in results.load_runs([tmp_path / "run"])]) if row.label.endswith("KESI"))
    before = sizes.paper_macs if hasattr(sizes, "paper_macs") else sizes.macs
    saved = 100 - 100 * summary.paper_macs(small) / before(models.create("resnet56", 10), 32)
    assert any("0.13 to 0.05" in note and f"{saved:.2f} %" in note for note in table.notes)
    assert not any("departs" in note for note in table.notes)


def test_no_paper_columns_where_the_paper_has_nothing(tmp_path):
    made = report.report([write_run(tmp_path / "run", arch="resnet20", dataset="digits")],
                         plots=False)
    assert "paper" not in made.markdown.replace("- recipe: paper", "")
    assert "paper" not in (tmp_path / "run/report/table.csv").read_text()


def test_other_settings_than_the_papers_are_named(tmp_path):
    folder = write_run(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    info["recipe"]["trainings"]["onecycle"]["epochs"] = 3
    write(folder / "run.json", info)
    notes = " ".join(report.report([folder], plots=False).tables[0].notes)
    assert ("departs from the paper's settings: one-cycle retraining epochs 3 instead of 40."
            in notes)


def test_fewer_rounds_are_not_held_against_the_papers_five(tmp_path):
    made = report.report([write_run(tmp_path / "run", rounds=2)], plots=False)
    rows = rows_of(made.tables[0])
    assert rows["filter pruning + KESI"]["paper: accuracy (%)"] == NONE
    assert rows["baseline"]["paper: accuracy (%)"] == "93.42"
    assert rows["filter pruning + one-cycle"]["accuracy (%)"] == "92.25 ± 0.07"


def test_filter_and_weight_runs_make_one_table(tmp_path):
    weight = write_run(tmp_path / "w", method="weight", compare=False)
    made = report.report([weight, write_run(tmp_path / "f")], plots=False)
    assert made.out.resolve() == (tmp_path / "report").resolve()
    rows = rows_of(made.tables[0])
    assert list(rows) == ["baseline", "filter pruning (PFEC), usual retraining",
                          "filter pruning + one-cycle", "filter pruning + KESI",
                          "filter pruning, ensemble of 6, one-cycle",
                          "filter pruning, ensemble of 6, usual",
                          "weight pruning (MWP) + one-cycle", "weight pruning + KESI",
                          "weight pruning, ensemble of 6, one-cycle"]
    pruned = rows["weight pruning (MWP) + one-cycle"]
    assert pruned["params (M)"] == "0.853" and pruned["non-zero (M)"] == "0.284"
    assert pruned["MACs saved (%)"] == "0.00"
    assert (pruned["paper: accuracy (%)"] == "93.41 ± 0.08"
            and pruned["paper: MACs saved (%)"] == NONE)
    assert [table.title for table in made.tables[1:3]] == ["Filter pruning round by round",
                                                       "Weight pruning round by round"]


def test_different_baselines_have_a_row_each(tmp_path):
    runs = [write_run(tmp_path / "f"), write_run(tmp_path / "w", method="weight", digest="another")]
    labels = [row[0] for row in report.report(runs, plots=False).tables[0].rows]
    assert labels[0] == "baseline of filter pruning"
    place = labels.index("baseline of weight pruning")
    assert labels[place + 1] == "weight pruning (MWP), usual retraining"


def test_the_same_baseline_in_two_runs_has_one_row(tmp_path):
    runs = [write_run(tmp_path / "f"), write_run(tmp_path / "w", method="weight", digest="another")]
    for path in runs[1].glob("seed*/baseline/result.json"):  # as where --model took it over
        result = json.loads(path.read_text())
        write(path,
              result | {"network_digest": result["network_digest"].replace("another", "baseline")})
    labels = [row[0] for row in report.report(runs, plots=False).tables[0].rows]
    assert labels[0] == "baseline" and sum("baseline" in label for label in labels) == 1


def test_two_runs_of_one_method_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / "short"), write_run(tmp_path / "long")]
    labels = [row[0] for row in report.report(runs, plots=False).tables[0].rows]
    assert "filter pruning [short] + KESI" in labels
    assert "filter pruning [long] + KESI" in labels


def test_one_seed_has_no_deviation(tmp_path):
    made = report.report([write_run(tmp_path / "run", seeds=(0,))], plots=False)
    row = rows_of(made.tables[0])["filter pruning + one-cycle"]
    assert row["accuracy (%)"] == "92.20" and row["seeds"] == "1"
    assert read_csv(made.out / "table.csv")[2]["accuracy_std"] == ""


def test_what_is_unfinished_is_named_and_the_rest_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    for stage in ("usual-5", "ensemble-usual", "kesi"):
        (folder / "seed1" / stage / "result.json").unlink()
    info = json.loads((folder / "run.json").read_text())
    write(folder / "run.json", {**info, "seeds": [0, 1, 2]})
    made = report.report([folder], plots=False)
    assert made.missing == ["filter pruning, seed 1: usual-5, ensemble-usual, kesi",
                            "filter pruning, seed 2: not begun"]
    assert ("not finished: filter pruning, seed 1: usual-5" in made.text
            and made.missing[1] in made.markdown)
    rows = rows_of(made.tables[0])
    usual, last = rows["filter pruning (PFEC), usual retraining"], rows["filter pruning + KESI"]
    assert (usual["accuracy (%)"], usual["seeds"]) == ("90.10", "1")
    assert (last["accuracy (%)"], last["seeds"]) == ("93.30", "1")
    assert rows["filter pruning + one-cycle"]["seeds"] == "2"


@pytest.mark.parametrize("kept", ["baseline", "onecycle-2", "kesi"])
def test_a_single_finished_stage_is_enough(tmp_path, kept):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("seed*/*/result.json"):
        if path.parent.name != kept:
            path.unlink()
    made = report.report([folder])
    assert f"{kept}," not in made.missing[0]
    assert all(path.stat().st_size for path in made.files)


def test_what_is_compared_is_of_the_same_seeds_and_no_stage_that_was_moved_aside(tmp_path):
    run = write_run(tmp_path / "run")
    before = report.report([run], plots=False)
    shutil.copytree(run / "seed0" / "onecycle-1", run / "seed0" / "onecycle-1.old-1")
    assert report.report([run], plots=False) == before
    shutil.rmtree(run / "seed1" / "kesi")
    change = LAST["kesi"][0] - BASELINE[0]
    (accuracy, said), *_ = tiles(summarise(load_run(run)))
    assert f"({change:+.2f} to the baseline" in said and accuracy == f"{LAST['kesi'][0]:.2f} %"
    assert change != pytest.approx(LAST["kesi"][0] - sum(BASELINE) / 2)


def test_a_backslash_of_somebodys_makes_no_tag():
    assert plain("a\n\\<b>") == r"a \\\<b>"


def test_rounds_table(tmp_path):
    table = report.report([write_run(tmp_path / "run")], plots=False).tables[1]
    rows = rows_of(table)
    assert list(rows) == list("012345")
    assert rows["5"]["one-cycle: pruned (%)"] == "44.00"  # 45 and 43
    assert (rows["5"]["one-cycle: retrained (%)"] == "92.25"
            and rows["5"]["usual: retrained (%)"] == "90.40")
    assert (rows["2"]["one-cycle: ensemble (%)"] == "93.90"
            and rows["0"]["one-cycle: ensemble (%)"] == "93.50")
    assert rows["5"]["remaining (%)"] == f"{100 * SMALL / WHOLE:.1f}"
    assert rows["0"]["remaining (%)"] == "100.0"
    assert rows["1"]["authors' notes (%)"] == "93.05"
    assert any("lr 0.1, steps at 20 and 30; not one-cycle" in note and "five pruned" in note
               and "summed logits, reaches 94.27 %" in note for note in table.notes)
    assert rows["0"]["one-cycle: pruned (%)"] == NONE


def test_the_papers_claims_are_held_against_the_seeds(tmp_path):
    """By hand, with t = 12.7062 for two seeds: of 2.1 and 1.6 the deviation is 0.3536, the half
    width 12.7062 * 0.3536 / sqrt(2) = 3.18.
    """
    run = write_run(tmp_path / "run")
    rows = report.report([run], plots=False).tables[-1].rows
    said = {row[0].partition(": ")[2]: row[2:] for row in rows}
    assert said["one-cycle above usual retraining"] == ["+1.85", "-1.33 to +5.03",
                                                        "not told from none"]
    assert said["KESI above one-cycle"] == ["+1.08", "+0.83 to +1.33", "yes"]
    assert said["KESI at the baseline or above"] == ["-0.17", "-1.06 to +0.72",
                                                     "not told from none"]
    assert "the ensemble of the snapshots above the baseline" in said
    alone = write_run(tmp_path / "one", seeds=(0,))
    alone = report.report([alone], plots=False).tables[-1].rows
    assert {row[3] for row in alone} == {NONE} and alone[0][-1] == "one seed: yes"


def test_csv_files(tmp_path):
    made = report.report([write_run(tmp_path / "run")], plots=False)
    rows = {row["method"]: row for row in read_csv(made.out / "table.csv")}
    row = rows["filter pruning + one-cycle"]
    assert float(row["accuracy_mean"]) == pytest.approx(92.25)
    assert float(row["accuracy_std"]) == pytest.approx(0.0707107, abs=1e-6)
    assert float(row["macs_saved"]) == pytest.approx(100 * (1 - 52.71 / 127.65))
    assert float(row["params"]) == SMALL and float(row["paper_accuracy_mean"]) == 92.31
    stages = read_csv(made.out / "stages.csv")
    assert len(stages) == 2 * (1 + 5 + 1 + 5 + 1 + 1)
    assert [one["stage"] for one in stages[:3]] == ["baseline", "onecycle-1", "onecycle-2"]
    assert {one["seed"] for one in stages} == {"0", "1"} and stages[0]["cfg"].startswith("16 16 ")
    assert float(stages[5]["test_accuracy"]) == pytest.approx(92.2)


def test_provenance(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "seed1/kesi/result.json"
    write(path, json.loads(path.read_text()) | {"commit": "beef", "dirty": True})
    text = report.report([folder], plots=False).markdown
    assert "- command: `python cifar/pipeline.py --arch resnet56`" in text
    assert "- commit: 0123abcd; beef with uncommitted changes" in text
    assert "- versions: python 3.12.1, torch 2.14.1\n" in text and "- seeds: 0, 1\n" in text
    assert "baseline 300 (batch 128, sgd, multistep, lr 0.1); onecycle 40 (batch 128" in text
    assert str(tmp_path) not in text


def test_plots_are_written_and_linked(tmp_path):
    runs = [write_run(tmp_path / "f"), write_run(tmp_path / "w", method="weight", compare=False)]
    made = report.report(runs, out=tmp_path / "deep/out")
    names = {"accuracy.png", "rounds.png", "disagreement.png", "lr.png"}
    assert {path.name for path in made.plots} == names
    assert {path.name for path in made.files} == names | {"table.md", "table.csv", "stages.csv"}
    for path in made.plots:
        assert path.parent == tmp_path / "deep/out" and path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.name})" in (made.out / "table.md").read_text()


def test_disagreement_is_the_mean_over_seeds(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "seed1/ensemble/result.json"
    result = json.loads(path.read_text())
    write(path, result
          | {"disagreement": [[2 * value for value in row] for row in result["disagreement"]]})
    run, = results.load_runs([folder])
    own = summary.summarise(run).retrained[0]
    members, matrix = own.members, own.disagreement
    assert own.name == "onecycle" and members[0] == "baseline"
    assert matrix[0][1] == pytest.approx(4.5) and matrix[2][2] == 0


def test_without_matplotlib_the_tables_are_written(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    drawing = ("kesi.report.figures", "kesi.report.curves")
    for name in [name for name in sys.modules if name.startswith((*drawing, "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in drawing:
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install -e ".[plots]"' in works("kesi", "report", folder)
    assert (folder / "report/table.md").exists() and not list((folder / "report").glob("*.png"))


def test_the_command_prints_an_aligned_table(tmp_path):
    folder = write_run(tmp_path / "run")
    done = subprocess.run([sys.executable, "-m", "kesi", "report", folder, "--no-plots"],
                          capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    rule = next(place for place, line in enumerate(lines) if re.fullmatch(r"[- ]+", line))
    ends = [match.end() for match in re.finditer("-+", lines[rule])]
    for line in lines[rule + 1:rule + 7]:
        assert all(len(line) <= end or line[end] == " " for end in ends) and len(line) == ends[-1]
    assert lines[-1] == f"report: {folder / 'report' / 'table.md'}"


def test_bad_input(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is not a run folder"):
        report.report([tmp_path / "empty"])
    with pytest.raises(UsageError, match="arch is resnet56 in .* and resnet20 in"):
        report.report([write_run(tmp_path / "a"), write_run(tmp_path / "b", arch="resnet20")])
    with pytest.raises(UsageError, match="dataset is cifar10 in"):
        report.report([tmp_path / "a", write_run(tmp_path / "c", dataset="cifar100")])
    write(tmp_path / "d/run.json", json.loads((tmp_path / "a/run.json").read_text()))
    with pytest.raises(KesiError, match="nothing is finished") as caught:
        report.report([tmp_path / "d"])
    assert not isinstance(caught.value, UsageError)
    broken = tmp_path / "a/seed0/kesi/result.json"
    broken.write_text('{"stage": ')
    fails("kesi", "report", tmp_path / "a", code=1, says=str(broken))
    fails("kesi", "report", tmp_path / "nowhere", code=2, says="is not a run folder")


def test_an_output_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    fails("kesi", "report", folder, "--no-plots", "--out", tmp_path / "file/report", code=1,
          says="cannot write")


@pytest.mark.parametrize(("arch", "dataset", "method", "name", "expected"), [
    ("resnet56", "cifar10", "filter", "usual", paper.PaperRow(0.28, 61.5, None, 90.35, 0.36)),
    ("vgg16", "cifar100", "filter", "baseline", paper.PaperRow(14.99, 0.0, None, 73.24, None)),
    ("resnet110", "cifar100", "weight", "kesi", paper.PaperRow(0.36, None, None, 73.12, 0.25)),
    ("resnet34", "tinyimagenet", "filter", "kesi", paper.PaperRow(5.40, None, 1.57, 70.02, 0.43)),
])
def test_published(arch, dataset, method, name, expected):
    assert paper.published(arch, dataset, method)[name] == expected


@pytest.mark.parametrize(("arch", "dataset", "method"), [
    ("resnet20", "cifar10", "filter"), ("preresnet164", "cifar10", "weight"),
    ("resnet56", "digits", "filter"), ("resnet18", "tinyimagenet", "weight"),
    ("resnet56", "tinyimagenet", "filter")])
def test_not_published(arch, dataset, method):
    assert paper.published(arch, dataset, method) == {}


def test_a_column_from_outside(tmp_path, monkeypatch):
    """One entry, in a file of somebody's own, is a column of the table and of table.csv."""
    monkeypatch.setattr("kesi.report.tables.COLUMNS", list(tables.COLUMNS))
    idea = tmp_path / "idea.py"
    idea.write_text("from kesi.report.tables import COLUMNS, Column\nCOLUMNS.append(Column('loss "
                    "(nats)', lambda row: row.spread('test_loss'), 3))\n")
    runpy.run_path(str(idea))
    made = report.report([write_run(tmp_path / "run")], plots=False)
    assert rows_of(made.tables[0])["filter pruning + KESI"]["loss (nats)"] == "0.300 ± 0.000"
    assert {row["loss_mean"] for row in read_csv(made.out / "table.csv")} == {"0.3"}


def test_another_retraining_has_its_rows_and_curves(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    entry = recipes.Retraining(replace(recipes.RETRAININGS["usual"].training, lr=0.02), "gentle",
                               "#123456")
    monkeypatch.setitem(recipes.RETRAININGS, "gentle", entry)
    monkeypatch.setitem(LAST, "gentle", {0: 91.0, 1: 91.0})
    made = report.report([write_run(tmp_path / "run")])
    rows = rows_of(made.tables[0])
    assert rows["filter pruning, gentle retraining"]["accuracy (%)"] == "91.00 ± 0.00"
    assert "filter pruning, ensemble of 6, gentle" in rows
    assert "gentle: retrained (%)" in made.tables[1].columns and not made.missing
    text = page([tmp_path / "run"]).read_text()
    assert "#123456" in text and "snapshot, gentle" in text and "gentle retraining" in text


def test_a_retraining_is_named_by_what_it_is(tmp_path):
    folder = write_run(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    info["recipe"]["trainings"]["usual"] |= {"schedule": "multistep", "lr": 0.1,
                                             "milestones": [20, 30]}
    write(folder / "run.json", info)
    labels = [row[0] for row in report.report([folder], plots=False).tables[0].rows]
    assert "filter pruning (PFEC), multistep from 0.1 retraining" in labels
    assert not any("usual" in label for label in labels)


def test_every_departure_from_the_paper_is_named(tmp_path):
    folder = write_run(tmp_path / "run", arch="resnet20", image_size=64,
                       images={"train": 45_000, "val": 5_000, "test": 10_000})
    info = json.loads((folder / "run.json").read_text())
    for kind, name, value in (("onecycle", "ema", 0.9), ("kesi", "mixup", True)):
        info["recipe"]["trainings"][kind][name] = value
    info["recipe"]["objective"] = {"name": "Smoothed"}
    write(folder / "run.json", info | {"pretrained": "imagenet"})
    path = folder / "seed1/kesi/result.json"
    write(path, json.loads(path.read_text()) | {"settings": {"precision": "bf16"}})
    notes = " ".join(tables.departures(summary.summarise(results.load_run(folder))))
    for phrase in ("resnet20 with filter pruning is not in its table", "64 px instead of 32",
                   "5,000 training images held out", "precision bf16",
                   "started from pretrained weights", "one-cycle retraining ema 0.9 instead of 0",
                   "distillation mixup True", "objective Smoothed instead of the cross-entropy"):
        assert phrase in notes, notes


def test_where_kesi_lost_the_table_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "lost" not in report.report([folder], plots=False).markdown
    for path in folder.glob("seed*/kesi/result.json"):
        write(path, json.loads(path.read_text()) | {"test_accuracy": 91.0})
    made = report.report([folder], plots=False)
    assert "filter pruning + KESI lost: it is 1.25 points below the snapshot" in made.markdown


def test_an_image_folder_is_called_by_its_name(tmp_path):
    folder = write_run(tmp_path / "run", arch="resnet20", dataset="imagefolder")
    info = json.loads((folder / "run.json").read_text())
    for command in ("kesi run --dataset imagefolder --data 'pictures/of birds/' --arch resnet20",
                    "kesi compress 'pictures/of birds' --arch resnet20"):
        write(folder / "run.json", info | {"command": command})
        assert report.report([folder], plots=False).title == "resnet20 on of birds"
    assert report.report([folder], plots=False, data_name="fowl").title == "resnet20 on fowl"
    write(folder / "run.json", info | {"command": "kesi compress . --arch resnet20"})
    assert report.report([folder], plots=False).title == "resnet20 on imagefolder"
    write(folder / "images.json", {"dataset": "imagefolder", "data": "/pictures/of fish"})
    assert report.report([folder], plots=False).title == "resnet20 on of fish"


def test_one_table_is_of_one_set_of_images(tmp_path):
    data = {"classes": ["a", "b"], "image_size": 32, "digests": {"test": "0" * 64}}
    runs = [write_run(tmp_path / "one", **data)]
    for name, more, says in (("two", {"classes": ["a", "c"]}, "have other classes"),
                             ("three", {"digests": {"test": "1" * 64}}, "have other test images")):
        runs[1:] = [write_run(tmp_path / name, method="weight", **data | more)]
        fails("kesi", "report", *runs, "--no-plots", code=2, says=says)
    write_run(runs[1], method="weight", **data)
    works("kesi", "report", *runs, "--no-plots")


def test_the_unit_of_a_header_is_what_ends_it():
    table = Table("t", ["variant", "fowl (old) (%)", "of (all) seeds"], [["a", "1", "2"]])
    assert table.text().splitlines()[2] == "variant  fowl (old)  of (all) seeds"
    assert table.text().splitlines()[3].split() == ["(%)"]


def test_runs_of_one_recipe_are_joined_wherever_their_baselines_lie(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seeds=(seed,)) for seed in (0, 1)]
    said = json.loads((runs[1] / "run.json").read_text())
    for run, place in zip(runs, ("baseline", "elsewhere/seed{seed}/baseline"), strict=True):
        write(run / "run.json", json.loads((run / "run.json").read_text()) | {"baseline": place})
    one, = results.load_runs(runs)
    assert list(one.seeds) == [0, 1]
    asked = {"speedup": 2.0, "batch": 1, "allocation": "paper", "round_to": 8, "rounds": 5, "arch":
             "resnet56", "runtime": "torch", "threads": 1, "device": "cpu"}
    for run, speedup, count in ((runs[0], 2.0, 2), (runs[1], 2.0, 1), (runs[1], 3.0, 2)):
        before = json.loads((run / "run.json").read_text())  # measured anew, to the same widths
        write(run / "run.json", before | {"latency": asked | {
            "speedup": speedup, "seconds": [2.0, 1.0 + count / 100]}})
        assert len(results.load_runs(runs)) == count
    for run in runs:
        write(run / "run.json", json.loads((run / "run.json").read_text()) | {"latency": None})
    path = runs[1] / "seed1" / "baseline" / "result.json"
    write(path, json.loads(path.read_text()) | {"recipe_hash": "0" * 12})
    assert len(results.load_runs(runs)) == 2
    assert len(results.load_runs(runs, across_code=True)) == 1
    write(runs[1] / "run.json", said)  # this one trained its own
    assert len(results.load_runs(runs, across_code=True)) == 2


def test_a_long_title_stays_within_its_figure(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from kesi.report import curves, figures

    run, = results.load_runs([write_run(tmp_path / "run")], "Tiny-ImageNet, 100 classes " * 4)
    for figure in (figures.accuracy_figure, figures.rounds_figure, curves.learning_rate_figure):
        drawn = figure([summary.summarise(run)])
        FigureCanvasAgg(drawn).draw()
        title, whole = drawn._suptitle.get_window_extent(), drawn.bbox
        assert whole.x0 <= title.x0 and title.x1 <= whole.x1 and title.y1 <= whole.y1


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(write_run(tmp_path / "caf\udce9"))  # as of an old disk: Latin-1
    write_run(tmp_path / "other", compare=False)
    works("kesi", "report", ".", "--no-plots")
    assert {row["run"] for row in read_csv(Path("report/stages.csv"))} == {"caf?"}
    works("kesi", "report", ".", "../other", "--out", "both")
    assert "filter pruning [caf?]" in Path("both/table.md").read_text()


def test_error_bars_are_of_as_many_seeds_as_there_are(tmp_path):
    pytest.importorskip("matplotlib")
    many = write_run(tmp_path / "many")
    one = write_run(tmp_path / "one", method="weight", seeds=(0,))
    text = page([many, one], tmp_path / "page.html").read_text()
    assert "against size (mean ± std of 2 seeds)" in text and "accuracy against size<" in text
    from kesi.report import figures
    summaries = [*map(summarise, results.load_runs([many, one]))]
    drawn = figures.accuracy_figure(summaries)
    assert drawn._suptitle.get_text().endswith("(mean ± std of 1 to 2 seeds)")


def test_above_is_not_claimed_of_two_that_are_alike():
    alike = paired([50.0], [50.0])
    assert (tables._verdict(alike, True), tables._verdict(alike, False)) == (
        "one seed: yes", "one seed: no")
