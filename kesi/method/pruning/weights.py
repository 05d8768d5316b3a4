"""Weight pruning (MWP, magnitude weight pruning: Han et al. 2015; the paper's section 3).

One threshold over all convolutions: the smallest share of their weights becomes zero and stays
zero.
"""

import torch
from torch import nn

from kesi.method.pruning.criteria import Criterion, Evidence, magnitude, scores_of
from kesi.method.pruning.masks import Masks


def conv_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that magnitude pruning ranks: those of all convolutions, by parameter name.

    Of a network of one's own that works by linear layers (``prune_linear``) also those of all
    linear layers but the last.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][:-1]
    linear = set(linear if getattr(model, "prune_linear", False) else ())
    return {f"{name}.weight": module.weight for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) or name in linear}


def pruned_count(total: int, sparsity: float) -> int:
    """How many of ``total`` weights a cumulative share ``sparsity`` prunes.
    Raises ValueError outside [0, 1)."""
    if not (isinstance(sparsity, (int, float)) and 0 <= sparsity < 1):
        raise ValueError(f"a sparsity is at least 0 and below 1, not {sparsity!r}")
    return round(sparsity * total)


@torch.no_grad()
def prune_weights(model: nn.Module, sparsity: float, masks: Masks | None = None,
                  criterion: Criterion = magnitude, evidence: Evidence = Evidence()) -> Masks:
    """Zero the share ``sparsity`` of all convolution weights that scores lowest, in place;
    returns the masks.

    ``sparsity`` is cumulative: it counts what ``masks`` (of the round before) already hold, and
    those weights stay pruned. Raises ValueError for a share outside [0, 1) or below what is already
    pruned.
    """
    weights = conv_weights(model)
    if not weights:
        raise ValueError("the network has no convolution to prune")
    count = pruned_count(sum(weight.numel() for weight in weights.values()), sparsity)
    if masks is not None and count < masks.pruned():
        raise ValueError(f"a sparsity of {sparsity} is lower than what is already pruned "
                         f"({masks.sparsity():.4f}); shares are cumulative over the rounds")
    layers = [name.removesuffix(".weight") for name in weights]
    scores = scores_of(criterion, model, layers, evidence, single=True)
    every = torch.cat([scores[layer].flatten() for layer in layers])  # (weights of all layers,)
    if masks is not None:
        held = masks.state_dict()
        alive = torch.cat([held[name].flatten() for name in weights]).to(every.device)
        every[~alive] = -torch.inf  # pruned weights come first, also before a live one that is zero
    keep = torch.ones_like(every, dtype=torch.bool)
    keep[torch.topk(every, count, largest=False, sorted=False).indices] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    result = Masks(model, {name: part.view_as(weight)
                           for (name, weight), part in zip(weights.items(), parts, strict=True)})
    result.apply()
    return result


def masks_from_zeros(model: nn.Module) -> Masks | None:
    """Masks of a network that has zeros but no masks, as the released code saves it;
    None without zeros."""
    weights = conv_weights(model)
    if not any(bool((weight == 0).any()) for weight in weights.values()):
        return None
    return Masks(model, {name: weight.detach() != 0 for name, weight in weights.items()})
