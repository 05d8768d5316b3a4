"""The plots of a report: what the paper argues with, as PNG files and as SVG for the page.

Needs matplotlib (the extra "plots"); the tables work without this module.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kesi.method.schedules import learning_rates
from kesi.method.snapshot import BASELINE, KESI, StageName
from kesi.method.training import Epoch
from kesi.report.summary import Retrained, Row, Spread, Summary
from kesi.runs.record import Result
from kesi.system.files import write_atomic

# Okabe and Ito's palette, told apart with any colour vision; the markers tell the same without colour.
BASELINE_COLOUR, KESI_COLOUR, TRAIN_COLOUR = "#555555", "#009E73", "#9467BD"

INK, PAPER, GRID = "#000000", "#ffffff", "#dddddd"

DPI = 130

STEPS = 100  # a learning-rate curve over epochs looks the same for any number of steps an epoch

SMALL = 4.1, 2.9  # inches of a figure on the page

# Names of folders stand in titles, and a $ in them is no formula. Text stays text in SVG, and equal
# drawings give equal files.
STYLE = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "kesi"}


def draw(summaries: Sequence[Summary], out: Path) -> list[Path]:
    """Write every plot that the runs have results for to ``out`` and return the files."""
    makers = {"accuracy.png": accuracy_figure, "rounds.png": rounds_figure,
              "disagreement.png": disagreement_figure, "lr.png": learning_rate_figure}
    written = []
    for name, make in makers.items():
        with matplotlib.rc_context(STYLE):
            figure = make(summaries)
            if figure is not None:
                save(figure, out / name)
                written.append(out / name)
    return written


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically. Raises KesiError where that fails."""
    write_atomic(path, FigureCanvasAgg(figure).print_png, durable=False)


def svg(make: Callable[..., Figure | None], *arguments: object) -> str:
    """The figure that a function makes as an <svg> to stand in a page, "" of None.

    Its colours are those of the page's style sheet: ink, paper and lines are variables, all others
    are lightened by --lift, which is 0 % on white.
    """
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = make(*arguments)
        if figure is None:
            return ""
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg"):]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", drawn, flags=re.S)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", drawn)
    named = {INK: "var(--ink)", PAPER: "var(--surface)", GRID: "var(--line)"}
    return re.sub(r"(?<=: )#[0-9a-f]{6}", lambda found: named.get(found[0]) or (
        f"color-mix(in srgb, {found[0]}, white var(--lift))"), drawn).strip()


def panels(count: int, title: str, height: float = 4.2, width: float = 5.2,
           ) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side under one title, of one scale upwards; one alone is wider."""
    figure = Figure(figsize=(max(6.4, width * count), height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    figure.suptitle(title, fontsize=11)
    return figure, [_plain(axis) for axis in axes]


def small(width: float = SMALL[0], height: float = SMALL[1]) -> tuple[Figure, Axes]:
    """A figure of one panel for the page, which gives it its title."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _plain(figure.subplots())


