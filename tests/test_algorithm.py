"""The method in memory: kesi.method.algorithm with fit() alone gives what the pipeline gives,
bit for bit."""

from dataclasses import replace

import pytest

from kesi import checkpoints
from kesi.data import load
from kesi.method import algorithm, recipes
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.snapshot import StageName, chain, ensemble_name
from kesi.method.training import Options

pytest_plugins = ["tinyrun"]


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_in_memory_is_bit_for_bit_the_pipeline(method, request):
    run = request.getfixturevalue(f"{method}_run")
    dataset = load("digits")
    recipe = recipes.recipe("resnet20", "digits", method).changed(scale=0.02, rounds=2)
    train = algorithm.in_memory(dataset, 0, Options(eval_every=0))
    for snapshot in algorithm.kesi(recipe, dataset, train):
        saved = checkpoints.load(run / "seed0" / snapshot.name)
        assert saved.digest == snapshot.digest, snapshot.name
        assert (saved.masks is None) == (method == "filter" or snapshot.name == "baseline")


def test_the_first_retraining_is_the_methods_whatever_it_is_called():
    dataset = load("digits")
    recipe = recipes.recipe("resnet20", "digits", "filter").changed(epochs=(1, 1, 1), rounds=1)
    recipe = replace(recipe, retrainings={"steps": recipe.retrainings["usual"]}).changed(lr=0.02)
    assert recipe.retrainings["steps"].lr == recipe.baseline.lr == 0.02
    made = algorithm.kesi(recipe, dataset, algorithm.in_memory(dataset))
    assert [one.name for one in made] == ["baseline", "steps-1", "kesi"]


def test_teachers_are_where_the_training_is():
    ensemble = SnapshotEnsemble([algorithm.draw("resnet20", 10, 0)])
    Distillation(ensemble).prepare(load("digits"), "meta")  # a device that any machine has
    assert {one.device.type for one in ensemble.members[0].parameters()} == {"meta"}


def test_pruning_and_training_leave_the_snapshot_as_it_was():
    dataset = load("digits")
    recipe = recipes.recipe("resnet20", "digits", "weight").changed(epochs=(1, 1, 1), rounds=1)
    start = algorithm.draw("resnet20", 10, 0)
    before = start.digest
    pruned = algorithm.prune(start, recipe, 0.5, 1)
    told = []
    train = algorithm.in_memory(dataset, on_epoch=lambda progress: told.append(progress.epoch))
    trained = train("usual-1", pruned, recipe.retrainings["usual"])
    assert told == [1]
    assert algorithm.draw("resnet20", 10, 0).digest == before == start.copy("again").digest
    assert pruned.masks.sparsity() == pytest.approx(0.5, abs=1e-4)
    assert trained.pruned_weights == pruned.pruned_weights and trained.digest != pruned.digest


@pytest.mark.parametrize("name",
                         [StageName("baseline"), StageName("kesi"), StageName("onecycle", 3),
                          StageName("my-own", 12), StageName("ensemble-usual")])
def test_a_stage_name_is_read_as_it_is_written(name):
    assert StageName.parse(name.text) == name


def test_names_of_stages():
    assert chain("usual", 2) == ["baseline", "usual-1", "usual-2"]
    assert ensemble_name("onecycle", ["onecycle", "usual"]) == "ensemble"
    assert ensemble_name("usual", ["onecycle", "usual"]) == "ensemble-usual"


def test_a_retraining_is_called_by_what_it_is():
    named = {name: one.training for name, one in recipes.RETRAININGS.items()}
    assert {name: recipes.kind_of(training) for name, training in named.items()} == {
        name: name for name in named}
    assert recipes.kind_of(named["usual"].changed(milestones=(20, 30))) == "multistep"
    assert recipes.kind_of(named["usual"].changed(lr=0.1)) == "constant"
