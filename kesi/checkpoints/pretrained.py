"""Weights to start step 1 from: torchvision's ImageNet networks,
their last layer refitted to other classes."""

from pathlib import Path

import torch
import torchvision

from kesi import models
from kesi.models import Network
from kesi.system.errors import KesiError, UsageError

DOWNLOAD = "torchvision"  # instead of a path: torchvision's own download


def load_pretrained(model: Network, source: str) -> Network:
    """Fill ``model`` in place from torchvision's ImageNet weights and return it.

    ``source``: the path of the weights file, or "torchvision" to have torchvision download it (to
    its own cache, checked against the hash in its name). A last layer for another number of classes
    is left as drawn. Raises UsageError for a network that torchvision has no weights for or a
    missing file, KesiError for a file that is not such weights and for a failed download.
    """
    check_source(model.arch, source)
    state = _download(model.arch) if source == DOWNLOAD else _read(Path(source))
    own = model.state_dict()
    missing = own.keys() - state.keys()
    if missing or state.keys() - own.keys():
        raise KesiError(f"--pretrained {source}: not the weights of torchvision's {model.arch} "
                        f"({'without ' + min(missing) if missing else 'it has more layers'})")
    for name in ("fc.weight", "fc.bias"):
        if state[name].shape != own[name].shape:
            state[name] = own[name]
    wrong = next((name for name in own if state[name].shape != own[name].shape), None)
    if wrong is not None:
        raise KesiError(f"--pretrained {source}: {wrong} has shape {tuple(state[wrong].shape)}, "
                        f"but in {model.arch} it is {tuple(own[wrong].shape)}")
    model.load_state_dict(state)
    return model


def check_source(arch: str, source: str) -> None:
    """Raises UsageError for a network that torchvision has no weights for or a missing file,
    without opening anything."""
    if not models.ARCHITECTURES[arch].pretrained:
        offered = [name for name, network in models.ARCHITECTURES.items() if network.pretrained]
        raise UsageError(f"--pretrained: torchvision has no ImageNet weights for {arch}; "
                         f"choose one of: {', '.join(offered)}")
    if source != DOWNLOAD and not Path(source).is_file():
        raise UsageError(f"--pretrained: no such file: {source}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise KesiError(f"--pretrained {path}: damaged or not a weights file") from error
    if (not isinstance(state, dict)
            or not all(isinstance(value, torch.Tensor) for value in state.values())):
        raise KesiError(
            f"--pretrained {path}: not a weights file of torchvision (a dictionary of tensors)")
    return dict(state)


def _download(arch: str) -> dict[str, torch.Tensor]:
    weights = getattr(torchvision.models, models.ARCHITECTURES[arch].pretrained).IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise KesiError(f"--pretrained: the download of {weights.url} failed ({error}): fetch it "
                        "elsewhere and give its path") from error
