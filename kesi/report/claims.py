"""What is claimed of the method, held against runs: differences paired over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kesi.report.summary import Row, Summary
from kesi.report.tables import NONE, Table

ACCURACY = "test_accuracy"


@dataclass(frozen=True)
class Difference:
    """The mean difference of two figures over the seeds that have both, and its 95 % interval.

    ``low`` and ``high`` are None of a single seed, which tells nothing of how seeds scatter.
    """

    seeds: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def told(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """``first`` less ``second``, both by seed; None where they have no seed in common.

    The interval is that of the mean of paired differences: mean ± t s / sqrt(n), with the 97.5 %
    quantile of Student's t for n - 1 degrees of freedom.
    """
    values = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(1, mean)
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(len(values), mean, mean - half, mean + half)


def student(degrees: int, share: float = 0.975) -> float:
    """The quantile of Student's t distribution with whole ``degrees`` of freedom.

    With t = sqrt(degrees) tan(a), the density of the angle a is proportional to
    cos(a) ** (degrees - 1), which is summed here.
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 400_001)
    summed = np.cumsum(np.abs(np.cos(angles)) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(share, summed / summed[-1], angles))


def claims_table(summaries: Sequence[Summary]) -> Table | None:
    """The claims of Le, Vo and Thoai (arXiv 2006.11487, sections 4 and 5), in order, for every run
    that has what they speak of; None where no run has.
    """
    body = []
    for one in summaries:
        own, usual = one.retrained[0], one.retrained[1:]
        pairs = [(f"{own.label} above {other.label} retraining", own.rows[-1], other.rows[-1])
                 for other in usual]
        pairs += [("the ensemble of the snapshots above the baseline", own.ensemble, one.baseline),
                  (f"KESI above {own.label}", one.last, own.rows[-1]),
                  ("KESI at the baseline or above", one.last, one.baseline)]
        for claim, better, worse in pairs:
            found = paired(_accuracies(better), _accuracies(worse))
            if found is not None:
                between = NONE if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
                body.append([f"{one.run.label}: {claim}", str(found.seeds), f"{found.mean:+.2f}",
                             between, _verdict(found)])
    return Table("Claims of the method, and what is seen here",
                 ["claim", "seeds", "difference (points)", "95 % interval", "seen here"], body,
                 ["Test accuracy, paired over seeds; the interval is Student's t of the paired "
                  "differences. Of a single seed there is none."]) if body else None


def _accuracies(row: Row) -> dict[int, float]:
    return {seed: getattr(result, ACCURACY) for seed, result in row.results.items()}


def _verdict(found: Difference) -> str:
    if found.low is None:
        return "one seed: yes" if found.mean >= 0 else "one seed: no"
    if not found.told:
        return "not told from none"
    return "yes" if found.mean > 0 else "no"
