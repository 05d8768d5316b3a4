"""Which channels of any network go together, and a smaller network without some of them.

A *width* is a number of channels that may shrink: the filters of one convolution, or of several
whose outputs meet in an addition or a product, with every norm and every layer that reads them. The
widths of a network are its cfg, as for the networks in models/: it can be rebuilt from them,
whichever of its channels went.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from kesi.method.pruning.criteria import Criterion, Evidence, l1, scores_of
from kesi.system.errors import UsageError


@dataclass(frozen=True)
class Axis:
    """The input or output channels of one layer, L of them,
    and which of them belong to which width.

    ``width``: the place of a width in cfg, -1 for channels that always stay; ``channel``: the
    number of the channel within that width; both int64 (L,). ``cut``: torch-pruning's function that
    takes channels away.
    """

    module: str
    output: bool
    cut: Callable[[nn.Module, list[int]], nn.Module]
    width: torch.Tensor
    channel: torch.Tensor

    def of(self, cfg: Sequence[int]) -> "Axis":
        """The same axis of a network with the widths ``cfg``."""
        alive = (self.width < 0) | (self.channel < torch.tensor(cfg)[self.width])
        return replace(self, width=self.width[alive], channel=self.channel[alive])


@dataclass(frozen=True)
class Graph:
    """The widths of a network. ``convs``: for each width the names of the convolutions
    that make its channels.

    A network none of whose convolutions can lose filters has those of its linear layers instead.
    ``norms``: the batch norm that reads a convolution and nothing else, by the convolution's name.
    ``left_alone``: the convolutions whose filters cannot be removed, the classifier not among them.
    ``problem``: why nothing is known of the widths, in words; then there are none.
    """

    cfg: tuple[int, ...] = ()
    convs: tuple[tuple[str, ...], ...] = ()
    axes: tuple[Axis, ...] = ()
    norms: tuple[tuple[str, str], ...] = ()
    left_alone: tuple[str, ...] = ()
    problem: str = ""

    def shorten(self, network: nn.Module, cfg: Sequence[int]) -> None:
        """Give an unpruned network the widths ``cfg``, in place; its weights are then anybody's."""
        self._remove(network, self.cfg, [torch.arange(keep, width)
                                         for keep, width in zip(cfg, self.cfg, strict=True)])

    def prune(self, model: nn.Module, cfg: Sequence[int], criterion: Criterion = l1,
              evidence: Evidence = Evidence()) -> nn.Module:
        """A copy of ``model`` with the widths ``cfg``: without the channels of lowest score."""
        smaller = copy.deepcopy(model)
        self._remove(smaller, model.cfg, self.weakest(model, cfg, criterion, evidence))
        smaller.cfg = list(cfg)
        return smaller

    def weakest(self, model: nn.Module, cfg: Sequence[int], criterion: Criterion = l1,
                evidence: Evidence = Evidence()) -> list[torch.Tensor]:
        """For each width the channels of ``model`` that go when ``cfg`` is to be left, in order.

        The score of a channel is the sum of those of all filters that make it: of one filter, as in
        Li et al. (2017), where the width is that of one convolution. Of equal scores the earlier
        stays.
        """
        names = {name for convs, width, keep in zip(self.convs, model.cfg, cfg, strict=True)
                 if keep < width for name in convs}
        makers = [axis for axis in self.axes if axis.output and axis.module in names]
        found = scores_of(criterion, model, [axis.module for axis in makers], evidence)
        scores = [torch.zeros(width) for width in model.cfg]
        for maker in makers:
            axis, filters = maker.of(model.cfg), found[maker.module].float().cpu()  # (filters,)
            for place in axis.width[axis.width >= 0].unique().tolist():
                mine = axis.width == place
                scores[place].index_add_(0, axis.channel[mine], filters[mine])
        order = [torch.sort(score, descending=True, stable=True).indices for score in scores]
        return [ranked[keep:].sort().values for ranked, keep in zip(order, cfg, strict=True)]

    def zero(self, network: nn.Module, cfg: Sequence[int],
             channels: Sequence[torch.Tensor]) -> None:
        """What removing ``channels`` has to be equal to:
        their filters, and the weights that read them, are 0."""
        modules = dict(network.named_modules())
        with torch.no_grad():
            for axis, gone in self._positions(cfg, channels):
                for parameter in modules[axis.module].parameters(recurse=False):
                    if axis.output and len(parameter) == len(axis.width):
                        parameter[gone] = 0
                    elif not axis.output and parameter.dim() > 1:
                        parameter[:, gone] = 0

    def rates(self, wanted: float | dict[str, float]) -> tuple[float, ...]:
        """One rate for each width, from one for all or from those of convolutions by name
        (others keep all).

        Raises UsageError for a name that no convolution with a width has, and where two that share
        one are to lose different shares.
        """
        if not isinstance(wanted, dict):
            return (wanted,) * len(self.cfg)
        rates, said = [0.0] * len(self.cfg), {}
        for name, rate in wanted.items():
            places = [place for place, convs in enumerate(self.convs) if name in convs]
            if not places:
                raise UsageError(
                    f"no convolution {name!r} whose filters can be removed; there are "
                    f"{', '.join(dict.fromkeys(conv for convs in self.convs for conv in convs))}")
            for place in places:  # several, where its filters are added to two others' side by side
                other = said.setdefault(place, name)
                if other != name and wanted[other] != rate:
                    raise UsageError(f"{other} and {name} lose their filters together: give both "
                                     "the same rate, or one of them alone")
                rates[place] = rate
        return tuple(rates)

    def _positions(self, cfg: Sequence[int],
                   channels: Sequence[torch.Tensor]) -> Iterator[tuple[Axis, torch.Tensor]]:
        """Every axis of a network with the widths ``cfg``,
        and where the ``channels`` of each width lie on it."""
        starts = torch.tensor([0, *cfg]).cumsum(0)
        total = int(starts[-1])
        # the last one for channels that have no width
        gone = torch.zeros(total + 1, dtype=torch.bool)
        for start, which in zip(starts, channels, strict=False):
            gone[start + which] = True
        for axis in self.axes:
            axis = axis.of(cfg)
            where = torch.where(axis.width < 0, total, starts[axis.width] + axis.channel)
            yield axis, gone[where].nonzero().flatten()

    def _remove(self, network: nn.Module, cfg: Sequence[int],
                channels: Sequence[torch.Tensor]) -> None:
        modules = dict(network.named_modules())
        trained = {name: value.requires_grad for name, value in network.named_parameters()}
        for axis, gone in self._positions(cfg, channels):
            if len(gone):
                axis.cut(modules[axis.module], gone.tolist())
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trained[name])

    def only(self, places: Sequence[int]) -> "Graph":
        """The graph with these widths alone."""
        # the last one for the channels that have no width
        renumber = torch.full((len(self.cfg) + 1,), -1)
        renumber[torch.tensor(places, dtype=torch.int64)] = torch.arange(len(places))
        axes = [replace(axis, width=renumber[axis.width]) for axis in self.axes]
        return replace(self, cfg=tuple(self.cfg[place] for place in places),
                       convs=tuple(self.convs[place] for place in places),
                       axes=tuple(axis for axis in axes if bool((axis.width >= 0).any())))
