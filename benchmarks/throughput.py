"""How fast KESI trains, side by side in one run with the classic way;
prints one table, and JSON beside it.

    python -m benchmarks.throughput                                   everything, about a quarter of
                                                                      an hour on a CPU
    python -m benchmarks.throughput --rows retrain distill --compile  also with torch.compile
    python -m benchmarks.throughput --quick                           does it run: a small network,
                                                                      seconds
    python -m benchmarks.throughput --scaling                         cost against images, batch
                                                                      size and teachers

The two sides (benchmarks/classic.py, and the code that users run with its default settings) take
turns, each in a process of its own, from the images to the updated weights. Before any timing they
get the same weights and batches and have to compute the same losses and gradients. Figures are
medians over the turns, with the quartiles in brackets. Nothing is downloaded: the images are noise
in the shape of CIFAR.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks import input as input_side
from benchmarks import rates, scaling
from benchmarks.sides import Job, Process
from kesi.cli import entry
from kesi.data.augment import PadCrop
from kesi.system import execution
from kesi.system.errors import KesiError, UsageError
from kesi.system.provenance import provenance

ROWS = ("retrain", "distill", "input", "masks", "matmul")

# How far losses may be apart, and the first gradient, as a share of its length. bf16 keeps 8 bits:
# on noise and with fresh weights the gradient of 56 layers hardly says more than a direction.
TOLERANCES = {"fp32": (1e-3, 0.05), "tf32": (1e-2, 0.5), "bf16": (2e-2, 0.9)}


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    device: str
    threads: int | None
    compile: bool
    arch: str = "resnet56"
    batch: int = 128
    images: int = 50_000
    turns: int = 7
    seconds: float = 4.0  # of a turn
    networks: tuple[str, ...] = rates.NETWORKS

    @property
    def workers(self) -> int:
        """Of the classic DataLoader."""
        return 4 if self.device.startswith("cuda") else 2


@dataclass
class Row:
    """A line of the table: what was measured of each side, and what they have in common."""

    what: str
    classic: str = "-"
    ours: str = "-"
    ratio: float | None = None
    memory: str = "-"
    data: dict = field(default_factory=dict)


def sides(settings: Settings, stage: str, masked: bool = False) -> dict[str, Job]:
    """The jobs of a row, by the name of the side.
    Ours is as users have it, then with a setting changed."""
    classic = Job("classic",
                  stage, settings.arch, settings.batch, settings.images, device=settings.device,
                  threads=settings.threads, workers=settings.workers, masked=masked)
    ours = replace(classic, side="ours")
    found = {"classic": classic, "ours": ours}
    if masked:
        return found
    if settings.compile:
        found["ours, --compile on"] = replace(ours, compile="on")
    other = "fp32" if settings.device.startswith("cuda") else "bf16"
    found[f"ours, --precision {other}"] = replace(ours, precision=other)
    return found


def check(processes: dict[str, Process]) -> dict:
    """Have every side take the same steps. Raises KesiError where one computes something else."""
    answers, gradients = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, process in processes.items():
            path = Path(folder) / "gradient.pt"
            answers[name] = process.ask("check", str(path))
            gradients[name] = torch.load(path)
    classic, found = answers["classic"], {}
    expected = [loss - constant
                for loss, constant in zip(classic["losses"], classic["constant"], strict=True)]
    for name in [name for name in answers if name != "classic"]:
        answer = answers[name]
        loss_limit, gradient_limit = TOLERANCES[answer["precision"]]
        apart = [abs(a - b) / max(abs(b), 0.1)
                 for a, b in zip(answer["losses"], expected, strict=True)]
        apart = max(apart) if all(map(math.isfinite, apart)) else math.inf
        gradient = float(
            (gradients[name] - gradients["classic"]).norm() / gradients["classic"].norm())
        # where weights are masked, ours masks them after the step and the classic way their
        # gradients before it
        bad_gradient = not classic["zeros"] and not gradient <= gradient_limit
        if not apart <= loss_limit or bad_gradient or answer["zeros"] != classic["zeros"]:
            raise KesiError(
                f"the sides do not compute the same: losses {answer['losses']} of {name!r} against "
                f"{expected}, {apart:.1e} apart (at most {loss_limit}); first gradient "
                f"{gradient:.1e} apart (at most {gradient_limit}); {answer['zeros']} against "
                f"{classic['zeros']} zeros")
        found[name] = {"precision": answer["precision"], "loss_apart": apart,
                       "gradient_apart": gradient}
    return found


def take_turns(processes: dict[str, Process], turns: int, seconds: float) -> dict[str, dict]:
    """Let the sides take turns; returns seconds a step and images a second of every turn, by side.
    """
    counts = {}
    for name, process in processes.items():
        first = process.ask("turn", 1)
        counts[name] = max(1, math.ceil(seconds / max(first["seconds"] / first["steps"], 1e-4)))
    found: dict[str, dict] = {name: {"step_seconds": [], "process_step_seconds": [],
                                     "images_per_second": []} for name in processes}
    for turn in range(turns):
        order = list(processes) if turn % 2 == 0 else list(reversed(processes))
        for name in order:
            took = processes[name].ask("turn", counts[name])
            found[name]["step_seconds"].append(took["seconds"] / took["steps"])
            found[name]["process_step_seconds"].append(took["process_seconds"] / took["steps"])
            found[name]["images_per_second"].append(took["images"] / took["seconds"])
    return found


def training_rows(settings: Settings, stage: str) -> list[Row]:
    """Retraining the unpruned network, or distilling six teachers into that of the last round."""
    jobs = sides(settings, stage)
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(job)) for name, job in jobs.items()}
        checked = check(processes)
        times = take_turns(processes, settings.turns, settings.seconds)
        memory = {name: process.ask("memory")["mb"] for name, process in processes.items()}
    what = {"retrain": f"retraining {settings.arch}, batch {settings.batch}", "distill":
            f"distilling {settings.arch} round 5 from six teachers, batch {settings.batch}"}[stage]
    rows = []
    for name in [name for name in jobs if name != "classic"]:
        suffix = f" ({name})" if name != "ours" else ""
        data = {"check": checked[name], "classic": times["classic"], "ours": times[name],
                "memory_mb": {"classic": memory["classic"], "ours": memory[name]}}
        ratio = (statistics.median(times[name]["images_per_second"])
                 / statistics.median(times["classic"]["images_per_second"]))
        rows.append(Row(what + suffix, _pace(times["classic"]), _pace(times[name]), ratio,
                        f"{memory['classic']:,.0f} -> {memory[name]:,.0f} MB", data))
    return rows


def _pace(times: dict) -> str:
    return (f"{_spread(times['images_per_second'])} images/s, "
            f"{_spread(times['step_seconds'], 1e3)} ms")


def _spread(values: Sequence[float], scale: float = 1.0) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = quartiles(values)
    digits = 0 if middle * scale >= 100 else 1
    return f"{middle * scale:,.{digits}f} ({low * scale:,.{digits}f}..{high * scale:,.{digits}f})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def input_row(settings: Settings, seconds: float) -> Row:
    """The images alone, without any training."""
    device = torch.device(settings.device)
    images = torch.randint(0, 256, (settings.images, 32, 32, 3), dtype=torch.uint8)
    both = {"KESI": input_side.ours(images, PadCrop(32, 4), settings.batch, device),
            "classic": input_side.classic(images, 32, settings.batch, device, settings.workers)}
    found: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(settings.turns):
        for name, batches in both.items():
            found[name].append(input_side.turn(batches, seconds / settings.turns, device))
    ratio = statistics.median(found["KESI"]) / statistics.median(found["classic"])
    return Row("input side alone (crop, flip, normalise), 32 px",
               _spread(found["classic"]) + " images/s",
               _spread(found["KESI"]) + " images/s", ratio, data={"images_per_second": found})


def masks_row(settings: Settings) -> Row:
    """Weight masks of the last round's sparsity: their share of a step."""
    jobs = sides(settings, "retrain", masked=True)
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(job)) for name, job in jobs.items()}
        checked = check(processes)
        times = take_turns(processes, min(3, settings.turns), settings.seconds)
        applied: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(max(3, settings.turns)):
            for name, process in processes.items():
                applied[name].append(process.ask("masks", 20)["seconds"])
    shares = {name: statistics.median(applied[name])
              / statistics.median(times[name]["step_seconds"]) for name in jobs}

    def text(name: str) -> str:
        return f"{shares[name]:.2%} ({statistics.median(applied[name]) * 1e3:.2f} ms)"

    return Row(f"weight masks of {settings.arch} round 5, share of a step",
               text("classic"), text("ours"), data={"check": checked["ours"], "share": shares,
                                                    "mask_seconds": applied, "steps": times})


