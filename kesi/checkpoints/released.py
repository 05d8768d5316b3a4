"""Checkpoints of the authors' released code, which do not say what they hold:
what their weights tell."""

from pathlib import Path

import torch
from torch import nn

from kesi import models
from kesi.checkpoints.records import Info
from kesi.models import Network
from kesi.system.errors import KesiError


def skeleton(arch: str, num_classes: int = 2, cfg: list | None = None) -> Network:
    """A network without memory for its weights: names and shapes."""
    with torch.device("meta"):
        return models.create(arch, num_classes, cfg)


def recognise(path: Path, state: dict) -> str:
    """The one architecture with exactly these parameter names,
    and these shapes where pruning leaves them.

    Raises KesiError where it is none or could be several.
    """
    found = [arch for arch, network in models.ARCHITECTURES.items()
             if network.graph is None and _could_be(arch, state)]
    if len(found) != 1:
        what = ("fits none" if not found
                else f"could be any of {', '.join(found)}: say which (--arch)")
        raise KesiError(
            f"the network in {path} {what if found else what + ' of ours by its parameter names'}")
    return found[0]


def _could_be(arch: str, state: dict) -> bool:
    whole = skeleton(arch)
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    if shapes.keys() != state.keys():
        return False
    pruned = {layer.conv for layer in whole.prunable()}
    # the outputs of blocks keep their width, which tells networks of other width factors apart
    fixed = [name for name, module in whole.named_modules()
             if isinstance(module, nn.Conv2d) and name not in pruned]
    if any(value.dim() != len(shapes[name]) for name, value in state.items()):
        return False
    return all(len(state[f"{name}.weight"]) == shapes[f"{name}.weight"][0] for name in fixed)


def classes_of(path: Path, state: dict, said: int | None = None) -> int:
    """How many classes the last layer tells apart; where it is none of ours, what was ``said``, or
    else KesiError is raised."""
    for name in ("fc.bias", "classifier.3.bias"):
        if name in state and state[name].dim() == 1:
            return len(state[name])
    if said is None:
        raise KesiError(f"{path} has no classifier of ours (fc or classifier.3): which network is "
                        "it?")
    return said


def widths_of(arch: str, state: dict) -> list:
    """The cfg that the shapes of the weights tell, for files without one."""
    cfg = list(models.ARCHITECTURES[arch].cfg)
    places = [place for place, width in enumerate(cfg) if width != "M"]
    for layer in skeleton(arch).prunable():
        cfg[places[layer.width]] = len(state[f"{layer.conv}.weight"])
    return cfg


def published_info(content: dict) -> Info:
    """What the released code keeps besides weights:
    the epoch, and accuracies as share or as percent."""
    metrics = {}
    for name in ("best_prec1", "acc", "best_acc"):
        value = content.get(name)
        if (isinstance(value, (int, float)) or isinstance(value, torch.Tensor)
                and value.numel() == 1):
            metrics[name] = float(value) * 100 if float(value) <= 1 else float(value)
    epoch = content.get("epoch")
    return Info(source="released code", epoch=epoch if isinstance(epoch, int) else None,
                metrics=metrics)
