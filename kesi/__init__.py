"""KESI: compress convolutional networks by iterative pruning and distillation of the snapshots.

Le, Vo and Thoai, "Paying more attention to snapshots of Iterative Pruning", BMVC 2020, arXiv 2006.11487.
"""

from kesi.checkpoints import load_model

__all__ = ["load_model"]
