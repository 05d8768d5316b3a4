"""The flags that scripts and commands share."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from kesi import models
from kesi.checkpoints import pretrained
from kesi.cli import targets
from kesi.data import DATASETS, INFO, Dataset, load
from kesi.data.datasets import check_wanted, family_of, load_described
from kesi.data.sources.imagefolder import class_names, counts
from kesi.data.split import Size
from kesi.method import recipes
from kesi.method.pruning.criteria import CRITERIA
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training
from kesi.method.training import Options
from kesi.runs.folder import noted_images
from kesi.runs.record import Faster
from kesi.system import distributed, execution, seeds
from kesi.system.errors import UsageError
from kesi.system.execution import device_for

ROOT = "data"  # where images are looked for where nobody says


def add_inputs(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """--arch, --dataset, --data, --image-size, --threads and --device: how to look at checkpoints.

    Without ``device`` there is no such flag, and it is the CPU.
    """
    data, _, _, machine, _ = groups(parser)
    data.add_argument("--arch", metavar="NAME", help="needed only where a checkpoint does not tell")
    data.add_argument("--dataset", choices=DATASETS, metavar="NAME",
                      help=f"{', '.join(DATASETS)} (default: what the checkpoint says)")
    add_left_images(data)
    data.add_argument("--image-size", type=pixels, metavar="PX",
                      help="default: what the checkpoint says")
    machine.add_argument("--threads", type=int, metavar="N",
                         help="CPU threads (default: all cores)")
    parser.set_defaults(device="cpu")
    if device:
        machine.add_argument("--device", default="cpu", metavar="NAME",
                             help="cpu, cuda ... (default: %(default)s)")


def add_left_images(group: argparse.ArgumentParser) -> None:
    """--data, of commands that look at what a run has left."""
    group.add_argument("--data", metavar="DIR", help="where the images are (default: where the "
                       f"run found them, else {ROOT})")


def pixels(text: str) -> Size:
    """The size that --image-size gives: 32, or 32x48, height first."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--image-size is a number of pixels, or 32x48, height first, not "
                         f"{text[:40]}")
    height, width = int(sides[0]), int(sides[-1])
    return height if height == width else (height, width)


def images_folder(args: argparse.Namespace, made: Path) -> str:
    """--data, or where the run of a checkpoint, or in a folder, found its images, which is said."""
    known = noted_images(made, getattr(args, "dataset", None)) if args.data is None else None
    if known is None:
        return args.data or ROOT
    if known.is_dir():
        print(f"images: {known}, where the run found them", file=sys.stderr)
        return str(known)
    print(f"images: {ROOT}, since {known}, where the run found them, is not there (name others "
          "with --data)", file=sys.stderr)
    return ROOT


def chosen_device(args: argparse.Namespace) -> str:
    """The device that add_flags() asked for, after setting --threads.
    Raises UsageError if it is not there."""
    execution.set_threads(args.threads)
    return device_for(args.device)


DEFAULT_CLASSES = 10  # of a folder of images that nobody has looked into


BOTH = "both"  # methods of pruning, from one baseline


def groups(parser: argparse.ArgumentParser) -> list:
    """The groups in which --help lists the flags of a run."""
    return [parser.add_argument_group(name)
            for name in ("data", "method", "training", "machine", "output")]


def add_network(group: argparse.ArgumentParser, default: str = "resnet56",
                both: bool = False) -> None:
    """--arch and --method."""
    group.add_argument("--arch", choices=list(models.ARCHITECTURES),
                       default=default, metavar="NAME", type=models.canonical, help="the network: "
                       f"{', '.join(models.ARCHITECTURES)} (default: %(default)s)")
    group.add_argument("--method", choices=[*recipes.METHODS, *[BOTH] * both], default="filter",
                       help="prune whole filters or single weights"
                       + " or, from one baseline, both" * both + " (default: %(default)s)")