def _plain(axis: Axes) -> Axes:
    axis.grid(True, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def curve(axis: Axes, places: Sequence[float | None], values: Sequence[Spread | None], label: str,
          **style) -> None:
    """Means joined by a line, with error bars; nothing at all without values."""
    known = [(x, y.mean, y.std or 0.0) for x, y in zip(places, values, strict=True)
             if x is not None and y is not None]
    if known:
        xs, means, deviations = zip(*known, strict=True)
        axis.errorbar(xs, means, yerr=deviations if any(deviations) else None, label=label,
                      capsize=2.5, elinewidth=0.9, linewidth=1.6, **style)


def finished(figure: Figure, axes: Sequence[Axes], size: float = 9) -> Figure | None:
    """The figure with a legend where something is drawn, None where nothing is."""
    drawn = [axis for axis in axes if axis.get_legend_handles_labels()[0]]
    for axis in drawn:
        axis.legend(frameon=False, fontsize=size, loc="best")
    return figure if drawn else None


def subject(summaries: Sequence[Summary]) -> str:
    """The network and the data set of a plot's title."""
    return summaries[0].run.subject


def spread_note(summaries: Sequence[Summary]) -> str:
    """What the error bars are, where there are any."""
    seeds = max(len(one.run.results(stage)) for one in summaries for stage in one.run.record.stages())
    return f" (mean ± std of {seeds} seeds)" if seeds > 1 else ""


def accuracy_panel(axis: Axes, one: Summary) -> None:
    """Accuracy against size: the retrainings, KESI at the last size, the baseline a line."""
    if one.baseline.accuracy:
        axis.axhline(one.baseline.accuracy.mean, color=BASELINE_COLOUR, linestyle="--", linewidth=1.2,
                     label="baseline")
    for part in reversed(one.retrained):
        curve(axis, [row.remaining for row in part.rows], [row.accuracy for row in part.rows],
              part.label, color=part.colour, marker=part.marker)
    curve(axis, [one.last.remaining], [one.last.accuracy], "KESI", color=KESI_COLOUR, marker="*",
          markersize=11, linestyle="none", zorder=5)
    axis.invert_xaxis()
    axis.set_xlabel(f"remaining {one.size_name} (% of the baseline)")


def rounds_panel(axis: Axes, one: Summary) -> None:
    """Accuracy of each snapshot, and of the ensemble of all up to it, by round."""
    shift = 0.05 if spread_note([one]) else 0.0  # apart, so that error bars do not hide each other
    for number, part in enumerate(one.retrained):
        style = {"color": part.colour, "marker": part.marker}
        places = [place + (3 * number - 2) * shift for place in range(len(part.rows))]
        curve(axis, places, part.growing, f"ensemble so far, {part.label}", **style)
        curve(axis, [place + shift for place in places], [row.accuracy for row in part.rows],
              f"snapshot, {part.label}", linestyle=":", markerfacecolor=PAPER, **style)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("round of pruning (0 is the baseline)")


def retraining_panel(axis: Axes, one: Summary) -> None:
    """Accuracy right after pruning, and after the retraining, by round."""
    for part in one.retrained:
        style = {"color": part.colour, "marker": part.marker}
        places = range(len(part.rows))
        curve(axis, places, [row.accuracy for row in part.rows], f"{part.label}, after", **style)
        curve(axis, places, [row.spread("pruned_accuracy") for row in part.rows],
              f"{part.label}, before", linestyle="--", markerfacecolor=PAPER, **style)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("round of pruning")


def side_by_side(panel: Callable[[Axes, Summary], None], summaries: Sequence[Summary],
                 title: str) -> Figure | None:
    """One panel for each run."""
    figure, axes = panels(len(summaries), f"{subject(summaries)}: {title}{spread_note(summaries)}")
    for axis, one in zip(axes, summaries, strict=True):
        panel(axis, one)
        if len(summaries) > 1:
            axis.set_title(one.run.label, fontsize=10)
    axes[0].set_ylabel("test accuracy (%)")
    return finished(figure, axes)


def alone(panel: Callable[[Axes, Summary], None], one: Summary) -> Figure | None:
    """A panel of one run for the page."""
    figure, axis = small(4.6, 3.4)
    panel(axis, one)
    axis.set_ylabel("test accuracy (%)")
    return finished(figure, [axis], 8)


def accuracy_figure(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy against size, of each run."""
    return side_by_side(accuracy_panel, summaries, "accuracy against size")


def rounds_figure(summaries: Sequence[Summary]) -> Figure | None:
    """Snapshots and their ensemble, of each run."""
    return side_by_side(rounds_panel, summaries, "snapshots and their ensemble")


def heat_panel(axis: Axes, part: Retrained) -> None:
    """How often two snapshots predict different classes: a square each, the number in it."""
    names = ["base" if name == BASELINE else str(StageName.parse(name).round) for name in part.members]
    top = max(map(max, part.disagreement)) or 1.0
    for i, j in itertools.product(range(len(names)), repeat=2):
        value = part.disagreement[i][j]
        axis.fill([j - 0.48, j + 0.48, j + 0.48, j - 0.48], [i - 0.48, i - 0.48, i + 0.48, i + 0.48],
                  color=part.colour, alpha=0.05 + 0.55 * value / top, linewidth=0)
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=INK)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal",
             xlabel="snapshot of round", ylabel="snapshot of round")
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def disagreement_figure(summaries: Sequence[Summary]) -> Figure | None:
    """The disagreement of the snapshots in percent of the test images, of each retraining."""
    found = [(one, part) for one in summaries for part in one.retrained if part.disagreement]
    if not found:
        return None
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(max(5.2, 4.4 * columns), 4.1 * lines + 0.5), dpi=DPI, layout="constrained")
    title = f"{subject(summaries)}: disagreement of the snapshots (% of the test images)"
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (one, part) in zip(axes, found, strict=False):
        heat_panel(axis, part)
        axis.set_title(f"{one.run.label}, {part.label} retraining", fontsize=10)
    for axis in axes[len(found):]:
        axis.set_visible(False)
    return figure


def heat_figure(part: Retrained) -> Figure:
    """The disagreement of one retraining's snapshots, for the page."""
    figure, axis = small(*[0.62 * len(part.members) + 0.8] * 2)
    heat_panel(axis, part)
    return figure


def learning_rate_figure(summaries: Sequence[Summary]) -> Figure | None:
    """The learning rate of all stages in a row, from the recipes and the schedules of training."""
    distinct: list[tuple[Summary, dict]] = []
    for one, rates in sorted(((one, curves(one)) for one in summaries), key=lambda two: -len(two[1])):
        if rates and not any(rates.items() <= other.items() for _, other in distinct):
            distinct.append((one, rates))  # else all of it is drawn already
    if not distinct:
        return None
    title = f"{subject(summaries)}: learning rate of the stages"
    figure, axes = panels(len(distinct), title, 3.8, 6.0)
    for axis, (one, rates) in zip(axes, distinct, strict=True):
        rates_panel(axis, one, rates)
        if len(distinct) > 1:
            axis.set_title(one.run.label, fontsize=10, pad=18)
    axes[0].set_ylabel("learning rate")
    return figure


def steps_of(one: Summary) -> int:
    """How many steps an epoch learning-rate curves have: as many as can be seen."""
    longest = max(said["epochs"] for said in one.run.record.recipe["trainings"].values())
    return max(1, min(STEPS, STEPS * 1000 // longest))


def curves(one: Summary) -> dict[str, list[float]]:
    """The learning rate of every step by kind of stage; nothing of an unknown schedule."""
    made = {kind: one.run.record.training(kind) for kind in one.run.record.recipe["trainings"]}
    if None in made.values():
        return {}
    return {kind: learning_rates(training, steps_of(one)) for kind, training in made.items()}


def rates_panel(axis: Axes, one: Summary, rates: dict[str, list[float]]) -> None:
    """A run's stages one after the other, the peaks of one-cycle schedules marked."""
    own, *others = one.retrained
    looks = {BASELINE: ("baseline", BASELINE_COLOUR), KESI: ("distillation (KESI)", KESI_COLOUR)}
    looks |= {part.name: (f"{part.label} retraining", part.colour) for part in one.retrained}
    steps, start, told = steps_of(one), 0.0, set()
    rounds = one.run.record.rounds

    def draw_stage(kind: str, **style) -> float:
        training = one.run.record.training(kind)
        cycles = training.schedule == "onecycle"
        label = looks[kind][0] + (f", peak {training.lr:g}" if cycles else "")
        axis.plot([start + step / steps for step in range(len(rates[kind]))], rates[kind],
                  color=looks[kind][1], linewidth=1.6, label=None if kind in told else label,
                  marker="v" if cycles else None, markersize=5,
                  markevery=[rates[kind].index(max(rates[kind]))], **style)
        told.add(kind)
        return len(rates[kind]) / steps

    whole = sum(map(len, (rates[BASELINE], rates[KESI]))) + rounds * len(rates[own.name])
    first = "baseline" if len(rates[BASELINE]) > 0.15 * whole else "base"
    above = [(own.name, str(place)) for place in range(1, rounds + 1)]
    for kind, text in [(BASELINE, first), *above, (KESI, "KESI")]:
        for other in others if kind == own.name else ():
            if len(rates[other.name]) == len(rates[kind]):
                draw_stage(other.name, linestyle="--")
        epochs = draw_stage(kind)
        axis.text(start + epochs / 2, 1.02, text, transform=axis.get_xaxis_transform(), ha="center",
                  va="bottom", fontsize=8, color=looks[kind][1])
        start += epochs
        axis.axvline(start, color="#bbbbbb", linewidth=0.6, zorder=1)
    axis.set_yscale("log")
    axis.set_xlim(0, start)
    axis.margins(y=0.12)
    axis.set_xlabel("epochs of all stages in a row (numbers above: rounds)")
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="lower left")


def widths_figure(one: Summary, row: Row) -> Figure | None:
    """What pruning left of every layer: filters, or non-zero weights, of the first seed."""
    result = next(iter(row.results.values()), None)
    if not isinstance(result, Result) or not result.layers:
        return None
    names, before, after = zip(*result.layers, strict=True)
    figure, axis = small(6.4, 0.7 + 0.2 * len(names))
    places = range(len(names))
    axis.barh(places, before, color=one.retrained[0].colour, alpha=0.25, height=0.75)
    axis.barh(places, after, color=one.retrained[0].colour, height=0.75)
    for place, whole, left in zip(places, before, after, strict=True):
        axis.text(whole, place, f" {left:,} of {whole:,}", va="center", fontsize=8, color=INK)
    axis.set_yticks(places, names, fontsize=8)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1.25 * max(max(before), 1)),
             xlabel="filters" if one.run.record.method == "filter" else "weights")
    axis.grid(False, axis="y")
    return figure


def epochs_figure(histories: Sequence[Sequence[Epoch]], fields: dict[str, tuple[str, str]],
                  y_label: str) -> Figure | None:
    """Curves of a stage over its epochs, a line a seed; ``fields``: name to (label, colour)."""
    figure, axis = small()
    for name, (label, colour) in fields.items():
        for number, rows in enumerate(histories):
            known = [(row.epoch, value) for row in rows if (value := getattr(row, name)) is not None]
            if known:
                axis.plot(*zip(*known, strict=True), color=colour, linewidth=1.2,
                          label=None if number else label, marker="." if len(known) < 10 else None)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set(xlabel="epoch", ylabel=y_label)
    if fields.keys() == {"lr"}:
        axis.set_yscale("log")
    return finished(figure, [axis], 8)
