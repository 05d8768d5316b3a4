"""Loss and accuracy between checkpoints, and around one.

Along the straight line from each network to the next one, which have to be of one shape:
weight-pruned networks and their baseline are, filter-pruned ones of different rounds are not. And
with --plane in two random directions around a network, each filter of a direction scaled to the
norm of the network's own (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section
4); biases and batch norms stay, and so do the zeros of a weight-pruned network.

The running statistics of batch norm are interpolated as the weights are. They then belong to no
network exactly: the activations of averaged weights are not the average of activations, and a
barrier may be nothing but that. --recompute-bn estimates them anew at every point from training
images, as Garipov et al. 2018 ("Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs") and
Izmailov et al. 2018 ("Averaging Weights Leads to Wider Optima and Better Generalization") do.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from kesi.data import Dataset, Split, TrainBatches
from kesi.method.training import evaluate
from kesi.system.errors import UsageError
from kesi.system.execution import full_precision

BN_IMAGES = 2048  # training images that running statistics are estimated from

BN_BATCH = 256

MOST = 1000  # points of a line or of a side of a plane, and its radius


@dataclass(frozen=True)
class LinePoint:
    """A network (1 - position) * a + position * b: mean cross-entropy, accuracy in percent."""

    position: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class PlanePoint:
    """The network at x times the first and y times the second direction:
    cross-entropy, accuracy in percent."""

    x: float
    y: float
    loss: float
    accuracy: float


def line(a: nn.Module, b: nn.Module, dataset: Dataset, split: Split, points: int = 11, *,
         recompute_bn: bool = False, device: str = "cpu") -> list[LinePoint]:
    """Loss and accuracy on ``split`` at ``points`` equal steps from ``a`` to ``b``,
    both ends included.

    The networks stay as they are. ``recompute_bn``: estimate batch norm's statistics at every
    point, the ends too, from training images of ``dataset``. Raises UsageError for networks of
    different shapes, fewer than two points, or more than MOST.
    """
    check_points(points)
    first, last = ({name: value.detach().cpu() for name, value in model.state_dict().items()}
                   for model in (a, b))
    same_shape(first, last)
    model, found = copy.deepcopy(a), []
    for step in range(points):
        position = step / (points - 1)
        model.load_state_dict({name: torch.lerp(value, last[name], position)
                               if value.is_floating_point() else value
                               for name, value in first.items()})
        found.append(LinePoint(position, *_measure(model, dataset, split, recompute_bn, device)))
    return found


def plane(model: nn.Module, dataset: Dataset, split: Split, radius: float = 1.0, grid: int = 9, *,
          seed: int = 0, recompute_bn: bool = False, device: str = "cpu") -> list[PlanePoint]:
    """Loss and accuracy on ``split`` on a grid x grid square around a network,
    row by row from (-r, -r).

    1 is a step as long as the network's own filters. ``seed`` draws the directions, see
    directions(). Raises UsageError for a radius that is not above 0, a grid below 2, or either
    above MOST.
    """
    check_square(radius, grid)
    centre = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    across, up = directions(model, seed)
    model, found = copy.deepcopy(model), []
    steps = [radius * (2 * step / (grid - 1) - 1) for step in range(grid)]
    for y in steps:
        for x in steps:
            model.load_state_dict({name: value + x * across[name] + y * up[name] if name in across
                                   else value for name, value in centre.items()})
            found.append(PlanePoint(x, y, *_measure(model, dataset, split, recompute_bn, device)))
    return found


def directions(model: nn.Module,
               seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two random directions in the weights of all convolutions and linear layers,
    by parameter name.

    Normal draws, each filter (each row of a linear layer) scaled to the norm of the network's.
    Where a filter's weight is zero the direction is, so that a pruned network stays one.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {name: value.detach().cpu() for name, value in model.named_parameters()
               if value.dim() > 1}
    found: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        drawn = {name: torch.randn(value.shape, generator=generator) * (value != 0)
                 for name, value in weights.items()}
        found.append(
            {name: one * (_filter_norms(weights[name]) / _filter_norms(one).clamp_min(1e-12))
             for name, one in drawn.items()})
    return found[0], found[1]


def _filter_norms(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


def recompute_statistics(model: nn.Module, dataset: Dataset, device: str = "cpu") -> None:
    """Set batch norm's running statistics to those over BN_IMAGES training images,
    augmented as in training.

    Always the same images; each batch counts alike.
    """
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    images = dataset.train.spread(BN_IMAGES)
    chosen = replace(dataset, train=images)
    before = [(norm.momentum, norm.training) for norm in norms]
    model.to(device=device, memory_format=torch.channels_last).eval()  # dropout stays off
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean over batches
        norm.train()
    with torch.no_grad(), full_precision():
        for batch, _ in TrainBatches(chosen, min(BN_BATCH, len(images)), seed=0,
                                     device=device).epoch(1):
            model(batch)
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)


def _measure(model: nn.Module, dataset: Dataset, split: Split, recompute_bn: bool,
             device: str) -> tuple[float, float]:
    if recompute_bn:
        recompute_statistics(model, dataset, device)
    return evaluate(model, dataset, split, device)


def check_points(points: int) -> None:
    if not 2 <= points <= MOST:
        raise UsageError(f"a line has at least 2 points and at most {MOST}, not {points}")


def check_square(radius: float, grid: int) -> None:
    if not 0 < radius <= MOST or not 2 <= grid <= MOST:
        raise UsageError(f"a plane has a radius above 0 and a grid of at least 2, both at most "
                         f"{MOST}, not {radius} and {grid}")


def same_shape(first: dict[str, torch.Tensor], last: dict[str, torch.Tensor]) -> None:
    for name in dict.fromkeys([*first, *last]):
        shapes = [tuple(state[name].shape) if name in state else None for state in (first, last)]
        if shapes[0] != shapes[1]:
            if None in shapes:
                raise UsageError("there is no line between networks of different architectures "
                                 f"(only one has {name})")
            raise UsageError(
                f"there is no line between networks of different shapes ({name} is {shapes[0]} and "
                f"{shapes[1]}): filter pruning makes networks smaller, weight pruning does not")
