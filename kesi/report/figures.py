"""The plots of a report, as PNG files: what the paper argues with, from the results of one or several runs.

Needs matplotlib (the extra "plots"); kesi report works without this module.
"""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kesi.method.recipes import STAGES
from kesi.method.schedules import learning_rates
from kesi.report.summary import disagreement, points, remaining
from kesi.runs.record import recipe_of
from kesi.runs.results import Run
from kesi.system.files import write_atomic

if TYPE_CHECKING:
    from kesi.runs.results import Run

# Okabe and Ito's palette, told apart with any colour vision; the markers tell the same without colour.
COLOURS = {"baseline": "#555555", "onecycle": "#0072B2", "usual": "#D55E00", "kesi": "#009E73"}

MARKERS = {"onecycle": "o", "usual": "s"}

NAMES = {"onecycle": "one-cycle", "usual": "usual"}

DPI = 130

STEPS = 100  # a learning-rate curve over epochs looks the same for any number of steps an epoch


def draw(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write every plot that the runs have results for to ``out`` and return the files."""
    figures = {"accuracy.png": accuracy_figure(runs), "rounds.png": rounds_figure(runs),
               "disagreement.png": disagreement_figure(runs), "lr.png": learning_rate_figure(runs)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            save(figure, out / name)
            written.append(out / name)
    return written


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically. Raises KesiError where that fails."""
    write_atomic(path, FigureCanvasAgg(figure).print_png, durable=False)


def panels(count: int, title: str, height: float = 4.2, width: float = 5.2) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side under one title, of one scale upwards; one alone is wider."""
    figure = Figure(figsize=(max(6.4, width * count), height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    figure.suptitle(title, fontsize=11)
    for axis in axes:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def subject(runs: Sequence[Run]) -> str:
    """The network and the data set of a plot's title."""
    return runs[0].subject


def curve(axis: Axes, series: Sequence[tuple[float, list[float]]], label: str, **style) -> None:
    """Means joined by a line, with error bars; nothing at all without values."""
    places, means, deviations = points(series)
    if places:
        errors = deviations if any(deviations) else None
        axis.errorbar(places, means, yerr=errors, label=label, capsize=2.5, elinewidth=0.9, linewidth=1.6,
                      **style)


def with_legends(figure: Figure, axes: Sequence[Axes]) -> Figure | None:
    """The figure with a legend where something is drawn, None where nothing is."""
    drawn = [axis for axis in axes if axis.get_legend_handles_labels()[0]]
    for axis in drawn:
        axis.legend(frameon=False, fontsize=9, loc="best")
    return figure if drawn else None


def spread_note(runs: Sequence[Run]) -> str:
    """What the error bars are, where there are any."""
    seeds = max(len(run.results(stage)) for run in runs for stage in run.stages())
    return f" (mean ± std of {seeds} seeds)" if seeds > 1 else ""


def accuracy_figure(runs: Sequence[Run]) -> Figure | None:
    """Accuracy against remaining parameters: the retrainings, KESI at the last size, the baseline a line."""
    figure, axes = panels(len(runs), f"{subject(runs)}: accuracy against size{spread_note(runs)}")
    for axis, run in zip(axes, runs, strict=True):
        baseline = run.values("baseline")
        if baseline:
            axis.axhline(statistics.fmean(baseline), color=COLOURS["baseline"], linestyle="--", linewidth=1.2,
                         label="baseline")
        for retraining in reversed(run.retrainings()):
            stages = ["baseline", *[f"{retraining}-{place}" for place in range(1, run.rounds + 1)]]
            sizes = [(remaining(run, stage), run.values(stage)) for stage in stages]
            name = run.label if retraining == "usual" else f"{run.label} + one-cycle"
            curve(axis, [(size, values) for size, values in sizes if size is not None], name,
                  color=COLOURS[retraining], marker=MARKERS[retraining])
        size = remaining(run, "kesi")
        if size is not None:
            curve(axis, [(size, run.values("kesi"))], f"{run.label} + KESI", color=COLOURS["kesi"],
                  marker="*", markersize=11, linestyle="none", zorder=5)
        axis.invert_xaxis()
        kind = "non-zero parameters" if run.info["method"] == "weight" else "parameters"
        axis.set_xlabel(f"remaining {kind} (% of the baseline)")
    axes[0].set_ylabel("test accuracy (%)")
    return with_legends(figure, axes)


def rounds_figure(runs: Sequence[Run]) -> Figure | None:
    """Accuracy of each snapshot, and of the ensemble of all up to it, by round."""
    figure, axes = panels(len(runs), f"{subject(runs)}: snapshots and their ensemble{spread_note(runs)}")
    for axis, run in zip(axes, runs, strict=True):
        shift = 0.05 if spread_note(runs) else 0.0  # apart, so that error bars do not hide each other
        for retraining, left in zip(run.retrainings(), (-2 * shift, shift), strict=False):
            stages = ["baseline", *[f"{retraining}-{place}" for place in range(1, run.rounds + 1)]]
            style = {"color": COLOURS[retraining], "marker": MARKERS[retraining]}
            grown = [(place + left, run.growing(retraining, place + 1)) for place in range(run.rounds + 1)]
            curve(axis, grown, f"ensemble so far, {NAMES[retraining]}", **style)
            curve(axis, [(place + left + shift, run.values(stage)) for place, stage in enumerate(stages)],
                  f"snapshot, {NAMES[retraining]}", linestyle=":", markerfacecolor="white", **style)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel(f"{run.label}: round of pruning (0 is the baseline)")
    axes[0].set_ylabel("test accuracy (%)")
    return with_legends(figure, axes)


def disagreement_figure(runs: Sequence[Run]) -> Figure | None:
    """Heat maps, the numbers in them: how often two snapshots predict different classes."""
    found = [(run, retraining, disagreement(run, retraining))
             for run in runs for retraining in run.retrainings()]
    found = [entry for entry in found if entry[2] is not None]
    if not found:
        return None
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(max(5.2, 4.4 * columns + 0.8), 4.1 * lines + 0.5), dpi=DPI, layout="constrained")
    figure.suptitle(f"{subject(runs)}: disagreement of the snapshots", fontsize=11)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    top = max(value for _, _, (_, matrix) in found for row in matrix for value in row) or 1.0
    for axis, (run, retraining, (members, matrix)) in zip(axes, found, strict=False):
        image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=top)
        names = ["base" if member == "baseline" else member.rpartition("-")[2] for member in members]
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("snapshot of round")
        axis.set_ylabel("snapshot of round")
        axis.set_title(f"{run.label}, {NAMES[retraining]} retraining", fontsize=10)
        for i, j in itertools.product(range(len(names)), repeat=2):
            axis.text(j, i, f"{matrix[i][j]:.1f}", ha="center", va="center", fontsize=8,
                      color="black" if matrix[i][j] > 0.55 * top else "white")
    for axis in axes[len(found):]:
        axis.set_visible(False)
    figure.colorbar(image, ax=list(axes), label="disagreement (% of the test images)", shrink=0.9)
    return figure


