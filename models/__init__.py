"""The networks, by name: ``create("resnet56", num_classes=10)``.

A network is described by ``arch``, ``num_classes`` and ``cfg``, the widths that pruning may
shorten. To add a family, write a module with a table ARCHITECTURES and add its line to the one
below.
"""

from collections.abc import Sequence

from . import imagenet_resnet, preresnet, resnet, vgg, wideresnet
from .base import Architecture, Network, Prunable

__all__ = ["ARCHITECTURES", "Architecture", "Network", "Prunable", "canonical", "create"]

ARCHITECTURES: dict[str, Architecture] = {
    **vgg.ARCHITECTURES,
    **resnet.ARCHITECTURES,
    **preresnet.ARCHITECTURES,
    **wideresnet.ARCHITECTURES,
    **imagenet_resnet.ARCHITECTURES,
}

MOST_CLASSES = 1_000_000


def canonical(name: str) -> str:
    """The name of the network that ``name`` means: the authors' "wrn_16_8" is "wrn-16-8" here.

    A name that means none comes back as it is.
    """
    other = name.lower().replace("_", "-")
    return name if name in ARCHITECTURES or other not in ARCHITECTURES else other


def create(arch: str, num_classes: int, cfg: Sequence | None = None) -> Network:
    """Build a network with freshly drawn weights.

    ``cfg`` gives the widths (default: unpruned): for VGG the filters of every convolution with
    ``"M"`` for each pool, for the others one number a block. The result carries ``arch``,
    ``num_classes`` and ``cfg``. Raises ValueError for an unknown name, fewer than two classes, or a
    cfg that is not a shortening of the unpruned one.
    """
    arch = canonical(arch)
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {arch!r}; choose one of: {known}")
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or not 2 <= num_classes <= MOST_CLASSES:
        raise ValueError(f"a classifier needs at least 2 classes (and at most a million), "
                         f"not {num_classes!r}")
    architecture = ARCHITECTURES[arch]
    cfg = list(architecture.cfg if cfg is None else cfg)
    _check_cfg(arch, cfg, architecture.cfg)
    network = architecture.build(num_classes, cfg)
    network.arch, network.num_classes, network.cfg = arch, num_classes, cfg
    return network


def _check_cfg(arch: str, cfg: list, unpruned: tuple) -> None:
    """Widths may only shrink: else it is not this network, and could ask for any memory."""
    if len(cfg) != len(unpruned):
        raise ValueError(f"cfg of {arch} has {len(unpruned)} entries, not {len(cfg)}")
    for place, (width, most) in enumerate(zip(cfg, unpruned, strict=True)):
        if most == "M" or width == "M":
            if width != most:
                raise ValueError(f"cfg of {arch}: entry {place} should be {most!r}, not {width!r}")
        elif isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= most:
            raise ValueError(f"cfg of {arch}: entry {place} should be a whole number from 1 to "
                             f"{most}, not {width!r}")
