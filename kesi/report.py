"""The paper's table from finished runs, beside the paper's own figures, with plots and every result as CSV.

    python -m kesi.report runs/cifar10-resnet56-filter
    python -m kesi.report runs/digits-resnet20-filter runs/digits-resnet20-weight --out results/digits

Runs of one network and one data set make one table. A report can be made at any time: it shows what is
finished and names what is not.
"""

import argparse
import csv
import io
import os
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kesi import files, paper
from kesi.errors import KesiError, UsageError

NONE = "–"
RETRAININGS = ("onecycle", "usual")
STAGE_FIELDS = ("run", "stage", "kind", "round", "method", "arch", "dataset", "num_classes", "seed",
                "params", "nonzero_params", "macs", "image_size", "sparsity", "test_accuracy", "test_loss",
                "val_accuracy", "pruned_accuracy", "growing_accuracy", "members", "epochs", "images",
                "seconds", "cfg", "device", "commit", "dirty", "command", "digest")


@dataclass
class Run:
    """One run folder: what run.json says, and the result of every finished stage by seed and stage name."""

    folder: Path
    info: dict
    seeds: dict[int, dict[str, dict]]
    label: str = ""

    @property
    def rounds(self) -> int:
        return int(self.info["rounds"])

    def ensemble(self, retraining: str) -> str:
        """The stage name of the ensemble of the snapshots of "onecycle" or "usual" retraining."""
        return "ensemble" if retraining == "onecycle" else "ensemble-usual"

    def retrainings(self) -> tuple[str, ...]:
        """The retrainings that this run is to make: one-cycle, and the usual one where it compares."""
        return RETRAININGS if self.info.get("compare") else RETRAININGS[:1]

    def stages(self) -> list[str]:
        """The names of all stages of a complete seed, in the order in which they run."""
        names = ["baseline"]
        for retraining in self.retrainings():
            names += [f"{retraining}-{number}" for number in range(1, self.rounds + 1)]
            names.append(self.ensemble(retraining))
        return [*names, "kesi"]

    def results(self, stage: str) -> list[dict]:
        """The results of a stage, one for each seed that has finished it."""
        return [results[stage] for _, results in sorted(self.seeds.items()) if stage in results]

    def values(self, stage: str, name: str = "test_accuracy") -> list[float]:
        """One figure of a stage for each seed that has it."""
        return [result[name] for result in self.results(stage) if result.get(name) is not None]

    def growing(self, retraining: str, members: int) -> list[float]:
        """Accuracy (%) of the ensemble of the first ``members`` networks, for each seed that has it."""
        series = self.values(self.ensemble(retraining), "growing_accuracy")
        return [accuracies[members - 1] for accuracies in series if len(accuracies) >= members]


@dataclass
class Row:
    """A row of the main table: sizes in parameters and MACs, ``saved`` in percent, one accuracy a seed."""

    label: str
    run: Run
    params: float | None
    nonzero: float | None
    macs: float | None
    saved: float | None
    accuracy: list[float]
    published: paper.PaperRow | None = None


