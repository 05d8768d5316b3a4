"""The two sides of the benchmark, each in a process of its own that takes its turn
when it is told to.

One process a side, because much of what is compared belongs to a process: how it gives memory back,
TF32, cuDNN's autotuning, and the peak of its memory. A side is started with its job and then
answers requests, a line of JSON each:

    python -m benchmarks.sides '{"side": "ours", "stage": "retrain"}'

No data set is needed: the images are noise in the shape of CIFAR, which costs as much as anything
else.
"""

import contextlib
import copy
import functools
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

import models
from benchmarks.classic import Classic, hold_zeros
from benchmarks.classic import batches as classic_batches
from benchmarks.input import MEAN, STD
from kesi.data import Dataset, Split, TrainBatches
from kesi.data.augment import PadCrop, RandomResizedCrop
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import CrossEntropy, Loss, Objective
from kesi.method.pruning import Masks, prune_weights
from kesi.method.pruning.filters import pruned_widths
from kesi.method.recipes import OWN, Recipe, recipe
from kesi.method.schedules import Training, optimizer_for, schedule_for
from kesi.method.snapshot import KESI, Snapshot
from kesi.system import execution
from kesi.system.errors import KesiError

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_END = 10_000  # epochs: the schedule must not end before the benchmark does
NOT_COUNTED = 2  # steps at the start of a turn, which find the caches full of the other side's data
CLASSES = 10


@dataclass(frozen=True)
class Job:
    """What a side does. ``stage``: "retrain" the unpruned network,
    or "distill" into that of the last round.

    ``masked``: with weight masks of the last round's sparsity. ``teachers``: so many of baseline,
    round 1, 2, ...; ``workers`` are the classic DataLoader's; ``compile`` and ``precision`` are for
    ours.
    """

    side: str
    stage: str
    arch: str = "resnet56"
    batch: int = 128
    images: int = 50_000
    size: int = 32
    device: str = "cpu"
    threads: int | None = None
    workers: int = 2
    teachers: int = 6
    masked: bool = False
    precision: str = "auto"
    compile: str = "auto"


class Ours:
    """A stage as kesi.method.training.fit() runs it:
    its parts, in its order, for as many steps as are asked for."""

    def __init__(self, job: Job, model: nn.Module, stage: Training, teachers: Sequence[nn.Module],
                 loss: Loss, masks: Masks | None):
        self.model = model.to(device=job.device, memory_format=torch.channels_last).train()
        self.masks = masks
        if masks is not None:
            masks.follow()
        self.precision = execution.set_up(job.device, job.precision, deterministic=False)
        objective = objective_of(teachers, loss, job.device)
        epoch = -(-job.images // job.batch)
        self.ahead = execution.Ahead(self.model, objective, job.device, self.precision, job.compile)
        self.step = execution.make_step(self.model, objective, job.device, self.precision,
                                        job.compile, stage.epochs * epoch)
        self.optimizer = optimizer_for(self.model, stage)
        self.schedule = schedule_for(self.optimizer, replace(stage, epochs=WITHOUT_END), epoch)

    def advance(self, images: torch.Tensor, labels: torch.Tensor,
                answers: torch.Tensor | None = None) -> torch.Tensor:
        """One training step on a batch on the device; returns the loss, still there."""
        loss, _ = self.step(images, labels, 1.0, answers)
        self.optimizer.step()
        if self.masks is not None:
            self.masks.apply()
        self.schedule.step()
        return loss


def ensemble(networks: Sequence[nn.Module], device: str) -> SnapshotEnsemble:
    """Networks as teachers, called by their place: nothing here goes by the names."""
    return SnapshotEnsemble([Snapshot(str(place), network)
                             for place, network in enumerate(networks)], device)


def objective_of(teachers: Sequence[nn.Module], loss: Loss, device: str) -> Objective:
    """What a stage minimises: the cross-entropy, or the loss against the teachers, if any."""
    return Distillation(ensemble(teachers, device), loss) if teachers else CrossEntropy()


def size_of(arch: str) -> int:
    """Pixels of the images that a network is for."""
    return models.ARCHITECTURES[arch].image_size


def recipe_of(arch: str, method: str = "filter") -> Recipe:
    """The paper's recipe of a network, on CIFAR-10 or Tiny-ImageNet as it belongs."""
    if size_of(arch) == 32:
        return recipe(arch, "cifar10", method)
    return recipe(arch, "tinyimagenet", method, "tinyimagenet")


def networks(arch: str, size: int, classes: int = CLASSES) -> list[nn.Module]:
    """Baseline and the filter-pruned network of every round, with weights drawn from a fixed seed.

    Their batch norms have seen one batch, because untrained networks of this depth overflow in eval
    mode otherwise.
    """
    found, cfg = [], list(models.ARCHITECTURES[arch].cfg)
    torch.manual_seed(0)
    for rates in (None, *recipe_of(arch).rounds):
        cfg = cfg if rates is None else pruned_widths(cfg, rates)
        model = models.create(arch, classes, cfg)
        norms = [module for module in model.modules()
                 if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(16, 3, size, size))
        for norm in norms:
            norm.momentum = 0.1
        found.append(model)
    return found


def noise(images: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, S, S, 3) and labels (N,)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, (images,), generator=generator)


