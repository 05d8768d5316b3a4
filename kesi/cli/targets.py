"""The flags that ask for a result instead of rates and epochs: a size, a latency, a budget."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kesi.data import INFO, Dataset
from kesi.data.arrays import from_arrays
from kesi.data.augment import RandomResizedCrop
from kesi.data.registry import FOLDER
from kesi.data.sources import imagefolder
from kesi.data.split import Size, height_width, held_out
from kesi.method.pruning.allocation import ALLOCATIONS, LATENCY, MEASURES
from kesi.method.recipes import Recipe
from kesi.method.training import Options
from kesi.runs.clock import spoken
from kesi.runs.record import Faster, Fitted
from kesi.system.errors import UsageError
from kesi.system.provenance import device_name
from kesi.tools.targets import budget, faster
from kesi.tools.targets.ways import ROUND_TO, SIZES, check_used

BATCH = 256  # images of noise, that a step takes for real ones

def add_targets(group: argparse.ArgumentParser) -> None:
    """--macs, --params, --latency, --sparsity, and how they are reached."""
    for measure in MEASURES:
        group.add_argument(f"--{measure}", type=float, metavar="SHARE", help="filter pruning: the "
                           f"share of {measure} to be left after the last round; the rates follow")
    group.add_argument("--latency", type=faster.speedup, metavar="2x", help="filter pruning: how "
                       "many times as fast the last network is to be, as measured here "
                       "(onnxruntime if installed, else torch; one thread of the CPU); the rates "
                       "follow")
    group.add_argument("--latency-batch", type=int, default=1, metavar="N",
                       help="images at a time when latency is measured (default: %(default)s)")
    group.add_argument("--sparsity", type=float, metavar="SHARE",
                       help="weight pruning: the share of zeros after the last round")
    group.add_argument("--allocation", choices=ALLOCATIONS, default=ALLOCATIONS[0],
                       help="of a target: every layer in proportion to the paper's rates, or all "
                            "layers alike (default: %(default)s)")
    group.add_argument("--round-to", type=int, default=ROUND_TO, metavar="N",
                       help="of a target: widths are multiples of N, which runtimes like "
                            "(default: %(default)s)")


def given(args: argparse.Namespace) -> dict[str, float]:
    """The targets that the command line names."""
    found = {name: getattr(args, name) for name in (*MEASURES, LATENCY, "sparsity")}
    return {name: value for name, value in found.items() if value is not None}


def towards(args: argparse.Namespace, recipe: Recipe, inputs: Callable[[], tuple[int, Size]],
            folder: Path | None = None) -> tuple[Recipe, Faster | None]:
    """The recipe with the rates for the target, if there is one; and what was measured for it.

    ``inputs``: tells classes and image size. Raises UsageError for more than one target.
    """
    named = given(args)
    check_used(named, args.allocation, args.round_to, args.latency_batch)
    if recipe.method != args.method:  # one of both, each of which goes towards its own
        named = {name: value for name, value in named.items()
                 if (name in SIZES) == (recipe.method == "filter")} or named
    if not named:
        return recipe, None
    if len(named) > 1 or args.percent is not None:
        raise UsageError(
            f"--{' and --'.join([*named, *['percent'] * (args.percent is not None)])} ask for "
            "different things: give one of them")
    (measure, value), = named.items()
    try:
        if measure == LATENCY:
            return faster.faster(recipe, value, *inputs(), args.allocation, args.round_to,
                                 args.latency_batch, folder)
        return recipe.towards(measure, value, *inputs(), args.allocation, args.round_to,
                              rounds=args.rounds), None
    except ValueError as error:  # a network of one's own that has other classes
        raise UsageError(str(error)) from error


def add_budget(group: argparse.ArgumentParser) -> None:
    """--budget."""
    group.add_argument("--budget", type=budget.duration, metavar="TIME", help="45m, 2h, 90s: scale "
                       "the epochs of all stages down until the whole fits, by the speed of a few "
                       "training steps here")


def fitted(args: argparse.Namespace, named: Sequence[Recipe], dataset: Dataset, options: Options,
           folders: Sequence[Path | None] = (), images: tuple[int, int] | None = None
           ) -> Fitted | None:
    """What --budget makes of recipes, if it is given; said in a line.

    Raises UsageError for a budget that is too small, or beside --epochs-scale.
    """
    if args.budget is None:
        return None
    if args.epochs_scale is not None:
        raise UsageError("--budget and --epochs-scale ask for different things: give one of them")
    made = budget.within(args.budget, named, dataset, len(args.seeds), options,
                         args.model is not None, [one for one in folders if one], images)
    print(budget.told(made), flush=True)
    return made


def dry(args: argparse.Namespace, named: Sequence[Recipe], dataset: Dataset,
        images: tuple[int, int] | None, options: Options,
        folders: Sequence[Path | None] = ()) -> tuple[float, str]:
    """For --dry-run: the scale of a budget, and a line about the time that it takes here."""
    if images is None:
        return 1.0, "how long it takes depends on the images: say where they are with --data"
    made = fitted(args, named, dataset, options, folders, images)
    if made is not None:
        return made.scale, f"about {spoken(made.expected)} here"
    _, seconds = budget.expected(named, dataset, len(args.seeds), options, args.model is not None,
                                 images)
    return 1.0, (f"about {spoken(seconds(1.0))} here, by a few training steps on "
                 f"{device_name(options.device)}")


def stand_in(args: argparse.Namespace, family: str, num_classes: int,
             image_size: Size) -> tuple[Dataset, tuple[int, int] | None]:
    """For --dry-run, which opens no image: a few of noise, and how many there are of training and
    test; None where nobody knows.
    """
    info, folder = INFO[args.dataset], Path(args.data)
    train, test = [info.train_images or 0], info.test_images
    if args.dataset == FOLDER:
        train = imagefolder.counts(folder / "train")  # of each class, as they are held out
        test = sum(imagefolder.counts(imagefolder.test_folder(folder)))
    stored = info.stored_size(family, image_size)
    shape = (max(BATCH, num_classes), *height_width(stored), args.channels or 3)
    noise = torch.randint(256, shape, dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(noise)) % num_classes
    dataset = from_arrays((noise, labels), (noise[:2], labels[:2]), num_classes, flip=info.flip,
                          name=args.dataset)
    if family == "tinyimagenet":
        dataset = replace(dataset, image_size=image_size,
                          augmentation=RandomResizedCrop(image_size, info.flip))
    if args.val_fraction:
        dataset = replace(dataset, val=dataset.test)
    if not (sum(train) and test):
        return dataset, None
    # which are looked at like test images, and not trained on
    held = sum(held_out(args.val_fraction, members) for members in train)
    return dataset, (sum(train) - held, test + held)