@dataclass
class Table:
    """A table of finished text; headers end with their unit in parentheses, notes stand below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """A GitHub table, numbers to the right."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        text = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        return "\n\n".join([f"## {self.title}", text, *self.notes])

    def text(self) -> str:
        """The same for a terminal, the units of the headers on a line of their own."""
        heads = [column.partition(" (") for column in self.columns]
        lines = [[head[0] for head in heads], ["".join(head[1:]).strip() for head in heads], *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(2, ["-" * width for width in widths])
        aligned = [[cell.rjust(width) if place else cell.ljust(width)
                    for place, (cell, width) in enumerate(zip(line, widths, strict=True))] for line in lines]
        notes = [textwrap.fill(note, 110) for note in self.notes]
        return "\n".join([self.title, "", *["  ".join(line).rstrip() for line in aligned], "", *notes])


@dataclass
class Report:
    """Everything a report says; render it again from ``tables`` and ``provenance`` for other formats."""

    title: str
    tables: list[Table]
    missing: list[str]
    provenance: list[str]
    out: Path
    plots: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hint: str | None = None

    @property
    def markdown(self) -> str:
        parts = [f"# {self.title}", *[table.markdown() for table in self.tables]]
        if self.missing:
            parts.append("## Not finished\n\n" + "\n".join(f"- {line}" for line in self.missing))
        if self.plots:
            parts.append("## Plots\n\n" + "\n\n".join(f"![{path.stem}]({path.name})" for path in self.plots))
        return "\n\n".join([*parts, "## Where this comes from", *self.provenance]) + "\n"

    @property
    def text(self) -> str:
        parts = [self.tables[0].text(), "\n".join(f"not finished: {line}" for line in self.missing),
                 self.hint or "", f"report: {self.out / 'table.md'}"]
        return "\n\n".join(part for part in parts if part)


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return statistics.fmean(values) if values else None


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """``value / scale`` with a fixed number of digits, a dash for None."""
    return NONE if value is None else f"{value / scale:.{digits}f}"


def spread(average: float | None, std: float | None) -> str:
    """Mean ± standard deviation in two decimals; the mean alone where there is no deviation."""
    return number(average, 2) + ("" if std is None else f" ± {std:.2f}")


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def load_run(folder: Path) -> Run:
    """Read a run folder. Raises UsageError where it is none, KesiError for damaged files."""
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder} is not a run folder: it has no run.json")
    info = files.read_json(folder / "run.json")
    needed = ("arch", "dataset", "method", "rounds")
    if not isinstance(info, dict) or any(name not in info for name in needed):
        raise KesiError(f"{folder / 'run.json'} does not describe a run: it needs {', '.join(needed)}")
    if info["method"] not in paper.CRITERIA:
        raise KesiError(f"{folder / 'run.json'}: unknown method {info['method']!r}")
    seeds: dict[int, dict[str, dict]] = {int(seed): {} for seed in info.get("seeds", [])}
    for path in sorted(folder.glob("seed*/*/result.json")):
        seed = path.parent.parent.name.removeprefix("seed")
        if seed.isdigit():
            result = files.read_json(path)
            if not isinstance(result, dict):
                raise KesiError(f"{path} is not a result: it holds no fields")
            seeds.setdefault(int(seed), {})[path.parent.name] = result
    return Run(folder, info, seeds, paper.CRITERIA[info["method"]])


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds all ``folders`` (of a single one, itself); relative where it lies below here."""
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of one table, filter pruning first. Raises UsageError where they do not fit together."""
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not unique:
        raise UsageError("name at least one run folder")
    runs = [load_run(folder) for folder in unique.values()]
    first = runs[0]
    for run in runs[1:]:
        for name in ("arch", "dataset"):
            if run.info[name] != first.info[name]:
                raise UsageError(f"one table is of one network and data set, but {name} is "
                                 f"{first.info[name]} in {first.folder} and {run.info[name]} in {run.folder}")
    if not any(results for run in runs for results in run.seeds.values()):
        raise KesiError(f"nothing is finished yet in {', '.join(str(run.folder) for run in runs)}")
    runs.sort(key=lambda run: list(paper.CRITERIA).index(run.info["method"]))
    if len({run.label for run in runs}) < len(runs):  # two runs of one method: told apart by folder
        common = os.path.commonpath(list(unique))
        for run in runs:
            run.label += f" [{os.path.relpath(run.folder.resolve(), common)}]"
    return runs


