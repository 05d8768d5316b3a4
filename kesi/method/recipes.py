"""The paper's schedules and epochs, as data (sections 4 and 5, supplement); rates are in models/.

What the paper does not publish is ours and says so: the digits recipe, ResNet-20/32, the batch size
of the baselines, and the baseline of Tiny-ImageNet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from kesi import models
from kesi.data.datasets import FAMILIES, FOLDER, INFO
from kesi.data.split import Size
from kesi.method.objectives import (
    CrossEntropy,
    KullbackLeibler,
    Loss,
    Objective,
    WithLabels,
    loss_of,
)
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
from kesi.system.describe import code_digest, describe
from kesi.system.errors import UsageError

METHODS = {"filter": "l1", "weight": "magnitude"}  # of pruning, with the paper's criterion of each

ROUNDS = 5

# The training images that the recipe of a family was made for: CIFAR's and Tiny-ImageNet's. Of
# fewer images epochs are as many more, but no more than was tried (docs/data.md).
MADE_FOR, MOST_EPOCHS = {"cifar": 50_000, "tinyimagenet": 100_000}, 10


@dataclass(frozen=True)
class Retraining:
    """One way to retrain what was pruned: its training, and how tables and curves show it."""

    training: Training
    label: str
    colour: str
    marker: str = "D"


ONE_CYCLE = Training(epochs=40, batch_size=128, lr=0.1, schedule="onecycle")

USUAL = Training(epochs=40, batch_size=128, lr=0.001, schedule="constant")

# To compare another retraining, add its entry: the first is the method's own, whose snapshots
# teach.
RETRAININGS: dict[str, Retraining] = {
    "onecycle": Retraining(ONE_CYCLE, "one-cycle", "#0072B2", "o"),
    "usual": Retraining(USUAL, "usual", "#D55E00", "s")}

PARTS = ("baseline", "retraining", "distillation")  # trainings of a recipe, its own retraining's

OWN = next(iter(RETRAININGS))  # the name of the method's own retraining


def retraining_named(name: str) -> Retraining:
    """How a retraining is shown; one that is not entered here, of somebody else's run, by its name.
    """
    known = RETRAININGS.get(name)
    return known or Retraining(RETRAININGS[OWN].training, name, "#CC79A7")


def kind_of(training: Training) -> str:
    """What a retraining is called: by the entry that it is like, else by its schedule."""
    for name, known in RETRAININGS.items():
        same_rate = known.training.schedule != "constant" or known.training.lr == training.lr
        if known.training.schedule == training.schedule and same_rate:
            return name
    return training.schedule


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
        after each round. ``temperature``: of the loss. ``compare``: False for the method's own
        retraining only, or the names of those to make. Raises UsageError for what will not do.
        """
        kinds = [BASELINE, *self.retrainings, KESI]
        counts = dict.fromkeys(kinds)
        if epochs is not None:
            if len(epochs) != 3 or min(epochs) < 1:
                raise UsageError(f"--epochs takes three numbers of at least 1, not {list(epochs)}")
            counts = {**dict.fromkeys(kinds, epochs[1]), BASELINE: epochs[0], KESI: epochs[2]}
        rates = {BASELINE: lr, OWN: lr}
        made = {kind: training.changed(epochs=counts[kind], scale=scale, batch_size=batch_size,
                                       lr=rates.get(kind))
                for kind, training in self.trainings.items()}
        if criterion is not None:
            criterion_of(self.method, criterion)
        told = self.loss
        if loss is not None:
            told = loss_of(loss, temperature=temperature)
        elif temperature is not None:
            told = replace(told, temperature=temperature)
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
            if name not in self.retrainings:
                raise UsageError(f"unknown retraining {name!r}; choose from: {', '.join(others)}")
        return [own, *(name for name in others if name in compare)]

    def _amounts(self, rounds: int | None, amounts: Sequence | float | None) -> tuple:
        if rounds is not None and not 1 <= rounds <= 1000:
            raise UsageError(f"--rounds must be at least 1 and at most 1000, not {rounds}")
        if rounds is amounts is None:
            return self.rounds
        each = list(amounts) if isinstance(amounts, Sequence) else [amounts]
        for share in each if amounts is not None else ():
            if not 0 <= share < 1:
                raise UsageError(f"--percent takes shares of at least 0 and below 1, not {share}")
        if self.method == "filter":
            one = self.rounds[0]
            if amounts is None and self.ranked:
                raise UsageError("how many rounds there are is said before their target")
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
                steps: str = "geometric") -> "Recipe":
        """The recipe with amounts that leave a share of "macs", "params" or "latency", or prune a
        "sparsity".

        ``allocation``: "paper" takes from every width in proportion to its rates, "uniform" from
        all alike, "ranked" by one ranking of the criterion over all layers, in studies and in
        memory; widths become multiples of ``round_to``. ``cost``: of widths, for latency.
        ``steps``: each round leaves the same share of the one before ("geometric"), or takes as
        much ("equal"). Raises UsageError for what does not fit the method, and for a target that
        cannot be reached.
        """
        if (measure == "sparsity") != (self.method == "weight"):
            raise UsageError(
                f"--{measure} is for {'weight' if measure == 'sparsity' else 'filter'} pruning: "
                f"{self.method} pruning takes "
                + ("--sparsity" if self.method == "weight" else "--macs, --params or --latency"))
        count = len(self.rounds)
        if allocation not in (*ALLOCATIONS, RANKED):
            raise UsageError(f"unknown allocation {allocation!r}; choose one of: "
                             f"{', '.join((*ALLOCATIONS, RANKED))}")
        if measure == "sparsity":
            return replace(self, rounds=sparsities_of(share, count, steps))
        if allocation == "paper" and self.ranked:
            raise UsageError("a ranking over all layers has no rates to go in proportion to: "
                             "choose uniform or ranked")
        unpruned = widths_of(models.ARCHITECTURES[self.arch].cfg)
        if allocation == RANKED:
            if measure not in MEASURES or models.ARCHITECTURES[self.arch].graph is not None:
                raise UsageError("a ranking over all layers is for macs or params, and for KESI's "
                                 "own networks: choose uniform")
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


