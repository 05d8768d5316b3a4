"""How a training step runs on a machine: compilation, CUDA graphs, and when teachers are asked.

What a step computes is fit()'s affair.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kesi.system import distributed, norms
from kesi.system.errors import UsageError, first_line
from kesi.system.execution.capture import CapturedForward, CapturedStep, Step, remembered, say
from kesi.system.execution.machine import autocast, full_precision

COMPILE = ("auto", "capture", "on", "off")

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Pixels that a network in eval mode is shown at once on a GPU, which small batches do not fill.
PIXELS = 2**22

# Batches that teachers answer at once there, within PIXELS. On a CPU it was measured to be slower
# (benchmarks/README.md).
AT_ONCE = 4

# A step that is captured once costs no Python and no launches afterwards; compiling also fuses
# kernels, but takes a minute or more a network. Worth it, on a GPU, for the 234,000 steps of a
# baseline; not for the 15,640 of a retraining.
COMPILE_FROM_STEPS = 50_000


def make_step(model: nn.Module, objective: Callable, device: str, precision: str, compile_: str,
              steps: int) -> Step:
    """The step of a stage of ``steps`` steps.

    On a GPU it is captured as a CUDA graph. ``compile_``: "on" has torch.compile fuse its kernels
    first, "auto" does so on a GPU from COMPILE_FROM_STEPS steps (on a CPU it was
    measured to gain nothing over the eager step: benchmarks/README.md), "capture" never compiles,
    "off" neither compiles nor captures. Where the compiler or the capture fails, one line says so
    and the step runs eagerly. With several processes the gradients are averaged by
    DistributedDataParallel, and nothing is captured. An objective that has ``hold_in(dtype)`` is
    told to hold its own networks in bfloat16 where the step computes in it.

    Raises UsageError where a deterministic step should be compiled: the compiler picks kernels by
    timing them, so two runs may pick others.
    """
    cuda = torch.device(device).type == "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and compile_ == "on":
        raise UsageError("--compile on picks kernels by timing them, which --deterministic rules "
                         "out: leave one of them away")
    if precision == "bf16" and hasattr(objective, "hold_in"):
        objective.hold_in(torch.bfloat16)
    called: nn.Module = DistributedDataParallel(model) if distributed.world() > 1 else model
    long = cuda and steps >= COMPILE_FROM_STEPS
    slow = [] if cuda else norms.slow_norms(model)
    # DistributedDataParallel wants to see the counters themselves
    counting = norms.counting_norms(model) if distributed.world() == 1 else []

    def forward(images: torch.Tensor, labels: torch.Tensor,
                answers: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        # the cache of casted weights would outlive a captured graph
        with autocast(device, precision, cache=not cuda):
            logits = called(images)
            loss = (objective(logits, images, labels) if answers is None
                    else objective.told(logits, answers, labels))
        return loss, (logits.detach().argmax(1) == labels).sum()

    def plain(*given) -> tuple[torch.Tensor, torch.Tensor]:
        with norms.grouped(slow), norms.counted(counting):
            return forward(*given)

    step = _eager(model, plain)
    if not deterministic and (compile_ == "on" or (compile_ == "auto" and long)):
        step = _Compiled(model, forward, step)
    if cuda and not deterministic:
        step = _searching(step)
    return CapturedStep(model, step) if _captures(device, compile_) else step


def _captures(device: str, compile_: str) -> bool:
    """Whether graphs are made: on a GPU, by a process alone, unless that was ruled out."""
    cuda = torch.device(device).type == "cuda"
    return cuda and compile_ != "off" and distributed.world() == 1


def make_forward(model: nn.Module, device: str, precision: str,
                 compile_: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """How a network that is being trained is evaluated meanwhile; None: as for what is reported.

    On a GPU captured, and in TF32 unless the training is in fp32: accuracies on the way decide
    nothing. """
    if torch.device(device).type != "cuda":
        return None
    called = CapturedForward(model) if _captures(device, compile_) else model

    def forward(images: torch.Tensor) -> torch.Tensor:
        with full_precision(tf32=precision != "fp32"):
            return called(images)

    return forward


class Ahead:
    """What teachers say of the batches of an epoch, asked for several at once.

    In eval mode an image's answer does not depend on its batch, and teachers need not wait for the
    student. On a GPU they are captured, apart from the step, and never compiled. The first batch
    decides how many are asked for at once; one at a time is left to the step, also from where the
    memory does not suffice.
    """

    def __init__(self, model: nn.Module, objective: Callable, device: str, precision: str,
                 compile_: str):
        cuda = torch.device(device).type == "cuda"
        two_parts = hasattr(objective, "ask") and hasattr(objective, "told")
        self._most, self._count = AT_ONCE if cuda and two_parts else 1, 0

        def answer(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), autocast(device, precision, cache=False):
                return objective.ask(images).transpose(0, 1)  # (B, K, C)

        if cuda and not torch.are_deterministic_algorithms_enabled():
            answer = _searching(answer)
        self._answer = (CapturedForward(model, answer, "the teachers")
                        if _captures(device, compile_) else answer)

    def together(self, shape: torch.Size) -> int:
        """How many batches of that shape (B, 3, H, W) are answered at once."""
        return max(1, min(self._most, PIXELS // (shape[0] * shape[2] * shape[3])))

    def __call__(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
                 ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Batches (images, labels), each with the answers (K, B, C) to it; None where the step asks
        for them itself."""
        batches = iter(batches)
        for first in batches:
            self._count = self._count or self.together(first[0].shape)
            group = [first, *itertools.islice(batches, self._count - 1)]
            answers = self._answers([images for images, _ in group])
            for (images, labels), one in zip(group, answers, strict=True):
                yield images, labels, one

    def _answers(self, images: list[torch.Tensor]) -> list[torch.Tensor | None]:
        if self._count == 1:
            return [None]
        try:
            answers = self._answer(torch.cat(images)).transpose(0, 1)  # (K, B, C)
        except torch.OutOfMemoryError:
            say("the memory does not suffice for the teachers to answer several batches at once; "
                "continuing with one at a time")
            self._count = 1
            return [None] * len(images)
        return [one.contiguous() for one in answers.split([len(one) for one in images], 1)]


