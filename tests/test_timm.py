"""Networks of timm, as they are, through the whole method and into a file that agrees."""

import pytest
import torch

import kesi
import models
from kesi.checkpoints.checkpoint import load as load_checkpoint
from kesi.data import load
from kesi.method.training import Options
from kesi.tools import export
from kesi.tools.inputs import inputs_of

timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torch_pruning")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry")]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "repvgg_a0"])
def test_they_are_compressed_and_the_exported_file_agrees(name, tmp_path):
    torch.manual_seed(0)
    dataset = load("digits", image_size=32)
    train, test = dataset.train, dataset.test
    result = kesi.compress(timm.create_model(name, num_classes=10),
                           (train.take(0, 48), train.labels[:48]),
                           (test.take(0, 40), test.labels[:40]), name="theirs", rounds=1,
                           epochs=(1, 1, 1), batch_size=24, flip=False, folder=tmp_path / "run",
                           options=Options(device="cpu", eval_every=0))
    before = models.create("theirs", 10)
    assert result.network.cfg == [int(width * 0.8) for width in before.cfg]
    sizes = [sum(map(torch.numel, one.parameters())) for one in (before, result.network)]
    assert sizes[1] < 0.75 * sizes[0]
    checkpoint = load_checkpoint(result.checkpoint)
    check = export.export(checkpoint, inputs_of(checkpoint), tmp_path / "net.onnx", "onnx").check
    assert check.equal == check.images == 100
