"""The masks of weight pruning: which weights of a network live."""

import torch
from torch import nn


class Masks:
    """Which weights of a network are pruned; apply() holds them at zero.

    Masks are by parameter name, boolean, True for a weight that lives. They never follow from the
    weights themselves: a live weight that passes through zero stays alive.
    """

    def __init__(self, model: nn.Module, masks: dict[str, torch.Tensor]):
        """Bind ``masks`` to the parameters of ``model``.
        Raises ValueError where name or shape do not fit."""
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
        """Set every pruned weight to zero: one fused multiplication, to be called after every step.
        """
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
