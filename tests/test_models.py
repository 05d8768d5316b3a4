"""The networks: sizes of all rounds, shapes, names, gradients."""

import pytest
import torch
import torchvision

import models
from kesi.method import plan
from kesi.method.paper import published
from kesi.method.pruning.filters import pruned_widths
from kesi.method.recipes import recipe
from kesi.method.sizes import macs, paper_macs

# Parameters and MACs in millions of rounds 0 to 5: 10 classes at 32 px, the last two of 200 classes
# at 224 px.
SIZES = {
    "resnet56": ((0.853, 0.654, 0.514, 0.418, 0.340, 0.284),
                 (125.49, 102.19, 84.35, 70.26, 59.57, 51.09), 59.28),
    "resnet110": ((1.728, 1.257, 0.923, 0.698, 0.516, 0.384),
                  (252.89, 200.25, 160.14, 128.80, 104.99, 86.19), 65.92),
    "preresnet164": ((1.703, 1.092, 0.742, 0.542, 0.403, 0.314),
                     (247.65, 178.17, 133.34, 102.48, 82.18, 67.62), 72.69),
    "wrn-16-8": ((10.961, 8.011, 5.894, 4.379, 3.278, 2.479),
                 (1548.15, 1233.92, 993.56, 807.47, 662.23, 547.51), 64.63),
    "vgg16": ((14.988, 9.455, 6.273, 4.431, 3.356, 2.715),
              (313.46, 253.38, 216.84, 194.22, 179.80, 170.58), 45.58),
    "resnet18": ((11.279, 8.307, 6.171, 4.637, 3.520, 2.708),
                 (1813.66, 1518.10, 1286.67, 1097.11, 946.40, 826.61), 54.42),
    "resnet34": ((21.387, 15.968, 12.019, 9.127, 6.991, 5.404),
                 (3663.35, 3038.13, 2544.78, 2140.72, 1817.95, 1558.63), 57.45),
}
# The paper's tool, millions of MACs of the baseline and after round 5, where they are known.
TOOL = {"resnet56": (127.09, 52.28), "preresnet164": (257.11, 75.29), "resnet18": (1822, 834)}
# Millions of non-zero parameters after round 5 of weight pruning, the paper's table 2.
NONZERO = {"resnet56": 0.29, "resnet110": 0.36, "wrn-16-8": 2.53, "vgg16": 1.02}


def recipe_of(arch: str):
    tiny = models.ARCHITECTURES[arch].image_size == 224
    return recipe(arch, *(("tinyimagenet", "filter", "tinyimagenet") if tiny
                          else ("cifar10", "filter")))


def classes_of(arch: str) -> int:
    return 200 if models.ARCHITECTURES[arch].image_size == 224 else 10


def networks(arch: str):
    """The baseline and the network after round 5, without weights."""
    cfg = list(models.ARCHITECTURES[arch].cfg)
    pruned = cfg
    for rates in recipe_of(arch).rounds:
        pruned = pruned_widths(pruned, rates)
    with torch.device("meta"):
        return [models.create(arch, classes_of(arch), widths) for widths in (cfg, pruned)]


@pytest.mark.parametrize("arch", SIZES)
def test_sizes_of_all_rounds_are_the_published_ones(arch):
    params, macs, saved = SIZES[arch]
    found = plan.sizes(recipe_of(arch), classes_of(arch), models.ARCHITECTURES[arch].image_size)
    assert [round(size.params / 1e6, 3) for size in found] == list(params)
    assert [round(size.macs / 1e6, 2) for size in found] == list(macs)
    assert found[-1].macs_saved == saved


@pytest.mark.parametrize("arch", SIZES)
def test_the_papers_shares_of_macs_follow_from_its_tool(arch):
    """It divided figures that were rounded to two decimals of a giga."""
    counts = [paper_macs(network, models.ARCHITECTURES[arch].image_size)
              for network in networks(arch)]
    if arch in TOOL:
        digits = 2 if counts[0] < 1e9 else 0
        assert tuple(round(count / 1e6, digits) for count in counts) == TOOL[arch]
    before, after = (round(count / 1e9, 2) for count in counts)
    if arch in ("resnet18", "resnet34"):  # of which the figures themselves are printed
        assert (before, after) == {"resnet18": (1.82, 0.83), "resnet34": (3.68, 1.57)}[arch]
        return
    printed = list(published(arch, "cifar10", "filter").values())[-1].macs_saved
    assert 100 * (1 - after / before) == pytest.approx(printed, abs=0.05)


