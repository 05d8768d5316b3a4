"""Nothing is fooled: hostile and senseless files are refused in one line,
and trouble in a run is reported."""

import csv
import functools
import io
import json
import math
import pickle
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import models
from doors import fails, script, works
from kesi import checkpoints
from kesi.checkpoints.records import Info, encode
from kesi.data import Split, load
from kesi.method import recipes, sizes
from kesi.method.pruning import Masks, prune_filters, prune_weights
from kesi.method.pruning.filters import pruned_widths
from kesi.method.snapshot import Snapshot, digest_of
from kesi.runs import resume
from kesi.runs import steps as run_steps
from kesi.runs.stage import Context
from kesi.system.errors import KesiError
from kesi.system.provenance import commit
from saving import keep
from tinyrun import same_command

pytest_plugins = ["tinyrun"]
FUZZ = settings(max_examples=40, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@functools.cache
def network():
    torch.manual_seed(0)
    return models.create("resnet20", 3, [1] * 9)


def refused(path, match, **arguments):
    """Loading has to fail in one line that names the file,
    without taking memory for what the file claims."""
    tracemalloc.start()
    try:
        with pytest.raises(KesiError, match=match) as error:
            checkpoints.load(path, **arguments)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert peak < 100 * 2**20


# -- archives that ask for too much

def rewritten(path, change, **zip_arguments):
    """Write a good checkpoint with ``change`` applied to the dictionary of its archive's members.
    """
    whole = io.BytesIO()
    torch.save({"state_dict": network().state_dict()}, whole)
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", **zip_arguments) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.pth.tar"
    rewritten(path, lambda members: members.update({"archive/data/0": bytes(50 * 2**20)}),
              compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, "bytes would unpack to 52,")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """The other kind of bomb: many entries of the directory for one member."""
    path = tmp_path / "bomb.pth.tar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(2**20))
        archive.filelist.extend(archive.filelist[1:] * 1000)
    refused(path, "would unpack to 1,0")


def test_too_many_members_and_too_much_structure_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "many.pth.tar"
    monkeypatch.setattr("kesi.checkpoints.safety.MEMBERS", 20)
    rewritten(path, lambda members: None)
    refused(path, "has .* members")
    monkeypatch.undo()
    monkeypatch.setattr("kesi.checkpoints.safety.PICKLE", 500)
    refused(path, "has 1 data.pkl, of")
    monkeypatch.undo()
    rewritten(path, lambda members: members.update({"other/data.pkl": members["archive/data.pkl"]}))
    refused(path, "has 2 data.pkl")


def protocol_2(value):
    return pickle.dumps(value, protocol=2)


def storage(numel):
    return (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
            + b"\x8a\x08" + struct.pack("<q", numel) + b"tQ")


def tensor(numel, shape, stride):
    size = b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in shape)
    steps = b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in stride)
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(numel) + b"K\x00(" + size + b"t("
            + steps + b"t\x89ccollections\nOrderedDict\n)RtR")


def dictionary(value):
    return b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00a" + value + b"ss."


