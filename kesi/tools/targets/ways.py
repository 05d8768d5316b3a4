"""How a target is reached: what commands and compress() take besides it."""

from collections.abc import Collection

from kesi.method.pruning.allocation import ALLOCATIONS, LATENCY, MEASURES
from kesi.system.errors import UsageError

ROUND_TO = 8  # what widths are made multiples of, which runtimes like

SIZES = (*MEASURES, LATENCY)  # targets of filter pruning


def check_used(measures: Collection[str | None], allocation: str, round_to: int,
               latency_batch: int) -> None:
    """Raises UsageError for a way to reach a target where none of ``measures`` is reached so."""
    for name, value, usual, of in (("allocation", allocation, ALLOCATIONS[0], SIZES),
                                   ("round_to", round_to, ROUND_TO, SIZES),
                                   ("latency_batch", latency_batch, 1, (LATENCY,))):
        if value != usual and not set(of) & set(measures):
            raise UsageError(f"{name} {value!r:.60} says how a target is reached: give one as "
                             f"well, {' or '.join(of)}")
