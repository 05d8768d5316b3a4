"""Exported files: they give what the checkpoint gives, at every batch size, or they are not
there.
"""

import json
import re
import sys
import zlib

import numpy as np
import pytest
import torch

import kesi
import models
from doors import fails, works
from kesi import checkpoints
from kesi.cli.export import export as command
from kesi.data import load
from kesi.method.pruning import prune_weights
from kesi.own import registry
from kesi.system.errors import KesiError, UsageError
from kesi.tools import export, formats, sparse
from kesi.tools.inputs import Inputs, inputs_of
from saving import keep

pytest_plugins = ["tinyrun"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def raw(dataset, count: int) -> torch.Tensor:
    """Test images scaled to 0..1, (N, 3, S, S), without anything of the package's own
    normalisation.
    """
    return dataset.test.images[:count].permute(0, 3, 1, 2).float().div(255).contiguous()


def logits(path, dataset, count: int) -> torch.Tensor:
    """What the checkpoint says, by hand."""
    images = ((raw(dataset, count) - torch.tensor(dataset.mean).view(3, 1, 1))
              / torch.tensor(dataset.std).view(3, 1, 1))
    with torch.inference_mode():
        return checkpoints.load_model(path)(images)


def test_onnx_takes_images_from_0_to_1(filter_run, digits, tmp_path, quick_clock, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "deep" / "kesi.onnx"
    command([str(filter_run / "seed0/kesi"), "--out", str(out)])
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for count in (1, 3, 40):
        found = torch.from_numpy(session.run(None, {"images": raw(digits, count).numpy()})[0])
        assert torch.allclose(found, logits(filter_run / "seed0/kesi", digits, count), atol=1e-4)
    assert ([(place.name, place.shape[1:]) for place in session.get_inputs()]
            == [("images", [3, 16, 16])])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["kesi.classes"]) == list("0123456789")
    text = capsys.readouterr().out
    assert "opset 18" in text and "test images of digits" in text
    assert all(f"latency, batch {batch} (ms)" in text for batch in (1, 32, 128))
    assert "weight pruning" not in text
    assert [entry.version for entry in onnx.load(out).opset_import if entry.domain == ""] == [18]
    whole, small = row_of(text, "file (kB)")
    assert small == pytest.approx(out.stat().st_size / 1000, abs=0.01) and whole > 1.1 * small


def row_of(text: str, what: str) -> tuple[float, float]:
    """(baseline, compressed) of a row of the printed table."""
    line = next(line for line in text.splitlines() if line.startswith(what))
    whole, small = line.removeprefix(what).split()[:2]
    return float(whole.replace(",", "")), float(small.replace(",", ""))


def test_raw_pt2_takes_normalised_images(filter_run, digits, tmp_path):
    out = tmp_path / "kesi.pt2"
    checkpoint = checkpoints.load(filter_run / "seed0/kesi")
    made = export.export(checkpoint, inputs_of(checkpoint), out, "pt2", raw=True)
    assert (made.size == out.stat().st_size
            and made.deflated == len(zlib.compress(out.read_bytes(), 6)))
    network = torch.export.load(out).module()
    # grey: the three channels are the same
    images = (raw(digits, 9) - digits.mean[0]) / digits.std[0]
    for count in (1, 2, 9):
        found = network(images[:count])
        assert torch.allclose(found, logits(filter_run / "seed0/kesi", digits, count), atol=1e-4)


def test_sparse_safetensors_is_as_small_as_its_weights(weight_run, digits, tmp_path, quick_clock,
                                                       capsys):
    out = tmp_path / "kesi.safetensors"
    command([str(weight_run / "seed0/kesi"), "--sparse", "--out", str(out)])
    text = capsys.readouterr().out
    assert "not the network faster on dense hardware; latency, batch 1:" in text
    original = checkpoints.load(weight_run / "seed0/kesi")
    network = formats.load_safetensors(out)
    for name, value in original.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    total = sum(parameter.numel() for parameter in network.parameters())
    dense = tmp_path / "dense.safetensors"
    export.export(original, inputs_of(original), dense, "safetensors")
    zeros = original.masks.pruned()
    saved = dense.stat().st_size - out.stat().st_size
    assert 4 * zeros - total / 8 - 2000 < saved < 4 * zeros
    sizes = row_of(text, "file (kB)")
    assert sizes == pytest.approx((dense.stat().st_size / 1000, out.stat().st_size / 1000), abs=0.3)
    about = formats.load_with_metadata(out)[1]
    assert about["arch"] == "resnet20" and about["image_size"] == 16
    assert about["mean"] == pytest.approx(digits.mean) and about["classes"] == list("0123456789")


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.0005, 0.0])
def test_pack_takes_the_smaller_form_and_loses_nothing(share):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((64, 33, 3, 3), generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < share
    parts = sparse.pack(weight)
    assert torch.equal(sparse.unpack(parts, weight.shape), weight)
    assert len(parts["values"]) == int((weight != 0).sum())
    where = parts.get("gaps", parts.get("bits"))
    assert len(where) <= -(-weight.numel() // 8) and ("gaps" in parts) == (share < 0.1)


@pytest.mark.parametrize("gap", [254, 255, 256, 509, 510, 511])
def test_pack_knows_gaps_around_the_escape(gap):
    weight = torch.zeros(40_000)
    weight[[gap, 2 * gap + 1, 2 * gap + 2]] = torch.tensor([1.0, -2.0, 3.0])
    parts = sparse.pack(weight)
    assert "gaps" in parts and torch.equal(sparse.unpack(parts, [40_000]), weight)


def test_released_code_checkpoint_and_missing_images(tmp_path, monkeypatch, quick_clock, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = models.create("resnet20", 10)
    masks = prune_weights(network, 0.9)
    torch.save({"state_dict": network.state_dict(), "best_prec1": 0.9},
               tmp_path / "released.pth.tar")
    words = ["released.pth.tar", "--arch", "resnet20", "--out", "a", "--format"]
    command([*words, "safetensors", "--sparse"])
    text = capsys.readouterr().out
    assert "100 images of digits at 32 px" in text and "--baseline" in text
    # also with nothing to compare with
    assert re.search(r"^latency, batch 128 \(ms\) +[\d.,]+$", text, re.MULTILINE)
    live = sum(parameter.numel() for parameter in network.parameters()) - masks.pruned()
    # the running statistics are no parameters
    assert (tmp_path / "a").stat().st_size < 4 * live * 1.3 + 12_000
    with pytest.raises(UsageError, match="--dataset, or --raw"):
        command([*words, "onnx"])
    assert "batches of 1, 2, 7 and 100 ran" in text
    monkeypatch.setattr(export, "IMAGES", 2)
    command([*words, "onnx", "--raw", "--no-latency"])
    assert "; batches of 1 and 2 ran" in capsys.readouterr().out


@pytest.mark.parametrize(("arch", "classes", "names", "says"), [
    ("resnet20", 4, None, "knows 4 classes, and "),
    ("resnet20", 10, [*"987", *"0123456"], "knows other classes than "),
    ("one-channel", 10, None, "takes images of 1 channel(s), and "),
    ("resnet18", 10, None, "needs images of 32 px or more, and these have 16: name the network")])
def test_a_baseline_of_another_kind_is_refused(filter_run, tmp_path, registry, arch, classes, names,
                                               says):
    kesi.register("one-channel", lambda: torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(6, 10)), image_size=16, channels=1)
    other = tmp_path / "other.pth.tar"
    keep(other, models.create(arch, classes), stage="baseline",
         data={"classes": names} if names else {})
    for out in ("a.safetensors", "net"):
        fails("kesi", "export", filter_run / "seed0/kesi", "--out", tmp_path / out, "--baseline",
              other, code=2, says=f"the baseline {other} {says}")
    assert list(tmp_path.iterdir()) == [other]


def test_a_file_that_differs_is_not_written(filter_run, tmp_path, monkeypatch):
    checkpoint, out = checkpoints.load(filter_run / "seed0/kesi"), tmp_path / "kesi.pt2"
    out.write_bytes(b"before")
    genuine = formats.encode

    def wrong(network, *rest):
        with torch.no_grad():
            network.network.fc.weight[0, 0] += 1.0
        content = genuine(network, *rest)
        with torch.no_grad():
            network.network.fc.weight[0, 0] -= 1.0
        return content

    monkeypatch.setattr(export, "encode", wrong)
    with pytest.raises(KesiError, match="differs from the checkpoint"):
        export.export(checkpoint, inputs_of(checkpoint), out, "pt2")
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]


def test_a_fixed_batch_is_refused(filter_run):
    model = checkpoints.load_model(filter_run / "seed0/kesi")
    images = torch.zeros(9, 3, 16, 16)

    def only_nine(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) != 9:
            raise ValueError("expected 9 images")
        return model(batch)

    with pytest.raises(KesiError, match="does not run at batch 1: expected 9"):
        export.verify(model, only_nine, images, "zeros")
    nan = torch.full((9, 10), float("nan"))
    with pytest.raises(KesiError, match="differs"):
        export.verify(model, lambda batch: nan[:len(batch)], images, "zeros")


def test_options_that_do_not_fit(filter_run, tmp_path):
    checkpoint = checkpoints.load(filter_run / "seed0/kesi")
    with pytest.raises(UsageError, match="--sparse"):
        export.export(checkpoint, inputs_of(checkpoint), tmp_path / "a", "onnx", sparse=True)
    with pytest.raises(UsageError, match="--raw"):
        export.export(checkpoint, inputs_of(checkpoint), tmp_path / "a", "safetensors", raw=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "package"),
                         [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_missing_packages_are_named(filter_run, tmp_path, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError,
                       match=rf'{package} is not installed: pip install -e "\.\[export\]"'):
        command([str(filter_run / "seed0/kesi"), "--format", kind, "--out", str(tmp_path / "a")])
    assert not list(tmp_path.iterdir())


def test_damaged_safetensors(weight_run, tmp_path):
    checkpoint = checkpoints.load(weight_run / "seed0/kesi")
    content = formats.save_bytes(checkpoint.network, {}, sparse=True)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert formats.DIGEST not in formats.load_with_metadata(path)[1]
    path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    with pytest.raises(KesiError, match="damaged"):
        formats.load_safetensors(path)
    path.write_bytes(content[:-5])
    with pytest.raises(KesiError, match="damaged"):
        formats.load_safetensors(path)
    with pytest.raises(ValueError, match="places"):
        sparse.unpack({"values": torch.zeros(3),
                        "bits": torch.from_numpy(np.array([255], dtype=np.uint8))}, [8])
    with pytest.raises(UsageError, match="no such file"):
        formats.load_safetensors(tmp_path / "nothing")


def test_safetensors_of_an_unregistered_network_says_what_to_register(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.setattr(models, "ARCHITECTURES", dict(models.ARCHITECTURES))
    registry.register("lone", lambda: torch.nn.Sequential(torch.nn.Flatten(),
                                                          torch.nn.Linear(768, 10)), image_size=16)
    path = tmp_path / "a.safetensors"
    path.write_bytes(formats.save_bytes(models.create("lone", 10), {"image_size": 16}))
    assert formats.load_safetensors(path).num_classes == 10
    del models.ARCHITECTURES["lone"]
    with pytest.raises(UsageError,
                       match=r"say how it is built with kesi.register\('lone', factory\)"):
        formats.load_safetensors(path)


class Largest(torch.nn.Module):
    """A pool that onnxruntime's inference of shapes does not know."""

    def forward(self, images):
        return images.amax((2, 3), keepdim=True)


class Pooled(torch.nn.Sequential):
    """A network of two widths."""

    def __init__(self, activation=torch.nn.ReLU):
        super().__init__(torch.nn.Conv2d(3, 8, 3), activation(), torch.nn.Conv2d(8, 8, 3),
                         Largest(), torch.nn.Flatten(), torch.nn.Linear(8, 10))


@pytest.fixture
def pooled(tmp_path, registry):
    """Its checkpoint, with the digits that are looked at."""
    pytest.importorskip("torch_pruning")
    kesi.register("pooled", Pooled, image_size=16)
    keep(tmp_path / "c.pth.tar", models.create("pooled", 10), stage="baseline",
         data=load("digits").describe())
    return tmp_path / "c.pth.tar"


def test_int8_of_an_operation_without_known_shapes(pooled, monkeypatch):
    quantization = pytest.importorskip("onnxruntime.quantization")
    words = ("kesi", "export", pooled, "--no-latency", "--int8", "--out")
    assert "int8: the same class on " in works(*words, pooled.with_name("a.onnx"))

    def refuses(*arguments, **settings):
        raise TypeError("no such thing\nand more")

    monkeypatch.setattr(quantization, "quantize_static", refuses)
    fails(*words, pooled.with_name("net"), code=1,
          says="cannot quantise this network: no such thing; leave --int8 out")
    assert not pooled.with_name("net").exists()


def test_own_networks_are_read_with_their_widths_or_without(pooled, monkeypatch):
    folder = pooled.with_name("net")
    works("kesi", "export", pooled, "--no-latency", "--out", folder)
    assert "`kesi.register('pooled', FACTORY)`" in (folder / "README.md").read_text()
    kesi.register("pooled", lambda: Pooled(torch.nn.GELU), image_size=16)
    with pytest.warns(UserWarning, match="was saved when the code of pooled"):
        kesi.from_pretrained(folder)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    kesi.register("pooled", Pooled, image_size=16)
    with pytest.raises(UsageError, match=r'cannot be loaded: .*pip install -e "\.\[own\]"'):
        kesi.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(  # where no widths are known
        formats.save_bytes(models.create("pooled", 10), {}))
    monkeypatch.undo()
    kesi.register("pooled", Pooled, image_size=16)
    assert kesi.from_pretrained(folder).cfg == [8, 8]


class Twice(torch.nn.Module):
    """A convolution with two names; of every image by itself, which is no graph of any batch."""

    def __init__(self):
        super().__init__()
        self.first = self.second = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.body, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 10)

    def forward(self, images):
        shared = torch.stack([self.second(self.first(one)) for one in images])
        return self.head(self.body(shared).mean((2, 3)))


def test_a_shared_module_is_written_and_what_cannot_be_traced_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(models, "ARCHITECTURES", dict(models.ARCHITECTURES))
    registry.register("twice", Twice, image_size=8)
    network = models.create("twice", 10)
    (tmp_path / "a.safetensors").write_bytes(formats.save_bytes(network, {}))
    state = formats.load_safetensors(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(KesiError, match="torch cannot export this network as pt2: ") as refused:
        formats.encode(network.eval(), Inputs(8, None, None, ("",) * 10, None, "cifar"), "pt2", {})
    assert "\n" not in str(refused.value)
