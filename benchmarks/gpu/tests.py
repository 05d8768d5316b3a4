"""Run the tests that need a GPU, and no others: those that are skipped by that name without one."""

import sys

import pytest

from benchmarks.sides import ROOT


class OnlyThoseForAGpu:
    """A plugin that leaves the other tests away."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item
            for item in items
            if any(
                str(mark.kwargs.get("reason")).startswith("needs a GPU")
                for mark in item.iter_markers("skipif")
            )
        ]


def files() -> list[str]:
    """The test files that speak of a GPU: the others may import what is not installed."""
    return sorted(
        str(path)
        for path in (ROOT / "tests").glob("test_*.py")
        if 'reason="needs a GPU' in path.read_text()
    )


if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-rs", *files()], plugins=[OnlyThoseForAGpu()]))
