"""Networks of one's own, by name: how they are built, and what of them can be pruned.

They join the table of models/: their checkpoints are loaded, pruned, trained and exported like any
other's. Only how they are built cannot be in a file that is safe to load, and has to be said anew
in every process.
"""

import copy
import re
from collections.abc import Callable

import torch
from torch import nn

from kesi import models
from kesi.checkpoints import fields
from kesi.data.split import Size, height_width, spoken_size
from kesi.method.sizes import macs
from kesi.method.snapshot import digest_of
from kesi.own import checks
from kesi.own.graphs import Graph
from kesi.own.tracing import analyse, by_linear_layers
from kesi.system.errors import UsageError, first_line

Factory = Callable[[], nn.Module]

# Not the paper's: what goes in a round from every width, and ResNet-56's shares of zeros.
RATE, SPARSITIES = 0.2, models.ARCHITECTURES["resnet56"].sparsities


def register(name: str, factory: Factory, num_classes: int | None = None,
             image_size: Size = 32, channels: int = 3) -> Graph:
    """Make networks that ``factory()`` builds known under ``name``, in this process;
    returns their widths.

    Their checkpoints can be loaded then, and stages, exports and comparisons work as for the
    networks in models/. The factory takes no argument and builds the unpruned network anew at each
    call: float images (N, ``channels``, H, W) to logits (N, classes). ``num_classes``: by default
    as many as it has outputs. ``image_size``: S of squares, or (H, W), which has to be right for
    networks that only take images of one size. A name may be registered again. Raises UsageError
    for a name of a network in models/, and for a factory or a network that will not do.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"a network's name consists of letters, digits, '_', '-' and '.', unlike "
                         f"{name!r:.60}")
    if not fields.size(list(image_size) if isinstance(image_size, tuple) else image_size):
        raise UsageError("image_size is the pixels of a side, or (height, width), not "
                         f"{image_size!r:.60}")
    for what, value in (("channels", channels), ("num_classes", num_classes)):
        if value is not None and not fields.whole(1)(value):
            raise UsageError(f"{what} is a number of at least 1, not {value!r:.60}")
    if reserved(name):
        raise UsageError(f"{name} is a network of KESI's: choose another name")
    with torch.random.fork_rng(devices=[]):
        network, second = _build(factory, channels), _build(factory, channels)
        # what is another in each of them, such as the time, decides nothing: see check_rebuilt()
        again = checks.computation(second).items()
        code = digest_of({name: value for name, value in checks.computation(network).items()
                          if (name, value) in again})[:12]
        if second is network:
            raise UsageError("the factory gives the same network at every call: it has to build a "
                             "new one, for example by copy.deepcopy")
        outputs = _outputs(network, image_size)
        checks.check_rebuilt(copy.deepcopy(network), second, image_size)
        if num_classes not in (None, outputs):
            raise UsageError(f"{name} has {outputs} outputs, not one for each of {num_classes} "
                             "classes (labels count from 0)")
        graph = analyse(network, image_size)

    def build(classes: int, cfg: list) -> nn.Module:
        if classes != outputs:
            raise ValueError(f"{name} has {outputs} classes, not {classes}")
        # also where the caller wants shapes only: what a factory computes may need values
        with torch.device("cpu"):
            network = _build(factory, channels)
            graph.shorten(network, cfg)
        return network

    models.ARCHITECTURES[name] = models.Architecture(
        build, graph.cfg, (RATE,) * len(graph.cfg), SPARSITIES, image_size=image_size,
        num_classes=outputs, graph=graph, code=code)
    return graph


def reserved(name: str) -> bool:
    """Whether a name is that of a network in models/."""
    return name in models.ARCHITECTURES and models.ARCHITECTURES[name].graph is None


def _build(factory: Factory, channels: int) -> nn.Module:
    network = factory()
    if not isinstance(network, nn.Module):
        raise UsageError(f"a network has to be a torch.nn.Module, not a {type(network).__name__}")
    checks.check_weights(network)
    if not hasattr(network, "min_image_size"):
        network.min_image_size = 1
    network.image_channels = channels
    network.prune_linear = by_linear_layers(network)
    return network.cpu()


def _outputs(network: nn.Module, image_size: Size) -> int:
    """How many classes a network tells apart.
    Raises UsageError where it does not go through training and back."""
    taken = [one for one in ("arch", "cfg") if hasattr(network, one)
             and getattr(network, "arch", None) not in models.ARCHITECTURES]
    if taken:
        raise UsageError(f"the network has an attribute {taken[0]!r}, a name under which KESI "
                         "keeps its own: rename it")
    trial = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    images = torch.randn(2, network.image_channels, *height_width(image_size))
    images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    try:
        logits = trial(images)
        if isinstance(logits, torch.Tensor):
            logits.float().sum().backward()
            answer = copy.deepcopy(network).eval()(before.clone())
            logits = logits if isinstance(answer, torch.Tensor) else answer
        macs(network, image_size)
    except Exception as error:  # somebody else's code: anything
        hint = ("; write x.flatten(1) instead of x.view(...): images are in channels_last layout"
                if ("view size is not compatible" in str(error)) else "")
        hint = hint or "; for images of one channel: kesi.register(..., channels=1)" * (
            "to have 1 channels, but got 3" in str(error))
        raise UsageError(f"the network does not take a batch of {spoken_size(image_size)} px "
                         f"images: {first_line(error)}{hint}") from error
    if not torch.equal(images, before):
        raise UsageError("the network changes the images that it is given: begin with x = "
                         "x.clone(), or with a layer that is not in place")
    if not isinstance(logits, torch.Tensor):
        raise UsageError("a network has to give logits (N, classes) for N images; this one gives "
                         f"a {type(logits).__name__}: let it return the logits alone (torchvision: "
                         "aux_logits=False)")
    if logits.dim() != 2 or len(logits) != 2:
        raise UsageError(f"a network has to give logits (N, classes) for N images; this one gives "
                         f"shape {tuple(logits.shape)}")
    return logits.shape[1]
