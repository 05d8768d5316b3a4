"""How long networks take, side by side: their calls alternate,
so that a busy machine is busy for all alike."""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import nn

from kesi.data.split import Size, height_width

BATCHES = (1, 128)

SECONDS = 1.5  # for each of the networks and batch sizes; FEWEST calls may take longer, MOST less

FEWEST, MOST = 3, 200

MEDIAN = f"the median of {FEWEST} to {MOST} calls"  # what a latency is, for people


def alternated(calls: Sequence[Callable[[], object]],
               of: Callable[[list[float]], float] = statistics.median) -> list[float]:
    """The median time of each call in seconds, or what ``of`` takes of its times;
    they are made in turn, after one round that does not count."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    until = perf_counter() + SECONDS * len(calls)
    while len(times[-1]) < FEWEST or (len(times[-1]) < MOST and perf_counter() < until):
        for call, own in zip(calls, times, strict=True):
            started = perf_counter()
            call()
            own.append(perf_counter() - started)
    return [of(own) for own in times]


def eager(model: nn.Module, images: torch.Tensor, device: str = "cpu") -> Callable[[], object]:
    """A call of a network on images (B, 3, H, W) in torch, finished when it returns."""
    model = model.to(device=device, memory_format=torch.channels_last).eval()
    images = images.to(device=device, memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode():
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    return call


def noise(batch: int, image_size: Size, channels: int) -> torch.Tensor:
    """Images for a clock, which does not mind what they show: float32 (batch, channels, H, W)."""
    return torch.rand((batch, channels, *height_width(image_size)),
                      generator=torch.Generator().manual_seed(0))
