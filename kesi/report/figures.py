"""What the paper argues with as plots: PNG files, and SVG for the page.

Needs matplotlib (the extra "plots"); the tables work without this module.
"""

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kesi.method.snapshot import BASELINE, StageName
from kesi.report.statistics import Spread
from kesi.report.summary import Retrained, Summary
from kesi.system.files import write_atomic

# Okabe and Ito's palette, told apart with any colour vision; markers tell the same without colour.
BASELINE_COLOUR, KESI_COLOUR, TRAIN_COLOUR = "#555555", "#009E73", "#9467BD"

INK, PAPER, GRID = "#000000", "#ffffff", "#dddddd"

DPI = 130

SMALL = 4.1, 2.9  # inches of a figure on the page

# Names of folders stand in titles, and a $ in them is no formula. Text stays text in SVG, and equal
# drawings give equal files.
STYLE = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "kesi"}


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
    beside = r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->"
    drawn = re.sub(beside, "", drawn, flags=re.S)
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
    _entitle(figure, title)
    return figure, [_plain(axis) for axis in axes]


def _entitle(figure: Figure, title: str) -> None:
    """A title in as many lines as it needs: the name of a data set may be long."""
    figure.suptitle(textwrap.fill(title, int(11 * figure.get_figwidth())), fontsize=11)


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
    """What the error bars are, where there are any: of the seeds that have finished a stage."""
    seeds = {len(one.run.results(stage))
             for one in summaries for stage in one.run.record.stages()} - {0}
    fewest, most = min(seeds, default=0), max(seeds, default=0)
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f" (mean ± std of {count} seeds)" if most > 1 else ""


def accuracy_panel(axis: Axes, one: Summary) -> None:
    """Accuracy against size: the retrainings, KESI at the last size, the baseline a line."""
    if one.baseline.accuracy:
        axis.axhline(one.baseline.accuracy.mean, color=BASELINE_COLOUR, linestyle="--",
                     linewidth=1.2, label="baseline")
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
    names = ["base" if name == BASELINE else str(StageName.parse(name).round)
             for name in part.members]
    top = max(map(max, part.disagreement)) or 1.0
    for i, j in itertools.product(range(len(names)), repeat=2):
        value = part.disagreement[i][j]
        (left, right), (low, high) = ((place - 0.48, place + 0.48) for place in (j, i))
        axis.fill([left, right, right, left], [low, low, high, high], color=part.colour,
                  alpha=min(max(0.05 + 0.55 * value / top, 0), 1), linewidth=0)
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
    size = max(5.2, 4.4 * columns), 4.2 * lines + 0.9
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    _entitle(figure, f"{subject(summaries)}: disagreement of the snapshots (% of the test images)")
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
