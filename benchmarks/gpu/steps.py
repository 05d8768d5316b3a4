"""A table of training steps: precision x compilation x round x teachers, and what follows from it.

    python -m benchmarks.gpu.steps runs/gpu/steps --rows capture off on

Every row is a file of its own in the folder; one that is there is not measured again. A row holds
the seconds of a whole step (from images to updated weights, its share of what teachers answer for
several batches included), of a replay of its graph (without them), and of the Python that starts
it, its kernels (on a CPU its operations), and how far its loss and its gradient
are from those of an eager step in fp32."""

import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import models
from benchmarks.gpu.choice import JOBS
from benchmarks.rates import median_seconds
from benchmarks.sides import (
    Job,
    Ours,
    ensemble,
    networks,
    objective_of,
    our_batches,
    recipe_of,
    size_of,
    synchronize,
)
from kesi.cli import entry
from kesi.method.objectives import Loss
from kesi.method.teachers import mean_probabilities
from kesi.system import execution
from kesi.system.execution.capture import CapturedStep, Recorder
from kesi.system.files import write_json
from kesi.system.provenance import device_name

COMPILE = ("capture", "off", "on")


def measure(job: Job, stage: str, seconds: float) -> dict:
    """One row; ``job`` says precision and compilation."""
    round_, count = JOBS[stage]
    plan, device = recipe_of(job.arch), torch.device(job.device)
    rounds = networks(job.arch, job.size)
    teachers = rounds[:count]
    generator = torch.Generator().manual_seed(2)
    images = torch.randn((job.batch, 3, job.size, job.size), generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (job.batch,), generator=generator).to(device)
    loss, gradient = _exact(
        copy.deepcopy(rounds[round_]), teachers, plan.loss, job, images, labels
    )

    start = time.perf_counter()
    ours = Ours(
        job,
        rounds[round_],
        replace(plan.trainings[stage], batch_size=job.batch),
        teachers,
        plan.loss,
        None,
    )
    images, labels, answers = next(ours.ahead(itertools.repeat((images, labels))))
    found, _ = ours.step(images, labels, 1.0, answers)
    apart = abs(float(found) - loss) / max(abs(loss), 0.1)
    first = time.perf_counter() - start
    error = float((_gradient(ours.model) - gradient).norm() / gradient.norm())
    batches = our_batches(job)
    source = (batch for epoch in range(10**9) for batch in ours.ahead(batches.epoch(epoch)))
    group = ours.ahead.together(images.shape)  # so many steps for one question to the teachers

    def advance() -> None:
        for _ in range(group):
            ours.advance(*next(source))

    step = median_seconds(advance, device, seconds) / group
    python = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        advance()
        python.append((time.perf_counter() - start) / group)
    together = (
        [_teachers(ours, images, teachers, times, seconds) for times in (1, 4)]
        if teachers
        else None
    )
    replay = ours.step.replay if isinstance(ours.step, CapturedStep) else None
    return {
        "stage": stage,
        "arch": job.arch,
        "round": len(rounds) - 1 if round_ < 0 else round_,
        "teachers": count,
        "precision": ours.precision,
        "compile": job.compile,
        "batch": job.batch,
        "first_seconds": first,
        "step_seconds": step,
        "python_seconds": sorted(python)[2] if device.type == "cuda" else None,
        "replay_seconds": None if replay is None else median_seconds(replay, device, seconds),
        "teachers_seconds": together,
        "kernels": _kernels(advance, device) // group,
        "loss_apart": apart,
        "gradient_apart": error,
    }


def _exact(
    model, teachers: Sequence, loss: Loss, job: Job, images, labels
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of an eager step in fp32."""
    execution.set_up(job.device, "fp32", deterministic=False)
    model = model.to(images.device, memory_format=torch.channels_last).train()
    objective = objective_of(teachers, loss, job.device)
    found, _ = execution.make_step(model, objective, job.device, "fp32", "off", 1)(images, labels)
    return float(found), _gradient(model)


def _teachers(
    ours: Ours, images: torch.Tensor, teachers: Sequence, times: int, seconds: float
) -> float:
    """Seconds a batch in which the teachers answer so many batches at once, as a graph where that
    is possible."""
    together = ensemble(teachers, str(images.device))
    if ours.precision == "bf16":
        together = together.held_in(torch.bfloat16)
    images = images.repeat(times, 1, 1, 1).contiguous(memory_format=torch.channels_last)

    def answer(images: torch.Tensor = images) -> torch.Tensor:
        with execution.autocast(images.device.type, ours.precision, cache=False):
            return mean_probabilities(together.logits(images), 5.0)

    graph = None
    if images.is_cuda and not Recorder.failed:
        graph = Recorder.record("the teachers", answer, (images,), ours.model)
    return median_seconds(graph[0].replay if graph else answer, images.device, seconds) / times


def _gradient(model) -> torch.Tensor:
    return torch.cat([weight.grad.float().cpu().flatten() for weight in model.parameters()])


def _kernels(step, device: torch.device) -> int:
    """Kernels of one step on a GPU; on a CPU the operations that Python, or the backward pass,
    calls."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
        synchronize(device)
    if cuda:
        return sum(
            event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
            for event in found.events()
        )
    return sum(
        event.cpu_parent is None and event.name.startswith("aten::") for event in found.events()
    )


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.gpu.steps")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--arch", choices=list(models.ARCHITECTURES), default="resnet56", metavar="NAME"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument("--rows", nargs="+", choices=COMPILE, default=COMPILE, metavar="COMPILE")
    parser.add_argument(
        "--quick", action="store_true", help="small batches, and nothing compiled: does it run"
    )
    args = parser.parse_args()
    device = execution.device_for(args.device)
    cuda = device.startswith("cuda")
    precisions = (
        ["bf16", "tf32", "fp32"]
        if execution.resolved(device, "auto") == "bf16"
        else ["tf32", "fp32"]
        if cuda
        else ["fp32", "bf16"]
    )
    size = size_of(args.arch)
    job = Job(
        "ours",
        "",
        args.arch,
        4 if args.quick else 128,
        16 if args.quick else 2048,
        16 if args.quick else size,
        device,
    )
    for compile_ in args.rows:
        if compile_ == "on" and args.quick:
            continue
        for precision in precisions[:1] if compile_ == "on" else precisions:
            for stage in JOBS:
                path = args.folder / f"{args.arch}-{compile_}-{precision}-{stage}.json"
                if not path.exists():
                    print(f"measuring {path.stem}", flush=True)
                    row = measure(
                        replace(job, precision=precision, compile=compile_),
                        stage,
                        0.05 if args.quick else 2.0,
                    )
                    where = {"device": device_name(device), "torch": torch.__version__}
                    write_json(path, row | where)


if __name__ == "__main__":
    entry.run(main)
