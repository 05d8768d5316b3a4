"""Several processes that train one network: torchrun starts them,
each takes its share of every batch.

    torchrun --nproc-per-node 4 cifar/pipeline.py --arch resnet110 --dataset cifar10

All of them walk through the same stages; the first (rank 0) alone writes and speaks.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import nn

from kesi.system.errors import KesiError, UsageError, first_line

# A rank that waits longer than this for the others gives up, and torchrun ends the job.
PATIENCE = timedelta(minutes=30)


def _said() -> tuple[int, int]:
    """(rank, number of processes) that torchrun says in the environment;
    (0, 1) where it started none.

    Raises UsageError where that is half of what a process needs to find the others.
    """
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise UsageError(
            f"RANK and WORLD_SIZE in the environment are no numbers ({error})") from error
    if world < 2:
        return 0, 1
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if absent or not 0 <= rank < world:
        what = f"{', '.join(absent)} is not set" if absent else f"RANK is {rank}"
        raise UsageError(f"WORLD_SIZE in the environment says that this is one of {world} "
                         f"processes, but {what}: start it with torchrun, or unset WORLD_SIZE")
    return rank, world


def own_device(device: str) -> str:
    """The device of this process: where torchrun started several on GPUs, each has its own."""
    if _said()[1] < 2 or torch.device(device).type != "cuda":
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def start(device: str) -> str:
    """Join the other processes if torchrun started several; returns this process's device.

    Raises KesiError where they do not come together.
    """
    if _said()[1] < 2 or dist.is_initialized():
        return device
    device = own_device(device)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE,
                                device_id=torch.device(device) if cuda else None)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise KesiError(
            f"the processes do not find one another at {place}: {first_line(error)}") from error
    return device


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; right from the start, also before start()."""
    return dist.get_rank() if dist.is_initialized() else _said()[0]


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here: what rank 0 wrote before is there for all
    of them afterwards."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block alone, then the others, who find there what it wrote."""
    if not is_main():
        barrier()
    yield
    # not after an error: it ends this process, and torchrun then ends those that wait
    if is_main():
        barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place, of a tensor of the same shape in each."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean(values: Sequence[float]) -> list[float]:
    """The means over all processes, of numbers that each has measured: so that all go on alike."""
    if not dist.is_initialized():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return (total(torch.tensor(values, dtype=torch.float64, device=device)) / world()).tolist()


def share_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of rank 0, which are those that are saved."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Put (n, C) parts together, of which rank r holds rows r, r + world, ...
    of ``count``: (count, C)."""
    if not dist.is_initialized():
        return rows
    longest = -(-count // world())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[:len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batch of all processes, on a CPU (torch's own runs on GPUs only).

    Mean and biased variance of all N x H x W values of a channel normalise; the unbiased variance
    goes into the running statistics, as in torch.nn.BatchNorm2d.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        shape = [1, -1] + [1] * (values.dim() - 2)
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = dist_nn.all_reduce(torch.cat([values.sum(axes), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = dist_nn.all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:  # the plain mean of all batches
                share = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale.view(shape)).to(input.dtype)
        scale = self.weight * scale
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


@contextlib.contextmanager
def synchronised_norms(model: nn.Module, wanted: bool) -> Iterator[None]:
    """While open, the batch norms of ``model`` see the whole batch of all processes,
    if that is wanted."""
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kinds = [type(module) for module in norms]
    if wanted and world() > 1:
        for module in norms:
            where = module.weight if module.affine else module.running_mean
            module.__class__ = nn.SyncBatchNorm if where.is_cuda else _SyncBatchNorm
            module.process_group = None  # torch's looks for it: all processes
    try:
        yield
    finally:
        for module, kind in zip(norms, kinds, strict=True):
            module.__class__ = kind
            vars(module).pop("process_group", None)
