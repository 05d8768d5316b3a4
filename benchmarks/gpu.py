"""Everything that a first rented GPU should tell, in order of value, within the seconds given.

    make gpu LIMIT=570                                       with the digits that are shipped
    make gpu LIMIT=570 DATASET=cifar10 DATA=images           with the images in that folder
    make gpu PYTHON=python3                                  with a Python that has torch already
    make gpu DEVICE=cpu ARCH=resnet20 SCALE=0.02 LIMIT=60    a rehearsal

The GPU tests; a table of steps; the precision and the compilation that follow from it; the pipeline from where
it stands; kesi verify of it; the classic way beside ours; a deterministic run, killed and resumed. What is
finished stays in one folder (no file above 16 MB): copied to another machine, the same command goes on there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import models
from benchmarks import gpu_steps
from benchmarks.sides import ROOT, size_of
from kesi.cli import entry
from kesi.data import DATASETS
from kesi.system import execution
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import write_json, write_text
from kesi.system.provenance import provenance

GRACE = 15.0  # seconds in which a pipeline that is told to end saves its state
LARGEST = 16_000_000  # bytes a file


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    folder: Path
    arch: str
    device: str
    dataset: str
    data: str
    scale: float
    deadline: float  # of time.monotonic()

    @property
    def quick(self) -> bool:
        """A rehearsal on a CPU: small batches."""
        return not self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds in which something may still run."""
        return self.deadline - time.monotonic()


class OutOfTime(Exception):
    """The seconds given are over; what runs next begins with the same command."""


def run(plan: Plan, *words: object, log: str, most: float = float("inf")) -> tuple[int, str]:
    """Run ``python words``, its output into a file of the folder: (exit code, output).

    Raises OutOfTime where the seconds end first: it is told to end then, and has GRACE to save; KesiError
    where it takes more than ``most`` seconds, for the other things are worth something, too.
    """
    if plan.left() < 1:
        raise OutOfTime
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if plan.quick:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    path = plan.folder / f"{log}.log"
    with open(path, "w") as file:
        process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=environment,
                                   stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(min(plan.left(), most))
        except subprocess.TimeoutExpired as over:
            if plan.left() > 0:
                raise KesiError(f"it took more than {most:.0f} s") from over
            raise OutOfTime from over
        finally:
            _end(process)
    return process.returncode, path.read_text(errors="replace")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _must(answer: tuple[int, str]) -> str:
    code, output = answer
    if code:
        said = output.strip().splitlines() or ["nothing"]
        raise KesiError(f"exit code {code}: {said[-1]}")
    return output


def tests(plan: Plan) -> dict:
    """The tests that need a GPU; on a CPU each is skipped."""
    code, output = run(plan, "-m", "benchmarks.gpu_tests", log="tests", most=240)
    last = (output.strip().splitlines() or ["nothing"])[-1].strip("= ")
    return {"says": last, "passed": code in (0, 5)}


def steps(plan: Plan, rows: Sequence[str], log: str) -> dict:
    """The rows of the table of steps that are not measured yet."""
    words = ["-m", "benchmarks.gpu_steps", plan.folder / "steps", "--arch", plan.arch, "--device", plan.device,
             "--rows", *rows]
    _must(run(plan, *words, *(["--quick"] if plan.quick else []), log=log, most=240))
    return {"says": f"{len(gpu_steps.measured(plan.folder / 'steps'))} rows"}


def choice(plan: Plan) -> dict:
    """Precision and compilation for the pipeline, from the rows that are there."""
    found = gpu_steps.choose(gpu_steps.measured(plan.folder / "steps"), plan.arch)
    return {**found, "says": f"--precision {found['precision']} --compile {found['compile']}: {found['why']}"}


def pipeline(plan: Plan) -> dict:
    """All five steps on the images given, continued from where it stands."""
    chosen = json.loads((plan.folder / "choice.json").read_text())
    family = "cifar" if size_of(plan.arch) == 32 else "tinyimagenet"
    output = _must(run(plan, f"{family}/pipeline.py", "--arch", plan.arch, "--dataset", plan.dataset,
                       "--data", plan.data, "--method", "filter", "--epochs-scale", plan.scale,
                       "--save", plan.folder.resolve() / "pipeline", "--device", plan.device,
                       "--precision", chosen["precision"], "--compile", chosen["compile"], log="pipeline"))
    return {"says": "finished", "table": output[output.find("method "):]}


def verify(plan: Plan) -> dict:
    """Whether the pipeline's run is true."""
    output = _must(run(plan, "-m", "kesi", "verify", plan.folder.resolve() / "pipeline", "--data", plan.data,
                       "--device", plan.device, log="verify"))
    return {"says": output.strip().splitlines()[-1]}


