"""The size of a network: parameters, and multiply-accumulate operations (MACs) of one image."""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from kesi.method.pruning import Masks
from kesi.method.pruning.weights import conv_weights
from models import Network

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
    graph = models.ARCHITECTURES[arch].graph
    if graph:
        return {place: convs[0] for place, convs in enumerate(graph.convs)}
    with torch.device("meta"):
        return {layer.width: layer.conv for layer in reversed(models.create(arch, num_classes).prunable())}


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
