"""Networks of one's own that are refused, in one line and before anything is trained or written."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import kesi
import models
from kesi.data import load
from kesi.data.arrays import from_arrays
from kesi.method.recipes import recipe
from kesi.method.training import Options, fit
from kesi.system.errors import UsageError

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.usefixtures("registry")

CPU = Options(device="cpu", eval_every=0)


def digits(count: int = 40):
    dataset = load("digits", image_size=8)
    train, test = dataset.train, dataset.test
    return (train.take(0, count), train.labels[:count]), (test.take(0, 100), test.labels[:100])


class Small(nn.Module):
    def __init__(self, classes: int = 10):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


class Offset(Small):
    """A random buffer that is in no checkpoint decides what it answers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.randn(10), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.offset


class Loose(Small):
    """The same as a plain attribute."""

    def __init__(self):
        super().__init__()
        self.offset = torch.randn(10)


class Listed(Small):
    """The same in a list, as an array."""

    def __init__(self):
        super().__init__()
        self.offsets = {"one": [np.random.default_rng().normal(size=10)]}


class Closed(Small):
    """The same hidden in a number."""

    def __init__(self):
        super().__init__()
        self.factor = float(torch.rand(()))

    def forward(self, x):
        return super().forward(x) * self.factor


class Counting(Small):
    """Something in its state_dict is no tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


class Wavering(nn.Sequential):
    def __init__(self):
        width = int(torch.randint(4, 1000, ()))
        super().__init__(nn.Conv2d(3, width, 3), nn.Flatten(), nn.LazyLinear(10))
        self(torch.zeros(1, 3, 8, 8))


class Changing(Small):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Auxiliary(Small):
    def forward(self, x):
        answer = super().forward(x)
        return (answer, answer) if self.training else answer


class Late(Small):
    def forward(self, x):
        answer = super().forward(x)
        return answer if self.training else {"logits": answer}


def made(change) -> nn.Module:
    network = Small()
    change(network)
    return network


def tie(network: nn.Module) -> None:
    network.second = nn.Conv2d(8, 8, 3, padding=1)
    network.third = nn.Conv2d(8, 8, 3, padding=1)
    network.third.weight = network.second.weight


def lazy(network: nn.Module) -> None:
    network.second = nn.LazyConv2d(8, 3)


def deep(network: nn.Module) -> None:
    network.second = nn.Conv3d(8, 8, 3)


def five(network: nn.Module) -> None:
    network.second.register_buffer("grid", torch.zeros(1, 1, 1, 1, 1))


def forgetful(network: nn.Module) -> None:
    network.second = nn.BatchNorm2d(8, track_running_stats=False)


def spectral(network: nn.Module) -> None:
    parametrizations.spectral_norm(network.first)


def pruned(network: nn.Module) -> None:
    prune.identity(network.first, "weight")


@pytest.mark.parametrize(("model", "said"), [
    (lambda: made(lazy), "'second' is lazy"),
    (lambda: made(deep), "'second' is a 3-D convolution"),
    (lambda: Small().double(), "first.weight is float64: .*network.float"),
    (lambda: Small().half(), "first.weight is float16"),
    (lambda: made(five), "'second' has five dimensions"),
    (lambda: made(forgetful), "'second' has no running statistics"),
    (lambda: made(tie), "second.weight and third.weight are the same weights"),
    (lambda: made(spectral), "'first' computes its weight from others"),
    (lambda: made(pruned), "'first' computes its weight from others"),
    (lambda: Small().requires_grad_(False), "all parameters are frozen"),
    (Offset, "its offset is not in the state_dict"),
    (Loose, "its offset is not in the state_dict"),
    (Listed, "its offsets is not in the state_dict"),
    (Counting, "its _extra_state is a dict, and a checkpoint holds tensors"),
    (Changing, "changes the images that it is given"),
    (Auxiliary, "gives a tuple: let it return the logits alone"),
    (Late, "gives a dict: let it return the logits alone"),
])
def test_networks_that_are_refused_before_anything_is_written(model, said, tmp_path):
    with pytest.raises(UsageError, match=said) as refused:
        kesi.compress(model(), *digits(), folder=tmp_path / "run", options=CPU)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("factory", "said"), [
    (Offset, "offset is not in the state_dict and is another one each time"),
    (Loose, "offset is not in the state_dict and is another one"),
    (Listed, "offsets is not in the state_dict and is another one"),
    (Closed, "answer differently with the same weights"),
    (Wavering, "different weights by name or shape"),
    (lambda: Small().double(), "float64")])
def test_factories_whose_networks_are_more_than_their_weights(factory, said):
    with pytest.raises(UsageError, match=said):
        kesi.register("wavering", factory, image_size=8)
    assert "wavering" not in models.ARCHITECTURES


def test_buffers_that_are_the_same_each_time_are_taken():
    class Fixed(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.arange(10.0), persistent=False)
            self.several = [torch.zeros(2), torch.ones(2), self.head.weight]

    kesi.register("fixed", Fixed, image_size=8)


def test_frozen_parameters_stay_as_they_are(tmp_path):
    torch.manual_seed(0)
    network = Small()
    network.first.requires_grad_(False)
    before = network.first.weight.clone()
    result = kesi.compress(network, *digits(), rounds=1, ignore=["first"], epochs=(1, 1, 1),
                           batch_size=20, folder=tmp_path / "run", options=CPU)
    assert result.network.cfg == [8, 6]  # ignored, and a fifth less
    assert torch.equal(result.network.first.weight, before)
    assert not torch.equal(result.network.head.bias, network.head.bias)


def test_what_is_ignored_has_to_be_there(tmp_path):
    for arguments, said in (({"ignore": ["third"]}, "no convolution is or is in 'third'.*first"),
                            ({"ignore": ["first"], "method": "weight"}, "ignore is for"),
                            ({"mean": [0.5, 0.5]}, "mean is one number"),
                            ({"std": 0}, "above 0"), ({"mean": float("nan")}, "mean is")):
        with pytest.raises(UsageError, match=said):
            kesi.compress(Small(), *digits(), folder=tmp_path / "run", options=CPU, **arguments)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that knows the digits, trained on images that are scaled to 0..1 and no more."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                            nn.Flatten(), nn.Linear(288, 10))
    dataset = from_arrays(*digits(300), flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    stage = recipe("resnet20", "digits", "filter").baseline.scaled(0.3)
    fit(network, dataset, stage, seed=0, options=CPU)
    return network


def run(network, folder, train=300, **arguments):
    return kesi.compress(network, *digits(train), flip=False, rounds=1, epochs=(1, 1, 1),
                         folder=folder, trained=True, options=CPU, **arguments)


def test_a_trained_network_is_asked_first(trained, tmp_path):
    """Other normalisation, other order of the classes, or less than its owner says: one line."""
    result = run(trained, tmp_path / "good", name="known", mean=0, std=1)
    assert result.accuracies["baseline"] > 70
    with pytest.raises(UsageError, match="not the 99.5 % that accuracy= says"):
        run(trained, tmp_path / "run", name="known", mean=0, std=1, accuracy=99.5)
    with pytest.raises(UsageError, match=r"images reach it scaled to 0..1, .*mean= and std="):
        run(trained, tmp_path / "run", name="known", mean=40, std=0.1)
    moved = nn.Sequential(*trained[:-1], nn.Linear(288, 10))
    moved[-1].weight.data = trained[-1].weight.detach().roll(3, 0)
    moved[-1].bias.data = trained[-1].bias.detach().roll(3, 0)
    with pytest.raises(UsageError, match="with its classes in another order it would be [7-9]"):
        run(moved, tmp_path / "run", name="known", mean=0, std=1)
    assert not (tmp_path / "run").exists()
