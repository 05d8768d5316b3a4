"""Event files hold the numbers of metrics.jsonl, once, also when a run goes on."""

import json
import os
import shutil
import sys

import pytest

from doors import fails, script, works
from kesi.cli import runs
from kesi.system.errors import KesiError, UsageError
from kesi.tools import tensorboard

pytest_plugins = ["tinyrun"]


def scalars(folder):
    """{tag: [(step, value)]} as TensorBoard reads a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]}


def test_every_stage_of_a_run(filter_run, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    runs.tensorboard([str(filter_run), "--logdir", str(tmp_path)])
    stages = {path.parent.name for path in filter_run.glob("seed0/*/metrics.jsonl")}
    assert {path.name for path in (tmp_path / "seed0").iterdir()} == stages
    assert len(stages) == 6 and "6 stages" in capsys.readouterr().out
    for stage in stages:
        rows = [json.loads(line)
                for line in (filter_run / "seed0" / stage / "metrics.jsonl").open()]
        found = scalars(tmp_path / "seed0" / stage)
        for name, tag in (("train_loss", "loss/train"), ("lr", "learning rate"),
                          ("test_accuracy", "accuracy/test")):
            expected = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
            assert [step for step, _ in found[tag]] == [step for step, _ in expected]
            assert ([value for _, value in found[tag]]
                    == pytest.approx([value for _, value in expected]))
        assert "accuracy/val" not in found  # this run held nothing out


def test_a_run_that_goes_on_is_brought_up_to_date(filter_run, tmp_path):
    pytest.importorskip("tensorboard")
    run, logs = tmp_path / "run", tmp_path / "logs"
    (run / "seed0" / "baseline").mkdir(parents=True)
    shutil.copy(filter_run / "run.json", run)
    with pytest.raises(KesiError, match="no stage"):
        tensorboard.write_events(run, logs)
    lines = (filter_run / "seed0/baseline/metrics.jsonl").read_text().splitlines(keepends=True)
    metrics = run / "seed0/baseline/metrics.jsonl"
    metrics.write_text(lines[0])
    folder, = tensorboard.write_events(run, logs)
    assert folder == logs / "seed0/baseline" and len(scalars(folder)["loss/train"]) == 1
    (folder / "events.out.tfevents.of-somebody-else").write_bytes(b"")
    before = written(folder)
    assert tensorboard.write_events(run, logs) == [folder] and written(folder) == before
    metrics.write_text(lines[0] + lines[0].replace('"epoch": 1', '"epoch": 2'))
    tensorboard.write_events(run, logs)
    # what is there stays: an open TensorBoard would not notice that a file is gone
    after = written(folder)
    assert len(after) == len(before) + 1 and before.items() <= after.items()
    assert [step for step, _ in scalars(folder)["loss/train"]] == [1, 2]
    metrics.write_text(json.dumps(json.loads(lines[0]) | {"lr": 0.5}) + "\n")  # started over
    tensorboard.write_events(run, logs)
    found = scalars(folder)
    assert [step for step, _ in found["loss/train"]] == [1] and found["learning rate"] == [(1, 0.5)]


def test_a_log_folder_has_the_curves_of_one_run(filter_run, tmp_path):
    pytest.importorskip("tensorboard")
    run, other, logs = tmp_path / "run", tmp_path / "other", tmp_path / "logs"
    for one in (run, other):
        (one / "seed0" / "baseline").mkdir(parents=True)
        shutil.copy(filter_run / "run.json", one)
        shutil.copy(filter_run / "seed0/baseline/metrics.jsonl", one / "seed0/baseline")
    runs.tensorboard([str(run), "--logdir", str(logs)])
    before = written(logs / "seed0/baseline")
    fails("kesi", "tensorboard", other, "--logdir", logs, code=2,
          says=f"{logs} has the curves of another run, {run}: use another --logdir")
    works("kesi", "tensorboard", run, "--logdir", logs)
    assert written(logs / "seed0/baseline") == before
    for _ in range(2):  # the folder within the run moves with it
        works("kesi", "tensorboard", run)
        run = run.rename(tmp_path / "moved")
    fails("kesi", "tensorboard", other, "--logdir", run / "tensorboard", code=2, says="another run")


def test_only_the_newest_file_says_that_a_stage_is_up_to_date(filter_run, tmp_path):
    pytest.importorskip("tensorboard")
    run, logs = tmp_path / "run", tmp_path / "logs"
    (run / "seed0" / "baseline").mkdir(parents=True)
    shutil.copy(filter_run / "run.json", run)
    metrics = run / "seed0/baseline/metrics.jsonl"
    row = json.loads((filter_run / "seed0/baseline/metrics.jsonl").read_text().splitlines()[0])
    for lr, changed in ((0.5, 10**9), (0.25, 2 * 10**9), (0.5, 10**9)):  # back, as of a backup
        metrics.write_text(json.dumps(row | {"lr": lr}) + "\n")
        os.utime(metrics, ns=(changed, changed))
        folder, = tensorboard.write_events(run, logs)
        assert scalars(folder)["learning rate"] == [(1, lr)]


def test_an_open_tensorboard_sees_a_run_grow_and_start_over(filter_run, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, logs = tmp_path / "run", tmp_path / "logs"
    (run / "seed0" / "baseline").mkdir(parents=True)
    shutil.copy(filter_run / "run.json", run)
    row = json.loads((filter_run / "seed0/baseline/metrics.jsonl").read_text().splitlines()[0])
    metrics = run / "seed0/baseline/metrics.jsonl"

    def write(*epochs, lr):
        lines = (json.dumps(row | {"epoch": epoch, "lr": lr}) + "\n" for epoch in epochs)
        metrics.write_text("".join(lines))

    live = tensorboard.Live(run, logs)
    write(1, lr=0.5)
    live.after_epoch(metrics.parent)
    opened = reader.EventAccumulator(str(logs / "seed0/baseline"))
    for epochs, lr, writes in (((1,), 0.5, None), ((1, 2), 0.5, live.after_epoch),
                               ((1, 2, 3), 0.5, live.after_epoch), ((1,), 0.25, "started over")):
        write(*epochs, lr=lr)
        if writes == "started over":
            live.after_stage()
            live = tensorboard.Live(run, logs)
            live.after_epoch(metrics.parent)
        elif writes:
            writes(metrics.parent)
        opened.Reload()
        assert [(event.step, event.value) for event in opened.Scalars("learning rate")] == [
            (epoch, lr) for epoch in epochs]
    live.after_stage()


def written(folder):
    """{file: content} of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_wrong_is_said(filter_run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="run.json"):
        tensorboard.write_events(tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UsageError,
                       match=r'tensorboard is not installed: pip install -e "\.\[tensorboard\]"'):
        tensorboard.write_events(filter_run, tmp_path)


