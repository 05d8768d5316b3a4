"""How a training runs: optimiser and learning rate, step by step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from kesi.system.errors import UsageError

MOST = 10**5  # epochs, and images of a batch: more is a slip, or asks for the memory

# a loss from here on is that of a training that diverges; no file of a run holds it
DIVERGED = 1e18


@dataclass(frozen=True)
class Training:
    """How one training runs. ``lr`` is the peak of a one-cycle schedule and the start
    of the others.

    ``schedule`` is a name in SCHEDULES: "multistep" (times ``gamma`` after each epoch of
    ``milestones``), "constant", "linear" or "cosine" (down to 0), or "onecycle" (cosine from
    lr / div_factor up to lr over the share ``warmup`` of all steps, then down to the start /
    final_div_factor, stepped every batch; momentum is cycled against it as torch does by default).
    ``ema``: above 0, what comes out are averaged weights, see Average; 0: those of the last step.
    ``mixup``: every image is mixed with another of its batch, by a share drawn uniformly, and the
    teachers answer for what comes out (Zhang et al. 2018, "mixup", with alpha 1; Beyer et al. 2022,
    "Knowledge distillation: A good teacher is patient and consistent").
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.1
    div_factor: float = 10.0
    final_div_factor: float = 100.0
    ema: float = 0.0
    mixup: bool = False

    def __post_init__(self):
        """Raises UsageError for numbers that will not do."""
        as_floats(self)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if type(value) is not int:
                raise UsageError(f"{name.replace('_', ' ')} must be a whole number, not {value!r}")
            if not 1 <= value <= MOST:
                limit = "at least 1" if value < 1 else f"at most {MOST:,}"
                raise UsageError(f"{name.replace('_', ' ')} must be {limit}, not {value:,}")
        rates = (self.lr, self.weight_decay, self.momentum, self.gamma)
        if not all(math.isfinite(value) and abs(value) < DIVERGED for value in rates):
            raise UsageError(f"the learning rate ({self.lr}), weight decay ({self.weight_decay}), "
                             f"momentum ({self.momentum}) and gamma ({self.gamma}) must be finite, "
                             f"below {DIVERGED:g}")
        if not self.lr > 0:
            raise UsageError(f"the learning rate must be above 0, not {self.lr}")
        if not self.gamma > 0:
            raise UsageError(f"gamma, by which the learning rate falls, must be above 0, not "
                             f"{self.gamma}")
        if any(type(one) is not int or one < 0 for one in self.milestones):
            raise UsageError(f"the learning rate falls after whole epochs of at least 0, not "
                             f"{', '.join(map(str, self.milestones))}")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise UsageError(f"weight decay must not be negative (is {self.weight_decay}) and "
                             f"momentum must lie in [0, 1) (is {self.momentum})")
        moved = self.optimizer == "adam" or self.schedule == "onecycle"
        if moved and self.momentum != Training.momentum:
            raise UsageError(f"a momentum of {self.momentum} would do nothing: one-cycle moves it "
                             "between 0.85 and 0.95, and Adam's is its own; leave it out")
        if not 0 <= self.ema < 1:
            raise UsageError(f"the decay of averaged weights lies in [0, 1), not at {self.ema}")
        if not (0 < self.warmup < 1 and self.div_factor > 0 and self.final_div_factor > 0):
            raise UsageError(f"the warm-up must be a share between 0 and 1, not {self.warmup}, and "
                             "what divides the learning rate above 0")
        if self.schedule not in SCHEDULES or self.optimizer not in ("sgd", "adam"):
            raise UsageError(f"unknown schedule {self.schedule!r} or optimizer {self.optimizer!r}; "
                             f"schedules: {', '.join(SCHEDULES)}; optimizers: sgd, adam")

    def scaled(self, factor: float) -> "Training":
        """The same training with its epochs, and the milestones in them, multiplied by ``factor``.
        """
        return replace(self, epochs=max(1, round(self.epochs * factor)),
                       milestones=tuple(max(1, round(one * factor)) for one in self.milestones))

    def changed(self, epochs: int | None = None, scale: float | None = None,
                milestones: Sequence[int] | None = None, **numbers: float | None) -> "Training":
        """The same training with other numbers; what is None stays.

        ``scale`` multiplies the epochs. With other ``epochs`` the milestones stay where they were
        in proportion; ``milestones`` given make it a "multistep" schedule. Raises UsageError for
        numbers that will not do.
        """
        made = self
        if scale is not None:
            if epochs is not None:
                raise UsageError("give epochs, or what they are multiplied by (--epochs-scale), "
                                 "not both")
            if not 0 < scale <= 1e6:
                raise UsageError(f"--epochs-scale must be above 0, not {scale}")
            made = made.scaled(scale)
        if epochs is not None:
            if milestones is None and made.milestones and epochs > 0:
                made = made.scaled(epochs / made.epochs)
            made = replace(made, epochs=epochs)
        given = {name: value for name, value in numbers.items() if value is not None}
        if milestones is not None:
            given |= {"schedule": "multistep", "milestones": tuple(milestones)}
        return replace(made, **given)


def as_floats(numbers: object) -> None:
    """Make whole numbers of a frozen dataclass floats where its fields are: 5 and 5.0 are one
    setting, and so one digest."""
    for one in fields(numbers):
        if one.type in (float, "float") and type(value := getattr(numbers, one.name)) is int:
            object.__setattr__(numbers, one.name, float(value))


Schedule = Callable[[Optimizer, Training, int], lr_scheduler.LRScheduler]


