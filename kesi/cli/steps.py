"""What the scripts of single steps do: each reads its flags,
and calls one stage with the recipe they give."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.cli import entry, flags
from kesi.method import recipes
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import LOSSES, check_labels
from kesi.method.pruning.criteria import CRITERIA, Evidence
from kesi.method.pruning.weights import conv_weights
from kesi.method.snapshot import ENSEMBLE, KESI, StageName
from kesi.method.training import evaluate
from kesi.runs import lineage, steps
from kesi.runs.folder import note_images
from kesi.runs.lineage import snapshots_of
from kesi.runs.record import CHECKPOINT, PRUNED
from kesi.runs.resume import STATE
from kesi.runs.stage import Context
from kesi.system.errors import UsageError


def train(doc: str, family: str) -> None:
    """Step 1 from the command line."""
    parser = entry.parser(doc)
    default = "resnet18" if family == "tinyimagenet" else "resnet56"
    flags.add_network(parser, default)
    flags.add_data(parser, "tinyimagenet" if family == "tinyimagenet" else "cifar10", family)
    flags.add_pretrained(parser)
    flags.add_seed_and_save(parser, "runs/<dataset>-<arch>-<method>/seed<seed>/baseline")
    flags.add_stage(parser)
    flags.add_run(parser)
    parser.add_argument("--evaluate", type=Path, metavar="FILE",
                        help="only tell the test accuracy of this checkpoint")
    args = parser.parse_args(namespace=Namespace(arch=None))  # so that it is seen if one is given
    given, args.arch = args.arch, args.arch or default
    recipe = recipes.recipe(args.arch, args.dataset, args.method, family)
    training, options = flags.training_for(args, recipe.baseline), flags.options_for(args)
    if args.evaluate is not None:
        path = checkpoints.find(args.evaluate)
        said = checkpoints.load(path, given).info.data
        _tell(path, flags.dataset_for(args, family, said), options.device, given)
        return
    folder = (args.save or Path("runs", f"{args.dataset}-{args.arch}-{args.method}",
                                f"seed{args.seed}", "baseline"))
    resume = _given_state(args)
    context = Context(flags.dataset_for(args, family), args.seed, options, args.fresh,
                      resume=resume)
    steps.train_baseline(context, args.arch, training, folder, args.pretrained)
    note_images(folder, args.dataset, args.data)


def prune(doc: str, family: str, method: str) -> None:
    """Step 2 from the command line."""
    parser = entry.parser(doc)
    parser.add_argument("--model", required=True, type=Path, metavar="FILE", help="the network to "
                        "prune: a checkpoint, or the folder of the stage that wrote it")
    parser.add_argument("--arch", metavar="NAME",
                        help="needed only where the checkpoint does not tell")
    what = ("the share of filters to remove: one for all layers, or one a width" if method
            == "filter" else "the cumulative share of convolution weights that is zero afterwards")
    parser.add_argument("--percent", type=float, nargs="+", metavar="SHARE",
                        help=f"{what} (default: the paper's for this network and round)")
    parser.add_argument("--criterion", metavar="NAME",
                        help=f"what goes first: {', '.join(CRITERIA[method])} (default: "
                             f"{recipes.METHODS[method]}, the paper's)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="where pruned.pth.tar goes "
                        "(default: onecycle-<round> beside the model's folder)")
    parser.add_argument("--evaluate", action="store_true",
                        help="tell the test accuracy before and after")
    flags.add_data(parser, None, family)
    flags.add_look(parser)
    args = parser.parse_args()
    parent = checkpoints.load(args.model, args.arch)
    args.dataset = args.dataset or _dataset_of(parent)
    device = flags.machine_for(args)
    recipe = recipes.recipe(parent.network.arch, args.dataset or "", method, family).changed(
        criterion=args.criterion)
    number = lineage.round_of(parent, recipe) + 1
    amount = _amount(args.percent, method, recipe, number)
    known = parent.info.kind in recipes.RETRAININGS
    kind = parent.info.kind if known else recipes.OWN
    folder = args.save or parent.path.parent.parent / StageName(kind, number).text

    def images():
        _need_dataset(args)
        return flags.dataset_for(args, family, parent.info.data)

    evidence = Evidence(images, parent.info.seed or 0)
    if args.evaluate:
        dataset = images()
        before = evaluate(lineage.fitting(parent.path, dataset, args.arch).network, dataset,
                          dataset.test, device)
    known = _pruned_already(folder / PRUNED, parent)
    pruned = steps.prune(parent, recipe, amount, folder, number, evidence)
    print(f"round {pruned.round}: {_size(parent)} -> {_size(pruned)}, "
          f"{'there already:' if known else 'written to'} {pruned.path}")
    if args.evaluate:
        after = evaluate(pruned.network, dataset, dataset.test, device)
        print(f"test accuracy {before[1]:.2f} % before, {after[1]:.2f} % after pruning")


def _pruned_already(path: Path, parent: Checkpoint) -> bool:
    """Whether prune.py was here: what was retrained from its file would not know another.
    Raises UsageError then."""
    if path.is_file() and not parent.is_named_by(checkpoints.load(path).info.parent):
        raise UsageError(f"{path} was pruned with another network (now {parent.path}): use another "
                         f"--save, or remove it")
    return path.is_file()


def finetune(doc: str, family: str) -> None:
    """Step 3 from the command line."""
    parser = entry.parser(doc)
    _add_refine(parser, "the pruned network to retrain: prune.py's file, or its folder")
    parser.add_argument("--no-onecycle", action="store_true",
                        help="the usual retraining at a small constant learning rate")
    args = _parse_retraining(parser, "the folder of --refine", family)
    parent = _refined(args, PRUNED)
    recipe = recipes.recipe(parent.network.arch, args.dataset,
                            lineage.method_of(parent) or "filter", family)
    name = "usual" if args.no_onecycle else recipes.OWN
    training = flags.training_for(args, recipe.retrainings[name])
    options = flags.options_for(args)
    dataset = flags.dataset_for(args, family, parent.info.data)
    if args.evaluate:
        _tell(parent.path, dataset, options.device, args.arch)
        return
    if lineage.method_of(parent) is None:
        raise UsageError(f"{parent.path} was never pruned: run prune.py on it first")
    if parent.info.kind not in (None, "pruned"):
        raise UsageError(f"{parent.path} is retrained already ({parent.name}): give the "
                         "pruned.pth.tar of prune.py")
    folder = args.save or parent.path.parent
    context = Context(dataset, args.seed, options, args.fresh, resume=_given_state(args))
    lineage.fitting(parent.path, dataset, args.arch)
    lineage.warn_of_other_images(parent, dataset)
    steps.retrain(context, training, parent, folder)
    note_images(folder, args.dataset, args.data)


def ensemble_finetune(doc: str, family: str, checkpoint_paths: Sequence[str] = ()) -> None:
    """Step 5 from the command line."""
    parser = entry.parser(doc)
    _add_refine(parser, "the last snapshot, which becomes the student: its file, or its folder")
    parser.add_argument("--teachers", nargs="+", type=Path, metavar="FILE",
                        help="the members of the ensemble (default: checkpoint_paths at the head "
                             "of this script, or "
                             "else the baseline and all snapshots that --refine descends from)")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the paper's 5")
    parser.add_argument("--loss", metavar="NAME", help="what the student is told: "
                        f"{', '.join(LOSSES)} (default: kl, the paper's)")
    flags.add_unlabelled(parser)
    args = _parse_retraining(parser, "kesi beside the folder of --refine", family)
    parent = _refined(args, CHECKPOINT)
    recipe = recipes.recipe(parent.network.arch, args.dataset,
                            lineage.method_of(parent) or "filter", family)
    recipe = recipe.changed(temperature=args.temperature, loss=args.loss)
    training, options = flags.training_for(args, recipe.distillation), flags.options_for(args)
    if lineage.method_of(parent) is None and not args.evaluate:
        raise UsageError(f"{parent.path} was never pruned: --refine takes the last pruned and "
                         "retrained snapshot")
    if args.teachers or checkpoint_paths:
        paths, how = [checkpoints.find(path) for path in args.teachers or checkpoint_paths], "given"
    else:
        paths, how = [one.path for one in snapshots_of(parent)], f"found beside {parent.path}"
    check_labels(recipe.loss, args.unlabelled is not None, training.mixup)
    print(f"{len(paths)} teachers, {how}:", *paths, sep="\n  ", flush=True)
    dataset = flags.dataset_for(args, family, parent.info.data)
    # every one, before anything is computed
    teachers = [lineage.fitting(path, dataset, args.arch) for path in paths]
    lineage.fitting(parent.path, dataset, args.arch)
    lineage.warn_of_other_images(parent, dataset)
    context = Context(dataset, args.seed, options, args.fresh,
                      resume=None if args.evaluate else _given_state(args))
    folder = args.save or parent.path.parent.parent / KESI
    # a second one has other teachers
    beside = ENSEMBLE if folder.name == KESI else f"{ENSEMBLE}-{folder.name}"
    ensemble = steps.measure_ensemble(context, teachers,
                                      None if args.evaluate else folder.parent / beside)
    print(f"the ensemble's test accuracy: {ensemble.test_accuracy:.2f} %", flush=True)
    if args.evaluate:
        _tell(parent.path, dataset, options.device, args.arch)
        return
    objective = Distillation(SnapshotEnsemble(teachers, options.device), recipe.loss,
                             dataset.unlabelled is not None)
    steps.distill(context, training, objective, parent, folder)
    note_images(folder, args.dataset, args.data)


def _add_refine(parser, text: str) -> None:
    parser.add_argument("--refine", "--model", dest="refine", required=True, type=Path,
                        metavar="FILE", help=text)
    parser.add_argument("--arch", metavar="NAME",
                        help="needed only where the checkpoint does not tell")
    parser.add_argument("--evaluate", action="store_true", help="only tell test accuracies")


def _parse_retraining(parser, default_save: str, family: str):
    flags.add_data(parser, None, family)
    flags.add_seed_and_save(parser, default_save, None)
    flags.add_stage(parser)
    flags.add_run(parser)
    return parser.parse_args()


def _refined(args, prefer: str) -> Checkpoint:
    """The checkpoint of --refine; a folder means its file ``prefer``.
    Fills in --dataset and --seed from what it says."""
    path = args.refine / prefer if (args.refine / prefer).is_file() else args.refine
    checkpoint = checkpoints.load(path, args.arch)
    args.dataset = args.dataset or _dataset_of(checkpoint)
    _need_dataset(args)
    if args.seed is None:
        args.seed = checkpoint.info.seed or 0
    return checkpoint


def _dataset_of(checkpoint: Checkpoint) -> str | None:
    return checkpoint.info.data.get("name")


def _need_dataset(args) -> None:
    if args.dataset is None:
        raise UsageError(
            "the checkpoint does not say which images it was trained on: give --dataset")


def _amount(percent: list[float] | None, method: str, recipe: recipes.Recipe, number: int):
    """What prune.py removes: --percent, or the recipe's share for this round."""
    if percent is None:
        if method == "weight" and number > len(recipe.rounds):
            raise UsageError(f"the recipe has {len(recipe.rounds)} rounds and this is round "
                             f"{number}: give --percent")
        return recipe.rounds[min(number, len(recipe.rounds)) - 1]
    if method == "weight" and len(percent) > 1:
        raise UsageError("--percent takes one share, the sparsity after this round")
    return percent[0] if len(percent) == 1 else percent


def _size(checkpoint: Checkpoint) -> str:
    total = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    if checkpoint.masks is None:
        return f"{total:,} parameters"
    weights = sum(weight.numel() for weight in conv_weights(checkpoint.network).values())
    return (f"{total - checkpoint.masks.pruned():,} non-zero of {total:,} parameters "
            f"({checkpoint.masks.pruned() / weights:.1%} of the convolutions pruned)")


def _tell(path: Path, dataset, device: str, arch: str | None = None) -> None:
    checkpoint = lineage.fitting(path, dataset, arch)
    loss, accuracy = evaluate(checkpoint.network, dataset, dataset.test, device)
    print(f"{checkpoint.describe()}: test accuracy {accuracy:.2f} %, loss {loss:.4f}")


def _given_state(args) -> Path | None:
    """The state that --resume names. Raises UsageError where it is none."""
    if args.resume is None:
        return None
    if args.fresh:
        raise UsageError("--resume continues, --fresh starts over: give one of them")
    state = checkpoints.find(args.resume / STATE if args.resume.is_dir() else args.resume)
    if checkpoints.load(state).training is None:
        raise UsageError(f"{state} is not the state of an unfinished stage ({STATE})")
    return state
