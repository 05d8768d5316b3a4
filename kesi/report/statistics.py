"""What figures of several seeds say: means, deviations, and paired differences with intervals."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of intervals
SAME = 1e-9  # differences that vary by less do not vary


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: its mean, and its sample standard deviation (None of one seed)."""

    mean: float
    std: float | None = None


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation, None of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Paired:
    """Differences over seeds: their mean, half the width of its interval (None of one seed), and
    how probable a mean as far from 0 is where there is no difference (None where they vary not)."""

    mean: float
    half: float | None = None
    p_value: float | None = None

    @property
    def interval(self) -> str | None:
        """ "+0.83 to +1.33", as tables show it."""
        return (None if self.half is None
                else f"{self.mean - self.half:+.2f} to {self.mean + self.half:+.2f}")

    @property
    def told_from_chance(self) -> bool | None:
        """Whether 0 lies outside of the interval; None without one, and where all differences are
        equal: of chance they say nothing."""
        if self.half is None or self.half < SAME < abs(self.mean):
            return None
        return abs(self.mean) > self.half


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Paired:
    """``second`` - ``first``, seed by seed, with the interval of Student's t for their mean
    (Student 1908, "The Probable Error of a Mean")."""
    return pooled([[b - a for a, b in zip(first, second, strict=True)]], level)


def pooled(groups: Sequence[Sequence[float]], level: float = LEVEL) -> Paired:
    """The mean of the groups' means, each group counting alike, with the interval of Student's t by
    the variance within the groups, which is taken to be one.

    With k groups of n_i differences, and s^2 their squared deviations from the group's own mean by
    the sum of n_i - 1, which are the degrees of freedom, the half width is
    t * s * sqrt(sum of 1 / n_i) / k (a contrast in a one-way analysis of variance; Scheffe 1959).
    """
    means = [statistics.fmean(one) for one in groups]
    mean, freedom = statistics.fmean(means), sum(len(one) - 1 for one in groups)
    if not freedom:
        return Paired(mean)
    squares = sum((value - middle) ** 2 for one, middle in zip(groups, means, strict=True)
                  for value in one)
    error = math.sqrt(squares / freedom * sum(1 / len(one) for one in groups)) / len(groups)
    if error < SAME:
        return Paired(mean, 0.0)
    return Paired(mean, t_quantile(level, freedom) * error,
                  1 - _within(math.atan(abs(mean) / error / math.sqrt(freedom)), freedom))


def holm(found: Iterable[Paired], level: float = LEVEL) -> int:
    """How many differences are told from chance when corrected for their number m, so that with
    probability ``level`` none is told that is nothing: the smallest p value by (1 - level) / m, the
    next by (1 - level) / (m - 1), and so on to the first that is larger (Holm 1979, "A Simple
    Sequentially Rejective Multiple Test Procedure"). Differences of which chance cannot be told,
    such as of one seed, count in m."""
    ordered = sorted(1.0 if one.p_value is None else one.p_value for one in found)
    return next((place for place, p in enumerate(ordered)
                 if p > (1 - level) / (len(ordered) - place)), len(ordered))


def t_quantile(level: float, freedom: int) -> float:
    """The t that a t-distributed number of ``freedom`` degrees stays within, on both sides, with
    probability ``level``."""
    low, high = 0.0, math.pi / 2  # of atan(t / sqrt(freedom))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < t) at angle = atan(t / sqrt(freedom)): the finite sums of Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4."""
    odd, cosine = freedom % 2, math.cos(angle)
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for number in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine ** 2 * (number - 1) / number
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
