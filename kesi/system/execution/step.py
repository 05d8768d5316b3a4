"""How a training step runs on a machine: precision, compilation, CUDA graphs.

What a step computes is fit()'s affair.
"""

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kesi.system import distributed, norms
from kesi.system.capture import CapturedForward, CapturedStep, Step, remembered, say
from kesi.system.errors import UsageError, first_line

PRECISIONS = ("auto", "fp32", "tf32", "bf16")

COMPILE = ("auto", "capture", "on", "off")

Forward = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# A step that is captured once costs no Python and no launches afterwards; compiling also fuses
# kernels, but takes a minute or more a network. Worth it, on a GPU, for the 234,000 steps of a
# baseline; not for the 15,640 of a retraining.
COMPILE_FROM_STEPS = 50_000


def resolved(device: str, precision: str) -> str:
    """The precision that "auto" stands for on a device; any other as it is.

    Raises UsageError for a precision that the device does not have.
    """
    cuda = torch.device(device).type == "cuda"
    if precision == "auto":
        has = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has else "fp32"
    if precision == "tf32" and not cuda:
        raise UsageError("--precision tf32 is for GPUs; use fp32 or bf16 on a CPU")
    return precision


def set_up(device: str, precision: str, deterministic: bool) -> str:
    """Set torch's switches for a device and return the precision that "auto" stands for there.

    fp32: full precision everywhere. tf32: matrix products of a GPU with a mantissa of 10 bits.
    bf16: autocast, convolutions and matrix products in bfloat16, weights and sums in fp32; the
    default on a GPU that has it. ``deterministic``: only algorithms that give the same bits in
    every run. Raises UsageError for a precision that the device does not have.
    """
    cuda = torch.device(device).type == "cuda"
    precision = resolved(device, precision)
    if cuda and torch.device(device).index is not None:
        torch.cuda.set_device(device)  # graphs are captured on the current one
    if cuda and deterministic:  # cuBLAS reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _allow_tf32(precision == "tf32", precision == "tf32")
    torch.backends.cudnn.benchmark = False  # see _searching()
    torch.use_deterministic_algorithms(deterministic)
    # else every new tensor is filled with NaN, against reading what was never written
    torch.utils.deterministic.fill_uninitialized_memory = False
    if not cuda:
        _keep_freed_memory()
    return precision


@contextlib.contextmanager
def full_precision(tf32: bool = False) -> Iterator[None]:
    """Within, a GPU computes fp32 as fp32, or in TF32 if that will do.

    What is reported does not depend on the precision of the training.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(tf32, tf32)
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(convolutions: bool, products: bool) -> None:
    with warnings.catch_warnings():
        # torch 2.9 and later recommend another switch, but their own compiler still reads these
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensor instead of giving it back.

    glibc gives back every tensor of 32 MiB and more, whose pages are then cleared and mapped anew
    in every step: a twelfth of the time of a step of VGG-16 (benchmarks/README.md). Other libraries
    do not know these switches. """
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def autocast(device: str, precision: str, cache: bool = True) -> contextlib.AbstractContextManager:
    """The context in which a forward pass runs."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=cache)


def make_step(model: nn.Module, objective: Callable, device: str, precision: str, compile_: str,
              steps: int) -> Step:
    """The step of a stage of ``steps`` steps.

    On a GPU it is captured as a CUDA graph, teachers included. ``compile_``: "on" has torch.compile
    fuse its kernels first, "auto" does so on a GPU from COMPILE_FROM_STEPS steps (on a CPU it was
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

    def forward(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # the cache of casted weights would outlive a captured graph
        with autocast(device, precision, cache=not cuda):
            logits = called(images)
            loss = objective(logits, images, labels)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def plain(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with norms.grouped(slow), norms.counted(counting):
            return forward(images, labels)

    step = _eager(model, plain)
    if not deterministic and (compile_ == "on" or (compile_ == "auto" and long)):
        step = _Compiled(model, forward, step)
    if cuda and not deterministic:
        step = _searching(step)
    captured = cuda and compile_ != "off" and distributed.world() == 1
    return CapturedStep(model, step) if captured else step


def make_forward(model: nn.Module, device: str, precision: str,
                 compile_: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """How a network that is being trained is evaluated meanwhile; None: as for what is reported.

    On a GPU captured, and in TF32 unless the training is in fp32: accuracies on the way decide
    nothing. """
    if torch.device(device).type != "cuda":
        return None
    captured = compile_ != "off" and distributed.world() == 1
    called = CapturedForward(model) if captured else model

    def forward(images: torch.Tensor) -> torch.Tensor:
        with full_precision(tf32=precision != "fp32"):
            return called(images)

    return forward


def _eager(model: nn.Module, forward: Forward) -> Step:
    def step(images: torch.Tensor, labels: torch.Tensor,
             weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss, correct = forward(images, labels)
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach(), correct

    return step


def _searching(step: Step) -> Step:
    """Have cuDNN time its algorithms for batches of the first shape only.

    The search takes as long as many steps: the odd last batch of an epoch and the batches of an
    evaluation take what cuDNN's heuristics say.
    """
    first: torch.Size | None = None

    def search(images: torch.Tensor, labels: torch.Tensor,
               weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal first
        first = first or images.shape
        torch.backends.cudnn.benchmark = images.shape == first
        try:
            return step(images, labels, weight)
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

    def __call__(self, images: torch.Tensor, labels: torch.Tensor,
                 weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        self._shape = self._shape or images.shape
        if self._step is self._plain or images.shape != self._shape:
            return self._plain(images, labels, weight)
        if self._proved:
            return self._step(images, labels, weight)
        restore = remembered(self._model, images.device)
        try:
            found = self._step(images, labels, weight)
        except Exception as error:  # a missing compiler, an unsupported operation: dozens of types
            say(f"compiling failed ({first_line(error)}); continuing without")
            self._step = self._plain
            restore()
            return self._plain(images, labels, weight)
        self._proved = True
        return found


def set_threads(threads: int | None) -> None:
    """CPU threads of this process; None leaves them as they are.

    Raises UsageError for less than one, or more than there are cores anywhere.
    """
    if threads is None:
        return
    if not 1 <= threads <= 1024:
        raise UsageError(f"--threads must be at least 1 and at most 1024, not {threads}")
    torch.set_num_threads(threads)


def device_for(name: str) -> str:
    """The device that a flag means ("auto": a GPU if any; of several processes each its own).

    Raises UsageError where it is not there.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = distributed.own_device(chosen)
        torch.zeros(1, device=chosen).item()  # "meta" can be named, but holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {first_line(error)}") from error
    return chosen
