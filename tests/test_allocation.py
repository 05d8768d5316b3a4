"""Allocations: the target is reached within one step, with the multiples asked for."""

from functools import cache

import pytest
import torch

import models
from kesi.method.pruning import prune_filters
from kesi.method.pruning.allocation import (
    Target,
    allocate,
    allocate_rounds,
    ranked,
    scaled,
    shares_of,
    sparsities_of,
    uniform,
)
from kesi.method.pruning.criteria import l2
from kesi.method.pruning.filters import pruned_widths, widths_of
from kesi.method.sizes import macs, parameters
from kesi.system.errors import KesiError, UsageError

ARCHS = ("resnet20", "vgg16", "wrn-16-8")
ORDERS = ("uniform", "scaled", "ranked")


def order_of(kind, arch):
    widths = widths_of(models.ARCHITECTURES[arch].cfg)
    if kind == "ranked":
        torch.manual_seed(0)
        return ranked(models.create(arch, 10), l2)
    if kind == "scaled":
        return scaled(widths, models.ARCHITECTURES[arch].rates)
    return uniform(widths)


@cache
def size(arch, cfg, measure):
    with torch.device("meta"):
        network = models.create(arch, 10, cfg)
    return macs(network, 32) if measure == "macs" else parameters(network)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize(("measure", "share", "multiple"), [("macs", 0.7, 1), ("params", 0.6, 8)])
def test_target_is_reached_within_one_step_of_one_width(arch, kind, measure, share, multiple):
    found = allocate(arch, 10, 32, Target(measure, share), order_of(kind, arch), round_to=multiple)
    unpruned = models.ARCHITECTURES[arch].cfg
    whole = size(arch, unpruned, measure)
    assert getattr(found, measure) == size(arch, found.cfg, measure) / whole <= share
    assert pruned_widths(unpruned, found.rates) == list(found.cfg)
    assert all(width % multiple == 0 for width in widths_of(found.cfg))
    larger = []  # one step less, anywhere
    for place, (width, most) in enumerate(zip(found.cfg, unpruned, strict=True)):
        if width not in ("M", most):
            larger.append([*found.cfg])
            larger[-1][place] = min(most, width + multiple)
    assert any(size(arch, tuple(cfg), measure) > share * whole for cfg in larger)


@pytest.mark.parametrize("kind", ORDERS)
def test_less_is_never_wider(kind):
    order = order_of(kind, "resnet20")
    last = None
    for share in (0.95, 0.9, 0.8, 0.7, 0.65):
        widths = widths_of(allocate("resnet20", 10, 32, Target("macs", share), order).cfg)
        assert last is None or all(a <= b for a, b in zip(widths, last, strict=True))
        last = widths


def test_uniform_takes_the_same_share_of_every_width():
    found = allocate("vgg16", 10, 32, Target("params", 0.25), uniform(
        widths_of(models.ARCHITECTURES["vgg16"].cfg)))
    for width, most in zip(widths_of(found.cfg), widths_of(models.ARCHITECTURES["vgg16"].cfg),
                           strict=True):
        assert width / most == pytest.approx(widths_of(found.cfg)[-1] / 512, abs=1 / most)


def test_scaled_leaves_alone_what_the_paper_leaves_alone():
    found = allocate("resnet20", 10, 32, Target("macs", 0.7), order_of("scaled", "resnet20"))
    for rate, width, most in zip(models.ARCHITECTURES["resnet20"].rates, found.cfg,
                                 models.ARCHITECTURES["resnet20"].cfg, strict=True):
        assert (width == most) == (rate == 0)


