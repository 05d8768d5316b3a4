"""ResNet for full-size images (He et al. 2016, table 1), 18 and 34 layers.

The parameters have torchvision's names.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .base import Architecture, Network, Prunable, conv, global_pool, initialise, relu_

WIDTHS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def base_cfg(depth: int) -> tuple[int, ...]:
    """One number a block, the filters of its first convolution."""
    stages = zip(WIDTHS, BLOCKS[depth], strict=True)
    return tuple(width for width, blocks in stages for _ in range(blocks))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut is a 1x1 convolution and its norm.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, inner, stride=stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride),
                                            nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu_(out.add_(x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(Network):
    """``cfg``: one number a block, the filters of its first convolution;
    block outputs keep their width."""

    min_image_size = 32  # five halvings

    def __init__(self, num_classes: int, cfg: list, depth: int):
        super().__init__()
        self.conv1 = conv(3, WIDTHS[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        channels, inners = WIDTHS[0], iter(cfg)
        for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True), start=1):
            blocks = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(BasicBlock(channels, next(inners), width, stride))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(relu_(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(global_pool(x))

    def _blocks(self) -> list[tuple[str, BasicBlock]]:
        return [(name, module) for name, module in self.named_modules()
                if isinstance(module, BasicBlock)]

    def prunable(self) -> list[Prunable]:
        return [Prunable(f"{name}.conv1", f"{name}.bn1", (f"{name}.conv2",), width)
                for width, (name, _) in enumerate(self._blocks())]

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        pairs = [("conv1", "bn1")]
        for name, block in self._blocks():
            pairs += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in (1, 2)]
            if block.downsample is not None:
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
        return pairs


RATES = {64: 0.1, 128: 0.1, 256: 0.2, 512: 0.3}  # of a block, by the width of its stage


def _architecture(depth: int) -> Architecture:
    cfg = base_cfg(depth)
    return Architecture(lambda classes, cfg: ImageNetResNet(classes, cfg, depth), cfg,
                        tuple(RATES[width] for width in cfg), (0.27, 0.46, 0.60, 0.70, 0.80),
                        in_paper=True, image_size=224, pretrained=f"ResNet{depth}_Weights")


ARCHITECTURES = {f"resnet{depth}": _architecture(depth) for depth in BLOCKS}
