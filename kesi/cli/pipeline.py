"""What the script of the whole pipeline does:
it reads its flags, and runs all five steps with the recipe they give."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from kesi.checkpoints import pretrained
from kesi.cli import entry, flags, targets
from kesi.data.registry import FOLDER, INFO
from kesi.data.sources.imagefolder import shorter_side, without_train
from kesi.method import plan, recipes
from kesi.method.objectives import LOSSES
from kesi.method.snapshot import BASELINE
from kesi.report import report
from kesi.runs import pipeline
from kesi.runs.results import stage_of
from kesi.system import distributed, seeds
from kesi.system.errors import KesiError, UsageError
from kesi.tools import tensorboard
from kesi.tools.targets import faster

TARGET = 0.5  # of MACs, or of weights, where nothing is asked for


def run(argv: Sequence[str] | None = None) -> None:
    """All five steps: train, prune, retrain with one cycle, repeat,
    distil the snapshots into the last one.

        kesi run --arch resnet20 --dataset digits
        kesi run --arch resnet56 --dataset cifar10 --method filter --compare --seeds 0 1 2
    """
    run_pipeline(run.__doc__, "cifar", argv, "kesi run")


def compress(argv: Sequence[str] | None = None) -> None:
    """A folder of images in, a network half as large out (or as large as you ask for).

        kesi compress my-images --macs 0.5
        kesi compress my-images --arch resnet56 --params 0.3 --epochs 80 25 25
        kesi --with my_network.py compress my-images --arch mine --method weight --sparsity 0.9

    FOLDER holds train/<class>/ and test/<class>/. It is the run of all five steps with a target
    instead of rates, half of the MACs where none is given; --photos for photographs at 224 px. The
    result is <save>/seed0/kesi; with --val-fraction it is the last snapshot where that is better on
    held-out images by more than the standard error of the difference. kesi export <save> hands it
    over. A network in Python: kesi.compress.
    """
    words = list(sys.argv[2:] if argv is None else argv)
    photos = "--photos" in words
    run_pipeline(compress.__doc__, "tinyimagenet" if photos else "cifar", words, "kesi compress",
                 folder=True)


def run_pipeline(doc: str, family: str, argv: Sequence[str] | None = None, prog: str | None = None,
                 folder: bool = False) -> None:
    """All five steps from the command line, of a script for images of one size or the other.

    ``folder``: the first word is a folder of images, and a target is taken where none is given.
    """
    tiny = family == "tinyimagenet"
    parser = entry.parser(doc, prog)
    data, method, training, machine, output = flags.groups(parser)
    if folder:
        data.add_argument("images", metavar="FOLDER", help="holds train/<class>/ and test/<class>/")
        data.add_argument("--photos", action="store_true", help="photographs, seen at 224 px")
        flags.add_images(data, family, root=False)
        parser.set_defaults(dataset=FOLDER, num_classes=None, download=False)
    else:
        flags.add_data(data, "tinyimagenet" if tiny else "cifar10", family)
        data.add_argument("--num-classes", type=int, metavar="N",
                          help="for --dry-run of an imagefolder")
    flags.add_unlabelled(data)
    flags.add_network(method, "resnet18" if tiny else "resnet56", both=True)
    method.add_argument("--recipe", metavar="NAME",
                        help="the paper's, or what differs from it: "
                        f"{', '.join(recipes.RECIPES)} (default: paper; for images of your own "
                        "by their number, docs/beyond.md)")
    flags.add_rounds(method)
    method.add_argument("--compare", nargs="*", metavar="NAME", default=False,
                        help="also retrain in these other ways, for all rows of the paper's table "
                        f"(without a NAME: in all: {', '.join(list(recipes.RETRAININGS)[1:])})")
    method.add_argument("--temperature", type=float, metavar="T", help="default: the paper's 5")
    method.add_argument("--loss", metavar="NAME", help="what the student is told: "
                        f"{', '.join(LOSSES)} (default: kl, the paper's); the recipe's share of "
                        "labels stays")
    flags.add_pretrained(training)
    training.add_argument("--model", metavar="FILE", help="start from this trained baseline; "
                          "{seed} in the path stands for the seed")
    training.add_argument("--baseline-folder", metavar="DIR",
                          help="train the baseline of every seed here, unless another run has: "
                          "runs of both methods, on several machines too, then start from the "
                          "same one")
    training.add_argument("--seeds", type=seeds.seed, nargs="+", default=[0], metavar="N",
                          help="default: 0")
    training.add_argument("--epochs", type=int, nargs=3, metavar=("BASELINE", "RETRAIN", "DISTILL"),
                          help="epochs of the stages, instead of the recipe's")
    training.add_argument("--epochs-scale", type=float, metavar="X",
                          help="multiply the epochs of every stage (default: 1)")
    targets.add_budget(training)
    training.add_argument("--batch-size", type=int, metavar="N",
                          help="of every stage, instead of the recipe's")
    training.add_argument("--lr", type=float,
                          help="of the baseline, and the peak of one-cycle retraining")
    flags.add_run(machine)
    output.add_argument("--save", type=Path, metavar="DIR", help="default: runs/"
                        f"{'<FOLDER>' if folder else '<dataset>'}-<arch>-<method>")
    output.add_argument("--dry-run", action="store_true",
                        help="print stages, sizes, work, and the time that it takes here; touch "
                             "nothing")
    output.add_argument("--fresh", action="store_true",
                        help="start over; the old run is moved aside")
    output.add_argument("--no-report", action="store_true",
                        help="leave the table and the plots to kesi.report")
    output.add_argument("--tensorboard", action="store_true",
                        help="write event files to <save>/tensorboard as well, epoch by epoch")
    args = parser.parse_args(argv)
    if folder:
        if not Path(args.images, "train").is_dir():  # which a dry run would not notice
            raise KesiError(without_train(Path(args.images)))
        args.data = args.images
        if args.percent is None and not targets.given(args):
            for method, measure in {"filter": "macs", "weight": "sparsity"}.items():
                if args.method in (method, flags.BOTH):
                    setattr(args, measure, TARGET)
        args.save = args.save or Path(
            "runs", f"{Path(args.images).resolve().name}-{args.arch}-{args.method}")
    if args.dataset == FOLDER and args.image_size is None:
        _warn_of_small(Path(args.data), INFO[FOLDER].default_size(family))
    if sum(map(bool, (args.model, args.baseline_folder, args.pretrained and args.model))) > 1:
        raise UsageError("--model is a trained baseline, --baseline-folder where to train one, "
                         "--pretrained what to train one from: give --model alone")
    flags.check_unlabelled(args)
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError(f"--seeds names one of {' '.join(map(str, args.seeds))} twice")
    args.compare = True if args.compare == [] else args.compare
    methods = list(recipes.METHODS) if args.method == flags.BOTH else [args.method]
    options = flags.options_for(args)
    folders = {method: _folder(args, method) for method in methods}
    known = {method: None if args.fresh else folder for method, folder in folders.items()}
    images = flags.own_images(args)
    if args.recipe is None:
        args.recipe = recipes.suited(args.dataset, family, images)
        if args.recipe != recipes.PAPER:
            print(recipes.choice(args.recipe, images), flush=True)
    jobs = [(*flags.recipe_for(args, family, method, known[method], images), folders[method])
            for method in methods]
    for _, measured, _ in jobs:
        if measured is not None:
            print(measured.text(), flush=True)
    named = [recipe for recipe, _, _ in jobs]
    for recipe in named:
        pipeline.check_recipe(recipe)
    if args.pretrained is not None and named[0].fitted_to and not (args.epochs_scale
                                                                   or args.budget):
        warnings.warn(f"{named[0].baseline.epochs:,} epochs of the baseline are for a network that "
                      "learns from nothing: weights that are trained already take fewer at a "
                      "lower rate, such as --epochs 30 10 10 --lr 0.01", stacklevel=2)
    if args.baseline_folder is not None:
        _check_folder(Path(args.baseline_folder))
    if args.dry_run:
        if args.pretrained is not None:
            pretrained.check_source(args.arch, args.pretrained)
        dataset, images = targets.stand_in(args, family, *flags.classes_and_size(args, family,
                                                                                 args.data))
        scale, hours = targets.dry(args, named, dataset, images, options,
                                   list(known.values()))
        for recipe, _, out in jobs:
            print(plan.overview(recipe.changed(scale=scale), dataset.num_classes,
                                dataset.image_size, images and images[0], args.seeds, out))
            if recipe.fitted_to and args.budget is None:
                print(recipe.fit())
        if images is None and recipes.fits(args.dataset) and (
                args.epochs is args.epochs_scale is None):
            print("the epochs are made to fit the number of images, which is not known yet")
        print(hours)
        return
    dataset = flags.dataset_for(args, family)
    fitted = targets.fitted(args, named, dataset, options, list(known.values()))
    baseline, shared = args.model or args.baseline_folder, args.baseline_folder is not None
    if shared:
        baseline = str(Path(baseline, "seed{seed}"))
    for recipe, measured, out in jobs:
        if fitted is not None:
            recipe = recipe.changed(scale=fitted.scale)
        live = None
        if args.tensorboard and distributed.is_main():
            live = tensorboard.Live(out, out / "tensorboard")
        more = dataset.unlabelled and f", and {len(dataset.unlabelled):,} without labels"
        print(f"{args.arch} on {args.dataset}, {recipe.method} pruning, on {options.device} -> "
              f"{out}\n{len(dataset.train):,} training and {len(dataset.test):,} test images of "
              f"{dataset.num_classes} classes{more or ''}"
              + (f"\n{recipe.fit()}" if recipe.fitted_to and fitted is None else "")
              + f"\nto watch: tensorboard --logdir {out / 'tensorboard'}" * args.tensorboard,
              flush=True)
        pipeline.run(pipeline.Settings(
            recipe, dataset, out, args.seeds, baseline, shared, args.pretrained, options,
            args.fresh, live, latency=measured, budget=fitted, root=args.data,
            choose=folder and dataset.val is not None))  # else kesi is what a run is for
        if measured is not None:  # in all processes, which measure together; the first speaks
            print(faster.reached(measured, out / f"seed{args.seeds[0]}").text(), flush=True)
        if baseline is None:  # the second method starts from the same one
            baseline = str(out / "seed{seed}" / BASELINE)
            args.pretrained = None
    if not args.no_report and distributed.is_main():
        out = (args.save or _folder(args, args.method)) / "report"
        print(report.report(list(folders.values()), out).text)
    if folder and distributed.is_main():
        for out in folders.values():
            command = ["kesi", *entry.added(args), "export", str(out), "--out",
                       f"{out.name}-network"]
            print(f"the network: {stage_of(out)}; to hand it over:\n    {shlex.join(command)}")


def _check_folder(folder: Path) -> None:
    """Raises UsageError where a baseline cannot be trained in ``folder``: a file is in the way."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"--baseline-folder: {path} is a file: name a folder")


def _warn_of_small(folder: Path, size: int) -> None:
    """Say that a network would see images at less than a quarter of their size, unasked."""
    side = shorter_side(folder / "train")
    if side is not None and side > 4 * size:
        warnings.warn(f"the images are about {side} px, and the network sees them at {size}: "
                      "--image-size takes another size, and --photos of kesi compress, or "
                      "tinyimagenet/pipeline.py, is for photographs at 224 px", stacklevel=2)


def _folder(args, method: str) -> Path:
    """Where the run of a method goes; of both, each has a folder of its own in --save. Without
    --save, "both" is where the report of both goes."""
    if args.save is None:
        return Path("runs", f"{args.dataset}-{args.arch}-{method}")
    return args.save / method if args.method == flags.BOTH else args.save
