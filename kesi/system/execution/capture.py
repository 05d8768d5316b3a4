"""A step, or a forward pass, as a CUDA graph: recorded once, then replayed without any Python or
launches.

Where recording fails, one line says so, and this process goes on without graphs: a failed capture
leaves the allocator and the stream in a state that a second one should not rely on. """

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import nn

from kesi.system.errors import first_line

# From images, labels, the weight of this process's share of the batch, and the teachers' answers or
# None, to the loss and the number of correct predictions, with gradients left in the weights.
Step = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor | None],
                tuple[torch.Tensor, torch.Tensor]]


def remembered(model: nn.Module, device: torch.device) -> Callable[[], None]:
    """Note the buffers of a network and the random state; calling what is returned brings them
    back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return restore


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


class Recorder:
    """What the captures of one process share: their stream, and whether one has failed."""

    failed: ClassVar[bool] = False
    stream: ClassVar["torch.cuda.Stream | None"] = None

    @classmethod
    def record(
        cls, what: str, function: Callable, inputs: tuple[torch.Tensor, ...], model: nn.Module
    ):
        """(graph, what ``function`` returned) for inputs that stay where they are; None where it
        fails.

        Neither warming up nor recording counts: buffers and random numbers are those of before.
        """
        device = inputs[0].device
        restore = remembered(model, device)
        recorded = None
        try:
            with torch.cuda.device(device):
                recorded = cls._record(function, inputs, model)
        except Exception as error:
            cls.failed = True
            torch.cuda.synchronize(device)
            say(
                f"capturing {what} as a CUDA graph failed ({first_line(error)}); continuing without"
            )
        restore()
        return recorded

    @classmethod
    def _record(cls, function: Callable, inputs: tuple[torch.Tensor, ...], model: nn.Module):
        cls.stream = cls.stream or torch.cuda.Stream()
        ours, stream = torch.cuda.current_stream(), cls.stream
        stream.wait_stream(ours)
        with torch.cuda.stream(stream):  # so that cuDNN has chosen, and the compiler has finished
            for _ in range(3):
                function(*inputs)
            with _no_synchronisation():  # what waits for the GPU fails here, not within a capture
                function(*inputs)
        ours.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        model.zero_grad(set_to_none=True)
        # The outer context gives the stream back where the end of a capture raises. thread_local:
        # the thread that gathers the next batch may allocate meanwhile.
        with (
            torch.cuda.stream(ours),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            found = function(*inputs)
        return graph, found


class CapturedStep:
    """A step as a CUDA graph for batches of the shape that it first gets, else as it comes."""

    def __init__(self, model: nn.Module, step: Step):
        self._model, self._step = model, step
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0,
        answers: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = (images, labels) if answers is None else (images, labels, answers)
        if self._graph is None and not Recorder.failed:
            self._capture(given)
        shapes = [one.shape for one in given]
        if self._graph is None or shapes != [one.shape for one in self._inputs]:
            return self._step(images, labels, weight, answers)
        for ours, theirs in zip(self._inputs, given, strict=True):
            ours.copy_(theirs)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient  # an eager step in between has put another tensor there
        return self._loss.clone(), self._correct.clone()  # the next replay writes over them

    @property
    def replay(self) -> Callable[[], None] | None:
        """The graph alone, on the images of the last step; None where there is none."""
        return None if self._graph is None else self._graph.replay

    def _capture(self, given: tuple[torch.Tensor, ...]) -> None:
        self._inputs = tuple(one.clone() for one in given)

        def step(images: torch.Tensor, labels: torch.Tensor, *answers: torch.Tensor):
            return self._step(images, labels, 1.0, *answers)

        recorded = Recorder.record("the step", step, self._inputs, self._model)
        if recorded is not None:
            self._graph, (self._loss, self._correct) = recorded
            self._gradients = [
                (parameter, parameter.grad) for parameter in self._model.parameters()
            ]


class CapturedForward:
    """A network in eval mode as a CUDA graph, for batches of at most the size that it first gets.

    A smaller batch fills the first rows: in eval mode an image's answer does not depend on its
    batch. ``function`` and ``what`` it is: other networks that are asked while ``model`` trains,
    rows for images as well.
    """

    def __init__(self, model: nn.Module, function: Callable | None = None,
                 what: str = "the evaluation"):
        self._model, self._function, self._what = model, function or model, what
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, ...) of images (B, 3, H, W)."""
        if self._graph is None and not Recorder.failed:
            self._images = images.clone()
            recorded = Recorder.record(self._what, self._function, (self._images,), self._model)
            if recorded is not None:
                self._graph, self._logits = recorded
        count = len(images)
        if (
            self._graph is None
            or count > len(self._images)
            or images.shape[1:] != self._images.shape[1:]
        ):
            return self._function(images)
        self._images[:count].copy_(images)
        self._graph.replay()
        return self._logits[:count].clone()


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
