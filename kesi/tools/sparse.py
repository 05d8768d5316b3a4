"""The weights of a pruned layer as those that are not zero, and where they are."""

from collections.abc import Sequence

import numpy as np
import torch

LONG = 255  # in gaps: so many zeros, and no weight after them


def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The non-zero weights of a tensor of any shape and where they are: "values", and "bits" or
    "gaps".
    """
    flat = weight.flatten().numpy()
    places = np.flatnonzero(flat)
    bits = np.packbits(flat != 0)
    zeros = np.diff(places, prepend=-1) - 1
    # every gap g as g // 255 times 255, then the rest: at most 254, so that no weight is mistaken
    longs = zeros // LONG
    gaps = np.full(len(places) + int(longs.sum()), LONG, dtype=np.uint8)
    gaps[np.cumsum(longs + 1) - 1] = zeros % LONG
    where = {"gaps": gaps} if len(gaps) < len(bits) else {"bits": bits}
    return {name: torch.from_numpy(value)
            for name, value in ({"values": flat[places]} | where).items()}


def unpack(parts: dict[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The tensor that pack() took apart. Raises ValueError where the parts do not fit each
    other.
    """
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
