"""Commands about runs: plan, report, verify, tensorboard; and about finished studies: pool."""

import csv
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kesi.cli import entry, flags
from kesi.method.plan import sizes, table
from kesi.method.snapshot import BASELINE, KESI, chain
from kesi.report import published, studies
from kesi.report.page import page
from kesi.report.report import report as write_report
from kesi.report.tables import Table
from kesi.report.verify import images_of
from kesi.report.verify import verify as verify_run
from kesi.report.verify.publication import verify as verify_published
from kesi.runs.results import load_runs
from kesi.system import execution
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.system.files import write_text
from kesi.system.provenance import device_name
from kesi.tools.compare import compare
from kesi.tools.formats import load_with_metadata
from kesi.tools.latency import BATCHES
from kesi.tools.tensorboard import write_events


def plan(argv: Sequence[str] | None = None) -> None:
    """What a recipe will give, before any training:
    the sizes of every round.

        kesi plan --arch vgg16 --dataset cifar10 --method filter
        kesi plan --arch resnet34 --dataset tinyimagenet --method filter --csv
    """
    parser = entry.parser(plan.__doc__, "kesi plan")
    data, method, _, _, output = flags.groups(parser)
    data.add_argument("--dataset", choices=flags.DATASETS, default="cifar10",
                      help="default: %(default)s")
    data.add_argument("--num-classes", type=int, metavar="N",
                      help="classes of an imagefolder (default: 10); other data sets know theirs")
    data.add_argument("--image-size", type=flags.pixels, metavar="PX",
                      help="default: the data set's")
    flags.add_network(method)
    flags.add_rounds(method)
    output.add_argument("--csv", action="store_true",
                        help="print round,params,nonzero_params,macs,macs_saved")
    args = parser.parse_args(argv)
    family = flags.INFO[args.dataset].family
    recipe, measured = flags.recipe_for(args, family)
    rows = sizes(recipe, *flags.classes_and_size(args, family))
    if args.csv:
        writer = csv.DictWriter(sys.stdout, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    else:
        print(table(rows) + (f"\n{measured.text()}" if measured else ""))



def report(argv: Sequence[str] | None = None) -> None:
    """The paper's table from finished runs, beside the paper's own figures,
    with plots and every result as CSV.

        kesi report runs/cifar10-resnet56-filter
        kesi report runs/digits-resnet20-filter runs/digits-resnet20-weight --out results/digits
        kesi report runs/digits-resnet20-filter --html

    Runs of one network and one data set make one table. A report can be made at any time: it shows
    what is finished and names what is not.
    """
    parser = entry.parser(report.__doc__, "kesi report")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="run folder, as cifar/pipeline.py writes it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report (default: "
                        "RUN/report; of several runs, beside them)")
    parser.add_argument("--data-name", metavar="TEXT",
                        help="what titles call the data set (default: its name)")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    parser.add_argument("--html", action="store_true",
                        help="also write report.html, one page with everything; for it networks "
                             "are timed here")
    parser.add_argument("--no-latency", action="store_true", help="measure no times")
    args = parser.parse_args(argv)
    made = write_report(args.runs, args.out, not args.no_plots, args.data_name)
    print(made.text)
    if args.html:
        times = None if args.no_latency else latencies(args.runs)
        print(f"page: {page(args.runs, made.out / 'report.html', args.data_name, latency=times)}")


def latencies(folders: Sequence[Path]) -> Table | None:
    """How long a forward pass takes here, of the networks of each run's first seed: baseline, last
    snapshot, KESI. None where no baseline and network after it are finished.
    """
    loaded = load_runs(folders)
    lines = []
    for run in loaded:
        last = chain(run.record.retrainings[0], run.record.rounds)[-1]
        seed = min((one for one, results in run.seeds.items() if BASELINE in results), default=None)
        if seed is None:
            continue
        paths = {stage: run.place(seed) / stage for stage in (BASELINE, last, KESI)
                 if stage in run.seeds[seed]}
        if len(paths) < 2:
            continue
        try:
            entries = compare(list(paths.values()), accuracy=False).entries
        except (KesiError, UsageError) as error:  # the records show without them
            warnings.warn(f"no latencies of {run.folder}: {first_line(error)}", stacklevel=2)
            continue
        prefix = f"{run.label}: " if len(loaded) > 1 else ""
        before = entries[0]
        for stage, one in zip(paths, entries, strict=True):
            lines.append([prefix + stage])
            for was, now in ((before.latency_1, one.latency_1),
                             (before.latency_128, one.latency_128)):
                lines[-1] += [f"{1e3 * now:.2f}", f"{was / now:.2f}x"]
    columns = ["network", *(text for batch in BATCHES
                            for text in (f"batch {batch} (ms)", f"speed-up at {batch}"))]
    notes = ["The median of one forward pass in torch, the networks in turn, on "
             f"{device_name('cpu')} when this page was made. Zeros of pruned weights are "
             "multiplied like others; a runtime such as onnxruntime has other times (kesi export)."]
    return Table("Latency here", columns, lines, notes) if lines else None