def throughput(plan: Plan) -> dict:
    """Training and distilling, ours against the classic way."""
    words = ["-m", "benchmarks.throughput", "--device", plan.device, "--rows", "retrain", "distill",
             "--json", plan.folder.resolve() / "throughput-all.json"]
    output = _must(run(plan, *words, *(["--quick"] if plan.quick else []), log="throughput"))
    return {"says": "measured", "table": output[output.find("| what"):]}


def deterministic(plan: Plan) -> dict:
    """A deterministic training of ResNet-20 on digits, once undisturbed and once killed after an epoch."""
    folder = plan.folder.resolve() / "deterministic"
    words = ["cifar/train.py", "--arch", "resnet20", "--dataset", "digits", "--epochs", 6, "--deterministic",
             "--device", plan.device, "--save"]
    _must(run(plan, *words, folder / "whole", log="deterministic"))
    process = subprocess.Popen([sys.executable, *map(str, words), str(folder / "killed")], cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (folder / "killed" / "metrics.jsonl").exists():
            if plan.left() < 1:
                raise OutOfTime
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    output = _must(run(plan, *words, folder / "killed", log="deterministic"))
    whole, killed = (json.loads((folder / name / "result.json").read_text())["network_digest"]
                     for name in ("whole", "killed"))
    same = whole == killed
    went = "continued" if "continues after epoch" in output else "was finished before the kill"
    return {"says": f"{went}; {'the same bits' if same else 'OTHER BITS'}", "passed": same}


ITEMS = {
    "tests": tests,
    "steps-capture": lambda plan: steps(plan, ["capture"], "steps-capture"),
    "steps-off": lambda plan: steps(plan, ["off"], "steps-off"),
    "steps-on": lambda plan: steps(plan, ["on"], "steps-on"),
    "choice": choice, "pipeline": pipeline, "verify": verify, "throughput": throughput,
    "deterministic": deterministic}


def go_through(plan: Plan) -> bool:
    """Do what is not done, in order; returns whether all of it is. A failure is noted and tried again next time."""
    whole = True
    for name, item in ITEMS.items():
        path = plan.folder / f"{name}.json"
        if path.exists():
            print(f"{name}: {json.loads(path.read_text())['says']} (before)", flush=True)
            continue
        if name == "verify" and not (plan.folder / "pipeline.json").exists():
            continue
        start = time.monotonic()
        try:
            found = item(plan)
        except OutOfTime:
            print(f"{name}: the time is over; the same command goes on from here", flush=True)
            return False
        except (KesiError, OSError, ValueError) as error:
            print(f"{name}: FAILED ({error}); see {plan.folder / name}.log", flush=True)
            whole = False
            continue
        whole &= found.get("passed", True)
        print(f"{name}: {found['says']}, {time.monotonic() - start:.0f} s", flush=True)
        if found.get("passed", True):
            write_json(path, {**found, "seconds": time.monotonic() - start, **provenance(plan.device)})
    return whole


def summary(folder: Path) -> str:
    """All that is known, in Markdown; large files are named."""
    lines = ["# What a GPU told", ""]
    for name in ITEMS:
        path = folder / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else None
        where = f" ({found['device']}, torch {found['versions']['torch']})" if found else ""
        lines.append(f"- {name}: {found['says'] if found else 'not yet'}{where}")
        if found and found.get("table"):
            lines += ["", *("    " + line for line in found["table"].splitlines()), ""]
    rows = gpu_steps.measured(folder / "steps")
    lines += ["", gpu_steps.table(rows)] if rows else []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > LARGEST:
            lines.append(f"- above 16 MB: {path.relative_to(folder)}, {path.stat().st_size / 1e6:.0f} MB")
    return "\n".join(lines) + "\n"


def main() -> None:
    started = time.monotonic()
    parser = entry.parser(__doc__, "benchmarks.gpu")
    parser.add_argument("--save", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=570, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument("--arch", choices=list(models.ARCHITECTURES), default="resnet56", metavar="NAME",
                        help="default: %(default)s")
    parser.add_argument("--dataset", choices=DATASETS, default="digits", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--data", default="data", metavar="DIR", help="where the images are (default: %(default)s)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, metavar="X", help="of the pipeline (default: 1)")
    args = parser.parse_args()
    if not args.limit > 2 * GRACE:
        raise UsageError(f"--limit must be above {2 * GRACE:.0f} seconds, not {args.limit:g}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is told to end, too
    args.save.mkdir(parents=True, exist_ok=True)
    plan = Plan(args.save, args.arch, execution.device_for(args.device), args.dataset,
                str(Path(args.data).resolve()), args.epochs_scale, started + args.limit - GRACE)
    whole = go_through(plan)
    text = summary(plan.folder)
    write_text(plan.folder / "report.md", text)
    print(f"\n{text}\n{plan.folder / 'report.md'}" + ("" if whole else "\nnot all of it is done"))


if __name__ == "__main__":
    entry.run(main)
