"""Weight pruning (MWP, magnitude weight pruning: Han et al. 2015; the paper's section 3).

One threshold over all convolutions: the smallest share of their weights becomes zero and stays zero.
"""

import torch
from torch import nn


class Masks:
    """Which weights of a network are pruned; apply() holds them at zero.

    Masks are by parameter name, boolean, True for a weight that lives. They never follow from the weights
    themselves: a live weight that passes through zero stays alive.
    """

    def __init__(self, model: nn.Module, masks: dict[str, torch.Tensor]):
        """Bind ``masks`` to the parameters of ``model``. Raises ValueError where name or shape do not fit."""
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"a mask names {name}, which the network does not have")
            if mask.shape != parameters[name].shape:
                raise ValueError(f"the mask of {name} has shape {tuple(mask.shape)}, "
                                 f"the weights {tuple(parameters[name].shape)}")
        self._names = list(masks)
        self._weights = [parameters[name] for name in masks]
        self._masks = [masks[name] for name in self._names]
        self.follow()

    def follow(self) -> None:
        """Take the type, device and layout of the weights, after these were moved.

        So that the product in apply() is one kernel without any conversion.
        """
        self._masks = [torch.empty_like(weight, requires_grad=False).copy_(mask)
                       for weight, mask in zip(self._weights, self._masks, strict=True)]

    @torch.no_grad()
    def apply(self) -> None:
        """Set every pruned weight to zero: one fused multiplication, to be called after every step."""
        torch._foreach_mul_(self._weights, self._masks)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The boolean masks by parameter name, on the CPU, as a checkpoint stores them."""
        return {name: (mask != 0).cpu().contiguous()
                for name, mask in zip(self._names, self._masks, strict=True)}

    def pruned(self) -> int:
        """How many weights are pruned."""
        return sum(int((mask == 0).sum()) for mask in self._masks)

    def sparsity(self) -> float:
        """The share of the masked layers' weights that is pruned."""
        return self.pruned() / sum(mask.numel() for mask in self._masks)


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
    """How many of ``total`` weights a cumulative share ``sparsity`` prunes. Raises ValueError outside [0, 1)."""
    if not (isinstance(sparsity, (int, float)) and 0 <= sparsity < 1):
        raise ValueError(f"a sparsity is at least 0 and below 1, not {sparsity!r}")
    return round(sparsity * total)


@torch.no_grad()
def prune_weights(model: nn.Module, sparsity: float, masks: Masks | None = None) -> Masks:
    """Zero the smallest share ``sparsity`` of all convolution weights, in place, and return the masks.

    ``sparsity`` is cumulative: it counts what ``masks`` (of the round before) already hold, and those
    weights stay pruned. Raises ValueError for a share outside [0, 1) or below what is already pruned.
    """
    weights = conv_weights(model)
    if not weights:
        raise ValueError("the network has no convolution to prune")
    count = pruned_count(sum(weight.numel() for weight in weights.values()), sparsity)
    if masks is not None and count < masks.pruned():
        raise ValueError(f"a sparsity of {sparsity} is lower than what is already pruned "
                         f"({masks.sparsity():.4f}); shares are cumulative over the rounds")
    magnitude = torch.cat([weight.abs().flatten() for weight in weights.values()])
    if masks is not None:
        held = masks.state_dict()
        alive = torch.cat([held[name].flatten() for name in weights]).to(magnitude.device)
        magnitude[~alive] = -1.0  # pruned weights come first, also before a live weight that is just zero
    keep = torch.ones_like(magnitude, dtype=torch.bool)
    keep[torch.topk(magnitude, count, largest=False, sorted=False).indices] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    result = Masks(model, {name: part.view_as(weight)
                           for (name, weight), part in zip(weights.items(), parts, strict=True)})
    result.apply()
    return result


def masks_from_zeros(model: nn.Module) -> Masks | None:
    """Masks of a network that has zeros but no masks, as the released code saves it; None without zeros."""
    weights = conv_weights(model)
    if not any(bool((weight == 0).any()) for weight in weights.values()):
        return None
    return Masks(model, {name: weight.detach() != 0 for name, weight in weights.items()})