def our_batches(job: Job) -> TrainBatches:
    """Noise as fit() would see it."""
    augmentation = PadCrop(job.size, 4) if job.size <= 64 else RandomResizedCrop(job.size)
    split = Split(*noise(job.images, job.size))
    dataset = Dataset("noise", split, split, None, tuple(map(str, range(CLASSES))), MEAN, STD,
                      job.size, augmentation)
    return TrainBatches(dataset, job.batch, 0, job.device)


class Side:
    """A job at work: steps with their input, the check of what it computes, and what it costs."""

    def __init__(self, job: Job):
        self.job, self.device = job, torch.device(job.device)
        execution.set_threads(job.threads)
        plan = recipe_of(job.arch, "weight" if job.masked else "filter")
        stage = replace(plan.trainings[KESI if job.stage == "distill" else OWN],
                        batch_size=job.batch)
        rounds = networks(job.arch, job.size)
        model = copy.deepcopy(rounds[-1 if job.stage == "distill" else 0])
        masks = prune_weights(model, plan.rounds[-1]) if job.masked else None
        teachers = rounds[:job.teachers] if job.stage == "distill" else []
        if job.side == "classic":
            epoch = -(-job.images // job.batch)
            self.runner = Classic(model, replace(stage, epochs=WITHOUT_END), epoch, self.device,
                                  plan.loss.temperature, teachers, job.masked)
        else:
            self.runner = Ours(job, model, stage, teachers, plan.loss, masks)
        self._training = self._train()

    def _train(self) -> Iterator[int]:
        """Training without end: every item is one step, and how many images it took."""
        if self.job.side == "classic":
            images, labels = noise(self.job.images, self.job.size)
            for x, y in classic_batches(images, labels, self.job.batch, self.job.workers,
                                        self.device):
                self.runner.advance(x, y)
                yield len(y)
        batches, epoch = our_batches(self.job), 0
        while True:
            epoch, losses = epoch + 1, []
            for x, y, answers in self.runner.ahead(batches.epoch(epoch)):
                losses.append(self.runner.advance(x, y, answers))
                yield len(y)
            torch.stack(losses).cpu()  # an epoch's metrics

    def turn(self, count: int) -> dict:
        """Time ``count`` steps or a few more, from the device's silence before them to that after
        them: whole groups of those for which teachers are asked at once."""
        shape = torch.Size((self.job.batch, 3, self.job.size, self.job.size))
        group = 1 if self.job.side == "classic" else self.runner.ahead.together(shape)
        count = -(-count // group) * group
        for _ in range(-(-NOT_COUNTED // group) * group):
            next(self._training)
        synchronize(self.device)
        start, cpu = time.perf_counter(), time.process_time()
        images = sum(next(self._training) for _ in range(count))
        synchronize(self.device)
        return {"images": images, "steps": count, "seconds": time.perf_counter() - start,
                "process_seconds": time.process_time() - cpu}

    def check(self, path: str) -> dict:
        """_check(); the classic side is the measure, and has its TF32 again for the clock."""
        with execution.full_precision() if self.job.side == "classic" else contextlib.nullcontext():
            return self._check(path)

    def _check(self, path: str) -> dict:
        """Three steps on batches that every side gets alike;
        the gradient of the first goes to a file.

        ``constant`` is by how much the mean of one KL a teacher exceeds one KL against the
        teachers' mean.
        """
        generator = torch.Generator().manual_seed(2)
        losses, constant, gradient = [], [], None
        for _ in range(3):
            images = torch.randn((self.job.batch, 3, self.job.size, self.job.size),
                                 generator=generator)
            labels = torch.randint(0, CLASSES, (self.job.batch,), generator=generator)
            batch = images, labels.to(self.device)
            if self.job.side == "classic":
                constant.append(_disagreement(self.runner, images))
            else:
                images = images.to(self.device, memory_format=torch.channels_last)
                batch = next(self.runner.ahead(itertools.repeat((images, batch[1]))))
            losses.append(float(self.runner.advance(*batch)))
            if gradient is None:
                gradient = torch.cat([weight.grad.float().cpu().flatten()
                                      for weight in self.runner.model.parameters()])
        torch.save(gradient, path)
        zeros = sum(int((module.weight == 0).sum()) for module in self.runner.model.modules()
                    if isinstance(module, nn.Conv2d))
        return {"losses": losses, "constant": constant, "zeros": zeros,
                "precision": getattr(self.runner, "precision", "fp32")}

    def masks(self, count: int) -> dict:
        """Seconds that the weight masks take in one step."""
        classic = self.job.side == "classic"
        apply = (functools.partial(hold_zeros, self.runner.model) if classic
                 else self.runner.masks.apply)
        apply()
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(count):
            apply()
        synchronize(self.device)
        return {"seconds": (time.perf_counter() - start) / count}

    def memory(self) -> dict:
        """The peak: of tensors on a GPU, else of this process, in MB (of a million bytes)."""
        if self.device.type == "cuda":
            return {"mb": torch.cuda.max_memory_allocated(self.device) / 1e6}
        scale = 1 if sys.platform == "darwin" else 1024
        return {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6}


def _disagreement(runner: Classic, images: torch.Tensor) -> float:
    """T^2 * (entropy of the teachers' mean - mean of their entropies), the mean over a batch."""
    if not runner.teachers:
        return 0.0
    with torch.no_grad():
        each = torch.stack([torch.softmax(teacher(images.to(runner.device)).double()
                                          / runner.temperature, 1) for teacher in runner.teachers])

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -torch.special.xlogy(p, p).sum(-1).mean()

    return float((entropy(each.mean(0)) - entropy(each)) * runner.temperature ** 2)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Process:
    """A side in a process of its own, seen from the benchmark."""

    def __init__(self, job: Job):
        self.job = job
        self._process = subprocess.Popen([sys.executable, "-m",
                                          "benchmarks.sides", json.dumps(asdict(job))], cwd=ROOT,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, *arguments: object) -> dict:
        """Call a method of the side. Raises KesiError where its process has ended."""
        try:
            self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says it all
        line = self._process.stdout.readline()
        if not line:
            raise KesiError(f"the process of the {self.job.side} side ended (exit code "
                            f"{self._process.wait()}); what it said is above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(job: Job) -> None:
    """Answer requests on standard input until it ends."""
    side = Side(job)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(getattr(side, what)(*arguments)), flush=True)


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])))
