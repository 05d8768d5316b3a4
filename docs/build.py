"""Builds the reference of all modules from their docstrings. Needs pdoc (the extra "docs").

    python docs/build.py [FOLDER]       # default: docs/api; open its index.html

A warning of pdoc is an error.
"""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import kesi
import models

DEFAULT = Path(__file__).parent / "api"


def build(out: Path) -> None:
    """Write the pages of kesi, models and all of their modules to ``out``."""
    for name in kesi.__all__:  # some are imported when they are asked for, and pdoc does not ask
        vars(kesi)[name] = getattr(kesi, name)
    names = [package.__name__ for package in (kesi, models)]
    for package in (kesi, models):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    pdoc.render.configure(docformat="markdown", show_source=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*names, output_directory=out)
    print(f"{len(names)} modules -> {out / 'index.html'}")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)
