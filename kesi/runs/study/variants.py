"""What variants of the method are: differences from a recipe, and the trainings that they need."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from kesi import models
from kesi.data.split import Size as ImageSize
from kesi.method.objectives import check_labels
from kesi.method.plan import StagePlan
from kesi.method.plan import sizes as sizes_of
from kesi.method.recipes import PARTS, Recipe, described
from kesi.method.schedules import Training
from kesi.method.snapshot import BASELINE, KESI, chain, digest_of
from kesi.system.describe import check_plain, describe
from kesi.system.errors import UsageError, check_choice

Made = TypeVar("Made")

CHOICES = {"teachers": ("snapshots", "baseline", "last", "labels", None),
           "rounds_by": ("labels", "snapshots", "baseline"), "start": ("last", "fresh"),
           "images": ("training", "unlabelled"), "hand_over": ("last", "best")}
LATER = {"images": "training", "hand_over": "last"}  # noted only where they are otherwise

MOST_TEACHERS = 100  # that are trained independently


@dataclass(frozen=True)
class Step:
    """One training of a variant, in terms of those before it, by their places in its list.

    ``start``: the one whose network is trained, pruned before in a round of its own; None: a
    network is drawn, of the widths after ``round``; ``draw`` counts those that are drawn alike.
    ``teachers``: none where labels teach. ``unlabelled``: they also answer for images that have no
    label.
    """

    name: str
    training: Training
    round: int = 0
    start: int | None = None
    teachers: tuple[int, ...] = ()
    draw: int = 0
    unlabelled: bool = False


@dataclass(frozen=True)
class Variant:
    """One way through the method: a recipe, and who teaches what in it.

    ``teachers`` of the last step: "snapshots" (all of them, the paper's), "baseline", "last" (the
    last snapshot), "labels" (cross-entropy), a number K (the baseline and K - 1 more, each drawn
    and trained as it is), or None, and the last snapshot is what comes out.
    ``rounds_by``: who teaches in every retraining: "labels" (the paper's), the "snapshots" so far,
    the "baseline". ``start`` of the last step: the "last" snapshot, or a "fresh" network of its
    widths (Liu et al. 2019, "Rethinking the Value of Network Pruning", section 3), for which only
    the stages are run that its teachers need. ``images`` of the last step: the "training" images,
    or also those without labels, "unlabelled", as many an epoch. ``hand_over``: what comes out is
    the "last" network, or the "best" on held-out images of those of its size, the last snapshot
    among them, if it is clearly above the last (kesi.runs.results.clearly_above). Raises
    UsageError for what will not do.
    """

    recipe: Recipe
    teachers: str | int | None = "snapshots"
    rounds_by: str = "labels"
    start: str = "last"
    images: str = "training"
    hand_over: str = "last"

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if name == "teachers" and type(self.teachers) is int:
                if not 1 <= self.teachers <= MOST_TEACHERS:
                    raise UsageError(f"teachers, if it is a number, is at least 1 and at most "
                                     f"{MOST_TEACHERS}, not {self.teachers}")
            else:
                check_choice(name, getattr(self, name), choices)
        if self.start == "fresh" and self.recipe.method != "filter":
            raise UsageError("a fresh start is for filter pruning: masks are those of trained "
                             "weights")
        if self.start == "fresh" and self.recipe.ranked:
            raise UsageError("a fresh start needs widths that are known before: a ranking over all "
                             "layers decides them while it runs")
        if self.start == "fresh" and self.teachers in (None, "last"):
            raise UsageError("a fresh start needs teachers: snapshots, baseline or labels")
        if self.images == "unlabelled" and self.teachers in (None, "labels"):
            raise UsageError("images without labels need teachers in the last step")
        for step in self.steps():
            check_labels(self.recipe.loss if step.teachers else self.recipe.objective,
                         step.unlabelled, step.training.mixup)

    def changed(self, **differences: Any) -> "Variant":
        """The variant with differences; what is None stays, but for ``teachers``.

        Its own fields by name; ``baseline``, ``retraining``, ``distillation``: a Training, or the
        arguments of Training.changed(); ``loss``: an object, or a name; all others are arguments of
        Recipe.changed(). Raises UsageError for what there is not, or will not do.
        """
        own = {one.name: value for one in fields(self) if one.name in differences
               if (value := differences.pop(one.name)) is not None or one.name == "teachers"}
        recipe = own.pop("recipe", self.recipe)
        parts = {name: value for name in PARTS
                 if (value := differences.pop(name, None)) is not None}
        loss = differences.pop("loss", None)
        try:
            if isinstance(loss, str):
                recipe = recipe.changed(loss=loss, temperature=differences.pop("temperature", None))
            elif loss is not None:
                recipe = replace(recipe, loss=loss)
            recipe = recipe.changed(**differences).trained(**parts)
        except TypeError as error:
            known = sorted({*(one.name for one in (*fields(self), *fields(Training))), *PARTS,
                            *inspect.signature(Recipe.changed).parameters} - {"self"})
            raise UsageError(f"a variant cannot differ like this: {error}; what it and its "
                             f"trainings know: {', '.join(known)}") from error
        return replace(self, recipe=recipe, **own)

    def steps(self) -> list[Step]:
        """The trainings that lead to what comes out, which is the last one's."""
        recipe, rounds = self.recipe, len(self.recipe.rounds)
        (name, retraining), *_ = recipe.retrainings.items()
        fresh = self.start == "fresh"
        found: list[Step] = []
        if not (fresh and self.teachers == "labels"):
            found.append(Step(BASELINE, recipe.baseline))
            alone = self.teachers == "baseline" or type(self.teachers) is int
            needed = 0 if fresh and alone else rounds
            for number, kind in enumerate(chain(name, needed)[1:], start=1):
                found.append(Step(kind, retraining, number, number - 1,
                                  _places(self.rounds_by, number)))
        if self.teachers is None:
            return found
        if isinstance(self.teachers, int):
            taught = (0, *range(len(found), len(found) + self.teachers - 1))
            found += [Step(BASELINE, recipe.baseline, draw=draw)
                      for draw in range(1, self.teachers)]
        else:
            taught = _places(self.teachers, len(found))
        found.append(Step(KESI, recipe.distillation, rounds, None if fresh else rounds, taught,
                          unlabelled=self.images == "unlabelled"))
        return found

    @property
    def epochs(self) -> int:
        """Of all its trainings together."""
        return sum(one.training.epochs for one in self.steps())

    def members(self, made: Sequence[Made]) -> list[Made]:
        """Of what its steps made, one of each in their order, that of the steps before the last
        one, whose networks are an ensemble."""
        return [one for one, step in zip(made, self.steps(), strict=True) if step.name != KESI]

    def check(self, name: str, unlabelled: bool, held_out: bool) -> None:
        """Raises UsageError where the variant of this name needs images without labels, or held
        out, and there are none, or is said in what no file can hold."""
        if self.images == "unlabelled" and not unlabelled:
            raise UsageError(f"{name!r} is taught on images without labels: say where they are "
                             "with --unlabelled")
        if self.hand_over == "best" and not held_out:
            raise UsageError(f"{name!r} hands over what is best on held-out images: hold some out "
                             "with --val-fraction 0.1")
        check_plain(repr(name), self.describe())

    def describe(self) -> dict:
        """In plain values, with digests of the code of loss, criterion, schedules and network."""
        network = models.ARCHITECTURES.get(self.recipe.arch)
        code = network and network.code  # of one of somebody's own
        return {"recipe": self.recipe.describe(), **({"network's code": code} if code else {}),
                **{name: getattr(self, name) for name in CHOICES
                   if name not in LATER or getattr(self, name) != LATER[name]}}


def _places(teachers: str, count: int) -> tuple[int, ...]:
    """The places of teachers among the ``count`` trainings so far."""
    return {"labels": (), "baseline": (0,), "last": (count - 1,),
            "snapshots": tuple(range(count))}[teachers]


def keys_of(variant: Variant) -> list[str]:
    """What names each of its steps before anything is run:
    equal ones have the same settings, parents and teachers, and so the same outcome."""
    recipe, found = variant.recipe, []
    for one in variant.steps():
        said = {"name": one.name, "training": described(one.training), "arch": recipe.arch,
                "dataset": [recipe.dataset, recipe.family],
                "objective": describe(recipe.loss if one.teachers else recipe.objective),
                "teachers": [found[place] for place in one.teachers],
                "start": None if one.start is None else found[one.start],
                "pruned": pruning_of(recipe, one), "widths": drawn_widths(recipe, one),
                "draw": one.draw, "unlabelled": one.unlabelled}
        found.append(digest_of(said))
    return found


def pruning_of(recipe: Recipe, step: Step) -> dict | None:
    """How the network of a step is pruned before it; None where it is not."""
    if step.start is None or step.name == KESI:
        return None
    return {"method": recipe.method, "criterion": recipe.describe()["criterion"],
            "round": step.round, "amount": describe(recipe.rounds[step.round - 1])}


def drawn_widths(recipe: Recipe, step: Step) -> list | None:
    """The cfg of a network that is drawn small; None for all others."""
    return None if step.start is not None or not step.round else recipe.widths(step.round)


def planned(variants: Mapping[str, Variant], num_classes: int,
            image_size: ImageSize) -> dict[str, StagePlan]:
    """All trainings of a seed by their keys, those that variants share once, in order.

    Raises UsageError where the amounts of a variant do not fit its network.
    """
    found: dict[str, StagePlan] = {}
    for name, variant in variants.items():
        try:
            sizes = sizes_of(variant.recipe, num_classes, image_size)
        except (ValueError, UsageError) as error:
            raise UsageError(f"{name}: {error}") from error
        made = variant.steps()
        for key, one in zip(keys_of(variant), made, strict=True):
            taught = tuple(sizes[made[place].round] for place in one.teachers)
            found.setdefault(key, StagePlan(one.name, one.training, sizes[one.round], taught))
    return found
