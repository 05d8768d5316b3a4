"""Checkpoints: ours, the released code's, and what must be refused."""

import collections
import os
import pickle
from pathlib import Path

import pytest
import torch

import kesi
import models
from kesi import checkpoints
from kesi.checkpoints.records import Info, Reference
from kesi.method.pruning import prune_filters, prune_weights
from kesi.method.snapshot import Snapshot
from kesi.system.errors import KesiError, TrainingFailed, UsageError

FIXTURES = Path(os.environ.get("KESI_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no checkpoints of the released "
                                    "code at hand (folder named by KESI_FIXTURES)")


def small(arch="resnet20", classes=5):
    torch.manual_seed(0)
    cfg = None if arch != "vgg16" else [8, 8, "M", 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8]
    return models.create(arch, classes, cfg).eval()


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@needs_fixtures
@pytest.mark.parametrize("name", ["filter-resnet20-c10", "filter-vgg16-c10", "weight-resnet20-c10"])
def test_checkpoints_of_the_released_code_give_their_logits(name):
    expected = torch.load(FIXTURES / f"{name}.expected.pt", weights_only=True)
    for arguments in ({}, {"arch": expected["arch"], "num_classes": expected["num_classes"]}):
        network = kesi.load_model(FIXTURES / f"{name}.pth.tar", **arguments)
        assert network.arch == expected["arch"] and not network.training
        with torch.no_grad():
            assert torch.allclose(network(expected["input"]), expected["logits"], atol=1e-4)


@needs_fixtures
def test_our_vgg_round_is_the_released_codes():
    before = kesi.load_model(FIXTURES / "filter-vgg16-c10.pth.tar")
    pruned = prune_filters(before, models.ARCHITECTURES["vgg16"].rates)
    assert same(pruned, kesi.load_model(FIXTURES / "pruned-vgg16-c10.pth.tar"))


def released(network, kind):
    """What the released code would have written for a network,
    from the description of its five kinds."""
    state = network.state_dict()
    return {
        "trained": {"epoch": 3, "state_dict": state, "best_prec1": torch.tensor(0.93),
                    "optimizer": {"state": {}}, "cfg": network.cfg},
        "pruned": {"cfg": network.cfg, "state_dict": state},
        "weight": {"epoch": 3, "state_dict": state, "acc": 92.0, "best_acc": 93.0, "optimizer": {}},
        "parallel":
        {"epoch": 3, "arch": network.arch, "best_prec1": 66.0, "optimizer": {}, "cfg": network.cfg,
         "state_dict": collections.OrderedDict((f"module.{name}", v) for name, v in state.items())},
        "bare": {"state_dict": state},
    }[kind]


@pytest.mark.parametrize("kind", ["trained", "pruned", "weight", "parallel", "bare"])
@pytest.mark.parametrize("arch", ["resnet20", "resnet110", "preresnet110", "preresnet164", "vgg16",
                                  "wrn-16-8", "resnet18"])
def test_all_kinds_of_released_checkpoints_load_without_being_told(arch, kind, tmp_path):
    if arch in ("wrn-16-8", "resnet18") and kind not in ("parallel", "trained"):
        pytest.skip("11 million parameters; two kinds suffice")
    network = small(arch)
    network = prune_filters(network, 0.3) if kind not in ("weight", "bare") else network
    if kind == "weight":
        prune_weights(network, 0.4)
    torch.save(released(network, kind), tmp_path / "x.pth.tar")
    loaded = checkpoints.load(tmp_path / "x.pth.tar")
    assert (loaded.network.arch == arch and loaded.network.cfg == network.cfg
            and same(loaded.network, network))
    assert (loaded.masks is not None) == (kind == "weight")
    if kind == "weight":
        assert loaded.masks.sparsity() == pytest.approx(0.4, abs=1e-3)
    if kind == "trained":
        assert loaded.info.metrics["best_prec1"] == pytest.approx(93)


def test_what_was_saved_is_what_is_loaded(tmp_path):
    network = small()
    masks = prune_weights(network, 0.5)
    info = Info(stage="onecycle-1",
                round=1, metrics={"test_accuracy": 91.5}, settings={"list": [1, 2.5, "x", True]},
                teachers=[Reference("../x.pth.tar", "baseline", "12")], amount=[0.1, 0.2])
    digest = checkpoints.save(tmp_path / "a" / "b.pth.tar", Snapshot("onecycle-1", network, masks),
                              info, {"epoch": 3})
    loaded = checkpoints.load(tmp_path / "a" / "b.pth.tar")
    assert same(loaded.network, network) and loaded.info == info and loaded.training == {"epoch": 3}
    assert (loaded.file_digest, loaded.name, loaded.round) == (digest, "onecycle-1", 1)
    assert all(torch.equal(loaded.masks.state_dict()[name], mask)
               for name, mask in masks.state_dict().items())
    assert checkpoints.find(tmp_path / "a" / "b.pth.tar") == tmp_path / "a" / "b.pth.tar"
    assert os.listdir(tmp_path / "a") == ["b.pth.tar"]


def test_a_masked_weight_may_be_alive_and_zero(tmp_path):
    network = small()
    masks = prune_weights(network, 0.5)
    name, mask = next(iter(masks.state_dict().items()))
    place = tuple(mask.nonzero()[0].tolist())
    with torch.no_grad():
        network.get_parameter(name)[place] = 0.0
    checkpoints.save(tmp_path / "x.pth.tar", Snapshot("", network, masks), Info())
    assert bool(checkpoints.load(tmp_path / "x.pth.tar").masks.state_dict()[name][place])


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path):
    path = tmp_path / "x.pth.tar"
    checkpoints.save(path, Snapshot("", small()), Info())
    before = path.read_bytes()
    broken = small()
    with torch.no_grad():
        broken.fc.weight[0, 0] = float("nan")
    with pytest.raises(TrainingFailed, match="fc.weight holds values that are not finite"):
        checkpoints.save(path, Snapshot("", broken), Info())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pth.tar"]