def test_the_pipeline_writes_events_as_it_goes(tmp_path):
    works("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--rounds", 1,
          "--epochs", 1, 1, 1, "--no-report", "--tensorboard", "--save", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "tensorboard" / "seed0").iterdir()} == {
        "baseline", "onecycle-1", "kesi"}


def test_events_are_there_after_every_epoch_and_once_when_a_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    seen = []
    after_epoch = tensorboard.Live.after_epoch

    def look(live, folder):
        after_epoch(live, folder)
        rows = (folder / "metrics.jsonl").read_text().count("\n")
        steps = [step for step, _ in scalars(tmp_path / "run" / "tensorboard" / "seed0"
                                             / folder.name)["loss/train"]]
        assert steps == list(range(1, rows + 1))
        seen.append((folder.name, rows))
        if seen == [("baseline", 1), ("baseline", 2)]:
            raise KeyboardInterrupt

    monkeypatch.setattr(tensorboard.Live, "after_epoch", look)
    words = ("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--rounds", 1,
             "--epochs", 3, 2, 1,
             "--batch-size", 512, "--no-report", "--tensorboard", "--save", tmp_path / "run")
    assert script(*words).code == 130
    works(*words)
    assert (seen == [("baseline", 1), ("baseline", 2), ("baseline", 3), ("onecycle-1", 1),
                     ("onecycle-1", 2), ("kesi", 1)])
    logs = tmp_path / "run" / "tensorboard"
    before = sorted(logs.rglob("events*"))
    assert len(before) == 4
    tensorboard.write_events(tmp_path / "run", logs)  # all up to date
    assert sorted(logs.rglob("events*")) == before
