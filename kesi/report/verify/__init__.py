"""Check a finished run: every result is made anew from its checkpoint and epochs, and compared.

Then come the lineage, the report's own tables and, where the images are at hand, all accuracies: on
the processor and with the torch version of the run they have to be equal; elsewhere they may differ
by 0.1 % of the images, but two images at least.
"""

import csv
from pathlib import Path

from kesi.data import DATASETS, Dataset
from kesi.data.datasets import load_described
from kesi.method.snapshot import KESI
from kesi.report.report import texts
from kesi.report.verify.checks import Checks
from kesi.report.verify.stages import Verifier
from kesi.runs import results
from kesi.runs.record import seed_of
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_text
from kesi.system.provenance import recipe_hash

__all__ = ["Checks", "Verifier", "figures_only", "images_of", "verify"]


def images_of(run: Path, data: str, download: bool = False) -> Dataset:
    """The images of a run, loaded anew as run.json describes them.

    Raises UsageError where no name leads to them.
    """
    said = results.describe_run(run).record.data
    if not isinstance(said.get("name"), str):
        raise KesiError(f"{run / 'run.json'} does not say what images were used")
    if said["name"] not in DATASETS:
        raise UsageError(f"the images of {run} were handed over in Python ({said['name']!r:.60}), "
                         f"or by a file for --with, and cannot be loaded anew: say --with FILE, "
                         f"--no-accuracy, or kesi.report.verify.verify(run, dataset) in Python")
    return load_described(said, data, download)


def verify(run: Path, dataset: Dataset | None = None, device: str = "cpu") -> Verifier:
    """Check every seed and stage of a run; ``failures`` of what it returns are lines of trouble.

    ``dataset``: the run's images, on which accuracies are computed anew; None leaves them alone.
    Raises UsageError where ``run`` is none, KesiError for a bad run.json and for other images.
    """
    verifier = Verifier(run, dataset, device)
    record, recipe = verifier.record, verifier.record.recipe
    found = verifier.seed_folders()
    verifier.check("run.json", set(record.seeds) == found and bool(found),
                   f"it speaks of seeds {sorted(record.seeds)}, and there are folders of "
                   f"{sorted(found)}")
    verifier.check("run.json", bool(record.data), "it does not say data")
    for name in ("arch", "dataset", "method"):
        verifier.equal("run.json", name, getattr(record, name), recipe.get(name))
    verifier.equal("run.json", "the recipe hash", record.recipe_hash, recipe_hash(recipe))
    for number in sorted(record.seeds):
        verifier.seed(number, record.stages())
    try:
        finished = results.load_runs([Path(run)])[0]
        for folder, stage in record.handed_over.items():
            number = seed_of(Path(folder))
            if verifier.check("run.json", KESI in finished.seeds.get(number, {}),
                              f"it hands over {stage} of {folder}, which is not finished"):
                verifier.equal("run.json", f"what is handed over of {folder}", stage,
                               results.handed_over(finished, number))
        _report(verifier, finished)
    except KesiError as error:  # of damaged results there is no table
        verifier.check("report", bool(verifier.failures), str(error))
    return verifier


def _report(verifier: Verifier, loaded: results.Run) -> None:
    """That the report's own tables, where there are any, are those that these results give."""
    folder, now = verifier.run / "report", texts([loaded])
    if (folder / "stages.csv").exists():
        shown, wanted = map(_rows, (read_text(folder / "stages.csv"), now["stages.csv"]))
        for seed, stage in sorted(shown.keys() | wanted.keys(), key=str):
            where, both = f"report, seed{seed}/{stage}", (shown, wanted)
            if verifier.check(where, all((seed, stage) in one for one in both),
                              "stands in the report only, or in the results only"):
                for name, value in wanted[seed, stage].items():
                    if name != "run":  # a run may be moved
                        verifier.equal(where, name, value, shown[seed, stage].get(name))
    if verifier.failures:  # the other tables follow from these
        return
    for name in ("table.csv", "table.md"):
        if (folder / name).exists():
            shown, wanted = map(figures_only, (read_text(folder / name), now[name]))
            verifier.check(f"report/{name}", shown == wanted,
                           "it does not show these results: make it anew with kesi report")


def figures_only(text: str) -> list[str]:
    """The lines of a report without its title, which may be chosen, and its plots."""
    return [line for line in text.splitlines()
            if line and not line.startswith(("# ", "![", "## Plots"))]


def _rows(text: str) -> dict[tuple, dict]:
    """The rows of a stages.csv by seed and stage."""
    csv.field_size_limit(2**31 - 1)
    return {(row.get("seed"), row.get("stage")): row for row in csv.DictReader(text.splitlines())}
