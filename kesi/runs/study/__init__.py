"""Studies: variants of the method, and what they are worth against each other."""

from kesi.runs.study.running import (
    NOTE,
    Outcome,
    Study,
    check_images,
    finished,
    is_finished,
    run,
)
from kesi.runs.study.variants import Variant, keys_of, planned

__all__ = ["NOTE", "Outcome", "Study", "Variant", "check_images", "finished", "is_finished",
           "keys_of", "planned", "run"]
