"""Networks as safetensors files, dense or with the zeros left out.

A file holds the tensors of the state_dict, and in its metadata what the network is: arch, num_classes, cfg,
classes, mean, std, image_size. In a sparse file a pruned convolution ``x.weight`` is ``x.weight.values``, the
float32 non-zero weights in order, and where they belong, in the smaller of two forms:

- ``x.weight.bits``: one bit a weight, set for a non-zero one (eight weights a byte, the first one highest);
- ``x.weight.gaps``: one byte a non-zero weight, the number of zeros before it; 255 stands for 255 zeros that
  no weight follows yet. The smaller one where fewer than about one weight in eight is left.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from kesi import registry
from kesi.errors import KesiError, UsageError, first_line
from kesi.pruning.weights import conv_weights
from models import Network

FORMAT, VERSION = "kesi-safetensors", "1"
LONG = 255  # in gaps: so many zeros, and no weight after them


def save_bytes(model: Network, about: dict[str, Any], sparse: bool = False) -> bytes:
    """A network as the content of a safetensors file; ``about`` goes to its metadata beside the architecture.

    Raises UsageError where safetensors is not installed.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    packed = []
    for name in conv_weights(model) if sparse else ():
        if bool((tensors[name] == 0).any()):
            weight = tensors.pop(name)
            packed.append(name)
            tensors |= {f"{name}.{part}": value for part, value in pack(weight).items()}
    metadata = {"format": FORMAT, "version": VERSION, "arch": model.arch, "num_classes": model.num_classes,
                "cfg": model.cfg, "sparse": packed, **about}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return _safetensors().torch.save(tensors, text)


def load_safetensors(path: str | Path) -> Network:
    """The network in a file of save_bytes(), dense or sparse, in eval mode on the CPU.

    Raises UsageError for a missing file, a missing safetensors or a network of one's own that is not registered,
    KesiError for a file that is damaged or not of this kind.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """load_safetensors() and what the file says: classes, mean, std, image_size and the like."""
    safetensors = _safetensors()
    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            text = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise KesiError(f"{path} is damaged or not a safetensors file: {error}") from error
    if text.get("format") != FORMAT or text.get("version") != VERSION:
        raise KesiError(f"{path} was not written by kesi.export (version {VERSION} of its format)")
    try:
        about = {key: value if key in ("format", "version", "arch") else json.loads(value)
                 for key, value in text.items()}
        registry.require(about["arch"], path)
        model = models.create(about["arch"], about["num_classes"], about["cfg"])
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        for name in about["sparse"]:
            parts = {part: tensors.pop(f"{name}.{part}") for part in ("values", "bits", "gaps")
                     if f"{name}.{part}" in tensors}
            tensors[name] = unpack(parts, shapes[name])
        model.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise KesiError(f"{path} is damaged: {first_line(error)}") from error
    return model.eval(), about


def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The non-zero weights of a tensor of any shape and where they are: "values", and "bits" or "gaps"."""
    flat = weight.flatten().numpy()
    places = np.flatnonzero(flat)
    bits = np.packbits(flat != 0)
    zeros = np.diff(places, prepend=-1) - 1
    # every gap g as g // 255 times 255, then the rest: at most 254, so that no weight is mistaken
    longs = zeros // LONG
    gaps = np.full(len(places) + int(longs.sum()), LONG, dtype=np.uint8)
    gaps[np.cumsum(longs + 1) - 1] = zeros % LONG
    where = {"gaps": gaps} if len(gaps) < len(bits) else {"bits": bits}
    return {name: torch.from_numpy(value) for name, value in ({"values": flat[places]} | where).items()}


def unpack(parts: dict[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The tensor that pack() took apart. Raises ValueError where the parts do not fit each other."""
    values, size = parts["values"].numpy(), int(np.prod(shape))
    if "bits" in parts:
        packed = parts["bits"].numpy()
        if len(packed) != -(-size // 8):
            raise ValueError(f"{len(packed)} bytes of places for {size} weights")
        places = np.flatnonzero(np.unpackbits(packed, count=size))
    else:
        gaps = parts["gaps"].numpy().astype(np.int64)
        weights = gaps < LONG
        places = (np.cumsum(gaps + weights) - 1)[weights]
    if len(places) != len(values) or (len(places) and places[-1] >= size):
        raise ValueError(f"{len(values)} values for {len(places)} places among {size} weights")
    flat = np.zeros(size, dtype=np.float32)
    flat[places] = values
    return torch.from_numpy(flat).view(*shape)


def _safetensors():
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed: pip install -e ".[export]"') from error
    return safetensors
