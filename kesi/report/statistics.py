"""What figures of several seeds say: means, deviations, and paired differences with intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of intervals


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
    """Differences over seeds: their mean, and half the width of its interval (None of one seed)."""

    mean: float
    half: float | None = None

    @property
    def interval(self) -> str | None:
        """ "+0.83 to +1.33", as tables show it."""
        return (None if self.half is None
                else f"{self.mean - self.half:+.2f} to {self.mean + self.half:+.2f}")

    @property
    def told_from_chance(self) -> bool | None:
        """Whether 0 lies outside of the interval; None without one, and where all differences are
        equal: of chance they say nothing."""
        if self.half is None or self.half < 1e-9 < abs(self.mean):
            return None
        return abs(self.mean) > self.half


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Paired:
    """``second`` - ``first``, seed by seed, with the interval of Student's t for their mean.

    The half width is t * s / sqrt(n), s the sample standard deviation of n differences and t the
    quantile of n - 1 degrees of freedom (Student 1908, "The Probable Error of a Mean").
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Paired(mean)
    return Paired(mean, t_quantile(level, count - 1) * statistics.stdev(differences)
                  / math.sqrt(count))


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