def learning_rate_figure(runs: Sequence[Run]) -> Figure | None:
    """The learning rate of all stages in a row, from the recipes and the schedules that training uses."""
    found = [(run, curves(run)) for run in runs if run.info.get("recipe")]
    distinct: list[tuple[Run, dict]] = []
    for run, rates in sorted(found, key=lambda entry: -len(entry[1])):
        if not any(rates.items() <= other.items() for _, other in distinct):  # all of it is drawn already
            distinct.append((run, rates))
    if not distinct:
        return None
    figure, axes = panels(len(distinct), f"{subject(runs)}: learning rate of the stages", 3.8, 6.0)
    for axis, (run, rates) in zip(axes, distinct, strict=True):
        draw_curves(axis, run, rates)
        if len(distinct) > 1:
            axis.set_title(run.label, fontsize=10, pad=18)
    axes[0].set_ylabel("learning rate")
    return figure


def curves(run: Run) -> dict[str, list[float]]:
    """The learning rate of every step of a run's stages, by the stage's name in the recipe."""
    recipe = recipe_of(run.info["recipe"])
    names = ("baseline", "retrain", *["usual"] * ("usual" in run.retrainings()), "distill")
    return {name: learning_rates(getattr(recipe, name), steps_of(run)) for name in names}


def steps_of(run: Run) -> int:
    """How many steps an epoch its learning-rate curves have: as many as can be seen."""
    longest = max(run.info["recipe"][name]["epochs"] for name in STAGES)
    return max(1, min(STEPS, STEPS * 1000 // longest))


def draw_curves(axis: Axes, run: Run, rates: dict[str, list[float]]) -> None:
    """One run's stages one after the other, the peaks of one-cycle schedules marked."""
    recipe, steps = run.info["recipe"], steps_of(run)
    kinds = {"baseline": "baseline", "retrain": "onecycle", "usual": "usual", "distill": "kesi"}
    labels = {"baseline": "baseline", "retrain": "one-cycle retraining", "usual": "usual retraining",
              "distill": "distillation (KESI)"}
    whole = sum(len(rates[name]) for name in ["baseline", *["retrain"] * run.rounds, "distill"])
    start = 0.0

    def draw_stage(name: str, **style) -> float:
        peak = rates[name].index(max(rates[name]))
        cycles = recipe[name]["schedule"] == "onecycle"
        label = labels.pop(name, None)
        if label and cycles:
            label += f", peak {recipe[name]['lr']:g}"
        places = [start + step / steps for step in range(len(rates[name]))]
        axis.plot(places, rates[name], color=COLOURS[kinds[name]], linewidth=1.6, label=label,
                  marker="v" if cycles else None, markevery=[peak], markersize=5, **style)
        return len(rates[name]) / steps

    rounds = [("retrain", str(place)) for place in range(1, run.rounds + 1)]
    first = "baseline" if len(rates["baseline"]) > 0.15 * whole else "base"
    for name, above in [("baseline", first), *rounds, ("distill", "KESI")]:
        if name == "retrain" and len(rates.get("usual", ())) == len(rates["retrain"]):
            draw_stage("usual", linestyle="--")
        epochs = draw_stage(name)
        axis.text(start + epochs / 2, 1.02, above, transform=axis.get_xaxis_transform(), ha="center",
                  va="bottom", fontsize=8, color=COLOURS[kinds[name]])
        start += epochs
        axis.axvline(start, color="#bbbbbb", linewidth=0.6, zorder=1)
    axis.set_yscale("log")
    axis.set_xlim(0, start)
    axis.margins(y=0.12)
    axis.set_xlabel("epochs of all stages in a row (numbers above: rounds)")
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="lower left")
