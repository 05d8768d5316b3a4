"""What a run's JSON files say is not believed blindly:
whatever stands there, one line or a right answer."""

import contextlib
import json
import random
import shutil
import warnings

import pytest

from kesi.checkpoints.records import encode
from kesi.method.recipes import recipe
from kesi.report.page import page
from kesi.report.report import report as write_report
from kesi.report.verify import verify
from kesi.runs.record import RunRecord, read_epochs, read_run
from kesi.system.errors import KesiError
from kesi.tools.tensorboard import write_events

pytest_plugins = ["tinyrun"]

JUNK = (None, "", "x", "../x", -1, 0, 7, 10**9, 10**30, 1e300, 0.5, True, [], [None], [[]], ["x"],
        [1e30], {}, {"x": 1})
FILES = ("run.json", "seed0/baseline/result.json", "seed0/kesi/result.json",
         "seed0/ensemble/result.json", "seed0/onecycle-1/metrics.jsonl")


def places(value, path=()):
    """Every place in nested lists and dictionaries, by its keys;
    of a long list only the first and the last."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else (
        [*enumerate(value)][:1] + [*enumerate(value)][-1:] if isinstance(value, list) else ())
    for key, item in inside:
        yield from places(item, (*path, key))


def put(value, path, junk):
    """A copy of ``value`` with something else at a place; ``...`` removes it."""
    copy = json.loads(json.dumps(value))
    here = copy
    for key in path[:-1]:
        here = here[key]
    if junk is ...:
        here.pop(path[-1])
    else:
        here[path[-1]] = junk
    return copy


def cases(run):
    """(file, its text with one value changed), for every place and every kind of junk,
    in a random order."""
    found = []
    for name in FILES:
        text = (run / name).read_text()
        value = ([json.loads(line) for line in text.splitlines()] if name.endswith("jsonl")
                 else json.loads(text))
        for path in places(value):
            for junk in (*JUNK, ...):
                changed = put(value, path, junk)
                found.append((name, path, junk, "".join(json.dumps(row) + "\n" for row in changed)
                              if name.endswith("jsonl") else json.dumps(changed)))
    random.Random(0).shuffle(found)
    return found


def readers(run, logs):
    """Everything that reads the results of a run."""
    return (lambda: write_report([run], plots=False), lambda: page([run]),
            lambda: verify(run, None), lambda: write_events(run, logs))


def hold(run, original, number, logs):
    """Change one value, read everything, put it back; so many times."""
    refused = 0
    for name, path, junk, text in cases(original)[:number]:
        (run / name).write_text(text)
        for read in readers(run, logs):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read()
            except KesiError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400
            except Exception as error:
                raise AssertionError(f"{name} {path} = {junk!r}") from error
        shutil.copy(original / name, run / name)
    return refused


def test_any_value_anywhere_is_one_line_or_an_answer(weight_run, tmp_path, monkeypatch):
    """Figures are made, but not drawn, which takes half of the time; see below."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("kesi.report.figures.svg", lambda make, *arguments: (
        make(*arguments), "")[1])
    run = shutil.copytree(weight_run, tmp_path / "run")
    assert hold(run, weight_run, 20, tmp_path / "logs") > 3


def test_plots_of_any_value(weight_run, tmp_path):
    pytest.importorskip("matplotlib")
    run = shutil.copytree(weight_run, tmp_path / "run")
    for name, _, _, text in [case for case in cases(weight_run) if case[0] != FILES[-1]][:6]:
        (run / name).write_text(text)
        with contextlib.suppress(KesiError):
            write_report([run])
        shutil.copy(weight_run / name, run / name)


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    for arch, dataset, method in (("resnet56", "cifar10", "filter"),
                                  ("vgg16", "cifar100", "weight")):
        wanted = recipe(arch, dataset, method)
        said = RunRecord(arch=arch, dataset=dataset, method=method, recipe=wanted.describe())
        (tmp_path / "run.json").write_text(json.dumps(encode(said)))
        found = read_run(tmp_path / "run.json")
        assert found == said and found.rounds == len(wanted.rounds)
        assert {kind: found.training(kind) for kind in wanted.trainings} == wanted.trainings


def test_epochs_are_read_up_to_the_one_that_is_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"epoch": 1, "train_loss": 2.3, "train_accuracy": 10.0, "lr": 0.1}\n'
    path.write_text(whole + '{"epoch": 2, "lr"')
    assert [row.epoch for row in read_epochs(path)] == [1]
    for text in (whole + '{"epoch": 2, "lr"\n', '{"epoch": "1"}\n', "[]\n",
                 '{"epoch": 1, "lr": NaN}\n', "{}\n"):
        path.write_text(text)
        with pytest.raises(KesiError, match="metrics.jsonl is damaged"):
            read_epochs(path)
