"""How fast batches come, without any training:
KESI's batched augmentation against torchvision's transforms.

    python -m benchmarks.input                    32 px: pad, crop, flip, normalise
    python -m benchmarks.input --size 224         RandomResizedCrop of 64-px images, flip, normalise
    python -m benchmarks.input --size 224 --stored 256     the same of photographs, stored at 256 px

The classic side is what most code does: a Dataset of PIL images with torchvision transforms, in a
DataLoader with worker processes. Its images are in memory too, already decoded. The two sides take
turns in one run; a turn begins with batches that are not counted, so that none is counted that a
worker prepared during the other side's turn. No data set is needed: the images are noise, which
costs as much as anything else.
"""

import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from kesi.cli import entry
from kesi.data import Dataset, Split, TrainBatches
from kesi.data.augment import Augmentation, PadCrop, RandomResizedCrop
from kesi.system import execution
from kesi.system.errors import UsageError
from kesi.system.files import write_json

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NOT_COUNTED = 10  # batches at the start of a turn; more than two workers prepare ahead


class PilImages(TorchDataset):
    """The classic data set: one image at a time, from PIL to a normalised tensor."""

    def __init__(self, images: np.ndarray, labels: list[int],
                 transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def ours(
    images: torch.Tensor, augmentation: Augmentation, batch: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Batches without end from `TrainBatches`."""
    split = Split(images, torch.arange(len(images)) % 10)
    dataset = Dataset(
        "noise", split, split, None, tuple("0123456789"), MEAN, STD, augmentation.size, augmentation
    )
    batches, epoch = TrainBatches(dataset, batch, seed=0, device=device), 0
    while True:
        for x, _ in batches.epoch(epoch):
            yield x
        epoch += 1


def classic(
    images: torch.Tensor, size: int, batch: int, device: torch.device, workers: int
) -> Iterator[torch.Tensor]:
    """Batches without end from torchvision transforms in a DataLoader."""
    crop = transforms.RandomCrop(size, 4) if size == 32 else transforms.RandomResizedCrop(size)
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(),
             transforms.Normalize(MEAN, STD)]
    dataset = PilImages(images.numpy(), [0] * len(images), transforms.Compose(steps))
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**40 // batch * batch)
    loader = DataLoader(
        dataset, batch, sampler=sampler, num_workers=workers, pin_memory=device.type == "cuda"
    )
    for x, _ in loader:
        yield x.to(device, non_blocking=True)


def turn(batches: Iterator[torch.Tensor], seconds: float, device: torch.device) -> float:
    """Images per second of one turn of about `seconds`."""
    for _ in range(NOT_COUNTED):
        next(batches)
    _synchronize(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    _synchronize(device)
    return count / (time.perf_counter() - start)


def measure(size: int, stored: int, batch: int, seconds: float, turns: int, device: torch.device,
            workers: int) -> dict:
    """Lets both sides take turns; returns images per second of each turn, medians and their ratio.
    """
    images = torch.randint(0, 256, (50_000 * 32**2 // stored**2, stored, stored, 3),
                           dtype=torch.uint8)
    augmentation = PadCrop(size, 4) if size == 32 else RandomResizedCrop(size)
    sides = {
        "KESI": ours(images, augmentation, batch, device),
        "classic": classic(images, size, batch, device, workers),
    }
    rates = {name: [] for name in sides}
    for _ in range(turns):
        for name, batches in sides.items():
            rates[name].append(turn(batches, seconds / turns, device))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "size": size,
        "stored": stored,
        "batch": batch,
        "workers": workers,
        "images_per_second": rates,
        "median": medians,
        "ratio": medians["KESI"] / medians["classic"],
        "machine": _machine(device),
    }


def table(result: dict) -> str:
    """The result as a Markdown table."""
    lines = [f"Input side at {result['size']} px from {result['stored']}-px images, batch "
             f"{result['batch']}, {result['machine']['device']}, {result['machine']['cores']} CPU "
             f"cores, classic with {result['workers']} workers",
             "",
             "| side | images/s, median | slowest and fastest turn | ratio |",
             "| --- | ---: | ---: | ---: |"]
    for name, rates in result["images_per_second"].items():
        median = result["median"][name]
        lines.append(
            f"| {name} | {median:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {median / result['median']['classic']:.1f} |"
        )
    return "\n".join(lines)


def _machine(device: torch.device) -> dict:
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": name, "cores": cores, "torch": torch.__version__,
            "python": platform.python_version()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.input")
    parser.add_argument("--size", type=int, default=32, choices=(32, 224),
                        help="pixels of the batches")
    parser.add_argument(
        "--stored", type=int, help="pixels of the stored images, for --size 224 (default: 64)"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5, help="measured time of each side")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side")
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument(
        "--workers", type=int, help="of the classic DataLoader (default: 2, and 4 beside a GPU)"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    if args.size == 32 and args.stored is not None:
        raise UsageError("--stored is for --size 224: images of 32 px are stored as they are")
    numbers = {"--stored": args.stored, "--batch-size": args.batch_size, "--turns": args.turns}
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"{flag} must be at least 1, not {value}")
    device = torch.device(execution.device_for(args.device))
    stored = 32 if args.size == 32 else args.stored or 64
    workers = args.workers
    if workers is None:
        workers = 4 if device.type == "cuda" else 2
    result = measure(args.size, stored, args.batch_size, args.seconds, args.turns, device, workers)
    print(table(result))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    entry.run(main)
