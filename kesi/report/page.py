"""A report as one HTML file that needs nothing else: tables, charts, the network's widths, every stage's curves.

``kesi report RUN --html`` writes it. No script and nothing from the network; light or dark as the reader
has it.
"""

import math
import re
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from kesi.report.charts import Series, bars, chart, heat
from kesi.report.next_steps import next_steps
from kesi.report.sources import origins_table, provenance
from kesi.report.summary import mean, missing
from kesi.report.tables import Table, main_rows, main_table, rounds_table
from kesi.runs.record import read_epochs
from kesi.runs.results import Run, common_folder, load_runs
from kesi.system.files import write_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the browser sees to it: no network, no script

STYLE = Path(__file__).with_name("page.css")

NAMES = {"onecycle": "one-cycle", "usual": "usual"}

CURVE_POINTS = 200  # of a stage; more than the eye sees


def page(runs: Sequence[Path], out: Path | None = None, data_name: str | None = None) -> Path:
    """Write the page of one or several run folders to ``out`` and return it.

    Default: report.html where kesi report puts its files. Raises what kesi.report.report() raises.
    """
    loaded = load_runs(runs, data_name)
    if out is None:
        out = common_folder([run.folder for run in loaded]) / "report" / "report.html"
    rows = main_rows(loaded)
    table = main_table(rows, loaded)
    sections = [
        ("Result", "".join(tiles(run) for run in loaded) + html_table(table) + unfinished(loaded)),
        ("Accuracy", grid(plot for run in loaded for plot in accuracy_plots(run, len(loaded) > 1))),
        ("Round by round", "".join(html_table(rounds_table(run)) for run in loaded)),
        ("Disagreement of the snapshots", grid(plot for run in loaded for plot in heats(run))),
        ("The network before and after", "".join(widths(run) for run in loaded)),
        ("Every stage", "".join(stage_curves(run) for run in loaded)),
        ("Where this comes from", "".join(origin(run) for run in loaded) + html_table(origins_table(rows))),
        ("Continue or reproduce", "".join(commands(run) for run in loaded))]
    sections = [(title, body) for title, body in sections if body]
    write_text(Path(out), document(table.title, sections))
    return Path(out)


