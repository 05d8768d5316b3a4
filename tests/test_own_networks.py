"""Torchvision's networks of several kinds, small, at 32 px:
what of them is pruned, and that it is right."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models as theirs
from torch import nn
from torchvision.models.convnext import CNBlockConfig

import kesi
import models
from kesi.checkpoints.checkpoint import load as load_checkpoint
from kesi.data import load
from kesi.method.pruning import prune_filters
from kesi.method.training import Options
from kesi.own import graphs, tracing
from kesi.own.compress import Compressed
from kesi.system.errors import UsageError
from kesi.tools import export
from kesi.tools.inputs import inputs_of

pytest.importorskip("torch_pruning")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry")]

CPU = Options(device="cpu", eval_every=0)


def digits(count: int = 48):
    dataset = load("digits", image_size=32)
    train, test = dataset.train, dataset.test
    return (train.take(0, count), train.labels[:count]), (test.take(0, 60), test.labels[:60])


def mobilenet_v3() -> nn.Module:
    setting, last = theirs.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return theirs.MobileNetV3(setting, last, num_classes=10)


def efficientnet_b0() -> nn.Module:
    setting, last = theirs.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25,
                                                           depth_mult=0.25)
    return theirs.EfficientNet(setting, 0.2, num_classes=10, last_channel=last)


def densenet() -> nn.Module:
    return theirs.DenseNet(8, (2, 2, 2), 16, 2, num_classes=10)


def convnext() -> nn.Module:
    return theirs.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10)


def vit() -> nn.Module:
    return theirs.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=10)


def shufflenet() -> nn.Module:
    return theirs.ShuffleNetV2([1, 1, 1], [8, 16, 16, 32, 32], num_classes=10)


@pytest.mark.parametrize(("build", "left_alone"), [
    (mobilenet_v3, 0), (efficientnet_b0, 0), (densenet, 0)])
def test_convolutional_networks_are_pruned_throughout(build: Callable, left_alone: int):
    graph = kesi.register("theirs", build, image_size=32)
    assert not graph.problem and len(graph.left_alone) == left_alone
    assert_pruned_is_zeroed(graph)


def test_channels_that_are_shuffled_stay():
    graph = kesi.register("theirs", shufflenet, image_size=32)
    shuffled = {f"stage{stage}.0.{branch}" for stage in (2, 3, 4) for branch in ("branch1.2",
                                                                               "branch2.5")}
    assert not graph.problem and shuffled <= set(graph.left_alone)
    assert graph.cfg and shuffled.isdisjoint(sum(graph.convs, ()))
    assert_pruned_is_zeroed(graph)


@pytest.mark.parametrize(("build", "hidden"), [(convnext, (32, 64)), (vit, (24, 24))])
def test_networks_of_linear_layers_lose_the_inside_of_their_mlps(build, hidden):
    graph = kesi.register("theirs", build, image_size=32)
    assert graph.cfg == hidden and not graph.problem
    assert_pruned_is_zeroed(graph)


def assert_pruned_is_zeroed(graph: graphs.Graph) -> None:
    network = models.create("theirs", 10)
    network = tracing._randomised(network, torch.Generator().manual_seed(0)).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    smaller = prune_filters(network, 0.3).eval()
    graph.zero(network, network.cfg, graph.weakest(network, smaller.cfg))
    with torch.no_grad():
        expected, found = network(images), smaller(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, network.parameters()))


def test_one_that_cannot_be_traced_is_offered_weights(tmp_path):
    network = theirs.shufflenet_v2_x0_5(num_classes=10)
    with pytest.raises(UsageError, match="cannot trace .*prune its weights instead"):
        kesi.compress(network, *digits(), folder=tmp_path / "run", options=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("build", [mobilenet_v3, efficientnet_b0, densenet, convnext, vit,
                                   shufflenet])
@pytest.mark.parametrize("method", ["filter", "weight"])
def test_they_go_through_the_whole_method(build, method, tmp_path):
    torch.manual_seed(0)
    result = kesi.compress(build(), *digits(), method, name="theirs", rounds=1, epochs=(1, 1, 1),
                           batch_size=24, flip=False, folder=tmp_path / "run", options=CPU)
    assert_its_file_agrees(result, tmp_path)
    if method == "filter":
        assert result.network.cfg == [int(width * 0.8)
                                      for width in models.ARCHITECTURES["theirs"].cfg]
        return
    linear = {name for name in result.masks.state_dict()
              if isinstance(result.network.get_submodule(name.removesuffix(".weight")), nn.Linear)}
    assert bool(linear) == (build in (convnext, vit))
    if build is vit:  # whose heads stay, and so what they ask for, which is no linear layer
        attention = result.network.get_submodule("encoder.layers.encoder_layer_0.self_attention")
        assert bool(attention.in_proj_weight.all())
    last = [name for name, module in result.network.named_modules()
            if isinstance(module, nn.Linear)][-1]
    assert f"{last}.weight" not in linear
    assert result.masks.sparsity() == pytest.approx(0.22, abs=0.001)


def assert_its_file_agrees(result: Compressed, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    checkpoint = load_checkpoint(result.checkpoint)
    check = export.export(checkpoint, inputs_of(checkpoint), folder / "net.onnx", "onnx").check
    assert check.equal == check.images == 100 and check.largest > 0


@pytest.mark.parametrize(("name", "method"), [
    ("mobilenet_v3_small", "filter"), ("efficientnet_b0", "filter"), ("densenet121", "filter"),
    ("convnext_tiny", "filter"), ("shufflenet_v2_x0_5", "weight")])
def test_so_do_theirs_as_they_are(name, method, tmp_path):
    torch.manual_seed(0)
    whole = getattr(theirs, name)(num_classes=10)
    result = kesi.compress(whole, *digits(24), method, name="theirs", rounds=1, epochs=(1, 1, 1),
                           batch_size=12, lr=0.01, flip=False, folder=tmp_path / "run",
                           options=CPU)
    assert_its_file_agrees(result, tmp_path)
    if method == "weight":
        assert result.masks.sparsity() == pytest.approx(0.22, abs=0.001)
    else:
        sizes = [sum(map(torch.numel, one.parameters())) for one in (whole, result.network)]
        assert sizes[1] < 0.85 * sizes[0]


class Gated(nn.Module):
    """Half of its one convolution gates the other half: no filter may go alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        one, two = self.conv(images).chunk(2, 1)
        return self.head((one * torch.sigmoid(two)).mean((2, 3)))


def test_a_network_that_can_lose_no_filter_is_offered_weights(tmp_path):
    with pytest.raises(UsageError, match="prune its weights instead") as refused:
        kesi.compress(Gated(), *digits(), folder=tmp_path / "run", options=CPU)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
    result = kesi.compress(Gated(), *digits(), "weight", rounds=1, epochs=(1, 1, 1),
                           batch_size=24, folder=tmp_path / "run", options=CPU)
    assert result.masks.sparsity() == pytest.approx(0.22, abs=0.003)  # of 216 weights