def add_rounds(group: argparse.ArgumentParser) -> None:
    """What is pruned: --rounds, --percent, --criterion, or a target instead of rates."""
    group.add_argument("--rounds", type=int, metavar="N",
                       help="rounds of pruning (default: the paper's five)")
    group.add_argument(
        "--percent", type=float, nargs="+", metavar="SHARE",
        help="instead of the paper's numbers; filter: the share of filters to remove from every "
             "layer in a round; weight: the cumulative share of zeros after each round")
    targets.add_targets(group)
    group.add_argument("--criterion", metavar="NAME",
                       help="what is pruned first (default: the paper's); filter: " + ", ".join(
                           CRITERIA["filter"]) + "; weight: " + ", ".join(CRITERIA["weight"]))


def add_data(group: argparse.ArgumentParser, default: str | None, family: str = "cifar") -> None:
    """--dataset, --data, --image-size, --val-fraction, and --no-download or --download."""
    said = "what the checkpoint says" if default is None else default
    group.add_argument("--dataset", choices=DATASETS, default=default, metavar="NAME",
                       help=f"{', '.join(DATASETS)} (default: {said})")
    add_images(group, family)
    if default is None:  # of that, see dataset_for()
        group.set_defaults(val_fraction=None)


def add_images(group: argparse.ArgumentParser, family: str | None = "cifar",
               root: bool = True) -> None:
    """--image-size, --channels, --no-flip and --val-fraction; with ``root`` also --data, and
    --no-download or --download, both, and None where neither is given, where nobody knows yet of
    what ``family`` the images are."""
    if root:
        _add_root(group, family)
    group.add_argument("--image-size", type=pixels, metavar="PX", help="what the network sees: 32, "
                       "or 32x48, height first (default: the data's)")
    group.add_argument("--channels", type=int, choices=(1, 3), metavar="N", help="of a folder of "
                       "images: 1 for grey, for a network that takes one; 3 for RGB")
    group.add_argument("--no-flip", dest="flip", action="store_const", const=False, help="never "
                       "mirror images in training, such as letters, for which another side is "
                       "another thing (default: the data's own; a folder's are mirrored)")
    group.add_argument("--val-fraction", type=float, default=0.0, metavar="SHARE", help="hold out "
                       "this share of every training class, for choosing anything (default: 0)")


def _add_root(group: argparse.ArgumentParser, family: str | None) -> None:
    group.add_argument("--data", default=ROOT, metavar="DIR",
                       help="where the images are, or are downloaded to (default: %(default)s)")
    if family is None or not downloads(family):
        group.add_argument("--download", action="store_true",
                           help="fetch Tiny-ImageNet to --data (248 MB)")
    if family is None or downloads(family):
        group.add_argument("--no-download", dest="download", action="store_false",
                           help="never ask the network for a data set")
    if family is None:
        group.set_defaults(download=None)


def downloads(family: str) -> bool:
    """Whether its images are fetched unasked: of Tiny-ImageNet it is a quarter of a gigabyte."""
    return family != "tinyimagenet"


def add_unlabelled(group: argparse.ArgumentParser) -> None:
    """--unlabelled."""
    group.add_argument("--unlabelled", type=Path, metavar="DIR", help="more images, which need no "
                       "labels: the last step draws as many an epoch as without, from these and "
                       "the training images")


def check_unlabelled(args: argparse.Namespace) -> None:
    """Raises UsageError where --unlabelled is no folder, which a dry run would not notice."""
    if args.unlabelled is not None and not args.unlabelled.is_dir():
        raise UsageError(f"--unlabelled {args.unlabelled}: there is no such folder")


def add_look(group: argparse.ArgumentParser) -> None:
    """--device, --threads and --deterministic, of what trains nothing: see machine_for()."""
    _add_device(group)
    _add_deterministic(group)


