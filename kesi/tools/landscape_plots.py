"""The plots of kesi.landscape. Needs matplotlib (the extra "plots")."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from kesi.tools.landscape import PlanePoint

# Okabe and Ito's, told apart with any colour vision
COLOURS = {"loss": "#D55E00", "accuracy": "#0072B2"}

# names of folders stand in the plots, and a $ in them is no formula
AS_WRITTEN = matplotlib.rc_context({"text.parse_math": False})

LABELS = {"loss": "cross-entropy", "accuracy": "accuracy (%)"}


@AS_WRITTEN
def line_figure(rows: Sequence[dict], names: Sequence[str], images: str) -> Figure:
    """Loss above accuracy along the line; ``rows`` have from, position, loss and accuracy,
    segment by segment."""
    figure = Figure(figsize=(max(6.4, 2.2 * len(names)), 5.6), dpi=130, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    segments = len(names) - 1
    each = len(rows) // segments
    places = [number // each + row["position"] for number, row in enumerate(rows)]
    for axis, what in zip(axes, LABELS, strict=True):
        axis.plot(places, [row[what] for row in rows], "o-", color=COLOURS[what], markersize=4,
                  linewidth=1.6)
        axis.set_ylabel(LABELS[what])
        _tidy(axis)
        for place in range(len(names)):
            axis.axvline(place, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    axes[1].set_xticks(range(len(names)), names)
    figure.suptitle(f"on the straight line between networks ({images})", fontsize=11)
    return figure


@AS_WRITTEN
def plane_figure(points: Sequence["PlanePoint"], name: str, images: str) -> Figure:
    """Loss and accuracy as contours around a network, which is marked."""
    figure = Figure(figsize=(10.4, 4.6), dpi=130, layout="constrained")
    side = round(len(points) ** 0.5)
    xs, ys = [point.x for point in points[:side]], [point.y for point in points[::side]]
    for axis, (what, label) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
        values = [[getattr(point, what) for point in points[row * side:(row + 1) * side]]
                  for row in range(side)]
        if what == "loss":  # it grows by orders of magnitude
            values = [[math.log10(max(value, 1e-6)) for value in row] for row in values]
            label = "log10 of the cross-entropy"
        low, high = min(map(min, values)), max(map(max, values))
        flat = high - low < 1e-6
        levels = MaxNLocator(15, min_n_ticks=2).tick_values(low - flat / 2, high + flat / 2)
        if what == "accuracy":  # round steps would go on beyond what there is
            levels = sorted({min(max(level, 0.0), 100.0) for level in levels})
        filled = axis.contourf(xs, ys, values, levels=levels,
                               cmap="cividis_r" if what == "loss" else "cividis")
        axis.contour(xs, ys, values, levels=levels, colors="black", linewidths=0.3,
                     linestyles="solid")
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(MaxNLocator(5))
        axis.plot(0, 0, "+", color="#D55E00", markersize=12, markeredgewidth=2)
        axis.set_aspect("equal")
        axis.set_xlabel("first direction (norms of the filters)")
        axis.set_ylabel("second direction")
        axis.set_title(label, fontsize=10)
        figure.colorbar(filled, ax=axis, shrink=0.85)
    figure.suptitle(f"around {name} ({images})", fontsize=11)
    return figure


def save(figure: Figure, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure).print_png(file)


def _tidy(axis: Axes) -> None:
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
