"""Step 2: a smaller network (filters), or the same network with masks (weights)."""

from kesi.method.pruning.filters import kept_filters, prune_filters
from kesi.method.pruning.masks import Masks
from kesi.method.pruning.weights import prune_weights

__all__ = ["Masks", "kept_filters", "prune_filters", "prune_weights"]
