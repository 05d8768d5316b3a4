"""The tables of a report, as finished text: the paper's table, and the accuracy round by round."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from kesi.method import paper
from kesi.report.summary import by_baseline, deviation, mean
from kesi.runs.layout import RETRAININGS
from kesi.runs.results import Run
from kesi.system.errors import controls

NONE = "–"


@dataclass
class Row:
    """A row of the main table: sizes in parameters and MACs, ``saved`` in percent, one accuracy a seed.

    ``stage``: whose results these are, in ``run``.
    """

    label: str
    run: Run
    params: float | None
    nonzero: float | None
    macs: float | None
    saved: float | None
    accuracy: list[float]
    stage: str
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
        escaped = [[plain(cell).replace("|", r"\|") for cell in line] for line in lines]
        text = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        return "\n\n".join([f"## {plain(self.title)}", text, *map(plain, self.notes)])

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


def plain(text: str) -> str:
    """Text that begins no line and no tag of its own in Markdown, whoever wrote it."""
    return "".join(" " if controls(letter) else letter for letter in text).replace("<", r"\<")


def code(text: str) -> str:
    """Text as Markdown's code on one line, whatever backticks are in it."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """``value / scale`` with a fixed number of digits, a dash for None."""
    return NONE if value is None else f"{value / scale:.{digits}f}"


def spread(average: float | None, std: float | None) -> str:
    """Mean ± standard deviation in two decimals; the mean alone where there is no deviation."""
    return number(average, 2) + ("" if std is None else f" ± {std:.2f}")


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
    return Row(label, run, params, nonzero, macs, saved, run.values(stage), stage,
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
    return Row(label, run, params, nonzero, macs, None, run.values(stage), stage)


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
    notes = main_notes(rows, runs, bool(published))
    return Table(runs[0].subject, columns, body, notes)


def main_notes(rows: Sequence[Row], runs: Sequence[Run], published: bool) -> list[str]:
    """What a reader of the main table has to know."""
    counts = sorted({run.rounds for run in runs})
    several = any(len(row.accuracy) > 1 for row in rows)
    tested = {((run.info.get("data") or {}).get("images") or {}).get("test") for run in runs}
    images = f"{tested.pop():,} " if len(tested) == 1 and None not in tested else ""
    notes = [f"Pruned networks are those after round {' and '.join(map(str, counts))}. Accuracy is on the {images}"
             f"test images after the last epoch{', mean ± sample standard deviation over seeds' * several}."]
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
    whose = paper.standard(run.info["dataset"])
    return [f"{run.label} departs from {whose}: {'; '.join(differing)}."] * bool(differing)


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
