"""Randomness as a function of what it is for, never of what ran before."""

import hashlib
import random

import numpy
import torch

from kesi.system.errors import UsageError

MOST = 10**18 - 1  # of the seed of a run: what its files may say, see kesi.checkpoints.fields


def seed(text: str) -> int:
    """The seed that a flag gives. Raises UsageError where it is none that a run can write down."""
    if not text.isdecimal() or int(text) > MOST:
        raise UsageError(f"a seed is a whole number from 0 to 10**18 - 1, not {text[:40]}")
    return int(text)


def derive(*parts: int | str) -> int:
    """A seed of 63 bits from any number of whole numbers and names; the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_globally(*parts: int | str) -> None:
    """Seed what a network may draw from without a generator of its own, torch's, Python's and
    NumPy's, with derive(*parts)."""
    number = derive(*parts)
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number % 2**32)


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded with derive(*parts)."""
    return torch.Generator().manual_seed(derive(*parts))
