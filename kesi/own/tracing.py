"""Finding the widths of any network, as torch-pruning's dependency graph tells.

The library is trusted as far as it can be tried: a network of random weights has to compute,
pruned, what it computes with those channels at zero. Widths with which it does not (channels that
are split, shuffled or normalised together) are left alone.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from kesi.data.split import Size, height_width
from kesi.method.sizes import channels_of
from kesi.own.graphs import Axis, Graph
from kesi.system.errors import first_line

TOLERANCE = 1e-4  # of the largest output, in the trial of a width

IMAGES = 4  # of the trial


def analyse(network: nn.Module, image_size: Size) -> Graph:
    """Find the widths of a network for images (N, C, H, W); ``network`` stays as it is.

    Without torch-pruning, or where it cannot trace the network, there are none, and ``problem``
    says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning's, about its imports
            import torch_pruning
    except ModuleNotFoundError:
        return Graph(problem='torch-pruning, which finds the filters to remove in a network of '
                             'your own, is not installed: pip install -e ".[own]"')
    network = copy.deepcopy(network).cpu().eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            dependencies = torch_pruning.DependencyGraph().build_dependency(
                network, torch.zeros(1, channels_of(network), *height_width(image_size)),
                verbose=False)
            found = _tried(_widths(dependencies, network, nn.Conv2d), network, image_size)
            if not found.cfg:
                found = _tried(_widths(dependencies, network, nn.Linear), network, image_size)
            return replace(found, norms=_norms(dependencies, network))
    except Exception as error:  # of any type: whatever its assumptions run into
        return Graph(problem=f"torch-pruning cannot trace this network ({first_line(error)}); "
                             "prune its weights instead")


def _tried(widths: Sequence["_Width"], network: nn.Module, image_size: Size) -> Graph:
    """The graph of those widths that pass the trial."""
    graph = _graph(widths, dict(network.named_modules()))
    kept = _sound(graph, network, image_size, [],
                  [place for place, width in enumerate(widths) if width.simple])
    left = [conv for place, width in enumerate(widths) if place not in kept for conv in width.convs]
    return replace(graph.only(sorted(kept)), left_alone=tuple(dict.fromkeys(left)))


def _norms(dependencies, network: nn.Module) -> tuple[tuple[str, str], ...]:
    """The convolutions and linear layers whose output a batch norm reads, and that norm."""
    names = {module: name for name, module in network.named_modules()}
    found = []
    for module, node in dependencies.module2node.items():
        readers = [reader.module for reader in node.outputs]
        if isinstance(module, nn.Conv2d | nn.Linear) and len(readers) == 1 and isinstance(
                readers[0], nn.modules.batchnorm._BatchNorm):
            found.append((names[module], names[readers[0]]))
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Width:
    """One of torch-pruning's groups: its convolutions, and by layer its function, positions,
    and their channels."""

    convs: tuple[str, ...]
    size: int
    parts: tuple[tuple[str, Callable, list[int], list[int]], ...]
    simple: bool  # nothing in it that cannot lose single channels


def _widths(dependencies, network: nn.Module, kind: type[nn.Module]) -> list[_Width]:
    """The widths by their first convolutions, in the order of the modules, without the classifier.

    ``kind``: nn.Conv2d, or nn.Linear for those that linear layers make, as in a transformer's MLP.
    A convolution that is read beside another one (a concatenation) and then meets it again, in a
    depthwise convolution or an addition with their joint output, is a width of its own: the joint
    output is not.
    """
    names = {module: name for name, module in network.named_modules()}
    filters = {name: module for module, name in names.items() if isinstance(module, kind)
               and not _depthwise(module) and module in dependencies.module2node}
    found, joint, seen = [], [], set()
    for name, conv in filters.items():
        if name in seen:
            continue
        cut = dependencies.get_pruner_of_module(conv).prune_out_channels
        group = dependencies.get_pruning_group(conv, cut, list(range(_length(cut, conv))))
        width = _members(group, names, kind)
        producers = [len(set(channels)) for part, cut, _, channels in width.parts if part in filters
                     and _output(cut)]
        if min(producers) < _length(cut, conv):
            joint.append(width)
            continue
        seen.update(width.convs)
        # the classifier's outputs are read by nothing
        if any(not _output(cut) for _, cut, _, _ in width.parts):
            found.append(width)
    found += [replace(width, simple=False) for width in joint if not seen.issuperset(width.convs)]
    return found


