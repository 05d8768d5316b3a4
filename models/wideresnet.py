"""Wide ResNet for 32-px images (Zagoruyko and Komodakis 2016): WRN-16-8 and WRN-28-10."""

import torch
import torch.nn.functional as F
from torch import nn

from .base import (
    Architecture,
    Network,
    Prunable,
    blocks_of,
    conv,
    global_pool,
    initialise,
    relu_,
    stage_rates,
)

STEM = 16
WIDTHS = (16, 32, 64)


def base_cfg(depth: int, factor: int) -> tuple[int, ...]:
    """One number a block, the filters of its first convolution; n = (depth - 4) / 6 blocks a group.
    """
    return tuple(width * factor for width in WIDTHS for _ in range((depth - 4) // 6))


class WideBlock(nn.Module):
    """A pre-activation basic block.

    Where the shape changes, both paths start after the first norm and ReLU.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, inner, stride=stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, outputs)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = relu_(self.bn1(x))
        out = relu_(self.bn2(self.conv1(activated)))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        out = self.conv2(out)
        return out.add_(x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    """The blocks of one width."""

    def __init__(self, blocks: list[WideBlock]):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(Network):
    """``cfg``: one number a block, the filters of its first convolution;
    block outputs keep their width."""

    def __init__(self, num_classes: int, cfg: list, factor: int, dropout: float = 0.0):
        super().__init__()
        self.conv1 = conv(3, STEM)
        channels = STEM
        for number, (width, inners) in enumerate(zip(WIDTHS, blocks_of(cfg, 3), strict=True),
                                                 start=1):
            blocks = []
            for block, inner in enumerate(inners):
                stride = 2 if number > 1 and block == 0 else 1
                blocks.append(WideBlock(channels, inner, width * factor, stride, dropout))
                channels = width * factor
            setattr(self, f"block{number}", Group(blocks))
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, linear_bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(global_pool(relu_(self.bn1(x))))

    def prunable(self) -> list[Prunable]:
        names = [name for name, module in self.named_modules() if isinstance(module, WideBlock)]
        return [Prunable(f"{name}.conv1", f"{name}.bn2", (f"{name}.conv2",), width)
                for width, name in enumerate(names)]

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        return [(layer.conv, layer.bn) for layer in self.prunable()]


def _architecture(depth: int, factor: int, dropout: float) -> Architecture:
    cfg = base_cfg(depth, factor)
    return Architecture(lambda classes, cfg: WideResNet(classes, cfg, factor, dropout), cfg,
                        stage_rates(cfg), (0.27, 0.46, 0.60, 0.70, 0.77), baseline="wrn",
                        in_paper=depth == 16)


ARCHITECTURES = {f"wrn-{depth}-{factor}": _architecture(depth, factor, dropout)
                 for depth, factor, dropout in ((16, 8, 0.0), (28, 10, 0.3))}
