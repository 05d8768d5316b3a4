"""The paper's recipe as data, what may differ in it, and the recipes that do better."""

from kesi.method.recipes.definition import CODE, PARTS, Amount, Recipe, described
from kesi.method.recipes.named import (
    PAPER,
    RECIPES,
    choice,
    kesi2,
    kesi2_many,
    name_of,
    named,
    suited,
)
from kesi.method.recipes.original import (
    BASELINES,
    CIFAR_BASELINE,
    DISTILLATION,
    METHODS,
    ROUNDS,
    WRN_BASELINE,
    fits,
    recipe,
)
from kesi.method.recipes.retrainings import (
    ONE_CYCLE,
    OWN,
    RETRAININGS,
    USUAL,
    Retraining,
    kind_of,
    retraining_named,
)

__all__ = ["Amount", "BASELINES", "CIFAR_BASELINE", "CODE", "DISTILLATION", "METHODS", "ONE_CYCLE",
           "OWN", "PAPER", "PARTS", "RECIPES", "RETRAININGS", "ROUNDS", "Recipe", "Retraining",
           "USUAL", "WRN_BASELINE", "choice", "described", "fits", "kesi2", "kesi2_many",
           "kind_of", "name_of", "named", "recipe", "retraining_named", "suited"]
