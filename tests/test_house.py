"""The layout of the code: an import goes down any number of floors, never up, never sideways."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"models": 1, "kesi.models": 1, "kesi.system": 1, "kesi.data": 2, "kesi.method": 3,
          "kesi.checkpoints": 4,
          "kesi.runs": 5, "kesi.report": 6, "kesi.tools": 6, "kesi.cli": 7, "kesi.own": 7,
          "kesi": 8, "reproduce": 8, "benchmarks": 8, "cifar": 8, "tinyimagenet": 8}
FILES = sorted(path for top in ("kesi", "models", "reproduce", "benchmarks", "cifar",
                                "tinyimagenet") for path in (ROOT / top).rglob("*.py"))


def room(module: str) -> str | None:
    """The room that a module lies in; None for somebody else's."""
    parts = module.split(".")
    name = ".".join(parts[:2])
    return name if name in FLOORS else parts[0] if parts[0] in FLOORS else None


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    here = "models" if here == "kesi.models" else here  # one and the same
    for module in imported(path):
        there = room(module)
        assert (there is None or there == here
                or FLOORS[there] < FLOORS[here]), f"{module} is not below"


def test_a_room_is_small():
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.iterdir() if path.suffix == ".py"
                 and path.stem != "__init__"]
        assert len(files) <= 10, f"{folder.relative_to(ROOT)} has {len(files)} files"


def test_the_method_opens_no_file():
    for path in (ROOT / "kesi" / "method").rglob("*.py"):
        text = path.read_text()
        assert "open(" not in text and "read_text" not in text and ".write" not in text, path


def test_a_file_imports_no_circle():
    arrows = {}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts)
               .removesuffix(".__init__"): path for path in FILES}
    for name, path in modules.items():
        longest = [next((known for known in (module, module.rpartition(".")[0])
                         if known in modules), name) for module in imported(path)]
        arrows[name] = set(longest) - {name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name):], name))}"
        if name not in done:
            for other in sorted(arrows[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in modules:
        visit(name, ())
