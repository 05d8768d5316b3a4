"""Charts as SVG for a page: no colours of their own, but classes that the page's style sheet gives colours.

A series' ``style`` is the class of its marks (``baseline``, ``onecycle``, ``usual``, ``kesi``, ``train``, ...), so
that one page can be light and dark. Legends are HTML, which wraps on a phone where a drawing would shrink.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 250  # of the drawing; CSS scales it to the column

LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 44


@dataclass(frozen=True)
class Series:
    """Points joined by a line; ``errors`` are half the heights of error bars, ``marks`` draws the points."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] = ()
    dashed: bool = False
    marks: bool = True


def figure(title: str, body: str, legend: Sequence[tuple[str, str, bool]] = (), note: str = "") -> str:
    """A drawing under its title and legend: (name, style, dashed) of every series."""
    keys = "".join(f'<span class="key"><svg width="22" height="10" aria-hidden="true"><line class="mark {style}'
                   f'{" dashed" if dashed else ""}" x1="0" x2="22" y1="5" y2="5"/></svg>{escape(name)}</span>'
                   for name, style, dashed in legend)
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return (f'<figure><figcaption><strong>{escape(title)}</strong>{f"<div class=keys>{keys}</div>" if keys else ""}'
            f'</figcaption>{body}{note}</figure>')


