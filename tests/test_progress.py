"""What a run says while it runs, and how long it thinks that the rest takes."""

import re
from pathlib import Path

import pytest

from datagen import write_imagefolder
from doors import script
from kesi.method.training import Epoch, Progress
from kesi.runs.clock import Clock
from kesi.runs.record import read_result


def after(epochs, *seconds):
    """What fit() tells after epochs that took so many seconds."""
    rows = [Epoch(place, 1.0, 50.0, 0.1, seconds=taken)
            for place, taken in enumerate(seconds, start=1)]
    return Progress(len(rows), epochs, rows, None, None)


def test_what_is_left_follows_from_the_work_and_the_seconds_so_far():
    first, second = Path("first"), Path("second")
    clock = Clock({first: 3.0, second: 1.0})
    assert clock.left() is None and clock.said() == ""
    clock.after(first, after(2, 30.0))
    assert clock.left() == pytest.approx(30 + 20)  # half of the first, and a second of 20 s a MAC
    assert clock.said() == "about 50 s left"
    clock.after(first, after(2, 30.0, 6000.0))
    assert clock.left() == pytest.approx(6030 / 3) and clock.said() == "about 34 min left"
    clock.after(second, after(4, 3600.0))  # its own pace, not that of the first
    assert clock.left() == pytest.approx(3 * 3600) and clock.said() == "about 3 h 0 min left"
    clock.after(second, after(1, 3600.0))
    assert clock.left() == 0 and clock.said() == ""


def test_a_log_has_a_line_an_epoch_and_the_time_left_from_the_first_on(tmp_path):
    images = write_imagefolder(tmp_path / "images", ("ant", "bee"), 4, 2)
    run = tmp_path / "run"
    words = ("--arch", "resnet20", "--dataset", "imagefolder", "--data", images, "--image-size", 8,
             "--rounds", 1, "--seeds", 0, 1, "--batch-size", 4, "--save", run, "--no-report")
    outcome = script("cifar/pipeline.py", *words, "--epochs", 2, 1, 1)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.err.splitlines() if ": loss" in line]
    assert [line.partition(": loss")[0] for line in lines] == [
        "seed 0, 1/6: baseline, epoch 1/2", "seed 0, 1/6: baseline, epoch 2/2",
        "seed 0, 2/6: onecycle-1, epoch 1/1", "seed 0, 3/6: kesi, epoch 1/1",
        "seed 1, 4/6: baseline, epoch 1/2", "seed 1, 4/6: baseline, epoch 2/2",
        "seed 1, 5/6: onecycle-1, epoch 1/1", "seed 1, 6/6: kesi, epoch 1/1"]
    assert re.search(r" s; about [\d.]+ (s|min) left$", lines[0]) and not lines[-1].endswith("left")
    assert ": loss" not in outcome.out
    # what was finished before counts with its seconds
    done = run / "seed0" / "baseline"
    seconds = read_result(done / "result.json").seconds
    assert Clock({done: 4.0, tmp_path / "next": 2.0}).left() == pytest.approx(seconds / 2)
