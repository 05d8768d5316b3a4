"""Check a finished run: that its files are whole and belong together, and that its figures come out again.

    python -m kesi.verify runs/cifar10-resnet56-filter
    python -m kesi.verify runs/cifar10-resnet56-filter --no-accuracy

Without --no-accuracy the images are needed, and every network classifies the test images once more. On the
device and with the torch version of the run, accuracies have to be equal; on others they may differ by 0.1 %
of the images, but two images at least. Exit code 1 if anything does not hold.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from kesi import checkpoints, cli, results
from kesi.checkpoints import Checkpoint
from kesi.complexity import macs, parameters
from kesi.data import DATASETS, Dataset, load
from kesi.data.datasets import family_of
from kesi.distillation import SnapshotEnsemble, agreement
from kesi.errors import KesiError, UsageError
from kesi.files import read_text
from kesi.folders import CHECKPOINT, METRICS, PRUNED, RESULT, read_fields
from kesi.provenance import device_name, versions
from kesi.report import csv_text, main_csv, stages_csv
from kesi.tables import main_rows, main_table
from kesi.training import evaluate

TOLERANCE, IMAGES = 0.1, 2  # elsewhere than where the run was made: percent of the test images, or so many
ENSEMBLES = ("ensemble", "ensemble-usual")


class Verifier:
    """Counts the checks of one run and collects what does not hold, a line each."""

    def __init__(self, run: Path, dataset: Dataset | None = None, device: str = "cpu"):
        """``dataset``: the images that accuracies are recomputed on; None leaves the accuracies alone."""
        self.run, self.dataset, self.device = Path(run), dataset, device
        self.checks, self.failures = 0, []
        self._loaded: dict[Path, Checkpoint | None] = {}
        self._results: dict[tuple[str, str], dict] = {}

    def check(self, where: str, holds: bool, trouble: str) -> bool:
        """Count a check; ``trouble`` is what to say where it does not hold."""
        self.checks += 1
        if not holds:
            self.failures.append(f"{where}: {trouble}")
        return holds

    def equal(self, where: str, what: str, recorded: object, found: object) -> bool:
        """check() that two values are the same."""
        return self.check(where, recorded == found, f"{what} is {recorded} in the result, but {found}")

    def checkpoint(self, where: str, path: Path) -> Checkpoint | None:
        """A checkpoint whose content matches its digest; None, and a failure, where it does not."""
        if path not in self._loaded:
            try:
                self._loaded[path] = checkpoints.load(path)
                self.checks += 1
            except KesiError as error:
                self._loaded[path] = None
                self.check(where, False, str(error))
        return self._loaded[path]

    def seed(self, number: int, stages: Sequence[str]) -> None:
        """All stages of one seed."""
        for stage in stages:
            where, folder = f"seed{number}/{stage}", self.run / f"seed{number}" / stage
            try:
                result = read_fields(folder / RESULT)
            except KesiError as error:
                self.check(where, False, str(error) if (folder / RESULT).exists() else "is not finished")
                continue
            self._results[str(number), stage] = result
            self.equal(where, "the stage", result.get("stage"), stage)
            self.equal(where, "the seed", result.get("seed"), number)
            if stage in ENSEMBLES:
                self._ensemble(where, folder, result)
            else:
                self._network(where, folder, result)

    def _network(self, where: str, folder: Path, result: dict) -> None:
        found = self.checkpoint(where, folder / CHECKPOINT)
        if found is None:
            return
        self.equal(where, "the checkpoint's digest", result.get("digest"), found.digest)
        self._sizes(where, found, result)
        self.equal(where, "the parent", result.get("parent"), found.info.get("parent"))
        self.equal(where, "the recipe's hash", result.get("recipe_hash"), found.info.get("recipe_hash"))
        self._descent(where, folder, found)
        for teacher in found.info.get("teachers") or []:
            self._reference(where, "its teacher", folder, teacher)
        metrics = found.info.get("metrics") or {}
        if "adopted_from" not in result:
            self.equal(where, "the test accuracy", result.get("test_accuracy"), metrics.get("test_accuracy"))
            self._metrics(where, folder, result)
        self._accuracy(where, "test accuracy", found, result, "test_accuracy")
        if result.get("pruned_accuracy") is not None and (folder / PRUNED).is_file():
            pruned = self.checkpoint(f"{where}/{PRUNED}", folder / PRUNED)
            self._accuracy(where, "accuracy before retraining", pruned, result, "pruned_accuracy")

    def _sizes(self, where: str, found: Checkpoint, result: dict) -> None:
        params, masks = parameters(found.model), found.masks
        size = result.get("image_size")
        sizes = {"arch": found.model.arch, "num_classes": found.model.num_classes, "cfg": found.model.cfg,
                 "params": params, "nonzero_params": params - (masks.pruned() if masks else 0),
                 "sparsity": masks.sparsity() if masks else None,
                 "macs": macs(found.model, size) if isinstance(size, int) else None}
        for name, value in sizes.items():
            self.equal(where, name, result.get(name), value)
        if masks is not None:
            broken = [name for name, mask in masks.state_dict().items()
                      if bool(found.model.get_parameter(name)[~mask].any())]
            self.check(where, not broken, f"pruned weights are not zero in {', '.join(broken)}")

    def _descent(self, where: str, folder: Path, found: Checkpoint) -> None:
        """The chain of parents up to the baseline, which each file names by its digest."""
        here = found
        while here is not None and here.info.get("parent"):
            parent = self._reference(where, "its parent", folder, here.info["parent"])
            if parent is None:
                return
            if parent.masks is not None and self.check(where, here.masks is not None, "its parent's masks are lost"):
                ours = here.masks.state_dict()
                grown = [name for name, mask in parent.masks.state_dict().items() if bool((ours[name] & ~mask).any())]
                self.check(where, not grown, f"weights that its parent had pruned live again in {', '.join(grown)}")
            here, folder = parent, parent.path.parent

    def _reference(self, where: str, what: str, folder: Path, reference: dict) -> Checkpoint | None:
        """The file that a checkpoint says it was made from; one that lies outside of the run may be gone."""
        path = (folder / reference["path"]).resolve()
        if not path.is_file() and not path.is_relative_to(self.run.resolve()):
            return None
        found = self.checkpoint(where, path)
        same = found is not None and self.check(where, found.digest == reference["digest"],
                                                f"{what} {path} is not the file that it was made from")
        return found if same else None

    def _metrics(self, where: str, folder: Path, result: dict) -> None:
        try:
            rows = read_text(folder / METRICS).count("\n")
        except KesiError as error:
            self.check(where, False, str(error))
        else:
            self.equal(where, "the number of epochs", result.get("epochs"), rows)

    def _ensemble(self, where: str, folder: Path, result: dict) -> None:
        names, digests = result.get("members"), result.get("members_digests")
        if not self.check(where, isinstance(names, list) and isinstance(digests, list) and len(names) == len(digests),
                          "does not name its members"):
            return
        members = [self.checkpoint(where, folder.parent / str(name) / CHECKPOINT) for name in names]
        same = [self.check(where, one is not None and one.digest == digest, f"its member {name} has changed")
                for name, one, digest in zip(names, members, digests, strict=True)]
        if not all(same):
            return
        self.equal(where, "params", result.get("params"), sum(parameters(one.model) for one in members))
        if self.dataset is None:
            return
        ensemble = SnapshotEnsemble([one.model for one in members], names, self.device)
        found = agreement(ensemble.predict(self.dataset, self.dataset.test, self.device), self.dataset.test.labels)
        for name in ("accuracy", "growing_accuracy"):
            self._figures(where, name.replace("_", " "), result, result.get(name), getattr(found, name))
        self._figures(where, "test accuracy", result, [result.get("test_accuracy")], found.growing_accuracy[-1:])

    def _accuracy(self, where: str, what: str, found: Checkpoint | None, result: dict, name: str) -> None:
        if found is None or self.dataset is None:
            return
        try:
            accuracy = evaluate(found.model, self.dataset, self.dataset.test, self.device)[1]
        except (RuntimeError, ValueError, IndexError) as error:
            self.check(where, False, f"cannot be evaluated on {self.dataset.name}: {str(error).splitlines()[0]}")
        else:
            self._figures(where, what, result, [result.get(name)], [accuracy])

    def _figures(self, where: str, what: str, result: dict, recorded: list, found: list[float]) -> None:
        said = result.get("versions") or {}
        same = (result.get("device"), said.get("torch")) == (device_name(self.device), versions()["torch"])
        same &= torch.device(self.device).type == "cpu"  # a GPU chooses its algorithms anew in every process
        allowed = 0.0 if same else max(TOLERANCE, 100 * IMAGES / len(self.dataset.test)) + 1e-9
        holds = (isinstance(recorded, list) and len(recorded) == len(found) and all(
            isinstance(old, (int, float)) and abs(old - new) <= allowed
            for old, new in zip(recorded, found, strict=True)))
        self.check(where, holds, f"the {what} is {_words(recorded)} in the result, and {_words(found)} recomputed")

    def tables(self, loaded: results.Run) -> None:
        """That the report's own tables, where there are any, are those that these results give."""
        rows = main_rows([loaded])
        for name, lines in (("table.csv", main_csv(rows)), ("stages.csv", stages_csv([loaded]))):
            path = self.run / "report" / name
            if path.is_file():
                now, then = (list(csv.DictReader(text.splitlines())) for text in (csv_text(lines), read_text(path)))
                for row in [*now, *then]:
                    row.pop("run", None)  # a run may be moved
                self.check(f"report/{name}", now == then,
                           "it does not show these results: make it anew with kesi.report")
        path = self.run / "report" / "table.md"
        if path.is_file():
            shown = read_text(path).splitlines()
            cells = [line for line in main_table(rows, [loaded]).markdown().splitlines() if line.startswith("|")]
            self.check("report/table.md", all(line in shown for line in cells),
                       "it does not show these results: make it anew with kesi.report")

    def report(self) -> None:
        """That the report, where there is one, shows the results as they are."""
        path = self.run / "report" / "stages.csv"
        if not path.is_file():
            return
        for row in csv.DictReader(read_text(path).splitlines()):
            if row.get("run") != self.run.resolve().name:
                continue
            seed, stage = row.get("seed"), row.get("stage")
            known = self._results.get((seed, stage), {})
            for name in ("test_accuracy", "digest", "params"):
                recorded = "" if known.get(name) is None else str(known[name])
                self.equal(f"report, seed{seed}/{stage}", name, recorded, row.get(name))


