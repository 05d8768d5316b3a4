"""What make gpu does, one function an item: each returns what it found, and what it says of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import choice as choosing
from benchmarks.sides import ROOT, size_of
from kesi.runs.resume import STATE
from kesi.system.errors import KesiError

GRACE = 15.0  # seconds in which a pipeline that is told to end saves its state


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

    Raises OutOfTime where the seconds end first: it is told to end then, and has GRACE to save;
    KesiError where it takes more than ``most`` seconds, for the other things are worth something,
    too."""
    if plan.left() < 1:
        raise OutOfTime
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if plan.quick:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    path = plan.folder / f"{log}.log"
    with open(path, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
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
    code, output = run(plan, "-m", "benchmarks.gpu.tests", log="tests", most=240)
    last = (output.strip().splitlines() or ["nothing"])[-1].strip("= ")
    return {"says": last, "passed": code in (0, 5)}


def steps(plan: Plan, rows: Sequence[str], log: str) -> dict:
    """The rows of the table of steps that are not measured yet."""
    words = [
        "-m",
        "benchmarks.gpu.steps",
        plan.folder / "steps",
        "--arch",
        plan.arch,
        "--device",
        plan.device,
        "--rows",
        *rows,
    ]
    _must(run(plan, *words, *(["--quick"] if plan.quick else []), log=log, most=240))
    return {"says": f"{len(choosing.measured(plan.folder / 'steps'))} rows"}


def choice(plan: Plan) -> dict:
    """Precision and compilation for the pipeline, from the rows that are there."""
    found = choosing.choose(choosing.measured(plan.folder / "steps"), plan.arch)
    return {
        **found,
        "says": f"--precision {found['precision']} --compile {found['compile']}: {found['why']}",
    }


def pipeline(plan: Plan) -> dict:
    """All five steps on the images given, continued from where it stands."""
    chosen = json.loads((plan.folder / "choice.json").read_text())
    family = "cifar" if size_of(plan.arch) == 32 else "tinyimagenet"
    output = _must(
        run(
            plan,
            f"{family}/pipeline.py",
            "--arch",
            plan.arch,
            "--dataset",
            plan.dataset,
            "--data",
            plan.data,
            "--method",
            "filter",
            "--epochs-scale",
            plan.scale,
            "--save",
            plan.folder.resolve() / "pipeline",
            "--device",
            plan.device,
            "--precision",
            chosen["precision"],
            "--compile",
            chosen["compile"],
            log="pipeline",
        )
    )
    table = output[output.find("method ") :].partition("\nplots: ")[0]
    return {"says": "finished", "table": table.rstrip()}


def verify(plan: Plan) -> dict:
    """Whether the pipeline's run is true."""
    output = _must(
        run(
            plan,
            "-m",
            "kesi",
            "verify",
            plan.folder.resolve() / "pipeline",
            "--data",
            plan.data,
            "--device",
            plan.device,
            log="verify",
        )
    )
    return {"says": output.strip().splitlines()[-1]}


def throughput(plan: Plan) -> dict:
    """Training and distilling, ours against the classic way."""
    words = [
        "-m",
        "benchmarks.throughput",
        "--device",
        plan.device,
        "--rows",
        "retrain",
        "distill",
        "--json",
        plan.folder.resolve() / "throughput-all.json",
    ]
    output = _must(run(plan, *words, *(["--quick"] if plan.quick else []), log="throughput"))
    return {"says": "measured", "table": output[output.find("| what") :]}


def deterministic(plan: Plan) -> dict:
    """A deterministic training of ResNet-20 on digits, once undisturbed and once killed after an
    epoch."""
    folder = plan.folder.resolve() / "deterministic"
    words = [
        "cifar/train.py",
        "--arch",
        "resnet20",
        "--dataset",
        "digits",
        "--epochs",
        6,
        "--deterministic",
        "--device",
        plan.device,
        "--save",
    ]
    shutil.rmtree(folder, ignore_errors=True)  # of a time that ended in between, maybe elsewhere
    _must(run(plan, *words, folder / "whole", log="deterministic"))
    process = subprocess.Popen(
        [sys.executable, *map(str, words), str(folder / "killed")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not (folder / "killed" / STATE).exists():
            if plan.left() < 1:
                raise OutOfTime
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    output = _must(run(plan, *words, folder / "killed", log="deterministic"))
    if "continues after epoch" not in output:
        raise KesiError("it was over before it was killed")
    whole, killed = (
        json.loads((folder / name / "result.json").read_text())["network_digest"]
        for name in ("whole", "killed")
    )
    same = whole == killed
    return {"says": "killed, continued; the same bits" if same else "OTHER BITS", "passed": same}


ITEMS = {
    "tests": tests,
    "steps-capture": lambda plan: steps(plan, ["capture"], "steps-capture"),
    "steps-off": lambda plan: steps(plan, ["off"], "steps-off"),
    "steps-on": lambda plan: steps(plan, ["on"], "steps-on"),
    "choice": choice,
    "pipeline": pipeline,
    "verify": verify,
    "throughput": throughput,
    "deterministic": deterministic,
}
