"""ResNet for 32-px images (He et al. 2016, section 4.2): 20, 32, 56 and 110 layers."""

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

WIDTHS = (16, 32, 64)


def base_cfg(depth: int) -> tuple[int, ...]:
    """One number a block, the filters of its first convolution; n = (depth - 2) / 6 blocks a stage.
    """
    return tuple(width for width in WIDTHS for _ in range((depth - 2) // 6))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with ``inner`` channels between them, and a shortcut without parameters.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, inner, stride=stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        """Option A of He et al.: average-pool to the new size, then append channels of zeros."""
        if self.stride > 1:
            # ceil_mode: odd sizes shrink as the strided convolution beside it shrinks them
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu_(out.add_(self.shortcut(x)))


class ResNet(Network):
    """``cfg``: one number a block, the filters of its first convolution;
    block outputs keep their width."""

    def __init__(self, num_classes: int, cfg: list):
        super().__init__()
        self.conv1 = conv(3, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        channels = WIDTHS[0]
        for stage, (width, inners) in enumerate(zip(WIDTHS, blocks_of(cfg, 3), strict=True),
                                                start=1):
            blocks = []
            for block, inner in enumerate(inners):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(BasicBlock(channels, inner, width, stride))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu_(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(global_pool(x))

    def _block_names(self) -> list[str]:
        return [name for name, module in self.named_modules() if isinstance(module, BasicBlock)]

    def prunable(self) -> list[Prunable]:
        return [Prunable(f"{name}.conv1", f"{name}.bn1", (f"{name}.conv2",), width)
                for width, name in enumerate(self._block_names())]

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        inner = [(f"{name}.conv{i}", f"{name}.bn{i}") for name in self._block_names()
                 for i in (1, 2)]
        return [("conv1", "bn1"), *inner]


# The (stage, block) pairs that keep all filters: most where the shape changes. Those of 20 and 32
# layers are not in the paper.
WHOLE = {20: ((1, 0), (2, 0)), 32: ((1, 0), (2, 0)), 56: ((0, 7), (1, 0), (2, 0), (2, 8)),
         110: ((0, 17), (1, 0), (2, 0))}

SPARSITIES = {**dict.fromkeys((20, 32, 56), (0.22, 0.39, 0.51, 0.59, 0.66)),
              110: (0.27, 0.46, 0.60, 0.70, 0.80)}

ARCHITECTURES = {
    f"resnet{depth}": Architecture(ResNet, base_cfg(depth), stage_rates(base_cfg(depth), whole),
                                   SPARSITIES[depth], in_paper=depth in (56, 110))
    for depth, whole in WHOLE.items()
}
