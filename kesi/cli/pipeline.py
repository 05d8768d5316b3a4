"""What the script of the whole pipeline does: it reads its flags, and runs all five steps with the recipe they give."""

from collections.abc import Sequence
from pathlib import Path

from kesi.cli import entry, flags
from kesi.data import INFO
from kesi.method import plan, recipes
from kesi.method.distillation import LOSSES
from kesi.report import report
from kesi.runs import pipeline
from kesi.system import distributed, seeds
from kesi.system.errors import UsageError
from kesi.tools import tensorboard


def run(argv: Sequence[str] | None = None) -> None:
    """All five steps: train, prune, retrain with one cycle, repeat, distil the snapshots into the last one.

        kesi run --arch resnet20 --dataset digits
        kesi run --arch resnet56 --dataset cifar10 --method filter --compare --seeds 0 1 2
    """
    run_pipeline(run.__doc__, "cifar", argv, "kesi run")


def run_pipeline(doc: str, family: str, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """All five steps from the command line, of a script for images of one size or the other."""
    tiny = family == "tinyimagenet"
    parser = entry.parser(doc, prog)
    flags.add_network(parser, "resnet18" if tiny else "resnet56")
    flags.add_data(parser, "tinyimagenet" if tiny else "cifar10", family)
    flags.add_pretrained(parser)
    parser.add_argument("--seeds", type=seeds.seed, nargs="+", default=[0], metavar="N", help="default: 0")
    parser.add_argument("--compare", nargs="*", metavar="NAME", default=False,
                        help="also retrain in these other ways, for all rows of the paper's table (without a "
                             f"NAME: in all: {', '.join(list(recipes.RETRAININGS)[1:])})")
    parser.add_argument("--save", type=Path, metavar="DIR", help="default: runs/<dataset>-<arch>-<method>")
    flags.add_rounds(parser)
    parser.add_argument("--epochs", type=int, nargs=3, metavar=("BASELINE", "RETRAIN", "DISTILL"),
                        help="epochs of the stages, instead of the recipe's")
    parser.add_argument("--epochs-scale", type=float, metavar="X",
                        help="multiply the epochs of every stage (default: 1)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of every stage, instead of the recipe's")
    parser.add_argument("--lr", type=float, help="of the baseline, and the peak of one-cycle retraining")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the paper's 5")
    parser.add_argument("--loss", metavar="NAME",
                        help=f"what the student is told: {', '.join(LOSSES)} (default: kl, the paper's)")
    parser.add_argument("--model", metavar="FILE",
                        help="start from this trained baseline; {seed} in the path stands for the seed")
    parser.add_argument("--num-classes", type=int, metavar="N", help="for --dry-run of an imagefolder")
    parser.add_argument("--dry-run", action="store_true", help="print stages, sizes and work; touch nothing")
    parser.add_argument("--fresh", action="store_true", help="start over; the old run is moved aside")
    parser.add_argument("--no-report", action="store_true", help="leave the table and the plots to kesi.report")
    parser.add_argument("--tensorboard", action="store_true",
                        help="write event files to <save>/tensorboard as well, epoch by epoch")
    flags.add_run(parser)
    args = parser.parse_args(argv)
    if args.model and args.pretrained:
        raise UsageError("--model is a trained baseline, --pretrained what to train one from: give one of them")
    if args.compare == []:
        args.compare = True
    recipe = flags.recipe_for(args, family)
    folder = args.save or Path("runs", f"{args.dataset}-{args.arch}-{args.method}")
    if args.dry_run:
        info = INFO.get(args.dataset)
        print(plan.overview(recipe, *flags.classes_and_size(args, family, args.data),
                            info and info.train_images, args.seeds, folder))
        return
    options = flags.options_for(args)
    live = None
    if args.tensorboard and distributed.is_main():
        live = tensorboard.Live(folder, folder / "tensorboard")
    settings = pipeline.Settings(recipe, flags.dataset_for(args, family), folder, args.seeds, args.model,
                                 args.pretrained, options, args.fresh, live)
    images = settings.dataset
    print(f"{args.arch} on {args.dataset}, {args.method} pruning, on {options.device} -> {folder}\n"
          f"{len(images.train):,} training and {len(images.test):,} test images of {images.num_classes} classes"
          + f"\nto watch: tensorboard --logdir {folder / 'tensorboard'}" * args.tensorboard, flush=True)
    pipeline.run(settings)
    if not args.no_report and distributed.is_main():
        made = report.report([folder])
        print(made.text)
