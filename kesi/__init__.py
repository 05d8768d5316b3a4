"""KESI: compress convolutional networks by iterative pruning and distillation of the snapshots.

Le, Vo and Thoai, "Paying more attention to snapshots of Iterative Pruning", BMVC 2020, arXiv 2006.11487.
"""

from kesi.checkpoints import load_model

__all__ = ["compress", "load_model", "register"]


def __getattr__(name: str):
    """compress() and register(), imported when they are asked for: they need most of the package."""
    if name == "compress":
        from kesi.own import compress
        return compress
    if name == "register":
        from kesi.registry import register
        return register
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