def verify(argv: Sequence[str] | None = None) -> None:
    """Check a finished run: that its files are whole and belong together,
    and that its figures come out again.

        kesi verify runs/cifar10-resnet56-filter
        kesi verify runs/cifar10-resnet56-filter --no-accuracy
        kesi verify results/digits

    A folder of kesi publish holds the networks of a few stages only; of the others the records are
    held against each other.

    Without --no-accuracy the images are needed, and every network classifies the test images once
    more. On the device and with the torch version of the run, accuracies have to be equal; on
    others they may differ by 0.1 % of the images, but two images at least. Exit code 1 if anything
    does not hold.
    """
    parser = entry.parser(verify.__doc__, "kesi verify")
    parser.add_argument("run", type=Path, metavar="RUN",
                        help="run folder, as cifar/pipeline.py writes it")
    flags.add_left_images(parser)
    parser.add_argument("--no-accuracy", action="store_true",
                        help="only look at the files; needs no images")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args(argv)
    device, left_out = execution.device_for(args.device), []
    shared = (args.run / published.PUBLISHED).is_file()
    run = published.runs_of(args.run)[0] if shared else args.run
    dataset = None if args.no_accuracy else images_of(run, flags.images_folder(args, run))
    if shared:
        checks, failures, without = verify_published(args.run, load_with_metadata, dataset,
                                                     device)
        left_out.append(without)
    else:
        found = verify_run(run, dataset, device)
        checks, failures = found.checks, found.failures
    for line in failures:
        print(f"FAILED {line}")
    if failures:
        raise KesiError(f"{len(failures)} of {checks} checks of {args.run} failed")
    left_out += ["accuracies were not recomputed"] * args.no_accuracy
    print(f"{args.run}: all {checks} checks hold" + f" ({'; '.join(left_out)})" * bool(left_out))



def tensorboard(argv: Sequence[str] | None = None) -> None:
    """The curves of a run as TensorBoard event files.

        kesi tensorboard runs/digits-resnet20-filter --logdir logs
        tensorboard --logdir logs

    A run may be finished or not; the same command again brings the files up to date, and an open
    TensorBoard shows it. There is one folder for each seed and stage, so that TensorBoard shows
    stages side by side.
    """
    parser = entry.parser(tensorboard.__doc__, "kesi tensorboard")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--logdir", type=Path, metavar="DIR", help="default: RUN/tensorboard")
    args = parser.parse_args(argv)
    logdir = args.logdir or args.run / "tensorboard"
    files = write_events(args.run, logdir)
    print(f"{len(files)} stages of {args.run}: tensorboard --logdir {logdir}")


def pool(argv: Sequence[str] | None = None) -> None:
    """Finished studies of the same variants, such as on several sets of images, as one table:
    each by itself, and the mean of their differences.

        kesi pool results/few-cifar10-jpeg results/few-imagenet100-32
        kesi pool runs/a runs/b --against kesi2 --out both.md

    Variants are the same where their names are. Of one set of images there is one study: kesi study
    --save takes more seeds into a folder that it has begun.
    """
    parser = entry.parser(pool.__doc__, "kesi pool")
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY",
                        help="a folder of kesi study, which has study.csv")
    parser.add_argument("--against", metavar="NAME", help="the variant that the others are held "
                        "against (default: the first of the first study)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table there, as "
                        "Markdown")
    args = parser.parse_args(argv)
    if len({one.resolve() for one in args.studies}) < max(2, len(args.studies)):
        raise UsageError("pool takes several studies, each once: what one says is in its study.md")
    short = {one.resolve().name for one in args.studies}
    found = {one.resolve().name if len(short) == len(args.studies) else str(one): studies.read(one)
             for one in args.studies}
    table = studies.pool(found, args.against or next(iter(next(iter(found.values())))))
    if args.out is not None:
        write_text(args.out, table.markdown().replace("## ", "# ", 1) + "\n")
    print(table.text())
    if args.out is not None:
        print(f"\ntable: {args.out}")