def matmul_rows(settings: Settings) -> list[Row]:
    """Every network's step as a share of what a large matrix product reaches here."""
    rows = []
    for found in rates.shares(settings.networks, settings.device, settings.seconds):
        text = (f"{found['share']:.0%} of {found['matmul_flops'] / 1e12:,.2f} TFLOP/s "
                f"({found['precision']})")
        rows.append(Row(f"share of the machine's own matmul rate, {found['arch']}, batch "
                        f"{found['batch']}", "-", text, data=found))
    return rows


def measure(settings: Settings, chosen: Sequence[str], quick: bool) -> list[Row]:
    """All rows that were asked for; says on standard error which one is being measured."""
    rows: list[Row] = []
    for name in chosen:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        if name in ("retrain", "distill"):
            rows += training_rows(settings, name)
        elif name == "input":
            rows.append(input_row(settings, 0.4 if quick else 10.0))
        elif name == "masks":
            rows.append(masks_row(settings))
        else:
            rows += matmul_rows(settings)
    return rows


def table(rows: Sequence[Row], origin: dict, cuda: bool) -> str:
    """The rows in Markdown, with the machine they hold for."""
    commit = (origin["commit"] or "unknown")[:10] + (" and changes" if origin["dirty"] else "")
    lines = [f"{origin['device']}; "
             f"torch {origin['versions']['torch']}; commit {commit}; {origin['date']}", "",
             "| what | classic | ours | ratio | peak memory |" + ("" if cuda else " on a GPU |"),
             "| --- | ---: | ---: | ---: | ---: |" + ("" if cuda else " --- |")]
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
        lines.append(f"| {row.what} | {row.classic} | {row.ours} | {ratio} | {row.memory} |"
                     + ("" if cuda else " not measured |"))
    return "\n".join(lines)