def add_run(group: argparse.ArgumentParser) -> None:
    """--device, --threads, --eval-every, --save-every, --precision, --compile, --deterministic."""
    _add_device(group)
    group.add_argument("--eval-every", type=int, metavar="N", help="test accuracy every N epochs, "
                       "0: after the last only (default: 1; digits: 0)")
    group.add_argument("--precision", choices=execution.PRECISIONS, default="auto", help="auto: "
                       "bf16 on a GPU that has it, else fp32 (what is reported of accuracies is "
                       "always taken in fp32)")
    group.add_argument("--compile", choices=execution.COMPILE, default="auto",
                       help="on: fuse kernels with torch.compile; auto: on a GPU, where it earns "
                            "its minute back; capture: CUDA graphs alone; off: not even those")
    _add_deterministic(group)
    group.add_argument("--sync-bn", action="store_true",
                       help="under torchrun: batch norm over the batch of all processes")
    group.add_argument("--save-every", type=int, default=1, metavar="N",
                       help="save the state to continue from every N epochs (default: %(default)s)")


def _add_device(group: argparse.ArgumentParser) -> None:
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="cpu, cuda, cuda:1 ... (default: a GPU if any)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def _add_deterministic(group: argparse.ArgumentParser) -> None:
    group.add_argument("--deterministic", action="store_true", help="only algorithms that give the "
                       "same bits in every run, also on a GPU (slower, and never compiled)")


def add_stage(group: argparse.ArgumentParser) -> None:
    """The numbers of one training, which override the recipe's."""
    group.add_argument("--epochs", type=int, metavar="N")
    group.add_argument("--epochs-scale", type=float, metavar="X",
                       help="multiply the recipe's epochs")
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--lr", type=float, help="learning rate; the peak of a one-cycle schedule")
    group.add_argument("--wd", type=float, help="weight decay")
    group.add_argument("--momentum", type=float)
    group.add_argument("--schedule", type=int, nargs="+", metavar="EPOCH",
                       help="multiply the learning rate by --gamma after these epochs, whatever "
                            "the recipe's schedule is")
    group.add_argument("--gamma", type=float)


def add_pretrained(group: argparse.ArgumentParser) -> None:
    """--pretrained."""
    group.add_argument("--pretrained", nargs="?", const=pretrained.DOWNLOAD, metavar="FILE",
                       help="start from torchvision's ImageNet weights: this file, or without one "
                            "its download (resnet18, resnet34; the last layer is refitted)")


def add_seed_and_save(group: argparse.ArgumentParser, default: str, seed: int | None = 0) -> None:
    """--seed, --save, --fresh, --resume of one stage; ``seed``: None where a checkpoint has one."""
    group.add_argument("--seed", type=seeds.seed, default=seed, metavar="N", help="default: "
                       + ("that of the checkpoint" if seed is None else "%(default)s"))
    group.add_argument("--save", type=Path, metavar="DIR",
                       help=f"where the stage goes (default: {default})")
    group.add_argument("--fresh", action="store_true",
                       help="start over; what is there is moved aside")
    group.add_argument("--resume", type=Path, metavar="FILE", help="continue from this "
                       "state.pth.tar; one in --save is continued without being asked")


def training_for(args: argparse.Namespace, training: Training) -> Training:
    """The recipe's training with what the command line overrides.
    Raises UsageError for values out of range, and for a gamma that nothing falls by."""
    made = training.changed(
        args.epochs, args.epochs_scale, args.schedule, batch_size=args.batch_size,
        lr=args.lr, weight_decay=args.wd, momentum=args.momentum, gamma=args.gamma)
    if args.gamma is not None and not made.milestones:
        raise UsageError(f"--gamma would do nothing: the learning rate of this training falls by "
                         f"{made.schedule}; --schedule EPOCH ... says after which epochs it is "
                         "multiplied")
    return made


