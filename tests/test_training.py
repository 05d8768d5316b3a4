"""The loop: schedules, determinism, resuming, trouble."""

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import models
from kesi.data import TrainBatches, load
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import CrossEntropy
from kesi.method.pruning import Masks, prune_weights
from kesi.method.recipes import DISTILLATION, ONE_CYCLE, USUAL, described, recipe
from kesi.method.schedules import learning_rates, optimizer_for, schedule_for
from kesi.method.snapshot import Snapshot
from kesi.method.training import Options, evaluate, fit, mix
from kesi.system.errors import KesiError, UsageError
from kesi.system.execution import machine

LAST_ONLY = Options(eval_every=0)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def small(seed=0):
    torch.manual_seed(seed)
    return models.create("resnet20", 10, [2] * 9)


@pytest.mark.parametrize(("stage", "steps"),
                         [(ONE_CYCLE, 391), (DISTILLATION, 7), (replace(ONE_CYCLE, epochs=1), 5),
                          (replace(ONE_CYCLE, epochs=2), 5), (replace(ONE_CYCLE, epochs=1), 1)])
def test_one_cycle_starts_peaks_and_ends_where_the_paper_says(stage, steps):
    rates = learning_rates(stage, steps)
    total = stage.epochs * steps
    assert len(rates) == total
    assert max(rates) <= stage.lr * (1 + 1e-9)
    if total >= 20:
        assert rates[0] == pytest.approx(stage.lr / 10)
        assert rates[-1] == pytest.approx(stage.lr / 1000)
        peak = rates.index(max(rates))
        assert abs(peak - 0.1 * total) <= 1 and max(rates) == pytest.approx(stage.lr, rel=1e-2)
        # cosine: half-way down the slope lies the mean of its ends
        assert (rates[(peak + total - 1) // 2]
                == pytest.approx((stage.lr + stage.lr / 1000) / 2, rel=0.01))


def test_multistep_and_constant():
    baseline = recipe("wrn-16-8", "cifar10", "filter").baseline
    rates = learning_rates(baseline, 2)
    assert [round(rates[2 * epoch], 6) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)] == [
        0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    assert set(learning_rates(replace(USUAL, epochs=3), 2)) == {0.001}


def test_optimisers_are_the_recipes():
    network = small()
    sgd = optimizer_for(network, ONE_CYCLE).param_groups[0]
    assert (sgd["momentum"], sgd["weight_decay"]) == (0.9, 1e-4)
    adam = optimizer_for(network, DISTILLATION)
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["weight_decay"] == 0
    schedule_for(adam, DISTILLATION, 10)  # momentum is cycled with Adam, too
    assert adam.param_groups[0]["betas"][0] == pytest.approx(0.95)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0},
               {"weight_decay": -1.0}, {"schedule": "zigzag"}, {"optimizer": "lion"},
               {"ema": 1.0}, {"ema": -0.1}, {"warmup": -1.0}, {"warmup": 1}, {"div_factor": 0.0}])
def test_stages_that_make_no_sense_are_refused(change):
    with pytest.raises(UsageError):
        replace(ONE_CYCLE, **change)


