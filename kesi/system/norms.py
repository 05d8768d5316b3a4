"""Batch norms of pruned networks on a CPU, several times as fast as torch's; and their counting in
one.

torch gives every thread its own row of sums, one number a channel, and puts the rows side by side.
With 16 channels a row fills a cache line; with the 14 that pruning leaves, two threads write to the
same line all the time, and two take longer than one. Here k neighbouring positions count as
channels of their own, so that rows end where cache lines do (and vector instructions are filled);
the k sums of a channel are then added. """

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from types import MethodType

import torch
from torch import nn
from torch.autograd.function import once_differentiable

LINE = 16  # floats in a cache line of 64 bytes, and in the widest vector register


def slow_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a network that grouped() speeds up: those whose channels do not fill cache
    lines."""
    return [module for module in model.modules()
            if type(module) is nn.BatchNorm2d and module.num_features % LINE and module.affine
            and module.track_running_stats and module.momentum is not None
            and "forward" not in vars(module)]


@contextlib.contextmanager
def grouped(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Within, these batch norms compute what they always do in another order, where that is
    faster."""
    # not those that have become synchronised
    norms = [norm for norm in norms if type(norm) is nn.BatchNorm2d]
    for norm in norms:
        norm.forward = MethodType(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


class _Tally:
    """Stands in for num_batches_tracked and counts how often a norm has added to it."""

    def __init__(self, counter: torch.Tensor):
        self.counter, self.count = counter, 0

    def add_(self, number: int) -> None:
        self.count += number


def counting_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a network whose batches counted() counts.

    Without a momentum the count itself enters the running statistics: those keep their own.
    """
    return [module for module in model.modules()
            if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            and module.momentum is not None and module.num_batches_tracked is not None]


@contextlib.contextmanager
def counted(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Within, these batch norms only note their batches; afterwards all are counted in one
    operation.

    Each would otherwise add 1 to a number of its own: as many kernels of a GPU as there are norms.
    """
    tallies = [_Tally(norm.num_batches_tracked) for norm in norms]
    for norm, tally in zip(norms, tallies, strict=True):
        norm._buffers["num_batches_tracked"] = tally
    try:
        yield
    finally:
        for norm, tally in zip(norms, tallies, strict=True):
            norm._buffers["num_batches_tracked"] = tally.counter
        seen = [tally for tally in tallies if tally.count]
        if seen:
            torch._foreach_add_([tally.counter for tally in seen], [tally.count for tally in seen])


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Take the running statistics of all batch norms anew: the means over these batches of images.

    For weights that no batch has gone through in training, such as averaged ones (Izmailov et al.
    2018, "Averaging Weights Leads to Wider Optima and Better Generalization", section 3.2).
    """
    found = [one for one in model.modules()
             if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.track_running_stats]
    if not found:
        return
    training, momenta = model.training, [one.momentum for one in found]
    model.eval()  # dropout is not to disturb them
    for norm in found:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the mean over all batches
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(found, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


def _forward(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    groups, rest = divmod(n * h * w, _group(c))
    suits = (norm.training and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
             and x.is_contiguous(memory_format=torch.channels_last) and rest == 0 and groups > 1)
    if not suits:
        return nn.BatchNorm2d.forward(norm, x)
    norm.num_batches_tracked.add_(1)
    return _BatchNorm.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                            norm.momentum, norm.eps)


def _group(channels: int) -> int:
    """The fewest positions that together fill whole cache lines."""
    return LINE // math.gcd(channels, LINE)


def _rows(x: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, C, H, W) in channels_last as (N H W C / channels, channels, 1, 1), the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)


class _BatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy 2015, algorithm 1, and its gradient as they derive it in section 3."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
                running_mean: torch.Tensor, running_var: torch.Tensor, momentum: float,
                eps: float) -> torch.Tensor:
        n, c, h, w = x.shape
        count, k = n * h * w, _group(c)
        rows = _rows(x, k * c)
        # with momentum 1 these are the statistics of this batch alone, in fp32 whatever x is
        means, variances = torch.zeros(2, k * c)
        torch.batch_norm_update_stats(rows, means, variances, 1.0)
        each = count // k
        means, variances = means.view(k, c), variances.view(k, c) * ((each - 1) / each)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square_().mean(0)  # the law of total variance
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        # written to through a view: what is returned must not be one, for relu_
        out = torch.empty_like(x)
        unused = means.new_empty(0)
        values = torch.stack((weight, bias, mean, var)).repeat(1, k)
        torch.native_batch_norm(rows, *values, False, 0.0, eps,
                                out=(_rows(out, k * c), unused, unused))
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        count, k = n * h * w, _group(c)
        grad = grad.contiguous(memory_format=torch.channels_last)
        # the sums over a batch alone: of grad, and of grad times the normalised input
        weights, means, rstds = torch.stack((weight, mean, rstd)).repeat(1, k)
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            _rows(grad, k * c), _rows(x, k * c), weights, None, None, means, rstds, True, 0.0,
            [False, True, True])
        grad_weight, grad_bias = torch.stack(sums).view(2, k, c).sum(1)
        # dx = scale * (grad - grad_bias / count - normalised x * grad_weight / count), as
        # a grad + b x + d, an image a row: rows of a few numbers would leave vector registers
        # unfilled
        a = weight * rstd
        b = -a * rstd * grad_weight / count
        d = -a * grad_bias / count - b * mean
        images, grads = _rows(x, h * w * c).flatten(1), _rows(grad, h * w * c).flatten(1)
        a, b, d = torch.stack((a, b, d)).repeat(1, h * w)
        dx = torch.addcmul(d, images, b).addcmul_(grads, a)
        dx = dx.to(x.dtype).view(n, h, w, c).permute(0, 3, 1, 2)
        return dx, grad_weight, grad_bias, None, None, None, None