def test_how_much_the_two_ways_of_counting_differ():
    shares = [1 - macs(network, size) / paper_macs(network, size)
              for arch, size in (("wrn-28-10", 32), ("preresnet164", 32))
              for network in networks(arch)]
    assert (round(min(shares), 3), round(max(shares), 2)) == (0.001, 0.10)


@pytest.mark.parametrize(("network", "count"), [
    (torch.nn.Conv2d(6, 8, 3, padding=1, groups=2), 8 * 3 * 9 * 16),
    (torch.nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6), 6 * 9 * 4),
    (torch.nn.Sequential(torch.nn.Conv2d(6, 2, 1, bias=False), torch.nn.BatchNorm2d(2),
                         torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 5)),
     6 * 2 * 16 + 32 * 5)])
def test_macs_are_those_of_convolutions_and_linear_layers(network, count):
    before = torch.nn.Conv2d(3, 6, 1)
    assert macs(torch.nn.Sequential(before, network), 4) == 3 * 6 * 16 + count


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
    # Zagoruyko and Komodakis: 36.5 M
    assert sum(p.numel() for p in network.parameters()) == 36_479_194
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
    ours, theirs = (models.create("resnet18", 11).eval(),
                    torchvision.models.resnet18(num_classes=11).eval())
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 96, 96)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_initial_weights_have_the_papers_spread():
    torch.manual_seed(0)
    network = models.create("vgg16", 10)
    weight = network.feature[10].weight  # 3x3, 256 filters
    assert weight.std().item() == pytest.approx((2 / (9 * len(weight))) ** 0.5, rel=0.02)
    assert torch.equal(network.feature[1].weight, torch.full((64,), 0.5))
    assert torch.equal(network.classifier[1].weight, torch.ones(512))
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(("arguments", "message"), [
    (("resnet57", 10), "unknown architecture 'resnet57'; choose one of: vgg11"),
    (("resnet20", 1), "at least 2 classes"),
    (("resnet20", 10, [16] * 8), "9 entries, not 8"),
    (("resnet20", 10, [17] + [16] * 8), "entry 0 should be a whole number from 1 to 16, not 17"),
    (("resnet20", 10, [0] + [16] * 8), "entry 0"),
    (("resnet20", 10, [True] + [16] * 8), "entry 0"),
    (("vgg11", 10, [64, 64, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]),
     "entry 1 should be 'M', not 64"),
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
    assert macs(network, 8) == 3 * 4 * 64
    assert network.left.weight.device.type == network.branches[0].weight.device.type == "cpu"


def test_every_network_says_what_the_method_has_to_know():
    ours = {name: one for name, one in models.ARCHITECTURES.items() if one.graph is None}
    for name, network in ours.items():
        widths = [width for width in network.cfg if width != "M"]
        assert len(network.rates) == len(widths), name
        assert (len(network.sparsities) == 5
                and sorted(network.sparsities) == list(network.sparsities))
        with torch.device("meta"):
            assert network.image_size >= models.create(name, 10).min_image_size
    assert {name for name, network in ours.items() if network.in_paper} == set(SIZES)
    assert {name for name, network in ours.items() if network.image_size == 224} == {"resnet18",
                                                                                     "resnet34"}


@pytest.mark.parametrize(("typed", "name"), [("wrn_16_8", "wrn-16-8"), ("WRN_28_10", "wrn-28-10"),
                                             ("resnet56", "resnet56"), ("lenet_5", "lenet_5")])
def test_names_of_the_released_code_are_understood(typed, name):
    assert models.canonical(typed) == name
    if name in models.ARCHITECTURES:
        with torch.device("meta"):
            assert models.create(typed, 10).arch == name


@pytest.mark.parametrize(("size", "side"), [((32, 32), (2, 2)), ((48, 48), (3, 3)),
                                            ((48, 80), (3, 5))])
def test_every_place_of_vggs_last_map_has_a_say(size, side):
    network = models.create("vgg11", 10).eval()
    last = network.feature(torch.randn(1, 3, *size)).detach().requires_grad_()
    network.feature = torch.nn.Identity()
    network(last).sum().backward()
    assert last.shape[2:] == side and bool((last.grad.abs().sum(1) > 0).all())
