"""kesi publish: finished runs as a folder for other people to look at, load and check."""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kesi import checkpoints
from kesi.cli import entry
from kesi.cli.flags import add_left_images, images_folder
from kesi.report import published
from kesi.report.page import page
from kesi.report.report import report
from kesi.runs.record import CHECKPOINT, METRICS, RESULT
from kesi.runs.results import Run, load_runs
from kesi.system.errors import UsageError
from kesi.system.files import make_folder, read_text, write_json, write_text
from kesi.tools.formats import load_with_metadata
from kesi.tools.handover.card import card, with_seeds
from kesi.tools.handover.folder import whole_folder, write_weights
from kesi.tools.inputs import inputs_of


def publish(argv: Sequence[str] | None = None) -> None:
    """Finished runs as a folder for others: all records, the networks that count, tables and page.

        kesi publish runs/digits-resnet20-filter runs/digits-resnet20-weight --out results/digits
        kesi verify results/digits
        kesi publish results/digits/filter runs/more-seeds --out results/digits-more

    Runs that differ in nothing but their seeds are published as one, also with those that have been
    published before. Of the first seed that has finished them all, baseline, last snapshot and the
    network of KESI are written as safetensors with a model card each; kesi.from_pretrained reads
    them. Of every stage the record and the epochs are kept, without where files lay on this
    machine. kesi verify checks such a folder and, for whoever has the images, computes the
    accuracies of its networks anew.
    """
    parser = entry.parser(publish.__doc__, "kesi publish")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="run folder, as kesi run writes it, or the folder of a published run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    add_left_images(parser)
    parser.add_argument("--data-name", metavar="TEXT",
                        help="what titles call the data set (default: its name)")
    parser.add_argument("--across-code", action="store_true",
                        help="seeds are one run also where the code of a loss, criterion or "
                             "schedule has changed between them, which the tables say")
    args = parser.parse_args(argv)
    runs = load_runs(args.runs, args.data_name, args.across_code)
    names, data = _names(runs), images_folder(args, args.runs[0])
    with whole_folder(args.out) as folder:
        networks: dict[str, list] = {}
        for name, run in zip(names, runs, strict=True):
            published.copy_records(run, folder / name)
            seed, stages = _shown(run)
            for stage in stages:
                here = Path(name) / f"seed{seed}" / stage
                networks[here.as_posix()] = _network(run, seed, stage, folder / here, data)
        write_json(folder / published.PUBLISHED,
                   published.describe(dict(zip(names, runs, strict=True)), networks))
        copies = [folder / name for name in names]
        made = report(copies, folder, data_name=args.data_name)
        page(copies, folder / "report.html", args.data_name, steps=False)
    print(made.tables[0].text())
    print(f"{len(networks)} networks and all records: {args.out}")


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called in the folder: by their method, or else by their own folders."""
    for names in ([run.record.method for run in runs],
                  [run.folder.resolve().name for run in runs]):
        if len(set(names)) == len(names):
            return names
    raise UsageError("two of these run folders have one name: rename one of them")


def _shown(run: Run) -> tuple[int, list[str]]:
    """The seed whose networks are shown, and their stages: the first that has finished all of
    them. Warns where none has; it is the first of those that have most of them then."""
    wanted = published.shown_stages(run.record)
    finished = {seed: [stage for stage in wanted if stage in results]
                for seed, results in sorted(run.seeds.items())}
    seed = max(finished, key=lambda one: len(finished[one]), default=0)
    found = finished.get(seed, [])
    if len(found) < len(wanted):
        warnings.warn(f"no seed of {run.folder} has finished all of {', '.join(wanted)}: its "
                      f"networks here are {', '.join(found) or 'none'}", stacklevel=2)
    return seed, found


def _network(run: Run, seed: int, stage: str, out: Path, data: str) -> list[list[float]]:
    """Write the network of a stage of a seed, and return what it answers to noise."""
    beside = run.place(seed)
    if (beside / stage / published.WEIGHTS).is_file():  # published before
        shutil.copytree(beside / stage, out, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns(RESULT, METRICS))
        text = read_text(out / "README.md")
        write_text(out / "README.md", with_seeds(text, run.values(stage)))
        network, _ = load_with_metadata(out / published.WEIGHTS)
        return published.answers(network, run.seeds[seed][stage].image_size)
    checkpoint = checkpoints.load(beside / stage / CHECKPOINT)
    inputs = inputs_of(checkpoint, root=data)
    info = checkpoint.info  # the file is another one now, and says less of the machine
    info = replace(info, command=published.without_places({"command": info.command})["command"],
                   data=info.data | {"name": run.data_name or info.data["name"]})
    told = replace(checkpoint, info=info)
    about = write_weights(told, inputs, make_folder(out), root=data)
    first = published.shown_stages(run.record)[0]
    baseline = checkpoints.load(beside / first / CHECKPOINT) if stage != first else None
    text = with_seeds(card(told, about, baseline), run.values(stage))
    write_text(out / "README.md", text)
    return published.answers(checkpoint.network, inputs.image_size)
