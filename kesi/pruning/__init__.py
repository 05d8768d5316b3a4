"""Step 2: a smaller network (filters), or the same network with masks (weights)."""

from kesi.pruning.filters import kept_filters, prune_filters
from kesi.pruning.weights import Masks, prune_weights

__all__ = ["Masks", "kept_filters", "prune_filters", "prune_weights"]
