"""Batches for training and evaluation: shuffled, augmented and normalised on the device."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kesi.data.augment import Normalise
from kesi.data.datasets import Dataset
from kesi.data.split import Size, Split, height_width, together
from kesi.system import seeds
from kesi.system.errors import UsageError
from kesi.system.execution import PIXELS


def check_batch(batch_size: int, count: int, world: int = 1) -> None:
    """Raises UsageError where a batch, or a split of ``count``, has fewer than two images a rank.
    """
    if batch_size < 2 * world or count < 2 * world:
        small = batch_size < 2 * world
        what = "batch size" if small else "a training split of"
        raise UsageError(f"{what} {batch_size if small else f'{count} image(s)'} is too small: "
                         f"BatchNorm needs two images a batch for each of {world} process(es)")


class TrainBatches:
    """The training split in batches; every epoch in an order and with an augmentation of its own.

    Order and augmentation of an epoch are a function of (seed, epoch): no other epoch needs to be
    run before it, and the device, the global random state and `world` make no difference. With
    world > 1, rank r gets the images r, r + world, ... of every batch, so that the ranks together
    get what one process would.

    A last batch with fewer than two images for each rank is left out, because BatchNorm cannot take
    a batch of one image. A rank gets one image more or less than another where `world` does not
    divide a batch.

    With ``unlabelled`` an epoch has as many images as without, drawn from the training images and
    those without labels together, anew in every epoch.

    Where the images, padded, take at most `resident_bytes` (default: 4 GiB on a GPU and at most
    half of what is free there, 1 GiB on a CPU), they are put on the device once. Otherwise a thread
    gathers the rows of the next batch while this one is computed, and uint8 travels to the device.
    """

    steps: int  # batches an epoch
    images: int  # images an epoch, over all ranks

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        resident_bytes: int | None = None,
        unlabelled: bool = False,
    ) -> None:
        """Raises UsageError where a batch, or the split, has fewer than two images a rank."""
        split, self.device = dataset.train, torch.device(device)
        count = len(split)
        if unlabelled and dataset.unlabelled is not None:
            split = together(split, dataset.unlabelled)
        check_batch(batch_size, count, world)
        self.split, self.augmentation, self.seed = split, dataset.augmentation, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        rest = count % batch_size
        self.images = count - (rest if rest < 2 * world else 0)
        self.steps = -(-self.images // batch_size)
        self._normalise = Normalise.of(dataset.mean, dataset.std, self.device)
        self._labels = split.labels.to(self.device)
        limit = _resident_limit(self.device) if resident_bytes is None else resident_bytes
        fits = self.augmentation.prepared_bytes(split.images) <= limit
        self._prepared = self.augmentation.prepare(split.images, self.device) if fits else None

    def weight(self, step: int) -> float:
        """The weight of this rank's mean over its images of a step in the mean over the ranks.

        1 where all ranks have as many; else its share of the batch times the number of ranks, so
        that the mean over the ranks is the mean over the images.
        """
        start = step * self.batch_size
        whole = min(self.batch_size, self.images - start)
        return len(range(self.rank, whole, self.world)) * self.world / whole

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device: x float32 (B, C, H, W), normalised, and y int64 (B,)."""
        order, draws = self._drawn(number)
        rows = self.split.indices()[order]
        labels = self._labels[order.to(self.device)]
        draws = draws.to(self.device)
        batches = [
            slice(start + self.rank, min(start + self.batch_size, self.images), self.world)
            for start in range(0, self.images, self.batch_size)
        ]
        if self._prepared is not None:
            rows = rows.to(self.device)
            for batch in batches:
                yield self._augmented(self._prepared, rows[batch], draws[batch]), labels[batch]
            return
        gathered = self._gathered([rows[batch] for batch in batches])
        for batch, images in zip(batches, gathered, strict=True):
            images = images.to(self.device, non_blocking=True)
            prepared = self.augmentation.prepare(images, self.device)
            everything = torch.arange(len(images), device=self.device)
            yield self._augmented(prepared, everything, draws[batch]), labels[batch]

    def _drawn(self, number: int) -> tuple[Tensor, Tensor]:
        """The order of the images and their random numbers, on the CPU."""
        generator = seeds.generator(self.seed, number)
        order = torch.randperm(len(self.split), generator=generator)
        sizes, side = self.split.sizes, self.split.side
        sizes = torch.full((1, 2), side).expand(len(order), 2) if sizes is None else sizes[order]
        return order, self.augmentation.draw(sizes, side, generator)

    def _augmented(self, prepared: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        return self.augmentation.train(prepared, rows, draws, self._normalise)

    def _gathered(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """The images at the rows of each batch, one batch ahead of the one that is used."""

        def gather(rows: Tensor) -> Tensor:
            images = self.split.images.index_select(0, rows)
            return images.pin_memory() if self.device.type == "cuda" else images

        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = thread.submit(gather, batches[0])
            for following in [*batches[1:], None]:
                images = coming.result()
                if following is not None:
                    coming = thread.submit(gather, following)
                yield images


def eval_batches(dataset: Dataset, split: Split, device: torch.device | str = "cpu",
                 batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order, not augmented: x float32 (B, C, H, W), channels_last, and y int64 (B,).

    ``batch_size``: default is that of eval_batch_size().
    """
    normalise = Normalise.of(dataset.mean, dataset.std, device)
    if batch_size is None:
        batch_size = eval_batch_size(len(split), dataset.image_size, device)
    for first in range(0, len(split), batch_size):
        last = min(first + batch_size, len(split))
        sizes = None if split.sizes is None else split.sizes[first:last]
        images = split.take(first, last).to(device)
        labels = split.labels[first:last].to(device)
        yield dataset.augmentation.test(images, sizes, normalise), labels


def eval_batch_size(images: int, size: Size, device: torch.device | str) -> int:
    """Images of ``size`` pixels a batch: 512 on a CPU; on a GPU, whose time goes into launching
    small ones, about four million pixels (4,096 images of 32 px), in batches of about equal
    length."""
    if torch.device(device).type != "cuda":
        return 512
    most = max(512, PIXELS // math.prod(height_width(size)))
    return -(-images // -(-images // most)) if images else most


def _resident_limit(device: torch.device) -> int:
    if device.type != "cuda":
        return 2**30
    # what torch has reserved and does not use is free as well
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(4 * 2**30, (torch.cuda.mem_get_info(device)[0] + cached) // 2)
