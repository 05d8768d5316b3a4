"""The method: train, prune, retrain, repeat, distil (section 3 of the paper).
Nothing here opens a file.

How a named training is carried out comes from outside: ``train(name, start, training, objective)``
takes a snapshot and gives the trained one. in_memory() is the plain way; kesi.runs.pipeline has one
in a folder, where every training can be interrupted and continued.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from kesi import models
from kesi.data import Dataset
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import CrossEntropy, Objective
from kesi.method.pruning import prune_filters, prune_weights
from kesi.method.pruning.allocation import Ranked
from kesi.method.pruning.criteria import Evidence, criterion_of
from kesi.method.recipes import Amount, Recipe
from kesi.method.schedules import Training
from kesi.method.snapshot import BASELINE, KESI, Pruned, Snapshot, chain
from kesi.method.training import Options, Progress, fit
from kesi.system.seeds import derive


class Train(Protocol):
    """Trains a snapshot under a name, and gives the one that comes out;
    the one given stays as it is."""

    def __call__(self, name: str, start: Snapshot, training: Training,
                 objective: Objective = CrossEntropy()) -> Snapshot: ...


def kesi(recipe: Recipe, dataset: Dataset, train: Train, seed: int = 0) -> list[Snapshot]:
    """All five steps: the baseline, the snapshots of every round, and the distilled network last.
    """
    start = draw(recipe.arch, dataset.num_classes, seed)
    baseline = train(BASELINE, start, recipe.baseline, recipe.objective)
    snapshots = iterate(recipe, baseline, train, Evidence(dataset, seed))
    return [*snapshots, distil(recipe, snapshots, train)]


def draw(arch: str, num_classes: int, seed: int, cfg: Sequence | None = None) -> Snapshot:
    """Before step 1: a network of the widths ``cfg`` (default: unpruned), drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return Snapshot("start", models.create(arch, num_classes, cfg))


def iterate(recipe: Recipe, baseline: Snapshot, train: Train, evidence: Evidence = Evidence(),
            retraining: str | None = None) -> list[Snapshot]:
    """Steps 2 to 4: the baseline, and the snapshot that follows from each round of pruning.

    ``retraining``: a name in the recipe's (default: the first, whose snapshots teach).
    """
    snapshots, retraining = [baseline], retraining or next(iter(recipe.retrainings))
    names = chain(retraining, len(recipe.rounds))[1:]
    for number, (name, amount) in enumerate(zip(names, recipe.rounds, strict=True), start=1):
        pruned = prune(snapshots[-1], recipe, amount, number, evidence)
        snapshots.append(train(name, pruned, recipe.retrainings[retraining], recipe.objective))
    return snapshots


def distil(recipe: Recipe, snapshots: Sequence[Snapshot], train: Train,
           device: str = "cpu", unlabelled: bool = False) -> Snapshot:
    """Step 5: the ensemble of all snapshots teaches the last one,
    ``unlabelled``: also on images without labels."""
    objective = Distillation(SnapshotEnsemble(snapshots, device), recipe.loss, unlabelled)
    return train(KESI, snapshots[-1], recipe.distillation, objective)


def prune(snapshot: Snapshot, recipe: Recipe, amount: Amount, number: int,
          evidence: Evidence = Evidence()) -> Pruned:
    """Step 2: a snapshot without what scores lowest; the one given stays as it is.

    ``amount``: the rates of the widths, a Ranked target that they follow from, or the cumulative
    share of zero weights; ``number``: the round. Raises ValueError for an amount that does not fit,
    or filters to be pruned under masks.
    """
    criterion = criterion_of(recipe.method, recipe.criterion)
    asked = replace(evidence, round=number, looked_at=[])
    with torch.random.fork_rng(devices=[]):  # one may draw without a generator of its own
        seed = derive(evidence.seed, "criterion", number)
        torch.manual_seed(seed)
        if recipe.method == "filter":
            if snapshot.masks is not None:
                raise ValueError("its weights were pruned, and filter pruning does not keep masks")
            if isinstance(amount, Ranked):
                amount = amount.rates(snapshot.network, criterion, asked)
                torch.manual_seed(seed)  # it is asked again, for the same scores
            network, masks = prune_filters(snapshot.network, amount, criterion, asked), None
        else:
            copied = snapshot.copy(snapshot.name)
            network = copied.network
            masks = prune_weights(network, amount, copied.masks, criterion, asked)
    return Pruned(f"pruned-{number}", network, masks, snapshot, recipe.method,
                  recipe.describe()["criterion"], amount, number,
                  asked.looked_at[0].train.digest if asked.looked_at else None)


def in_memory(dataset: Dataset, seed: int = 0, options: Options = Options(),
              on_epoch: Callable[[Progress], None] | None = None) -> Train:
    """Trainings that leave nothing on the disk: fit() on a copy, ``on_epoch`` told of each epoch.
    """

    def train(name: str, start: Snapshot, training: Training,
              objective: Objective = CrossEntropy()) -> Snapshot:
        trained = start.copy(name)
        # another order of the images in every training: equal orders would make the snapshots alike
        fit(trained.network, dataset, training, seed=derive(seed, name), objective=objective,
            masks=trained.masks, options=options, on_epoch=on_epoch, label=name)
        # laid out as a checkpoint is loaded: sums over weights then come out the same to the last
        # bit
        trained.network.cpu().eval().to(memory_format=torch.contiguous_format)
        return trained

    return train
