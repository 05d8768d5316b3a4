"""The size of a network: parameters, and multiply-accumulate operations (MACs) of one image."""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass
class _Counter(TorchDispatchMode):
    """Adds up the operations that pass through it; see macs() for the rule."""

    pool: int
    addition: int
    total: int = field(default=0, init=False)

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            weight = args[1]
            self.total += out.numel() * weight[0].numel() + (out.numel() if args[2] is not None else 0)
        elif packet is aten.addmm:
            self.total += out.numel() * args[1].shape[-1] + out.numel()
        elif packet is aten.mm:
            self.total += out.numel() * args[0].shape[-1]
        elif packet in (aten.native_batch_norm, aten._native_batch_norm_legit_no_training,
                        aten._batch_norm_no_update, aten.cudnn_batch_norm):
            self.total += 2 * args[0].numel()
        elif packet in (aten.relu, aten.relu_):
            self.total += 2 * out.numel()
        elif packet is aten.max_pool2d_with_indices:
            self.total += 2 * args[0].numel()
        elif packet is aten.avg_pool2d:
            self.total += args[0].numel()
        elif packet is aten.mean:
            self.total += self.pool * args[0].numel()
        elif packet in (aten.add, aten.add_) and isinstance(args[1], torch.Tensor) and out.dim() == 4:
            self.total += self.addition * out.numel()
        return out


def macs(model: nn.Module, image_size: int) -> int:
    """MACs of one forward pass of one image of ``image_size`` x ``image_size`` px, in eval mode.

    A convolution counts outputs x (input channels / groups) x kernel area, a linear layer inputs x outputs,
    either one more an output for a bias. So that figures can be held against the paper's, the rest is
    counted as its authors' tool did: 2 an element for batch norm and for ReLU, 2 an input of a max-pool, 1 of
    an average pool, 2 of the global pool; additions are free. For wide ResNets that tool saw other calls:
    1 for the global pool, 1 an addition. All of this is 0.3 to 5 % of the sum.
    The weights are not touched: nothing but shapes is computed.
    """
    pool, addition = (1, 1) if getattr(model, "arch", "").startswith("wrn") else (2, 0)
    shapes = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), _Counter(pool, addition) as counter:
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.total


def parameters(model: nn.Module) -> int:
    """The number of trainable parameters (batch norm's running statistics are not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())
