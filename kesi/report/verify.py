"""Check a finished run: that its files are whole and belong together, and that its figures come out again.

Without --no-accuracy the images are needed, and every network classifies the test images once more. On the
device and with the torch version of the run, accuracies have to be equal; on others they may differ by 0.1 %
of the images, but two images at least. Exit code 1 if anything does not hold.
"""

import csv
from pathlib import Path

from kesi.data import DATASETS, Dataset
from kesi.data.datasets import load_described
from kesi.report.audit import Verifier
from kesi.report.report import texts
from kesi.runs import layout, results
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_text
from kesi.system.provenance import recipe_hash


def images_of(run: Path, data: str, download: bool = False) -> Dataset:
    """The data set of a run, loaded anew as run.json describes it. Raises UsageError where no name leads to it."""
    said = results.describe_run(run).info.get("data") or {}
    if not isinstance(said.get("name"), str):
        raise KesiError(f"{run / 'run.json'} does not say what images were used")
    if said["name"] not in DATASETS:
        raise UsageError(f"the images of {run} were handed over in Python ({said['name']!r:.60}) and cannot be loaded "
                         f"anew: use --no-accuracy, or kesi.report.verify.verify(run, dataset) in Python")
    return load_described(said, data, download)


def _refuse_other_images(run: Path, said: dict, dataset: Dataset) -> None:
    now = dataset.describe()
    for name, old, new in (("classes", said.get("classes"), now["classes"]), ("mean", said.get("mean"), now["mean"]),
                           ("test images", (said.get("images") or {}).get("test"), now["images"]["test"])):
        if old != new:
            raise KesiError(f"the {name} of {dataset.name} are not those of {run}")


def _report(verifier: Verifier, loaded: results.Run) -> None:
    """That the report's own tables, where there are any, are those that these results give."""
    folder = verifier.run / "report"
    now = texts([loaded])
    if (folder / "stages.csv").exists():
        shown, wanted = (_rows(text) for text in (read_text(folder / "stages.csv"), now["stages.csv"]))
        for seed, stage in sorted(shown.keys() | wanted.keys(), key=str):
            where, known = f"report, seed{seed}/{stage}", (seed, stage) in shown
            if verifier.check(where, known and (seed, stage) in wanted,
                              f"stands in {'the report' if known else 'the results'} only"):
                for name, value in wanted[seed, stage].items():
                    if name != "run":  # a run may be moved
                        verifier.equal(where, name, value, shown[seed, stage].get(name))
    if verifier.failures:  # the other tables follow from these
        return
    for name in ("table.csv", "table.md"):
        if (folder / name).exists():
            shown, wanted = (_figures_only(text) for text in (read_text(folder / name), now[name]))
            verifier.check(f"report/{name}", shown == wanted,
                           "it does not show these results: make it anew with kesi.report")


def _figures_only(text: str) -> list[str]:
    """The lines of a report without its title, which --data-name chooses, and its plots, which need matplotlib."""
    return [line for line in text.splitlines() if line and not line.startswith(("# ", "![", "## Plots"))]


def _rows(text: str) -> dict[tuple, dict]:
    """The rows of a stages.csv by seed and stage."""
    csv.field_size_limit(2**31 - 1)
    return {(row.get("seed"), row.get("stage")): row for row in csv.DictReader(text.splitlines())}


def verify(run: Path, dataset: Dataset | None = None, device: str = "cpu") -> Verifier:
    """Check every seed and stage of a run; ``failures`` of what is returned has a line for all that does not hold.

    ``dataset``: the run's images, on which accuracies are computed anew; None leaves them alone. Raises UsageError
    where ``run`` is none, KesiError for a bad run.json and for other images.
    """
    loaded = results.describe_run(Path(run))
    if dataset is not None:
        _refuse_other_images(Path(run), loaded.info.get("data") or {}, dataset)
    recipe = loaded.info.get("recipe")
    verifier = Verifier(run, dataset, device, loaded.info)
    found = {seed for path in Path(run).iterdir() if (seed := layout.seed_of(path)) is not None}
    verifier.check("run.json", set(loaded.seeds) == found and bool(found),
                   f"it speaks of seeds {sorted(loaded.seeds)}, and there are folders of {sorted(found)}")
    for name in ("recipe", "data"):
        verifier.check("run.json", bool(loaded.info.get(name)), f"it does not say {name}")
    if recipe:
        for name in ("arch", "dataset", "method"):
            verifier.equal("run.json", name, loaded.info.get(name), recipe.get(name))
        verifier.equal("run.json", "the recipe hash", loaded.info.get("recipe_hash"), recipe_hash(recipe))
        verifier.equal("run.json", "the number of rounds", loaded.info["rounds"], len(recipe["rounds"]))
    for number in sorted(loaded.seeds):
        verifier.seed(number, loaded.stages())
    try:
        _report(verifier, results.load_runs([Path(run)])[0])
    except KesiError as error:
        verifier.check("report", bool(verifier.failures), str(error))  # of damaged results there is no table
    return verifier
