"""The report of finished runs: tables beside the paper's figures, plots, and every result as CSV.

Runs of one network and one data set make one table. A report can be made at any time: it shows
what is finished and names what is not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from kesi.checkpoints.records import encode
from kesi.report import tables
from kesi.report.sources import (
    command_of,
    origins_table,
    parents_of,
    provenance,
    row_origin,
    versions_of,
)
from kesi.report.summary import Row, Summary, main_rows, summarise
from kesi.report.tables import Table, claims_table, main_table, rounds_table
from kesi.runs.record import Ensemble, Result
from kesi.runs.results import Run, common_folder, load_runs
from kesi.system import files
from kesi.system.errors import visible
from kesi.system.files import csv_text
from kesi.system.markdown import code, plain

NO_PLOTS = 'matplotlib is not installed: pip install -e ".[plots]"'


@dataclass
class Report:
    """Everything a report says; render it again from its tables and ``provenance`` elsewhere."""

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
        parts = [first.replace("## ", "# ", 1), *others]  # the main table's title is the page's
        if self.missing:
            lines = [f"- {plain(line)}" for line in self.missing]
            parts.append("## Not finished\n\n" + "\n".join(lines))
        if self.plots:
            images = [f"![{path.stem}]({path.name})" for path in self.plots]
            parts.append("## Plots\n\n" + "\n\n".join(images))
        origins = self.origins.markdown().replace("## ", "### ", 1)
        parts += ["## Where this comes from", *self.provenance, origins]
        return "\n\n".join(parts) + "\n"

    @property
    def text(self) -> str:
        parts = [self.tables[0].text(), "\n".join(f"not finished: {line}" for line in self.missing),
                 self.hint or "", f"plots: {self.out}/*.png" if self.plots else "",
                 f"report: {self.out / 'table.md'}"]
        return "\n\n".join(part for part in parts if part)


def main_csv(rows: Sequence[Row]) -> list[dict]:
    """The main table as numbers: single parameters and MACs, percent, empty without a value."""
    columns = [column.fields(rows) for column in tables.COLUMNS]
    return [{"method": row.label, "arch": row.run.record.arch, "dataset": row.run.record.dataset}
            | {name: value for column in columns for name, value in column[place].items()}
            | row_origin(row) for place, row in enumerate(rows)]


STAGE_COLUMNS = tuple(dict.fromkeys(
    ["run", "seed", *(one.name for kind in (Result, Ensemble) for one in fields(kind)
                      # of use only to whoever may measure an ensemble again
                      if one.name != "tested_on")]))


def stages_csv(runs: Sequence[Run]) -> list[dict]:
    """STAGE_COLUMNS of every result; lists as words separated by spaces, what is nested as JSON.

    ``parent``: the digest of the parent's network; of an ensemble, those of its members.
    """
    lines = []
    for run in runs:
        order = {stage: place for place, stage in enumerate(run.record.stages())}
        for seed, results in sorted(run.seeds.items()):
            for stage in sorted(results, key=lambda name: (order.get(name, len(order)), name)):
                said = encode(results[stage]) | {
                    "run": visible(run.place(seed).resolve().parent.name),
                    "seed": seed, "stage": stage,
                    "versions": versions_of(results[stage]), "parent": parents_of(results[stage]),
                    "command": command_of(results[stage])}
                lines.append({name: _flat(said.get(name)) for name in STAGE_COLUMNS})
    return lines


def _flat(value: object) -> object:
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value))
    if nested:
        return json.dumps(value)
    return " ".join(map(str, value)) if isinstance(value, list) else value


def report(runs: Sequence[Path], out: Path | None = None, plots: bool = True,
           data_name: str | None = None) -> Report:
    """Write the report of one or several run folders to ``out`` and return it.

    ``data_name``: what titles call the data set. Default for ``out``: ``report`` in the run's
    folder, or in the common parent of several. Raises UsageError for folders that are no runs or do
    not belong in one table, KesiError where nothing is finished, a file is damaged, or ``out``
    cannot be written. Without matplotlib there are no plots, and ``hint`` says so.
    """
    loaded = load_runs(runs, data_name)
    if out is None:
        out = common_folder([Path(run) for run in runs]) / "report"
    summaries = [summarise(run) for run in loaded]
    rows = main_rows(summaries)
    result = _rendered(summaries, rows, files.make_folder(Path(out)))
    if plots:
        result.plots, result.hint = draw(summaries, result.out)
    written = _texts(result, rows, loaded)
    for name, text in written.items():
        files.write_text(result.out / name, text)
    result.files = [*(result.out / name for name in written), *result.plots]
    return result


def texts(runs: Sequence[Run]) -> dict[str, str]:
    """The files of a report, without plots, by name; nothing is written."""
    summaries = [summarise(run) for run in runs]
    rows = main_rows(summaries)
    return _texts(_rendered(summaries, rows, Path()), rows, runs)


def _rendered(summaries: Sequence[Summary], rows: Sequence[Row], out: Path) -> Report:
    table = main_table(rows, summaries)
    sources = ["\n".join([f"**{plain(one.run.label)}**", "", *(
        f"- {name}: {code(said) if name.startswith('command') else plain(said)}"
        for name, said in provenance(one.run))]) for one in summaries]
    claims = [claims] if (claims := claims_table(summaries)) else []
    return Report(table.title, [table, *map(rounds_table, summaries), *claims],
                  [line for one in summaries for line in one.missing], sources,
                  origins_table(rows), out)


def _texts(made: Report, rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, str]:
    return {"table.md": made.markdown, "table.csv": csv_text(main_csv(rows)),
            "stages.csv": csv_text(stages_csv(runs))}


def draw(summaries: Sequence[Summary], out: Path) -> tuple[list[Path], str | None]:
    """The plots, or no plots and how to get them."""
    try:
        from kesi.report import curves
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [], f"no plots, since {NO_PLOTS}"
    return curves.draw(summaries, out), None
