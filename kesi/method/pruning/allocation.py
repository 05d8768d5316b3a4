"""How much of each width goes, so that a target share of MACs or parameters is left.

Every allocation is an order of single steps, each of which takes one width down to the next
multiple; as many steps are taken as the target needs. So it is reached within one step of one
width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from kesi import models
from kesi.data.split import Size
from kesi.method.pruning.criteria import Criterion, Evidence, l1, scores_of
from kesi.method.pruning.filters import widths_of
from kesi.method.sizes import macs, parameters
from kesi.system.errors import KesiError, UsageError

MEASURES = ("macs", "params")

LATENCY = "latency"  # a measure, too, of which the caller says what widths cost

ALLOCATIONS = ("paper", "uniform")  # that need no network

RANKED = "ranked"  # which needs one

NO_EVIDENCE = Evidence()

# How late a step is taken: (place of the width, filters before it, filters after it) -> a number.
# It never falls while one width shrinks; the unpruned widths are known to who makes the function.
Order = Callable[[int, int, int], float]

# The share of its measure that a network of these widths takes of the unpruned one. What is
# measured need not fall with every step, but the widths that are chosen are within the target.
Cost = Callable[[tuple], float]


@dataclass(frozen=True)
class Target:
    """What is to be left of the unpruned network: ``share`` of its ``measure``, "macs", "params"
    or "latency".
    """

    measure: str
    share: float

    def __post_init__(self):
        """Raises UsageError for an unknown measure or a share outside (0, 1]."""
        if self.measure not in (*MEASURES, LATENCY):
            raise UsageError(f"unknown measure {self.measure!r}; choose one of: "
                             f"{', '.join(MEASURES)}")
        if not 0 < self.share <= 1:
            raise UsageError(f"the share of {self.measure} to be left must be above 0 and at most "
                             f"1, not {self.share}")


@dataclass(frozen=True)
class Allocation:
    """One round: the ``rates`` for prune_filters, the ``cfg`` they lead to, and the shares left."""

    rates: tuple[float, ...]
    cfg: tuple
    macs: float
    params: float


def uniform(unpruned: Sequence[int]) -> Order:
    """The same share of every width."""
    return lambda place, before, after: 1 - before / unpruned[place]


def scaled(unpruned: Sequence[int], rates: Sequence[float]) -> Order:
    """Given rates, such as the paper's, applied for as many rounds as needed,
    parts of one included.

    After x rounds n * (1 - rate)^x filters are left of n; widths of rate 0 stay as they are.
    """
    def order(place: int, before: int, after: int) -> float:
        if rates[place] == 0:
            return math.inf
        return math.log(before / unpruned[place]) / math.log(1 - rates[place])
    return order


def ranked(network: torch.nn.Module, criterion: Criterion = l1,
           evidence: Evidence = NO_EVIDENCE) -> Order:
    """By one ranking over all layers of this network:
    the lowest scores go first, wherever they are.

    A layer's scores are divided by their Euclidean norm (Molchanov et al. 2017, "Pruning
    Convolutional Neural Networks for Resource Efficient Inference", section 2.2), without which
    layers of large weights would win. Convolutions of one width lose their lowest ones together:
    the mean of their sorted scores counts. Raises UsageError for networks that are not in models/,
    KesiError for scores that are not finite: no share of an infinite norm tells two filters apart.
    """
    if models.ARCHITECTURES[network.arch].graph is not None:
        raise UsageError("a ranking over all layers is for KESI's own networks: choose uniform")
    layers = network.prunable()
    scores = scores_of(criterion, network, [layer.conv for layer in layers], evidence)
    by_width: dict[int, list[torch.Tensor]] = {}
    for layer in layers:
        one = scores[layer.conv].double().cpu()
        if not bool(one.isfinite().all()):
            raise KesiError(f"the criterion gives {layer.conv} infinite scores: a ranking over all "
                            "layers needs finite ones")
        by_width.setdefault(layer.width,
                            []).append((one / one.norm().clamp_min(1e-30)).sort().values)
    sums = {width: torch.stack(each).mean(0) for width, each in by_width.items()}

    def order(place: int, before: int, after: int) -> float:
        gone = len(sums[place]) - before  # of the filters that this network still has
        return float(sums[place][gone:gone + before - after].mean())
    return order


def allocate(arch: str, num_classes: int, image_size: Size, target: Target, order: Order,
             cfg: Sequence | None = None, round_to: int = 1, cost: Cost | None = None,
             last: float | None = None) -> Allocation:
    """The largest network in this order that is no larger than the target.

    ``cfg``: what is there before this round (default: the unpruned network, of which the target is
    a share either way). ``round_to``: widths that shrink become multiples of it, one at the least.
    ``cost``: of widths, for a target of latency. ``last``: the share of the last round. Raises
    UsageError for a target, this one or the last, that cannot be reached, and says what can.
    """
    if not 1 <= round_to <= 4096:
        raise UsageError(f"widths are rounded to a multiple of at least 1, not of {round_to}")
    start = list(models.ARCHITECTURES[arch].cfg if cfg is None else cfg)
    steps = _steps(widths_of(start), order, round_to)
    unpruned = models.ARCHITECTURES[arch].cfg

    @cache
    def size(cfg: tuple, measure: str) -> int:
        with torch.device("meta"):
            network = models.create(arch, num_classes, cfg)
        return macs(network, image_size) if measure == "macs" else parameters(network)

    def share(count: int, measure: str) -> float:
        made = tuple(_after(start, steps[:count]))
        if measure == LATENCY:
            return cost(made)
        return size(made, measure) / size(tuple(unpruned), measure)

    least = share(len(steps), target.measure)
    last = target.share if last is None else last
    if least > last:
        finer = f"; widths that are no multiples of {round_to} go further (--round-to 1)"
        raise UsageError((f"{arch} cannot be made {1 / last:.3g}x as fast: {1 / least:.3g}x is the "
                          "most that this allocation gives" if target.measure == LATENCY else
                          f"{arch} cannot be pruned to {last:.4g} of its {target.measure}: "
                          f"{math.ceil(least * 1e4) / 1e4:.4g} is the least that this allocation "
                          f"can leave") + finer * (round_to > 1))
    count = _fewest(lambda count: share(count, target.measure) - target.share, len(steps))
    made = _after(start, steps[:count])
    rates = tuple(_rate(*pair) for pair in zip(widths_of(start), widths_of(made), strict=True))
    return Allocation(rates, tuple(made), share(count, "macs"), share(count, "params"))


def allocate_rounds(arch: str, num_classes: int, image_size: Size, target: Target, order: Order,
                    rounds: int, steps: str = "geometric", round_to: int = 1,
                    cost: Cost | None = None) -> list[Allocation]:
    """The allocations of every round, where the order does not depend on what training gives."""
    cost = cost and cache(cost)
    found: list[Allocation] = []
    for share in shares_of(target.share, rounds, steps):
        found.append(allocate(arch, num_classes, image_size, replace(target, share=share), order,
                              found[-1].cfg if found else None, round_to, cost, target.share))
    return found


@dataclass(frozen=True)
class Ranked:
    """The amount of a round by one ranking over all layers, see ranked(), until ``target`` is left
    of the unpruned network; widths become multiples of ``round_to``.

    Which rates that are is known only when there is a network to rank.
    """

    target: Target
    image_size: Size
    round_to: int = 1

    def rates(self, network: torch.nn.Module, criterion: Criterion,
              evidence: Evidence) -> tuple[float, ...]:
        """For this network, as prune_filters takes them. Raises UsageError for a target that cannot
        be reached."""
        return self._of(network.arch, network.num_classes, network.cfg,
                        ranked(network, criterion, evidence))

    def expected(self, arch: str, num_classes: int, cfg: Sequence) -> tuple[float, ...]:
        """Rates to the same target without a network, which are uniform() ones."""
        return self._of(arch, num_classes, cfg, uniform(widths_of(models.ARCHITECTURES[arch].cfg)))

    def _of(self, arch: str, num_classes: int, cfg: Sequence, order: Order) -> tuple[float, ...]:
        return allocate(arch, num_classes, self.image_size, self.target, order, cfg,
                        self.round_to).rates


def shares_of(share: float, rounds: int, steps: str = "geometric") -> tuple[float, ...]:
    """What is left after each round, down to ``share``.

    "geometric": each round leaves the same share of the one before; "equal": each takes as much.
    """
    if rounds < 1 or steps not in ("geometric", "equal"):
        raise UsageError(f"there must be at least one round, of geometric or equal steps, "
                         f"not {rounds} of {steps}")
    return tuple(share ** (one / rounds) if steps == "geometric" else 1 - (1 - share) * one / rounds
                 for one in range(1, rounds)) + (share,)


def sparsities_of(sparsity: float, rounds: int, steps: str = "geometric") -> tuple[float, ...]:
    """The cumulative shares of zero weights after each round, up to ``sparsity``."""
    if not 0 <= sparsity < 1:
        raise UsageError(f"a sparsity is at least 0 and below 1, not {sparsity}")
    return tuple(1 - share for share in shares_of(1 - sparsity, rounds, steps)[:-1]) + (sparsity,)


def _steps(widths: Sequence[int], order: Order, round_to: int) -> list[tuple[int, int]]:
    """(place, filters after the step), in order; widths that the order never takes are left out."""
    found = []
    for place, width in enumerate(widths):
        before, late = width, -math.inf
        while (after := (before - 1) // round_to * round_to) >= round_to:
            late = max(late, order(place, before, after))
            found.append((late, place, after))
            before = after
    return [(place, after) for late, place, after in sorted(found, key=lambda one: one[0])
            if late < math.inf]


def _fewest(excess: Callable[[int], float], most: int) -> int:
    """The fewest steps of 0 to ``most`` that leave no excess above 0, where it falls all the way.

    Guessed on the line between the nearest counts known to be too few and enough; one that stays
    twice in a row is taken for half as far off (the Illinois method). Each look at a network costs
    a forward pass, and halving would take twice as many.
    """
    low, high, above, below = 0, most, excess(0), excess(most)
    if above <= 0:
        return 0
    before = 0.0
    while high - low > 1:
        guess = low + round((high - low) * above / (above - below))
        guess = min(max(guess, low + 1), high - 1)
        now = excess(guess)
        if now > 0:
            low, above, below = guess, now, below / 2 if before > 0 else below
        else:
            high, below, above = guess, now, above / 2 if before < 0 else above
        before = now
    return high


def _after(cfg: Sequence, steps: Sequence[tuple[int, int]]) -> list:
    widths = widths_of(cfg)
    for place, after in steps:
        widths[place] = after
    rest = iter(widths)
    return ["M" if width == "M" else next(rest) for width in cfg]


def _rate(before: int, after: int) -> float:
    """A rate r for which int(before * (1 - r)) is ``after``, safe from rounding."""
    return 0.0 if before == after else 1 - (after + 0.5) / before