def multistep(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The rate times gamma after each epoch of the milestones."""
    places = [epoch * steps for epoch in training.milestones]
    return lr_scheduler.MultiStepLR(optimizer, places, training.gamma)


def constant(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The same rate in every step."""
    return lr_scheduler.MultiStepLR(optimizer, [], training.gamma)


def onecycle(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """Up to the peak and down to almost nothing, once (Smith and Topin 2018, "Super-Convergence").
    """
    total, warmup = training.epochs * steps, training.warmup
    # torch divides by warmup * total - 1, the last step of the warm-up counted from 0
    warmup = warmup * (1 - 1e-6) if math.isclose(warmup * total, 1) else warmup
    return lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.lr, total_steps=total, pct_start=warmup, anneal_strategy="cos",
        div_factor=training.div_factor, final_div_factor=training.final_div_factor)


def linear(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """From ``lr`` straight to 0 right after the last step (Li et al. 2020, "Budgeted Training")."""
    return lr_scheduler.LambdaLR(optimizer, Linear(training.epochs * steps))


def cosine(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """Half a cosine from ``lr`` to 0 (Loshchilov and Hutter 2017, "SGDR", equation 5, one period).
    """
    return lr_scheduler.LambdaLR(optimizer, Cosine(training.epochs * steps))


@dataclass
class Linear:
    """The factor of a step; an object, whose numbers torch keeps in the state of the scheduler."""

    total: int

    def __call__(self, step: int) -> float:
        return max(0.0, 1 - step / self.total)


@dataclass
class Cosine(Linear):
    """Likewise."""

    def __call__(self, step: int) -> float:
        return (1 + math.cos(math.pi * min(step, self.total) / self.total)) / 2


# A schedule is a function of the optimiser, the training and the steps of an epoch that gives
# torch's scheduler, to be stepped after every batch.
SCHEDULES: dict[str, Schedule] = {"multistep": multistep, "constant": constant,
                                  "onecycle": onecycle, "linear": linear, "cosine": cosine}


def rewound(baseline: Training, epochs: int) -> Training:
    """The last ``epochs`` of a baseline's schedule as a training of its own:
    learning-rate rewinding.

    Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", section 2:
    the weights stay, the rate goes back. It needs no other schedule: what is left of a multistep,
    constant or linear one is one of its kind. Raises UsageError for the others, and for more epochs
    than the baseline has.
    """
    if not 1 <= epochs <= baseline.epochs:
        raise UsageError(f"a baseline of {baseline.epochs} epochs cannot be rewound by {epochs}")
    start = baseline.epochs - epochs
    if baseline.schedule == "multistep":
        passed = sum(one <= start for one in baseline.milestones)
        rest = tuple(one - start for one in baseline.milestones if one > start)
        return replace(baseline, epochs=epochs, lr=baseline.lr * baseline.gamma ** passed,
                       milestones=rest)
    if baseline.schedule not in ("constant", "linear"):
        raise UsageError(f"a {baseline.schedule} baseline cannot be rewound: "
                         "its end is no schedule of the same kind")
    share = epochs / baseline.epochs if baseline.schedule == "linear" else 1
    return replace(baseline, epochs=epochs, lr=baseline.lr * share)


# Retrainings worth comparing, by name; kept out of recipes.RETRAININGS, whose entries are all made.
# "steps": the authors' notes of March 2020. Rewinding depends on the baseline: see rewound().
MORE_RETRAININGS: dict[str, Training] = {
    "steps": Training(epochs=40, batch_size=128, lr=0.1, schedule="multistep", milestones=(20, 30)),
    "linear": Training(epochs=40, batch_size=128, lr=0.1, schedule="linear"),
    "cosine": Training(epochs=40, batch_size=128, lr=0.1, schedule="cosine")}


def optimizer_for(model: nn.Module, training: Training) -> Optimizer:
    """The training's optimiser over all parameters, with torch's fused kernels."""
    if training.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=training.lr,
                                weight_decay=training.weight_decay, fused=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=training.momentum,
                                weight_decay=training.weight_decay, fused=True)
    if training.momentum:
        # the fused kernel takes momentum of all parameters or of none, and a network may leave
        # layers out of a step; from zero, the first step is what it is without
        for parameter in model.parameters():
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def schedule_for(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The training's learning rate, to be stepped after every one
    of its epochs x ``steps`` batches."""
    return SCHEDULES[training.schedule](optimizer, training, steps)


class Average:
    """The moving average of a network's weights: a <- decay * a + (1 - decay) * w after every step,
    from the weights that it starts with (Tarvainen and Valpola 2017, "Mean teachers", equation 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = [one.detach().clone() for one in model.parameters()]

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take in the weights of now."""
        torch._foreach_lerp_(self.weights, list(model.parameters()), 1 - self.decay)

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Put the average into the network, in place."""
        torch._foreach_copy_(list(model.parameters()), self.weights)

    def load(self, weights: Sequence[torch.Tensor]) -> None:
        """Continue from the average of another time, which was ``weights``."""
        torch._foreach_copy_(self.weights, [one.to(self.weights[0].device) for one in weights])


def learning_rates(training: Training, steps: int, first: int | None = None) -> list[float]:
    """The learning rate of every step of a training with ``steps`` batches an epoch, or of the
    ``first`` few."""
    weight = nn.Linear(1, 1)
    optimizer = optimizer_for(weight, training)
    schedule = schedule_for(optimizer, training, steps)
    rates = []
    for step in range(training.epochs * steps)[:first]:
        if step:
            optimizer.step()
            schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates
