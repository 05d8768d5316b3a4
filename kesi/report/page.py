"""A report as one HTML file that needs nothing else: tables, plots, and every stage's curves.

No script and nothing from the network; light or dark as the reader has it. What it says stands in
page.html, how it looks in page.css; the plots are those of kesi.report.figures.
"""

import math
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from kesi import models
from kesi.data import DATASETS
from kesi.method.snapshot import BASELINE, KESI
from kesi.report.report import NO_PLOTS
from kesi.report.sources import origins_table, provenance
from kesi.report.summary import Row, Summary, main_rows, summarise
from kesi.report.tables import Table, claims_table, headed, main_table, rounds_table
from kesi.runs.record import METRICS, read_epochs
from kesi.runs.results import Run, common_folder, load_runs
from kesi.system.errors import UsageError
from kesi.system.files import write_text
from kesi.system.provenance import requoted

SECTIONS = ("Result", "Accuracy", "Round by round", "Disagreement of the snapshots",
            "The network before and after", "Every stage", "Where this comes from",
            "Continue or reproduce")

CURVE_POINTS = 200  # of a stage; more than the eye sees

OURS = re.compile(r"kesi |python (cifar/|tinyimagenet/)")  # else a program of somebody's


def page(runs: Sequence[Path], out: Path | None = None, data_name: str | None = None,
         steps: bool = True, latency: Table | None = None) -> Path:
    """Write the page of one or several run folders to ``out`` and return it.

    Default: report.html where kesi report puts its files. ``steps``: also which commands go on from
    here. ``latency``: a table of what was measured, to stand with the result. Raises what
    kesi.report.report() raises, and UsageError without matplotlib.
    """
    try:
        from kesi.report import curves, figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise UsageError(f"no page, since {NO_PLOTS}") from error
    loaded = load_runs(runs, data_name)
    if out is None:
        out = common_folder([Path(run) for run in runs]) / "report" / "report.html"
    summaries = [summarise(run) for run in loaded]
    rows = main_rows(summaries)

    def drawn(make, *arguments) -> Markup:
        return Markup(figures.svg(make, *arguments))

    def named(one: Summary, title: str) -> str:
        return f"{one.run.label}: {title}" if len(loaded) > 1 else title

    panels = {"accuracy against size": figures.accuracy_panel,
              "before and after retraining": figures.retraining_panel,
              "the snapshots and their ensemble": figures.rounds_panel}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.get_template("page.html").render(
        headed=headed, sections=SECTIONS if steps else SECTIONS[:-1],
        style=Markup(Path(__file__).with_name("page.css").read_text()),
        table_=main_table(rows, summaries), origins=origins_table(rows),
        missing=[line for one in summaries for line in one.missing],
        claims=claims_table(summaries), latency=latency, rounds=map(rounds_table, summaries),
        accuracy=[(named(one, title + figures.spread_note([one])), drawn(figures.alone, panel, one))
                  for one in summaries for title, panel in panels.items()],
        heats=[(f"{one.run.label}, {part.label} retraining", drawn(figures.heat_figure, part))
               for one in summaries for part in one.retrained if part.disagreement],
        widths=[(f"{one.run.label}: layers of {row.stage}, seed {min(row.results)}",
                 drawn(curves.widths_figure, one, row))
                for one in summaries if (row := newest(one)) is not None],
        runs=[{"label": one.run.label, "last": one.last, "tiles": tiles(one),
               "sources": provenance(one.run), "steps": next_steps(one.run),
               "stages": [(stage, epochs, [(title, drawn(curves.epochs_figure, *what))
                                           for title, *what in kinds], stage in (BASELINE, KESI))
                          for stage, epochs, kinds in stages(one, figures)]} for one in summaries])
    write_text(Path(out), text + "\n")
    return Path(out)


def tiles(one: Summary) -> list[tuple[str, str]]:
    """What a reader looks for first: what is left of the network, and of its accuracy."""
    last, before = one.last, one.baseline
    found = []
    if last.results.keys() & before.results.keys():
        change = statistics.fmean(last.results[seed].test_accuracy - start.test_accuracy
                                  for seed, start in before.results.items()
                                  if seed in last.results)
        lost = f"; {one.lost:.2f} below the snapshot that it started from" if one.lost else ""
        found.append((f"{last.accuracy.mean:.2f} %",
                      f"test accuracy ({change:+.2f} to the baseline{lost})"))
    if last.remaining is not None:
        found.append((f"{last.remaining:.1f} %", f"{one.size_name} left"))
    if last.saved is not None and one.run.record.method == "filter":
        found.append((f"{last.saved:.1f} %", "MACs saved"))
    return found


