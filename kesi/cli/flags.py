"""The flags that scripts and commands share."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import models
from kesi.checkpoints import pretrained
from kesi.data import DATASETS, INFO, Dataset, load
from kesi.data.sources.imagefolder import class_names
from kesi.method import recipes
from kesi.method.recipes import Recipe
from kesi.method.schedules import Training
from kesi.method.training import Options
from kesi.system import distributed, execution
from kesi.system.errors import UsageError
from kesi.system.execution import device_for


def add_inputs(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """--arch, --dataset, --data, --image-size, --threads and --device: how to look at checkpoints.

    Without ``device`` there is no such flag, and it is the CPU.
    """
    parser.add_argument("--arch", metavar="NAME", help="needed only where a checkpoint does not tell")
    parser.add_argument("--dataset", choices=DATASETS, metavar="NAME",
                        help=f"{', '.join(DATASETS)} (default: what the checkpoint says)")
    parser.add_argument("--data", default="data", metavar="DIR", help="where the images are (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="default: what the checkpoint says")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.set_defaults(device="cpu")
    if device:
        parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda ... (default: %(default)s)")


def chosen_device(args: argparse.Namespace) -> str:
    """The device that add_flags() asked for, after setting --threads. Raises UsageError if it is not there."""
    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, not {args.threads}")
        torch.set_num_threads(args.threads)
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    return args.device

DEFAULT_CLASSES = 10  # of a folder of images that nobody has looked into


def add_network(group: argparse.ArgumentParser, default: str = "resnet56") -> None:
    """--arch and --method."""
    group.add_argument("--arch", choices=list(models.ARCHITECTURES), default=default, metavar="NAME",
                       help=f"the network: {', '.join(models.ARCHITECTURES)} (default: %(default)s)")
    group.add_argument("--method", choices=recipes.METHODS, default="filter",
                       help="prune whole filters or single weights (default: %(default)s)")


def add_rounds(group: argparse.ArgumentParser) -> None:
    """--rounds and --percent."""
    group.add_argument("--rounds", type=int, metavar="N", help="rounds of pruning (default: the paper's five)")
    group.add_argument("--percent", type=float, nargs="+", metavar="SHARE",
                       help="instead of the paper's numbers; filter: the share of filters to remove from every "
                            "layer in a round; weight: the cumulative share of zeros after each round")


def add_data(group: argparse.ArgumentParser, default: str | None, family: str = "cifar") -> None:
    """--dataset, --data, --image-size, --val-fraction, and --no-download or --download."""
    said = "what the checkpoint says" if default is None else default
    group.add_argument("--dataset", choices=DATASETS, default=default, metavar="NAME",
                       help=f"{', '.join(DATASETS)} (default: {said})")
    group.add_argument("--data", default="data", metavar="DIR",
                       help="where the images are, or are downloaded to (default: %(default)s)")
    group.add_argument("--image-size", type=int, metavar="PX", help="what the network sees (default: the data's)")
    group.add_argument("--val-fraction", type=float, default=0.0, metavar="SHARE",
                       help="hold out this share of every training class, for choosing anything (default: 0)")
    if family == "tinyimagenet":  # a quarter of a gigabyte is fetched only when asked for
        group.add_argument("--download", action="store_true", help="fetch Tiny-ImageNet to --data (248 MB)")
    else:
        group.add_argument("--no-download", dest="download", action="store_false",
                           help="never ask the network for a data set")


def add_run(group: argparse.ArgumentParser) -> None:
    """--device, --threads, --eval-every, --save-every, --precision, --compile, --deterministic."""
    group.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU if any)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    group.add_argument("--eval-every", type=int, metavar="N",
                       help="test accuracy every N epochs, 0: after the last only (default: 1, digits 0)")
    group.add_argument("--precision", choices=execution.PRECISIONS, default="auto",
                       help="auto: bf16 on a GPU that has it, else fp32 (accuracies are always taken in fp32)")
    group.add_argument("--compile", choices=execution.COMPILE, default="auto",
                       help="on: fuse kernels with torch.compile; auto: on a GPU, where it earns its minute back; "
                            "capture: CUDA graphs alone; off: not even those")
    group.add_argument("--deterministic", action="store_true",
                       help="only algorithms that give the same bits in every run, also on a GPU (slower, "
                            "and never compiled)")
    group.add_argument("--sync-bn", action="store_true",
                       help="under torchrun: batch norm over the batch of all processes")
    group.add_argument("--save-every", type=int, default=1, metavar="N",
                       help="save the state to continue from every N epochs (default: %(default)s)")


def add_stage(group: argparse.ArgumentParser) -> None:
    """The numbers of one training, which override the recipe's."""
    group.add_argument("--epochs", type=int, metavar="N")
    group.add_argument("--epochs-scale", type=float, metavar="X", help="multiply the recipe's epochs")
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--lr", type=float, help="learning rate; the peak of a one-cycle schedule")
    group.add_argument("--wd", type=float, help="weight decay")
    group.add_argument("--momentum", type=float)
    group.add_argument("--schedule", type=int, nargs="+", metavar="EPOCH",
                       help="multiply the learning rate by --gamma after these epochs")
    group.add_argument("--gamma", type=float)


