"""Randomness as a function of what it is for, never of what ran before."""

import hashlib

import torch


def derive(*parts: int | str) -> int:
    """A seed of 63 bits from any number of whole numbers and names; the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded with derive(*parts)."""
    return torch.Generator().manual_seed(derive(*parts))
