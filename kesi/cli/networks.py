"""Commands about finished networks: compare, predict, landscape; export has a file of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.cli import entry
from kesi.cli.flags import ROOT, add_inputs, chosen_device, images_folder
from kesi.data import Dataset
from kesi.runs.lineage import check_classes, check_same_test
from kesi.runs.results import stage_of
from kesi.system import seeds
from kesi.system.errors import KesiError, UsageError, visible
from kesi.system.files import csv_text, make_folder, write_atomic, write_text
from kesi.system.provenance import device_name
from kesi.tools.compare import compare as compare_networks
from kesi.tools.compare import names as names_of
from kesi.tools.inputs import datasets_of, inputs_of
from kesi.tools.landscape import check_points, check_square, line, plane, same_shape
from kesi.tools.latency import MEDIAN
from kesi.tools.predict import Prediction, predict_images


def predict(argv: Sequence[str] | None = None) -> None:
    """What a network says of image files.

        kesi predict runs/imagefolder-resnet20-filter/seed0/kesi photo.jpg more-photos/ --top 3
        kesi predict kesi.pth.tar photos/ --csv > predictions.csv

    Images are cut, resized and scaled as test images were in training. A checkpoint of the released
    code does not say how: name its data set with --dataset.
    """
    parser = entry.parser(predict.__doc__, "kesi predict")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                        help="a checkpoint, the folder of its stage, or that of a run")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE",
                        help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=3, metavar="N",
                        help="classes to show (default: %(default)s)")
    parser.add_argument("--csv", action="store_true",
                        help="print file,rank,class,label,probability")
    add_inputs(parser)
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UsageError(f"--top must be at least 1, not {args.top}")
    checkpoint = checkpoints.load(stage_of(args.checkpoint), args.arch)
    # a checkpoint that came out of a run says all of its images itself
    inputs = inputs_of(checkpoint, args.dataset, args.image_size, args.data or ROOT)
    unreadable: list[KesiError] = []
    found = predict_images(checkpoint, args.images, inputs, chosen_device(args), unreadable)
    if args.csv:
        _print_csv(found, args.top)
    else:
        for one in found:
            shares = zip(one.classes[:args.top], one.probabilities[:args.top], strict=True)
            said = ", ".join(f"{name} {share:.1%}" for name, share in shares)
            print(f"{visible(one.path)}: {said}", flush=True)
    if unreadable:
        others = (f"{len(unreadable)} of {len(found) + len(unreadable)} images were left out; "
                  "the first: ")
        raise KesiError(others * (len(found) + len(unreadable) > 1) + str(unreadable[0]))


def _print_csv(predictions: Sequence[Prediction], top: int) -> None:
    rows = [{"file": visible(one.path), "rank": rank, "class": name, "label": label,
             "probability": f"{share:.6f}"}
            for one in predictions for rank, (name, label, share) in enumerate(list(zip(
                one.classes, one.labels, one.probabilities, strict=True))[:top], start=1)]
    if rows:
        print(csv_text(rows), end="")


def compare(argv: Sequence[str] | None = None) -> None:
    """Checkpoints side by side: size, MACs, latency, accuracy, and how often they say the same.

        kesi compare runs/R/seed0/baseline runs/R/seed0/kesi
        kesi compare a.pth.tar b.pth.tar c.pth.tar --dataset cifar10 --csv comparison.csv

    Latency is the median of one forward pass in torch on this machine, the checkpoints in turn. It
    and the MACs of a weight-pruned network are those of the dense one: zeros are multiplied like
    other weights.
    """
    parser = entry.parser(compare.__doc__, "kesi compare")
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT",
                        help="checkpoints, the folders of their stages, or those of runs")
    add_inputs(parser)
    parser.add_argument("--no-download", action="store_true",
                        help="never ask the network for a data set")
    parser.add_argument("--no-accuracy", action="store_true",
                        help="needs no images: sizes and latencies only")
    parser.add_argument("--no-latency", action="store_true", help="measure no times")
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.csv is not None:  # a bare --csv, as of other commands, takes the first checkpoint
        entry.refuse_checkpoint("--csv", args.csv, ".csv")
    device = chosen_device(args)
    paths = [stage_of(path) for path in args.checkpoints]
    root = (args.data or ROOT) if args.no_accuracy else images_folder(args, paths[0])
    found = compare_networks(paths, args.arch, args.dataset, root, args.image_size,
                             accuracy=not args.no_accuracy, clock=not args.no_latency,
                             download=not args.no_download, device=device,
                             chosen=args.data is not None)
    print(found.text())
    if not args.no_latency:
        print(f"latency: {MEDIAN}, in torch, {device_name(device)}")
    if args.csv is not None:
        write_text(args.csv, found.csv())



LINE = {"points": 11}  # what only a line, and only a plane, has; and what it has unless said

PLANE = {"radius": 1.0, "grid": 9, "seed": 0}


def _lines(loaded: Sequence[Checkpoint], dataset: Dataset, args, device: str) -> None:
    """The lines between checkpoints, to line.csv and line.png."""
    split, names, rows = dataset.test.spread(args.images), names_of(loaded), []
    for place, (one, other) in enumerate(zip(loaded, loaded[1:], strict=False)):
        for point in line(one.network, other.network, dataset, split, args.points,
                          recompute_bn=args.recompute_bn, device=device):
            rows.append({"from": names[place], "to": names[place + 1], **asdict(point)})
        segment = rows[-args.points:]
        ends = max(segment[0]["loss"], segment[-1]["loss"])
        worst = max(segment, key=lambda row: row["loss"])
        print(f"{names[place]} -> {names[place + 1]}: loss {segment[0]['loss']:.4f} "
              f"and {segment[-1]['loss']:.4f} at the ends, at most {worst['loss']:.4f} (barrier "
              f"{worst['loss'] - ends:.4f}) at {worst['position']:.2f}, "
              f"accuracy {worst['accuracy']:.2f} % there")
    write_text(args.out / "line.csv", csv_text(rows))
    print(args.out / "line.csv")
    _draw(args.out / "line.png", "line_figure", rows, names,
          f"{len(split):,} test images of {dataset.name}")


def _plane(checkpoint: Checkpoint, dataset: Dataset, args, device: str) -> None:
    """The plane around a checkpoint, to plane.csv and plane.png."""
    split = dataset.test.spread(args.images)
    found = plane(checkpoint.network, dataset, split, args.radius, args.grid, seed=args.seed,
                  recompute_bn=args.recompute_bn, device=device)
    write_text(args.out / "plane.csv", csv_text([asdict(point) for point in found]))
    print(args.out / "plane.csv")
    _draw(args.out / "plane.png", "plane_figure", found, names_of([checkpoint])[0],
          f"{len(split):,} test images of {dataset.name}")



def landscape(argv: Sequence[str] | None = None) -> None:
    """Loss and accuracy between checkpoints, and around one.

        kesi landscape runs/R/seed0/baseline runs/R/seed0/onecycle-1 --out landscape
        kesi landscape --plane runs/R/seed0/kesi --radius 1 --grid 9 --out landscape

    Along the straight line from each network to the next one, which have to be of one shape:
    weight-pruned networks and their baseline are, filter-pruned ones of different rounds are not.
    And with --plane in two random directions around a network, each filter of a direction scaled to
    the norm of the network's own (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets",
    section 4); biases and batch norms stay, and so do the zeros of a weight-pruned network.

    The running statistics of batch norm are interpolated as the weights are. They then belong to no
    network exactly: the activations of averaged weights are not the average of activations, and a
    barrier may be nothing but that. --recompute-bn estimates them anew at every point from training
    images, as Garipov et al. 2018 ("Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs")
    and Izmailov et al. 2018 ("Averaging Weights Leads to Wider Optima and Better Generalization")
    do.
    """
    parser = entry.parser(landscape.__doc__, "kesi landscape")
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT",
                        help="two or more, of one shape: the line goes from each to the next")
    parser.add_argument("--points", type=int, metavar="N",
                        help=f"points of a line (default: {LINE['points']})")
    parser.add_argument("--plane", type=Path, metavar="CHECKPOINT",
                        help="also look around this one")
    parser.add_argument("--radius", type=float, metavar="R",
                        help=f"how far, in norms of the filters (default: {PLANE['radius']})")
    parser.add_argument("--grid", type=int, metavar="N",
                        help=f"N x N points (default: {PLANE['grid']})")
    parser.add_argument("--seed", type=seeds.seed,
                        help=f"of the directions (default: {PLANE['seed']})")
    parser.add_argument("--images", type=int, metavar="N",
                        help="test images to look at (default: all)")
    parser.add_argument("--recompute-bn", action="store_true", help="estimate batch norm's "
                        "statistics anew at every point, from training images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="for line.* and plane.*")
    add_inputs(parser)
    parser.add_argument("--no-download", action="store_true",
                        help="never ask the network for a data set")
    args = parser.parse_args(argv)
    if len(args.checkpoints) == 1 or not (args.checkpoints or args.plane):
        raise UsageError("a line needs two checkpoints or more, a plane --plane CHECKPOINT")
    if args.images is not None and args.images < 1:
        raise UsageError(f"--images must be at least 1, not {args.images}")
    for defaults, there, needed in ((LINE, args.checkpoints, "two checkpoints or more"),
                                    (PLANE, args.plane, "--plane")):
        for name, default in defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, default)
            elif not there:
                raise UsageError(f"--{name} does nothing here: it goes with {needed}")
    check_points(args.points)
    check_square(args.radius, args.grid)
    device = chosen_device(args)
    loaded = [checkpoints.load(path, args.arch) for path in args.checkpoints]
    around = [checkpoints.load(path, args.arch) for path in (args.plane,) if path is not None]
    if args.data is None:
        check_same_test([*loaded, *around])
    args.data = images_folder(args, (args.checkpoints or [args.plane])[0])
    for one, other in zip(loaded, loaded[1:], strict=False):
        same_shape(one.network.state_dict(), other.network.state_dict())
    looking = [*loaded[:1], *around]
    images = datasets_of(looking, [inputs_of(one, args.dataset, args.image_size, args.data)
                                   for one in looking], args.data, not args.no_download)
    for one in loaded[1:]:
        check_classes(one, images[0])
    make_folder(args.out)  # when nothing is wrong, and before anything is computed
    if loaded:
        _lines(loaded, images[0], args, device)
    if around:
        _plane(around[0], images[-1], args, device)


def _draw(path: Path, draw: Callable, *arguments: object) -> None:
    """A plot, or how to get it."""
    try:
        from kesi.tools import landscape_plots
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print('no plots, since matplotlib is not installed: pip install -e ".[plots]"')
        return
    figure = getattr(landscape_plots, draw)(*arguments)
    write_atomic(path, lambda file: landscape_plots.save(figure, file))
    print(path)