def by_baseline(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that started from the same baseline checkpoints, told by their digests.

    A run that took another run's baseline over has a copy of it, which names the original.
    """
    groups: list[tuple[dict, list[Run]]] = []
    for run in runs:
        baselines = {seed: results["baseline"] for seed, results in run.seeds.items() if "baseline" in results}
        digests = {seed: baseline.get("adopted_from") or baseline.get("digest")
                   for seed, baseline in baselines.items()}
        for known, group in groups:
            common = known.keys() & digests.keys()
            if common and all(known[seed] and known[seed] == digests[seed] for seed in common):
                known.update(digests)
                group.append(run)
                break
        else:
            groups.append((digests, [run]))
    return [group for _, group in groups]


def main_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of the main table in the paper's order, then the ensembles of each method."""
    rows = []
    groups = by_baseline(runs)
    for group in groups:
        seeds = {seed: results["baseline"] for run in reversed(group) for seed, results in run.seeds.items()
                 if "baseline" in results}
        label = "baseline" if len(groups) == 1 else f"baseline of {', '.join(run.label for run in group)}"
        shared = Run(group[0].folder, group[0].info, {seed: {"baseline": seeds[seed]} for seed in seeds})
        rows.append(stage_row(shared, label, "baseline", "baseline"))
        for run in group:
            _, *names = paper.row_names(run.info["method"])
            stages = {"usual": f"usual-{run.rounds}", "onecycle": f"onecycle-{run.rounds}", "kesi": "kesi"}
            for (kind, stage), name in zip(stages.items(), names, strict=True):
                if kind != "usual" or "usual" in run.retrainings() or run.values(stage):
                    label = name.replace(paper.CRITERIA[run.info["method"]], run.label)
                    rows.append(stage_row(run, label, stage, name))
            for retraining in RETRAININGS:
                if run.values(run.ensemble(retraining)):
                    rows.append(ensemble_row(run, retraining))
    return rows


def stage_row(run: Run, label: str, stage: str, name: str) -> Row:
    """The row of a trained network; ``name`` is what the paper calls it."""
    macs, before = mean(run.values(stage, "macs")), mean(run.values("baseline", "macs"))
    saved = None if macs is None or not before else 100 * (1 - macs / before)
    published = paper.published(run.info["arch"], run.info["dataset"], run.info["method"])
    comparable = stage == "baseline" or run.rounds == paper.ROUNDS
    params, nonzero = (mean(run.values(stage, size)) for size in ("params", "nonzero_params"))
    return Row(label, run, params, nonzero, macs, saved, run.values(stage),
               published.get(name) if comparable else None)


def ensemble_row(run: Run, retraining: str) -> Row:
    """The row of an ensemble, whose size is that of all its members together."""
    stage = run.ensemble(retraining)
    members = run.results(stage)[0]["members"]

    def together(name: str) -> float | None:
        sizes = [mean(run.values(member, name)) for member in members]
        return None if None in sizes else sum(sizes)

    label = f"{run.label} ensemble of {len(members)}, {'one-cycle' if retraining == 'onecycle' else 'usual'}"
    params, nonzero, macs = map(together, ("params", "nonzero_params", "macs"))
    return Row(label, run, params, nonzero, macs, None, run.values(stage))


def main_table(rows: Sequence[Row], runs: Sequence[Run]) -> Table:
    """The main table; the paper's columns stand only where it has this network on this data set."""
    weights = any(run.info["method"] == "weight" for run in runs)
    published = [row.published for row in rows if row.published]
    columns = ["method", "params (M)", *["non-zero (M)"] * weights, "MACs (M)", "MACs saved (%)",
               "accuracy (%)", "seeds"]
    saved = any(row.macs_saved is not None for row in published)
    giga = any(row.macs_g is not None for row in published)
    columns += ["paper: params (M)"] * bool(published) + ["paper: MACs saved (%)"] * saved
    columns += ["paper: MACs (G)"] * giga + ["paper: accuracy (%)"] * bool(published)
    body = []
    for row in rows:
        cells = [row.label, number(row.params, 3, 1e6), *[number(row.nonzero, 3, 1e6)] * weights,
                 number(row.macs, 2, 1e6), number(row.saved, 2),
                 spread(mean(row.accuracy), deviation(row.accuracy)), str(len(row.accuracy))]
        theirs = row.published or paper.PaperRow(None, None, None, None, None)
        cells += [number(theirs.params_m, 2)] * bool(published) + [number(theirs.macs_saved, 2)] * saved
        cells += [number(theirs.macs_g, 2)] * giga + [spread(theirs.mean, theirs.std)] * bool(published)
        body.append(cells)
    info = runs[0].info
    notes = main_notes(rows, runs, bool(published))
    return Table(f"{info['arch']} on {info['dataset']}", columns, body, notes)


def main_notes(rows: Sequence[Row], runs: Sequence[Run], published: bool) -> list[str]:
    """What a reader of the main table has to know."""
    counts = sorted({run.rounds for run in runs})
    notes = [f"Pruned networks are those after round {' and '.join(map(str, counts))}. Accuracy is on "
             "the test images after the last epoch, mean ± sample standard deviation over seeds."]
    if any(" ensemble of " in row.label for row in rows):
        notes.append("An ensemble's parameters and MACs are those of all its members together.")
    if any(run.info["method"] == "weight" for run in runs):
        notes.append("Weight pruning leaves zeros in networks of unchanged shape: their MACs are those of "
                     "the dense network.")
    if not published:
        return notes
    notes.append("Columns marked \"paper\" are the figures that Le, Vo and Thoai (arXiv 2006.11487) print, "
                 "not results of these runs.")
    small = next((row for row in rows
                  if row.saved is not None and row.published and row.published.macs_saved),
                 None)
    if small:
        before = mean(small.run.values("baseline", "macs")) / 1e9
        after = small.macs / 1e9
        if abs(100 * (1 - round(after, 2) / round(before, 2)) - small.published.macs_saved) < 0.1:
            notes.append(f"The paper's MACs saved come from MACs rounded to two decimals of a giga "
                         f"({before:.2f} to {after:.2f}); unrounded, {small.saved:.2f} % are saved.")
    remark = paper.REMARKS.get((runs[0].info["arch"], runs[0].info["dataset"]))
    return notes + [remark] * bool(remark) + [line for run in runs for line in departures(run)]


def departures(run: Run) -> list[str]:
    """Where a run was not made with the paper's settings, so that it is not taken for a repetition."""
    differing = paper.departures(run.info.get("recipe") or {}, "usual" in run.retrainings())
    return [f"{run.label} departs from the paper's settings: {'; '.join(differing)}."] * bool(differing)


def rounds_table(run: Run) -> Table:
    """Accuracy round by round, means over seeds: right after pruning, retrained, and the ensemble so far."""
    sizes = "nonzero_params" if run.info["method"] == "weight" else "params"
    noted, noted_ensemble = paper.NOTED_ROUNDS.get((run.info["arch"], run.info["dataset"]), ((), None))
    noted = (None, *noted) if run.info["method"] == "filter" and noted else ()
    columns = ["round", "non-zero (M)" if sizes == "nonzero_params" else "params (M)", "remaining (%)"]
    for name in ("one-cycle", "usual")[:len(run.retrainings())]:
        columns += [f"{name}: pruned (%)", f"{name}: retrained (%)", f"{name}: ensemble (%)"]
    columns += ["authors' notes: one-cycle (%)"] * bool(noted)
    whole = mean(run.values("baseline", sizes))
    body = []
    for place in range(run.rounds + 1):
        stages = [f"{retraining}-{place}" if place else "baseline" for retraining in run.retrainings()]
        params = next((mean(run.values(stage, sizes)) for stage in stages if run.values(stage, sizes)), None)
        remaining = 100 * params / whole if params and whole else None
        cells = [str(place), number(params, 3, 1e6), number(remaining, 1)]
        for retraining, stage in zip(run.retrainings(), stages, strict=True):
            for values in (run.values(stage, "pruned_accuracy"), run.values(stage),
                           run.growing(retraining, place + 1)):
                cells.append(number(mean(values), 2))
        cells += [number(noted[place] if place < len(noted) else None, 2)] * bool(noted)
        body.append(cells)
    notes = ["Test accuracy, mean over seeds; round 0 is the baseline. \"pruned\" is before that round's "
             "retraining, \"ensemble\" that of all networks up to the round."]
    if noted:
        notes.append(f"The authors' notes, not the paper: single runs; the ensemble of all six reaches "
                     f"{noted_ensemble} %.")
    return Table(f"{run.label} round by round", columns, body, notes)


def missing(run: Run) -> list[str]:
    """What is not finished, a line for each seed."""
    absent = {seed: [stage for stage in run.stages() if stage not in results]
              for seed, results in sorted(run.seeds.items())}
    return [f"{run.label}, seed {seed}: {', '.join(stages) if run.seeds[seed] else 'not begun'}"
            for seed, stages in absent.items() if stages]


def provenance(run: Run) -> str:
    """Where a run comes from, as Markdown; commit, versions and device are those of the stages themselves."""
    stages = [result for results in run.seeds.values() for result in results.values()]

    def origins(describe: Callable[[dict], str | None]) -> str:
        found = dict.fromkeys(filter(None, map(describe, stages or [run.info])))
        return "; ".join(found or filter(None, [describe(run.info)])) or "unknown"

    used = run.info.get("recipe") or {}
    epochs = [f"{name} {used[name]['epochs']} (batch {used[name]['batch_size']}, {used[name]['optimizer']}, "
              f"{used[name]['schedule']}, lr {used[name]['lr']})" for name in
              ("baseline", "retrain", *["usual"] * ("usual" in run.retrainings()), "distill") if name in used]
    seconds = sum(result.get("seconds") or 0 for result in stages)
    return "\n".join([
        f"**{run.label}**", "",
        f"- command: `{run.info.get('command', 'unknown')}`",
        f"- commit: {origins(commit_of)}",
        f"- versions: {origins(versions_of)}",
        f"- device: {origins(lambda one: one.get('device'))}",
        f"- seeds: {', '.join(map(str, sorted(run.seeds)))}",
        f"- epochs: {'; '.join(epochs) or 'unknown'}; rounds: {run.rounds}",
        f"- time of all stages together: {seconds:.0f} s"])


def commit_of(origin: dict) -> str | None:
    """The commit of a result, and whether the files differed from it."""
    changed = " with uncommitted changes" if origin.get("dirty") else ""
    return origin["commit"] + changed if origin.get("commit") else None


def versions_of(origin: dict) -> str | None:
    """The versions of a result: "python 3.12.1, torch 2.14.1"."""
    return ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())


