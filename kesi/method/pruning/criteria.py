"""What matters least: scores of filters and of single weights, of which the smallest go.

A criterion is a function ``(network, layers, evidence) -> {layer: scores}``: ``layers`` are names
of convolutions, ``evidence`` the training images for those that look at them. A filter criterion
gives one score a filter, (out_channels,); a weight criterion one a weight, in the weight's shape.
To add one, write the function and its entry in FILTER_CRITERIA or WEIGHT_CRITERIA.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kesi import models
from kesi.data import Dataset, Split, eval_batches
from kesi.system.errors import KesiError, PruningFailed, UsageError, check_choice, first_line
from kesi.system.seeds import generator

Criterion = Callable[[nn.Module, Sequence[str], "Evidence"], dict[str, Tensor]]

IMAGES = 1024  # that a criterion looks at

BATCH = 64  # of them at once: a backward pass keeps 21 MB of a photograph in ResNet-18


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at besides the weights: training images, the run's seed, the round.

    ``dataset``: the images, or a function that loads them when they are asked for; then they stand
    in ``looked_at``.
    """

    dataset: Dataset | Callable[[], Dataset] | None = None
    seed: int = 0
    round: int = 1
    device: str = "cpu"
    looked_at: list[Dataset] = field(default_factory=list, compare=False)

    def images(self) -> Dataset:
        """Raises UsageError where there are no images to look at."""
        if self.dataset is None:
            raise UsageError("this criterion looks at training images, and there are none: name "
                             "them with --dataset")
        found = self.dataset() if callable(self.dataset) else self.dataset
        self.looked_at[:] = [found]
        return found


def scores_of(criterion: Criterion, network: nn.Module, layers: Sequence[str],
              evidence: Evidence, single: bool = False) -> dict[str, Tensor]:
    """What a criterion says of filters, or of ``single`` weights, by layer.

    Raises PruningFailed where it fails, leaves one out, or gives scores that are no numbers, which
    have no order.
    """
    try:
        scores = criterion(network, layers, evidence)
    except (KesiError, MemoryError):
        raise
    except Exception as error:  # somebody else's code: anything
        raise PruningFailed(f"the criterion fails in round {evidence.round}: "
                            f"{type(error).__name__}: {first_line(error)}") from error
    for layer in layers:
        shape = weight(network, layer).shape
        wanted, given = shape if single else shape[:1], getattr(scores.get(layer), "shape", None)
        if given != wanted:
            raise PruningFailed(
                f"the criterion gives {layer} "
                f"{'nothing' if given is None else f'scores of shape {tuple(given)}'}: "
                f"its {'weights' if single else 'filters'} take {tuple(wanted)}")
        if bool(scores[layer].isnan().any()):
            raise PruningFailed(f"the criterion gives {layer} scores that are no numbers (NaN): "
                                "nothing can be pruned by them")
    return scores


