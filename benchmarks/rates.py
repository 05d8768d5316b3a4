"""How much of the machine a training step uses:
its model FLOPs a second over those of a large matrix product.

Model FLOPs: 2 for every MAC of the forward pass (kesi.method.sizes), times 3 with the backward
pass.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

import models
from benchmarks.sides import CLASSES, recipe_of, size_of, synchronize
from kesi.method.objectives import CrossEntropy
from kesi.method.recipes import OWN
from kesi.method.schedules import optimizer_for
from kesi.method.sizes import macs
from kesi.system import execution

NETWORKS = ("resnet56", "resnet110", "preresnet164", "wrn-16-8", "vgg16", "resnet18", "resnet34")
# of 128, so that a step takes seconds at most
CPU_BATCH = {"wrn-16-8": 32, "resnet18": 16, "resnet34": 16}
WARM_UP, FEWEST = 5, 3


def median_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median time of a call, after a warm-up."""
    for _ in range(WARM_UP if device.type == "cuda" else 2):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < FEWEST or time.perf_counter() < until:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOPs a second of a large product, the best of what torch has.

    A CPU has two libraries: matmul's, and oneDNN's, which a 1x1 convolution gets at; either may be
    the faster.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
    calls: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu":
        images = a.view(1, 32, size // 32, size).permute(0, 3, 1, 2)  # channels_last
        calls.append(lambda: torch.conv2d(images, b.view(size, size, 1, 1)))
    with torch.no_grad():
        return max(2 * size**3 / median_seconds(call, device, seconds / len(calls))
                   for call in calls)


def shares(archs: Sequence[str], device: str, seconds: float) -> list[dict]:
    """For each network, unpruned: seconds a step,
    and its share of the matmul rate measured just before it."""
    where = torch.device(device)
    found = []
    for arch in archs:
        size = size_of(arch)
        batch = 128 if where.type == "cuda" else CPU_BATCH.get(arch, 128)
        precision = execution.set_up(device, "auto", deterministic=False)
        torch.manual_seed(0)
        model = models.create(arch, CLASSES).to(device=where,
                                                memory_format=torch.channels_last).train()
        step = execution.make_step(model, CrossEntropy(), device, precision, "auto", 1)
        optimizer = optimizer_for(model, recipe_of(arch).trainings[OWN])
        images = torch.randn((batch, 3, size, size)).to(device=where,
                                                        memory_format=torch.channels_last)
        labels = torch.randint(0, CLASSES, (batch,)).to(where)

        def advance(step=step, optimizer=optimizer, images=images, labels=labels) -> None:
            step(images, labels)
            optimizer.step()

        rate = matmul_flops(where, torch.bfloat16 if precision == "bf16" else torch.float32,
                            seconds / 2)
        took = median_seconds(advance, where, seconds)
        flops = 2 * 3 * macs(model, size) * batch / took
        found.append({"arch": arch,
                      "batch": batch, "size": size, "precision": precision, "step_seconds": took,
                      "model_flops": flops, "matmul_flops": rate, "share": flops / rate})
    return found
