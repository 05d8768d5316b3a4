"""What it costs that threads spin while they wait for each other: one thread against two, ways
alternated.

    python -m benchmarks.waiting                      ResNet-20 at 16 px, batch 64, fp32: about two
                                                      minutes
    python -m benchmarks.waiting --precision bf16

Run it on a quiet machine, and on one that does something else too. The way is a variable of the
OpenMP library (of GNU, which torch comes with), read when a process starts; it changes no bit of
any result.
"""

import os
import statistics
import subprocess
import sys
import time

import torch

import models
from benchmarks.sides import ROOT
from kesi.cli import entry
from kesi.method.objectives import CrossEntropy
from kesi.system import execution
from kesi.system.errors import UsageError

WAYS = {
    "one thread": (1, {}),
    "two threads": (2, {}),
    "two, OMP_WAIT_POLICY=passive": (2, {"OMP_WAIT_POLICY": "passive"}),
    "two, GOMP_SPINCOUNT=1000": (2, {"GOMP_SPINCOUNT": "1000"}),
    "two, GOMP_SPINCOUNT=10000": (2, {"GOMP_SPINCOUNT": "10000"}),
    "two, GOMP_SPINCOUNT=30000": (2, {"GOMP_SPINCOUNT": "30000"}),
}

SET_HERE = {"OMP_NUM_THREADS", *(name for _, variables in WAYS.values() for name in variables)}


def measure(threads: int, precision: str, seconds: float) -> tuple[float, float]:
    """(images a second, milliseconds of processor time a step) in this process."""
    execution.set_threads(threads)
    execution.set_up("cpu", precision, False)
    torch.manual_seed(0)
    model = models.create("resnet20", 10).to(memory_format=torch.channels_last)
    images = torch.randn(64, 3, 16, 16).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (64,))
    step = execution.make_step(model, CrossEntropy(), "cpu", precision, "off", 1)
    for _ in range(3):
        step(images, labels)
    start, processor, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        step(images, labels)
        count += 1
    took = time.perf_counter() - start
    return 64 * count / took, (time.process_time() - processor) / count * 1e3


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.waiting")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s"
    )
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="S", help="of a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--one", type=int, metavar="THREADS", help="measure this process, and nothing else"
    )
    args = parser.parse_args()
    if args.turns < 1:
        raise UsageError(f"--turns must be at least 1, not {args.turns}")
    if args.one:
        print(*measure(args.one, args.precision, args.seconds))
        return
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(args.turns):
        for way, (threads, variables) in WAYS.items():
            environment = {
                name: value for name, value in os.environ.items() if name not in SET_HERE
            }
            words = [
                "--one",
                str(threads),
                "--precision",
                args.precision,
                "--seconds",
                str(args.seconds),
            ]
            said = subprocess.run(
                [sys.executable, "-m", "benchmarks.waiting", *words],
                cwd=ROOT,
                text=True,
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            rate, processor = map(float, said.split())
            found[way].append((rate, processor))
    print(
        f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
        f"{args.precision}\n\n"
        "| way | images/s, each turn | processor ms a step, median |\n| --- | ---: | ---: |"
    )
    for way, turns in found.items():
        rates = ", ".join(f"{rate:,.0f}" for rate, _ in turns)
        print(
            f"| {way} | {rates} | {statistics.median(processor for _, processor in turns):,.0f} |"
        )


if __name__ == "__main__":
    entry.run(main)
