"""Everything that a first rented GPU should tell, in order of value, within the seconds given.

    make gpu LIMIT=570                                       with the digits that are shipped
    make gpu LIMIT=570 DATASET=cifar10 DATA=images           with the images in that folder
    make gpu PYTHON=python3                                  with a Python that has torch already
    make gpu DEVICE=cpu ARCH=resnet20 SCALE=0.02 LIMIT=60    a rehearsal

The GPU tests; a table of steps; the precision and the compilation that follow from it; the pipeline
from where it stands; kesi verify of it; the classic way beside ours; a deterministic run, killed
and resumed. What is finished stays in one folder (no file above 16 MB): copied to another machine,
the same command goes on there."""

import signal
import sys
import time
from pathlib import Path

import models
from benchmarks.gpu.choice import measured, table
from benchmarks.gpu.items import GRACE, ITEMS, OutOfTime, Plan
from kesi.cli import entry
from kesi.data import DATASETS
from kesi.system import execution
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, write_json, write_text
from kesi.system.provenance import provenance

LARGEST = 16_000_000  # bytes a file


def go_through(plan: Plan) -> bool:
    """Do what is not done, in order; returns whether all of it is. A failure is noted and tried
    again next time."""
    whole = True
    for name, item in ITEMS.items():
        path = plan.folder / f"{name}.json"
        if path.exists():
            print(f"{name}: {read_json(path)['says']} (before)", flush=True)
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
            write_json(
                path, {**found, "seconds": time.monotonic() - start, **provenance(plan.device)}
            )
    return whole


def summary(folder: Path) -> str:
    """All that is known, in Markdown; large files are named."""
    lines = ["# What a GPU told", ""]
    for name in ITEMS:
        path = folder / f"{name}.json"
        found = read_json(path) if path.exists() else None
        where = f" ({found['device']}, torch {found['versions']['torch']})" if found else ""
        lines.append(f"- {name}: {found['says'] if found else 'not yet'}{where}")
        if found and found.get("table"):
            lines += ["", *("    " + line for line in found["table"].splitlines()), ""]
    rows = measured(folder / "steps")
    lines += ["", table(rows)] if rows else []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > LARGEST:
            lines.append(
                f"- above 16 MB: {path.relative_to(folder)}, {path.stat().st_size / 1e6:.0f} MB"
            )
    return "\n".join(lines) + "\n"


def refuse_others(plan: Plan) -> None:
    """Note what a folder is for. Raises UsageError where it was begun for something else, whose
    figures would be taken for these."""
    path = plan.folder / "plan.json"
    now = {"arch": plan.arch, "dataset": plan.dataset, "epochs-scale": plan.scale,
           "device": plan.device.partition(":")[0]}
    before = read_json(path) if path.exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise UsageError(f"{plan.folder} was begun with --{name} {before.get(name)}, now it is "
                             f"{value}: use another --save (make gpu GPU=FOLDER)")
    write_json(path, now)


def main() -> None:
    started = time.monotonic()
    parser = entry.parser(__doc__, "benchmarks.gpu")
    parser.add_argument(
        "--save", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--limit", type=float, default=570, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="default: a GPU if any")
    parser.add_argument(
        "--arch",
        choices=list(models.ARCHITECTURES),
        default="resnet56",
        metavar="NAME",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, default="digits", metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument(
        "--data", default="data", metavar="DIR", help="where the images are (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs-scale", type=float, default=1.0, metavar="X", help="of the pipeline (default: 1)"
    )
    args = parser.parse_args()
    if not args.limit > 2 * GRACE:
        raise UsageError(f"--limit must be above {2 * GRACE:.0f} seconds, not {args.limit:g}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is told to end, too
    args.save.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        args.save,
        args.arch,
        execution.device_for(args.device),
        args.dataset,
        str(Path(args.data).resolve()),
        args.epochs_scale,
        started + args.limit - GRACE,
    )
    refuse_others(plan)
    whole = go_through(plan)
    text = summary(plan.folder)
    write_text(plan.folder / "report.md", text)
    print(f"\n{text}\n{plan.folder / 'report.md'}" + ("" if whole else "\nnot all of it is done"))


if __name__ == "__main__":
    entry.run(main)
