"""Makes a site of the hand-written pages, with the reference of all modules behind them.

    python docs/build.py [FOLDER]       # default: docs/site; open its index.html

The README is the start page; every file that a page links to comes along, at the place where it has
in the checkout. The reference is made from docstrings by pdoc (the extra "docs"); a warning of pdoc
is an error.
"""

import html
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path

import markdown2
import pdoc

import kesi
import models
from kesi.tools import handover

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "docs" / "site"
REFERENCE = "api/kesi.html"
PROGRAM = "kesi.tools.handover.example"
MENU = {"README.md": "KESI", "docs/method.md": "The method", "docs/data.md": "Own images",
        "docs/own-network.md": "Own networks", "docs/runs.md": "Runs", "docs/study.md": "Studies",
        "docs/beyond.md": "Beyond the paper",
        "docs/export.md": "Export",
        "docs/reproduce.md": "The paper's tables", "docs/clusters.md": "Several machines",
        "docs/code.md": "The code", "results/README.md": "Results",
        "benchmarks/README.md": "Benchmarks", "CONTRIBUTING.md": "Contributing",
        "CHANGELOG.md": "Changelog"}
EXTRAS = ["tables", "fenced-code-blocks", "header-ids", "code-friendly", "cuddled-lists"]
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem;
  display: flex; flex-wrap: wrap }}
nav {{ flex: 1 0 11rem; padding: 1.5rem 1rem }} nav a {{ display: block; padding: .15rem 0 }}
main {{ flex: 1 1 40rem; min-width: 0; padding: 0 1rem 3rem }}
pre, main table {{ overflow-x: auto; display: block }}
pre {{ font-size: .85rem; padding: .7rem; background: #8882 }}
table {{ border-collapse: collapse }}
td, th {{ padding: .25rem .6rem; border-bottom: 1px solid #8886 }}
img {{ max-width: 100% }}
</style></head><body><nav>{menu}</nav><main>{text}</main></body></html>
"""


def build(out: Path) -> None:
    """Write pages and reference to ``out``, over what an earlier call left there."""
    waiting, done = list(MENU), set()
    while waiting:
        name = waiting.pop()
        if name not in done:
            done.add(name)
            waiting += _write(name, out)
    print(f"{len(done)} pages and files, {_reference(out / 'api')} modules -> {out / 'index.html'}")


def _target(name: str) -> str:
    """Where a file of the checkout stands in the site."""
    return "index.html" if name == "README.md" else re.sub(r"\.md$", ".html", name)


def _write(name: str, out: Path) -> list[str]:
    """Render a page, or copy a file; returns the files that it links to."""
    source, target = ROOT / name, out / _target(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".md":
        shutil.copy(source, target)
        return []
    up = "../" * name.count("/")
    linked = []

    def rewritten(found: re.Match) -> str:
        path, mark, anchor = html.unescape(found[2]).partition("#")
        if re.match(r"\w+:", path) or not path:
            return found[0]
        name = (source.parent / path).resolve().relative_to(ROOT).as_posix()
        linked.append(name)
        return f'{found[1]}="{up}{_target(name)}{mark}{anchor}"'

    written = source.read_text()
    text = re.sub(r'(href|src)="([^"]*)"', rewritten, markdown2.markdown(written, extras=EXTRAS))
    title = re.search(r"^# (.*)$", written, re.MULTILINE)
    menu = "\n".join(f'<a href="{up}{_target(page)}">{label}</a>' for page, label in MENU.items())
    menu += f'\n<a href="{up}{REFERENCE}">Reference</a>'
    target.write_text(PAGE.format(title=title[1] if title else name, menu=menu, text=text))
    return linked


def _reference(out: Path) -> int:
    """Write pdoc's pages of kesi and all of its modules; returns how many these are."""
    for name in kesi.__all__:  # some are imported when they are asked for, and pdoc does not ask
        vars(kesi)[name] = getattr(kesi, name)
    handover.__all__ = ["card", "folder", "hub"]  # not example.py, which runs where it is imported
    names = [package.__name__ for package in (kesi, models)]
    for package in (kesi, models):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [module.name for module in found if module.name not in (PROGRAM, "kesi.models")]
    pdoc.render.configure(docformat="markdown", show_source=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a package brings its modules, which are named once more
        warnings.filterwarnings("ignore", "The module specification")
        pdoc.pdoc(*names, output_directory=out)
    return len(names)


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DEFAULT)
