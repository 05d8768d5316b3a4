"""VGG with batch norm for small images (Simonyan and Zisserman 2015): 11, 13, 16 and 19 layers."""

import torch
import torch.nn.functional as F
from torch import nn

from .base import Architecture, Network, Prunable, conv, global_pool, initialise

CONFIGS = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M",
         512, 512, 512, 512, "M", 512, 512, 512, 512),
}


class VGG(Network):
    """``cfg``: the filters of every convolution in order, ``"M"`` for each 2x2 max-pool."""

    min_image_size = 16  # four max-pools halve the image four times

    def __init__(self, num_classes: int, cfg: list):
        super().__init__()
        layers: list[nn.Module] = []
        self._convs = []  # indices within `feature`
        channels = 3
        for width in cfg:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            self._convs.append(len(layers))
            layers += [conv(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels, 512), nn.BatchNorm1d(512),
                                        nn.ReLU(inplace=True), nn.Linear(512, num_classes))
        initialise(self, bn_weight=0.5, linear_std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feature(x)
        if x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0:  # else the border would fall out
            x = F.avg_pool2d(x, 2)  # the paper's last pool, 2x2 to 1x1 at 32 px
        return self.classifier(global_pool(x))

    def prunable(self) -> list[Prunable]:
        following = [f"feature.{index}" for index in self._convs[1:]] + ["classifier.0"]
        readers = zip(self._convs, following, strict=True)
        return [Prunable(f"feature.{index}", f"feature.{index + 1}", (reader,), width)
                for width, (index, reader) in enumerate(readers)]

    def conv_bn_pairs(self) -> list[tuple[str, str]]:
        return [(f"feature.{index}", f"feature.{index + 1}") for index in self._convs]


def _rates(cfg: tuple) -> tuple[float, ...]:
    """A quarter of the first convolution and of those with 512 filters; the others stay whole."""
    widths = [width for width in cfg if width != "M"]
    return tuple(0.25 if place == 0 or width == 512 else 0.0 for place, width in enumerate(widths))


ARCHITECTURES = {
    f"vgg{depth}": Architecture(VGG, cfg, _rates(cfg), (0.20, 0.40, 0.60, 0.80, 0.95),
                                in_paper=depth == 16)
    for depth, cfg in CONFIGS.items()
}
