"""The size of a network: parameters, and multiply-accumulate operations (MACs) of one image."""

import copy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kesi import models
from kesi.data.split import Size, height_width, spoken_size
from kesi.method.pruning import Masks
from kesi.method.pruning.weights import conv_weights
from kesi.models import Network
from kesi.system.errors import UsageError

aten = torch.ops.aten

BATCH_NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training,
               aten._batch_norm_no_update, aten.cudnn_batch_norm)


def macs(model: nn.Module, image_size: Size) -> int:
    """Multiply-accumulate operations of one image: those of convolutions and linear layers.

    Half of what torch's flop counter finds: outputs x (input channels / groups) x kernel area of
    a convolution, inputs x outputs of a linear layer; products of matrices as in attention count,
    too; biases, norms, activations and pools do not. In eval mode; the weights are not touched,
    for nothing but shapes is computed.
    """
    with FlopCounterMode(display=False) as counter, _Norms():
        _pass(model, image_size)
    return counter.get_total_flops() // 2


def paper_macs(model: nn.Module, image_size: Size) -> int:
    """The MACs of one image as the paper's tables count them, to be held against those only.

    Its authors used ptflops 0.6.1, which adds to macs(): one for each output with a bias, two an
    element of a batch norm, one an element of a ReLU, and one an input of a max-pool or the
    global pool; additions and the pool in a shortcut are free. For the networks in models/, from
    the baseline to the last round, this is 0.1 to 10 % of the sum.
    """
    with _Extras() as extras:
        _pass(model, image_size)
    return macs(model, image_size) + extras.total


def check_image_size(model: nn.Module, image_size: Size, whose: str) -> None:
    """Raises UsageError where images are too small for a network; ``whose`` they are."""
    if min(height_width(image_size)) < model.min_image_size:
        raise UsageError(f"{model.arch} needs images of {model.min_image_size} px or more, but "
                         f"{whose} has {spoken_size(image_size)} px: choose another --arch or a "
                         "larger --image-size")


def channels_of(model: nn.Module) -> int:
    """The channels of the images that a network takes: 3, unless it was registered with others."""
    return getattr(model, "image_channels", 3)


def _pass(model: nn.Module, image_size: Size) -> None:
    """One forward pass of one image, of shapes alone."""
    shapes = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad():
        shapes(torch.empty(1, channels_of(model), *height_width(image_size), device="meta"))


class _Norms(TorchDispatchMode):
    """Takes the shape of a batch norm's output from its input.

    torch finds the same, by way of all its arithmetic: that was half of the time of a pass.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is aten.native_batch_norm:
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        return func(*args, **(kwargs or {}))


class _Extras(TorchDispatchMode):
    """Adds up what paper_macs() counts beside convolutions and linear layers."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self.total += out.numel() if args[2] is not None else 0
        elif packet in (aten.addmm, aten.relu, aten.relu_):
            self.total += out.numel()
        elif packet in BATCH_NORMS:
            self.total += 2 * args[0].numel()
        elif packet in (aten.max_pool2d_with_indices, aten.mean):
            self.total += args[0].numel()
        return out


def parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included; batch norm's running statistics are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def layers_of(model: Network, masks: Masks | None, method: str | None) -> list[list] | None:
    """[name, before, after] of every layer in the order of the forward pass;
    None where none is pruned.

    Filter pruning: one for each width, by a convolution that has it, in filters. Weight pruning:
    one for each layer that is pruned, in weights.
    """
    if method == "filter":
        before, after = ([width for width in cfg if width != "M"]
                         for cfg in (models.ARCHITECTURES[model.arch].cfg, model.cfg))
        names = _names(model.arch, model.num_classes)
        return [[names.get(place, str(place)), *widths]
                for place, widths in enumerate(zip(before, after, strict=True))]
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
        return {layer.width: layer.conv
                for layer in reversed(models.create(arch, num_classes).prunable())}


def empty_layers(masks: Masks | None) -> list[str]:
    """The layers in which every weight is pruned, by name;
    what they compute is zero for every image."""
    if masks is None:
        return []
    return [name.removesuffix(".weight") for name, mask in masks.state_dict().items()
            if not bool(mask.any())]


def deaf(model: Network) -> bool:
    """Whether a network answers every image alike, whatever its live weights are:
    nothing can be learned then.

    An empty layer beside a shortcut leaves the network deaf to nothing; in a chain such as VGG's
    it cuts it. Batch norm works on the batch here, which makes the least difference between images
    large; rounding alone stays below 0.001.
    """
    copied = copy.deepcopy(model).cpu().float().eval()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    known = models.ARCHITECTURES[model.arch]  # somebody's own may take images of one size only
    size = max(32, model.min_image_size) if known.graph is None else known.image_size
    with torch.no_grad():
        logits = copied(torch.randn(8, channels_of(model), *height_width(size),
                                    generator=torch.Generator().manual_seed(0)))
    return bool((logits - logits[:1]).abs().max() < 1e-3)


def chance(labels: torch.Tensor) -> float:
    """The accuracy in percent of one answer for all images: the share of the most frequent class.
    """
    return 100 * int(torch.bincount(labels).max()) / len(labels)
