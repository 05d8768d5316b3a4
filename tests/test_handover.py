"""A folder that is handed over: its programs agree with the checkpoint, and it is there as a whole
or not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kesi
import models
from datagen import write_imagefolder
from doors import fails, works
from kesi import checkpoints
from kesi.checkpoints.records import Info
from kesi.cli.export import export
from kesi.data import load
from kesi.method.training import predict as predict_split
from kesi.runs.results import stage_of
from kesi.system.errors import KesiError, UsageError
from kesi.tools.export import about_of
from kesi.tools.handover import folder as handover
from kesi.tools.handover.card import accuracies_by_seed, card, wilson
from kesi.tools.handover.folder import runtime
from kesi.tools.inputs import inputs_of
from kesi.tools.predict import image_files, predict_images
from saving import Grey, keep

pytest_plugins = ["tinyrun"]
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def handed(filter_run, tmp_path_factory) -> Path:
    """A folder as the command writes it, with int8."""
    out = tmp_path_factory.mktemp("handed") / "my-network"
    export([str(filter_run / "seed0/kesi"), "--out", str(out), "--int8", "--no-latency"])
    return out


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with onnxruntime, numpy and Pillow, and nothing else that is
    installed here.
    """
    site = tmp_path_factory.mktemp("bare")
    for name in ("onnxruntime", "numpy", "PIL"):
        package = Path(sys.modules.get(name, __import__(name)).__file__).parent
        (site / name).symlink_to(package)
        for beside in (f"{name.lower()}.libs", "pillow.libs"):
            if (package.parent / beside).is_dir() and not (site / beside).exists():
                (site / beside).symlink_to(package.parent / beside)
    return site


def run_bare(site: Path, *words: object) -> subprocess.CompletedProcess:
    """Python without what is installed in its environment (-S), but for the packages in
    ``site``.
    """
    return subprocess.run([sys.executable, "-S", *map(str, words)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(site)}, timeout=120)


def test_the_command_tells_of_all_three_networks(filter_run, tmp_path, quick_clock, capsys):
    export([str(filter_run / "seed0/kesi"), "--out", str(tmp_path / "net"), "--int8"])
    text = capsys.readouterr().out
    row = re.compile(r".{26}( +[\d,.]+)+( +[\d.]+x| +-)+")
    lines = [line for line in text.splitlines() if row.fullmatch(line)]
    rows = {line[:26].strip(): line[26:].split() for line in lines}
    header = next(line.split() for line in text.splitlines() if line.startswith(" " * 26))
    assert header == ["baseline", "compressed", "int8", "/compressed", "/int8"]
    for batch in (1, 32, 128):
        assert len(rows[f"latency, batch {batch} (ms)"]) == 5
    result = json.loads((filter_run / "seed0/kesi/result.json").read_text())
    baseline = json.loads((filter_run / "seed0/baseline/result.json").read_text())
    right = [float(value) for value in rows["accuracy, 1,497 images (%)"][:3]]
    assert right[0] == pytest.approx(baseline["test_accuracy"], abs=0.15)
    assert right[1] == pytest.approx(result["test_accuracy"], abs=0.15)
    assert right[2] == pytest.approx(right[1], abs=5)
    sizes = [float(value.replace(",", "")) for value in rows["file (kB)"][1:3]]
    files = [tmp_path / "net/model.onnx", tmp_path / "net/model-int8.onnx"]
    assert sizes == pytest.approx([path.stat().st_size / 1000 for path in files], abs=0.01)
    assert sizes[1] < 0.6 * sizes[0]
    card = (tmp_path / "net/README.md").read_text()
    assert len(lines) == 7 and all(line in card for line in lines)


