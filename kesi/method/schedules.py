"""How a training runs: optimiser and learning rate, step by step."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import lr_scheduler

from kesi.system.errors import UsageError


@dataclass(frozen=True)
class Training:
    """How one training runs. ``lr`` is the peak of a one-cycle schedule and the start of the others.

    ``schedule``: "multistep" (times ``gamma`` after each epoch of ``milestones``), "constant", or "onecycle"
    (cosine from lr / div_factor up to lr over the share ``warmup`` of all steps, then down to the start
    / final_div_factor, stepped every batch; momentum is cycled against it as torch does by default).
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

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        if not self.lr > 0:
            raise UsageError(f"the learning rate must be above 0, not {self.lr}")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise UsageError(f"weight decay must not be negative (is {self.weight_decay}) and momentum must lie "
                             f"in [0, 1) (is {self.momentum})")
        if not (0 < self.warmup < 1 and self.div_factor > 0 and self.final_div_factor > 0):
            raise UsageError(f"the warm-up must be a share between 0 and 1, not {self.warmup}, and "
                             "what divides the learning rate above 0")
        if self.schedule not in ("multistep", "constant", "onecycle") or self.optimizer not in ("sgd", "adam"):
            raise UsageError(f"unknown schedule {self.schedule!r} or optimizer {self.optimizer!r}")

    def scaled(self, factor: float) -> "Training":
        """The same stage with its epochs, and the milestones in them, multiplied by ``factor``."""
        return replace(self, epochs=max(1, round(self.epochs * factor)),
                       milestones=tuple(max(1, round(epoch * factor)) for epoch in self.milestones))


def optimizer_for(model: nn.Module, stage: Training) -> torch.optim.Optimizer:
    """The stage's optimiser over all parameters, with torch's fused kernels."""
    if stage.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=stage.lr, weight_decay=stage.weight_decay, fused=True)
    return torch.optim.SGD(model.parameters(), lr=stage.lr, momentum=stage.momentum,
                           weight_decay=stage.weight_decay, fused=True)


def schedule_for(optimizer: torch.optim.Optimizer, stage: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The stage's learning rate, to be stepped after every one of its epochs x ``steps`` batches."""
    if stage.schedule != "onecycle":
        milestones = [epoch * steps for epoch in stage.milestones] if stage.schedule == "multistep" else []
        return lr_scheduler.MultiStepLR(optimizer, milestones, stage.gamma)
    total = stage.epochs * steps
    # torch divides by warmup * total - 1, the last step of the warm-up counted from 0
    warmup = stage.warmup * (1 - 1e-6) if math.isclose(stage.warmup * total, 1) else stage.warmup
    return lr_scheduler.OneCycleLR(optimizer, max_lr=stage.lr, total_steps=total, pct_start=warmup,
                                   anneal_strategy="cos", div_factor=stage.div_factor,
                                   final_div_factor=stage.final_div_factor)


def learning_rates(stage: Training, steps: int) -> list[float]:
    """The learning rate of every step of a stage with ``steps`` batches an epoch."""
    weight = nn.Linear(1, 1)
    optimizer = optimizer_for(weight, stage)
    schedule = schedule_for(optimizer, stage, steps)
    rates = []
    for step in range(stage.epochs * steps):
        if step:
            optimizer.step()
            schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates
