"""The method on networks of one's own: torchvision's, and small ones written here."""

import copy
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import kesi
import models
from kesi.checkpoints.checkpoint import load
from kesi.data import datasets
from kesi.data.arrays import from_arrays
from kesi.method.pruning import prune_filters
from kesi.method.training import Options
from kesi.own import graphs, tracing
from kesi.own.compress import START, Compressed
from kesi.own.registry import SPARSITIES
from kesi.own.tracing import analyse
from kesi.report.page import next_steps, page
from kesi.runs.record import read_result, read_run
from kesi.runs.results import load_run
from kesi.system.errors import KesiError, UsageError
from kesi.tools import export
from kesi.tools.inputs import inputs_of
from saving import keep
from tinyrun import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("torch_pruning")

CPU = Options(device="cpu", eval_every=0)


class Concatenating(nn.Module):
    """Two branches side by side, an addition in place, a depthwise convolution,
    and a fixed-size head."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
                                  nn.BatchNorm2d(12))
        self.left, self.right = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(12, 6, 1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.back = nn.Conv2d(16, 12, 1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 4 * 4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.act(self.stem(images))
        both = self.act(self.norm(torch.cat([self.right(stem), self.left(stem)], 1)))
        x = self.back(self.act(self.depthwise(both)))
        x += stem
        return self.head(self.act(self.down(x)).flatten(1))


class Otherwise(Concatenating):
    """Of the same weights, and another network."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * 2


def other_norm() -> nn.Module:
    network = Concatenating()
    network.norm.eps = 0.1
    return network