def l1(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """The sum of the absolute weights of a filter (Li et al. 2017, section 3.1): the paper's."""
    return {layer: _sums(weight(network, layer).abs()) for layer in layers}


def l2(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """The Euclidean norm of a filter's weights (He et al.
    2018, "Soft Filter Pruning", section 3.2)."""
    return {layer: _sums(weight(network, layer).square()).sqrt() for layer in layers}


def batch_norm(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """The absolute scale that batch norm gives a filter's output (Liu et al.
    2017, "Network Slimming").

    Raises UsageError where no batch norm with a scale reads a convolution.
    """
    norms = _norms(network)
    for layer in layers:
        if layer not in norms or network.get_submodule(norms[layer]).weight is None:
            raise UsageError(
                f"no batch norm is known to scale the filters of {layer}: use another criterion")
    return {layer: network.get_submodule(norms[layer]).weight.detach().abs() for layer in layers}


def fpgm(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """The sum of a filter's distances to all filters of its layer:
    those near the geometric median go first.

    He et al. 2019, "Filter Pruning via Geometric Median", equation 7.
    """
    # (filters, inputs * kh * kw)
    flat = {layer: weight(network, layer).flatten(1) for layer in layers}
    return {layer: torch.cdist(filters, filters).sum(dim=1) for layer, filters in flat.items()}


def taylor(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """How much the loss changes without a filter's output, to first order, squared.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8: the
    square of (sum of g * w), with g the gradient of the cross-entropy over a batch, averaged over
    batches of training images of all classes. As there, w are scale and shift of the batch norm
    that reads a convolution, which go with its filters, and its own weights and bias where there
    is none.
    """
    dataset = evidence.images()
    split = dataset.train.spread(IMAGES)  # by class, if the images are
    order = torch.randperm(len(split), generator=_draw(evidence, "images"))
    return _taylor(network, layers, dataset, split.subset(order), evidence.device)


def random(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """Random numbers, one a filter: the control of every criterion."""
    return {layer: torch.rand(len(weight(network, layer)), generator=_draw(evidence, layer))
            for layer in layers}


def magnitude(network: nn.Module, layers: Sequence[str], evidence: Evidence) -> dict[str, Tensor]:
    """The absolute value of a weight (Han et al. 2015): the paper's."""
    return {layer: weight(network, layer).abs() for layer in layers}


def random_weights(network: nn.Module, layers: Sequence[str],
                   evidence: Evidence) -> dict[str, Tensor]:
    """Random numbers, one a weight."""
    return {layer: torch.rand(weight(network, layer).shape, generator=_draw(evidence, layer))
            for layer in layers}


FILTER_CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "batch-norm": batch_norm, "fpgm": fpgm,
                                         "taylor": taylor, "random": random}

WEIGHT_CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random_weights}

CRITERIA = {"filter": FILTER_CRITERIA, "weight": WEIGHT_CRITERIA}


def criterion_of(method: str, name: str) -> Criterion:
    """The criterion of a method by name. Raises UsageError where there is none of that name."""
    if callable(name):
        raise UsageError(f"a criterion is taken by its name: enter it in {method.upper()}_CRITERIA "
                         f"of kesi.method.pruning.criteria, and give that, not {name!r:.60}")
    check_choice("criterion", name, CRITERIA[method], f" of {method} pruning")
    return CRITERIA[method][name]


def weight(network: nn.Module, layer: str) -> Tensor:
    """The weights of a convolution, (out_channels, in_channels / groups, kh, kw),
    without gradients."""
    return network.get_submodule(layer).weight.detach()


def _sums(values: Tensor) -> Tensor:
    """The sum over all weights of each filter, or of each neuron of a linear layer: (filters,)."""
    return values.sum(dim=tuple(range(1, values.dim())))


def _draw(evidence: Evidence, layer: str) -> torch.Generator:
    return generator(evidence.seed, "criterion", evidence.round, layer)


def _taylor(network: nn.Module, layers: Sequence[str], dataset: Dataset, split: Split,
            device: str) -> dict[str, Tensor]:
    """The mean over batches of (sum of g * w)^2 by layer, (filters,), of a network in eval mode,
    which stays as and where it is."""
    norms, means = _norms(network), {}
    network = copy.deepcopy(network).to(device).eval()
    scaled = {layer: [one for one in (module.weight, module.bias) if one is not None]
              for layer in layers for module in [_scaling(network, layer, norms)]}
    for values in scaled.values():
        for one in values:
            one.requires_grad_()
    with torch.enable_grad():
        for images, labels in eval_batches(dataset, split, device, BATCH):
            loss = F.cross_entropy(network(images), labels)
            gradients = iter(torch.autograd.grad(loss, [one for values in scaled.values()
                                                        for one in values]))
            for layer, values in scaled.items():
                change = sum((next(gradients) * one.detach()).reshape(len(one), -1).sum(1)
                             for one in values)
                share = len(labels) / len(split)
                means[layer] = means.get(layer, 0) + share * change.square().cpu()
    return means


def _scaling(network: nn.Module, layer: str, norms: Mapping[str, str]) -> nn.Module:
    """What scales a convolution's output: its batch norm, or itself where none has weights."""
    norm = network.get_submodule(norms[layer]) if layer in norms else None
    return network.get_submodule(layer) if getattr(norm, "weight", None) is None else norm


def _norms(network: nn.Module) -> dict[str, str]:
    """The batch norms that read a convolution, by its name."""
    if isinstance(network, models.Network):
        return dict(network.conv_bn_pairs()) | {one.conv: one.bn for one in network.prunable()}
    entry = models.ARCHITECTURES.get(getattr(network, "arch", None))  # one's own
    return dict(getattr(entry and entry.graph, "norms", ()))
