"""A recipe: everything that decides what the five steps do with a network and its images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from kesi import models
from kesi.data.split import Size
from kesi.method.objectives import LOSSES, CrossEntropy, Loss, Objective, Taught, loss_of
from kesi.method.pruning.allocation import (
    ALLOCATIONS,
    MEASURES,
    RANKED,
    Cost,
    Ranked,
    Target,
    allocate_rounds,
    scaled,
    shares_of,
    sparsities_of,
    uniform,
)
from kesi.method.pruning.criteria import criterion_of
from kesi.method.pruning.filters import pruned_widths, widths_of
from kesi.method.schedules import SCHEDULES, Training
from kesi.method.snapshot import BASELINE, KESI
from kesi.method.teachers import Equal
from kesi.system.describe import code_digest, describe
from kesi.system.errors import UsageError, check_choice

PARTS = ("baseline", "retraining", "distillation")  # trainings of a recipe, its own retraining's

CODE = ("code", "schedule_code")  # what a description calls the digest of what a part of it does

# The training images that the recipe of a family was made for: CIFAR's and Tiny-ImageNet's. Of
# fewer images epochs are as many more, but no more than was tried (docs/data.md).
MADE_FOR, MOST_EPOCHS = {"cifar": 50_000, "tinyimagenet": 100_000}, 10

# Of a round: the rates of the widths, a target that they follow from, or a share of zero weights.
Amount = float | Sequence[float] | Ranked


@dataclass(frozen=True)
class Recipe:
    """The five steps for one network, data set and pruning method.

    ``retrainings``: by name; the first one's snapshots teach in the end, the others are made to be
    compared. ``rounds`` has one entry a round. Filter pruning: the rates of that round, one for
    each width of the network's cfg, or a Ranked target. Weight pruning: the cumulative share of
    convolution weights that is zero after it. ``criterion``: a name in
    kesi.method.pruning.criteria. ``objective``: of baseline and retrainings. ``fitted_to``: the
    number of training images that the epochs were made to fit.
    """

    arch: str
    dataset: str
    method: str
    family: str
    baseline: Training
    retrainings: Mapping[str, Training]
    distillation: Training
    loss: Loss
    criterion: str
    rounds: tuple
    objective: Objective = CrossEntropy()
    fitted_to: int | None = None

    @property
    def trainings(self) -> dict[str, Training]:
        """Every training by the kind of its stages: "baseline", the retrainings, "kesi"."""
        return {BASELINE: self.baseline, **self.retrainings, KESI: self.distillation}

    def changed(self, epochs: Sequence[int] | None = None, scale: float | None = None,
                batch_size: int | None = None, lr: float | None = None,
                rounds: int | None = None, amounts: Sequence | float | None = None,
                temperature: float | None = None, criterion: str | None = None,
                loss: str | None = None, compare: bool | Sequence[str] = True) -> "Recipe":
        """The recipe with other settings; what is None stays.
        The only place where one is overridden.

        ``epochs`` of baseline, retrainings and distillation; ``scale`` multiplies all epochs.
        ``lr``: of the baseline, and the peak of one-cycle retraining. ``amounts``, filter pruning:
        one rate, or one a width, the same in each of ``rounds``; weight pruning: the share of zeros
        after each round. ``temperature``: of the loss. ``loss``: a name in LOSSES; another loss
        than this recipe's keeps its share of labels and its weights of the teachers, and looks at
        them at a temperature of its own. ``compare``: False for the method's own retraining only,
        or the names of those to make. Raises UsageError for what will not do.
        """
        kinds = [BASELINE, *self.retrainings, KESI]
        counts = dict.fromkeys(kinds)
        if epochs is not None:
            if len(epochs) != 3 or min(epochs) < 1:
                raise UsageError(f"--epochs takes three numbers of at least 1, not {list(epochs)}")
            counts = {**dict.fromkeys(kinds, epochs[1]), BASELINE: epochs[0], KESI: epochs[2]}
        rates = {BASELINE: lr, next(iter(self.retrainings)): lr}
        made = {kind: training.changed(epochs=counts[kind], scale=scale, batch_size=batch_size,
                                       lr=rates.get(kind))
                for kind, training in self.trainings.items()}
        if criterion is not None:
            criterion_of(self.method, criterion)
        told, other = self.loss, LOSSES.get(loss)
        if loss is not None and other is not type(told):
            kept = {}
            if isinstance(other, type) and issubclass(other, Taught) and isinstance(told, Taught):
                # the recipe's where they are not as usual, whatever else is imitated
                kept = {name: value for name, usual in (("alpha", 0.0), ("weights", Equal()))
                        if (value := getattr(told, name)) != usual}
            told = loss_of(loss, temperature=temperature, **kept)
        elif temperature is not None:
            try:
                told = replace(told, temperature=temperature)
            except TypeError as error:
                raise UsageError(f"the loss {describe(told)['name']} has no temperature") from error
        return replace(self, baseline=made[BASELINE], distillation=made[KESI], loss=told,
                       retrainings={name: made[name] for name in self._compared(compare)},
                       criterion=criterion or self.criterion, rounds=self._amounts(rounds, amounts))

    def trained(self, **parts: Training | Mapping) -> "Recipe":
        """The recipe with other trainings, or their numbers, by the names in PARTS.

        Raises UsageError for numbers that will not do.
        """
        made, own = self, next(iter(self.retrainings))
        for name, part in parts.items():
            before = self.retrainings[own] if name == "retraining" else getattr(self, name)
            training = part if isinstance(part, Training) else before.changed(**part)
            made = replace(made, **({"retrainings": {**self.retrainings, own: training}}
                                    if name == "retraining" else {name: training}))
        return made

    def fitted(self, images: int) -> "Recipe":
        """The recipe for a number of training images: as many steps as it has for those that it
        was made for, but at most MOST_EPOCHS times its epochs."""
        scale = min(MADE_FOR[self.family] / images, MOST_EPOCHS)
        return replace(self.changed(scale=scale), fitted_to=images)

    def fit(self) -> str:
        """The epochs that were made to fit, in a line."""
        parts = (self.baseline, next(iter(self.retrainings.values())), self.distillation)
        first, each, last = (f"{one.epochs:,}" for one in parts)
        return (f"epochs: {first} + {len(self.rounds)} x {each} + {last}, made to fit "
                f"{self.fitted_to:,} training images (the recipe is for "
                f"{MADE_FOR[self.family]:,}); --epochs sets others")

    def widths(self, rounds: int | None = None) -> list:
        """The cfg of its network after so many rounds of pruning (default: all)."""
        return self.all_widths()[len(self.rounds) if rounds is None else rounds]

    def all_widths(self, num_classes: int = 10) -> list[list]:
        """The cfg of its network after 0, 1, ... rounds; of Ranked targets only about."""
        found = [list(models.ARCHITECTURES[self.arch].cfg)]
        for amount in self.rounds:
            if isinstance(amount, Ranked):
                amount = amount.expected(self.arch, num_classes, found[-1])
            found.append(pruned_widths(found[-1], amount) if self.method == "filter" else found[-1])
        return found

    @property
    def ranked(self) -> bool:
        """Whether its widths follow from a ranking, so that nobody knows them before."""
        return any(isinstance(amount, Ranked) for amount in self.rounds)

    def _compared(self, compare: bool | Sequence[str]) -> list[str]:
        own, *others = self.retrainings
        if isinstance(compare, bool):
            return [own, *others] if compare else [own]
        for name in compare:
            check_choice("retraining", name, self.retrainings)
        return [own, *(name for name in others if name in compare)]

    def _amounts(self, rounds: int | None, amounts: Sequence | float | None) -> tuple:
        if rounds is not None:
            check_rounds(rounds)
        if amounts is None and rounds in (None, len(self.rounds)):
            return self.rounds
        each = list(amounts) if isinstance(amounts, Sequence) else [amounts]
        for share in each if amounts is not None else ():
            if not 0 <= share < 1:
                raise UsageError(f"--percent takes shares of at least 0 and below 1, not {share}")
        if self.method == "filter":
            one = self.rounds[0]
            if amounts is None and (self.ranked or len(set(self.rounds)) > 1):
                raise UsageError("how many rounds there are is said before their target, or with "
                                 "it: towards(..., rounds=)")
            if amounts is not None:
                count = len(widths_of(models.ARCHITECTURES[self.arch].cfg))
                one = tuple(each) * (count if len(each) == 1 else 1)
                if len(one) != count:
                    raise UsageError("--percent with filter pruning takes one share, or one for "
                                     f"each of {count} widths, not {len(each)}")
            return (one,) * (rounds or len(self.rounds))
        shares = tuple(self.rounds if amounts is None else each)
        if list(shares) != sorted(shares):
            raise UsageError(
                "--percent with weight pruning takes cumulative shares, which never fall")
        if rounds is not None and rounds > len(shares):
            raise UsageError(f"there are {len(shares)} sparsities, not {rounds}: give one a round, "
                             f"--percent ...")
        return shares[:rounds]

    def towards(self, measure: str, share: float, num_classes: int, image_size: Size,
                allocation: str = "paper", round_to: int = 1, cost: Cost | None = None,
                steps: str = "geometric", rounds: int | None = None) -> "Recipe":
        """The recipe with amounts that leave a share of "macs", "params" or "latency", or prune a
        "sparsity".

        ``allocation``: "paper" takes from every width in proportion to its rates, "uniform" from
        all alike, "ranked" by one ranking of the criterion over all layers, in studies and in
        memory; widths become multiples of ``round_to``. ``cost``: of widths, for latency.
        ``steps``: each round leaves the same share of the one before ("geometric"), or takes as
        much ("equal"). ``rounds``: in how many (default: as many as before). Raises UsageError for
        what does not fit the method, and for a target that cannot be reached.
        """
        if (measure == "sparsity") != (self.method == "weight"):
            raise UsageError(
                f"--{measure} is for {'weight' if measure == 'sparsity' else 'filter'} pruning: "
                f"{self.method} pruning takes "
                + ("--sparsity" if self.method == "weight" else "--macs, --params or --latency"))
        count = len(self.rounds) if rounds is None else check_rounds(rounds)
        check_choice("allocation", allocation, (*ALLOCATIONS, RANKED))
        if measure == "sparsity":
            if allocation != "paper":
                raise UsageError("weights are pruned by one ranking over the whole network: a "
                                 "sparsity takes no allocation")
            return replace(self, rounds=sparsities_of(share, count, steps))
        if allocation == "paper" and self.ranked:
            raise UsageError("a ranking over all layers has no rates to go in proportion to: "
                             "choose uniform or ranked")
        unpruned = widths_of(models.ARCHITECTURES[self.arch].cfg)
        if allocation == RANKED:
            if measure not in MEASURES or models.ARCHITECTURES[self.arch].graph is not None:
                raise UsageError("a ranking over all layers is for macs or params, and for KESI's "
                                 "own networks: choose uniform")
            whole = Ranked(Target(measure, share), image_size, round_to)
            whole.expected(self.arch, num_classes, models.ARCHITECTURES[self.arch].cfg)
            made = replace(self, rounds=tuple(
                Ranked(Target(measure, one), image_size, round_to)
                for one in shares_of(share, count, steps)))
            made.all_widths(num_classes)  # which fails where no allocation gets there
            return made
        order = scaled(unpruned, self.rounds[0]) if allocation == "paper" else uniform(unpruned)
        found = allocate_rounds(self.arch, num_classes, image_size, Target(measure, share), order,
                                count, steps, round_to, cost)
        return replace(self, rounds=tuple(one.rates for one in found))

    def describe(self) -> dict:
        """Plain numbers, strings and lists, as run.json keeps them;
        functions with their code's digest."""
        plain = {name: getattr(self, name) for name in ("arch", "dataset", "method", "family")}
        trainings = {name: described(training) for name, training in self.trainings.items()}
        criterion = {"name": self.criterion,
                     "code": code_digest(criterion_of(self.method, self.criterion))}
        return {**plain, "trainings": trainings, "loss": describe(self.loss),
                "criterion": criterion, "rounds": describe(list(self.rounds)),
                # only where it is not the usual one: records of before stay what they are
                **({} if self.objective == CrossEntropy()
                   else {"objective": describe(self.objective)})}


def check_rounds(rounds: int) -> int:
    """Raises UsageError for a number of rounds that will not do."""
    if not 1 <= rounds <= 1000:
        raise UsageError(f"--rounds must be at least 1 and at most 1000, not {rounds}")
    return rounds


def described(training: Training) -> dict:
    """A training in plain values, with a digest of what its schedule does.

    What records did not have from the beginning stands there only if it decides anything.
    """
    said = {**asdict(training), "milestones": list(training.milestones),
            "schedule_code": code_digest(SCHEDULES[training.schedule])}
    return {name: value for name, value in said.items() if name not in ("ema", "mixup") or value}
