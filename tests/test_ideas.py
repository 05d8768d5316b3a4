"""One entry an idea: what somebody adds in a file of their own goes through the pipeline
and into the report."""

import csv
import importlib.util
import json
import linecache
import shutil
import subprocess
import sys
from functools import partial

import pytest

from doors import fails, works
from kesi.cli.entry import load_module
from kesi.system.describe import code_digest
from tinyrun import ENVIRONMENT, ROOT

ADDITIONS = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import kesi
from kesi.data import DatasetInfo, INFO, load, register_dataset
from kesi.data.split import Images
from kesi.method.objectives import LOSSES
from kesi.method.pruning.criteria import FILTER_CRITERIA
from kesi.method.recipes import RECIPES, RETRAININGS, Retraining
from kesi.method.schedules import SCHEDULES, Training
from kesi.report.tables import COLUMNS, Column


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                                      nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


SIGN = -1


def last_first(network, layers, evidence):
    """The filters with the largest number go first."""
    return {layer: SIGN * torch.arange(network.get_submodule(layer).out_channels).float()
            for layer in layers}


@dataclass(frozen=True)
class SquaredError:
    """The squared distance to the teachers' mean logits."""

    weight: float = 1.0

    def __call__(self, logits, teachers, labels):
        return self.weight * F.mse_loss(logits.float(), teachers.mean(0))


def falling(optimizer, training, steps):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (training.epochs * steps))


def half(root, storage, download):
    whole = load("digits")
    return Images(whole.train.subset(torch.arange(150)), whole.test, whole.classes)


kesi.register("small", Small, image_size=16)
FILTER_CRITERIA["last"] = last_first
LOSSES["squared"] = SquaredError
SCHEDULES["falling"] = falling
RETRAININGS["linear"] = Retraining(Training(epochs=40, batch_size=128, lr=0.05, schedule="falling"),
                                   "linear decay", "#CC79A7", "^")
