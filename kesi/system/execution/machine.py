"""What a step finds on a machine: the device, its threads, the precision that it computes in."""

import contextlib
import ctypes
import functools
import os
import warnings
from collections.abc import Iterator

import torch

from kesi.system import distributed
from kesi.system.errors import UsageError, first_line

PRECISIONS = ("auto", "fp32", "tf32", "bf16")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # instructions of x86 and, the last, of ARM


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
    torch.backends.cudnn.benchmark = False  # see kesi.system.execution.step
    torch.use_deterministic_algorithms(deterministic)
    # else every new tensor is filled with NaN, against reading what was never written
    torch.utils.deterministic.fill_uninitialized_memory = False
    if not cuda:
        _keep_freed_memory()
    return precision


@functools.cache
def warn_of_imitation() -> None:
    """Warn where a processor has no instructions for bf16; once in a process."""
    if not any(map(torch.cpu.get_capabilities().get, BF16)):
        warnings.warn("--precision bf16: this processor has no instructions for it, and as a rule "
                      "trains faster in fp32", stacklevel=2)


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
