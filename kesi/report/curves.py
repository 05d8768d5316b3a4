"""Plots of how networks were trained and what pruning left of them; all PNG files of a report."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from kesi.method.schedules import learning_rates
from kesi.method.snapshot import BASELINE, KESI
from kesi.method.training import Epoch
from kesi.report.figures import (
    BASELINE_COLOUR,
    INK,
    KESI_COLOUR,
    STYLE,
    accuracy_figure,
    disagreement_figure,
    finished,
    panels,
    rounds_figure,
    save,
    small,
    subject,
)
from kesi.report.summary import Row, Summary
from kesi.runs.record import Result

STEPS = 100  # a learning-rate curve looks the same for any number of steps an epoch


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


def learning_rate_figure(summaries: Sequence[Summary]) -> Figure | None:
    """The learning rate of all stages in a row, from the recipes and the schedules of training."""
    distinct: list[tuple[Summary, dict]] = []
    found = [(one, curves(one)) for one in summaries]
    for one, rates in sorted(found, key=lambda two: -len(two[1])):
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
    _logarithmic(axis)
    axis.set_xlim(0, start)
    axis.margins(y=0.12)
    axis.set_xlabel("epochs of all stages in a row (numbers above: rounds)")
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="lower left")


def _logarithmic(axis: Axes) -> None:
    """Powers of ten upwards, as plain numbers: matplotlib would write them as formulas."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


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
        axis.text(whole + 0.01 * max(before), place, f"{left:,} of {whole:,}", va="center",
                  fontsize=8, color=INK)
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
            known = [(row.epoch, getattr(row, name)) for row in rows
                     if getattr(row, name) is not None]
            if known:
                axis.plot(*zip(*known, strict=True), color=colour, linewidth=1.2,
                          label=None if number else label, marker="." if len(known) < 10 else None)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set(xlabel="epoch", ylabel=y_label)
    if fields.keys() == {"lr"}:
        _logarithmic(axis)
    return finished(figure, [axis], 8)