RECIPES["calm"] = lambda paper: paper.trained(retraining={"lr": 0.02})
register_dataset("half", DatasetInfo(half, num_classes=10, train_images=150, side=16, flip=False))
COLUMNS.append(Column("images seen", lambda row: row.spread("images"), digits=0))
'''


@pytest.fixture(scope="module")
def additions(tmp_path_factory):
    path = tmp_path_factory.mktemp("additions") / "my_ideas.py"
    path.write_text(ADDITIONS)
    return path


def kesi(additions, *words):
    """A command of KESI's, with the additions, in a process of its own; returns its output."""
    done = subprocess.run([sys.executable,
                           "-m", "kesi", "--with", str(additions), *map(str, words)],
                          cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stages(folder):
    with open(folder / "report" / "stages.csv") as file:
        return {row["stage"]: row for row in csv.DictReader(file)}


WORDS = ("run", "--recipe", "calm", "--arch", "resnet20", "--dataset", "digits", "--criterion",
         "last", "--loss", "squared", "--compare", "linear", "--epochs", 1, 1, 1, "--rounds", 1,
         "--device", "cpu", "--save")


@pytest.fixture(scope="module")
def run(additions, tmp_path_factory):
    """A run with all of them, to be read only."""
    folder = tmp_path_factory.mktemp("ideas") / "run"
    kesi(additions, *WORDS, folder)
    return folder


def test_criterion_loss_schedule_retraining_and_column(run):
    folder, rows = run, stages(run)
    assert (list(rows)
            == ["baseline", "onecycle-1", "ensemble", "linear-1", "ensemble-linear", "kesi"])
    recipe = json.loads((folder / "run.json").read_text())["recipe"]
    assert recipe["criterion"]["name"] == "last" and recipe["loss"]["name"] == "SquaredError"
    assert recipe["trainings"]["linear"]["schedule"] == "falling"
    assert recipe["trainings"]["onecycle"]["lr"] == 0.02
    table = (folder / "report" / "table.md").read_text()
    for said in ("linear decay", "last", "images seen"):
        assert said in table, said
    pruned = subprocess.run([sys.executable, "-c", CHECK, str(folder)], cwd=ROOT, env=ENVIRONMENT,
                            capture_output=True, text=True)
    assert pruned.returncode == 0, pruned.stderr


CHECK = '''
import sys
from pathlib import Path
import torch
from kesi import checkpoints
folder = Path(sys.argv[1], "seed0")
whole = checkpoints.load(folder / "baseline").network.layer1[0].conv1.weight
pruned = checkpoints.load(folder / "onecycle-1" / "pruned.pth.tar").network.layer1[0].conv1.weight
assert torch.equal(pruned, whole[:len(pruned)]) and len(pruned) < len(whole)
'''


def test_with_is_said_in_either_way_on_either_side(tmp_path):
    path = tmp_path / "said.py"
    path.write_text("print('it ran')")
    command = ("plan", "--arch", "resnet20", "--dataset", "digits")
    for words in ((f"--with={path}", *command), (*command, f"--with={path}"),
                  ("--with", path, *command)):
        assert works("kesi", *words).count("it ran") == 1


def test_network_and_data_set(additions, tmp_path):
    folder = tmp_path / "run"
    kesi(additions, "run", "--arch", "small", "--dataset", "half", "--epochs", 1, 1, 1, "--rounds",
         1, "--device", "cpu", "--save", folder)
    assert stages(folder)["kesi"]["arch"] == "small" and stages(folder)["kesi"]["images"] == "150"
    assert "small on half" in (folder / "report" / "table.md").read_text()
    assert "all" in kesi(additions, "verify", folder)


@pytest.mark.parametrize(("old", "new"), [("SIGN * torch", "torch"), ("SIGN = -1", "SIGN = 1")])
def test_what_was_begun_with_one_criterion_does_not_continue_with_another(run, tmp_path, old, new):
    """Also where the other one has its name: what it does counts."""
    shutil.copytree(run, tmp_path / "run")
    words = (*WORDS, tmp_path / "run")
    other = tmp_path / "my_ideas.py"
    other.write_text(ADDITIONS.replace(old, new))
    done = subprocess.run([sys.executable, "-m", "kesi", "--with", str(other), *map(str, words)],
                          cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "another criterion code" in done.stderr


OWN = """
import functools
from dataclasses import dataclass
LIMIT = 3
calls = 0

def helper(x):
    return min(x, LIMIT)

def plain(x):
    global calls
    calls += 1  # what it counts for itself decides nothing
    return [helper(one) for one in x]

def made(factor):
    return lambda x: factor * x

class Held:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return helper(self.factor)

@dataclass(frozen=True)
class Fields:
    limit: int = LIMIT  # which each of them says itself
"""


def test_what_code_takes_from_around_it_is_part_of_it(tmp_path):
    def digests(text):
        path = tmp_path / "own.py"
        path.write_text(text)
        linecache.clearcache()
        module = load_module(str(path), "")
        things = (module.plain, module.made(2), module.Held(2), partial(module.plain, k=2),
                  module.Fields)
        return [code_digest(one) for one in things], module

    before, module = digests(OWN)
    module.plain([1])
    others = [module.plain, module.made(3), module.Held(3), partial(module.plain, k=3),
              module.Fields]
    assert [code_digest(one) == old for one, old in zip(others, before, strict=True)] == [
        True, False, False, False, True]
    for old, new, changed in (("LIMIT = 3", "LIMIT = 4", [True, False, True, True, False]),
                              ("min(x", "max(x", [True, False, True, True, False]),
                              ("# what", "# That", [False] * 5)):
        again = digests(OWN.replace(old, new))[0]
        assert [one != other for one, other in zip(again, before, strict=True)] == changed


AROUND = """
import functools
from dataclasses import dataclass
from types import SimpleNamespace

def base(x):
    return x

def kept(function):
    @functools.wraps(function)
    def twice(x):
        return 2 * function(x)
    return twice

POWER = len("ab")

def usual(x, power=POWER):
    return x ** power

class First:
    def shown(self, x):
        return x + 3

ONCE, OFTEN, INNER, FACTOR = 11, 12, 13, 14

def far(x):
    return x - 15

class Second(First):
    factor = FACTOR
    table = {"far": far}

    @functools.cached_property
    def once(self):
        return ONCE

    @functools.lru_cache
    def often(self):
        return OFTEN

    class Inner:
        def shown(self):
            return INNER

@dataclass(frozen=True, slots=True)
class Depth:
    depth: int

DEPTH = Depth(16)
SIZES = SimpleNamespace(width=5)
HALF = functools.partial(usual, power=7)
TABLE = {"base": base, "half": HALF}
ONE = Second()

@functools.lru_cache
@kept
def entry(x):
    return usual(ONE.shown(TABLE["base"](HALF(x) + SIZES.width)), DEPTH.depth)
"""


@pytest.mark.parametrize(("old", "new"), [
    ("2 * function", "3 * function"), ('len("ab")', 'len("abc")'), ("x + 3", "x + 4"),
    ("width=5", "width=6"), ("power=7", "power=8"), ('"base": base', '"base": usual'),
    ("return x\n", "return -x\n"), *((f"{n}", f"{n + 10}") for n in range(11, 15)),
    ("x - 15", "x - 25"), ("Depth(16)", "Depth(26)")])
def test_what_code_takes_from_its_file_by_a_detour_is_part_of_it(
        tmp_path, monkeypatch, old, new):
    """A cache, a wrapper, a helper's default, a class that another derives from, its attributes,
    properties and classes, objects, functions that a dictionary holds; also in a file whose package
    has the name of ours."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which knows no change within a second
    package, found = tmp_path / "models", []
    package.mkdir()
    for text in (AROUND, AROUND.replace(old, new), AROUND):
        (package / "__init__.py").write_text(text)
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("models.theirs", package / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "models.theirs", module)
        spec.loader.exec_module(module)
        found.append(code_digest(module.entry))
    assert found[0] == found[2] != found[1]


ODD = """
import contextlib
import functools
import json
import threading

import torch
from torch.nn.functional import relu as bend

from kesi.method.pruning.criteria import FILTER_CRITERIA

class Meter:
    n = 0

METER = Meter()

def leaf(x):
    return x + 1

def walk(x):
    METER.n += 1
    return HANDLERS["walk"](bend(x))

HANDLERS = {"walk": walk, leaf: 1.0, Meter(): leaf, "abs": torch.Tensor.abs, 3: str.upper}
HANDLERS["self"] = HANDLERS

class Layer(threading.Thread):
    def __init__(self, kind=None, act=torch.Tensor.relu, encoder=json.JSONEncoder):
        self.kind = Layer

    def forward(self, x):
        return walk(x)

@contextlib.contextmanager
def quiet():
    yield

@torch.no_grad()
@quiet()
def listed(network, layers, evidence):
    return FILTER_CRITERIA["l1"](network, layers, evidence)

FILTER_CRITERIA["listed"] = listed

@functools.lru_cache
def cached(x):
    return x + 5

def over(function):
    return lambda x: function(x)

class Held:
    def __init__(self, held):
        self.held = held

    def by(self, x):
        return x * self.held + 7

class Bag(set):
    pass

THINGS = {"walk": walk, "layer": Layer, "listed": listed, "cached": over(cached),
          "bound": over(Held(3).by), "reads cached": lambda x: cached(x),
          "set": Held(Bag([leaf, cached, Held(leaf), Held(cached), Held((leaf, cached))]))}
"""

SAY = """
import sys
from kesi.cli.entry import load_module
from kesi.system.describe import code_digest, own_digest
for file in sys.argv[1:]:
    things = load_module(file, "").THINGS
    first = {name: code_digest(one) for name, one in things.items()} | {"own": own_digest(
        things["layer"])}
    try:
        things["walk"](things["layer"])
    except TypeError:
        pass
    assert own_digest(things["layer"]) == first["own"]  # what an object counts decides nothing
    print(*first.values())
"""


def test_odd_things_around_code_have_one_digest_in_all_processes(tmp_path):
    """Tables that hold their own readers, keys with addresses, methods without a module, counters,
    threads; an entry that somebody adds to a registry of ours is nothing to another one."""
    def said(*texts):
        """The digests of files of one name, in a process of their own."""
        files = [tmp_path / str(number) / "odd.py" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        lines = subprocess.run([sys.executable, "-c", SAY, *files], cwd=ROOT, env=ENVIRONMENT,
                               capture_output=True, text=True, check=True).stdout.splitlines()
        return [line.split() for line in lines]

    [first] = said(ODD)
    changes = (("relu as", "gelu as", "walk layer own"), ("x + 5", "x + 6", "cached reads set"),
               ("held + 7", "held + 8", "bound set"), ("Held(3)", "Held(4)", "bound"),
               ('["l1"]', '["l2"]', "listed"), ("Tensor.abs", "Tensor.neg", "walk layer own"))
    again, *others = said(ODD.replace("THINGS =", 'FILTER_CRITERIA["more"] = leaf; THINGS ='),
                          *(ODD.replace(old, new) for old, new, _ in changes))
    assert again == first
    names = ["walk", "layer", "listed", "cached", "bound", "reads", "set", "own"]
    for other, (_, _, changed) in zip(others, changes, strict=True):
        assert [name for name, one, now in zip(names, first, other, strict=True)
                if one != now] == changed.split()


def test_a_file_that_takes_the_name_of_our_networks_is_refused(tmp_path):
    (tmp_path / "models.py").write_text("")
    fails("kesi", "--with", tmp_path / "models.py", "plan", "--arch", "resnet20", code=2,
          says="models is the name of another module: rename the file")


ALIKE = """
import random
from dataclasses import dataclass
from functools import lru_cache, partial
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kesi.method.objectives import KullbackLeibler

@dataclass(frozen=True)
class Shape:
    power: float

    def loss(self, logits, teachers, labels):
        return self.power * logits.mean()

class Soft(nn.Module):
    def __init__(self, part, buffer=1.0):
        super().__init__()
        self.part = part
        self.register_buffer("buffer", torch.tensor(buffer), persistent=False)

class Mine:
    def __init__(self, held):
        self.held = held

    def __call__(self, logits, teachers, labels):
        return F.mse_loss(logits, teachers.mean(0) * self.held)

    def loss(self, logits, teachers, labels):
        return self(logits, teachers, labels)

def taken(held):
    return lambda logits, teachers, labels: F.mse_loss(logits, teachers.mean(0) * held)

def by(function):
    return lambda logits, teachers, labels: function(logits, teachers.mean(0))

def ring(held):
    mine = Mine(held)
    mine.me, mine.method, mine.called = mine, mine.loss, lambda *given: mine(*given)
    mine.partial = partial(mine.loss, mine)
    return mine

def shares(*held):
    mine = Mine([Mine(1), Mine(2)])
    mine.more = [mine.held[one] for one in held]
    return mine

PAIRS = {
    "a default": [lambda l, t, y, T=T: F.mse_loss(l / T, t.mean(0)) for T in (1.0, 4.0)],
    "what it calls": [
        lambda l, t, y: F.mse_loss(l, t.mean(0)),
        lambda l, t, y: F.l1_loss(l, t.mean(0))],
    "one line": [lambda l, t, y: F.mse_loss(l, t.mean(0)), lambda l, t, y: l.mean()],
    "a list around it": [taken([1, 0]), taken([0, 1])],
    "a tensor around it": [taken(torch.tensor([1.0, 0.0])), taken(torch.tensor([0.0, 1.0]))],
    "a function around it": [by(F.mse_loss), by(F.l1_loss)],
    "an object around it": [by(Mine(1)), by(Mine(2))],
    "a list that it holds": [Mine([1, 0]), Mine([0, 1])],
    "an array that it holds": [Mine(np.eye(2)), Mine(np.ones((2, 2)))],
    "a dictionary that it holds": [Mine({"a": {1, 2}}), Mine({"a": {1, 3}})],
    "a large array of a partial": [partial(by, np.eye(99)), partial(by, np.eye(99, k=50))],
    "a method's object": [Mine(1).loss, Mine(2).loss],
    "a method's equal object": [Shape(one).loss for one in (1, 1.0)],
    "a module's part": [Soft(nn.CrossEntropyLoss(label_smoothing=one)) for one in (0.0, 0.9)],
    "a module's buffer": [Soft(None), Soft(None, 2.0)],
    "a function that it holds": [Mine(F.mse_loss), Mine(F.l1_loss)],
    "its own function": [Mine(taken(1)), Mine(taken(2))],
    "a function of ours that it holds": [Mine(KullbackLeibler(one).__call__) for one in (1, 2)],
    "a function of chance": [Mine(random.choice), Mine(random.random)],
    "cached ones of a line": [lru_cache(lambda l, t, y: l), lru_cache(lambda l, t, y: t)],
    "a dataclass that it holds": [Mine(Shape(1)), Mine(Shape(2))],
    "one of ours that it holds": [Mine(KullbackLeibler(1.0)), Mine(KullbackLeibler(2.0))],
    "an object that it holds": [Mine([Mine(1), taken]), Mine([Mine(2), taken])],
    "an object of a partial": [partial(by, Mine(1)), partial(by, k=Mine(2))],
    "a partial that it holds": [Mine(partial(by, Shape(1))), Mine(partial(by, Shape(2)))],
    "a ring": [ring(1), ring(2)],
    "the same again": [shares(0, 1, 0), shares(0, 1, 1)],
    "weights": [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)],
}
"""


def test_what_differs_in_what_it_holds_has_another_digest_and_keeps_its_own(tmp_path):
    path = tmp_path / "alike.py"
    path.write_text(ALIKE)
    pairs, again = (load_module(str(path), "").PAIRS for _ in range(2))
    first = {name: [code_digest(one) for one in pair] for name, pair in pairs.items()}
    assert [name for name, (one, other) in first.items() if one == other] == []
    random = first.pop("weights")
    # the same file says the same again; and a text that was changed later is not what runs
    path.write_text(ALIKE.replace("mse_loss", "l1_loss"))
    assert {name: [code_digest(one) for one in pairs[name]] for name in first} == first
    path.write_text(ALIKE)
    linecache.clearcache()
    assert {name: [code_digest(one) for one in again[name]] for name in first} == first
    assert [code_digest(one) for one in pairs["weights"]] == random
