"""A table of training steps: precision x compilation x round x teachers, and what follows from it.

    python -m benchmarks.gpu_steps runs/gpu/steps --rows capture off on

Every row is a file of its own in the folder; one that is there is not measured again. A row holds the seconds of a
whole step (from images to updated weights), of a replay of its graph, and of the Python that starts it, its kernels
(on a CPU its operations), and how far its loss and its gradient are from those of an eager step in fp32.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import models
from benchmarks.rates import median_seconds
from benchmarks.sides import Job, Ours, networks, our_batches, recipe_of, size_of, synchronize
from kesi.cli import entry
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import cross_entropy
from kesi.system import execution
from kesi.system.capture import CapturedStep
from kesi.system.errors import KesiError
from kesi.system.files import read_json, write_json

COMPILE = ("capture", "off", "on")
JOBS = {"baseline": (0, 0), "onecycle": (1, 0), "kesi": (-1, 6)}  # round and teachers
# How far a loss may be from that of eager fp32, and the gradient, as a share of its length. The networks are
# untrained and the images noise, which is where a gradient says least.
TOLERANCES = {"fp32": (1e-3, 0.05), "tf32": (1e-2, 0.5), "bf16": (2e-2, 0.9)}


def measured(folder: Path) -> list[dict]:
    """The rows in a folder."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def measure(job: Job, stage: str, seconds: float) -> dict:
    """One row; ``job`` says precision and compilation."""
    round_, count = JOBS[stage]
    plan, device = recipe_of(job.arch), torch.device(job.device)
    settings = {"baseline": plan.baseline, "onecycle": plan.retrain, "kesi": plan.distill}[stage]
    rounds = networks(job.arch, job.size)
    teachers = rounds[:count]
    generator = torch.Generator().manual_seed(2)
    images = torch.randn((job.batch, 3, job.size, job.size), generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (job.batch,), generator=generator).to(device)
    loss, gradient = _exact(copy.deepcopy(rounds[round_]), teachers, plan.temperature, job, images, labels)

    start = time.perf_counter()
    ours = Ours(job, rounds[round_], replace(settings, batch_size=job.batch), teachers, plan.temperature, None)
    found, _ = ours.step(images, labels)
    apart = abs(float(found) - loss) / max(abs(loss), 0.1)
    first = time.perf_counter() - start
    error = float((_gradient(ours.model) - gradient).norm() / gradient.norm())
    batches = our_batches(job)
    source = (batch for epoch in range(10**9) for batch in batches.epoch(epoch))

    def advance() -> None:
        ours.advance(*next(source))

    step = median_seconds(advance, device, seconds)
    python = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        advance()
        python.append(time.perf_counter() - start)
    replay = ours.step.replay if isinstance(ours.step, CapturedStep) else None
    return {"stage": stage, "arch": job.arch, "round": len(rounds) - 1 if round_ < 0 else round_, "teachers": count,
            "precision": ours.precision, "compile": job.compile, "batch": job.batch, "first_seconds": first,
            "step_seconds": step, "python_seconds": sorted(python)[2] if device.type == "cuda" else None,
            "replay_seconds": None if replay is None else median_seconds(replay, device, seconds),
            "kernels": _kernels(advance, device), "loss_apart": apart, "gradient_apart": error}


def _exact(model, teachers: Sequence, temperature: float, job: Job, images, labels) -> tuple[float, torch.Tensor]:
    """Loss and gradient of an eager step in fp32."""
    execution.set_up(job.device, "fp32", deterministic=False)
    model = model.to(images.device, memory_format=torch.channels_last).train()
    objective = cross_entropy
    if teachers:
        objective = Distillation(SnapshotEnsemble(teachers, device=job.device), temperature)
    loss, _ = execution.make_step(model, objective, job.device, "fp32", "off", 1)(images, labels)
    return float(loss), _gradient(model)


def _gradient(model) -> torch.Tensor:
    return torch.cat([weight.grad.float().cpu().flatten() for weight in model.parameters()])