def kesi2(paper: Recipe) -> Recipe:
    """What does better than the paper's recipe with few images, of which it processes as many
    (docs/beyond.md)."""
    # ten times the paper's decay in every training, and more steps: batches of 64 for 128
    firm = {"weight_decay": 1e-3, "batch_size": 64}
    # the last step by SGD, too, instead of Adam; a tenth of its loss is that of the labels
    last = {"optimizer": "sgd", "lr": 0.1, **firm}
    return replace(paper.trained(baseline=firm, retraining=firm, distillation=last),
                   loss=WithLabels())


def kesi2_many(paper: Recipe) -> Recipe:
    """What does better than the paper's recipe with many images and few epochs (docs/beyond.md)."""
    # the last step as one more retraining, by SGD; a fifth of its loss is the teachers'
    last = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4}
    return replace(paper.trained(distillation=last), loss=WithLabels(temperature=2.0, alpha=0.8))


# What a recipe differs in from the paper's, by name; to try another one, add its entry.
PAPER = "paper"
RECIPES: dict[str, Callable[[Recipe], Recipe]] = {
    PAPER: lambda paper: paper, "kesi2": kesi2, "kesi2-many": kesi2_many}


def named(name: str, paper: Recipe) -> Recipe:
    """The recipe of that name for what the paper's is for. Raises UsageError for an unknown one."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name](paper)


def fits(dataset: str) -> bool:
    """Whether epochs are made to fit the number of images where nobody says how many: of a folder
    of images, and of images in memory; a data set that is known by name has its recipe."""
    return dataset == FOLDER or dataset not in INFO


def described(training: Training) -> dict:
    """A training in plain values, with a digest of what its schedule does.

    What records did not have from the beginning stands there only if it decides anything.
    """
    said = {**asdict(training), "milestones": list(training.milestones),
            "schedule_code": code_digest(SCHEDULES[training.schedule])}
    return {name: value for name, value in said.items() if name not in ("ema", "mixup") or value}


DISTILLATION = Training(epochs=40, batch_size=128, lr=0.001, schedule="onecycle", optimizer="adam",
                        weight_decay=0.0)

# The authors link one baseline for both methods and do not publish its batch size; their script's
# default was 128 until August 2020, after the results were recorded.
CIFAR_BASELINE = Training(epochs=300, batch_size=128, lr=0.1, schedule="multistep",
                          milestones=(150, 225))

WRN_BASELINE = Training(epochs=200, batch_size=128, lr=0.1, schedule="multistep",
                        milestones=(60, 120, 160), gamma=0.2, weight_decay=5e-4)

BASELINES = {"cifar": CIFAR_BASELINE, "wrn": WRN_BASELINE}  # by Architecture.baseline

TINYIMAGENET_EPOCHS = 25

# Ours, since none is published: the recipe of He et al. 2016 as torchvision's references train
# ResNet-18/34.
TINYIMAGENET_BASELINE = Training(epochs=90, batch_size=256, lr=0.1, schedule="multistep",
                                 milestones=(30, 60))

# Ours: the handwritten digits of the demonstration, minutes on two cores.
DIGITS_BASELINE = Training(epochs=80, batch_size=64, lr=0.1, schedule="multistep",
                           milestones=(40, 60))

DIGITS_EPOCHS, DIGITS_BATCH, DIGITS_RATE = 25, 64, 0.25


def recipe(arch: str, dataset: str, method: str, family: str = "cifar") -> Recipe:
    """The paper's settings for a network, a data set and a method ("filter" or "weight").

    ``family`` decides for data sets of either size (imagefolder): "cifar" is the 32-px recipe,
    "tinyimagenet" the 224-px one. Raises UsageError for an unknown architecture, method or family.
    """
    for value, choices, what in ((arch, models.ARCHITECTURES, "architecture"),
                                 (method, METHODS, "method"), (family, FAMILIES, "family")):
        if value not in choices:
            raise UsageError(f"unknown {what} {value!r}; choose one of: {', '.join(choices)}")
    network = models.ARCHITECTURES[arch]
    baseline, rates = BASELINES[network.baseline], network.rates
    made_for = INFO[dataset].recipe if dataset in INFO else None
    shorter: dict = {}
    if made_for == "digits":
        baseline, shorter = DIGITS_BASELINE, {"epochs": DIGITS_EPOCHS, "batch_size": DIGITS_BATCH}
        rates = (DIGITS_RATE,) * len(rates)
    elif family == "tinyimagenet":
        baseline, shorter = TINYIMAGENET_BASELINE, {"epochs": TINYIMAGENET_EPOCHS}
    retrainings = {name: one.training.changed(**shorter) for name, one in RETRAININGS.items()}
    rounds = [rates] * ROUNDS if method == "filter" else network.sparsities
    return Recipe(arch, dataset, method, family, baseline, retrainings,
                  DISTILLATION.changed(**shorter), KullbackLeibler(), METHODS[method],
                  tuple(rounds))
