"""The paper's tables from nothing: every network, data set, method and seed, one pipeline each.

    python -m reproduce --table cifar --dry-run             # what is done, running and missing
    python -m reproduce --table cifar                       # what is missing, one after the other,
                                                            here
    python -m reproduce --table cifar --ray                 # on a Ray cluster, a GPU each
    python -m reproduce --table cifar --slurm > grid.sh     # or as a Slurm array
    python -m reproduce --table digits --gpus 0             # a small one, to try it
    python -m reproduce --study studies/worth.py --slurm    # a study, a seed a task

The same command continues whatever was interrupted. Started twice, it shares the work: a pipeline
that is running is left alone. It ends in the paper's tables, over all that is finished. A study
takes the flags of kesi study besides, and ends in its own table.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kesi.cli import entry, flags
from kesi.cli import study as command
from kesi.method.recipes import METHODS
from kesi.method.snapshot import BASELINE
from kesi.report.report import main_csv, stages_csv
from kesi.report.sources import origins_table
from kesi.report.summary import Row, Summary, main_rows, summarise
from kesi.report.tables import Table, departures, main_table
from kesi.runs.results import Run
from kesi.system import files, seeds
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import csv_text
from reproduce import cluster, grid, studies
from reproduce.grid import DONE, MISSING, ROOT, Job, Status

GRACE = 5  # seconds until a child that was not interrupted along with this process is


def main() -> None:
    """The command line of this module."""
    args = _parse()
    study = studies.asked(args.study, args.seeds, args.save, args.flags) if args.study else None
    if study is None:
        args.save = args.save or Path("runs", "reproduce")
        kind, jobs = grid, _jobs(args)
    else:
        args.save, kind, jobs = study.folder, studies, studies.jobs(study, args.flags)
        if not (args.slurm or args.dry_run):
            studies.check(study)
    if args.gpus is None:
        args.gpus = 0.0 if {job.recipe.dataset for job in jobs} == {"digits"} else 1.0
    statuses = [kind.look(job) for job in jobs]
    if study is None:
        grid.refuse_other_images(statuses, None if args.dry_run else Path(args.data))
    missing = [status.job for status in statuses if status.state == MISSING]
    if args.slurm and not args.dry_run:
        if not missing:
            raise KesiError(f"nothing is missing: {kind.summary(statuses)}")
        title = Path(args.study).stem if args.study else "-".join(args.table)
        print(cluster.slurm_script(missing, title, args.gpus, args.cpus, args.save), end="")
        return
    print(kind.overview(statuses), flush=True)
    if args.dry_run:
        print("", *[job.command() for job in missing], sep="\n")
        return
    if args.ray:
        if study is None:  # what others wait for; the longest first, so that none ends alone
            missing.sort(key=lambda job: (not job.trains, -sum(grid.work(job).values())))
        failed = cluster.run_on_ray(missing, args.ray, args.gpus, args.cpus, args.save / "logs",
                                    Path(args.data), kind.look)
    else:
        failed = run_here(missing, kind.look)
    statuses = [kind.look(job) for job in jobs]
    made = command.table(study) if study else report(statuses, args.save / "report")
    print("", made, "", kind.summary(statuses), sep="\n", flush=True)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        raise KesiError(f"{len(failed)} of {len(missing)} {kind.JOBS} failed: {', '.join(failed)}; "
                        "the same command tries them again")


def _parse():
    parser = entry.parser(__doc__, "reproduce")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", nargs="+", choices=list(grid.TABLES),
                      help="the paper's cifar (18 pipelines a seed) and tinyimagenet (2), or "
                           "digits (2, to try it)")
    what.add_argument("--study", metavar="FILE", help="the variants of this file, as kesi study "
                      "runs them")
    for name in ("arch", "dataset", "method"):
        parser.add_argument(f"--{name}", nargs="+", metavar="NAME",
                            help=f"only the pipelines of this {name}")
    parser.add_argument("--seeds", type=seeds.seed, nargs="+", default=[0, 1, 2], metavar="N",
                        help="default: 0 1 2")
    parser.add_argument("--save", type=Path, metavar="DIR", help="where the runs go, a folder each "
                        "(default: runs/reproduce, of a study runs/study-<FILE>)")
    parser.add_argument("--data", default="data", metavar="DIR",
                        help="where the images are (default: %(default)s)")
    parser.add_argument("--rounds", type=int, metavar="N",
                        help="rounds of pruning (default: the paper's five)")
    parser.add_argument("--epochs-scale", type=float, metavar="X",
                        help="multiply the epochs of every stage")
    parser.add_argument("--dry-run", action="store_true",
                        help="only list the jobs, and the commands of the missing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help="run on this Ray "
                       "cluster (default: the one at hand, else a local one; local: a local one)")
    where.add_argument("--slurm", action="store_true",
                       help="print a script for sbatch, one task a pipeline")
    parser.add_argument("--gpus", type=float, metavar="N", help="share of a GPU that a pipeline "
                        "gets from Ray or Slurm (default: 1, digits 0)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N",
                        help="cores that a pipeline gets from Ray or Slurm (default: %(default)s)")
    flags.add_run(parser)
    args, more = parser.parse_known_args()
    if more and not args.study:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.study and (args.arch or args.dataset or args.method or args.rounds is not None
                       or args.epochs_scale is not None):
        raise UsageError("--arch, --dataset, --method, --rounds and --epochs-scale choose from a "
                         "table: a study's file says what its variants are")
    if args.gpus is not None and not 0 <= args.gpus <= 1:
        raise UsageError(f"a job uses one GPU at most: --gpus takes 0 to 1, not {args.gpus:g}")
    if args.cpus < 1:
        raise UsageError(f"--cpus must be at least 1, not {args.cpus}")
    args.flags = [word for name in ("device",
                                    "threads", "eval_every", "precision", "compile", "save_every")
                  if (value := getattr(args, name)) != parser.get_default(name)
                  for word in (f"--{name.replace('_', '-')}", str(value))]
    args.flags += ["--deterministic"] * args.deterministic + ["--sync-bn"] * args.sync_bn
    if args.data != parser.get_default("data"):
        args.flags = ["--data", args.data, *args.flags]
    args.flags = [*entry.added(args), *args.flags, *more]
    return args


def _jobs(args) -> list[Job]:
    chosen = grid.pipelines(args.table)
    for place, name in enumerate(("arch", "dataset", "method")):
        wanted = getattr(args, name)
        known = list(dict.fromkeys(pipeline[place] for pipeline in grid.pipelines(args.table)))
        if unknown := [value for value in wanted or () if value not in known]:
            raise UsageError(
                f"--{name} {unknown[0]} is not in the table: choose from {', '.join(known)}")
        chosen = [pipeline for pipeline in chosen if not wanted or pipeline[place] in wanted]
    if not chosen:
        raise UsageError(
            "the paper's tables have no pipeline of this --arch, --dataset and --method together")
    return grid.jobs(chosen, args.seeds, args.save, args.rounds, args.epochs_scale, args.flags)


def run_here(jobs: Sequence[Job | studies.Job],
             look: Callable[[Any], Status]) -> dict[str, str]:
    """Run jobs one after the other, each in a process of its own; returns the failed ones and why.
    """
    failed = {}
    for number, job in enumerate(jobs, start=1):
        if (state := look(job).state) != MISSING:  # by now: another process shares the grid
            print(f"\n{number}/{len(jobs)} {job.name} is {state}", flush=True)
            continue
        print(f"\n{number}/{len(jobs)} {job.command()}", flush=True)
        code = _run([sys.executable, *job.words()])
        if code and look(job).state != MISSING:
            print(f"{job.name} is left to the process that was faster", flush=True)
        elif code:
            failed[job.name] = f"exit code {code}: {job.command()}"
    return failed


def _run(words: Sequence[str]) -> int:
    """A child's exit code. An interrupt of this process ends the child, too,
    before it is passed on."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path})
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            child.wait(GRACE)  # ctrl-C reaches it as well, and it saves what it has
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
        raise