def _members(group, names: dict[nn.Module, str], kind: type[nn.Module]) -> _Width:
    """A group of torch-pruning's by the names of its layers."""
    parts, simple = [], True
    for item in group.items:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            # a parameter beside the layers: only its owner knows which axis is which
            simple = False
        elif module in names:  # and no stand-in of torch-pruning's for an operation
            if isinstance(module, nn.Conv2d):
                simple &= module.groups == 1 or _depthwise(module)
            # beside what it knows, it guesses
            simple &= max(item.idxs) < _length(item.dep.handler, module)
            parts.append((names[module], item.dep.handler, list(item.idxs), list(item.root_idxs)))
    makers = {name for name, cut, _, _ in parts if _output(cut)}
    convs = [name for module, name in names.items() if name in makers and isinstance(module, kind)]
    return _Width(tuple(convs), len(group[0].idxs), tuple(parts), simple)


def _output(cut: Callable) -> bool:
    """Whether a function of torch-pruning's takes output channels away;
    those of norms take both at once."""
    return cut.__func__.__name__ == "prune_out_channels"


def _length(cut: Callable, module: nn.Module) -> int:
    """How many channels a layer has on the axis that a function of torch-pruning's cuts."""
    return (cut.__self__.get_out_channels if _output(cut) else cut.__self__.get_in_channels)(module)


def _depthwise(layer: nn.Module) -> bool:
    return (isinstance(layer, nn.Conv2d)
            and 1 < layer.groups == layer.in_channels == layer.out_channels)


def by_linear_layers(network: nn.Module) -> bool:
    """Whether linear layers do the work of a network, as in a ViT or ConvNeXt.

    Then each convolution, if there is any, is depthwise or cuts the image into patches.
    """
    return all(_depthwise(conv) or conv.kernel_size == conv.stride != (1, 1)
               for conv in network.modules() if isinstance(conv, nn.Conv2d))


def _graph(widths: Sequence[_Width], modules: dict[str, nn.Module]) -> Graph:
    """All widths together, by layer and axis; of those that cannot be pruned only the names."""
    axes: dict[tuple[str, bool], Axis] = {}
    for place, width in enumerate(widths):
        for name, cut, positions, channels in width.parts if width.simple else ():
            output, length = _output(cut), _length(cut, modules[name])
            if (name, output) not in axes:
                axes[name, output] = Axis(name, output, cut, torch.full((length,), -1),
                                          torch.full((length,), -1))
            axes[name, output].width[positions] = place
            axes[name, output].channel[positions] = torch.tensor(channels)
    return Graph(tuple(width.size for width in widths), tuple(width.convs for width in widths),
                 tuple(axes.values()))


def _sound(graph: Graph, network: nn.Module, image_size: Size, known: list[int],
           more: list[int]) -> list[int]:
    """Of ``more`` widths those that can be pruned together with the ``known`` ones;
    halves are tried apart."""
    if not more or _holds(graph.only(known + more), network, image_size):
        return known + more
    if len(more) == 1:
        return known
    half = len(more) // 2
    known = _sound(graph, network, image_size, known, more[:half])
    return _sound(graph, network, image_size, known, more[half:])


@torch.no_grad()
def _holds(graph: Graph, network: nn.Module, image_size: Size) -> bool:
    """Whether random weights, pruned twice at random,
    give what they give with those channels at zero, and can be trained."""
    draw = torch.Generator().manual_seed(0)
    network = _randomised(network, draw)
    images = torch.randn(IMAGES, channels_of(network), *height_width(image_size), generator=draw)
    # large ones show what neighbours do to each other in a local response normalisation
    both = (images, 100 * images)
    cfg = list(graph.cfg)
    try:
        for _ in range(2):
            keep = [max(1, int(width * 0.7)) for width in cfg]
            gone = [torch.randperm(width, generator=draw)[left:].sort().values
                    for width, left in zip(cfg, keep, strict=True)]
            zeroed = copy.deepcopy(network)
            graph.zero(zeroed, cfg, gone)
            wanted = [zeroed(one) for one in both]
            graph._remove(network, cfg, gone)
            cfg = keep
            with torch.random.fork_rng(devices=[]):
                copy.deepcopy(network).train()(images)  # which may have branches of its own
            for one, expected in zip(both, wanted, strict=True):
                found = network(one)
                if found.shape != expected.shape or bool(expected.isfinite().all()) and not bool(
                        (found - expected).abs().max() <= TOLERANCE * expected.abs().max()):
                    return False
        return True
    except Exception:  # shapes that no longer fit, of any type
        return False


@torch.no_grad()
def _randomised(network: nn.Module, draw: torch.Generator) -> nn.Module:
    """A copy in which no two channels do the same, and none does nothing,
    whatever the initial weights are."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.copy_(noise * (2 / fan_in) ** 0.5 if parameter.dim() > 1 else 1 + 0.3 * noise)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
    return network
