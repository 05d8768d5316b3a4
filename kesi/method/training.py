"""fit(): the only training loop. What it minimises is the objective's choice,
everything else the stage's."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from tqdm import tqdm

from kesi.data import Dataset, Split, TrainBatches, eval_batches
from kesi.method.objectives import CrossEntropy, Objective, check_labels
from kesi.method.pruning.masks import Masks
from kesi.method.schedules import DIVERGED, Average, Training, optimizer_for, schedule_for
from kesi.system import distributed, execution, seeds
from kesi.system.errors import TrainingFailed, UsageError, check_choice
from kesi.system.execution import Ahead, Step, full_precision, make_forward, make_step, set_up
from kesi.system.execution.machine import warn_of_imitation
from kesi.system.norms import reestimate


@dataclass(frozen=True)
class Options:
    """How a stage runs on a machine; nothing here but ``sync_bn`` changes what is computed, except
    for rounding.

    ``eval_every``: test (and validation) accuracy every so many epochs; 0 for the last epoch only.
    ``save_every``: the state from which an interrupted stage continues, every so many epochs.
    ``precision``, ``compile``, ``deterministic``: see kesi.system.execution. ``sync_bn``: with
    several processes, batch norm over the batch of all of them. Raises UsageError for what these
    may not be.
    """

    device: str = "cpu"
    eval_every: int = 1
    save_every: int = 1
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    sync_bn: bool = False

    def __post_init__(self):
        check_choice("precision", self.precision, execution.PRECISIONS)
        check_choice("compile", self.compile, execution.COMPILE)
        if self.eval_every < 0 or self.save_every < 1:
            raise UsageError("eval-every must be at least 0 and save-every at least 1")


@dataclass(frozen=True)
class Epoch:
    """What one epoch of a training gave; accuracies in percent, ``lr`` that of its last step.

    Test and validation figures are None in epochs without evaluation, or without such images. The
    training accuracy is of images with labels; where they are mixed, a label counts for the image
    that it came with.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    lr: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    val_accuracy: float | None = None
    seconds: float | None = None


