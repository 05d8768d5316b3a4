"""How pruned networks are retrained: the paper's way, and those to compare it with."""

from dataclasses import dataclass

from kesi.method.schedules import Training


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
