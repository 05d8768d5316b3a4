"""What the network of a checkpoint looks at: how large its images are, how they are scaled, what
they show.

Checkpoints of ours say so themselves; those of the released code do not, and take it from a data
set's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kesi import models
from kesi.checkpoints import fields
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.checkpoints.fields import LARGEST
from kesi.data import DATASETS, INFO, Dataset, load
from kesi.data.augment import Augmentation, PadCrop, RandomResizedCrop
from kesi.data.datasets import family_of
from kesi.data.split import Size, height_width, spoken_size
from kesi.method.sizes import channels_of
from kesi.models import Network
from kesi.runs.lineage import check_classes
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.tools import latency

# what a checkpoint has to say of its images
SAID = {"image_size": fields.size, "classes": fields.several(fields.line),
        "name": fields.text, "augmentation": fields.optional(fields.dictionary),
        "mean": fields.several(fields.number),
        "std": lambda value: fields.several(fields.number)(value) and min(value, default=0) > 0}


@dataclass(frozen=True)
class Inputs:
    """The images of a network: of ``image_size`` px, scaled to 0..1, less ``mean``, over ``std``.

    ``mean``, ``std``: a number a channel each, or None where nobody knows. ``classes``: the names
    by label, "" where there are none. ``dataset``, ``family``: the arguments of kesi.data.load, or
    None and "cifar".
    """

    image_size: Size
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...]
    dataset: str | None
    family: str

    @property
    def channels(self) -> int:
        """1 of grey, 3 of RGB."""
        return 3 if self.mean is None else len(self.mean)

    def noise(self, batch: int) -> torch.Tensor:
        """As many images for a clock."""
        return latency.noise(batch, self.image_size, self.channels)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training, whose test() is what the network sees at test time."""
        return (RandomResizedCrop(self.image_size) if self.family == "tinyimagenet"
                else PadCrop(self.image_size, 0))

    @property
    def stored_size(self) -> Size:
        """The pixels at which kesi.data stores a test image, before test() takes its part of it."""
        if self.dataset in INFO:
            return INFO[self.dataset].stored_size(self.family, self.image_size)
        return self.image_size if self.family == "cifar" else self.augmentation.test_size

    @property
    def resize(self) -> tuple[Size, ...]:
        """The sizes that a picture is resized to cover, its middle being kept, in order, before
        image_size px are cut.

        There are two where images were stored smaller than they are looked at.
        """
        last = getattr(self.augmentation, "test_size", self.image_size)
        return (last,) if last == self.stored_size else (self.stored_size, last)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std). Raises UsageError where they are not known."""
        if self.mean is None or self.std is None:
            raise UsageError(
                "the checkpoint does not say how its images were scaled: give --dataset")
        return self.mean, self.std


def pictures_only(model: Network) -> None:
    """Raises UsageError for a network that takes other images than grey or RGB ones."""
    if (channels := channels_of(model)) not in (1, 3):
        raise UsageError(f"{model.arch} takes images of {channels} channels, and picture files "
                         "have 1 or 3: export it as a file (--out FILE.onnx), and feed that")


def inputs_of(checkpoint: Checkpoint, dataset: str | None = None, image_size: Size | None = None,
              root: str | Path = "data") -> Inputs:
    """What a checkpoint says about its images; ``dataset`` and ``image_size`` name other ones to
    look at.

    Scaling and classes stay those of the checkpoint. Where it does not say them they are the data
    set's, which is loaded from ``root`` (never downloaded) if only its images tell. Raises
    UsageError for images that are too small for the network, or a data set of other classes, and
    KesiError where the data set has to be loaded and is not there.
    """
    said = checkpoint.info.data
    model = checkpoint.network
    # the networks for photographs
    large = min(height_width(models.ARCHITECTURES[model.arch].image_size)) > 64
    if said:
        found = _as_said(checkpoint, said)
        found = replace(found, dataset=dataset or found.dataset)
    elif dataset is None:
        found = Inputs(224 if large else 32, None, None, ("",) * model.num_classes, None,
                       "tinyimagenet" if large else "cifar")
    else:
        found = _of_dataset(dataset, "tinyimagenet" if large else "cifar", root)
    if image_size is not None:
        if not all(1 <= side <= LARGEST for side in height_width(image_size)):
            raise UsageError(f"--image-size {spoken_size(image_size)}: it takes 1 to {LARGEST} "
                             "pixels")
        found = replace(found, image_size=image_size)
    if found.family == "tinyimagenet" and not isinstance(found.image_size, int):
        raise UsageError(f"--image-size {spoken_size(image_size)}: {checkpoint.path} looks at "
                         "squares")
    if len(found.classes) != model.num_classes:
        raise UsageError(f"{checkpoint.path} knows {model.num_classes} classes, but "
                         f"{found.dataset} has {len(found.classes)}")
    if min(height_width(found.image_size)) < model.min_image_size:
        raise UsageError(f"{model.arch} needs images of {model.min_image_size} px or more, not "
                         f"{spoken_size(found.image_size)}")
    if image_size is not None and models.ARCHITECTURES[model.arch].graph is not None:
        _check_taken(model, found)
    return found


def _check_taken(model: Network, inputs: Inputs) -> None:
    """Raises UsageError where a network of one's own does not take images of a size: it may be made
    for one alone."""
    try:
        with torch.inference_mode():
            model(inputs.noise(1))
    except Exception as error:  # somebody else's code: anything
        raise UsageError(f"--image-size {spoken_size(inputs.image_size)}: {model.arch} does not "
                         f"take such images ({first_line(error)})") from error


def _as_said(checkpoint: Checkpoint, said: dict) -> Inputs:
    """What the checkpoint itself says. Raises KesiError where that makes no sense: anybody may have
    written it.
    """
    channels = channels_of(checkpoint.network)
    for name, right in SAID.items():
        value = said.get(name)
        if not right(value) or name in ("mean", "std") and len(value) != channels:
            raise KesiError(f"{checkpoint.path} is damaged: the {name} of its images is "
                            f"{str(value)[:60]}")
    size = said["image_size"]
    return Inputs(size if isinstance(size, int) else tuple(size), tuple(said["mean"]),
                  tuple(said["std"]), tuple(said["classes"]), said["name"], family_of(said))


def _of_dataset(name: str, family: str, root: str | Path) -> Inputs:
    """Without the images where the data set is one whose statistics are fixed; else from the
    images.
    """
    info = INFO[name]
    if info.statistics and info.num_classes:
        size = info.default_size(family)
        try:
            classes = load(name, root, download=False, family=family).classes
        except KesiError:
            classes = ("",) * info.num_classes
        return Inputs(size, *info.statistics, classes, name, family)
    images = load(name, root, download=False, family=family)
    return Inputs(images.image_size, images.mean, images.std, images.classes, name, family)


def dataset_of(checkpoint: Checkpoint, inputs: Inputs, root: str | Path,
               download: bool = False) -> Dataset:
    """The data set that the inputs name, scaled as the network expects it.

    Raises UsageError without a name or for other classes, KesiError where it is not there.
    """
    if inputs.dataset is None:
        raise UsageError(
            f"{checkpoint.path} does not say which images it was trained on: give --dataset")
    if inputs.dataset not in DATASETS:
        raise UsageError(f"the images of {checkpoint.path} were handed over in Python "
                         f"({inputs.dataset!r:.60}) and cannot be loaded anew: give --dataset, or "
                         "leave out what needs images (compare: --no-accuracy; export: no --int8)")
    dataset = load(inputs.dataset, root, image_size=inputs.image_size, download=download,
                   family=inputs.family, channels=inputs.channels)
    check_classes(checkpoint, dataset)
    mean, std = inputs.statistics()
    return replace(dataset, mean=mean, std=std)


def datasets_of(loaded: Sequence[Checkpoint], inputs: Sequence[Inputs], root: str | Path,
                download: bool = False) -> list[Dataset]:
    """What each checkpoint looks at, as dataset_of() gives it and with its errors; equal inputs
    share the images in memory."""
    known: dict[Inputs, Dataset] = {}
    for checkpoint, one in zip(loaded, inputs, strict=True):
        if one not in known:
            known[one] = dataset_of(checkpoint, one, root, download)
        check_classes(checkpoint, known[one])
    return [known[one] for one in inputs]
