"""How one training step runs on a machine: precision, compilation, CUDA graphs. What it computes is fit()'s affair."""

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kesi.system import distributed, norms
from kesi.system.errors import UsageError, first_line

PRECISIONS = ("auto", "fp32", "tf32", "bf16")

COMPILE = ("auto", "on", "off")

# From images, labels and the weight of this process's share of the batch to the loss and the number of correct
# predictions, with gradients left in the weights.
Step = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

Forward = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# A step that is captured once costs no Python and no launches afterwards; compiling also fuses kernels, but takes a
# minute or more a network. Worth it, on a GPU, for the 234,000 steps of a baseline; not for the 15,640 of a retraining.
COMPILE_FROM_STEPS = 50_000


def precision_for(device: str, precision: str) -> str:
    """The precision that "auto" stands for on a device; any other is itself."""
    if precision != "auto":
        return precision
    cuda = torch.device(device).type == "cuda"
    return "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def set_up(device: str, precision: str, deterministic: bool) -> str:
    """Set torch's switches for a device and return the precision that "auto" stands for there.

    fp32: full precision everywhere. tf32: matrix products of a GPU with a mantissa of 10 bits. bf16: autocast,
    convolutions and matrix products in bfloat16, weights and sums in fp32; the default on a GPU that has it.
    ``deterministic``: only algorithms that give the same bits in every run. Raises UsageError for a precision
    that the device does not have.
    """
    cuda, precision = torch.device(device).type == "cuda", precision_for(device, precision)
    if precision == "tf32" and not cuda:
        raise UsageError("--precision tf32 is for GPUs; use fp32 or bf16 on a CPU")
    if cuda and torch.device(device).index is not None:
        torch.cuda.set_device(device)  # graphs are captured on the current one
    if cuda and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    _allow_tf32(precision == "tf32", precision == "tf32")
    torch.backends.cudnn.benchmark = cuda and not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if not cuda:
        _keep_freed_memory()
    return precision


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within, a GPU computes fp32 as fp32: what is reported does not depend on the precision of the training."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(False, False)
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(convolutions: bool, products: bool) -> None:
    with warnings.catch_warnings():
        # torch 2.9 and later recommend another switch, but their own compiler still reads these
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensor instead of giving it back to the system.

    glibc gives back every tensor of 32 MiB and more, whose pages are then cleared and mapped anew in every step:
    a twelfth of the time of a step of VGG-16 (benchmarks/README.md). Other libraries do not know these switches.
    """
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


def make_step(model: nn.Module, objective: Callable, device: str, precision: str, compile_: str, steps: int) -> Step:
    """The step of a stage of ``steps`` steps.

    On a GPU it is captured as a CUDA graph, teachers included. ``compile_``: "on" has torch.compile fuse its
    kernels first, "auto" does so on a GPU from COMPILE_FROM_STEPS steps (on a CPU it was measured to gain
    nothing over the eager step: benchmarks/README.md), "off" neither compiles nor captures. Where the
    compiler or the capture fails, one line says so and the step runs eagerly. With several processes the
    gradients are averaged by DistributedDataParallel, and nothing is captured.
    """
    cuda = torch.device(device).type == "cuda"
    called: nn.Module = DistributedDataParallel(model) if distributed.world() > 1 else model
    compiled = compile_ == "on" or (compile_ == "auto" and cuda and steps >= COMPILE_FROM_STEPS)
    slow = [] if cuda else norms.slow_norms(model)

    def forward(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # the cache of casted weights would outlive a captured graph
        with autocast(device, precision, cache=not cuda):
            logits = called(images)
            loss = objective(logits, images, labels)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def plain(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with norms.grouped(slow):
            return forward(images, labels)

    step: Step = _eager(model, _Compiled(forward, plain) if compiled else plain)
    return _Captured(model, step) if cuda and compile_ != "off" and distributed.world() == 1 else step


def _eager(model: nn.Module, forward: Forward) -> Step:
    def step(images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss, correct = forward(images, labels)
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach(), correct

    return step


class _Compiled:
    """A function through torch.compile; ``plain`` once that has failed, and for the last batch of another shape."""

    def __init__(self, function: Forward, plain: Forward):
        torch._dynamo.reset()  # stages are different networks: their number must not hit the limit of recompilations
        self._plain, self._function = plain, torch.compile(function)
        self._shape: torch.Size | None = None

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._shape = self._shape or images.shape
        if self._function is self._plain or images.shape != self._shape:
            return self._plain(images, labels)
        try:
            return self._function(images, labels)
        except Exception as error:  # a missing compiler, an unsupported operation: dozens of types
            _say(f"compiling failed ({first_line(error)}); continuing without")
            self._function = self._plain
            return self._plain(images, labels)


class _Captured:
    """A step as a CUDA graph: replayed for batches of the shape that it was captured with, else run eagerly."""

    def __init__(self, model: nn.Module, step: Step):
        self._model, self._step = model, step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False

    def __call__(self, images: torch.Tensor, labels: torch.Tensor,
                 weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        if self._graph is None and not self._failed:
            self._try_to_capture(images, labels)
        if self._graph is None or images.shape != self._images.shape:
            return self._step(images, labels, weight)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, gradient in zip(self._model.parameters(), self._gradients, strict=True):
            parameter.grad = gradient  # an eager step in between has put another tensor there
        return self._loss.clone(), self._correct.clone()  # the next replay writes over them

    def _try_to_capture(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        random = torch.cuda.get_rng_state(images.device)
        try:
            with torch.cuda.device(images.device):
                self._capture(images, labels)
        except Exception as error:
            self._graph, self._failed = None, True
            torch.cuda.synchronize(images.device)
            _say(f"capturing the step as a CUDA graph failed ({first_line(error)}); continuing without")
        # neither warming up nor capturing counts as a step
        for buffer, before in zip(self._model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        torch.cuda.set_rng_state(random, images.device)

    def _capture(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        ours, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(ours)
        with torch.cuda.stream(stream):  # so that cuDNN has chosen its algorithms and the compiler has finished
            for _ in range(3):
                self._step(self._images, self._labels)
            with _no_synchronisation():  # what waits for the GPU fails here rather than in the middle of a capture
                self._step(self._images, self._labels)
        ours.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._model.zero_grad(set_to_none=True)
        # The outer context gives the stream back where the end of a capture raises. thread_local: the thread that
        # gathers the next batch may allocate meanwhile.
        with torch.cuda.stream(ours), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._loss, self._correct = self._step(self._images, self._labels)
        self._gradients = [parameter.grad for parameter in self._model.parameters()]
        self._graph = graph


@contextlib.contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Within, an operation that has the CPU wait for the GPU raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def device_for(name: str) -> str:
    """The device that a flag means ("auto": a GPU if any; of several processes each its own).

    Raises UsageError where it is not there.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = distributed.own_device(chosen)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {first_line(error)}") from error
    return chosen
