"""Whether a pruned network can still learn, and whether a trained one has."""

import copy

import torch
from torch import nn

from kesi.pruning import Masks
from models import Network


def empty_layers(masks: Masks | None) -> list[str]:
    """The layers in which every weight is pruned, by name; what they compute is zero for every image."""
    if masks is None:
        return []
    return [name.removesuffix(".weight") for name, mask in masks.state_dict().items() if not bool(mask.any())]


def deaf(model: Network) -> bool:
    """Whether a network answers every image alike, whatever its live weights are: nothing can be learned then.

    An empty layer beside a shortcut leaves the network deaf to nothing; in a chain such as VGG's it cuts it.
    Batch norm works on the batch here, which makes the least difference between images large; rounding alone
    stays below 0.001.
    """
    copied = copy.deepcopy(model).cpu().float().eval()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    size = max(32, model.min_image_size)
    with torch.no_grad():
        logits = copied(torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return bool((logits - logits[:1]).abs().max() < 1e-3)


def chance(labels: torch.Tensor) -> float:
    """The accuracy in percent of an answer that is always the same: the share of the most frequent class."""
    return 100 * int(torch.bincount(labels).max()) / len(labels)
