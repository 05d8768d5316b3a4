"""The networks, by name: ``create("resnet56", num_classes=10)``.

A network is described by ``arch``, ``num_classes`` and ``cfg``, the widths that pruning may shorten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from models import imagenet_resnet, preresnet, resnet, vgg, wideresnet
from models.base import Network, Prunable

__all__ = ["ARCHITECTURES", "Architecture", "Network", "Prunable", "create"]


@dataclass(frozen=True)
class Architecture:
    """How to build a network of one name, and its widths before any pruning."""

    build: Callable[[int, list], nn.Module]
    cfg: tuple


def _architectures() -> dict[str, Architecture]:
    table = {f"vgg{depth}": Architecture(vgg.VGG, cfg) for depth, cfg in vgg.CONFIGS.items()}
    for depth in (20, 32, 56, 110):
        table[f"resnet{depth}"] = Architecture(resnet.ResNet, resnet.base_cfg(depth))
    for depth in (110, 164):
        bottleneck = depth >= preresnet.BOTTLENECK_DEPTH
        table[f"preresnet{depth}"] = Architecture(
            lambda classes, cfg, bottleneck=bottleneck: preresnet.PreResNet(classes, cfg, bottleneck),
            preresnet.base_cfg(depth))
    for depth, factor, dropout in ((16, 8, 0.0), (28, 10, 0.3)):
        table[f"wrn-{depth}-{factor}"] = Architecture(
            lambda classes, cfg, factor=factor, dropout=dropout:
                wideresnet.WideResNet(classes, cfg, factor, dropout),
            wideresnet.base_cfg(depth, factor))
    for depth in imagenet_resnet.BLOCKS:
        table[f"resnet{depth}"] = Architecture(
            lambda classes, cfg, depth=depth: imagenet_resnet.ImageNetResNet(classes, cfg, depth),
            imagenet_resnet.base_cfg(depth))
    return table


ARCHITECTURES: dict[str, Architecture] = _architectures()


def create(arch: str, num_classes: int, cfg: Sequence | None = None) -> Network:
    """Build a network with freshly drawn weights.

    ``cfg`` gives the widths (default: unpruned): for VGG the filters of every convolution with ``"M"`` for
    each pool, for the others one number a block. The result carries ``arch``, ``num_classes`` and ``cfg``.
    Raises ValueError for an unknown name, fewer than two classes, or a cfg that is not a shortening of the
    unpruned one.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; choose one of: {', '.join(ARCHITECTURES)}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 2 <= num_classes <= 1_000_000:
        raise ValueError(f"a classifier needs at least 2 classes (and at most a million), not {num_classes!r}")
    architecture = ARCHITECTURES[arch]
    cfg = list(architecture.cfg if cfg is None else cfg)
    _check_cfg(arch, cfg, architecture.cfg)
    network = architecture.build(num_classes, cfg)
    network.arch, network.num_classes, network.cfg = arch, num_classes, cfg
    return network


def _check_cfg(arch: str, cfg: list, unpruned: tuple) -> None:
    """Widths may only shrink; anything else would not be this network (and could ask for any memory)."""
    if len(cfg) != len(unpruned):
        raise ValueError(f"cfg of {arch} has {len(unpruned)} entries, not {len(cfg)}")
    for place, (width, most) in enumerate(zip(cfg, unpruned, strict=True)):
        if most == "M" or width == "M":
            if width != most:
                raise ValueError(f"cfg of {arch}: entry {place} should be {most!r}, not {width!r}")
        elif isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= most:
            raise ValueError(f"cfg of {arch}: entry {place} should be a whole number from 1 to {most}, "
                             f"not {width!r}")
