"""The paper's table from finished runs, beside the paper's own figures, with plots and every result as CSV.

Runs of one network and one data set make one table. A report can be made at any time: it shows what is
finished and names what is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kesi.report.sources import origins_table, parents_of, provenance, row_origin, versions_of
from kesi.report.summary import deviation, mean, missing
from kesi.report.tables import Row, Table, main_rows, main_table, plain, rounds_table
from kesi.runs.results import Run, common_folder, load_runs
from kesi.system import files
from kesi.system.files import csv_text
from kesi.system.provenance import requoted

STAGE_FIELDS = ("run", "stage", "kind", "round", "method", "arch", "dataset", "num_classes", "seed",
                "params", "nonzero_params", "macs", "image_size", "sparsity", "test_accuracy", "test_loss",
                "val_accuracy", "pruned_accuracy", "growing_accuracy", "members", "epochs", "images",
                "seconds", "cfg", "device", "versions", "commit", "dirty", "command", "recipe_hash", "parent",
                "network_digest", "digest")


@dataclass
class Report:
    """Everything a report says; render it again from its tables and ``provenance`` for other formats."""

    title: str
    tables: list[Table]
    missing: list[str]
    provenance: list[str]
    origins: Table
    out: Path
    plots: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hint: str | None = None

    @property
    def markdown(self) -> str:
        first, *others = [table.markdown() for table in self.tables]
        parts = [first.replace("## ", "# ", 1), *others]  # the title of the main table is that of the page
        if self.missing:
            parts.append("## Not finished\n\n" + "\n".join(f"- {plain(line)}" for line in self.missing))
        if self.plots:
            parts.append("## Plots\n\n" + "\n\n".join(f"![{path.stem}]({path.name})" for path in self.plots))
        origins = self.origins.markdown().replace("## ", "### ", 1)
        return "\n\n".join([*parts, "## Where this comes from", *self.provenance, origins]) + "\n"

    @property
    def text(self) -> str:
        parts = [self.tables[0].text(), "\n".join(f"not finished: {line}" for line in self.missing),
                 self.hint or "",
                 f"plots: {self.out}/*.png" if self.plots else "", f"report: {self.out / 'table.md'}"]
        return "\n\n".join(part for part in parts if part)


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
        lines.append(line | row_origin(row))
    return lines


def stages_csv(runs: Sequence[Run]) -> list[dict]:
    """Every result of every run, lists as words separated by spaces; ``parent``: the network_digest of the parent.

    Of an ensemble they are those of its members.
    """
    lines = []
    for run in runs:
        for seed, results in sorted(run.seeds.items()):
            for stage, result in sorted(results.items(), key=lambda item: (
                    run.stages().index(item[0]) if item[0] in run.stages() else len(run.stages()), item[0])):
                values = {"run": run.folder.resolve().name, **result, "seed": seed, "stage": stage,
                          "versions": versions_of(result), "parent": parents_of(result),
                          "command": result.get("command") and requoted(result["command"])}
                lines.append({name: " ".join(map(str, values[name])) if isinstance(values.get(name), list)
                              else values.get(name) for name in STAGE_FIELDS})
    return lines


def report(runs: Sequence[Path], out: Path | None = None, plots: bool = True,
           data_name: str | None = None) -> Report:
    """Write the report of one or several run folders to ``out`` and return it.

    ``data_name``: what titles call the data set. Default for ``out``: ``report`` in the run's folder, or in the
    common parent of several. Raises UsageError for folders that are no runs or do not belong in one table,
    KesiError where nothing is finished, a file is damaged, or ``out`` cannot be written. Without matplotlib
    there are no plots, and ``hint`` says so.
    """
    loaded = load_runs(runs, data_name)
    if out is None:
        out = common_folder([run.folder for run in loaded]) / "report"
    rows = main_rows(loaded)
    result = _rendered(loaded, rows, files.make_folder(Path(out)))
    if plots:
        result.plots, result.hint = draw(loaded, result.out)
    written = _texts(result, rows, loaded)
    for name, text in written.items():
        files.write_text(result.out / name, text)
    result.files = [*(result.out / name for name in written), *result.plots]
    return result


def texts(runs: Sequence[Run]) -> dict[str, str]:
    """The files of a report, without plots, by name; nothing is written."""
    rows = main_rows(runs)
    return _texts(_rendered(runs, rows, Path()), rows, runs)


def _rendered(runs: Sequence[Run], rows: Sequence[Row], out: Path) -> Report:
    table = main_table(rows, runs)
    return Report(table.title, [table, *map(rounds_table, runs)], [line for run in runs for line in missing(run)],
                  [provenance(run) for run in runs], origins_table(rows), out)


def _texts(made: Report, rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, str]:
    return {"table.md": made.markdown, "table.csv": csv_text(main_csv(rows)), "stages.csv": csv_text(stages_csv(runs))}


def draw(runs: Sequence[Run], out: Path) -> tuple[list[Path], str | None]:
    """The plots, or no plots and how to get them."""
    try:
        from kesi.report import figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [], 'no plots, since matplotlib is not installed: pip install -e ".[plots]"'
    return figures.draw(runs, out), None