class Chunked(nn.Module):
    """Its first convolution is split in two equal halves, of which one gates the other:
    no filter may go alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3),
                                              nn.Linear(6, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        one, two = self.first(images).chunk(2, 1)
        return self.head(torch.relu(self.second(one * torch.sigmoid(two))).mean((2, 3)))


class Joined(nn.Module):
    """Two branches, concatenated, meet a convolution as wide as both, which is defined before them.
    """

    def __init__(self):
        super().__init__()
        self.both, self.left, self.right = (nn.Conv2d(3, 16, 3), nn.Conv2d(3, 10, 3),
                                            nn.Conv2d(3, 6, 3))
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.both(images) + torch.cat([self.left(images), self.right(images)], 1)
        return self.head(torch.relu(x).mean((2, 3)))


def narrow_mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25)


def narrow_densenet() -> nn.Module:
    """DenseNet-121 by its depth, with a growth of 4 instead of 32."""
    return torchvision.models.DenseNet(4, (6, 12, 24, 16), 8, 2, num_classes=10)


def small_densenet() -> nn.Module:
    """The same with fewer layers, to be trained and exported."""
    return torchvision.models.DenseNet(8, (2, 3, 3, 2), 16, 2, num_classes=10)


def digits(size: int, count: int):
    """``count`` digits to train and 100 to test, as pairs."""
    loaded = datasets.load("digits", image_size=size)
    train, test = loaded.train, loaded.test
    return ((train.take(0, count).permute(0, 3, 1, 2), train.labels[:count]),
            (test.take(0, 100).numpy(), test.labels[:100].numpy()))


def seeded(build):
    torch.manual_seed(0)
    return build()


def zeroed(network: nn.Module, graph: graphs.Graph, gone) -> nn.Module:
    network = copy.deepcopy(network)
    graph.zero(network, network.cfg, gone)
    return network


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load(path).network.state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- pruning --------------------------------------------------------------------------------------


def test_the_widths_of_the_concatenating_network():
    graph = analyse(Concatenating(), 16)
    assert dict(zip(graph.convs, graph.cfg, strict=True)) == {
        ("stem.0", "back"): 12, ("left", "depthwise"): 10, ("right", "depthwise"): 6, ("down",): 8}
    assert graph.left_alone == ()  # and the head, which has no width, is not counted as left alone


def test_branches_keep_widths_of_their_own_where_they_meet_one_convolution():
    graph = analyse(Joined(), 16)
    assert (dict(zip(graph.convs, graph.cfg, strict=True))
            == {("both", "left"): 10, ("both", "right"): 6})
    assert graph.left_alone == ()


def test_pruned_is_dense_with_the_same_filters_zeroed_written_by_hand(registry):
    """Independent of the graph: every weight that should go is named here."""
    kesi.register("concatenating", Concatenating, image_size=16)
    network = seeded(lambda: models.create("concatenating", 10)).eval()
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.2, 0.3)
    for buffer in (network.norm.running_mean, network.norm.running_var):
        nn.init.uniform_(buffer, 0.5, 1.5)
    smaller = prune_filters(network, 0.5)
    assert [conv.weight.shape[:2] for conv in (smaller.stem[0], smaller.left, smaller.right,
                                               smaller.depthwise, smaller.back, smaller.down)] == [
                                                   (6, 3), (5, 6), (3, 6), (8, 1), (6, 8), (4, 6)]
    assert smaller.head.weight.shape == (10, 4 * 16)  # the classifier keeps its outputs

    def norms(*convs: nn.Conv2d) -> torch.Tensor:
        return sum(conv.weight.detach().abs().sum((1, 2, 3)) for conv in convs)

    depthwise = norms(network.depthwise)  # the right branch comes first in the concatenation
    weakest = [torch.topk(norm, len(norm) // 2, largest=False).indices for norm in (
        norms(network.stem[0], network.back), norms(network.left) + depthwise[6:],
        norms(network.right) + depthwise[:6], norms(network.down))]
    stem, left, right, down = weakest
    with torch.no_grad():
        for layer, gone in ((network.stem[0], stem), (network.stem[1], stem), (network.back, stem),
                            (network.left, left), (network.right, right), (network.down, down),
                            (network.norm, right), (network.norm, left + 6),
                            (network.depthwise, right), (network.depthwise, left + 6)):
            for parameter in layer.parameters():
                parameter[gone] = 0
    torch.manual_seed(2)
    images = torch.randn(5, 3, 16, 16)
    expected = network(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(smaller(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("build", "size"),
                         [(Concatenating, 16), (narrow_mobilenet, 32), (narrow_densenet, 32)])
def test_three_rounds_equal_zeroing_and_can_be_rebuilt_from_cfg(build, size, registry):
    graph = kesi.register("mine", build, image_size=size)
    assert graph.left_alone == ()
    draw = torch.Generator().manual_seed(3)
    network = tracing._randomised(models.create("mine", 10), draw).eval()
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(4))
    for _ in range(3):
        before, cfg = network, [max(1, int(width * 0.8)) for width in network.cfg]
        network = prune_filters(before, 0.2)
        assert network.cfg == cfg
        with torch.no_grad():
            dense, pruned = before(images), network(images)
            expected = zeroed(before, graph, graph.weakest(before, cfg))(images)
        scale = expected.abs().max()
        assert (pruned - expected).abs().max() < 1e-4 * scale
        assert (pruned - dense).abs().max() > 1e-3 * scale  # the removed filters did something
    rebuilt = models.create("mine", 10, network.cfg)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(images), network(images))


def test_rates_by_name_leave_the_others_alone_and_one_filter_stays(registry):
    graph = kesi.register("concatenating", Concatenating, image_size=16)
    assert graph.rates({"left": 0.5, "down": 0.25}) == tuple(
        {"left": 0.5, "down": 0.25}.get(convs[0], 0.0) for convs in graph.convs)
    with pytest.raises(UsageError, match="no convolution 'head'.*left"):
        graph.rates({"head": 0.5})
    with pytest.raises(UsageError, match="stem.0 and back lose their filters together"):
        graph.rates({"stem.0": 0.1, "left": 0.5, "back": 0.5})
    with pytest.warns(UserWarning, match="kept one"):
        smaller = prune_filters(models.create("concatenating", 10), 0.99)
    assert smaller.cfg == [1, 1, 1, 1] and smaller(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_a_rate_is_for_all_widths_that_a_convolution_is_added_to(registry):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(3, 8, 3, 2)
            self.y, self.head = nn.Conv2d(24, 24, 3, padding=1), nn.Linear(24, 10)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x)], 1).relu()
            return self.head((x + self.y(x)).mean((2, 3)))

    graph = kesi.register("both", Both, image_size=16)
    assert graph.cfg == (16, 8) and graph.rates({"y": 0.5}) == (0.5, 0.5)
    with pytest.raises(UsageError, match="y and b lose their filters together"):
        graph.rates({"y": 0.5, "b": 0.25})


@pytest.mark.parametrize(("wrong", "says"), [
    ({"image_size": -3}, "image_size is the pixels"), ({"image_size": "16"}, "image_size is"),
    ({"image_size": (16,)}, "image_size is"), ({"channels": 0}, "channels is a number of at least"),
    ({"channels": "3"}, "channels is a number"), ({"num_classes": "10"}, "num_classes is a number"),
    ({"name": 3}, "a network's name consists of letters.*unlike 3")])
def test_what_is_no_size_or_name_is_said_in_one_line(wrong, says, registry):
    with pytest.raises(UsageError, match=says):
        kesi.register(**{"name": "one", "factory": Concatenating} | wrong)


def test_filters_that_cannot_go_alone_are_found_out_and_left_alone():
    graph = analyse(Chunked(), 16)
    assert (graph.left_alone, graph.convs) == (("first",), (("second",),))
    shuffled = analyse(torchvision.models.ShuffleNetV2([1, 2, 1], [8, 16, 16, 32, 32],
                                                       num_classes=10), 32)
    assert shuffled.problem or shuffled.left_alone
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 3),
                            nn.Flatten(), nn.Linear(600, 10))
    assert analyse(grouped, 16).convs == (("2",),)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Flatten(),
                           nn.Linear(864, 10))
    assert analyse(normed, 16).left_alone == ("0",)
    local = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5),
                          nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(864, 10))
    assert analyse(local, 16).left_alone == ("0",)


def test_a_wrong_graph_does_not_pass_the_trial():
    """The trial that widths have to pass sees an offset in a concatenation that is off by a branch.
    """
    network = Concatenating()
    graph = analyse(network, 16)
    assert tracing._holds(graph, network, 16)
    axes = [replace(axis, width=axis.width.roll(6), channel=axis.channel.roll(6))
            if (axis.module, axis.output) == ("norm", True) else axis for axis in graph.axes]
    assert not tracing._holds(replace(graph, axes=tuple(axes)), network, 16)


def test_parameters_that_are_not_trained_stay_untrained(registry):
    def build() -> nn.Module:
        network = Concatenating()
        network.stem.requires_grad_(False)
        return network

    kesi.register("half", build, image_size=16)
    smaller = prune_filters(models.create("half", 10), 0.3)
    assert [name for name, value in smaller.named_parameters() if not value.requires_grad] == [
        "stem.0.weight", "stem.1.weight", "stem.1.bias"]


# --- the whole method -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["filter", "weight"])
def test_the_concatenating_network_goes_through_the_whole_method(method, tmp_path, monkeypatch,
                                                                 capsys, registry):
    network = seeded(Concatenating)
    given = copy.deepcopy(network.state_dict())

    def compress(model: nn.Module) -> Compressed:
        return kesi.compress(model, *digits(16, 64),
                             method, rounds=2, epochs=(2, 1, 1), batch_size=32, flip=False,
                             compare=True, folder=tmp_path / "run", options=CPU)

    result = compress(network)
    stages = ["baseline", "onecycle-1", "onecycle-2", "ensemble", "usual-1", "usual-2",
              "ensemble-usual", "kesi"]
    assert list(result.accuracies) == stages
    assert_same(network.state_dict(), given)  # what was given is as it was
    assert type(result.network) is Concatenating and not result.network.training
    assert set(result.network.state_dict()) == set(given)
    _smaller_or_masked(result, method)
    assert result.report.tables and (tmp_path / "run" / "report" / "table.md").is_file()

    # a second call runs nothing, though its network has other weights
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "seed0").rglob("*.*")}
    with monkeypatch.context() as patch:
        patch.setattr("kesi.runs.stage.fit", lambda *_, **__: pytest.fail("something was trained"))
        again = compress(Concatenating())
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again.accuracies == result.accuracies
    assert "weights of the first call" in capsys.readouterr().out

    # the last stage and, in turn, all of them run anew to the same weights
    for folders in (["kesi"], [path.name for path in (tmp_path / "run" / "seed0").iterdir()]):
        for name in folders:
            for path in (tmp_path / "run" / "seed0" / name).iterdir():
                path.unlink()
        assert_same(compress(Concatenating()).network.state_dict(), result.network.state_dict())

    assert read_run(tmp_path / "run" / "run.json").arch == "concatenating"
    text = page([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "depthwise" in text or "left" in text


def _smaller_or_masked(result: Compressed, method: str) -> None:
    """The widths of the plan; or the shares of zeros of the recipe, where the masks say."""
    if method == "filter":
        assert result.network.cfg == [int(int(width * 0.8) * 0.8) for width in (12, 10, 6, 8)]
        assert (result.network.down.weight.shape
                == (result.network.cfg[3], result.network.cfg[0], 3, 3))
        assert result.masks is None
        return
    share = SPARSITIES[1]
    assert result.masks.sparsity() == pytest.approx(share, abs=1e-3)
    for name, mask in result.masks.state_dict().items():
        assert not result.network.get_parameter(name)[~mask].any()
    zeros = sum(int((module.weight == 0).sum()) for module in result.network.modules()
                if isinstance(module, nn.Conv2d))
    assert zeros == result.masks.pruned()
    snapshots = [load(result.folder / "seed0" / f"onecycle-{number}").masks.state_dict()
                 for number in (1, 2)]
    assert not any(bool((snapshots[1][name] & ~snapshots[0][name]).any()) for name in snapshots[0])


def mobilenet_v2() -> nn.Module:
    return torchvision.models.mobilenet_v2(num_classes=10)


def densenet121() -> nn.Module:
    return torchvision.models.densenet121(num_classes=10)


@pytest.mark.parametrize("build", [narrow_mobilenet, small_densenet, mobilenet_v2, densenet121])
def test_torchvisions_networks(build, tmp_path, registry):
    result = kesi.compress(seeded(build), *digits(32, 48),
                           name="theirs", rounds=1, epochs=(1, 1, 1), batch_size=24,
                           flip=False, folder=tmp_path / "run", options=CPU)
    before, after = (read_result(tmp_path / "run" / "seed0" / stage / "result.json")
                     for stage in ("baseline", "kesi"))
    assert after.params < 0.8 * before.params and after.macs < 0.8 * before.macs
    assert after.cfg == [int(width * 0.8) for width in before.cfg]
    assert sum(value.numel() for value in result.network.parameters()) == after.params

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint = load(result.checkpoint)
    inputs = inputs_of(checkpoint)
    check = export.export(checkpoint, inputs, tmp_path / "net.onnx", "onnx", raw=True).check
    assert check.equal == check.images == 100
    images = torch.randn(3, 3, 32, 32)
    found, = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(
        None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), result.network(images), atol=1e-4,
                                   rtol=1e-3)


def test_a_trained_network_is_the_baseline(tmp_path, registry, monkeypatch):
    network = seeded(Concatenating)

    def compress(model: nn.Module, folder: Path = tmp_path / "run") -> Compressed:
        return kesi.compress(model, *digits(16, 40),
                             rounds=1, rates={"left": 0.5}, epochs=(9, 1, 1), batch_size=20,
                             folder=folder, options=CPU, trained=True,
                             accuracy=10)  # of an untrained network

    result = compress(network)
    assert_same(weights_of(tmp_path / "run" / "seed0" / "baseline"), network.state_dict())
    assert result.network.cfg == [12, 5, 6, 8]
    with pytest.raises(UsageError, match="other weights"):
        compress(Concatenating())
    # the same run by another name of its folder, with a record as it was before, and elsewhere
    record = tmp_path / "run" / "run.json"
    said = json.loads(record.read_text())
    assert said["baseline"] == START
    record.write_text(json.dumps(said | {"baseline": str(tmp_path / "run" / START)}))
    monkeypatch.chdir(tmp_path)
    compress(network, Path("run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    compress(network, tmp_path / "moved")


def test_a_function_draws_new_weights_for_each_seed(tmp_path, registry):
    result = kesi.compress(Concatenating, *digits(16, 40),
                           "weight", sparsities=[0.5], epochs=(1, 1, 1), batch_size=20,
                           seeds=(0, 1), folder=tmp_path / "run", options=CPU)
    one, two = (weights_of(tmp_path / "run" / f"seed{seed}" / "baseline") for seed in (0, 1))
    assert not torch.equal(one["left.weight"], two["left.weight"])
    assert result.checkpoint.parent.parent.name == "seed0"
    assert not (tmp_path / "run" / START).exists()


# --- loading elsewhere ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a pruned network, and a module that registers it."""
    folder = tmp_path_factory.mktemp("own")
    before = dict(models.ARCHITECTURES)
    kesi.register("elsewhere", Concatenating, image_size=16)
    network = prune_filters(seeded(lambda: models.create("elsewhere", 10)), 0.25)
    keep(folder / "net.pth.tar", network, stage="pruned-1")
    models.ARCHITECTURES.clear()
    models.ARCHITECTURES.update(before)
    (folder / "my_networks.py").write_text(
        "import kesi\nfrom test_own import Concatenating\n"
        "kesi.register('elsewhere', Concatenating, image_size=16)\n")
    return folder / "net.pth.tar", network


