"""The networks: sizes of all rounds, shapes, names, gradients."""

import pytest
import torch
import torchvision

import models
from kesi.method import plan
from kesi.method.recipes import recipe
from kesi.method.sizes import macs

# Parameters in millions and MACs (CIFAR in millions at 32 px, Tiny-ImageNet in billions at 224 px) of rounds
# 0 to 5, as measured on the authors' definitions.
SIZES = {
    "resnet56": ("cifar10", (0.853, 0.654, 0.514, 0.418, 0.340, 0.284), (127.65, 104.19, 86.22, 72.02, 61.25, 52.71)),
    "resnet110": ("cifar10", (1.728, 1.257, 0.923, 0.698, 0.516, 0.384),
                  (257.11, 204.12, 163.73, 132.15, 108.16, 89.22)),
    "preresnet164": ("cifar10", (1.703, 1.092, 0.742, 0.542, 0.403, 0.314),
                     (260.28, 190.11, 144.70, 113.35, 92.71, 77.86)),
    "wrn-16-8": ("cifar10", (10.961, 8.011, 5.894, 4.379, 3.278, 2.479),
                 (1552.37, 1237.85, 997.26, 810.98, 665.57, 550.71)),
    "vgg16": ("cifar10", (14.988, 9.455, 6.273, 4.431, 3.356, 2.715), (314.82, 254.64, 218.02, 195.34, 180.88, 171.63)),
    "resnet18": ("tinyimagenet", (11.279, 8.307, 6.171, 4.637, 3.520, 2.708),
                 (1.825, 1.529, 1.297, 1.107, 0.956, 0.836)),
    "resnet34": ("tinyimagenet", (21.387, 15.968, 12.019, 9.127, 6.991, 5.404),
                 (3.680, 3.054, 2.560, 2.155, 1.832, 1.572)),
}
# Millions of non-zero parameters after round 5 of weight pruning, the paper's table 2.
NONZERO = {"resnet56": 0.29, "resnet110": 0.36, "wrn-16-8": 2.53, "vgg16": 1.02}


@pytest.mark.parametrize("arch", SIZES)
def test_sizes_of_all_rounds_are_the_published_ones(arch):
    dataset, params, macs = SIZES[arch]
    tiny = dataset == "tinyimagenet"
    found = plan.sizes(recipe(arch, dataset, "filter", "tinyimagenet" if tiny else "cifar"), 200 if tiny else 10,
                       224 if tiny else 32)
    assert [round(size.params / 1e6, 3) for size in found] == list(params)
    unit, digits = (1e9, 3) if tiny else (1e6, 2)
    assert [round(size.macs / unit, digits) for size in found] == list(macs)


@pytest.mark.parametrize("arch", NONZERO)
def test_weight_pruning_leaves_the_papers_number_of_parameters(arch):
    last = plan.sizes(recipe(arch, "cifar10", "weight"), 10, 32)[-1]
    # the paper rounds, and for VGG-16 counts 0.01 M more than its own sparsity of 0.95 gives
    assert last.nonzero_params / 1e6 == pytest.approx(NONZERO[arch], abs=0.011)
    assert last.macs_saved == 0


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_logits_for_every_size_of_image_it_claims(arch):
    if arch == "wrn-28-10":
        pytest.skip("36 million parameters; the same code as wrn-16-8")
    network = models.create(arch, 7).eval()
    for size in {network.min_image_size, 33, 48} - {8 if network.min_image_size > 8 else 0}:
        assert network(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_wide_28_10_builds():
    with torch.device("meta"):
        network = models.create("wrn-28-10", 10)
    assert sum(p.numel() for p in network.parameters()) == 36_479_194  # Zagoruyko and Komodakis: 36.5 M
    assert all(block.dropout == 0.3 for block in network.block1.layer)


def test_shortcut_passes_gradients():
    """The released code cut them off at the two shortcuts that change the shape."""
    block = models.create("resnet20", 10).layer2[0]
    images = torch.randn(2, 16, 8, 8, requires_grad=True)
    block.shortcut(images).square().sum().backward()
    assert images.grad.abs().min() > 0
    out = block.shortcut(images)
    assert torch.equal(out[:, 16:], torch.zeros_like(out[:, 16:]))
    assert torch.allclose(out[:, :16], torch.nn.functional.avg_pool2d(images, 2))


def test_resnet18_is_torchvisions():
    ours, theirs = models.create("resnet18", 11).eval(), torchvision.models.resnet18(num_classes=11).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 96, 96)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_initial_weights_have_the_papers_spread():
    torch.manual_seed(0)
    network = models.create("vgg16", 10)
    weight = network.feature[10].weight  # 3x3, 256 filters
    assert weight.std().item() == pytest.approx((2 / (9 * len(weight))) ** 0.5, rel=0.02)
    assert torch.equal(network.feature[1].weight, torch.full((64,), 0.5))
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(("arguments", "message"), [
    (("resnet57", 10), "unknown architecture 'resnet57'; choose one of: vgg11"),
    (("resnet20", 1), "at least 2 classes"),
    (("resnet20", 10, [16] * 8), "9 entries, not 8"),
    (("resnet20", 10, [17] + [16] * 8), "entry 0 should be a whole number from 1 to 16, not 17"),
    (("resnet20", 10, [0] + [16] * 8), "entry 0"),
    (("resnet20", 10, [True] + [16] * 8), "entry 0"),
    (("vgg11", 10, [64, 64, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]), "entry 1 should be 'M', not 64"),
])
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        models.create(*arguments)


def test_a_module_of_two_names_is_counted_and_left_alone():
    """A list of branches beside the branches themselves, say."""
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left = torch.nn.Conv2d(3, 4, 1, bias=False)
            self.branches = torch.nn.ModuleList([self.left])

        def forward(self, x):
            return self.branches[0](x).mean((2, 3))

    network = Twice()
    assert macs(network, 8) == 3 * 4 * 64 + 2 * 4 * 64  # the convolution and the global pool
    assert network.left.weight.device.type == network.branches[0].weight.device.type == "cpu"


def test_every_network_says_what_the_method_has_to_know():
    for name, network in models.ARCHITECTURES.items():
        widths = [width for width in network.cfg if width != "M"]
        assert len(network.rates) == len(widths), name
        assert len(network.sparsities) == 5 and sorted(network.sparsities) == list(network.sparsities)
        with torch.device("meta"):
            assert network.image_size >= models.create(name, 10).min_image_size
    assert {name for name, network in models.ARCHITECTURES.items() if network.in_paper} == set(SIZES)
    assert {name for name, network in models.ARCHITECTURES.items() if network.image_size == 224} == {
        "resnet18", "resnet34"}


@pytest.mark.parametrize(("typed", "name"), [("wrn_16_8", "wrn-16-8"), ("WRN_28_10", "wrn-28-10"),
                                             ("resnet56", "resnet56"), ("lenet_5", "lenet_5")])
def test_names_of_the_released_code_are_understood(typed, name):
    assert models.canonical(typed) == name
    if name in models.ARCHITECTURES:
        with torch.device("meta"):
            assert models.create(typed, 10).arch == name