def recipe_for(args: argparse.Namespace, family: str, method: str | None = None,
               folder: Path | None = None, images: int = 0) -> tuple[Recipe, Faster | None]:
    """The paper's recipe with what the command line overrides; of ``method``, default: --method.
    Epochs that nobody says are made to fit so many ``images`` of one's own, if there are any.

    And what was measured for it, where --latency asks for a speed; ``folder``: of the run, which
    may know. Raises UsageError for what will not do.
    """
    given = {name: getattr(args, name, None) for name in ("epochs", "epochs_scale", "batch_size",
                                                          "lr", "rounds", "percent", "temperature",
                                                          "criterion", "loss", "compare")}
    given = {RENAMED.get(name, name): value for name, value in given.items() if value is not None}
    recipe = recipes.recipe(args.arch, args.dataset, method or args.method, family)
    recipe = recipes.named(getattr(args, "recipe", recipes.PAPER), recipe)
    if images and not {"epochs", "scale"} & given.keys():
        recipe = recipe.fitted(images)
    if recipe.method == "weight" and args.sparsity is not None:
        given.pop("rounds", None)  # as many as the target is reached in
    recipe = recipe.changed(**given)
    return targets.towards(args, recipe, lambda: classes_and_size(
        args, family, getattr(args, "data", None)), folder)


def own_images(args: argparse.Namespace) -> int:
    """The number of training images in a folder of one's own; 0 where the data set is another, or
    where there are none, which loading says."""
    return sum(counts(Path(args.data, "train"))) if recipes.fits(args.dataset) else 0


RENAMED = {"epochs_scale": "scale", "percent": "amounts"}  # flags that a recipe calls otherwise


def classes_and_size(args: argparse.Namespace, family: str,
                     folder: str | None = None) -> tuple[int, Size]:
    """(classes, image size) of a data set without reading it;
    of an imagefolder the classes in ``folder`` count."""
    check_wanted(args.dataset, args.image_size, getattr(args, "val_fraction", 0.0), family,
                 getattr(args, "channels", None))
    info = INFO[args.dataset]
    size = args.image_size or info.default_size(family)
    if info.num_classes is not None:
        if args.num_classes not in (None, info.num_classes):
            raise UsageError(
                f"{args.dataset} has {info.num_classes} classes, not {args.num_classes}")
        return info.num_classes, size
    if args.num_classes is not None and not 2 <= args.num_classes <= models.MOST_CLASSES:
        raise UsageError(f"--num-classes must be at least 2 and at most {models.MOST_CLASSES:,}, "
                         f"not {args.num_classes}")
    found = len(class_names(Path(folder, "train"))) if folder else 0
    return args.num_classes or (found if found > 1 else DEFAULT_CLASSES), size


def options_for(args: argparse.Namespace) -> Options:
    """The machine's side of a run. Raises UsageError for a device that is not there."""
    eval_every = args.eval_every if args.eval_every is not None else (
        INFO[args.dataset].eval_every if args.dataset in INFO else 1)
    options = Options(args.device, eval_every, args.save_every, args.precision, args.compile,
                      args.deterministic, args.sync_bn)
    return replace(options, device=machine_for(args, args.precision))


def machine_for(args: argparse.Namespace, precision: str = "auto") -> str:
    """The device of this process, with torch set up as --threads and --deterministic say.
    Raises UsageError for a device that is not there."""
    execution.set_threads(args.threads)
    name = device_for(args.device)
    execution.set_up(name, precision, args.deterministic)
    return distributed.start(name)


def dataset_for(args: argparse.Namespace, family: str, said: dict | None = None) -> Dataset:
    """Load the images that the flags name; where they leave open how, as a checkpoint of the same
    data set has ``said`` of its images, the same ones held out."""
    given = {"image_size": args.image_size, "val_fraction": args.val_fraction,
             "channels": args.channels, "flip": args.flip, "family": family,
             "unlabelled": getattr(args, "unlabelled", None)}
    with distributed.main_first():
        if said and said.get("name") == args.dataset and family_of(said) == family:
            return load_described(said, args.data, args.download, **given)
        return load(args.dataset, args.data, download=args.download,
                    **given | {"val_fraction": args.val_fraction or 0.0})
