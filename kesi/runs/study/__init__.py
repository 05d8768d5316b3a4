"""Studies: variants of the method, and what they are worth against each other."""

from kesi.runs.study.running import Outcome, Study, finished, run
from kesi.runs.study.variants import Variant, keys_of, planned

__all__ = ["Outcome", "Study", "Variant", "finished", "keys_of", "planned", "run"]