def report(statuses: Sequence[Status], out: Path) -> str:
    """Write the paper's tables over all that is finished, and return them as text:
    one table a data set.

    ``out``: table.md, <dataset>.csv with the same figures as numbers, and stages.csv with every
    single result.
    """
    with_results = [status for status in statuses if status.results]
    if not with_results:
        return "nothing is finished yet"
    tables, origins = [], []
    for dataset in dict.fromkeys(status.job.recipe.dataset for status in with_results):
        rows, summaries = [], []
        for arch in dict.fromkeys(status.job.recipe.arch for status in with_results):
            found = [summarise(replace(run, label=f"{arch} {run.label}")) for run in merged(
                [status for status in with_results
                 if (status.job.recipe.arch, status.job.recipe.dataset) == (arch, dataset)])]
            summaries += found
            rows += [row if row.stage != BASELINE else replace(row, label=f"{arch} {row.label}")
                     for row in (main_rows(found) if found else ())]
        tables.append(_table(dataset, rows, summaries))
        origins.append(replace(origins_table(rows), title=f"{dataset}: rows and networks"))
        files.write_text(out / f"{dataset}.csv", csv_text(main_csv(rows)))
    states = [f"- {status.job.name}: {status.state}, {len(status.finished)} of "
              f"{len(status.job.stages)} stages" for status in statuses if status.state != DONE]
    parts = [table.markdown() for table in [*tables, *origins]]
    parts += ["## Not finished\n\n" + "\n".join(states)] * bool(states)
    files.write_text(out / "table.md",
                     "# The paper's tables, reproduced\n\n" + "\n\n".join(parts) + "\n")
    runs = [replace(one.run, seeds={one.job.seed: one.results}) for one in with_results]
    files.write_text(out / "stages.csv", csv_text(stages_csv(runs)))
    return "\n\n".join([*(table.text() for table in tables), f"report: {out / 'table.md'}"])


def merged(statuses: Sequence[Status]) -> list[Run]:
    """The runs of a network on a data set, filter pruning first, each with all of its seeds."""
    found: dict[str, Run] = {}
    for status in sorted(statuses, key=lambda one: list(METHODS).index(one.job.recipe.method)):
        run = found.setdefault(status.job.recipe.method, replace(status.run, seeds={}))
        run.seeds[status.job.seed] = status.results
    return list(found.values())


def _table(dataset: str, rows: Sequence[Row], summaries: Sequence[Summary]) -> Table:
    """main_table() for all networks of a data set, which then stand in the first column."""
    table = main_table(rows, summaries)
    table.title = f"{dataset}, seeds {_seeds([one.run for one in summaries])}"
    table.columns[0] = "network and method"
    known = set(table.notes)
    table.notes += [line for one in summaries for line in departures(one) if line not in known]
    return table


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(map(str, sorted({seed for run in runs for seed in run.seeds})))


if __name__ == "__main__":
    entry.run(main, resumes=True)
