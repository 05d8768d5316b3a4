"""Where the time of a training step goes: its top operations, for any network and stage.

    python -m benchmarks.profile --arch resnet56 --stage onecycle --round 1
    python -m benchmarks.profile --arch resnet56 --stage kesi --device cuda
    python -m benchmarks.profile --arch wrn-16-8 --stage onecycle --method weight --batch-size 32

The step is the one that fit() runs, on noise: from the augmentation to the weight masks. Times are
those of an operation itself, without what it calls. On a GPU they are those of its kernels,
whatever launches them.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import models
from benchmarks.sides import (
    Job,
    Ours,
    networks,
    our_batches,
    recipe_of,
    size_of,
    synchronize,
)
from kesi.cli import entry
from kesi.method.pruning import prune_weights
from kesi.method.recipes import METHODS, ROUNDS
from kesi.system import execution
from kesi.system.errors import UsageError

STAGES = ("baseline", "onecycle", "kesi")
WARM_UP = 4


def step_of(job: Job, stage: str, round_: int, method: str) -> Callable[[], object]:
    """One step of a stage: the network of that round,
    six teachers or fewer for "kesi", masks for "weight"."""
    plan = recipe_of(job.arch, method)
    rounds = networks(job.arch, job.size)
    if method == "weight":
        rounds = [rounds[0]] * len(rounds)
    model = rounds[round_]
    teachers = rounds[:round_ + 1] if stage == "kesi" else []
    masks = prune_weights(model, plan.rounds[round_ - 1]) if method == "weight" and round_ else None
    ours = Ours(job, model, replace(plan.trainings[stage], batch_size=job.batch), teachers,
                plan.loss, masks)
    batches = our_batches(job)

    def endless():
        epoch = 0
        while True:
            epoch += 1
            yield from ours.ahead(batches.epoch(epoch))

    source = endless()
    return lambda: ours.advance(*next(source))


def top(step: Callable[[], object], device: torch.device, count: int, rows: int) -> str:
    """The operations of ``count`` steps that take most time, and what is left over,
    as a text table."""
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as found:
        for _ in range(count):
            step()
        synchronize(device)

    def own(event) -> float:
        return (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / count

    listed = found.key_averages()
    # a kernel's time is listed under the operation that launched it, too, which would count it
    # twice
    if cuda:
        listed = [event for event in listed if event.device_type == DeviceType.CUDA
                  and not getattr(event, "is_user_annotation", False)]
    events = sorted((event for event in listed if own(event) > 0), key=own, reverse=True)
    total = sum(map(own, events))
    lines = [f"{'operation':<56} {'calls':>7} {'self ms':>9} {'share':>7}"]
    for event in events[:rows]:
        name = event.key if len(event.key) <= 56 else event.key[:53] + "..."
        lines.append(
            f"{name:<56} {event.count / count:>7.0f} {own(event):>9.2f} {own(event) / total:>7.1%}")
    rest = sum(map(own, events[rows:]))
    lines.append(
        f"{f'{max(0, len(events) - rows)} others':<56} {'':>7} {rest:>9.2f} {rest / total:>7.1%}")
    lines.append(f"{'a step':<56} {'':>7} {total:>9.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.profile")
    parser.add_argument("--arch", choices=list(models.ARCHITECTURES), default="resnet56",
                        metavar="NAME", help="default: %(default)s")
    parser.add_argument("--stage", choices=STAGES, default="onecycle", help="default: %(default)s")
    parser.add_argument("--round", type=int, metavar="N",
                        help="default: 0 for baseline, 1 for onecycle, 5 for kesi")
    parser.add_argument("--method", choices=METHODS, default="filter", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--precision", choices=execution.PRECISIONS, default="auto")
    parser.add_argument("--compile", choices=execution.COMPILE, nargs="?", const="on",
                        default="auto")
    parser.add_argument("--steps", type=int, default=4, metavar="N",
                        help="steps to profile (default: %(default)s, for which a GPU's teachers "
                             "are asked at once)")
    parser.add_argument("--top", type=int, default=12, metavar="N",
                        help="operations to show (default: %(default)s)")
    args = parser.parse_args()
    round_ = ({"baseline": 0, "onecycle": 1, "kesi": ROUNDS}[args.stage] if args.round is None
              else args.round)
    if not 0 <= round_ <= ROUNDS or (args.stage == "baseline" and round_):
        raise UsageError(
            f"--round {round_}: the baseline is round 0, and the recipe has {ROUNDS} rounds")
    if args.steps < 1 or args.top < 1:
        raise UsageError("--steps and --top must be at least 1")
    execution.set_threads(args.threads)
    device = execution.device_for(args.device)
    plan = recipe_of(args.arch, args.method)
    batch = args.batch_size
    if batch is None:
        batch = plan.trainings[args.stage].batch_size
    if batch < 2:
        raise UsageError(f"--batch-size must be at least 2, not {batch}")
    job = Job("ours", args.stage, args.arch, batch, 8 * batch, size_of(args.arch), device,
              precision=args.precision, compile=args.compile)
    print(f"{args.stage}, round {round_} ({args.method}), {args.arch}, batch {batch}, {device}")
    print(top(step_of(job, args.stage, round_, args.method), torch.device(device), args.steps,
              args.top))


if __name__ == "__main__":
    entry.run(main)
