"""Pruning by its properties: a smaller network that computes the same, zeros that stay zero."""

import copy
import warnings
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

import models
from kesi.method import plan
from kesi.method.pruning import Masks, kept_filters, prune_filters, prune_weights
from kesi.method.pruning.filters import pruned_widths, widths_of
from kesi.method.pruning.weights import conv_weights, masks_from_zeros
from kesi.method.recipes import recipe

SMALL = {  # narrow starting points, so that a round takes milliseconds
    "vgg16": [8, 8, "M", 12, 12, "M", 12, 12, 12, "M", 16, 16, 16, "M", 16, 16, 16],
    "vgg11": [8, "M", 12, "M", 12, 12, "M", 16, 16, "M", 16, 16],
    "resnet20": None,
    "resnet56": None,
    "preresnet110": None,
    "preresnet164": None,
    "wrn-16-8": [9, 8, 10, 11, 12, 13],
    "resnet18": [9, 8, 10, 11, 12, 13, 14, 15],
    "resnet34": [8] * 16,
}


def trained_looking(arch, seed=0):
    """A network whose norms have statistics and signs as after training,
    where a wrong slice would show."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = models.create(arch, 5, SMALL[arch])
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.normal_(0.3, 0.5, generator=generator)
    return network.eval()


def zeroed(network, kept):
    """The same network with the other filters, and what their norms would make of them,
    set to zero."""
    dense = copy.deepcopy(network)
    for layer in dense.prunable():
        gone = torch.ones(dense.get_submodule(layer.conv).out_channels, dtype=torch.bool)
        gone[kept[layer.conv]] = False
        with torch.no_grad():
            dense.get_submodule(layer.conv).weight[gone] = 0
            norm = dense.get_submodule(layer.bn)
            norm.weight[gone] = norm.bias[gone] = 0
    return dense


@pytest.mark.parametrize("arch", SMALL)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_pruned_network_computes_what_the_dense_one_does_with_those_filters_zeroed(arch, data):
    network = trained_looking(arch)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        count = len(widths_of(network.cfg))
        rates = data.draw(st.lists(st.floats(0, 0.7), min_size=count, max_size=count))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smaller = prune_filters(network, rates)
            dense = zeroed(network, kept_filters(network, rates))
        with torch.no_grad():
            expected, found = dense(images), smaller(images)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert (widths_of(smaller.cfg)
                == [max(1, int(width * (1 - rate)))
                    for width, rate in zip(widths_of(network.cfg), rates, strict=True)])
        network = smaller


@pytest.mark.parametrize("arch", SMALL)
def test_kept_filters_are_the_largest_by_l1_norm_in_order(arch):
    network = trained_looking(arch)
    for name, kept in kept_filters(network, 0.4).items():
        norms = [float(filter_.abs().sum())
                 for filter_ in network.get_submodule(name).weight.detach()]
        gone = sorted(set(range(len(norms))) - set(kept.tolist()))
        assert all(a < b for a, b in pairwise(kept.tolist()))
        assert gone and min(norms[i] for i in kept) >= max(norms[i] for i in gone)


def test_the_network_given_stays_as_it_is():
    network = trained_looking("resnet20")
    before = copy.deepcopy(network.state_dict())
    prune_filters(network, 0.5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_rate_that_would_leave_nothing_keeps_one_filter_and_says_so():
    with pytest.warns(UserWarning, match="would leave none of the 16 filters of layer 0: kept one"):
        smaller = prune_filters(trained_looking("resnet20"), [0.99] + [0.0] * 8)
    assert smaller.cfg[0] == 1 and smaller(torch.randn(1, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize("rates", [1.0, -0.1, float("nan"), [0.1] * 8, [0.1] * 8 + ["much"]])
def test_rates_that_make_no_sense_are_refused(rates):
    with pytest.raises(ValueError, match="rate"):
        pruned_widths([16] * 9, rates)


@pytest.mark.parametrize("sparsity", [0.0, 0.22, 0.5, 0.951])
def test_magnitude_pruning_agrees_with_torch(sparsity):
    ours = trained_looking("preresnet110")
    theirs = copy.deepcopy(ours)
    layers = [(module, "weight") for module in theirs.modules()
              if isinstance(module, torch.nn.Conv2d)]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
    masks = prune_weights(ours, sparsity).state_dict()
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert torch.equal(masks[f"{name}.weight"], module.weight_mask.bool()), name
            assert torch.equal(ours.get_submodule(name).weight, module.weight)


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1, fused=True),
    lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
], ids=["sgd", "nesterov", "adam", "adamw"])
def test_pruned_weights_are_zero_after_any_number_of_steps(optimizer):
    network = trained_looking("vgg11").train()
    # momentum from before the pruning would move a weight whose gradient is zero
    steps = optimizer(network.parameters())
    masks = None
    for step in range(8):
        if step == 3:
            masks = prune_weights(network, 0.6)
            expected = {name: mask.clone() for name, mask in masks.state_dict().items()}
        loss = network(torch.randn(4, 3, 16, 16)).square().mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
        if masks is not None:
            masks.apply()
            for name, weight in conv_weights(network).items():
                assert torch.equal(weight[~expected[name]],
                                   torch.zeros_like(weight[~expected[name]]))
                assert bool((weight[expected[name]] != 0).all())


def test_a_live_weight_that_passes_through_zero_stays_alive():
    network = trained_looking("resnet20")
    masks = prune_weights(network, 0.5)
    name, weight = next(iter(conv_weights(network).items()))
    place = tuple(masks.state_dict()[name].nonzero()[0].tolist())
    with torch.no_grad():
        weight[place] = 0.0
        masks.apply()
        weight[place] += 0.25
        masks.apply()
    assert weight[place].item() == 0.25
    # and the next round prunes the dead before it: with an unchanged share it is still alive
    with torch.no_grad():
        weight[place] = 0.0
    again = prune_weights(network, 0.5, masks)
    assert bool(again.state_dict()[name][place])


def test_shares_are_cumulative_and_never_fall():
    network = trained_looking("resnet20")
    total = sum(weight.numel() for weight in conv_weights(network).values())
    masks, before = None, None
    for share in (0.22, 0.39, 0.39, 0.66):
        masks = prune_weights(network, share, masks)
        assert masks.pruned() == round(Fraction(str(share)) * total)
        assert masks.sparsity() == pytest.approx(share, abs=1 / total)
        now = masks.state_dict()
        if before is not None:
            # nothing comes back
            assert all(not bool((now[name] & ~before[name]).any()) for name in now)
        before = now
    with pytest.raises(ValueError, match="lower than what is already pruned"):
        prune_weights(network, 0.5, masks)
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            prune_weights(network, share)


def test_masks_follow_weights_that_move():
    network = trained_looking("resnet20")
    masks = prune_weights(network, 0.5)
    network.to(dtype=torch.float64, memory_format=torch.channels_last)
    masks.follow()
    masks.apply()
    assert masks.sparsity() == pytest.approx(0.5, abs=1e-5)


def test_masks_that_do_not_fit_are_refused():
    network = trained_looking("resnet20")
    with pytest.raises(ValueError, match="does not have"):
        Masks(network, {"layer9.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="has shape"):
        Masks(network, {"conv1.weight": torch.ones(1, dtype=torch.bool)})


def test_zeros_become_masks_only_where_there_are_any():
    network = trained_looking("resnet20")
    assert masks_from_zeros(network) is None
    prune_weights(network, 0.3)
    assert masks_from_zeros(network).sparsity() == pytest.approx(0.3, abs=1e-4)


def test_plan_counts_what_pruning_gives():
    for method in ("filter", "weight"):
        settings_ = recipe("resnet20", "cifar10", method)
        network, masks = models.create("resnet20", 10), None
        for size, amount in zip(plan.sizes(settings_, 10, 32)[1:], settings_.rounds, strict=True):
            if method == "filter":
                network = prune_filters(network, amount)
            else:
                masks = prune_weights(network, amount, masks)
            params = sum(p.numel() for p in network.parameters())
            assert ((size.params, size.nonzero_params)
                    == (params, params - (masks.pruned() if masks else 0)))
