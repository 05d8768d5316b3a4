"""What follows from the table of steps: the precision and the compilation for a pipeline."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.sides import recipe_of
from kesi.method.recipes import OWN
from kesi.method.snapshot import BASELINE, KESI
from kesi.system.errors import KesiError
from kesi.system.files import read_json

JOBS = {BASELINE: (0, 0), OWN: (1, 0), KESI: (-1, 6)}  # round and teachers
# How far a loss may be from that of eager fp32, and the gradient, as a share of its length. The
# networks are
# untrained and the images noise, which is where a gradient says least.
TOLERANCES = {"fp32": (1e-3, 0.05), "tf32": (1e-2, 0.5), "bf16": (2e-2, 0.9)}


def measured(folder: Path) -> list[dict]:
    """The rows in a folder."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def choose(rows: Sequence[dict], arch: str) -> dict:
    """The precision, and the value of --compile, with which the pipeline is over soonest.

    A precision counts if every loss and gradient in it is within its tolerance. "auto" compiles the
    baseline only, and has to earn back what compiling takes. Raises KesiError where no precision
    was measured in all stages, or not all of them on one machine."""
    plan = recipe_of(arch)
    epochs = {
        BASELINE: plan.baseline.epochs,
        OWN: len(plan.rounds) * plan.trainings[OWN].epochs,
        KESI: plan.distillation.epochs,
    }
    if len(machines := sorted({str(row.get("device")) for row in rows})) > 1:
        raise KesiError(f"steps were measured on {' and '.join(machines)}: their times are not for "
                        "one choice; measure all of them on one, in another --save")
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
            saved = (
                steps["baseline"] * (mine[0]["step_seconds"] - fused["step_seconds"])
                - fused["first_seconds"]
            )
            options.append((took - saved, precision, "auto"))
    if not options:
        raise KesiError("no precision is measured in all stages and near enough to fp32")
    took, precision, compile_ = min(options)
    slow = max(options)
    return {
        "precision": precision,
        "compile": compile_,
        "why": f"{took / 3600:.2f} h for 50,000 images, the slowest of {len(options)} ways "
        f"({slow[1]}, {slow[2]}) "
        f"{slow[0] / 3600:.2f} h",
    }


def _within(row: dict) -> bool:
    loss, gradient = TOLERANCES[row["precision"]]
    return row["loss_apart"] <= loss and row["gradient_apart"] <= gradient


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""

    def ms(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e3:.2f}"

    lines = ["| stage | round | teachers | batch | precision | compile | step "
             "ms | replay ms | Python ms | kernels | first step s | loss apart | gradient apart |",
             "| --- " * 13 + "|"]
    for row in rows:
        lines.append(
            f"| {row['stage']} | {row['round']} | {row['teachers']} | {row['batch']} | "
            f"{row['precision']} | "
            f"{row['compile']} | {ms(row['step_seconds'])} | {ms(row['replay_seconds'])} | "
            f"{ms(row['python_seconds'])} | {row['kernels']:,} | {row['first_seconds']:.1f} | "
            f"{row['loss_apart']:.1e} | {row['gradient_apart']:.1e} |"
        )
    for row in rows:
        if row["teachers_seconds"]:
            one, four = (f"{took * 1e3:.2f}" for took in row["teachers_seconds"])
            lines.append(
                f"\nTeachers alone, {row['precision']}, {row['compile']}: {one} ms a batch, "
                f"{four} ms when "
                "four batches are answered at once."
            )
    return "\n".join(lines)