def _eager(model: nn.Module, forward: Forward) -> Step:
    def step(images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0,
             answers: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss, correct = forward(images, labels, answers)
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach(), correct

    return step


def _searching(function: Callable) -> Callable:
    """Have cuDNN time its algorithms for batches of the first shape only; a step, or teachers.

    The search takes as long as many steps: the odd last batch of an epoch and the batches of an
    evaluation take what cuDNN's heuristics say.
    """
    first: torch.Size | None = None

    def search(images: torch.Tensor, *beside):
        nonlocal first
        first = first or images.shape
        torch.backends.cudnn.benchmark = images.shape == first
        try:
            return function(images, *beside)
        finally:
            torch.backends.cudnn.benchmark = False

    return search


class _Compiled:
    """A step through torch.compile; ``plain`` where that fails, and for batches of another shape.

    The compiler makes the backward pass when it is first run, so the first step as a whole tells
    whether it can. What a failed one has done to running statistics and random numbers is undone.
    """

    def __init__(self, model: nn.Module, forward: Forward, plain: Step):
        # stages are different networks: their number must not hit the limit of recompilations
        torch._dynamo.reset()
        # the compiler has random numbers of its own: dropout is to draw those of an eager step
        compiled = torch.compile(forward, options={"fallback_random": True})
        self._model, self._plain, self._step = model, plain, _eager(model, compiled)
        self._shape: torch.Size | None = None
        self._proved = False

    def __call__(self, images: torch.Tensor, *beside) -> tuple[torch.Tensor, torch.Tensor]:
        self._shape = self._shape or images.shape
        if self._step is self._plain or images.shape != self._shape:
            return self._plain(images, *beside)
        if self._proved:
            return self._step(images, *beside)
        restore = remembered(self._model, images.device)
        try:
            found = self._step(images, *beside)
        except Exception as error:  # a missing compiler, an unsupported operation: dozens of types
            say(f"compiling failed ({first_line(error)}); continuing without")
            self._step = self._plain
            restore()
            return self._plain(images, *beside)
        self._proved = True
        return found