def newest(one: Summary) -> Row | None:
    """The last network that is finished, of the method's own chain."""
    chain = [one.last, *reversed(one.retrained[0].rows[1:])]
    return next((row for row in chain if row.results), None)


def stages(one: Summary, figures) -> list[tuple[str, str, list[tuple]]]:
    """(name, number of epochs, what to draw) of every stage that has begun."""
    found = []
    for stage in one.run.record.stages():
        paths = [one.run.place(seed) / stage / METRICS for seed in sorted(one.run.seeds)]
        histories = [rows for path in paths if path.is_file() and (rows := read_epochs(path))]
        if not histories:
            continue
        step = max(1, math.ceil(max(map(len, histories)) / CURVE_POINTS))
        thin = [[*rows[:-1:step], rows[-1]] for rows in histories]
        kinds = ("train (distillation)", "test (cross-entropy)") if stage == KESI else (
            "train", "test")
        train, test, held_out = figures.TRAIN_COLOUR, figures.KESI_COLOUR, figures.BASELINE_COLOUR
        loss = {"train_loss": (kinds[0], train), "test_loss": (kinds[1], test)}
        accuracy = {"train_accuracy": ("train", train), "val_accuracy": ("validation", held_out),
                    "test_accuracy": ("test", test)}
        rate = {"lr": ("learning rate", one.retrained[0].colour)}
        epochs = " or ".join(map(str, sorted({rows[-1].epoch for rows in histories})))
        found.append((stage, epochs, [("loss", thin, loss, "loss"),
                                      ("accuracy", thin, accuracy, "accuracy (%)"),
                                      ("learning rate", thin, rate, "learning rate")]))
    return found


def next_steps(run: Run) -> list[tuple[str, str]]:
    """What can be done with a run, and the command lines: continue, repeat, use its network."""
    command = re.sub(r" --fresh\b", "", requoted(run.record.command or "kesi run"))
    checkout = f"git checkout {run.record.commit}\n" if run.record.commit else ""
    if OURS.match(command):
        steps = [("Continue: the same command takes an interrupted run up at its last saved epoch, "
                  "and leaves what is finished alone.", command),
                 ("Repeat it from nothing; the run that is there is moved aside.",
                  f"{checkout}{command} --fresh")]
    else:
        steps = [("Continue: the program that called kesi.compress takes an interrupted run up at "
                  "its last saved epoch, and leaves what is finished alone; with fresh=True in the "
                  "call it starts over.", command)]
    seed = min(run.seeds, default=0)
    folder = shlex.quote(str(run.place(seed).parent))
    if KESI not in run.seeds.get(seed, ()):
        return steps
    handed_over = run.record.handed_over.get(f"seed{seed}", KESI)
    last, kesi, note = f"{folder}/seed{seed}/{handed_over}", "kesi", ""
    network = models.ARCHITECTURES.get(run.record.arch)
    if network is None or network.graph:
        added = _given(command, "--with")
        kesi = f"kesi{added or ' --with FILE'}"
        note = "" if added else "; FILE is the Python file that registers the network"
    lines = [f"{kesi} export {last} --out handed-over{_given(command, '--data')}",
             f"{kesi} predict {last} image.png"]
    if run.record.dataset in DATASETS:
        images = _given(command, "--data")
        lines.append(f"{kesi} compare {folder}/seed{seed}/{BASELINE} {last}{images}")
        check = ("Check the files, and compute the accuracies anew.",
                 f"{kesi} verify {folder}{images}")
    else:
        check = ("Check the files. Accuracies of images that were handed over in Python are "
                 "computed anew there, by kesi.report.verify.verify(folder, dataset).",
                 f"{kesi} verify {folder} --no-accuracy")
    what = "Use the compressed network, or look at it next to its baseline"
    return [*steps, (f"{what}{note}.", "\n".join(lines)), check]


def _given(command: str, flag: str) -> str:
    """A flag of a command with its values, as they are typed; "" where there is none."""
    words = shlex.split(command)
    values = [word.removeprefix(f"{flag}=") for word in words if word.startswith(f"{flag}=")]
    values += [value for word, value in zip(words, words[1:], strict=False) if word == flag]
    return "".join(f" {flag} {shlex.quote(value)}" for value in values)