class Bomb:
    def __reduce__(self):
        return os.system, ("touch EXPLODED",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": small().state_dict(), "epoch": Bomb()}, "bomb.pth.tar")
    Path("raw.pth.tar").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth.tar", "raw.pth.tar"):
        with pytest.raises(KesiError, match="damaged or not a checkpoint"):
            checkpoints.load(name)
    assert not Path("EXPLODED").exists()


def write(path, value):
    torch.save(value, path)
    return path


def test_bad_files_are_named_in_one_line(tmp_path):
    network = small()
    good = tmp_path / "good.pth.tar"
    checkpoints.save(good, Snapshot("", network), Info())
    truncated = tmp_path / "truncated.pth.tar"
    truncated.write_bytes(good.read_bytes()[:-3000])
    text = tmp_path / "text.pth.tar"
    text.write_text("hello")
    missing_layer = {name: value for name, value in network.state_dict().items()
                     if "layer2.1" not in name}
    cases = [(tmp_path / "none.pth.tar", {}, UsageError, "no such checkpoint"),
             (tmp_path, {}, UsageError, "no checkpoint.pth.tar in the folder"),
             (truncated, {}, KesiError, "damaged or not a checkpoint"),
             (text, {}, KesiError, "damaged or not a checkpoint"),
             (write(tmp_path / "list.pth.tar", [1, 2]), {}, KesiError, "holds a list"),
             (write(tmp_path / "empty.pth.tar", {"epoch": 1}), {}, KesiError, "no state_dict"),
             (write(tmp_path / "other.pth.tar", {"state_dict": {"a.weight": torch.ones(2)}}), {},
              KesiError, "fits none"),
             (write(tmp_path / "part.pth.tar", {"state_dict": missing_layer}), {}, KesiError,
              "fits none"), (write(tmp_path / "part2.pth.tar", {"state_dict": missing_layer}),
                             {"arch": "resnet20"}, KesiError, "does not fit resnet20"),
             (write(tmp_path / "cfg.pth.tar", {"state_dict": network.state_dict(), "cfg": [10 ** 12]
                                               * 9}), {}, KesiError, "does not fit resnet20"),
             (good, {"arch": "resnet56"}, UsageError, "is a resnet20, not a resnet56"),
             (good, {"arch": "resnet99"}, UsageError, "unknown architecture"),
             (good, {"num_classes": 7}, UsageError, "has 5 classes, not 7")]
    for path, arguments, kind, message in cases:
        with pytest.raises(KesiError, match=message) as error:
            checkpoints.load(path, **arguments)
        assert (isinstance(error.value, kind) and str(path) in str(error.value)
                or "unknown" in message)
        assert "\n" not in str(error.value)


def test_every_change_of_content_is_noticed(tmp_path):
    path = tmp_path / "x.pth.tar"
    checkpoints.save(path, Snapshot("", small()), Info(seed=1, metrics={"test_accuracy": 90.0}))
    for change in (lambda c: c["info"].update(seed=2),
                   lambda c: c["info"]["metrics"].update(test_accuracy=99.0),
                   lambda c: c["state_dict"]["fc.bias"].add_(1e-7), lambda c: c.pop("digest"),
                   lambda c: c.update(extra=1), lambda c: c["cfg"].__setitem__(0, 15)):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.pth.tar")
        with pytest.raises(KesiError, match="does not match its checksum"):
            checkpoints.load(tmp_path / "changed.pth.tar")


def test_flipped_bits_and_cuts_are_refused_or_harmless(tmp_path):
    """200 damaged copies: each either loads identically or is refused with one line."""
    path, damaged = tmp_path / "x.pth.tar", tmp_path / "damaged.pth.tar"
    torch.manual_seed(0)
    network = models.create("resnet20", 3, [1] * 9)
    masks = prune_weights(network, 0.5)
    checkpoints.save(path, Snapshot("baseline", network, masks), Info(stage="baseline"))
    content, refused = path.read_bytes(), 0
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        place = int(torch.randint(len(content), (1,), generator=generator))
        bit = int(torch.randint(8, (1,), generator=generator))
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        damaged.write_bytes(bytes(changed) if case % 4 else content[:place])
        try:
            loaded = checkpoints.load(damaged)
        except KesiError as error:
            assert "\n" not in str(error) and str(damaged) in str(error)
            refused += 1
        else:
            assert same(loaded.network, network) and loaded.info == Info(stage="baseline")
            assert all(torch.equal(loaded.masks.state_dict()[n], m)
                       for n, m in masks.state_dict().items())
    assert refused > 50


def test_a_bare_state_dict_loads_too(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = checkpoints.load_model(tmp_path / "weights.pth", "resnet20")
    assert all(torch.equal(value, loaded.state_dict()[name])
               for name, value in model.state_dict().items())