def main_csv(rows: Sequence[Row]) -> list[dict]:
    """The main table as numbers: single parameters and MACs, percent, empty where there is nothing."""
    lines = []
    for row in rows:
        params, nonzero, macs = (None if size is None else round(size)
                                 for size in (row.params, row.nonzero, row.macs))
        line = {"method": row.label, "arch": row.run.info["arch"], "dataset": row.run.info["dataset"],
                "params": params, "nonzero_params": nonzero, "macs": macs,
                "macs_saved": row.saved, "accuracy_mean": mean(row.accuracy),
                "accuracy_std": deviation(row.accuracy), "seeds": len(row.accuracy)}
        if any(other.published for other in rows):
            line |= {f"paper_{name}": getattr(row.published, source, None) for name, source in (
                ("params_m", "params_m"), ("macs_saved", "macs_saved"), ("macs_g", "macs_g"),
                ("accuracy_mean", "mean"), ("accuracy_std", "std"))}
        lines.append(line)
    return lines


def stages_csv(runs: Sequence[Run]) -> list[dict]:
    """Every result of every run, lists as words separated by spaces."""
    lines = []
    for run in runs:
        for seed, results in sorted(run.seeds.items()):
            for stage, result in sorted(results.items(), key=lambda item: (
                    run.stages().index(item[0]) if item[0] in run.stages() else len(run.stages()), item[0])):
                values = {"run": run.folder.resolve().name, **result, "seed": seed, "stage": stage}
                lines.append({name: " ".join(map(str, values[name])) if isinstance(values.get(name), list)
                              else values.get(name) for name in STAGE_FIELDS})
    return lines


