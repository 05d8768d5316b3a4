"""How a training step runs on a machine: device and precision, compilation, CUDA graphs."""

from kesi.system.execution.capture import Step
from kesi.system.execution.machine import (
    PRECISIONS,
    autocast,
    device_for,
    full_precision,
    resolved,
    set_threads,
    set_up,
)
from kesi.system.execution.step import (
    COMPILE,
    COMPILE_FROM_STEPS,
    PIXELS,
    Ahead,
    make_forward,
    make_step,
)

__all__ = ["COMPILE", "COMPILE_FROM_STEPS", "PIXELS", "PRECISIONS", "Ahead", "Step", "autocast",
           "device_for", "full_precision", "make_forward", "make_step", "resolved", "set_threads",
           "set_up"]