def weights(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def test_same_seed_same_result_bit_for_bit_and_another_seed_another(digits):
    stage = replace(ONE_CYCLE, epochs=2, batch_size=64)
    runs = []
    for seed in (0, 0, 1):
        network = small()
        torch.rand(seed + 3)  # what was drawn before does not matter
        history = fit(network, digits, stage, seed=seed, options=LAST_ONLY)
        runs.append((weights(network), [row.train_loss for row in history]))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("stage",
                         [replace(ONE_CYCLE, epochs=3, batch_size=64),
                          replace(DISTILLATION, epochs=3, batch_size=100),
                          replace(recipe("resnet20", "digits", "filter").baseline.scaled(0.05)),
                          replace(ONE_CYCLE, epochs=3, batch_size=100, ema=0.8),
                          replace(DISTILLATION, epochs=3, batch_size=100, mixup=True)],
                         ids=["one-cycle sgd", "one-cycle adam", "multi-step", "averaged", "mixed"])
def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(digits, stage):
    def start():
        network = small()
        return network, prune_weights(network, 0.3)

    teachers = SnapshotEnsemble([Snapshot("teacher", small(seed=1))])
    objective = Distillation(teachers) if stage.mixup else CrossEntropy()
    whole, masks = start()
    expected = fit(whole, digits, stage, seed=5, masks=masks, options=LAST_ONLY,
                   objective=objective)

    states = {}

    def keep(progress):
        file = io.BytesIO()
        torch.save({"weights": network.state_dict(), "masks": masks.state_dict(),
                    "state": progress.state()}, file)
        states[progress.epoch] = file

    network, masks = start()
    fit(network, digits, stage, seed=5, masks=masks, options=LAST_ONLY, objective=objective,
        on_epoch=keep)
    for epoch in range(1, stage.epochs):
        states[epoch].seek(0)
        saved = torch.load(states[epoch], weights_only=True)
        resumed = small(seed=9)
        resumed.load_state_dict(saved["weights"])
        found = fit(resumed, digits, stage, seed=5, masks=Masks(resumed, saved["masks"]),
                    options=LAST_ONLY, objective=objective, resume=saved["state"])
        assert torch.equal(weights(resumed), weights(whole))
        without_time = [[replace(row, seconds=0) for row in history]
                        for history in (found, expected)]
        assert without_time[0] == without_time[1]


def test_mixed_images_are_two_of_a_batch_and_the_teachers_see_them(digits):
    one_hot = torch.eye(64)[:, :, None, None]
    mixed = mix(one_hot, torch.Generator().manual_seed(0))[:, :, 0, 0]
    own, others = mixed.diagonal(), mixed - mixed.diag().diag()
    assert torch.allclose(mixed.sum(1), torch.ones(64)) and bool((mixed >= 0).all())
    assert int((others > 0).sum(1).max()) == 1  # one other image each
    assert 0.4 < float(own.mean()) < 0.6 and float(own.std()) > 0.2

    seen = []

    class Spy(Distillation):
        def __call__(self, logits, images, labels):
            seen.append(images.clone())
            return super().__call__(logits, images, labels)

    stage = replace(DISTILLATION, epochs=1, batch_size=300)
    for mixup in (False, True):
        fit(small(), digits, replace(stage, mixup=mixup), seed=0, options=LAST_ONLY,
            objective=Spy(SnapshotEnsemble([Snapshot("teacher", small(seed=1))])))
    plain, mixed = seen
    assert not torch.equal(plain, mixed)
    # every mixed image lies on a line between itself and one other
    apart = mixed.flatten(1) - plain.flatten(1)
    towards = plain.flatten(1)[None] - plain.flatten(1)[:, None]  # (N, N, pixels)
    along = torch.nn.functional.cosine_similarity(apart[:, None], towards, dim=2)
    assert bool(((along.amax(1) > 0.999) | (apart.norm(dim=1) < 1e-4)).all())
    with pytest.raises(UsageError, match="mixed images have none"):
        fit(small(), digits, replace(ONE_CYCLE, epochs=1, mixup=True), seed=0)


def test_averaged_weights_are_the_average_and_their_norms_see_the_images(digits):
    """One step an epoch, so that the weights after every step can be looked at from outside."""
    stage = replace(ONE_CYCLE, epochs=5, batch_size=300)
    network = small()
    path = [[one.detach().double() for one in copy.deepcopy(network).parameters()]]
    fit(network, digits, stage, seed=3, options=LAST_ONLY, on_epoch=lambda _: path.append(
        [one.detach().double().clone() for one in network.parameters()]))
    averaged = small()
    fit(averaged, digits, replace(stage, ema=0.6), seed=3, options=LAST_ONLY)
    shares = [0.6 ** 5, *(0.4 * 0.6 ** (5 - step) for step in range(1, 6))]
    for place, found in enumerate(averaged.parameters()):
        expected = sum(share * one[place] for share, one in zip(shares, path, strict=True))
        assert torch.allclose(found.double(), expected, atol=1e-6, rtol=1e-5)
    (images, _), = TrainBatches(digits, 300, 3).epoch(5)
    seen = torch.nn.BatchNorm2d(16, momentum=None)  # by torch: its sums round by the processor
    with torch.no_grad():
        seen(averaged.conv1(images))
    assert torch.allclose(averaged.bn1.running_mean, seen.running_mean, atol=1e-6)
    assert torch.allclose(averaged.bn1.running_var, seen.running_var, rtol=1e-6)
    assert averaged.bn1.momentum == 0.1 and not torch.equal(averaged.bn1.running_var,
                                                            network.bn1.running_var)


@pytest.mark.parametrize("has", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_bf16_on_a_processor_that_only_imitates_it_is_warned_of(has, digits, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "bf16": False,
                                                                has: True})
    machine.warn_of_imitation.cache_clear()
    few = replace(digits, train=digits.train.subset(torch.arange(8)))
    stage = replace(ONE_CYCLE, epochs=1)
    for precision in ("fp32", "bf16", "bf16"):
        fit(small(), few, stage, seed=0, options=replace(LAST_ONLY, precision=precision))
    assert ["no instructions for it" in str(one.message) for one in recwarn] == [True] * (not has)


def test_averaged_weights_keep_their_zeros_and_are_told_from_others(digits):
    network = small()
    masks = prune_weights(network, 0.5)
    stage = replace(ONE_CYCLE, epochs=1, batch_size=100, ema=0.9)
    fit(network, digits, stage, seed=0, masks=masks, options=LAST_ONLY)
    assert all(not bool(network.get_parameter(name)[~mask].any())
               for name, mask in masks.state_dict().items())
    assert described(stage)["ema"] == 0.9 and "ema" not in described(ONE_CYCLE)


def test_history_says_what_happened(digits):
    held_out = load("digits", val_fraction=0.2)
    history = fit(small(), held_out, replace(ONE_CYCLE, epochs=3, batch_size=64), seed=0,
                  options=Options(eval_every=2))
    assert [row.epoch for row in history] == [1, 2, 3]
    assert [row.test_accuracy is None for row in history] == [True, False, False]
    assert [row.val_accuracy is None for row in history] == [True, False, False]
    assert all(0 <= row.train_accuracy <= 100 and row.seconds >= 0 for row in history)
    assert history[-1].lr == pytest.approx(0.1 / 1000)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(digits):
    network, seen = small(), []
    with torch.no_grad():
        network.fc.weight[0, 0] = math.inf
    with pytest.raises(KesiError,
                       match=r"loss is (nan|inf) in epoch 1, step 1 of 5, at learning rate 0.01"):
        fit(network, digits, replace(ONE_CYCLE, epochs=4, batch_size=64), seed=0,
            on_epoch=seen.append)
    assert not seen


def test_training_learns(digits):
    network = small()
    before = copy.deepcopy(network)
    history = fit(network, digits, replace(ONE_CYCLE, epochs=8, batch_size=32), seed=0,
                  options=LAST_ONLY)
    assert history[-1].test_accuracy > 50 and history[-1].train_loss < history[0].train_loss / 1.5
    assert not torch.equal(weights(before), weights(network))


def test_evaluating_leaves_the_weights_where_they_are(digits):
    """A captured step reads them there; Module.to() would move those of shape
    (N, 1, 1, 1) every time."""
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 10, 1), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten())
    evaluate(model, digits, digits.test)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    before = [weight.data_ptr() for weight in model.parameters()]
    evaluate(model, digits, digits.test)
    assert [weight.data_ptr() for weight in model.parameters()] == before