def document(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file."""
    anchors = [re.sub(r"\W+", "-", name.lower()) for name, _ in sections]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>'
                    for anchor, (name, _) in zip(anchors, sections, strict=True))
    body = "".join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{content}</section>'
                   for anchor, (name, content) in zip(anchors, sections, strict=True))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE.read_text()}</style></head>'
            f'<body><header><h1>{escape(title)}</h1><p>Compressed by iterative pruning, one-cycle retraining and '
            f'distillation of the snapshots (KESI).</p><nav>{links}</nav></header><main>{body}</main></body></html>\n')


def grid(figures) -> str:
    """Figures side by side where there is room."""
    text = "".join(figures)
    return f'<div class="grid">{text}</div>' if text else ""


def html_table(table: Table) -> str:
    """A table of the report with its notes; it scrolls in its own box."""
    heads = [column.partition(" (") for column in table.columns]
    head = "".join(f'<th scope="col">{escape(name)}{f"<small>({escape(unit)}</small>" if bracket else ""}</th>'
                   for name, bracket, unit in heads)
    body = "".join(f'<tr{" class=strong" if line[0].endswith("KESI") else ""}><th scope="row">{escape(line[0])}</th>'
                   + "".join(f"<td>{escape(cell)}</td>" for cell in line[1:]) + "</tr>" for line in table.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (f'<h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{body}</tbody></table></div>{notes}')


def tiles(run: Run) -> str:
    """The figures that a reader looks for first: what is left of the network, and of its accuracy."""
    found = []
    accuracy, before = mean(run.values("kesi")), mean(run.values("baseline"))
    if accuracy is not None and before is not None:
        found.append((f"{accuracy:.2f} %", f"test accuracy ({accuracy - before:+.2f} to the baseline)"))
    size = "nonzero_params" if run.info["method"] == "weight" else "params"
    left, whole = mean(run.values("kesi", size)), mean(run.values("baseline", size))
    if left and whole:
        found.append((f"{100 * left / whole:.1f} %", f"{'non-zero ' * (size != 'params')}parameters left"))
    macs, all_macs = mean(run.values("kesi", "macs")), mean(run.values("baseline", "macs"))
    if macs and all_macs and run.info["method"] == "filter":
        found.append((f"{100 - 100 * macs / all_macs:.1f} %", "MACs saved"))
    boxes = "".join(f"<div><b>{value}</b><span>{escape(text)}</span></div>" for value, text in found)
    return f'<p class="label">{escape(run.label)} + KESI</p><div class="tiles">{boxes}</div>' if boxes else ""


def unfinished(runs: Sequence[Run]) -> str:
    """What is not there yet."""
    lines = "".join(f"<li>{escape(line)}</li>" for run in runs for line in missing(run))
    return f'<div class="missing"><h3>Not finished</h3><ul>{lines}</ul></div>' if lines else ""


def over_seeds(name: str, style: str, series: Sequence[tuple[float | None, Sequence[float]]], **looks) -> Series:
    """Means with sample standard deviations as error bars, where there are values."""
    known = [(x, values) for x, values in series if values and x is not None]
    errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in known]
    return Series(name, style, [(x, statistics.fmean(values)) for x, values in known], errors, **looks)


def accuracy_plots(run: Run, several: bool) -> list[str]:
    """Accuracy against size, before and after each retraining, and of the growing ensemble."""
    rounds, size = range(run.rounds + 1), "nonzero_params" if run.info["method"] == "weight" else "params"
    whole = mean(run.values("baseline", size))

    def left(stage: str) -> float | None:
        params = mean(run.values(stage, size))
        return None if params is None or not whole else 100 * params / whole

    against, steps, growing = [], [], []
    for retraining in run.retrainings():
        names = ["baseline", *[f"{retraining}-{number}" for number in rounds[1:]]]
        label = f"{NAMES[retraining]} retraining"
        against.append(over_seeds(label, retraining, [(left(name), run.values(name)) for name in names]))
        steps.append(over_seeds(f"{label}, after", retraining, [(n, run.values(name)) for n, name in enumerate(names)]))
        pruned = [(number, run.values(names[number], "pruned_accuracy")) for number in rounds[1:]]
        steps.append(over_seeds(f"{label}, before", retraining, pruned, dashed=True))
        growing.append(over_seeds(f"snapshots of {label}", retraining,
                                  [(number + 1, run.growing(retraining, number + 1)) for number in rounds]))
    last = over_seeds("KESI", "kesi", [(left("kesi"), run.values("kesi"))])
    flat = statistics.fmean(run.values("kesi")) if run.values("kesi") else math.nan
    level = Series("KESI, one network", "kesi", [(1, flat), (run.rounds + 1, flat)], dashed=True, marks=False)
    prefix = f"{run.label}: " if several else ""
    seeds = " (mean, and standard deviation over seeds)" if len(run.seeds) > 1 else ""
    percent = "test accuracy (%)"
    return [chart(f"{prefix}accuracy against size{seeds}", [*against, last], "remaining parameters (%)", percent,
                  reverse=True),
            chart(f"{prefix}before and after retraining{seeds}", steps, "round of pruning", percent, whole_x=True),
            chart(f"{prefix}the ensemble grows{seeds}", [*growing, level], "networks in the ensemble", percent,
                  whole_x=True)]


def heats(run: Run) -> list[str]:
    """How often two snapshots predict different classes, means over seeds."""
    found = []
    for retraining in run.retrainings():
        results = [one for one in run.results(run.ensemble(retraining)) if one.get("disagreement")]
        results = [one for one in results if one["members"] == results[0]["members"]]
        if results:
            members = results[0]["members"]
            names = ["base" if member == "baseline" else member.rpartition("-")[2] for member in members]
            matrix = [[statistics.fmean(one["disagreement"][i][j] for one in results) for j in range(len(members))]
                      for i in range(len(members))]
            found.append(heat(f"{run.label}, {NAMES[retraining]} retraining", names, matrix,
                              "Percent of the test images that two snapshots (by round) classify differently."))
    return found


def widths(run: Run) -> str:
    """What pruning left of every layer: filters, or non-zero weights, of the last network that is finished."""
    stages = ["kesi", *[f"onecycle-{number}" for number in range(run.rounds, 0, -1)]]
    result = next((results[0] for results in map(run.results, stages) if results), {})
    if not result.get("layers"):
        return ""
    names, before, after = zip(*result["layers"], strict=True)
    title = f"{run.label}: layers of {result['stage']}, seed {result.get('seed', '?')}"
    if run.info["method"] == "filter":
        return bars(title, names, before, after, "filters", ("before", "after"),
                    "The convolutions that may lose filters, in the order of the forward pass.")
    before, after = ([count / 1e3 for count in counts] for counts in (before, after))
    return bars(title, names, before, after, "weights (thousands)", ("all", "non-zero"),
                "Every convolution, in the order of the forward pass.")


def stage_curves(run: Run) -> str:
    """Loss, accuracy and learning rate of every stage, one line a seed."""
    parts = []
    for stage in run.stages():
        histories = [read_metrics(path) for path in sorted(run.folder.glob(f"seed*/{stage}/metrics.jsonl"))]
        histories = [rows for rows in histories if rows]
        figures = curve_figures(histories, stage == "kesi")
        if figures:
            lengths = sorted({rows[-1]['epoch'] for rows in histories})
            parts.append(f"<details{' open' if stage in ('baseline', 'kesi') else ''}><summary><b>{escape(stage)}</b> "
                         f"{' or '.join(map(str, lengths))} epochs</summary>{grid(figures)}</details>")
    return f"<h3>{escape(run.label)}</h3>{''.join(parts)}" if parts else ""


def read_metrics(path: Path) -> list[dict]:
    """The epochs of a stage, thinned."""
    rows = read_epochs(path)
    step = max(1, math.ceil(len(rows) / CURVE_POINTS))
    return [row for place, row in enumerate(rows) if place % step == 0 or place == len(rows) - 1]


def curve_figures(histories: Sequence[Sequence[dict]], distilled: bool = False) -> list[str]:
    """The three charts of a stage; where it was ``distilled``, the two losses are not of one kind."""
    kinds = {"train_loss": "train (KL to the ensemble)", "test_loss": "test (cross-entropy)"} if distilled else {}

    def lines(**wanted: str) -> list[Series]:
        return [Series(kinds.get(name, name.replace("_", " ")), style, [(row["epoch"], row[name]) for row in rows
                                                       if row.get(name) is not None], marks=False)
                for name, style in wanted.items() for rows in histories]

    found = [chart("loss", lines(train_loss="train", test_loss="kesi"), "epoch",
                   "loss" if distilled else "cross-entropy", whole_x=True),
             chart("accuracy", lines(train_accuracy="train", val_accuracy="usual", test_accuracy="kesi"), "epoch",
                   "accuracy (%)", whole_x=True),
             chart("learning rate", lines(lr="onecycle"), "epoch", "learning rate", log=True, whole_x=True)]
    return [text for text in found if text]


def origin(run: Run) -> str:
    """The provenance of the report, as a list of terms."""
    lines = [line.removeprefix("- ").partition(": ") for line in provenance(run).splitlines()
             if line.startswith("- ")]
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value.replace('`', ''))}</dd>" for name, _, value in lines)
    return f"<h3>{escape(run.label)}</h3><dl>{terms}</dl>"


def commands(run: Run) -> str:
    """What to type: to continue, to repeat, and to go on with the network."""
    return f"<h3>{escape(run.label)}</h3>" + "".join(
        f"<p>{escape(text)}</p><pre class=scroll><code>{escape(code)}</code></pre>" for text, code in next_steps(run))
