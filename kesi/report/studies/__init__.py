"""What studies say: the table and the picture of one, and several together."""

from collections.abc import Sequence
from pathlib import Path

from kesi.report.report import NO_PLOTS
from kesi.report.studies.picture import draw
from kesi.report.studies.pool import CSV, pool, read
from kesi.report.studies.table import Outcomes, rows, table
from kesi.system import files
from kesi.system.files import csv_text

__all__ = ["pool", "read", "write"]


def write(found: Outcomes, title: str, out: Path, missing: Sequence[str] = ()) -> str:
    """Write study.md, study.csv (every outcome as numbers) and study.png; returns the table as
    text, and what could not be drawn. ``missing``: variants that no seed has finished."""
    made = table(found, title)
    made.notes += [f'Not here, as no seed has finished it: "{name}".' for name in missing]
    files.write_text(out / CSV, csv_text(rows(found)))
    picture, said = "\n\n![study](study.png)", f"picture: {out / 'study.png'}"
    try:
        draw(found, title, out / "study.png")
    except ImportError:
        picture, said = "", NO_PLOTS
    files.write_text(out / "study.md", made.markdown().replace("## ", "# ", 1) + picture + "\n")
    return f"{made.text()}\n\n{said}\nreport: {out / 'study.md'}"
