"""What compress() was given: whether it fits, and what a recipe makes of it, before any training.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from types import FunctionType

import torch

from kesi import models
from kesi.checkpoints import fields
from kesi.data import Dataset
from kesi.method import recipes
from kesi.method.objectives import Loss, Objective, check_labels
from kesi.method.pruning.allocation import ALLOCATIONS, LATENCY
from kesi.method.pruning.filters import pruned_widths
from kesi.method.pruning.weights import conv_weights
from kesi.method.recipes import Recipe
from kesi.method.recipes.definition import check_rounds
from kesi.own.graphs import Graph
from kesi.own.registry import RATE, SPARSITIES
from kesi.runs.trial import try_losses
from kesi.system.errors import UsageError, check_choice
from kesi.system.seeds import MOST
from kesi.tools.targets import faster
from kesi.tools.targets.ways import check_used


def check_arguments(model, method, rounds, epochs, batch_size, lr, seeds) -> None:
    """Raises UsageError for arguments of the wrong kind;
    what values are right is left to those who use them."""
    if not callable(model):
        raise UsageError(
            f"the model is a {type(model).__name__}: give a network, or a function that builds one")
    check_choice("method", method, recipes.METHODS)
    if not _whole_numbers(seeds) or not len(seeds) or min(seeds) < 0 or max(seeds) > MOST:
        raise UsageError(
            f"seeds are whole numbers from 0 to {MOST}, such as (0, 1, 2), not {seeds!r:.60}")
    if epochs is not None and not (_whole_numbers(epochs) and len(epochs) == 3
                                   and min(epochs) >= 1):
        raise UsageError("epochs are three numbers of at least 1, of baseline, retraining and "
                         f"distillation, not {epochs!r:.60}")
    for name, value in (("rounds", rounds), ("batch_size", batch_size)):
        if value is not None and not (_whole_numbers([value]) and value > 0):
            raise UsageError(f"{name} must be at least 1, not {value!r:.60}")
    if rounds is not None:
        check_rounds(rounds)
    if lr is not None and not fields.number(lr):
        raise UsageError(f"lr is a number, not {lr!r:.60}")


def check_kinds(**given: tuple[object, tuple[type, ...]]) -> None:
    """Raises UsageError for values, by name, that are neither None nor of these types."""
    for name, (value, kinds) in given.items():
        if value is not None and not isinstance(value, kinds):
            raise UsageError(f"{name} is a {' or a '.join(one.__name__ for one in kinds)}, not "
                             f"{value!r:.60}")


def _whole_numbers(values) -> bool:
    """Whether something is a sequence of whole numbers, NumPy's included."""
    try:
        return len(list(map(operator.index, values))) == len(values)
    except TypeError:
        return False


def normalised(dataset: Dataset, mean, std) -> Dataset:
    """The data set with another mean and standard deviation, where they are given."""
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        try:
            numbers = tuple(map(float, torch.as_tensor(value, dtype=torch.float64)
                                                      .expand(len(dataset.mean))))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{name} is one number, or one for each of {len(dataset.mean)} "
                             f"channels, not {value!r:.60}") from error
        if not all(fields.number(one) for one in numbers) or name == "std" and min(numbers) <= 0:
            raise UsageError(f"{name} is of images scaled to "
                             f"0..1{', and above 0' * (name == 'std')}, not {value!r:.60}")
        dataset = replace(dataset, **{name: numbers})
    return dataset


def taught(recipe: Recipe, dataset: Dataset, criterion: str | None, loss: str | Loss | None,
           objective: Objective | None) -> Recipe:
    """The recipe with another criterion, loss or objective, tried on a few numbers.
    Raises UsageError for what will not do."""
    recipe = recipe.changed(criterion=criterion, loss=loss if isinstance(loss, str) else None)
    if loss is not None and not isinstance(loss, str):
        recipe = replace(recipe, loss=_told_from_others("loss", loss))
    if objective is not None:
        recipe = replace(recipe, objective=_told_from_others("objective", objective))
    check_labels(recipe.loss, dataset.unlabelled is not None, recipe.distillation.mixup)
    try_losses(recipe, dataset)
    return recipe


def _told_from_others(what: str, function: Callable) -> Callable:
    """Raises UsageError for a function that decides an outcome without standing in records."""
    named = isinstance(function, FunctionType) and not function.__closure__ and (
        function.__name__ != "<lambda>")
    made = not isinstance(function, type) and (is_dataclass(function)
                                               or hasattr(function, "describe"))
    if not named and not made:
        raise UsageError(f"{what} is a named function without values from around it, or a frozen "
                         f"dataclass with __call__, so that records tell it from others, not "
                         f"{function!r:.60}")
    return function


