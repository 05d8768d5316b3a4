"""KESI: compress convolutional networks by iterative pruning and distillation of the snapshots.

Le, Vo and Thoai, "Paying more attention to snapshots of Iterative Pruning", BMVC 2020, arXiv
2006.11487.
"""

import importlib

_PUBLIC = {"compress": "kesi.own.compress", "register": "kesi.own.registry",
           "load_model": "kesi.checkpoints", "fit": "kesi.method.training",
           "from_pretrained": "kesi.tools.handover.hub",
           "push_to_hub": "kesi.tools.handover.hub"}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    """The public names, imported when they are asked for: what is not used costs no time."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