def test_ranked_is_one_sorted_list_of_all_filters():
    """Written out: of every width the scores of its layers, each over its norm, sorted and averaged
    layer by layer; the lowest of all go one by one until the MACs are within the target."""
    torch.manual_seed(0)
    network = models.create("resnet20", 10)
    every = []
    for width in range(9):
        scores = []
        for layer in (one for one in network.prunable() if one.width == width):
            sums = network.get_submodule(layer.conv).weight.abs().double().sum((1, 2, 3)).tolist()
            norm = sum(one ** 2 for one in sums) ** 0.5
            scores.append(sorted(one / norm for one in sums))
        every += [(sum(ranks) / len(ranks), width) for ranks in zip(*scores, strict=True)]
    cfg = list(network.cfg)
    for _, width in sorted(every):
        if macs(models.create("resnet20", 10, cfg), 32) <= 0.8 * macs(network, 32):
            break
        cfg[width] -= 1
    assert list(allocate("resnet20", 10, 32, Target("macs", 0.8), ranked(network)).cfg) == cfg


def test_ranked_takes_filters_of_no_weight_first():
    torch.manual_seed(0)
    network = models.create("resnet20", 10)
    with torch.no_grad():
        network.get_submodule(network.prunable()[4].conv).weight[:20] *= 1e-6
    found = allocate("resnet20", 10, 32, Target("macs", 0.95), ranked(network, l2))
    changed = [a != b for a, b in zip(found.cfg, network.cfg, strict=True)]
    assert changed == [place == 4 for place in range(9)]
    assert list(prune_filters(network, found.rates, l2).cfg) == list(found.cfg)


def test_ranked_forgets_how_large_the_weights_of_a_layer_are():
    torch.manual_seed(0)
    network = models.create("resnet20", 10)
    before = allocate("resnet20", 10, 32, Target("macs", 0.6), ranked(network, l2)).cfg
    with torch.no_grad():
        for place, layer in enumerate(network.prunable()):
            network.get_submodule(layer.conv).weight.mul_(10 ** (place % 3))
    assert allocate("resnet20", 10, 32, Target("macs", 0.6), ranked(network, l2)).cfg == before
    with pytest.raises(KesiError, match="gives layer1.0.conv1 infinite scores"):
        ranked(network, lambda *asked: {
            layer: score / (layer != "layer1.0.conv1") for layer, score in l2(*asked).items()})


@pytest.mark.parametrize("steps", ["geometric", "equal"])
def test_rounds_lead_to_the_target(steps):
    order = order_of("uniform", "wrn-16-8")
    found = allocate_rounds("wrn-16-8", 10, 32, Target("macs", 0.4), order, 3, steps, 8)
    cfg = list(models.ARCHITECTURES["wrn-16-8"].cfg)
    for one, share in zip(found, shares_of(0.4, 3, steps), strict=True):
        cfg = pruned_widths(cfg, one.rates)
        assert cfg == list(one.cfg)
        assert share - 0.1 < one.macs <= share
    assert all(width % 8 == 0 for width in cfg)


def test_shares_are_geometric_or_equal():
    assert shares_of(0.1, 2) == pytest.approx((0.1 ** 0.5, 0.1))
    assert shares_of(0.4, 3, "equal") == pytest.approx((0.8, 0.6, 0.4))
    assert sparsities_of(0.875, 3) == pytest.approx((0.5, 0.75, 0.875))
    assert sparsities_of(0.9, 5)[-1] == 0.9


@pytest.mark.parametrize(("act", "said"), [
    (lambda: allocate("resnet20", 10, 32, Target("macs", 0.01), order_of("uniform", "resnet20")),
     "cannot be pruned to 0.01"),
    (lambda: allocate("resnet20", 10, 32, Target("macs", 0.2), order_of("scaled", "resnet20")),
     "is the least"),
    (lambda: Target("flops", 0.5), "macs, params"), (lambda: Target("macs", 0.0), "above 0"),
    (lambda: shares_of(0.5, 0), "one round"), (lambda: sparsities_of(1.0, 2), "below 1")])
def test_what_cannot_be_reached_is_said(act, said):
    with pytest.raises(UsageError, match=said):
        act()
