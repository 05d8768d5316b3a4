"""What pruning left of every layer, by name: what a result says of its network, so that a page needs no checkpoint."""

import torch

import models
from kesi.pruning import Masks
from kesi.pruning.graphs import GRAPHS
from kesi.pruning.weights import conv_weights
from models import Network


def layers_of(model: Network, masks: Masks | None, method: str | None) -> list[list] | None:
    """[name, before, after] of every layer, in the order of the forward pass; None of a network that was not pruned.

    Filter pruning: one for each width, by a convolution that has it, in filters. Weight pruning: one for each
    convolution, in weights.
    """
    if method == "filter":
        before, after = ([width for width in cfg if width != "M"]
                         for cfg in (models.ARCHITECTURES[model.arch].cfg, model.cfg))
        names = _names(model.arch, model.num_classes)
        return [[names.get(place, str(place)), *widths] for place, widths in enumerate(zip(before, after, strict=True))]
    if masks is None:
        return None
    live = {name: int(mask.sum()) for name, mask in masks.state_dict().items()}
    return [[name.removesuffix(".weight"), weight.numel(), live.get(name, weight.numel())]
            for name, weight in conv_weights(model).items()]


def _names(arch: str, num_classes: int) -> dict[int, str]:
    """A convolution of each width, by its place among them."""
    if arch in GRAPHS:
        return {place: convs[0] for place, convs in enumerate(GRAPHS[arch].convs)}
    with torch.device("meta"):
        return {layer.width: layer.conv for layer in reversed(models.create(arch, num_classes).prunable())}