def _kernels(step, device: torch.device) -> int:
    """Kernels of one step on a GPU; on a CPU the operations that Python, or the backward pass, calls."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
        synchronize(device)
    if cuda:
        return sum(event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
                   for event in found.events())
    return sum(event.cpu_parent is None and event.name.startswith("aten::") for event in found.events())


def choose(rows: Sequence[dict], arch: str) -> dict:
    """The precision, and the value of --compile, with which the pipeline is over soonest.

    A precision counts if every loss and gradient in it is within its tolerance. "auto" compiles the baseline
    only, and has to earn back what compiling takes. Raises KesiError where no precision was measured in all stages.
    """
    plan = recipe_of(arch)
    epochs = {"baseline": plan.baseline.epochs, "onecycle": len(plan.rounds) * plan.retrain.epochs,
              "kesi": plan.distill.epochs}
    found = {(row["precision"], row["compile"], row["stage"]): row for row in rows}
    options = []
    for precision, compile_ in sorted({key[:2] for key in found if key[1] != "on"}):
        mine = [found.get((precision, compile_, stage)) for stage in JOBS]
        if None in mine or not all(_within(row) for row in mine):
            continue
        steps = {row["stage"]: epochs[row["stage"]] * 50_000 / row["batch"] for row in mine}
        took = sum(steps[row["stage"]] * row["step_seconds"] for row in mine)
        options.append((took, precision, compile_))
        fused = found.get((precision, "on", "baseline"))
        if fused and compile_ == "capture" and _within(fused):
            saved = steps["baseline"] * (mine[0]["step_seconds"] - fused["step_seconds"]) - fused["first_seconds"]
            options.append((took - saved, precision, "auto"))
    if not options:
        raise KesiError("no precision is measured in all stages and near enough to fp32")
    took, precision, compile_ = min(options)
    slow = max(options)
    return {"precision": precision, "compile": compile_,
            "why": f"{took / 3600:.2f} h for 50,000 images, the slowest of {len(options)} ways ({slow[1]}, {slow[2]}) "
                   f"{slow[0] / 3600:.2f} h"}


def _within(row: dict) -> bool:
    loss, gradient = TOLERANCES[row["precision"]]
    return row["loss_apart"] <= loss and row["gradient_apart"] <= gradient


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""
    def ms(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e3:.2f}"

    lines = ["| stage | round | teachers | batch | precision | compile | step ms | replay ms | Python ms | kernels "
             "| first step s | loss apart | gradient apart |", "| --- " * 13 + "|"]
    for row in rows:
        lines.append(f"| {row['stage']} | {row['round']} | {row['teachers']} | {row['batch']} | {row['precision']} | "
                     f"{row['compile']} | {ms(row['step_seconds'])} | {ms(row['replay_seconds'])} | "
                     f"{ms(row['python_seconds'])} | {row['kernels']:,} | {row['first_seconds']:.1f} | "
                     f"{row['loss_apart']:.1e} | {row['gradient_apart']:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.gpu_steps")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", choices=list(models.ARCHITECTURES), default="resnet56", metavar="NAME")
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument("--rows", nargs="+", choices=COMPILE, default=COMPILE, metavar="COMPILE")
    parser.add_argument("--quick", action="store_true", help="small batches, and nothing compiled: does it run")
    args = parser.parse_args()
    device = execution.device_for(args.device)
    cuda = device.startswith("cuda")
    precisions = (["bf16", "tf32", "fp32"] if execution.resolved(device, "auto") == "bf16" else
                  ["tf32", "fp32"] if cuda else ["fp32", "bf16"])
    size = size_of(args.arch)
    job = Job("ours", "", args.arch, 4 if args.quick else 128, 16 if args.quick else 2048,
              16 if args.quick else size, device)
    for compile_ in args.rows:
        if compile_ == "on" and args.quick:
            continue
        for precision in precisions[:1] if compile_ == "on" else precisions:
            for stage in JOBS:
                path = args.folder / f"{args.arch}-{compile_}-{precision}-{stage}.json"
                if not path.exists():
                    print(f"measuring {path.stem}", flush=True)
                    row = measure(replace(job, precision=precision, compile=compile_), stage,
                                  0.05 if args.quick else 2.0)
                    write_json(path, {**row, "device": device, "torch": torch.__version__})


if __name__ == "__main__":
    entry.run(main)