def csv_text(lines: Sequence[dict]) -> str:
    """CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def report(runs: Sequence[Path], out: Path | None = None, plots: bool = True) -> Report:
    """Write the report of one or several run folders to ``out`` and return it.

    Default for ``out``: ``report`` in the run's folder, or in the common parent of several. Raises UsageError
    for folders that are no runs or do not belong in one table, KesiError where nothing is finished, a file is
    damaged, or ``out`` cannot be written. Without matplotlib there are no plots, and ``hint`` says so.
    """
    loaded = load_runs(runs)
    if out is None:
        out = common_folder([run.folder for run in loaded]) / "report"
    rows = main_rows(loaded)
    table = main_table(rows, loaded)
    result = Report(table.title, [table, *map(rounds_table, loaded)],
                    [line for run in loaded for line in missing(run)], [provenance(run) for run in loaded],
                    files.make_folder(Path(out)))
    if plots:
        result.plots, result.hint = draw(loaded, result.out)
    texts = {"table.md": result.markdown, "table.csv": csv_text(main_csv(rows)),
             "stages.csv": csv_text(stages_csv(loaded))}
    for name, text in texts.items():
        files.write_text(result.out / name, text)
    result.files = [*(result.out / name for name in texts), *result.plots]
    return result


def draw(runs: Sequence[Run], out: Path) -> tuple[list[Path], str | None]:
    """The plots, or no plots and how to get them."""
    try:
        from kesi import plots
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [], 'no plots, since matplotlib is not installed: pip install "kesi[plots]"'
    return plots.draw(runs, out), None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kesi.report", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="run folder, as cifar/pipeline.py writes it")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder for the report (default: RUN/report; of several runs, beside them)")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    args = parser.parse_args(argv)
    try:
        print(report(args.runs, args.out, not args.no_plots).text)
    except KesiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