def _words(values: object) -> str:
    return " ".join(f"{value:.3f} %" if isinstance(value, (int, float)) else str(value) for value in values) \
        if isinstance(values, list) else str(values)


def images_of(run: Path, data: str, download: bool = False) -> Dataset:
    """The data set of a run as run.json describes it. Raises KesiError where the images are others now."""
    said = read_fields(run / "run.json").get("data")
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise KesiError(f"{run / 'run.json'} does not say what images were used")
    if said["name"] not in DATASETS:
        raise UsageError(f"the images of {run} were handed over in Python ({said['name']!r:.60}) and cannot be loaded "
                         f"anew: use --no-accuracy")
    dataset = load(said["name"], data, image_size=said.get("image_size"), family=family_of(said), download=download)
    now = dataset.describe()
    for name, old, new in (("classes", said.get("classes"), now["classes"]), ("mean", said.get("mean"), now["mean"]),
                           ("test images", (said.get("images") or {}).get("test"), now["images"]["test"])):
        if old != new:
            raise KesiError(f"the {name} of {dataset.name} in {data} are not those of {run}")
    return dataset


def verify(run: Path, dataset: Dataset | None, device: str = "cpu") -> Verifier:
    """Check every seed and stage of a run. Raises UsageError where ``run`` is none, KesiError for a bad run.json."""
    verifier = Verifier(run, dataset, device)
    loaded = results.describe_run(Path(run))
    found = {int(path.name[4:]) for path in Path(run).glob("seed*") if path.name[4:].isdigit()}
    verifier.check("run.json", set(loaded.seeds) == found and bool(found),
                   f"it speaks of seeds {sorted(loaded.seeds)}, and there are folders of {sorted(found)}")
    for number in sorted(loaded.seeds):
        verifier.seed(number, loaded.stages())
    verifier.report()
    if not verifier.failures:  # of damaged results there is no table
        verifier.tables(results.load_runs([Path(run)])[0])
    return verifier


def main() -> None:
    """The command. Raises KesiError where anything does not hold."""
    parser = cli.parser(__doc__, "python -m kesi.verify")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as cifar/pipeline.py writes it")
    parser.add_argument("--data", default="data", metavar="DIR", help="where the images are (default: %(default)s)")
    parser.add_argument("--no-accuracy", action="store_true", help="only look at the files; needs no images")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    results.describe_run(args.run)
    dataset = None if args.no_accuracy else images_of(args.run, args.data)
    found = verify(args.run, dataset, cli.device_for(args.device))
    for line in found.failures:
        print(f"FAILED {line}")
    if found.failures:
        raise KesiError(f"{len(found.failures)} of {found.checks} checks of {args.run} failed")
    left_out = " (accuracies were not recomputed)" if args.no_accuracy else ""
    print(f"{args.run}: all {found.checks} checks hold{left_out}")


if __name__ == "__main__":
    cli.run(main)
