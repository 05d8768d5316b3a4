"""The tables of a report: the paper's table, and the accuracy round by round."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kesi.method import paper
from kesi.method.snapshot import KESI
from kesi.report.statistics import Paired, Spread, paired
from kesi.report.summary import Row, Summary, paper_macs
from kesi.system.markdown import plain

NONE = "–"


def headed(column: str) -> tuple[str, str]:
    """A header's name, and its unit with the parentheses around it, "" without one."""
    name, space, unit = column.rpartition(" (")
    return (name, f"({unit}") if space and unit.endswith(")") else (column, "")


@dataclass
class Table:
    """A table of finished text; headers end with their unit in parentheses, notes below it."""

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
        heads = list(map(headed, self.columns))
        lines = [[name for name, _ in heads], [unit for _, unit in heads], *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(2, ["-" * width for width in widths])
        aligned = [[cell.rjust(width) if place else cell.ljust(width)
                    for place, (cell, width) in enumerate(zip(line, widths, strict=True))]
                   for line in lines]
        notes = [textwrap.fill(note, 100) for note in self.notes]
        return "\n".join([self.title, "", *["  ".join(line).rstrip() for line in aligned], "",
                          *notes])


def cell(value: float | str | Spread | None, digits: int = 2, scale: float = 1.0) -> str:
    """A value as tables show it: divided by ``scale``, mean ± deviation, a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, Spread):
        std = "" if value.std is None else f" ± {value.std / scale:.{digits}f}"
        return f"{value.mean / scale:.{digits}f}{std}"
    return value if isinstance(value, str) else f"{value / scale:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """A column of the main table and of table.csv.

    ``value`` of a row: a number, a text, a Spread over seeds, or None. The table shows it divided
    by ``scale``, table.csv under ``name`` as it is. A column without any value is left out;
    ``shown`` tells of which rows the table has it.
    """

    header: str
    value: Callable[[Row], float | str | Spread | None]
    digits: int = 2
    scale: float = 1.0
    name: str = ""
    shown: Callable[[Sequence[Row]], bool] = lambda rows: True

    def fields(self, rows: Sequence[Row]) -> list[dict]:
        """What table.csv says of every row: nothing, one field, or mean and standard deviation."""
        name = self.name or headed(self.header)[0]
        values = [self.value(row) for row in rows]
        if all(value is None for value in values):
            return [{} for _ in rows]
        if any(isinstance(value, Spread) for value in values):
            return [{f"{name}_{part}": getattr(value, part, None) for part in ("mean", "std")}
                    for value in values]
        whole = self.scale > 1  # single parameters and MACs
        return [{name: round(value) if whole and value is not None else value} for value in values]


def _weights(rows: Sequence[Row]) -> bool:
    return any(row.run.record.method == "weight" for row in rows)


def _paper(name: str) -> Callable[[Row], float | None]:
    return lambda row: getattr(row.published, name, None)


def _paper_accuracy(row: Row) -> Spread | None:
    return row.published and Spread(row.published.mean, row.published.std)


def _paper_counts(row: Row) -> float | None:
    """Our MACs as the authors counted theirs, beside a figure of theirs."""
    return row.published and row.published.macs_g and paper_macs(row)


# To add a column, append its entry, also from a file of your own.
COLUMNS: list[Column] = [
    Column("accuracy (%)", lambda row: row.accuracy, name="accuracy"),
    Column("params (M)", lambda row: row.params, 3, 1e6, "params"),
    Column("non-zero (M)", lambda row: row.nonzero, 3, 1e6, "nonzero_params", _weights),
    Column("MACs (M)", lambda row: row.macs, 2, 1e6, "macs"),
    Column("MACs saved (%)", lambda row: row.saved, name="macs_saved"),
    Column("seeds", lambda row: len(row.results), 0),
    Column("paper: accuracy (%)", _paper_accuracy, name="paper_accuracy"),
    Column("paper: params (M)", _paper("params_m"), name="paper_params_m"),
    Column("paper: MACs saved (%)", _paper("macs_saved"), name="paper_macs_saved"),
    Column("paper: MACs (G)", _paper("macs_g"), name="paper_macs_g"),
    Column("counted so, ours (G)", _paper_counts, 2, 1e9, "macs_as_the_paper"),
]


def main_table(rows: Sequence[Row], summaries: Sequence[Summary]) -> Table:
    """The main table; the paper's columns stand only where it has this network on this data set."""
    columns, cells = ["method"], [[row.label] for row in rows]
    for column in COLUMNS:
        values = [column.value(row) for row in rows]
        if column.shown(rows) and any(value is not None for value in values):
            columns.append(column.header)
            for line, value in zip(cells, values, strict=True):
                line.append(cell(value, column.digits, column.scale))
    published = any(row.published for row in rows)
    return Table(summaries[0].run.subject, columns, cells, main_notes(rows, summaries, published))


def main_notes(rows: Sequence[Row], summaries: Sequence[Summary], published: bool) -> list[str]:
    """What a reader of the main table has to know; ``published``: of the paper's columns, too."""
    records = [one.run.record for one in summaries]
    counts = sorted({record.rounds for record in records})
    several = any(len(row.results) > 1 for row in rows)
    tested = {record.data.get("images", {}).get("test") for record in records}
    images = f"{tested.pop():,} " if len(tested) == 1 and None not in tested else ""
    over = ", mean ± sample standard deviation over seeds" * several
    notes = [f"Pruned networks are those after round {' and '.join(map(str, counts))}. Accuracy is "
             f"on the {images}test images after the last epoch{over}."]
    notes += [f"{one.last.label} lost: it is {one.lost:.2f} points below the snapshot that it "
              f"started from." for one in summaries if one.lost is not None]
    notes += [f"{one.run.label}: the last step also drew from {more:,} images without labels."
              for one in summaries if (more := one.run.record.unlabelled_images)]
    for one in summaries:  # a reader of the last row would quote another network
        by_stage: dict[str, list[str]] = {}
        for seed, stage in one.run.record.handed_over.items():
            by_stage.setdefault(stage, []).append(seed)
        if by_stage.keys() - {KESI}:
            chosen = "; ".join(f"{stage} ({', '.join(seeds)})" for stage, seeds in by_stage.items())
            notes.append(f"{one.run.label}: by the held-out images, what is handed over is "
                         f"{chosen}.")
    if any(part.ensemble in rows or part.ensemble.results for one in summaries
           for part in one.retrained):
        notes.append("An ensemble's parameters and MACs are those of all its members together.")
    if _weights(rows):
        notes.append("Weight pruning leaves zeros in networks of unchanged shape: their MACs are "
                     "those of the dense network.")
    if not published:
        return notes
    notes.append("Columns marked \"paper\" are the figures that Le, Vo and Thoai (arXiv "
                 "2006.11487) print, not results of these runs.")
    networks = list(dict.fromkeys(record.arch for record in records))
    for arch in networks:
        rounding = _rounding([row for row in rows if row.run.record.arch == arch])
        named = f"{arch}: " * (len(networks) > 1)
        notes += [named + note for note in (
            rounding, paper.REMARKS.get((arch, records[0].dataset))) if note]
    return notes + [line for one in summaries for line in departures(one)]


def _rounding(rows: Sequence[Row]) -> str | None:
    """How the paper's share of saved MACs comes about, if it comes from rounded numbers."""
    baseline = next((row for row in rows if row.published and row.published.macs_saved == 0), None)
    small = next((row for row in rows
                  if row.results and row.published and row.published.macs_saved), None)
    before, after = (row and paper_macs(row) for row in (baseline, small))
    if not before or not after:
        return None
    shown, left = before / 1e9, after / 1e9
    rounded = 100 * (1 - round(left, 2) / round(shown, 2)) if round(shown, 2) else 0.0
    if abs(rounded - small.published.macs_saved) >= 0.1:
        return None
    return (f"The paper's MACs saved come from its authors' count, rounded to two decimals of a "
            f"giga ({shown:.2f} to {left:.2f}); counted so and unrounded, "
            f"{100 - 100 * left / shown:.2f} % are saved.")


def departures(summary: Summary) -> list[str]:
    """Where a run differs from the paper's settings, so that it is not taken for a repetition."""
    differing = differences(summary)
    whose = paper.standard(summary.run.record.dataset)
    line = f"{summary.run.label} departs from {whose}: {'; '.join(differing)}."
    return [line[0].upper() + line[1:]] * bool(differing)


def differences(summary: Summary) -> list[str]:
    """What departures() says, a phrase each."""
    record = summary.run.record
    stages = [result for results in summary.run.seeds.values() for result in results.values()]
    precisions = {getattr(result, "settings", {}).get("precision", "fp32") for result in stages}
    precisions = set(map(str, precisions))
    return paper.departures(record.recipe, record.data, precisions, record.pretrained)


def rounds_table(summary: Summary) -> Table:
    """Accuracy round by round: right after pruning, retrained, and the ensemble so far."""
    run = summary.run
    noted, together = paper.NOTED_ROUNDS.get((run.record.arch, run.record.dataset), ((), None))
    noted = (None, *noted) if run.record.method == "filter" and noted else ()
    kind = summary.size_name.replace("parameters", "params" if " " not in summary.size_name else "")
    columns = ["round", f"{kind.strip()} (M)", "remaining (%)"]
    for one in summary.retrained:
        columns += [f"{one.label}: {what} (%)" for what in ("pruned", "retrained", "ensemble")]
    columns += ["authors' notes (%)"] * bool(noted)
    body = []
    for place in range(run.record.rounds + 1):
        here = [one.rows[place] for one in summary.retrained]
        size = next((row for row in here if row.results), here[0])
        cells = [str(place), cell(size.size, 3, 1e6), cell(size.remaining, 1)]
        for one, row in zip(summary.retrained, here, strict=True):
            for found in (row.spread("pruned_accuracy"), row.accuracy, one.growing[place]):
                cells.append(cell(found and found.mean))
        cells += [cell(noted[place] if place < len(noted) else None)] * bool(noted)
        body.append(cells)
    notes = ["Test accuracy, mean over seeds; round 0 is the baseline. \"pruned\" is before that "
             "round's retraining, \"ensemble\" that of all networks up to the round."]
    if noted:
        notes.append(f"Authors' notes (lr 0.1, steps at 20 and 30; not one-cycle): single runs "
                     f"that are not in the paper. The ensemble of their five pruned networks, with "
                     f"summed logits, reaches {together} %.")
    return Table(f"{run.label[:1].upper()}{run.label[1:]} round by round", columns, body, notes)


def claims_table(summaries: Sequence[Summary]) -> Table | None:
    """The claims of Le, Vo and Thoai (arXiv 2006.11487, sections 4 and 5), in order, for every run
    that has what they speak of; None where no run has.
    """
    body = []
    for one in summaries:
        own, usual = one.retrained[0], one.retrained[1:]
        # the last one also holds of two that are alike
        pairs = [(f"{own.label} above {other.label} retraining", own.rows[-1], other.rows[-1],
                  False) for other in usual]
        pairs += [("the ensemble of the snapshots above the baseline", own.ensemble, one.baseline,
                   False),
                  (f"KESI above {own.label}", one.last, own.rows[-1], False),
                  ("KESI at the baseline or above", one.last, one.baseline, True)]
        for claim, better, worse, equal in pairs:
            seeds = sorted(better.results.keys() & worse.results.keys())
            if seeds:
                found = paired(*([row.results[seed].test_accuracy for seed in seeds]
                                 for row in (worse, better)))
                body.append([f"{one.run.label}: {claim}", str(len(seeds)), f"{found.mean:+.2f}",
                             found.interval or NONE, _verdict(found, equal)])
    return Table("Claims of the method, and what is seen here",
                 ["claim", "seeds", "difference (points)", "95 % interval", "seen here"], body,
                 ["Test accuracy, paired over seeds; the interval is Student's t of the paired "
                  "differences. Of a single seed there is none."]) if body else None


def _verdict(found: Paired, equal: bool) -> str:
    """``equal``: whether the claim holds of two that are alike."""
    if found.half is None:
        return f"one seed: {'yes' if found.mean > 0 or equal and found.mean == 0 else 'no'}"
    if not found.told_from_chance:
        return "not told from none"
    return "yes" if found.mean > 0 else "no"
