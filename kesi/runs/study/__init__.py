"""Studies: variants of the method, and what they are worth against each other."""

from kesi.runs.study.outcomes import Outcome, finished, is_finished
from kesi.runs.study.running import Study, refuse_others, run, tried
from kesi.runs.study.variants import Variant, keys_of, planned

__all__ = ["Outcome", "Study", "Variant", "refuse_others", "finished", "is_finished", "keys_of",
           "planned", "run", "tried"]
