"""Check what is published: its records against each other, its networks against the records."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from kesi.checkpoints import fields
from kesi.data import Dataset
from kesi.method.pruning.weights import masks_from_zeros
from kesi.method.snapshot import BASELINE, KESI, Snapshot, chain, ensemble_name
from kesi.method.training import evaluate
from kesi.models import Network
from kesi.report.published import PUBLISHED, WEIGHTS, answers, contents, runs_of
from kesi.report.report import texts
from kesi.report.verify import figures_only
from kesi.report.verify.checks import IMAGES, Checks
from kesi.runs.record import (
    METRICS,
    RESULT,
    Ensemble,
    Result,
    history_digest,
    network_of,
    read_epochs,
    read_result,
)
from kesi.runs.results import load_runs
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, read_text

CONFIG = "config.json"

# what a safetensors file alone says, or in its own way: its network takes normalised images
IN_WEIGHTS = {"format", "version", "sparse", "raw", "preprocessing"}

CLOSE = 1e-4  # of the largest logit: float32 sums in another order

Read = Callable[[Path], tuple[Network, dict]]


def verify(folder: Path, read: Read, dataset: Dataset | None = None,
           device: str = "cpu") -> tuple[int, list[str], str]:
    """Check what is published: how many checks, lines of what does not hold, and what was left out.

    ``read`` gives the network in a safetensors file. With the ``dataset`` of the runs, on
    ``device``, their accuracies are computed anew. Raises KesiError for a damaged published.json or
    other images.
    """
    said, found = contents(folder), []
    for path in runs_of(folder):
        one = _Published(path, read, said, dataset, device)
        one.all_seeds()
        found.append(one)
    failures = [f"{one.run.name}/{line}" for one in found for line in one.failures]
    trained = sum(one.trained for one in found)
    networks = set().union(*(one.networks for one in found))
    there = {path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/*/*/{WEIGHTS}")}
    strays = sorted((there | said["networks"].keys()) - networks)
    checks = sum(one.checks for one in found) + len(strays)
    failures += [f"{name}: a network, but of no finished stage" for name in strays]
    if not failures:  # the report follows from the records
        loaded = load_runs([one.run for one in found], said.get("data_name"))
        for name, text in texts(loaded).items():
            checks += 1
            if figures_only(read_text(folder / name)) != figures_only(text):
                failures.append(f"{name}: it does not show these records")
        plots = re.findall(r"^!\[.*\]\((.+)\)$", read_text(folder / "table.md"), re.MULTILINE)
        for name in ("report.html", *plots):
            checks += 1
            if not (folder / name).is_file():
                failures.append(f"{name}: it is missing")
    left = trained - len(networks)
    return checks, failures, f"{left} of {trained} networks are not published: of these the records"


class _Published(Checks):
    """The checks of one published run: records against each other, and the networks that there are.
    """

    def __init__(self, run: Path, read: Read, said: dict, dataset: Dataset | None, device: str):
        super().__init__(run, dataset, device)
        self._read, self._said, self._unfinished = read, said["networks"], said["unfinished"]
        self.trained, self.networks = 0, set()

    def all_seeds(self) -> None:
        """Check every stage of every seed."""
        for seed in sorted(self.seed_folders()):  # tables show every seed that is there
            self.check("run.json", seed in self.record.seeds,
                       f"it does not speak of seed {seed}, of which there is a folder")
        for seed in self.record.seeds:
            results: dict[str, Result | Ensemble] = {}
            for stage in self.record.stages():
                where, here = f"seed{seed}/{stage}", self.run / f"seed{seed}" / stage
                try:
                    results[stage] = one = read_result(here / RESULT)
                except (KesiError, UsageError) as error:
                    told = f"{self.run.name}/{where}" in self._unfinished
                    self.check(where, told and not here.exists(), str(error))
                    continue
                self.equal(where, "the stage", one.stage, stage)
                self.equal(where, "the seed", one.seed, seed)
                if isinstance(one, Ensemble):
                    self._members(where, one, results)
                else:
                    self.trained += 1
                    self._record(where, here, one, results)
                    name = f"{self.run.name}/{where}"
                    if name in self._said or (here / WEIGHTS).is_file():
                        self.networks.add(name)
                        self._network(name, where, here, one)

    def _record(self, where: str, here: Path, one: Result, results: dict) -> None:
        if one.adopted_from is None:
            epochs = read_epochs(here / METRICS)
            self.equal(where, "the digest of its epochs", one.history_digest,
                       history_digest(epochs))
            self.equal(where, "the test accuracy of the last epoch", one.test_accuracy,
                       epochs[-1].test_accuracy if epochs else None)
            self.equal(where, "the number of epochs", one.epochs, len(epochs))
            self.equal(where, "the images", one.settings.get("data"), self.record.data)
        if one.kind == KESI:
            names = chain(self.record.retrainings[0], self.record.rounds)
            self.equal(where, "the networks of its teachers",
                       [teacher.network for teacher in one.teachers],
                       [results[name].network_digest for name in names
                        if isinstance(results.get(name), Result)])

    def _members(self, where: str, one: Ensemble, results: dict) -> None:
        kind = next((name for name in self.record.retrainings
                     if ensemble_name(name, self.record.retrainings) == one.stage), None)
        if kind is None:
            return  # another stage than its folder's, which was told
        names = chain(kind, self.record.rounds)
        members = [results[name] for name in names if isinstance(results.get(name), Result)]
        for what, said, found in (
                ("its members", one.members, names),
                ("their networks", one.members_digests, [each.network_digest for each in members]),
                ("params", one.params, sum(each.params for each in members)),
                ("test accuracy", one.test_accuracy, one.growing_accuracy[-1:][0])):
            self.equal(where, what, said, found)
        # members answer with their batch norms folded: where two classes are equal to rounding, an
        # image may fall to either side
        count = self.record.data.get("images", {}).get("test")
        apart = 100 * IMAGES / count + 1e-9 if count else 0.0
        found = [each.test_accuracy for each in members]
        self.check(where, len(found) == len(one.accuracy) and all(
            abs(a - b) <= apart for a, b in zip(one.accuracy, found, strict=True)),
            f"their accuracy is {one.accuracy} in the result, but {found}")

    def _network(self, name: str, where: str, here: Path, one: Result) -> None:
        missing = [file for file in (WEIGHTS, CONFIG, "README.md") if not (here / file).is_file()]
        if not self.check(where, not missing, f"of its network {', '.join(missing)} is missing"):
            return
        try:
            network, about = self._read(here / WEIGHTS)
            config = read_json(here / CONFIG)
        except (KesiError, UsageError) as error:
            self.check(where, False, str(error))
            return
        self._about(where, about, config, one)
        pruned = self.record.method == "weight" and one.stage != BASELINE
        snapshot = Snapshot(one.stage, network, masks_from_zeros(network) if pruned else None)
        found = json.loads(json.dumps(network_of(snapshot, one.method, one.image_size)))
        self.equal(where, "the digest of its network", one.network_digest,
                   found.pop("network_digest"))
        for what, value in found.items():
            self.equal(where, what.replace("_", " "), getattr(one, what), value)
        said = self._said.get(name)
        numbers = fields.several(fields.several(fields.number))(said)
        numbers = numbers and len({len(row) for row in said}) == 1
        if self.check(where, numbers, f"{PUBLISHED} has no answers of it"):
            wanted, found = torch.tensor(said), torch.tensor(answers(network, one.image_size))
            self.check(where, wanted.shape == found.shape and bool(
                (wanted - found).abs().max() <= CLOSE * wanted.abs().max()),
                "its answers to noise are others")
        if self.dataset is not None:
            loss, accuracy = evaluate(network, self.dataset, self.dataset.test, self.device)
            self.close(where, "test accuracy", one, [one.test_accuracy], [accuracy])
            self.close(where, "test loss", one, [one.test_loss], [loss], loss=True)

    def _about(self, where: str, about: dict, config: object, one: Result) -> None:
        """That the files of a network say of its images and accuracy what the records say."""
        told = about.get("accuracy")
        found = about | {"accuracy": told.get("percent") if isinstance(told, dict) else told}
        wanted = {what: self.record.data.get(what)
                  for what in ("classes", "mean", "std", "image_size")}
        if one.adopted_from is None:  # else its accuracy may be what its own makers measured
            wanted["accuracy"] = one.test_accuracy
        for what, said in wanted.items():
            self.check(where, found.get(what) == said,
                       f"{WEIGHTS} says {what} {str(found.get(what))[:80]}, and the records "
                       f"{str(said)[:80]}")
        other = sorted(key for key in about.keys() - IN_WEIGHTS
                       if not isinstance(config, dict) or config.get(key) != about[key])
        self.check(where, not other, f"{CONFIG} and {WEIGHTS} differ in {', '.join(other)}")