def test_a_checkpoint_asks_for_the_factory(saved, registry):
    path, network = saved
    with pytest.raises(UsageError, match=r"kesi\.register\('elsewhere', factory\)") as refused:
        kesi.load_model(path)
    assert "\n" not in str(refused.value)
    kesi.register("elsewhere", Concatenating, image_size=16)
    assert_same(kesi.load_model(path).state_dict(), network.state_dict())
    for other in (Otherwise, other_norm):
        kesi.register("elsewhere", other, image_size=16)
        with pytest.warns(UserWarning, match="net.pth.tar was saved when the code of elsewhere"):
            kesi.load_model(path)
    kesi.register("elsewhere", lambda: Concatenating(7), image_size=16)
    with pytest.raises(KesiError, match="does not fit elsewhere with 10 classes"):
        kesi.load_model(path)


def test_weights_of_a_registered_network_need_not_tell_the_classes(registry, tmp_path):
    def build(classes=3):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, classes))

    kesi.register("mine", build, image_size=8)
    network = build()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    for more in ((), (3,)):
        assert_same(load(tmp_path / "mine.pth", "mine", *more).network.state_dict(),
                    network.state_dict())
    with pytest.raises(UsageError, match="has 3 classes, not 4"):
        load(tmp_path / "mine.pth", "mine", 4)
    torch.save(build(4).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(KesiError, match="does not fit mine with 3 classes: 2.weight has shape"):
        load(tmp_path / "mine.pth", "mine")


def commands(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A command in a folder with a module that registers networks."""
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{folder}"}
    line = f"{shlex.quote(sys.executable)} {' '.join(words)}"
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=300)


def typed(line: str) -> str:
    """The words for Python of a command line that begins with kesi or python."""
    return line.removeprefix("python ") if line.startswith("python ") else f"-m {line}"


def test_commands_work_with_a_module_that_registers(saved):
    folder = saved[0].parent
    done = commands(folder, "-m", "kesi", "--with", "my_networks", "plan", "--arch", "elsewhere",
                    "--dataset", "digits", "--rounds", "2", "--csv")
    assert (done.returncode, done.stderr) == (0, "")
    params = sum(value.numel() for value in Concatenating().parameters())
    assert done.stdout.splitlines()[1].startswith(f"0,{params},{params},")
    assert len(done.stdout.splitlines()) == 4
    wrong = commands(folder, "-m", "kesi", "--with", "no_such_module", "plan")
    assert ((wrong.returncode, wrong.stderr)
            == (2, "error: --with no_such_module: there is no module no_such_module\n"))


def test_without_torch_pruning_one_line_says_what_to_install(saved, monkeypatch, registry,
                                                             tmp_path):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r'pip install -e "\.\[own\]"'):
        kesi.compress(Concatenating(), *digits(16, 40), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    kesi.register("elsewhere", Concatenating, image_size=16)
    with pytest.raises(UsageError, match=r'pip install -e "\.\[own\]"'):
        kesi.load_model(saved[0])
    result = kesi.compress(Concatenating(), *digits(16, 40), "weight", sparsities=[0.5],
                           epochs=(1, 1, 1), batch_size=20, folder=tmp_path / "run", options=CPU)
    monkeypatch.undo()
    # with the library again, the file is still good
    kesi.register("concatenating", Concatenating, image_size=16)
    assert_same(kesi.load_model(result.checkpoint).state_dict(), result.network.state_dict())


def test_the_page_that_walks_through_it_does_what_it_says(tmp_path, monkeypatch, registry, capsys):
    """The code of docs/own-network.md, in order, in one folder."""
    text = (ROOT / "docs" / "own-network.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    module, walk, told, again, check, loading = blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_networks.py").write_text(module)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    names: dict = {}
    exec(walk, names)
    result = names["result"]
    assert result.folder == Path("runs/images-mine-filter")
    said = [result.accuracies[stage] for stage in ("baseline", "ensemble", "kesi")]
    assert min(said) > 60, said  # of ten classes: all of them learned
    before = sum(value.numel() for value in names["network"].parameters())
    assert sum(value.numel() for value in result.network.parameters()) < 0.8 * before
    exec(told, names)
    assert names["result"].stage in ("kesi", "onecycle-1")
    capsys.readouterr()
    exec(again, names)
    assert "kesi is finished already" in capsys.readouterr().out
    exec(check, names)
    assert capsys.readouterr().out == "[]\n"
    exec(loading, names)
    assert_same(names["loaded"].state_dict(), result.network.state_dict())
    monkeypatch.delitem(sys.modules, "my_networks")

    (tmp_path / "cifar").symlink_to(ROOT / "cifar")
    shorter = {"export": "--no-latency", "python": "--epochs-scale 0.02 --rounds 1 --device cpu"}
    lines = re.findall(r"^((?:kesi --with my_networks.py|python) (\S+) .*)$", text, re.MULTILINE)
    assert len(lines) == 3
    for line, command in lines:
        done = commands(tmp_path,
                        f"{typed(line)} {shorter.get(command, shorter.get(line.split()[0], ''))}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.onnx").stat().st_size > 1000
    assert (tmp_path / "runs" / "digits-mine-weight" / "report" / "table.md").is_file()

    by_command, by_call = (load_run(Path("runs") / name)
                           for name in ("digits-mine-weight", "images-mine-filter"))
    (_, goes_on), (_, repeats), (_, uses), (_, checks) = next_steps(by_command)
    assert goes_on.startswith(
        "python cifar/pipeline.py --with my_networks.py --arch mine --dataset digits")
    assert repeats.endswith(f"{goes_on} --fresh")
    done = commands(tmp_path, typed(goes_on))
    assert done.returncode == 0 and "kesi is finished already" in done.stdout
    for line in (uses.splitlines()[2] + " --no-latency", checks):
        done = commands(tmp_path, typed(line))
        assert done.returncode == 0, done.stderr
    *_, (said, uses), (_, checks) = next_steps(by_call)
    assert "FILE" in said and "kesi compare" not in uses and "--no-accuracy" in checks
    done = commands(tmp_path, typed(checks).replace("FILE", "my_networks.py"))
    assert done.returncode == 0, done.stderr


# --- what is refused ------------------------------------------------------------------------------


class Viewing(Concatenating):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.stem(images)).view(len(images), -1))


class WithCfg(Concatenating):
    cfg = "small"


@pytest.mark.parametrize(("model", "said"), [
    (lambda: nn.Conv2d(3, 10, 3), r"logits \(N, classes\)"),
    (lambda: Concatenating(7), "has 7 outputs, not one for each of 10 classes"),
    (Viewing, r"flatten\(1\)"),
    (WithCfg, "attribute 'cfg'"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), "no convolution that can lose"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 10)),
     "does not take a batch of 16 px images"),
])
def test_networks_that_will_not_do(model, said, tmp_path, registry):
    with pytest.raises(UsageError, match=said) as refused:
        kesi.compress(model(), *digits(16, 40), name="wrong", folder=tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "said"), [
    ({"method": "both"}, "unknown method"), ({"name": "resnet20"}, "choose another name"),
    ({"name": "a/b"}, "a/b"),
    ({"rates": 1.0}, "below 1"), ({"sparsities": [0.5]}, "method=\"weight\""),
    ({"method": "weight", "rates": 0.2}, "method=\"filter\""), ({"rounds": 0}, "at least 1"),
    ({"method": "weight", "sparsities": [0.5, 0.3]}, "never fall"),
    ({"epochs": (1, 2)}, "three numbers"), ({"epochs": (0, 1, 1)}, "numbers of at least 1"),
    ({"method": "weight", "rounds": 9}, "5 sparsities"), ({"epochs": "abc"}, "three numbers"),
    ({"epochs": 3}, "three numbers"), ({"epochs": (1.5, 1, 1)}, "three numbers"),
    ({"seeds": ()}, "seeds are whole"), ({"seeds": 0}, "seeds are whole"),
    ({"seeds": (0, -1)}, "seeds are whole"), ({"rounds": 1.5}, "rounds must be"),
    ({"batch_size": "8"}, "batch_size must be"), ({"lr": "0.1"}, "lr is a number"),
    ({"model": "resnet20"}, "the model is a str"), ({"test": None}, "test images are missing")])
def test_arguments_that_do_not_fit(changes, said, tmp_path, registry):
    train, test = digits(16, 40)
    arguments = ({"model": Concatenating(), "train": train, "test": test,
                  "folder": tmp_path / "run"} | changes)
    with pytest.raises(UsageError, match=said):
        kesi.compress(**arguments)
    assert not (tmp_path / "run").exists()


def test_a_factory_has_to_build_anew(registry):
    network = Concatenating()
    with pytest.raises(UsageError, match="same network at every call"):
        kesi.register("same", lambda: network, image_size=16)


# --- images ---------------------------------------------------------------------------------------


def test_arrays_of_either_layout_are_the_same_data_set():
    images = torch.arange(2 * 3 * 8 * 8,
                          dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 3, 8, 8)
    one = from_arrays((images, [0, 1]), (images, torch.tensor([1, 0])))
    two = from_arrays((images.permute(0, 2, 3, 1).numpy(), [0, 1]), (images, [1, 0]),
                      ["cat", "dog"], flip=False)
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.train.images[1, 2, 3], images[1, :, 2, 3])
    assert (one.classes, two.classes, one.image_size) == (("0", "1"), ("cat", "dog"), 8)
    assert ((one.augmentation.flip, two.augmentation.flip, one.augmentation.padding)
            == (True, False, 1))
    mean = images.double().mean((0, 2, 3)) / 255
    assert torch.allclose(torch.tensor(one.mean, dtype=torch.float64), mean)
    json.dumps(one.describe())


@pytest.mark.parametrize(("images", "labels", "said"), [
    (torch.full((2, 3, 8, 8), 0.3), [0, 1], "uint8"),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1], "8x8 px in 1 channels "
     ".* 8x8 px in 3 channels"), (torch.zeros(2, 3, 8, 9, dtype=torch.uint8),
                                  [0, 1], "8x9 px in 3 channels .* 8x8 px in 3 channels"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0], "whole number for each of the 2"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0.0, 1.0], "whole number"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 3], "from 0 to 3; 2 classes")])
def test_images_that_will_not_do(images, labels, said):
    with pytest.raises(UsageError, match=said):
        from_arrays((images, labels), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1]), 2)