def without(graph: Graph, method: str, amounts: tuple, ignore: Sequence[str]) -> tuple:
    """The rates of every round, with 0 for the widths that layers in ``ignore`` have a part in."""
    if method != "filter":
        raise UsageError('ignore is for method="filter"')
    ignore = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(ignore, Sequence) or not all(isinstance(name, str) for name in ignore):
        raise UsageError(f"ignore takes names of layers, not {ignore!r:.60}")

    def inside(conv: str, name: str) -> bool:
        return conv == name or conv.startswith(f"{name}.")

    known = [conv for convs in (*graph.convs, graph.left_alone) for conv in convs]
    for name in ignore:
        if not any(inside(conv, name) for conv in known):
            raise UsageError(f"ignore: no convolution is or is in {name!r}; there are "
                             f"{', '.join(dict.fromkeys(known))}")
    stays = [any(inside(conv, name) for conv in convs for name in ignore) for convs in graph.convs]
    return tuple(tuple(0.0 if stay else rate for rate, stay in zip(rates, stays, strict=True))
                 for rates in amounts)


def target(method: str, named: dict[str, float | str | None], sparsities: Sequence[float] | None
           ) -> tuple[str, float] | None:
    """(measure, value) of the target among macs, params, latency and sparsity; None without one."""
    found = {name: value for name, value in named.items() if value is not None}
    if sparsities is not None and "sparsity" in found:
        found["sparsities"] = sparsities
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} ask for different things: give one of them")
    if not found:
        return None
    (measure, value), = found.items()
    wanted = "weight" if measure == "sparsity" else "filter"
    if method != wanted:
        raise UsageError(f'{measure} is for method="{wanted}"')
    if measure == LATENCY:
        return measure, faster.speedup(value)
    if not fields.number(value):
        raise UsageError(f"{measure} is a share, such as 0.5, not {value!r:.60}")
    return measure, value


def check_allocation(measure: str | None, allocation: str, round_to: int, latency_batch: int,
                     fixed: bool) -> None:
    """Raises UsageError for a way to reach a target that is none, or where ``measure`` is no target
    that is reached so; ``fixed``: rates are given."""
    check_choice("allocation", allocation, ALLOCATIONS)
    if fixed and allocation == "uniform":
        raise UsageError('allocation="uniform" takes from all layers alike: leave rates and ignore '
                         "out")
    for name, value in (("round_to", round_to), ("latency_batch", latency_batch)):
        if not _whole_numbers([value]):
            raise UsageError(f"{name} is a whole number, not {value!r:.60}")
    check_used([measure], allocation, round_to, latency_batch)


def amounts(graph: Graph, method: str, rounds: int | None, rates: float | dict[str, float] | None,
             sparsities: Sequence[float] | None) -> tuple:
    """What every round prunes. Raises UsageError for what does not fit the method or each other."""
    if method == "filter":
        if sparsities is not None:
            raise UsageError('sparsities are for method="weight"; filter pruning takes rates')
        return (graph.rates(RATE if rates is None else rates),) * (rounds or recipes.ROUNDS)
    if rates is not None:
        raise UsageError('rates are for method="filter"; weight pruning takes sparsities')
    try:
        shares = SPARSITIES if sparsities is None else tuple(map(float, sparsities))
    except (TypeError, ValueError) as error:
        raise UsageError(f"sparsities are shares, one a round, such as (0.5, 0.75), not "
                         f"{sparsities!r:.60}") from error
    if rounds is not None and (rounds > len(shares)
                               or sparsities is not None and rounds != len(shares)):
        raise UsageError(f"there are {len(shares)} sparsities, one a round: give as many as there "
                         "are to be rounds")
    return shares[:rounds]


def check_recipe(graph: Graph, name: str, classes: int, method: str, recipe: Recipe) -> None:
    """That the recipe is for this network, before anything is trained.
    Raises UsageError where it is not."""
    if (recipe.arch, recipe.method) != (name, method):
        raise UsageError(f"the recipe is for {recipe.arch} and {recipe.method} pruning, not for "
                         f"{name} and {method}")
    if method == "weight":
        with torch.device("meta"):
            if not conv_weights(models.create(name, classes)):
                raise UsageError(f"{name} has no convolution, and no linear layer before the last "
                                 f"one: there are no weights to prune")
        shares = list(recipe.rounds)
        if not shares or shares != sorted(shares) or not all(0 <= share < 1 for share in shares):
            raise UsageError(
                f"sparsities are shares from 0 to below 1 that never fall, not {shares}")
        return
    if not graph.cfg:
        raise UsageError(
            f"{name} has no convolution that can lose single filters, and no linear layer "
            "before the last one that can lose outputs; prune its weights instead")
    try:
        for rates in recipe.rounds:
            pruned_widths(graph.cfg, rates)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if graph.left_alone:
        print(f"{name}: {len(graph.left_alone)} layers keep all channels, since these are split, "
              f"grouped, shuffled, scaled or normalised together: {', '.join(graph.left_alone)}")