def add_pretrained(group: argparse.ArgumentParser) -> None:
    """--pretrained."""
    group.add_argument("--pretrained", nargs="?", const=pretrained.DOWNLOAD, metavar="FILE",
                       help="start from torchvision's ImageNet weights: this file, or without one its download "
                            "(resnet18, resnet34; the last layer is refitted)")


def add_seed_and_save(group: argparse.ArgumentParser, default: str) -> None:
    """--seed, --save, --fresh, --resume of one stage."""
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    group.add_argument("--save", type=Path, metavar="DIR", help=f"where the stage goes (default: {default})")
    group.add_argument("--fresh", action="store_true", help="start over; what is there is moved aside")
    group.add_argument("--resume", type=Path, metavar="FILE",
                       help="continue from this state.pth.tar; one in --save is continued without being asked")


def stage_for(args: argparse.Namespace, stage: Training) -> Training:
    """The recipe's stage with what the command line overrides. Raises UsageError for values out of range."""
    if args.epochs_scale is not None:
        if not args.epochs_scale > 0:
            raise UsageError(f"--epochs-scale must be above 0, not {args.epochs_scale}")
        stage = stage.scaled(args.epochs_scale)
    given = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr, "weight_decay": args.wd,
             "momentum": args.momentum, "gamma": args.gamma}
    given = {name: value for name, value in given.items() if value is not None}
    if args.schedule is not None:
        given |= {"schedule": "multistep", "milestones": tuple(args.schedule)}
    elif "epochs" in given and stage.milestones:  # the steps stay where they were in proportion
        stage = stage.scaled(given["epochs"] / stage.epochs)
    return replace(stage, **given)


def check_temperature(value: float) -> None:
    """Raises UsageError where --temperature is none."""
    if not 0 < value < float("inf"):
        raise UsageError(f"--temperature must be above 0, not {value}")


def recipe_for(args: argparse.Namespace, family: str) -> Recipe:
    """The paper's recipe with --rounds and --percent applied. Raises UsageError where they do not fit."""
    recipe = recipes.recipe(args.arch, args.dataset, args.method, family)
    rounds = list(recipe.rounds)
    if args.percent is not None:
        for share in args.percent:
            if not 0 <= share < 1:
                raise UsageError(f"--percent takes shares of at least 0 and below 1, not {share}")
        if args.method == "filter":
            if len(args.percent) > 1:
                raise UsageError("--percent with filter pruning takes one share, the same in every round")
            rounds = [tuple(args.percent * len(rates)) for rates in rounds]
        else:
            if args.percent != sorted(args.percent):
                raise UsageError("--percent with weight pruning takes cumulative shares, which never fall")
            rounds = list(args.percent)
    if args.rounds is not None:
        if args.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, not {args.rounds}")
        if args.method == "filter":
            rounds = [rounds[0]] * args.rounds
        elif args.rounds > len(rounds):
            raise UsageError(f"there are {len(rounds)} sparsities, not {args.rounds}: give one a round, --percent ...")
    return replace(recipe, rounds=tuple(rounds[:args.rounds]))


def classes_and_size(args: argparse.Namespace, family: str, folder: str | None = None) -> tuple[int, int]:
    """(classes, image size) of a data set without reading it; of an imagefolder the classes in ``folder`` count."""
    if args.dataset in INFO:
        info = INFO[args.dataset]
        if args.num_classes not in (None, info.num_classes):
            raise UsageError(f"{args.dataset} has {info.num_classes} classes, not {args.num_classes}")
        return info.num_classes, args.image_size or info.image_size
    size = 224 if family == "tinyimagenet" else 32
    found = len(class_names(Path(folder, "train"))) if folder else 0
    return args.num_classes or (found if found > 1 else DEFAULT_CLASSES), args.image_size or size


def options_for(args: argparse.Namespace) -> Options:
    """The machine's side of a run. Raises UsageError for a device that is not there."""
    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, not {args.threads}")
        torch.set_num_threads(args.threads)
    name = device_for(args.device)
    eval_every = args.eval_every if args.eval_every is not None else (0 if args.dataset == "digits" else 1)
    if eval_every < 0 or args.save_every < 1:
        raise UsageError("--eval-every must be at least 0 and --save-every at least 1")
    execution.set_up(name, args.precision, args.deterministic)
    name = distributed.start(name)
    return Options(name, eval_every, args.save_every, args.precision, args.compile, args.deterministic, args.sync_bn)


def dataset_for(args: argparse.Namespace, family: str) -> Dataset:
    """Load the images that the flags name."""
    with distributed.main_first():
        return load(args.dataset, args.data, image_size=args.image_size, val_fraction=args.val_fraction,
                    download=args.download, family=family)
