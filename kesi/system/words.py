"""Data in words, and words in a digest."""

import hashlib
from typing import Any

import numpy as np
import torch


def constant(value: Any) -> bool:
    """Whether a value cannot change, and tells itself from others in words."""
    if isinstance(value, tuple):
        return all(map(constant, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def in_words(value: Any, within: frozenset[int] = frozenset()) -> str | None:
    """Data in words that tell it from other data; None for what is no data, or holds what is none.

    ``within``: what this is a part of, by id().
    """
    if constant(value):
        return repr(value)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            return None
        kind = value.dtype
        flat = value.detach().cpu().contiguous().reshape(-1)
        return _array(kind, value.shape, flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return _array(value.dtype, value.shape, value.tobytes())
    if id(value) in within or not isinstance(value, (list, tuple, dict, set, frozenset)):
        return None
    within |= {id(value)}
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    said = [in_words(one, within) for one in parts]
    if None in said:
        return None
    said = sorted(said) if isinstance(value, (set, frozenset)) else said
    return f"{type(value).__name__}({', '.join(said)})"


def _array(kind: Any, shape: tuple[int, ...], content: bytes) -> str:
    return f"{kind} {tuple(shape)} {hashlib.sha256(content).hexdigest()}"


def digest(parts: list[str]) -> str:
    """12 digits of SHA-256 over strings, one after the other."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