@pytest.mark.parametrize(("content", "says"), [
    (tensor(10**12, [10**12], [1]), "and a tensor of 1000000000000 elements"),
    (tensor(4, [10**12], [0]), "and tensors of 4,000,000,000,000"),
    (tensor(4, [10**6, 10**6], [0, 0]), "and tensors of"),
    (tensor(4, [10**12], [1]), "damaged or not a checkpoint"),
    (b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R", "asks for builtins.bytearray"),
    (b"ctorch._utils\n_rebuild_sparse_tensor\n)R", "asks for torch._utils._rebuild_sparse_tensor"),
    (b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R", "asks for torch._utils._rebuild_meta"),
    (b"cos\nsystem\nX\x04\x00\x00\x00trueR", "asks for os.system"),
    (b"\x8c\x02os\x8c\x06system\x93)R", "asks for a name that it makes up"),
    (b"]" + b"(]" * 200 + b"e" * 200, "too deeply nested"),
    (b"]q\x00h\x00a", "too many or too deeply nested"),  # a list that holds itself
    (b"(" + b"]q\x00(" + b"K\x01" * 10 + b"e"
     + b"".join(b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e"
                for level in range(1, 12)) + b"l", "too many or too deeply nested|damaged or not"),
    (b"(\x8a\xff" + b"\x01" * 255 + b"l", "no state_dict|damaged"),
], ids=["storage", "expanded", "expanded twice", "beyond its storage", "bytearray", "sparse",
        "meta", "system", "made-up", "deep", "itself", "laughs", "large number"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_claims_more_than_it_has_is_refused(tmp_path, content, says, legacy):
    path = tmp_path / "x.pth.tar"
    if legacy:  # the format before torch 1.6: five pickles and the storages, one after the other
        head = protocol_2(0x1950A86A20F9469CFC6C) + protocol_2(1001) + protocol_2(
            {"protocol_version": 1001, "little_endian": True,
             "type_sizes": {"short": 2, "int": 4, "long": 4}})
        keys = protocol_2(["0"]) + struct.pack("<q", 4) + bytes(16)
        path.write_bytes(head + dictionary(content) + keys)
    else:
        rewritten(path, lambda members: members.update({"archive/data.pkl": dictionary(content),
                                                        "archive/data/0": bytes(16)}))
    refused(path, says if not legacy else f"{says}|damaged or not a checkpoint")


def test_a_tar_archive_is_refused_before_torch_unpacks_it(tmp_path):
    import tarfile
    path = tmp_path / "x.pth.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO(b""))
    refused(path, "is a tar archive, which is not read")
    assert not (tmp_path.parent / "outside").exists()


def test_a_checkpoint_of_before_torch_1_6_still_loads(tmp_path):
    torch.save({"state_dict": network().state_dict(), "cfg": [1] * 9, "best_prec1":
                torch.tensor(0.5)}, tmp_path / "x.pth.tar", _use_new_zipfile_serialization=False)
    assert checkpoints.load(tmp_path / "x.pth.tar").info.metrics == {"best_prec1": 50.0}


# -- files with our own format tag

def forged(path, **fields):
    """A checkpoint of ours with other fields and a digest that is right."""
    content = checkpoints.contents(Snapshot("baseline", network()), Info(stage="baseline")) | fields
    content = {name: value for name, value in content.items() if value is not ...}
    torch.save({**content, "digest": digest_of(content)}, path)
    return path


@pytest.mark.parametrize(("fields", "says"), [
    ({"arch": 5}, "its arch is 5"), ({"arch": ["resnet20"]}, "its arch is a list"),
    ({"arch": ...}, "its arch is None"), ({"arch": "resnet21"}, "a network that is not "
                                          "one of KESI's"), ({"arch": "../x"}, "not one of KESI's"),
    ({"num_classes": 10**9}, "a classifier needs .* at most a million"),
    ({"num_classes": 10**6}, "fc.weight has shape"),
    ({"num_classes": -1}, "does not fit"), ({"num_classes": "3"}, "num_classes is '3'"),
    ({"num_classes": True}, "num_classes is True"), ({"num_classes": 3.0}, "num_classes is 3.0"),
    ({"cfg": "111111111"}, "its cfg is '111"), ({"cfg": {"a": 1}}, "its cfg is a dict"),
    ({"cfg": [10**12] * 9}, "entry 0 should be a whole number"),
    ({"cfg": [1] * 8}, "has 9 entries, not 8"), ({"cfg": [[1]] * 9}, "entry 0 should be"),
    ({"cfg": [2] * 9}, "has shape"), ({"cfg": [None] * 9}, "entry 0"),
    ({"masks": {"conv1.weight": torch.ones(16, 3, 3, 3)}}, "the mask of 'conv1.weight' "
     "is not boolean"), ({"masks": {"conv1.weight": torch.ones(2, dtype=torch.bool)}},
                         "the mask of conv1.weight has shape"),
    ({"masks": {"nothing": torch.ones(2, dtype=torch.bool)}}, "names nothing"),
    ({"masks": [1]}, "its masks is a list"),
    ({"masks": {3: torch.ones(2, dtype=torch.bool)}}, "the mask of 3"),
    ({"info": "x"}, "its info is 'x'"), ({"info": {"parent": "x"}}, "its info.parent is 'x'"),
    ({"info": {"parent": {"path": 3}}}, "its info.parent.path is 3"),
    ({"info": {"round": "1"}}, "info.round is '1'"),
    ({"info": {"teachers": [1]}}, "info.teachers is a list"),
    ({"info": {"data": []}}, "info.data is a list"),
    ({"info": {"pruned_accuracy": math.nan}}, "info.pruned_accuracy is nan"),
    ({"training": []}, "its training is a list"),
    ({"training": {"epoch": "1"}}, "training.epoch is '1'"),
    ({"state_dict": {}}, "no state_dict"), ({"state_dict": {"a": torch.ones(1)}}, "does not fit"),
    ({"state_dict": {**network().state_dict(), "fc.bias": torch.tensor(1.0)}}, "fc.bias has shape"),
    ({"version": 2}, "is of a newer KESI"), ({"version": 0}, "has checkpoint version 0"),
    ({"version": "1"}, "has checkpoint version '1'"),
])
def test_fields_of_wrong_types_are_named_in_one_line(tmp_path, fields, says):
    refused(forged(tmp_path / "x.pth.tar", **fields), says)


def test_a_forged_state_does_not_end_in_a_traceback(tmp_path):
    """What fit() could not continue from is damage like any other."""
    count = len(list(network().parameters()))
    groups = [{"params": list(range(count)), "lr": 0.1}]
    good = {"epoch": 1, "history": [{"epoch": 1}], "schedule": {"last_epoch": 3}, "optimizer":
            {"param_groups": groups, "state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}}}
    forged(tmp_path / "state.pth.tar", training=good)
    assert resume.newest(tmp_path, "resnet20").training["epoch"] == 1
    state = {"param_groups": groups, "state": {0: {"momentum_buffer": torch.zeros(1)}}}
    for change in ({"history": []}, {"epoch": 2}, {"epoch": -1}, {"history": [1]}, {"schedule": {}},
                   {"optimizer": {}}, {"optimizer": {"param_groups": [], "state": {}}},
                   {"optimizer": state}, {"optimizer": {"param_groups": groups, "state": {-1: {}}}},
                   {"optimizer": {"param_groups": groups, "state": {0: []}}},
                   {"optimizer": {"param_groups": [{"params": [0]}], "state": {}}}):
        forged(tmp_path / "state.pth.tar", training=good | change)
        with pytest.warns(UserWarning,
                          match="is not the state of an unfinished stage: the stage starts over"):
            assert resume.newest(tmp_path, "resnet20") is None


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                     lambda inner: st.lists(inner, max_size=4)
                     | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=8)
names = st.sampled_from(["arch", "num_classes", "cfg", "masks", "info", "training", "state_dict",
                         "version", "format"])


@FUZZ
@given(fields=st.dictionaries(names, plain, min_size=1, max_size=3), info=st.dictionaries(
    st.sampled_from(["stage", "round", "parent", "teachers", "data", "metrics", "seed"]),
    plain, max_size=3))
def test_any_metadata_is_refused_in_one_line_or_gives_the_network(tmp_path, fields, info):
    path = forged(tmp_path / "x.pth.tar", **{"info": info, **fields})
    try:
        loaded = checkpoints.load(path)
    except KesiError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        state = loaded.network.state_dict()
        assert all(torch.equal(value, state[name])
                   for name, value in network().state_dict().items())
        assert loaded.name is not None and (loaded.round is None or isinstance(loaded.round, int))


@FUZZ
@given(fields=st.dictionaries(st.sampled_from(["cfg", "epoch", "best_prec1", "acc", "arch", "masks",
                                               "training"]), plain))
def test_any_metadata_of_a_released_checkpoint_too(tmp_path, fields):
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": network().state_dict(), **fields}, path)
    try:
        loaded = checkpoints.load(path, "resnet20")
    except KesiError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert loaded.network.cfg == [1] * 9 and loaded.training is None


# -- cfg lists, rates, sparsities

numbers = (st.none() | st.booleans() | st.integers(-3, 80) | st.floats()
           | st.sampled_from(["M", "1", "", 10**30]))


@FUZZ
@given(cfg=st.lists(numbers, min_size=7, max_size=10) | st.lists(st.integers(1, 16), min_size=9,
                                                                 max_size=9))
def test_any_cfg_is_refused_in_one_line_or_built(cfg):
    try:
        with torch.device("meta"):
            built = models.create("resnet20", 10, cfg)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert built.cfg == cfg and [block.conv1.out_channels for block in built.layer1] == cfg[:3]


rate = st.integers(-3, 80) | st.floats() | st.floats(0, 1)


@FUZZ
@pytest.mark.filterwarnings("ignore:rate .* would leave none")
@given(rates=rate | st.lists(rate, max_size=10) | st.lists(st.floats(0, 0.99), min_size=9,
                                                           max_size=9))
def test_any_rates_are_refused_in_one_line_or_prune(rates):
    before = models.create("resnet20", 4, [6] * 9)
    try:
        pruned = prune_filters(before, rates)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert (pruned.cfg == pruned_widths([6] * 9, rates)
                and all(1 <= width <= 6 for width in pruned.cfg))
        assert torch.isfinite(pruned.eval()(torch.zeros(1, 3, 16, 16))).all()


@FUZZ
@given(shares=st.lists(st.none() | st.integers(-3, 80) | st.floats() | st.floats(0, 1)
                       | st.just("1"), min_size=1, max_size=3))
def test_any_sparsities_are_refused_in_one_line_or_prune_so_much(shares):
    model, masks = models.create("resnet20", 4, [2] * 9), None
    for share in shares:
        try:
            now = prune_weights(model, share, masks)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert now.sparsity() == pytest.approx(share, abs=1e-3)
            assert masks is None or now.pruned() >= masks.pruned()
            assert all(not model.get_parameter(name)[~mask].any()
                       for name, mask in now.state_dict().items())
            masks = now


# -- folders of images

def picture():
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


files_of = st.sampled_from(
    [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(30), picture(), picture(), picture(),
     picture()[:40], b"GIF89a" + b"\xff" * 20, b"BM" + struct.pack("<I", 2**31) * 12])
places = st.sampled_from(["train", "val", "test", "train/a", "train/b", "test/a", "test/b", "val/a",
                          "train/a/deep", ".", "train/.hidden"])
names_of = st.sampled_from(["1.png", "2.PNG", "3.jpg", "x.txt", ".png", "ä ö.png", "4.bmp",
                            "noname"])


@settings(FUZZ, max_examples=80)
@given(tree=st.dictionaries(st.tuples(places, names_of), files_of, max_size=8),
       family=st.sampled_from(["cifar", "tinyimagenet"]))
def test_any_tree_of_files_is_refused_in_one_line_or_loaded(tmp_path_factory, tree, family):
    folder = tmp_path_factory.mktemp("tree")
    for (place, name), content in tree.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_bytes(content)
    try:
        found = load("imagefolder", folder, image_size=16, family=family)
    except KesiError as error:
        assert "\n" not in str(error)
    else:
        assert found.num_classes >= 1 and len(found.train) > 0 and len(found.test) > 0
        assert (int(found.train.labels.max()) < found.num_classes
                and found.train.images.dtype == torch.uint8)


# -- a network pruned until it cannot learn

@pytest.fixture(scope="module")
def digits():
    """Digits, but only as many as a test needs."""
    whole = load("digits")
    return replace(whole, train=Split(whole.train.images[:64], whole.train.labels[:64]),
                   test=Split(whole.test.images[:40], whole.test.labels[:40]))


def saved(folder, model, layer=None, share=0.1):
    masks = prune_weights(model, share)
    if layer is not None:
        state = masks.state_dict()
        state[f"{layer}.weight"][:] = False
        masks = Masks(model, state)
        masks.apply()
    keep(folder / "pruned.pth.tar", model, masks, kind="pruned", round=1, method="weight")
    return checkpoints.load(folder / "pruned.pth.tar")


VGG = [8, 8, "M", 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8]
STAGE = replace(recipes.RETRAININGS[recipes.OWN].training, epochs=1, batch_size=32)


def test_a_chain_that_is_cut_is_refused_before_it_trains(digits, tmp_path):
    torch.manual_seed(0)
    path = saved(tmp_path, models.create("vgg16", 10, VGG), "feature.7")
    with pytest.raises(KesiError, match="cannot learn: it answers every image alike, since no "
                                        "weight is left in feature.7; prune less"):
        run_steps.retrain(Context(digits, 0), STAGE, path, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_layer_without_weights_beside_a_shortcut_is_noted_and_trains(digits, tmp_path):
    path = saved(tmp_path, models.create("resnet20", 10, [2] * 9), "layer2.1.conv1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_steps.retrain(Context(digits, 0), STAGE, path, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["empty_layers"] == ["layer2.1.conv1"]


@pytest.mark.parametrize(("arch", "cfg", "layer", "deaf"), [
    ("vgg16", VGG, None, False),
    ("vgg16", VGG, "feature.0", True), ("resnet20", [2] * 9, None, False),
    ("resnet20", [2] * 9, "layer1.0.conv2", False), ("resnet20", [2] * 9, "conv1", True)])
def test_a_network_is_deaf_only_where_nothing_gets_through(arch, cfg, layer, deaf):
    torch.manual_seed(0)
    model = models.create(arch, 10, cfg)
    if layer is not None:
        torch.nn.init.zeros_(model.get_submodule(layer).weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert sizes.deaf(model) == deaf
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pruning_a_whole_layer_is_said_at_once(tmp_path):
    model = models.create("resnet20", 10, [2] * 9)
    with torch.no_grad():
        model.layer3[0].conv1.weight.mul_(1e-6)
    keep(tmp_path / "checkpoint.pth.tar", model, kind="baseline", round=0)
    with pytest.warns(UserWarning, match="round 1 prunes every weight of layer3.0.conv1$"):
        run_steps.prune(checkpoints.load(tmp_path), recipes.recipe("resnet20", "digits", "weight"),
                        0.3, tmp_path / "next", 1)


def test_an_accuracy_of_chance_is_reported_and_recorded(digits, tmp_path):
    path = saved(tmp_path, models.create("resnet20", 10, [2] * 9))
    blind = replace(digits, test=replace(digits.test, images=torch.zeros_like(digits.test.images)))
    with pytest.warns(UserWarning, match="onecycle-1 has learned nothing: its test accuracy of"):
        run_steps.retrain(Context(blind, 0), STAGE, path, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["at_chance"] is True
    assert sizes.chance(torch.tensor([0, 1, 1, 2])) == 50


# -- provenance

def test_the_commit_is_the_codes_whatever_repository_the_process_is_in(tmp_path, monkeypatch):
    before = commit.__wrapped__()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another one
    assert commit.__wrapped__() == before != (None, None)


def test_every_result_and_every_row_of_the_report_says_where_it_comes_from(filter_run):
    rows = {row["stage"]: row for row in csv.DictReader((filter_run / "report/stages.csv").open())}
    found = sorted(filter_run.glob("seed0/*/result.json"))
    assert len(found) == len(rows) == 8
    for path in found:
        result, row = json.loads(path.read_text()), rows[path.parent.name]
        for name in ("commit", "dirty", "device", "seed", "command"):
            assert result[name] is not None and row[name] == str(result[name]), name
        assert ("torch" in result["versions"]
                and f"torch {result['versions']['torch']}" in row["versions"])
        if path.parent.name.startswith("ensemble"):
            assert row["parent"].split() == result["members_digests"]
            continue
        assert len(result["recipe_hash"]) == 12 and row["recipe_hash"] == result["recipe_hash"]
        info = encode(checkpoints.load(path.parent).info)
        for name in ("commit", "dirty", "versions", "device", "seed", "command", "recipe_hash",
                     "parent"):
            assert info.get(name) == result.get(name)
        if path.parent.name != "baseline":
            assert row["parent"] == checkpoints.load(path.parent / result["parent"]["path"]).digest
        assert row["network_digest"] == checkpoints.load(path.parent).digest
    results = {path.parent.name: json.loads(path.read_text()) for path in found}
    lines = list(csv.DictReader((filter_run / "report/table.csv").open()))
    stages = ("baseline", "usual-2", "onecycle-2", "kesi", "ensemble", "ensemble-usual")
    written = (filter_run / "report/table.md").read_text()
    for line, stage in zip(lines, stages, strict=True):
        assert (line["seed_numbers"], line["device"], line["command"], line["network_digest"],
                line["parent"]) == ("0", *(results[stage].get(name) or "" for name in (
                    "device", "command", "network_digest")), rows[stage]["parent"]), stage
        assert (len(line["recipe_hash"]) == 12 and "torch" in line["versions"]
                and line["commit"] in ("", results[stage]["commit"],
                                       f"{results[stage]['commit']} with uncommitted changes"))
        assert line["recipe_hash"] in written and line["parent"][:12] in written
    hashes = {stage: row["recipe_hash"] for stage, row in rows.items()}
    assert (hashes["onecycle-1"] == hashes["onecycle-2"] != hashes["usual-1"] == hashes["usual-2"]
            != hashes["kesi"])


def test_a_test_loss_that_is_not_finite_ends_the_stage_before_it_is_saved(tmp_path):
    words = ("--arch", "resnet20", "--dataset", "digits", "--epochs", 1, "--batch-size", 300,
             "--lr", 1e17)
    fails("cifar/train.py", *words, "--save", tmp_path, code=1, says="the test loss is nan")
    assert not list(tmp_path.glob("*.tar")) and not (tmp_path / "metrics.jsonl").exists()


def test_a_network_pruned_otherwise_is_not_taken_for_the_recipes(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    shutil.rmtree(run / "seed0" / "onecycle-1")
    works("cifar/filter_pruning/prune.py", "--model", run / "seed0/baseline", "--percent", 0.9,
          "--save", run / "seed0" / "onecycle-1")
    words = same_command(run)
    fails("cifar/pipeline.py", *words, code=2, says="was pruned with another amount")


def test_an_ensemble_by_hand_leaves_that_of_the_run_alone(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    result = run / "seed0" / "ensemble" / "result.json"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ("cifar/filter_pruning/ensemble_finetune.py", "--refine", run / "seed0/onecycle-2",
             "--teachers", run / "seed0/onecycle-1", run / "seed0/usual-2")
    assert "the ensemble's test accuracy" in works(*words, "--evaluate")
    fails(*words, code=2, says=f"{result} is of another ensemble (baseline, onecycle-1, "
                               "onecycle-2; now onecycle-1, ")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    result.write_text('{"stage": "ensemble"}')  # whole, and says nothing
    again = same_command(run)
    outcome = script("cifar/pipeline.py", *again)
    assert outcome.code == 0 and "the ensemble is evaluated again" in outcome.err
    assert json.loads(result.read_text())["accuracy"] == json.loads(before[result])["accuracy"]


@pytest.mark.parametrize(("fields", "says"), [
    ({"seeds": None}, "its seeds is None"), ({"data": {"image_size": "x"}}, "its data is a dict"),
    ({"data": {"image_size": 10**6}}, "its data is a dict"),
    ({"recipe": {"rounds": 10**9}}, "its recipe is none")])
def test_a_run_json_that_says_nonsense_is_one_line(filter_run, tmp_path, fields, says):
    run = shutil.copytree(filter_run, tmp_path / "run")
    said = json.loads((run / "run.json").read_text())
    words = same_command(run)
    (run / "run.json").write_text(json.dumps(said | fields))
    for command in (("cifar/pipeline.py", *words), ("kesi", "verify", run),
                    ("kesi", "report", run, "--no-plots")):
        fails(*command, code=1, says=f"run.json is damaged: {says}")


def test_paths_that_no_system_takes_are_one_line(filter_run):
    for path in ("a" * 5000, "b" * 300 + "/c", "{x}"):
        fails("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--save", "nowhere",
              "--model", path, code=2, says="no such checkpoint")
    for command in ("report", "verify", "tensorboard", "study", "compress"):
        fails("kesi", command, "a" * 300, code=1, says="File name too long")
