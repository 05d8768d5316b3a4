"""The notebook: as it is committed, and executed from a clean kernel on a budget of seconds."""

import copy
import os
import re

import pytest

from doors import ROOT

pytestmark = pytest.mark.slow

INSTALL = "pip install -e '.[notebook]'"
nbformat = pytest.importorskip("nbformat", reason=f"the notebook needs nbformat: {INSTALL}")

NOTEBOOK = ROOT / "example.ipynb"
BYTES = 1_200_000
# instead of the values of the cell that is tagged "parameters"
SHORT = "SCALE, ROUNDS, POINTS = 0.01, 2, 2"
SECONDS = 300  # for a cell; it takes a few, where the machine is not busy
ABSOLUTE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|var|content|Users|mnt)/|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def text_of(cell) -> str:
    """Everything that a code cell shows as text."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown += [output.get("text", ""),
                  *(value for kind, value in data.items() if kind.startswith("text/"))]
    return "\n".join(shown)


def typed(cell) -> list[str]:
    """The numbers of a text besides those of its headings, links, code and names."""
    text = re.sub(r"^#.*$|`[^`]*`|\[[^]]*\]\([^)]*\)", "", cell.source, flags=re.MULTILINE)
    return re.findall(r"[-\w.]*\d[-\w.]*", text)


def figures(notebook) -> list[str]:
    return [cell.id for cell in notebook.cells if cell.cell_type == "code"
            for output in cell.outputs if "image/png" in output.get("data", {})]


def test_is_committed_as_it_came_out_of_one_run(committed):
    nbformat.validate(committed)
    assert NOTEBOOK.stat().st_size < BYTES
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        shown = text_of(cell)
        assert all(output.output_type != "error" and output.get("name") != "stderr"
                   for output in cell.outputs), cell.id
        assert not ABSOLUTE.search(shown) and "warning" not in shown.lower(), cell.id
    setup = committed.cells[1]
    assert setup.source.count("REPOSITORY = ") == "".join(
        cell.source for cell in code).count("REPOSITORY = ") == 1
    assert "colab.research.google.com/github/" in text_of(setup)
    assert "colab-badge.svg" in text_of(setup)


def test_no_figure_is_typed_into_the_text(committed):
    for cell in committed.cells:
        if cell.cell_type == "markdown":
            assert set(typed(cell)) <= {"CIFAR-10"}, cell.id


def test_shows_what_it_promises(committed):
    assert (figures(committed) == ["images", "rates", "baseline", "norms", "rounds", "filters",
                                   "disagreement", "growing", "distil", "line"])
    table = text_of(committed.cells[[cell.id for cell in committed.cells].index("table")])
    for row in ("baseline", "filter pruning (PFEC), usual retraining", "filter pruning + one-cycle",
                "filter pruning + KESI", "weight pruning + one-cycle, one round",
                "weight pruning + KESI, one round"):
        assert f"| {row} |" in table


def test_runs_from_a_clean_kernel(committed, tmp_path):
    nbclient = pytest.importorskip("nbclient",
                                   reason=f"executing the notebook needs nbclient: {INSTALL}")
    pytest.importorskip("ipykernel", reason=f"executing the notebook needs ipykernel: {INSTALL}")
    notebook = copy.deepcopy(committed)
    place, = (number for number, cell in enumerate(notebook.cells)
              if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT, id="short"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3",
                                     resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)  # raises where a cell does
    assert figures(notebook) == figures(committed)
    assert not any(output.get("name") == "stderr" for cell in notebook.cells
                   if cell.cell_type == "code" for output in cell.outputs)
    assert not list(tmp_path.iterdir())  # it all happens in memory
