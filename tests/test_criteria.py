"""Criteria against torch's own pruning and formulas written out, on networks of ours."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune as torchs

import models
from kesi.data import Dataset, Split
from kesi.data.augment import PadCrop
from kesi.method.algorithm import prune
from kesi.method.pruning import kept_filters, prune_filters, prune_weights
from kesi.method.pruning.criteria import (
    FILTER_CRITERIA,
    WEIGHT_CRITERIA,
    Evidence,
    criterion_of,
)
from kesi.method.recipes import recipe
from kesi.method.snapshot import Snapshot, digest_of
from kesi.system.errors import UsageError
from kesi.system.seeds import generator

ARCHS = ("resnet20", "vgg11")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def network(arch):
    torch.manual_seed(0)
    made = models.create(arch, 4)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made


def evidence(seed=0, number=1):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 32, 32, 3), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(10) % 4)
    dataset = Dataset("noise", split, split, None, tuple("abcd"), MEAN, STD, 32, PadCrop(32, 4))
    return Evidence(dataset, seed, number)


def layers_of(model):
    return [layer.conv for layer in model.prunable()][:4]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_norms_keep_what_torchs_structured_pruning_keeps(arch, name, power):
    model = network(arch)
    kept = kept_filters(model, 0.3, FILTER_CRITERIA[name])
    for layer in layers_of(model):
        conv = torch.nn.Conv2d(1, 1, 1)
        conv.weight = torch.nn.Parameter(model.get_submodule(layer).weight.detach().clone())
        gone = len(conv.weight) - len(kept[layer])
        torchs.ln_structured(conv, "weight", gone, n=power, dim=0)
        assert (kept[layer].tolist()
                == conv.weight_mask.flatten(1)[:, 0].nonzero().flatten().tolist())


@pytest.mark.parametrize("arch", ARCHS)
def test_batch_norm_takes_the_scale_of_the_norm_behind(arch):
    model = network(arch)
    found = FILTER_CRITERIA["batch-norm"](model, layers_of(model), Evidence())
    for layer in model.prunable()[:4]:
        expected = [abs(one) for one in model.get_submodule(layer.bn).weight.tolist()]
        assert found[layer.conv].tolist() == expected


def test_fpgm_sums_the_distances_to_all_filters_of_a_layer():
    model = network("resnet20")
    found = FILTER_CRITERIA["fpgm"](model, layers_of(model), Evidence())
    for layer in layers_of(model):
        filters = model.get_submodule(layer).weight.detach().double()
        expected = [sum(float((one - other).square().sum().sqrt()) for other in filters)
                    for one in filters]
        assert found[layer].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("normed", [True, False])
def test_taylor_is_the_squared_change_of_the_loss_when_an_output_is_scaled(normed, monkeypatch):
    """By finite differences of a factor on the output of a filter, batch by batch: that of its
    batch norm, which goes with it, or its own where its norm has no weights."""
    monkeypatch.setattr("kesi.method.pruning.criteria.BATCH", 5)
    seen, model = evidence(), network("resnet20")
    pair = model.prunable()[1]
    norm = model.get_submodule(pair.bn)
    if not normed:
        norm.weight = norm.bias = None
        model.get_submodule(pair.conv).bias = torch.nn.Parameter(torch.randn(16))
    found = FILTER_CRITERIA["taylor"](model, [pair.conv], seen)[pair.conv]
    model.double().eval()
    split = seen.dataset.train
    split = split.subset(torch.randperm(10, generator=generator(0, "criterion", 1, "images")))
    images = split.take(0, 10).permute(0, 3, 1, 2).double() / 255
    images = ((images - torch.tensor(MEAN).double()[:, None, None])
              / torch.tensor(STD).double()[:, None, None])
    factors = torch.ones(16, 1, 1, dtype=torch.double)
    model.get_submodule(pair.bn if normed else pair.conv).register_forward_hook(
        lambda module, inputs, output: output * factors)

    def loss(place, factor, batch):
        factors[place] = factor
        with torch.no_grad():
            value = float(F.cross_entropy(model(images[batch]), split.labels[batch]))
        factors[place] = 1
        return value

    expected = [sum(((loss(place, 1 + 1e-5, batch) - loss(place, 1 - 1e-5, batch)) / 2e-5) ** 2
                    for batch in (slice(5), slice(5, 10))) / 2 for place in range(8)]
    assert found[:8].tolist() == pytest.approx(expected, rel=1e-2, abs=1e-9)


def test_taylor_leaves_the_network_as_it_was_and_needs_images():
    model = network("resnet20").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FILTER_CRITERIA["taylor"](model, layers_of(model), evidence())
    assert model.training and all(one.grad is None for one in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="images"):
        FILTER_CRITERIA["taylor"](model, layers_of(model), Evidence())


def test_taylor_looks_at_all_classes_also_where_they_are_in_order(monkeypatch):
    monkeypatch.setattr("kesi.method.pruning.criteria.IMAGES", 5)
    model, seen = network("resnet20"), evidence()
    ordered = replace(seen.dataset.train, labels=torch.arange(10) * 4 // 10)
    few = ordered.subset(torch.tensor([0, 2, 4, 6, 8]))

    def scores(split):
        data = replace(seen.dataset, train=split)
        return FILTER_CRITERIA["taylor"](model, layers_of(model)[:1], Evidence(data)).popitem()[1]

    assert set(few.labels.tolist()) == {0, 1, 2, 3}
    assert torch.equal(scores(ordered), scores(few))


def test_a_criterion_that_draws_from_torch_gives_the_same_again(monkeypatch):
    monkeypatch.setitem(FILTER_CRITERIA, "drawn", lambda network, layers, evidence: {
        layer: torch.rand(len(network.get_submodule(layer).weight)) for layer in layers})
    made = recipe("resnet20", "digits", "filter").changed(criterion="drawn")
    start, found = Snapshot("baseline", network("resnet20")), []
    for seed, number in ((0, 1), (0, 1), (1, 1), (0, 2)):
        before = torch.random.get_rng_state()
        pruned = prune(start, made, 0.5, number, evidence(seed))
        found.append(digest_of(pruned.network.state_dict()))
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(1)
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("entries", [FILTER_CRITERIA, WEIGHT_CRITERIA])
def test_random_follows_from_seed_round_and_layer_alone(entries):
    model = network("resnet20")
    layers = layers_of(model)[:2]
    first = entries["random"](model, layers, evidence(0, 1))
    again = entries["random"](network("resnet20"), layers, evidence(0, 1))
    assert all(torch.equal(first[layer], again[layer]) for layer in layers)
    for other in (evidence(1, 1), evidence(0, 2)):
        assert not torch.equal(entries["random"](model, layers, other)[layers[0]], first[layers[0]])
    assert not torch.equal(first[layers[0]], first[layers[1]])


def test_magnitude_zeroes_what_torchs_global_pruning_zeroes():
    model, other = network("vgg11"), network("vgg11")
    prune_weights(model, 0.4, criterion=WEIGHT_CRITERIA["magnitude"])
    convs = [one for one in other.modules() if isinstance(one, torch.nn.Conv2d)]
    torchs.global_unstructured([(one, "weight") for one in convs], torchs.L1Unstructured,
                               amount=0.4)
    found = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(found, convs, strict=True))


@pytest.mark.parametrize("name", FILTER_CRITERIA)
def test_every_criterion_prunes(name):
    smaller = prune_filters(network("resnet20"), 0.5, FILTER_CRITERIA[name], evidence())
    assert smaller.cfg == [8] * 3 + [16] * 3 + [32] * 3


def test_an_unknown_criterion_is_said():
    with pytest.raises(UsageError, match="fpgm"):
        criterion_of("filter", "magnitude")