def settings_for(args: argparse.Namespace) -> Settings:
    """What the flags say. Raises UsageError for a device or a number that cannot be."""
    execution.set_threads(args.threads)
    settings = Settings(execution.device_for(args.device), args.threads, args.compile)
    if args.quick:
        settings = replace(settings, arch="resnet20", batch=16, images=256, turns=2, seconds=0.05,
                           networks=("resnet20",))
    return settings


def main() -> None:
    parser = entry.parser(__doc__, "benchmarks.throughput")
    parser.add_argument("--quick", action="store_true",
                        help="a small network and few steps: does it run")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW",
                        help=f"what to measure: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--scaling", action="store_true", help="instead: cost against the number "
                        "of images, the batch size, and the number of teachers")
    parser.add_argument("--compile", action="store_true",
                        help="also measure ours with --compile on")
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="CPU threads of either side (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="also write everything measured to this file")
    args = parser.parse_args()
    if args.scaling and (args.compile or args.rows is not ROWS):
        raise UsageError("--scaling measures something else than --rows and --compile: give it "
                         "alone")
    settings = settings_for(args)
    origin = {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(),
              **provenance(settings.device)}
    if args.scaling:
        results = scaling.measure(settings.arch, settings.device, settings.batch, settings.seconds,
                                  args.quick)
        text = f"{origin['device']}; {origin['date']}\n\n" + scaling.tables(results)
    else:
        rows = measure(settings, args.rows, args.quick)
        text = table(rows, origin, settings.device.startswith("cuda"))
        results = {"rows": [{"what": row.what, "ratio": row.ratio, **row.data} for row in rows]}
    print(text)
    if args.json:
        try:
            args.json.write_text(json.dumps({**origin, "settings": vars(settings), **results},
                                            indent=1) + "\n")
        except OSError as error:
            raise KesiError(f"--json {args.json}: {error.strerror}") from error


if __name__ == "__main__":
    entry.run(main)
