"""Filter pruning (PFEC: Li et al. 2017, "Pruning Filters for Efficient ConvNets";
the paper's section 3).

The filters with the smallest L1 norm go, with their batch-norm entries and with the input channels
that read them. What is left is a physically smaller network that computes what the large one
computes with those filters zeroed.
"""

import warnings
from collections.abc import Sequence

import torch

from kesi import models
from kesi.method.pruning.criteria import Criterion, Evidence, l1, scores_of
from kesi.models import Network


def widths_of(cfg: Sequence) -> list[int]:
    """The numbers of a cfg, without the pools of VGG."""
    return [width for width in cfg if width != "M"]


def pruned_widths(cfg: Sequence, rates: float | Sequence[float]) -> list:
    """The cfg after one round: a rate r keeps int(n * (1 - r)) of n filters, and one at the least.

    ``rates`` is one rate for all, or one for each width of ``cfg`` (pools not counted). Raises
    ValueError for a rate outside [0, 1) or a wrong number of rates; warns where a rate would leave
    no filter.
    """
    widths = widths_of(cfg)
    rates = [rates] * len(widths) if isinstance(rates, (int, float)) else list(rates)
    if len(rates) != len(widths):
        raise ValueError(
            f"this network has {len(widths)} widths to prune, but {len(rates)} rates were given")
    for rate in rates:
        if not (isinstance(rate, (int, float)) and 0 <= rate < 1):
            raise ValueError(f"a pruning rate is at least 0 and below 1, not {rate!r}")
    kept = []
    for place, (width, rate) in enumerate(zip(widths, rates, strict=True)):
        keep = int(width * (1 - rate))
        if keep < 1:
            warnings.warn(f"rate {rate} would leave none of the {width} filters of layer "
                          f"{place}: kept one", stacklevel=2)
            keep = 1
        kept.append(keep)
    remaining = iter(kept)
    return ["M" if width == "M" else next(remaining) for width in cfg]


def kept_filters(model: Network, rates: float | Sequence[float], criterion: Criterion = l1,
                 evidence: Evidence = Evidence()) -> dict[str, torch.Tensor]:
    """Which filters stay: for each prunable convolution, by name,
    the indices of its kept filters in order.

    The scores are those of the whole filters before anything of this round is removed
    ("independent" pruning in Li et al., section 3.2); of equal scores the earlier filter stays.
    """
    keep = widths_of(pruned_widths(model.cfg, rates))
    layers = model.prunable()
    scores = scores_of(criterion, model, [layer.conv for layer in layers], evidence)
    kept = {}
    for layer in layers:
        order = torch.sort(scores[layer.conv], descending=True, stable=True).indices  # (filters,)
        kept[layer.conv] = order[:keep[layer.width]].sort().values
    return kept


def prune_filters(model: Network, rates: float | Sequence[float], criterion: Criterion = l1,
                  evidence: Evidence = Evidence()) -> Network:
    """A smaller network without the filters of lowest score; ``model`` stays as it is.

    ``rates``: the share to remove, one for all layers or one for each width of ``model.cfg`` (pools
    not counted). Raises ValueError for rates that do not fit; warns where a rate would leave no
    filter at all.
    """
    graph = models.ARCHITECTURES[model.arch].graph
    if graph is not None:
        return graph.prune(model, pruned_widths(model.cfg, rates), criterion, evidence)
    kept = kept_filters(model, rates, criterion, evidence)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for layer in model.prunable():
        filters = kept[layer.conv]
        for name in [name for name in state if name.startswith((f"{layer.conv}.", f"{layer.bn}."))]:
            if state[name].dim() > 0:  # not the norm's counter of batches
                state[name] = state[name][filters]
        for reader in layer.readers:
            state[f"{reader}.weight"] = state[f"{reader}.weight"][:, filters]
    smaller = models.create(model.arch, model.num_classes, pruned_widths(model.cfg, rates))
    smaller.load_state_dict(state)
    device = next(model.parameters()).device
    return smaller.to(device).train(model.training)
