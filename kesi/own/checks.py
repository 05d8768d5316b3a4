"""What of a network of one's own is refused before any training, in one line that says why."""

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from kesi.checkpoints import fields
from kesi.data import Dataset
from kesi.data.split import Size, height_width
from kesi.method.sizes import chance, channels_of
from kesi.method.training import predict
from kesi.system.describe import own_digest
from kesi.system.errors import UsageError
from kesi.system.source import constant

MARGIN = 5.0  # points of accuracy that a baseline may be worse than its owner says


def check_weights(network: nn.Module) -> None:
    """Raise UsageError for a network whose weights cannot be pruned, trained and stored by name."""
    for name, module in network.named_modules():
        what = f"its layer {name or type(module).__name__!r}"
        if (isinstance(module, nn.modules.lazy.LazyModuleMixin)
                and module.has_uninitialized_params()):
            raise UsageError(f"{what} is lazy and has no weights yet: run the network on a batch "
                             "of images first")
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            raise UsageError(f"{what} is a 3-D convolution, and only networks for images are "
                             f"compressed")
        if any(one.dim() == 5 for one in (*module.parameters(recurse=False),
                                          *module.buffers(recurse=False))):
            raise UsageError(f"{what} has five dimensions, and images are in channels_last layout, "
                             "which has four: reshape it, such as by flatten")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UsageError(f"{what} has no running statistics (track_running_stats=False): what "
                             f"it answers to an image would depend on the others of its batch")
        if (parametrize.is_parametrized(module)
                or {"weight_orig", "weight_g"} & module._parameters.keys()):
            raise UsageError(f"{what} computes its weight from others (a parametrization, weight "
                             f"norm, torch's pruning): remove that first, so that the weight stays")
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"its {name} is a {type(value).__name__}, and a checkpoint holds "
                             f"tensors: keep it in a buffer instead of get_extra_state()")
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_complex() or value.is_floating_point() and value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise UsageError(f"its {name} is {kind}: give the network in single precision, "
                             f"network.float()")
    owners: dict[int, tuple[str, nn.Module]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        module = network.get_submodule(name.rpartition(".")[0])
        first, owner = owners.setdefault(value.untyped_storage().data_ptr(), (name, module))
        if owner is not module and value.numel():
            raise UsageError(f"{first} and {name} are the same weights: networks with tied weights "
                             f"are not compressed")
    if not any(value.requires_grad for value in network.parameters()):
        raise UsageError(
            "all parameters are frozen (requires_grad is False): nothing can be trained")


def _hidden(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a network that its state_dict leaves out, by name."""
    kept = {id(value) for value in network.state_dict(keep_vars=True).values()}
    for prefix, module in network.named_modules():
        loose = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        loose |= {name: value for name, value in vars(module).items() if name not in TORCHS}
        for name, value in loose.items():
            for one in _tensors(value):
                if id(one) not in kept:  # a recurrent layer has its weights in a list, too
                    yield f"{prefix}.{name}".lstrip("."), one


# where a module keeps what its state_dict holds, and what hooks know
TORCHS = {name for name in vars(nn.Module()) if name.startswith("_")}


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors and arrays in a value, also in lists and dictionaries."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield torch.tensor(value.tolist())
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def computation(network: nn.Module) -> dict[str, object]:
    """What a network is besides its weights, by the names of its modules:
    their kinds and numbers, and the code of those that are somebody's own."""
    found: dict[str, object] = {}
    for prefix, module in network.named_modules():
        found[prefix] = [type(module).__qualname__, own_digest(type(module))]
        for name, value in vars(module).items():
            if constant(value) and name != "training":
                found[f"{prefix}.{name}"] = repr(value)
            elif isinstance(value, (FunctionType, BuiltinFunctionType)):  # an activation of torch's
                found[f"{prefix}.{name}"] = value.__qualname__
    # to four digits: another machine may compute them otherwise
    return found | {f"{name}, {place}": f"{float(value.to(torch.complex128).abs().sum()):.4g}"
                    for place, (name, value) in enumerate(_hidden(network))}


def check_whole(network: nn.Module) -> None:
    """Raise UsageError where a network that was handed over is more than its state_dict.

    Another process could not build it again from a checkpoint.
    """
    for name, _ in _hidden(network):
        raise UsageError(f"its {name} is not in the state_dict, and would be lost in a checkpoint: "
                         f"register it as a persistent buffer, or give a function that builds the "
                         f"network with the same {name} each time")


@torch.no_grad()
def check_rebuilt(first: nn.Module, second: nn.Module, image_size: Size) -> None:
    """Raise UsageError where two networks of a factory differ by more than their state_dict."""
    try:
        second.load_state_dict(first.state_dict())
    except RuntimeError as error:
        raise UsageError("two networks that the function builds have different weights by name or "
                         "shape: it has to build the same network each time") from error
    others = list(_hidden(second))
    for place, (name, value) in enumerate(_hidden(first)):
        known = others[place] if place < len(others) else ("", value)
        if known[0] != name or not torch.equal(value, known[1]):
            raise UsageError(f"its {name} is not in the state_dict and is another one each time "
                             "the network is built: register it as a persistent buffer")
    images = torch.randn(2, channels_of(first), *height_width(image_size))
    one, two = (network.eval()(images.clone()) for network in (first, second))
    if isinstance(one, torch.Tensor) and not torch.equal(one, two):
        raise UsageError("two networks that the function builds answer differently with the same "
                         "weights: what they compute has to follow from their state_dict")


def check_baseline(network: nn.Module, dataset: Dataset, said: float | None, device: str) -> None:
    """Raise UsageError where a trained network does much worse on the test images than it should.

    ``said``: its accuracy in percent as its owner knows it; without, it has to be above chance.
    The message names the likeliest cause.
    """
    if said is not None and not (fields.number(said) and 1 < said <= 100):
        raise UsageError(f"accuracy is in percent, above 1 and up to 100, not {said!r:.60}")
    labels = dataset.test.labels
    answers = predict(network, dataset, dataset.test, device).argmax(1).cpu()
    found = 100 * float((answers == labels).float().mean())
    if said is None:
        share = chance(labels) / 100
        least = 100 * (share + 2 * (share * (1 - share) / len(labels)) ** 0.5)
        expected = f"which is chance ({100 * share:.2f} %)"
    else:
        least, expected = said - MARGIN, f"not the {said:g} % that accuracy= says"
    if found > least:
        return
    counts = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    counts.index_put_((answers, labels), torch.ones_like(labels), accumulate=True)
    renamed = 100 * int(counts.max(1).values.sum()) / len(labels)  # with the best name an answer
    if renamed > max(50.0, 2 * found):
        cause = (f"with its classes in another order it would be {renamed:.2f} %: number the "
                 "labels as it was trained with")
    else:
        mean, std = (", ".join(f"{value:.3f}" for value in numbers)
                     for numbers in (dataset.mean, dataset.std))
        cause = (f"images reach it scaled to 0..1, less ({mean}), divided by ({std}): if it was "
                 f"trained with others, give mean= and std= (0 and 1 for plain 0..1)")
    raise UsageError(f"the trained network is right on {found:.2f} % of the test images, "
                     f"{expected}; {cause}")
