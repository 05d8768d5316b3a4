"""Where a network comes from: parents, teachers, and whether it fits the images at hand."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from kesi import checkpoints, models
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.records import Reference
from kesi.data import Dataset
from kesi.data.datasets import family_of, plain
from kesi.method.pruning.filters import pruned_widths
from kesi.method.recipes import Recipe
from kesi.method.sizes import channels_of, check_image_size
from kesi.models import Network
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError


def check_images(model: Network, dataset: Dataset) -> None:
    """Raises UsageError where images are too small for the network, have other channels, or are
    fewer than the processes that test it."""
    check_channels(model, dataset)
    check_image_size(model, dataset.image_size, dataset.name)
    for name, split in (("test", dataset.test), ("held-out", dataset.val)):
        if split is not None and len(split) < distributed.world():
            raise UsageError(f"there are fewer {name} images ({len(split)}) than processes "
                             f"({distributed.world()}): start fewer of them")


def check_channels(model: Network, dataset: Dataset) -> None:
    """Raises UsageError where images have other channels than the network takes."""
    if len(dataset.mean) != channels_of(model):
        raise UsageError(f"{model.arch} takes images of {channels_of(model)} channel(s), but "
                         f"{dataset.name} has {len(dataset.mean)}: choose another --arch, or the "
                         f"--channels of a folder of images")


def reference(checkpoint: Checkpoint, folder: Path) -> Reference:
    """How a file names its parent: relative to its own folder,
    so that a run can be moved as a whole."""
    here = Path(checkpoint.path)  # a link is named as itself: it stands where the run expects it
    relative = os.path.relpath(here.parent.resolve() / here.name, Path(folder).resolve())
    return Reference(relative, checkpoint.name, checkpoint.digest)


def fitting(path: Path, dataset: Dataset, arch: str | None = None) -> Checkpoint:
    """The checkpoint at ``path``, after checking that it can classify ``dataset``.
    Raises UsageError if not."""
    checkpoint = checkpoints.load(path, arch)
    check_images(checkpoint.network, dataset)
    check_classes(checkpoint, dataset)
    return checkpoint


def check_classes(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Raises UsageError where a checkpoint knows other classes than ``dataset``, or not as many."""
    if checkpoint.network.num_classes != dataset.num_classes:
        raise UsageError(f"{checkpoint.path} knows {checkpoint.network.num_classes} classes, but "
                         f"{dataset.name} has {dataset.num_classes}")
    names = checkpoint.info.data.get("classes")
    if names and list(names) != list(dataset.classes):
        one = next((old, new) for old, new in zip(names, dataset.classes, strict=True)
                   if old != new)
        raise UsageError(f"{checkpoint.path} knows other classes than {dataset.name}: {one[0]!r} "
                         f"where {one[1]!r} is")


def check_same_test(loaded: Sequence[Checkpoint]) -> None:
    """Raises UsageError where checkpoints name one data set, prepared alike, and were tested on
    different images of that name, such as those of two folders."""
    known: dict[tuple, tuple[Checkpoint, object]] = {}
    for one in loaded:
        said = one.info.data
        digests = said.get("digests")
        if not isinstance(digests, dict) or "test" not in digests:
            continue
        alike = (said.get("name"), str(said.get("image_size")), len(said.get("mean") or ""),
                 family_of(said))
        first, before = known.setdefault(alike, (one, digests["test"]))
        if before != digests["test"]:
            raise UsageError(f"{first.path} and {one.path} were tested on different images, both "
                             f"named {said['name']}: say with --data where the images are on "
                             "which to compare them")


def warn_of_other_images(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Warn where the training images that a checkpoint tells of are not those of ``dataset``."""
    said = checkpoint.info.data
    told = ((said.get("digests", {}).get("train"), dataset.train.digest),
            (said.get("image_size"), plain(dataset.image_size)))
    if any(before not in (None, now) for before, now in told):
        warnings.warn(f"{checkpoint.path} was trained on other images than these: among them may "
                      "be some that are held out or tested here", stacklevel=2)


def method_of(checkpoint: Checkpoint) -> str | None:
    """How a network was pruned, as its masks or widths show; None if it never was."""
    if checkpoint.masks is not None:
        return "weight"
    unpruned = models.ARCHITECTURES[checkpoint.network.arch].cfg
    return "filter" if list(unpruned) != list(checkpoint.network.cfg) else None


def round_of(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """How many rounds a checkpoint went through:
    what it says, else what its size tells (0: never pruned)."""
    if checkpoint.round is not None:
        return checkpoint.round
    if method_of(checkpoint) is None:
        return 0
    if checkpoint.masks is not None:
        sparsity = checkpoint.masks.sparsity()
        return sum(share <= sparsity + 1e-3 for share in recipe.rounds) or 1
    cfg = list(models.ARCHITECTURES[checkpoint.network.arch].cfg)
    for number, rates in enumerate(recipe.rounds, start=1):
        cfg = pruned_widths(cfg, rates)
        if cfg == checkpoint.network.cfg:
            return number
    return 1


def snapshots_of(last: Checkpoint) -> list[Checkpoint]:
    """The baseline and all snapshots that ``last`` descends from, itself included,
    the baseline first.

    Ancestors are looked for where the files say that they came from, and, by their digests, in the
    folders beside. Raises UsageError where the chain is broken.
    """
    found, here, seen = [], last, set()
    while True:
        if here.path.resolve() in seen:
            raise UsageError(f"{here.path} descends from itself, by what the files say: name the "
                             "teachers with --teachers")
        seen.add(here.path.resolve())
        if here.info.kind != "pruned":
            found.append(here)
        parent = here.info.parent
        if here.info.kind == "baseline":
            return found[::-1]
        if parent is None:
            raise UsageError(f"{here.path} does not say what it was made from: name the teachers "
                             "with --teachers")
        here = _ancestor(here, parent)


def _ancestor(child: Checkpoint, parent: Reference) -> Checkpoint:
    named = child.path.parent / parent.path
    beside = (sorted(child.path.parent.parent.glob("*/*.pth.tar"))
              + sorted(child.path.parent.glob("*.pth.tar")))
    for path in [named, *beside]:
        try:
            found = checkpoints.load(path)
        except KesiError:  # missing, damaged or of somebody else
            continue
        if found.is_named_by(parent):
            return found
    raise UsageError(f"{child.path} was made from {named}, which is not there (or was changed "
                     "since): name the teachers with --teachers")