def test_int8_says_what_fp32_says(handed):
    import onnx
    import onnxruntime
    dataset = load("digits")
    images = dataset.test.images.permute(0, 3, 1, 2).float().div(255).contiguous().numpy()
    sessions = [onnxruntime.InferenceSession(str(handed / name))
                for name in ("model.onnx", "model-int8.onnx")]
    whole, small = (torch.from_numpy(session.run(None, {"images": images})[0])
                    for session in sessions)
    assert (whole - small).abs().mean() < 0.05 * whole.abs().mean()
    kinds = {node.op_type for node in onnx.load(handed / "model-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    about = [session.get_modelmeta().custom_metadata_map for session in sessions]
    assert about[0] == about[1] and json.loads(about[0]["kesi.classes"]) == list("0123456789")


def test_metadata_says_what_the_file_is(handed, filter_run):
    import onnxruntime
    said = onnxruntime.InferenceSession(str(handed / "model.onnx")).get_modelmeta()
    about = {key: json.loads(value) for key, value in said.custom_metadata_map.items()}
    checkpoint = checkpoints.load(filter_run / "seed0/kesi")
    assert (about["kesi.digest"] == checkpoint.file_digest
            and about["kesi.made_with"].startswith("KESI "))
    assert about["kesi.mean"] == pytest.approx(load("digits").mean)
    assert about["kesi.resize"] == [16] and about["kesi.crop"] == about["kesi.image_size"] == 16
    assert about["kesi.accuracy"] == {"percent": checkpoint.info.metrics["test_accuracy"],
                                      "images": "1,497 test images of digits"}
    assert about["kesi.raw"] is False
    config = json.loads((handed / "config.json").read_text())
    for name in ("arch", "classes", "mean", "std", "resize", "crop", "digest", "accuracy"):
        assert config[name] == about[f"kesi.{name}"]


def test_the_example_runs_without_torch(handed, bare, tmp_path, filter_run):
    blocked = run_bare(bare, "-c", "import torch")
    assert "No module named 'torch'" in blocked.stderr
    dataset = load("digits")
    from PIL import Image
    for number in range(5):
        Image.fromarray(dataset.test.images[number].numpy()).save(tmp_path / f"{number}.png")
    deep = dataset.test.images[5, :, :, 0].numpy().astype("uint16") * 256 + 255
    Image.fromarray(deep).save(tmp_path / "5.png")
    files = image_files([tmp_path])
    expect(run_bare(bare, handed / "example.py", *files), filter_run / "seed0/kesi", files)


@pytest.mark.parametrize(("arch", "family", "size"),
                         [("resnet20", "cifar", 24), ("resnet20", "cifar", (24, 16)),
                          ("resnet18", "tinyimagenet", 40), ("grey", "cifar", (20, 12))])
def test_the_example_prepares_photographs_as_training_did(tmp_path, bare, registry, arch, family,
                                                          size):
    kesi.register("grey", Grey, image_size=(20, 12), channels=1)
    channels = 1 if arch == "grey" else 3
    root = write_imagefolder(tmp_path / "photos", test_per_class=5)
    dataset = load("imagefolder", root, image_size=size, family=family, channels=channels)
    torch.manual_seed(3)
    path, network = tmp_path / "c.pth.tar", models.create(arch, 3)
    logits = predict_split(network.eval(), dataset, dataset.test)  # (N, 3)
    # so that a pixel makes a difference to a probability
    scale = 2 / (logits - logits.mean(0)).std()
    network.fc.weight.data *= scale
    network.fc.bias.data = scale * (network.fc.bias.data - logits.mean(0))
    keep(path, network, stage="baseline", data=dataset.describe())
    export([str(path), "--out", str(tmp_path / "net"), "--no-latency", "--data", str(root)])
    files = image_files([root / "test"])
    expect(run_bare(bare, tmp_path / "net/example.py", *files), path, files)
    about = kesi.from_pretrained(tmp_path / "net").about
    assert about["image_size"] == about["crop"] == (size if isinstance(size, int) else list(size))
    shape = ", ".join(map(str, dataset.shape))
    card = (tmp_path / "net/README.md").read_text()
    assert f"float32 (batch, {shape}), {'grey' if channels == 1 else 'RGB'} from 0 to 1" in card


def expect(done: subprocess.CompletedProcess, checkpoint: Path, files: list[Path]) -> None:
    """That the example printed what kesi predict says of the same files."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    for line, one in zip(lines, predict_images(checkpoints.load(checkpoint), files), strict=True):
        said = re.findall(r"(\S+) ([\d.]+)%", line.removeprefix(f"{one.path}: "))
        assert len(said) == 3 and said[0][0] == one.classes[0], line
        for name, share in said:
            expected = one.probabilities[one.classes.index(name)]
            assert float(share) / 100 == pytest.approx(expected, abs=2e-4), line


def test_from_pretrained_gives_the_network(handed, filter_run):
    original = checkpoints.load_model(filter_run / "seed0/kesi")
    network = kesi.from_pretrained(handed)
    assert not network.training and network.arch == "resnet20" and network.cfg == original.cfg
    for name, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert network.about["classes"] == list("0123456789") and network.about["image_size"] == 16
    assert network.about["mean"] == pytest.approx(load("digits").mean)


def test_from_pretrained_says_what_is_wrong(tmp_path, handed):
    with pytest.raises(UsageError, match="no such folder"):
        kesi.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UsageError, match="has no model.safetensors"):
        kesi.from_pretrained(tmp_path)
    shutil.copy(handed / "model.safetensors", tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    for tail, says in ((b"\x00\x00\xc0\x7f", "values that are not finite"),
                       (bytes(4), "do not match their checksum")):
        (tmp_path / "model.safetensors").write_bytes(content[:-4] + tail)
        with pytest.raises(KesiError, match=f"is damaged: .*{says}"):
            kesi.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(  # as files of before, which have no checksum
        content.replace(b'"weights":', b'"unknown":', 1))
    assert kesi.from_pretrained(tmp_path).arch == "resnet20"
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(KesiError, match="damaged"):
        kesi.from_pretrained(tmp_path)


def test_the_card_reads_as_the_hub_reads_it(handed, filter_run):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub (extra hub) is missing")
    card = hub.ModelCard.load(handed / "README.md")
    result = json.loads((filter_run / "seed0/kesi/result.json").read_text())
    assert card.data.pipeline_tag == "image-classification" and "filter-pruning" in card.data.tags
    found = card.data.eval_results[0]
    assert (found.dataset_name, found.metric_type) == ("digits", "accuracy")
    assert found.metric_value == pytest.approx(result["test_accuracy"] / 100, abs=1e-6)
    low, high = wilson(result["test_accuracy"] / 100, 1497)
    assert f"{100 * low:.2f} to {100 * high:.2f} % (Wilson)" in card.text
    assert "300 training images of digits" in card.text and "seeds:" not in card.text
    before = json.loads((filter_run / "seed0/baseline/result.json").read_text())["test_accuracy"]
    assert f"The network that it was made from has {before:.2f} % on these." in card.text
    fails("kesi", "predict", handed, "photo.png", code=2, says="was exported: its example.py")


def test_no_text_of_a_checkpoint_becomes_markup_of_the_card(filter_run):
    checkpoint = checkpoints.load(filter_run / "seed0/kesi")
    data = checkpoint.info.data | {"classes": ["<img src=x>", *"123456789"], "name": "\\<b>"}
    checkpoint = replace(checkpoint, info=replace(checkpoint.info, data=data, command="a `<i>` b"))
    about = about_of(checkpoint, inputs_of(checkpoint), False)
    text = card(checkpoint, about, None).partition("\n---\n")[2]
    assert "\\<img src=x>" in text and "\\\\\\<b>" in text and "- command: `` a `<i>` b ``" in text


def test_the_network_of_a_run_is_that_of_its_first_finished_seed(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    said = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(said | {"seeds": [0, 3]}))
    assert stage_of(run) == run / "seed0" / "kesi"
    (run / "seed0").rename(run / "seed3")
    assert stage_of(run) == run / "seed3" / "kesi"


def test_several_seeds_stand_in_the_card(filter_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(filter_run, run)
    shutil.copytree(run / "seed0/kesi", run / "seed1/kesi")
    path = run / "seed1/kesi/result.json"
    result = json.loads(path.read_text())
    first, result["test_accuracy"] = result["test_accuracy"], 30.0
    path.write_text(json.dumps(result))
    assert accuracies_by_seed(run / "seed0/kesi/checkpoint.pth.tar") == [first, 30.0]
    export([str(run / "seed0/kesi"), "--out", str(tmp_path / "net"), "--no-latency"])
    text = (tmp_path / "net/README.md").read_text()
    assert f"with 2 seeds: {(first + 30) / 2:.2f} % on average" in text
    export([str(run / "seed0/kesi"), "--out", str(tmp_path / "large"), "--no-latency",
            "--image-size", "32"])  # of which no accuracy is known
    text = (tmp_path / "large/README.md").read_text()
    assert "does not say how accurate it is on pictures of this size." in text
    assert "Accuracy" not in text and "seeds:" not in text and "model-index" not in text
    assert json.loads((tmp_path / "large/config.json").read_text())["accuracy"] is None


@pytest.mark.parametrize(("share", "count", "expected"),
                         [(0.5, 100, (0.4038, 0.5962)), (1.0, 10, (0.7225, 1.0))])
def test_wilson_by_the_book(share, count, expected):
    assert wilson(share, count) == pytest.approx(expected, abs=1e-4)


def test_an_existing_folder_is_not_touched(filter_run, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/mine.txt").write_text("mine")
    fails("kesi", "export", filter_run / "seed0/kesi", "--out", tmp_path / "net", code=2,
          says="is there already")
    assert [path.name for path in tmp_path.rglob("*")] == ["net", "mine.txt"]


def test_nothing_is_left_of_a_folder_that_fails(filter_run, tmp_path, monkeypatch):
    def broken(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handover, "card", broken)
    (tmp_path / "empty").mkdir()  # may be filled, and stays empty
    fails("kesi", "export", filter_run / "seed0/kesi", "--out", tmp_path / "empty",
          "--no-latency", code=1, says="No space left on device; nothing was written")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    monkeypatch.undo()
    works("kesi", "export", filter_run / "seed0/kesi", "--out", tmp_path / "empty", "--no-latency")
    assert (tmp_path / "empty/model.onnx").is_file()


@pytest.mark.parametrize(("words", "says"), [
    (["--raw"], "--raw goes with a file"), (["--int8", "--format", "pt2"], "--int8 goes with"),
    (["--web", "--format", "onnx"], "--web goes with a folder"),
    (["--web", "nowhere"], "not in nowhere: npm install onnxruntime-web"),
    (["--web"], "not here or above (or name its folder: --web FOLDER): npm install")])
def test_flags_that_do_not_go_together(filter_run, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    fails("kesi", "export", filter_run / "seed0/kesi", "--out", tmp_path / "net", *words, code=2,
          says=says)
    assert not list(tmp_path.iterdir())


def test_int8_without_training_images(tmp_path):
    network = models.create("resnet20", 10)
    said = load("digits").describe() | {"name": "cifar10"}
    keep(tmp_path / "c.pth.tar", network, stage="baseline", data=said)
    for name in ("net", "net.onnx"):
        fails("kesi", "export", tmp_path / "c.pth.tar", "--out", tmp_path / name, "--int8",
              "--data", tmp_path, code=1,
              says="--int8 needs training images for calibration (--data)")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth.tar"]


def test_the_hub_as_a_local_folder(handed, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub (extra hub) is missing")

    class Api:
        def create_repo(self, repository, *, private, exist_ok):
            (tmp_path / repository).mkdir(parents=True, exist_ok=exist_ok)
            return f"file://{tmp_path / repository}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_options: str(tmp_path / name))
    assert kesi.push_to_hub(handed, "somebody/digits").endswith("somebody/digits")
    network = kesi.from_pretrained("somebody/digits")
    assert torch.equal(network.fc.weight, kesi.from_pretrained(handed).fc.weight)

    def refuses(*_arguments, **_options):
        raise ConnectionError("the hub is far away\nand more lines")

    monkeypatch.setattr(hub, "snapshot_download", refuses)
    with pytest.raises(KesiError, match="the hub does not give it: the hub is far away$"):
        kesi.from_pretrained("somebody/else")
    monkeypatch.setattr(Api, "create_repo", refuses)
    with pytest.raises(KesiError, match="the hub does not take"):
        kesi.push_to_hub(handed, "somebody/digits")
    with pytest.raises(UsageError, match="has no model.safetensors"):
        kesi.push_to_hub(tmp_path / "somebody", "somebody/digits")


def test_without_the_extra_hub(handed, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    says = r'huggingface_hub is not installed: pip install -e "\.\[hub\]"'
    for ask in (lambda: kesi.from_pretrained("a/b"), lambda: kesi.push_to_hub(handed, "a/b")):
        with pytest.raises(UsageError, match=says):
            ask()


def test_the_runtime_is_found_where_npm_puts_it(tmp_path, monkeypatch):
    dist = tmp_path / "node_modules/onnxruntime-web/dist"
    dist.mkdir(parents=True)
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    with pytest.raises(UsageError, match="npm install onnxruntime-web"):
        runtime(None)
    for name in handover.RUNTIME:
        (dist / name).touch()
    assert runtime(None) == runtime(dist) == runtime(dist.parent) == runtime(tmp_path) == dist


def test_two_steps_of_resizing_where_images_were_stored_small():
    """Photographs' networks look at digits, stored at 16 px, enlarged: both steps are told."""
    import dataclasses
    torch.manual_seed(0)
    said = load("digits", image_size=56, family="tinyimagenet").describe()
    checkpoint = checkpoints.Checkpoint("", models.create("resnet18", 10), info=Info(data=said))
    inputs = inputs_of(checkpoint)
    assert inputs.resize == (16, 64) and inputs.image_size == 56
    assert dataclasses.replace(inputs, dataset="imagefolder").resize == (64,)
