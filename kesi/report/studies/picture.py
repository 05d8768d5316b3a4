"""The picture of a study: what every variant differs from the first one by."""

import textwrap
from pathlib import Path

from kesi.report.studies.table import Outcomes, differences, pairs

NAME, TITLE = 40, 77  # letters in a line


def draw(found: Outcomes, title: str, path: Path) -> None:
    """The differences with their intervals, and those of every seed as dots, as PNG."""
    import matplotlib

    from kesi.report.figures import BASELINE_COLOUR, KESI_COLOUR, STYLE, save, small

    first, *others = found
    against, both = differences(found), pairs(found)
    labels = [textwrap.fill(name, NAME) for name in others]
    title = "\n".join(textwrap.fill(line, TITLE) for line in (title, f"against: {first}"))
    row = max([0.36, *(0.18 * (1 + label.count("\n")) for label in labels)])  # inches
    with matplotlib.rc_context(STYLE):
        figure, axis = small(7.0, 1.3 + 0.15 * (1 + title.count("\n")) + row * len(others))
        axis.axvline(0, color=BASELINE_COLOUR, linewidth=1)
        for place, name in enumerate(others):
            if name not in both:
                continue
            points = [one.result.test_accuracy - before.result.test_accuracy
                      for before, one in both[name].values()]
            axis.plot(points, [place] * len(points), "o", color=BASELINE_COLOUR, markersize=3,
                      alpha=0.6)
            axis.errorbar([against[name].mean], [place], xerr=against[name].half, fmt="D",
                          color=KESI_COLOUR, markersize=5, capsize=3)
        axis.set_yticks(range(len(others)), labels)
        axis.set_ylim(max(len(others), 1) - 0.5, -0.5)
        axis.set_xlabel("points of accuracy: mean, 95 % interval, every seed")
        figure.suptitle(title, fontsize=10)
        save(figure, path)
