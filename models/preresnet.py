"""Pre-activation ResNet for 32-px images (He et al. 2016b).

110 layers of basic blocks, or 164 of bottlenecks.
"""

import torch
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

WIDTHS = (16, 32, 64)
BOTTLENECK_DEPTH = 164


def base_cfg(depth: int) -> tuple[int, ...]:
    """One number a block, its inner width; a bottleneck has three convolutions, a basic block two.
    """
    blocks = (depth - 2) // (9 if depth >= BOTTLENECK_DEPTH else 6)
    return tuple(width for width in WIDTHS for _ in range(blocks))


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, two or three times;
    the raw input (or a 1x1 convolution of it) is added.

    ``kernels`` are the kernel sizes: (3, 3) for a basic block, (1, 3, 1) for a bottleneck. Every
    inner convolution has ``inner`` filters; the stride sits on the (first) 3x3 one.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int,
                 kernels: tuple[int, ...]):
        super().__init__()
        self.depth = len(kernels)
        channels = inputs
        for number, kernel in enumerate(kernels, start=1):
            width = outputs if number == self.depth else inner
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels))
            setattr(self, f"conv{number}",
                    conv(channels, width, kernel, stride if number == kernels.index(3) + 1 else 1))
            channels = width
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(relu_(self.bn1(x)))
        out = self.conv2(relu_(self.bn2(out)))
        if self.depth == 3:
            out = self.conv3(relu_(self.bn3(out)))
        return out.add_(x if self.downsample is None else self.downsample(x))


class PreResNet(Network):
    """``cfg``: one number a block, the filters of its first (bottleneck:
    first and second) convolution."""

    def __init__(self, num_classes: int, cfg: list, bottleneck: bool):
        super().__init__()
        kernels, expansion = ((1, 3, 1), 4) if bottleneck else ((3, 3), 1)
        self.conv1 = conv(3, WIDTHS[0])
        channels = WIDTHS[0]
        for stage, (width, inners) in enumerate(zip(WIDTHS, blocks_of(cfg, 3), strict=True),
                                                start=1):
            blocks = []
            for block, inner in enumerate(inners):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(PreActivationBlock(channels, inner, width * expansion, stride,
                                                 kernels))
                channels = width * expansion
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(global_pool(relu_(self.bn(x))))

    def prunable(self) -> list[Prunable]:
        blocks = [(name, module) for name, module in self.named_modules()
                  if isinstance(module, PreActivationBlock)]
        # the norm after convolution i is the one before convolution i + 1
        return [Prunable(f"{name}.conv{i}", f"{name}.bn{i + 1}", (f"{name}.conv{i + 1}",), width)
                for width, (name, block) in enumerate(blocks) for i in range(1, block.depth)]

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        return [(layer.conv, layer.bn) for layer in self.prunable()]


def _architecture(depth: int) -> Architecture:
    cfg, bottleneck = base_cfg(depth), depth >= BOTTLENECK_DEPTH
    rates = stage_rates(cfg, whole=((0, 17), (1, 0), (2, 0)))
    return Architecture(lambda classes, cfg: PreResNet(classes, cfg, bottleneck), cfg, rates,
                        (0.27, 0.46, 0.60, 0.70, 0.80), in_paper=bottleneck)


ARCHITECTURES = {f"preresnet{depth}": _architecture(depth) for depth in (110, 164)}