@dataclass
class Progress:
    """What fit() tells after every epoch: where it stands,
    and all that is needed to continue from there."""

    epoch: int
    epochs: int
    history: list[Epoch]
    optimizer: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    average: Average | None = None

    def state(self) -> dict:
        """The state besides the weights and masks, to be given to fit(resume=...)."""
        average = {} if self.average is None else {"ema": list(self.average.weights)}
        return {"epoch": self.epoch, "history": [asdict(row) for row in self.history],
                "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                **average}


def fit(model: nn.Module,
        dataset: Dataset, training: Training, *, seed: int, objective: Objective = CrossEntropy(),
        masks: Masks | None = None, options: Options = Options(), resume: dict | None = None,
        on_epoch: Callable[[Progress], None] | None = None, label: str = "") -> list[Epoch]:
    """Train ``model`` in place for the epochs of ``training`` and return what each epoch gave.

    ``seed`` decides order, augmentation and dropout of every epoch; with the same arguments on the
    same machine the result is the same bit for bit, also when continued with ``resume``, a
    Progress.state(), from the weights of that moment. ``masks`` are applied after every step. With
    ``training.ema`` the last epoch ends in the averaged weights, whose batch norms see that epoch's
    images once more; all figures before it, and its training loss, are of those being trained. With
    several processes (see kesi.system.distributed) each takes its share of every batch, and all
    return the same. Raises TrainingFailed where a loss is not finite, before on_epoch sees
    that epoch.
    """
    unlabelled = getattr(objective, "unlabelled", False) and dataset.unlabelled is not None
    check_labels(objective, unlabelled, training.mixup)
    model.to(device=options.device, memory_format=torch.channels_last)
    if masks is not None:
        masks.follow()
    batches = TrainBatches(dataset, training.batch_size, seed, options.device, distributed.rank(),
                           distributed.world(), unlabelled=unlabelled)
    precision = set_up(options.device, options.precision, options.deterministic)
    if precision == "bf16" and torch.device(options.device).type == "cpu":
        warn_of_imitation()
    if hasattr(objective, "prepare"):  # teachers, which may be elsewhere, and yet to be measured
        objective.prepare(dataset, options.device)
    step = make_step(model, objective, options.device, precision, options.compile,
                     training.epochs * batches.steps)
    ahead = Ahead(model, objective, options.device, precision, options.compile)
    meanwhile = make_forward(model, options.device, precision, options.compile)
    optimizer = optimizer_for(model, training)
    schedule = schedule_for(optimizer, training, batches.steps)
    average = Average(model, training.ema) if training.ema else None
    history: list[Epoch] = []
    if resume is not None:
        if average is not None:
            average.load(resume["ema"])
        optimizer.load_state_dict(resume["optimizer"])
        schedule.load_state_dict(resume["schedule"])
        history = [Epoch(**row) for row in resume["history"]]
    done = len(history)
    bar = tqdm(total=training.epochs * batches.steps, initial=done * batches.steps, desc=label,
               unit="step",
               disable=None if distributed.is_main() else True, leave=False, dynamic_ncols=True)
    with bar, distributed.synchronised_norms(model, options.sync_bn):
        for epoch in range(done + 1, training.epochs + 1):
            started = perf_counter()
            seeds.seed_globally(seed, "dropout", epoch,
                                *([distributed.rank()] if distributed.rank() else []))
            mixed = seeds.generator(seed, "mixup", epoch, distributed.rank())
            given = ahead((mix(images, mixed) if training.mixup else images, labels)
                          for images, labels in batches.epoch(epoch))
            row = _train_epoch(model, given, batches.weight, epoch, step, masks, optimizer,
                               schedule, average, bar)
            last = epoch == training.epochs
            if last and average is not None:
                average.give(model)
                with full_precision():
                    reestimate(model, (images for images, _ in batches.epoch(epoch)))
            due = last or (options.eval_every and epoch % options.eval_every == 0)
            row |= _evaluate_epoch(model, dataset, options.device, due, None if last else meanwhile)
            history.append(Epoch(epoch=epoch, **row, seconds=round(perf_counter() - started, 4)))
            bar.set_postfix(loss=f"{row['train_loss']:.3f}",
                            accuracy=f"{row['train_accuracy']:.1f}%")
            if on_epoch is not None:
                on_epoch(Progress(epoch, training.epochs, history, optimizer, schedule,
                                  average))
    return history


def _train_epoch(model: nn.Module, batches: Iterator, weight: Callable[[int], float], epoch: int,
                 step: Step, masks: Masks | None, optimizer: torch.optim.Optimizer,
                 schedule: lr_scheduler.LRScheduler, average: Average | None, bar: tqdm) -> dict:
    """One pass over the training images. Nothing is read back from the device before its end."""
    model.train()
    losses, correct, sizes, known = [], [], [], []
    rates = []
    for number, (images, labels, answers) in enumerate(batches):
        loss, hits = step(images, labels, weight(number), answers)
        optimizer.step()
        if masks is not None:
            masks.apply()
        if average is not None:
            average.follow(model)
        losses.append(loss)
        correct.append(hits)
        sizes.append(len(labels))
        known.append((labels >= 0).sum())
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
        bar.update()
    shares = torch.tensor(sizes, dtype=torch.float64)
    sums = distributed.total(torch.stack(losses).double() * shares.to(losses[0].device)).cpu()
    shares, hits, labelled = (distributed.total(shares.to(losses[0].device)).cpu(),
                              distributed.total(torch.stack(correct).sum()),
                              distributed.total(torch.stack(known).sum()))
    values = sums / shares
    if not bool((fine := values.abs() < DIVERGED).all()):  # NaN is not, either
        first = int((~fine).nonzero()[0])
        raise TrainingFailed(f"the training diverges: the loss is {float(values[first]):.3g} in "
                             f"epoch {epoch}, step {first + 1} of {len(values)}, at learning rate "
                             f"{rates[first]:.3g}: try a lower --lr, or check the images")
    images_seen = int(shares.sum())
    return {"train_loss": float(sums.sum()) / images_seen,
            "train_accuracy": 100 * int(hits) / max(1, int(labelled)), "lr": rates[-1]}


def mix(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W), each mixed with another one by a share that is uniform in [0, 1)."""
    shares = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    others = torch.randperm(len(images), generator=generator).to(images.device)
    return torch.lerp(images[others], images, shares)


def _evaluate_epoch(model: nn.Module, dataset: Dataset, device: str, due: bool,
                    forward: Callable | None) -> dict:
    row = {"test_loss": None, "test_accuracy": None, "val_accuracy": None}
    if due:
        row["test_loss"], row["test_accuracy"] = evaluate(model, dataset, dataset.test, device,
                                                          forward)
        if not abs(row["test_loss"]) < DIVERGED:
            raise TrainingFailed(f"the training diverges: the test loss is "
                                 f"{row['test_loss']:.3g}: try a lower --lr, or check the images")
        if dataset.val is not None:
            row["val_accuracy"] = evaluate(model, dataset, dataset.val, device, forward)[1]
    return row


def predict(model: nn.Module, dataset: Dataset, split: Split, device: str = "cpu",
            forward: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """Logits (N, C), on the CPU, of a split's images in order; the model is in eval mode meanwhile.

    ``forward``: how it is asked while it trains (see kesi.system.execution.make_forward); by
    default as for everything that is reported, in fp32. With several processes each predicts its
    share, and all return the whole.
    """
    training = model.training
    whole = len(split)
    _settle(model, device)  # outside of inference_mode: weights stay trainable
    if distributed.world() > 1:
        distributed.share_buffers(model)
        split = split.subset(torch.arange(distributed.rank(), whole, distributed.world()))
    model.eval()
    try:
        with torch.inference_mode(), full_precision():
            logits = [(forward or model)(images)
                      for images, _ in eval_batches(dataset, split, device)]
    finally:
        model.train(training)
    return distributed.gather_rows(torch.cat(logits).float(), whole).cpu()


def _settle(model: nn.Module, device: str) -> None:
    """Put a network on a device in channels_last, unless it is there.

    Module.to() gives weights of shape (N, 1, 1, 1) new memory every time, of which a captured step
    would not know.
    """
    where = torch.device(device)
    for tensor in (*model.parameters(), *model.buffers()):
        elsewhere = (tensor.device.type != where.type
                     or where.index not in (None, tensor.device.index))
        if (elsewhere or (tensor.dim() == 4
                          and not tensor.is_contiguous(memory_format=torch.channels_last))):
            model.to(device=device, memory_format=torch.channels_last)
            return


def evaluate(model: nn.Module, dataset: Dataset, split: Split, device: str = "cpu",
             forward: Callable[[torch.Tensor], torch.Tensor] | None = None) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in percent) of a network on a split;
    ``forward``: see predict()."""
    return score(predict(model, dataset, split, device, forward), split.labels)


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in percent) of logits (N, C) against labels (N,)."""
    accuracy = 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
    return float(F.cross_entropy(logits.double(), labels)), accuracy