def chart(title: str, series: Sequence[Series], x_label: str, y_label: str, *, log: bool = False,
          whole_x: bool = False, reverse: bool = False, note: str = "") -> str:
    """A figure with lines over linear axes (``log``: a logarithmic one upwards); "" where nothing has points.

    ``whole_x``: ticks at whole numbers only; ``reverse``: the x axis falls to the right. Points that are not
    finite, and those that a logarithm has no place for, are left out.
    """
    shown = [Series(one.name, one.style, [(x, y) for x, y in one.points if math.isfinite(y) and (y > 0 or not log)],
                    one.errors, one.dashed, one.marks) for one in series]
    shown = [one for one in shown if one.points]
    if not shown:
        return ""
    xs = [x for one in shown for x, _ in one.points]
    ys = [y + sign * error for one in shown for (_, y), error in zip(one.points, _errors(one), strict=True)
          for sign in (-1, 1)]
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole_x), decades(min(ys), max(ys)) if log else ticks(min(ys), max(ys))
    x_low, x_high = (x_ticks[0], x_ticks[-1]) if not whole_x else (min(xs), max(xs))
    across = _scale(x_high if reverse else x_low, x_low if reverse else x_high, LEFT, WIDTH - RIGHT)
    logarithm = math.log10 if log else float
    up = _scale(logarithm(y_ticks[0]), logarithm(y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    parts = [_grid(x_ticks, y_ticks, across, lambda y: up(logarithm(y)), x_label, y_label)]
    parts += [_line(one, across, lambda y: up(logarithm(y)), log) for one in shown]
    drawing = (f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
               f'{"".join(parts)}</svg>')
    legend = list(dict.fromkeys((one.name, one.style, one.dashed) for one in shown if one.name))
    return figure(title, drawing, legend if len(legend) > 1 else (), note)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round numbers around [low, high]."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    if whole:
        step = max(1, round(step))
        return [float(value) for value in range(math.ceil(low), math.floor(high) + 1) if value % step == 0] or [low]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten around [low, high]."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0 ** power for power in range(first, max(last, first + 1) + 1)]


def heat(title: str, names: Sequence[str], matrix: Sequence[Sequence[float]], note: str = "") -> str:
    """A square matrix, its numbers on cells that are the more opaque the larger they are."""
    cell, edge = 52, 58
    top = max(max(row) for row in matrix) or 1.0
    size = edge + cell * len(names)
    parts = []
    for i, (name, row) in enumerate(zip(names, matrix, strict=True)):
        middle = i * cell + cell / 2
        parts.append(f'<text class="tick end" x="{edge - 8}" y="{middle + 4}">{escape(name)}</text>'
                     f'<text class="tick middle" x="{edge + middle}" y="{size - edge + 18}">{escape(name)}</text>')
        for j, value in enumerate(row):
            x, y = edge + j * cell, i * cell
            parts.append(f'<rect class="fill onecycle" x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                         f'fill-opacity="{0.06 + 0.6 * value / top:.3f}"/>'
                         f'<text class="value middle" x="{x + cell / 2 - 1}" y="{y + cell / 2 + 4}">{value:.1f}</text>')
    drawing = (f'<svg class="chart heat" viewBox="0 0 {size} {size - edge + 28}" style="max-width:{size}px" role="img" '
               f'aria-label="{escape(title)}">{"".join(parts)}</svg>')
    return figure(title, drawing, note=note)


def bars(title: str, names: Sequence[str], before: Sequence[float], after: Sequence[float], y_label: str,
         legend: tuple[str, str], note: str = "") -> str:
    """What every layer had and what it has left, as bars in front of bars; wide networks scroll."""
    step = max(16, min(40, 640 // len(names)))
    width, foot = LEFT + step * len(names) + RIGHT, min(130, 22 + 6 * max(map(len, names)))  # room for slanted names
    height = 210 + foot
    y_ticks = ticks(0, max(before))
    up = _scale(0, y_ticks[-1], height - foot, TOP)
    parts = [_rule(up(tick), width, _text(tick)) for tick in y_ticks]
    for place, (name, whole, left) in enumerate(zip(names, before, after, strict=True)):
        x = LEFT + place * step
        for value, style in ((whole, "before"), (left, "after")):
            parts.append(f'<rect class="fill {style}" x="{x + 2}" y="{up(value):.1f}" width="{step - 4}" '
                         f'height="{max(height - foot - up(value), 0.5):.1f}" rx="2"/>')
        parts.append(f'<rect class="hover" x="{x}" y="{TOP}" width="{step}" height="{height - foot - TOP}"><title>'
                     f'{escape(name)}: {_text(left)} of {_text(whole)}</title></rect>'
                     f'<text class="tick end" transform="translate({x + step / 2 + 4} {height - foot + 8}) '
                     f'rotate(-60)">{escape(name)}</text>')
    parts.append(f'<text class="label middle" transform="translate(13 {(height - foot + TOP) / 2}) rotate(-90)">'
                 f'{escape(y_label)}</text>')
    drawing = (f'<div class="scroll"><svg class="bars" width="{width}" height="{height}" '
               f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></div>')
    return figure(title, drawing, [(legend[0], "before", False), (legend[1], "after", False)], note)


def _errors(series: Series) -> Sequence[float]:
    return series.errors if len(series.errors) == len(series.points) else [0.0] * len(series.points)


def _scale(low: float, high: float, first: float, last: float):
    span = high - low or 1.0
    return lambda value: first + (value - low) / span * (last - first)


def _rule(y: float, width: float, text: str) -> str:
    return (f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>')


def _grid(x_ticks, y_ticks, across, up, x_label: str, y_label: str) -> str:
    parts = [_rule(up(tick), WIDTH, _text(tick)) for tick in y_ticks]
    parts += [f'<text class="tick middle" x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 17}">{_text(tick)}</text>'
              for tick in x_ticks]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<text class="label middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(x_label)}'
                 f'</text><text class="label middle" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}'
                 f'</text>')
    return "".join(parts)


def _line(series: Series, across, up, log: bool) -> str:
    places = [(across(x), up(y)) for x, y in series.points]
    parts = []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashed = " dashed" if series.dashed else ""
        parts.append(f'<polyline class="mark {series.style}{dashed}" points="{path}"/>')
    for (x, y), (px, py), error in zip(series.points, places, _errors(series), strict=True):
        if error and not log:
            parts.append(f'<line class="mark thin {series.style}" x1="{px:.1f}" x2="{px:.1f}" y1="{up(y - error):.1f}" '
                         f'y2="{up(y + error):.1f}"/>')
        if series.marks or len(places) == 1:
            parts.append(f'<circle class="fill {series.style}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>'
                         f'{escape(series.name)}: {_text(y)} at {_text(x)}</title></circle>')
    return "".join(parts)


def _text(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.3g}" if value >= 0.001 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
