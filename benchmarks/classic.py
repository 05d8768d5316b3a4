"""The classic way to retrain and to distil, as a reference for the clock:
what most code does, step by step.

PIL images go one by one through torchvision's transforms in a DataLoader; the networks run eagerly
in fp32 and NCHW (with torch's own settings, which on a GPU means TF32 inside convolutions); the
optimiser is torch's default; every teacher keeps its batch norms, has a forward pass and a loss of
its own; pruned weights are found again in every step by looking for zeros, layer by layer; and the
loss is read back from the device in every step.

The networks, the recipe's numbers and the schedule are those of `kesi`, so that both ways compute
the same thing. Nothing outside of benchmarks/ uses this file.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.input import MEAN, STD, PilImages
from kesi.method.schedules import Training, schedule_for


def batches(images: torch.Tensor, labels: torch.Tensor, batch: int, workers: int,
            device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Epoch after epoch of shuffled batches from uint8 images (N, 32, 32, 3):
    float32 (B, 3, 32, 32) on the CPU."""
    transform = transforms.Compose([transforms.RandomCrop(images.shape[1], 4),
                                    transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    dataset = PilImages(images.numpy(), labels.tolist(), transform)
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers,
                        pin_memory=device.type == "cuda", persistent_workers=workers > 0)
    while True:
        yield from loader


def optimizer_for(model: nn.Module, stage: Training) -> torch.optim.Optimizer:
    """The stage's optimiser as torch makes it when asked for nothing else."""
    if stage.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=stage.lr, momentum=stage.momentum,
                           weight_decay=stage.weight_decay)


def hold_zeros(model: nn.Module) -> None:
    """Zero the gradient of every convolution weight that is zero,
    so that the step leaves it where it is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            mask = module.weight.detach().ne(0).float()
            module.weight.grad.mul_(mask)


def distillation_losses(logits: torch.Tensor, images: torch.Tensor, teachers: Sequence[nn.Module],
                        temperature: float) -> torch.Tensor:
    """The paper's loss: the mean over the teachers of T^2 * KL(teacher || student),
    one forward and one KL for each."""
    total = 0.0
    for teacher in teachers:
        with torch.no_grad():
            target = F.softmax(teacher(images) / temperature, dim=1)
        student = F.log_softmax(logits / temperature, dim=1)
        total = total + F.kl_div(student, target, reduction="batchmean") * temperature ** 2
    return total / len(teachers)


class Classic:
    """A stage the classic way: one call of advance() a batch."""

    def __init__(self, model: nn.Module, stage: Training, steps: int, device: torch.device,
                 temperature: float, teachers: Sequence[nn.Module] = (), masked: bool = False):
        """Without ``teachers`` the loss is cross-entropy.
        ``masked``: weights that are zero stay zero."""
        self.model, self.device, self.masked, self.temperature = (model.to(device).train(), device,
                                                                  masked, temperature)
        self.teachers = [teacher.to(device).eval() for teacher in teachers]
        self.optimizer = optimizer_for(model, stage)
        self.schedule = schedule_for(self.optimizer, stage, steps)

    def advance(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One training step on images (B, 3, H, W) and labels (B,); returns the loss."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        logits = self.model(images)
        if self.teachers:
            loss = distillation_losses(logits, images, self.teachers, self.temperature)
        else:
            loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.masked:
            hold_zeros(self.model)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()
