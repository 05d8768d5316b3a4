"""What all checks of a run have in common: how they are counted, what does not hold, and how far
figures may lie apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kesi.data import Dataset
from kesi.runs import results
from kesi.runs.record import Ensemble, Result, RunRecord, seed_of
from kesi.system.errors import KesiError
from kesi.system.provenance import device_name, versions

TOLERANCE, IMAGES = 0.1, 2  # elsewhere than where the run was made: percent, or so many images

LOSSES = 0.02  # likewise of a loss, relative


class Checks:
    """Counts the checks of one run and collects what does not hold, a line each."""

    def __init__(self, run: Path, dataset: Dataset | None = None, device: str = "cpu"):
        """Raises KesiError where ``dataset`` is not what the run was made with."""
        self.run, self.dataset, self.device = Path(run), dataset, device
        self.record: RunRecord = results.describe_run(self.run).record
        self.checks, self.failures = 0, []
        if dataset is not None:
            self._refuse_other_images(dataset)

    def seed_folders(self) -> set[int]:
        """The seeds of which the run has a folder."""
        return {seed for path in self.run.iterdir() if (seed := seed_of(path)) is not None}

    def check(self, where: str, holds: bool, trouble: str) -> bool:
        """Count a check; ``trouble`` is what to say where it does not hold."""
        self.checks += 1
        if not holds:
            self.failures.append(f"{where}: {trouble}")
        return holds

    def equal(self, where: str, what: str, said: object, found: object) -> bool:
        """check() that what a file says is what was found."""
        trouble = f"{what} is {str(said)[:80]} in the result, but {str(found)[:80]}"
        return self.check(where, said == found, trouble)

    def close(self, where: str, what: str, result: Result | Ensemble, said: Sequence,
              found: Sequence, loss: bool = False, images: int | None = None) -> None:
        """check() that figures come out again: percentages, or a loss. ``images``: how many they
        are of; by default all test images."""
        same = (result.device, result.versions.get("torch")) == (device_name(self.device),
                                                                 versions()["torch"])
        if same and torch.device(self.device).type == "cpu":  # a GPU chooses its algorithms anew
            allowed = 0.0
        elif loss:
            allowed = LOSSES * max(1.0, abs(found[0]))
        else:
            allowed = max(TOLERANCE, 100 * IMAGES / (images or len(self.dataset.test))) + 1e-9
        holds = len(said) == len(found) and all(
            old is not None and abs(old - new) <= allowed
            for old, new in zip(said, found, strict=True))
        before, now = (str(one[0]) if loss else " ".join(
            str(value) if value is None else f"{value:.3f} %" for value in one)
            for one in (said, found))
        self.check(where, holds, f"the {what} is {before} in the result, and {now} recomputed")

    def _refuse_other_images(self, dataset: Dataset) -> None:
        said, now = self.record.data, dataset.describe()
        pairs = [(name, said.get(name), now[name]) for name in ("classes", "mean", "std")]
        pairs.append(("test images", said.get("images", {}).get("test"), now["images"]["test"]))
        if "digests" in said:
            # of the pixels as they are now: a large cache is believed what stands beside it
            found = {which: replace(getattr(dataset, which), pixels=None).digest
                     for which in now["images"]}
            pairs.append(("digests", said["digests"], found))
        for name, old, new in pairs:
            if old != new:
                raise KesiError(f"the {name} of {dataset.name} are not those of {self.run}")
