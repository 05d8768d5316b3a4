"""kesi export: a finished network for other programs, people and browsers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from kesi import checkpoints
from kesi.checkpoints.checkpoint import EXPORTED, Checkpoint
from kesi.cli import entry
from kesi.cli.flags import add_inputs, chosen_device, images_folder
from kesi.data.split import height_width
from kesi.method.sizes import channels_of, parameters
from kesi.runs import lineage
from kesi.runs.results import stage_of
from kesi.system.errors import UsageError
from kesi.system.provenance import device_name
from kesi.tools import export as files
from kesi.tools.compare import Table, baseline_of, compared
from kesi.tools.export import BATCHES, Exported
from kesi.tools.formats import FORMATS, OPSET
from kesi.tools.handover.folder import hand_over, runtime
from kesi.tools.inputs import Inputs, inputs_of, pictures_only
from kesi.tools.latency import MEDIAN


def export(argv: Sequence[str] | None = None) -> None:
    """A checkpoint as a folder to hand over, or as one file that other programs run.

        kesi export runs/digits-resnet20-filter --out my-network --int8
        kesi export runs/digits-resnet20-filter/seed0/kesi --out kesi.onnx
        kesi export runs/digits-resnet20-weight/seed0/kesi --out kesi.safetensors --sparse

    The folder has the network for onnxruntime, its weights for kesi.from_pretrained, a model card
    and a program of a page that classifies image files without torch; with --web also a page that
    does so in a browser. An existing folder is never written to.

    A file, by its ending or --format: onnx, opset 18; pt2 for torch.export.load; safetensors, the
    weights and what network they belong to. onnx and pt2 take float32 images (batch, C, H, W) of
    any number, RGB or grey scaled to 0..1, and give logits (batch, classes); normalisation is
    inside. With --raw they take images that are normalised already.

    What is written is loaded again and run on test images at several batch sizes, and kept only if
    it agrees with the checkpoint. --int8 adds a quantised network (static, by onnxruntime, with
    training images for the ranges), which cannot agree to the last digit: its accuracy stands in
    the table. What compression is worth in bytes and milliseconds is what this table measures,
    beside the baseline.
    """
    args = _parser().parse_args(argv)
    ending = args.out.suffix.lower()
    kind = args.format or (ending[1:] if ending in EXPORTED else None)
    _check(args, kind)
    web = runtime(Path(args.web) if args.web else None) if args.web is not None else None
    chosen_device(args)  # the CPU, with as many --threads
    if (network := stage_of(args.checkpoint)) != args.checkpoint:
        args.checkpoint = network
        print(f"the network that the run hands over: {network}")
    checkpoint = checkpoints.load(args.checkpoint, args.arch)
    if kind is None:
        pictures_only(checkpoint.network)  # before anything is said of its images
    args.data = images_folder(args, args.checkpoint)
    inputs = inputs_of(checkpoint, args.dataset, args.image_size, args.data)
    baseline = baseline_of(checkpoint, args.baseline, args.arch)
    if baseline is not None:
        _check_baseline(baseline, checkpoint, inputs)
    clock = not args.no_latency
    if kind is None:
        done = hand_over(checkpoint, inputs, args.out, baseline=baseline, int8=args.int8, web=web,
                         sparse=args.sparse, root=args.data, clock=clock)
        made, table = done.files, done.table
    else:
        ranges = (files.calibration_images(checkpoint, inputs, args.data, args.raw)
                  if args.int8 else None)
        made = [files.export(checkpoint, inputs, args.out, kind, raw=args.raw, sparse=args.sparse,
                             root=args.data)]
        if args.int8:
            small = args.out.with_name(f"{args.out.stem}-int8{args.out.suffix}")
            made.append(files.export_int8(checkpoint, inputs, args.out, small, ranges,
                                          raw=args.raw, root=args.data))
        table = compared(checkpoint, baseline, made, inputs, kind, raw=args.raw, root=args.data,
                         clock=clock)
    print(*described(checkpoint, inputs, made, kind or "onnx", args), sep="\n")
    if clock:
        engine = "onnxruntime" if kind in (None, "onnx") else "torch"
        print(f"latency: {MEDIAN}, in {engine}, {device_name('cpu')}")
    print(*table.text(), *remarks(table, lineage.method_of(checkpoint)), sep="\n")
    if baseline is None:
        print("no baseline to compare with: this is one, or none was found beside the checkpoint "
              "(name it with --baseline)")
    others = f" and {made[1].path.name}" if kind and args.int8 else ""
    print(f"written to {args.out}{others}")
    if web is not None:
        print(f"in a browser: python -m http.server --directory {args.out}, then "
              "http://localhost:8000")


def _parser() -> argparse.ArgumentParser:
    parser = entry.parser(export.__doc__, "kesi export")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                        help="a checkpoint, the folder of its stage, or that of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER|FILE",
                        help="a file ends in .onnx, .pt2 or .safetensors")
    parser.add_argument("--format", choices=FORMATS,
                        help="a file of this format, whatever its ending")
    parser.add_argument("--int8", action="store_true",
                        help="also quantised, with training images for calibration (folder, onnx)")
    parser.add_argument("--web", nargs="?", const="", metavar="FOLDER",
                        help="also a page for the browser, with onnxruntime-web from this folder "
                             "(default: node_modules, here or above); of a folder only")
    parser.add_argument("--raw", action="store_true", help="take normalised images (onnx, pt2)")
    parser.add_argument("--sparse", action="store_true",
                        help="keep the non-zero weights of weight-pruned convolutions only "
                             "(safetensors)")
    parser.add_argument("--baseline", type=Path, metavar="FILE",
                        help="to compare with (default: the checkpoint's own, where it is still in "
                             "its run)")
    parser.add_argument("--no-latency", action="store_true", help="measure no times")
    add_inputs(parser, device=False)
    return parser


def _check(args: argparse.Namespace, kind: str | None) -> None:
    """Raises UsageError for flags that do not go with what is to be written."""
    if kind is not None:
        entry.refuse_checkpoint("--out", args.out, f".{kind}")
    if args.raw and kind is None:
        raise UsageError("--raw goes with a file: the programs in a folder feed images from 0 to 1 "
                         "(--out FILE.onnx)")
    if args.web is not None and kind is not None:
        raise UsageError("--web goes with a folder: --out FOLDER, without --format")
    if args.int8 and kind not in (None, "onnx"):
        raise UsageError(f"--int8 goes with a folder or an onnx file, not with {kind}")


def _check_baseline(baseline: Checkpoint, checkpoint: Checkpoint, inputs: Inputs) -> None:
    """Raises UsageError for a baseline that cannot take the place of the network that is exported:
    it answers with other classes, or does not take the same images."""
    theirs, ours = baseline.network, checkpoint.network
    classes = [list(one.info.data.get("classes") or ()) for one in (baseline, checkpoint)]
    side = min(height_width(inputs.image_size))
    if theirs.num_classes != ours.num_classes:
        other = f"knows {theirs.num_classes} classes, and {checkpoint.path} {ours.num_classes}"
    elif all(classes) and classes[0] != classes[1]:
        other = f"knows other classes than {checkpoint.path}"
    elif channels_of(theirs) != channels_of(ours):
        other = (f"takes images of {channels_of(theirs)} channel(s), and {checkpoint.path} of "
                 f"{channels_of(ours)}")
    elif theirs.min_image_size > side:
        other = f"needs images of {theirs.min_image_size} px or more, and these have {side}"
    else:
        return
    raise UsageError(f"the baseline {baseline.path} {other}: name the network that it was made "
                     "from with --baseline")


def described(checkpoint: Checkpoint, inputs: Inputs, made: Sequence[Exported], kind: str,
              args: argparse.Namespace) -> list[str]:
    """What was exported, and how it did."""
    raw = args.raw or kind == "safetensors"
    scaled = "0..1, then normalised as in training" if raw else "0..1 (normalisation is inside)"
    form = {"onnx": f"onnx, opset {OPSET}",
            "pt2": f"pt2 (torch.export) of torch {torch.__version__}",
            "safetensors": f"safetensors, {'sparse' if args.sparse else 'dense'}"}[kind]
    check, total = made[0].check, parameters(checkpoint.network)
    shape = ", ".join(map(str, (inputs.channels, *height_width(inputs.image_size))))
    colours = {1: "grey ", 3: "RGB "}.get(inputs.channels, "")
    zeros = checkpoint.masks.pruned() if checkpoint.masks else 0
    *ran, largest = sorted({min(batch, check.images) for batch in (*BATCHES, check.images)})
    lines = [f"{checkpoint.network.arch}, {checkpoint.network.num_classes} classes, "
             f"{total - zeros:,} non-zero of {total:,} parameters; {form}",
             f"input: float32 (batch, {shape}), {colours}scaled to {scaled}; output: logits "
             f"(batch, {checkpoint.network.num_classes})",
             f"checked on {check.images} {check.source}",
             f"max abs difference to the checkpoint {check.difference:.2g} in logits up to "
             f"{check.largest:.3g}, the same class on {check.equal} of {check.images}; batches of "
             f"{', '.join(map(str, ran))}{' and ' * bool(ran)}{largest} ran"]
    if len(made) > 1:
        lines.append(f"int8: the same class on {made[1].check.equal} of {made[1].check.images}")
    return lines


def remarks(table: Table, method: str | None) -> list[str]:
    """What the measured figures say that somebody might not expect."""
    if table.columns[0] != "baseline":
        return []
    times = [(what, values) for what, values in table.rows if "latency" in what]
    lines = []
    for place, name in enumerate(table.columns[1:], start=1):
        # the batch sizes at which it is slower
        slow = [what.split()[2] for what, values in times if values[place] > values[0]]
        if slow and not (method == "weight" and name == "compressed"):
            lines.append(f"{name} is not faster here at batch {', '.join(slow)}: less work need "
                         "not be less time, and times wander on a busy machine")
    if method == "weight":
        deflated = next(values for what, values in table.rows if "deflated" in what)
        slow = "".join(f"; {what.partition(' (')[0]}: {values[1]:.2f} ms, the baseline's "
                       f"{values[0]:.2f} ms" for what, values in times)
        lines.append("weight pruning makes the file smaller when compressed "
                     f"({deflated[1]:,.1f} kB deflated, the baseline's {deflated[0]:,.1f} kB), not "
                     f"the network faster on dense hardware{slow}")
    return lines
