"""What all networks share: what a name stands for, what can be pruned, how weights are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

STAGE_RATES = (0.1, 0.2, 0.3)  # the paper's share of filters that go in a round, by stage


@dataclass(frozen=True)
class Architecture:
    """A network of one name: how it is built, and what the method has to know about it.

    ``build(num_classes, cfg)`` gives the network; ``cfg`` are its widths before any pruning, see
    create(). ``rates``: the share of filters that goes in a round of filter pruning, one number for
    each width of ``cfg`` (pools not counted). ``sparsities``: the share of zero weights after each
    round of weight pruning. ``baseline``: which of kesi.method.recipes.BASELINES trains it on small
    images. ``in_paper``: whether the paper reports on it; the settings of the others are those of
    their relatives. ``image_size``: the pixels of the images that it is made for. ``pretrained``:
    the name of torchvision's weights for it. ``num_classes``: where it can have no other number.

    ``graph`` is for networks that are no Network and so cannot say themselves what is pruned: an
    object with ``convs`` (for each width the names of its convolutions), ``problem`` (why the
    widths are not known, or ""), ``norms`` (pairs of a convolution and the batch norm that reads
    it) and ``prune(model, cfg)``, which gives a smaller copy. See kesi.own.graphs.Graph. ``code``
    tells what such a network computes, besides its weights, from what others do.
    """

    build: Callable[[int, list], nn.Module]
    cfg: tuple
    rates: tuple[float, ...] = ()
    sparsities: tuple[float, ...] = ()
    baseline: str = "cifar"
    in_paper: bool = False
    image_size: int = 32
    pretrained: str = ""
    num_classes: int | None = None
    graph: Any = None
    code: str = ""


@dataclass(frozen=True)
class Prunable:
    """A convolution whose filters can go, by module names within the network.

    ``bn`` normalises its output, ``readers`` take that output as their input (a following
    convolution, or a linear layer with one input a channel), ``width`` is its place among the
    numbers of ``cfg`` (pools not counted). Two convolutions with the same ``width`` keep the same
    number of filters.
    """

    conv: str
    bn: str
    readers: tuple[str, ...]
    width: int


class Network(nn.Module):
    """A classifier that can be rebuilt from ``arch``, ``num_classes`` and ``cfg`` alone.

    Input: float (N, 3, H, W). Output: logits (N, num_classes).
    """

    arch: str
    num_classes: int
    cfg: list
    min_image_size = 8

    def prunable(self) -> list[Prunable]:
        """Every convolution whose filters may be removed, in the order of the forward pass."""
        raise TypeError(f"{type(self).__name__} does not say what can be pruned")

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        """(convolution, norm) names where the norm alone reads the convolution: they fold."""
        raise TypeError(f"{type(self).__name__} does not say which norms follow a convolution")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def initialise(network: nn.Module, bn_weight: float = 1.0, linear_std: float | None = None,
               linear_bias: bool = False) -> None:
    """Draw the weights as the paper does (section 2 of its supplement lists them for each network).

    Convolutions: normal, std sqrt(2 / (kh * kw * out_channels)) (He et al. 2015, fan out). Batch
    norms: weight ``bn_weight`` after a convolution and 1 after a linear layer, bias 0. Linear
    layers: torch's own draw, or normal with ``linear_std``; their bias is set to 0 where
    ``linear_std`` is given or ``linear_bias`` asks for it.
    """
    if all(weight.is_meta for weight in network.parameters()):
        return  # shapes alone, nothing to draw
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            flat = isinstance(module, nn.BatchNorm1d)
            nn.init.constant_(module.weight, 1.0 if flat else bn_weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if linear_std is not None:
                nn.init.normal_(module.weight, 0.0, linear_std)
            if linear_std is not None or linear_bias:
                nn.init.zeros_(module.bias)


def relu_(x: torch.Tensor) -> torch.Tensor:
    """ReLU in place, right after a norm, a convolution or a sum: none needs its output later."""
    return torch.relu_(x)


def global_pool(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C): the mean over all positions."""
    return x.mean((2, 3))


def stage_rates(cfg: Sequence[int], whole: Sequence[tuple[int, int]] = ()) -> tuple[float, ...]:
    """One rate a block by its stage, for cfg of three equally long stages.

    ``whole``: the (stage, block) pairs, both from 0, that keep all filters.
    """
    blocks = len(cfg) // len(STAGE_RATES)
    return tuple(0.0 if (stage, block) in whole else rate
                 for stage, rate in enumerate(STAGE_RATES) for block in range(blocks))


def blocks_of(cfg: Sequence[int], stages: int) -> list[list[int]]:
    """Split a flat ``cfg`` into equally long stages."""
    each = len(cfg) // stages
    return [list(cfg[stage * each:(stage + 1) * each]) for stage in range(stages)]
