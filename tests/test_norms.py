"""Grouped batch norms compute what torch's compute, and closer to the exact values."""

import copy

import pytest
import torch
from torch import nn

import models
from kesi.method.objectives import CrossEntropy
from kesi.system import execution, norms

SHAPES = [(14, 32, 16), (9, 32, 16), (29, 16, 8), (58, 8, 8), (3, 5, 8), (1, 4, 16)]


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


def outcome(norm: nn.BatchNorm2d, x: torch.Tensor, grad: torch.Tensor,
            grouped: bool) -> list[torch.Tensor]:
    """Output, the three gradients and the running statistics after one step, in float64."""
    norm = copy.deepcopy(norm).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with norms.grouped([norm] if grouped else []):
        y = norm(x)
    y.backward(grad)
    assert y.dtype == x.dtype and x.grad.dtype == x.dtype
    assert norm.num_batches_tracked == 1
    return [t.detach().double() for t in (y, x.grad, norm.weight.grad, norm.bias.grad,
                                          norm.running_mean, norm.running_var)]


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("channels, size, images", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_gradients_and_statistics_agree_with_float64(channels, size, images, dtype):
    torch.manual_seed(0)
    norm = norm_of(channels)
    x = (2 * torch.randn(images, channels, size,
                         size) + 3).to(dtype).to(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    exact = outcome(norm, x.double(), grad.double(), grouped=False)
    ours = outcome(norm, x, grad, grouped=True)
    for found, right in zip(ours[:2], exact[:2], strict=True):
        assert distance(found, right) < (1e-6 if dtype == torch.float32 else 4e-3)
    for found, right in zip(ours[2:], exact[2:], strict=True):
        assert distance(found, right) < 1e-5


def test_a_mean_far_from_zero_costs_no_precision():
    torch.manual_seed(0)
    norm, x = norm_of(14), (torch.randn(16, 14, 8, 8) + 1000).to(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    exact = outcome(norm, x.double(), grad.double(), grouped=False)
    torchs, ours = (outcome(norm, x, grad, grouped) for grouped in (False, True))
    for one, other, right in zip(torchs, ours, exact, strict=True):
        assert distance(other, right) < 4 * distance(one, right) + 1e-5


@pytest.mark.parametrize("case", ["eval", "contiguous", "float64", "uneven", "one group"])
def test_what_does_not_suit_is_left_to_torch_bit_for_bit(case):
    torch.manual_seed(0)
    images = {"uneven": 3, "one group": 2}.get(case, 16)
    norm, x = norm_of(14), torch.randn(images, 14, *((2, 2) if case == "one group" else (3, 3)))
    if case != "contiguous":
        x = x.to(memory_format=torch.channels_last)
    if case == "float64":
        norm, x = norm.double(), x.double()
    norm.train(case != "eval")
    with norms.grouped([other := copy.deepcopy(norm)]):
        assert torch.equal(other(x), norm(x))
    assert torch.equal(other.running_var, norm.running_var)


def test_only_slow_norms_are_chosen():
    assert norms.slow_norms(models.create("resnet20", 10)) == []
    pruned = models.create("resnet20", 10, [14, 14, 16, 29, 32, 29, 58, 58, 64])
    assert [norm.num_features for norm in norms.slow_norms(pruned)] == [14, 14, 29, 29, 58, 58]
    sync = nn.SyncBatchNorm(14)
    others = [nn.BatchNorm2d(14, affine=False), nn.BatchNorm2d(14, momentum=None)]
    assert norms.slow_norms(nn.Sequential(sync, *others)) == []


def test_torchs_forward_is_back_afterwards_even_after_an_error():
    norm = norm_of(14)
    with pytest.raises(ZeroDivisionError), norms.grouped([norm]):
        assert "forward" in vars(norm)
        raise ZeroDivisionError
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("precision, near", [("fp32", 1e-4), ("bf16", 5e-2)])
def test_a_training_step_of_a_pruned_network_uses_them_and_computes_the_same(monkeypatch, precision,
                                                                             near):
    calls = []
    original = norms._BatchNorm.apply
    monkeypatch.setattr(norms._BatchNorm, "apply",
                        lambda *values: calls.append(1) or original(*values))
    execution.set_up("cpu", precision, False)
    torch.manual_seed(0)
    model = models.create("resnet20", 10, [14, 14, 16, 29, 32, 29, 58, 58,
                                           64]).to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 16, 16).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (16,))
    torchs = copy.deepcopy(model)
    step = execution.make_step(model, CrossEntropy(), "cpu", precision, "auto", 10)
    loss, _ = step(images, labels, 1.0)
    assert len(calls) == 6
    monkeypatch.setattr(norms, "slow_norms", lambda model: [])
    step = execution.make_step(torchs, CrossEntropy(), "cpu", precision, "auto", 10)
    right, _ = step(images, labels, 1.0)
    assert len(calls) == 6
    assert abs(float(loss - right)) < near
    ours, theirs = (torch.cat([weight.grad.flatten() for weight in one.parameters()])
                    for one in (model, torchs))
    assert distance(ours, theirs) < (1e-4 if precision == "fp32" else 0.2)
