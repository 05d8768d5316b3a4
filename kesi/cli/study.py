"""kesi study: variants of the method against each other."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kesi.cli import entry, flags, targets
from kesi.data import INFO, Dataset
from kesi.data.registry import FAMILIES, FOLDER
from kesi.method.plan import Speed, StagePlan, ensemble_seconds
from kesi.method.recipes import METHODS, Recipe
from kesi.method.training import Options
from kesi.models import ARCHITECTURES
from kesi.report import studies as reports
from kesi.runs import study as studies
from kesi.runs.clock import spoken
from kesi.runs.study import Variant
from kesi.system import distributed, seeds
from kesi.system.errors import KesiError, UsageError, check_choice, controls
from kesi.system.locks import held_by_one
from kesi.system.provenance import device_name
from kesi.tools.targets import budget

VARIANTS = "VARIANTS"


def study(argv: Sequence[str] | None = None) -> None:
    """Variants of the method against each other, over seeds:
    one table, one picture, and what is told from chance.

        kesi study studies/worth.py --dry-run
        kesi study studies/worth.py --seeds 0 1 2 3 4 --save runs/worth

    FILE is Python and says VARIANTS = {name: Variant, ...}, all of one data set; the others are
    held against the first, or --against another. A stage that several of them need is run once. The
    same command continues what was interrupted, and other seeds, or variants that are added to the
    file, find all that is there; processes with different --seeds share a folder, and the table is
    of all seeds in it. docs/study.md tells more.
    """
    asked = parse(argv)
    args, variants = asked.args, asked.variants
    options = flags.options_for(args)
    if args.dry_run:
        dataset, images = targets.stand_in(args, asked.recipe.family, *asked.classes_and_size)
        studies.tried(variants, dataset)
        print(overview(asked, images and images[0]),
              hours(asked, dataset, images, options), sep="\n")
        return
    dataset = flags.dataset_for(args, asked.recipe.family)
    print(f"{len(variants)} variants on {dataset.name}, {len(asked.planned)} stages a seed, on "
          f"{options.device} -> {asked.folder}", flush=True)
    failed = studies.run(studies.Study(variants, dataset, asked.folder, args.seeds, options,
                                       args.data))
    if distributed.is_main():
        print("", table(asked), sep="\n")
    if failed:
        raise KesiError(f"{len(failed)} of {len(variants)} variants failed: "
                        f"{'; '.join(failed.values())}; the same command tries them again")


@dataclass(frozen=True)
class Asked:
    """What a command line asks for: the variants, where they go, and every training of a seed by
    its key, those that variants share once."""

    args: Namespace
    variants: Mapping[str, Variant]
    folder: Path
    classes_and_size: tuple
    planned: Mapping[str, StagePlan]

    @property
    def recipe(self) -> Recipe:
        """The first variant's, of whose data set and family the others are."""
        return next(iter(self.variants.values())).recipe

    @property
    def title(self) -> str:
        """Of table and picture."""
        data = self.args.data_name or (Path(self.args.data).resolve().name
                                       if self.args.dataset == FOLDER else self.args.dataset)
        return f"{Path(self.args.file).stem}: {self.recipe.arch} on {data}"


def table(asked: Asked) -> str:
    """Write the study's table over all seeds that are finished, and return it as text.

    One process at a time, so that of two which end at once the second finds both of their seeds.
    """
    first = next(iter(asked.variants))
    with held_by_one(asked.folder):
        found = studies.finished(asked.folder, asked.variants, asked.args.seeds)
        if not found.get(first):
            return f"there is no table yet: no seed has finished what is compared with {first!r}"
        return reports.write(found, asked.title, asked.folder,
                             [name for name in asked.variants if name not in found])


def parse(argv: Sequence[str] | None = None) -> Asked:
    """The command line and the file that it names. Raises UsageError where either will not do."""
    parser = entry.parser(study.__doc__, "kesi study")
    parser.add_argument("file", metavar="FILE", help="a Python file with VARIANTS")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                        help="what the file reads from the environment, such as IMAGES=1000")
    data, _, training, machine, output = flags.groups(parser)
    flags.add_images(data, family=None)
    flags.add_unlabelled(data)
    training.add_argument("--seeds", type=seeds.seed, nargs="+", default=[0], metavar="N",
                          help="default: 0; an interval needs two")
    flags.add_run(machine)
    output.add_argument("--save", type=Path, metavar="DIR", help="default: runs/study-<FILE>")
    output.add_argument("--dry-run", action="store_true",
                        help="print stages, shared ones once, and work; touch nothing")
    output.add_argument("--against", metavar="NAME", help="the variant that the others are held "
                        "against (default: the first)")
    output.add_argument("--data-name", metavar="TEXT", help="what the table calls "
                        "the data set (default: its name, or that of its folder)")
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))
    with environment(args.file, args.set):
        variants = variants_of(args.file)
    if args.against is not None:
        if args.against not in variants:
            raise UsageError(f"{args.file} has no variant {args.against!r} to hold the others "
                             f"against; it has: {', '.join(variants)}")
        variants = {args.against: variants.pop(args.against), **variants}
    recipe = next(iter(variants.values())).recipe
    args.dataset, args.num_classes = recipe.dataset, None
    if args.download is None:
        args.download = flags.downloads(recipe.family)
    flags.check_unlabelled(args)
    for name, variant in variants.items():
        variant.check(name, args.unlabelled is not None, args.val_fraction > 0)
    folder = args.save or Path("runs", f"study-{Path(args.file).stem}")
    measures = flags.classes_and_size(args, recipe.family, args.data)
    return Asked(args, variants, folder, measures, studies.planned(variants, *measures))


@contextmanager
def environment(file: str, given: Sequence[str]) -> Iterator[None]:
    """The environment with these names and values, in which a study's file is read: as a part of
    the command they stand in its records, and in jobs that run elsewhere.

    Raises UsageError for what is no name with a value, and for a name that the file does not have.
    """
    text = Path(file).read_text(errors="replace") if Path(file).is_file() else None
    values = {}
    for one in given:
        name, _, value = one.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name == one or controls(value):
            raise UsageError(f"--set takes NAME=VALUE, not {one!r:.60}")
        if text is not None and not re.search(rf"\b{name}\b", text):
            raise UsageError(f"--set {one}: {file} reads no {name}")
        values[name] = value
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def variants_of(file: str) -> dict[str, Variant]:
    """What a study's file says. Raises UsageError where it is not one."""
    if not file.endswith(".py"):
        raise UsageError(f"{file} is no Python file: a study is one that says {VARIANTS} = "
                         "{name: Variant, ...}")
    found = getattr(entry.load_module(file, file), VARIANTS, None)
    if not isinstance(found, dict) or not all(isinstance(one, Variant) for one in found.values()):
        raise UsageError(f"{file} does not say {VARIANTS} = {{name: Variant, ...}}")
    if len(found) < 2:
        raise UsageError(f"{file} has {len(found)} variants: there is nothing to compare")
    for name in found:
        if not isinstance(name, str) or not name.strip() or controls(name):
            raise UsageError(f"{file}: a variant's name is a line of text, not {name!r:.60}")
    (first, one), *others = found.items()
    known = {"arch": ARCHITECTURES, "method": METHODS, "dataset": INFO, "family": FAMILIES}
    for name, other in found.items():
        for part, choices in known.items():
            check_choice(part, getattr(other.recipe, part), choices, f" in {name!r} of {file}")
    for name, other in others:
        for part in ("dataset", "family"):
            was, now = getattr(one.recipe, part), getattr(other.recipe, part)
            if was != now:
                raise UsageError(f"{file}: all variants are of one {part}, but {first!r} of {was} "
                                 f"and {name!r} of {now}")
    return found


def hours(asked: Asked, dataset: Dataset, images: tuple[int, int] | None,
          options: Options) -> str:
    """How long the study takes here, all of its seeds one after the other, as a line.

    ``dataset`` stands for one that has as many ``images`` of training and test; None: not known.
    """
    if images is None:
        return "how long it takes depends on the images: say where they are with --data"
    seconds, counted = 0.0, set()
    speeds: dict[str, Speed] = {}
    for variant in asked.variants.values():
        arch, keys = variant.recipe.arch, studies.keys_of(variant)
        if arch not in speeds:
            speeds[arch] = budget.speed(variant.recipe, dataset, options)
        for key in keys:
            if key not in counted:
                counted.add(key)
                seconds += asked.planned[key].seconds(speeds[arch], *images, options.eval_every)
        members = tuple(variant.members(keys))
        if len(members) > 1 and members not in counted:
            counted.add(members)
            sizes = [asked.planned[key].size for key in members]
            seconds += ensemble_seconds(sizes, speeds[arch], images[1])
    return (f"about {spoken(len(asked.args.seeds) * seconds)} here, by a few training steps "
            f"on {device_name(options.device)}")


def overview(asked: Asked, images: int | None) -> str:
    """What the study would do with so many training images, as text."""
    args, variants, planned = asked.args, asked.variants, asked.planned
    keys = {name: studies.keys_of(variant) for name, variant in variants.items()}

    def work(epochs: int) -> str:
        return f"{epochs * images:,}" if images else "?"

    lines = [f"{len(variants)} variants on {args.dataset}, seeds {' '.join(map(str, args.seeds))}, "
             f"into {asked.folder}", "",
             f"{'stage':<14} {'params':>12} {'MACs':>15} {'epochs':>7} {'images to process':>18}"
             f"  variants"]
    for key, one in planned.items():
        users = [str(place) for place, name in enumerate(keys, start=1) if key in keys[name]]
        lines.append(f"{one.name:<14} {one.size.nonzero_params:>12,} {one.size.macs:>15,} "
                     f"{one.training.epochs:>7} {work(one.training.epochs):>18}  "
                     f"{' '.join(users)}")
    lines += ["", f"{'variant':<14} {'images to process, alone':>26}"]
    lines += [f"{place}. {name}: {work(variant.epochs)}"
              for place, (name, variant) in enumerate(variants.items(), start=1)]
    once = sum(one.training.epochs for one in planned.values())
    alone = sum(variant.epochs for variant in variants.values())
    lines += ["", f"{len(planned)} trainings, shared ones once, of {once} epochs together for each "
                  f"of {len(args.seeds)} seed(s): {work(once * len(args.seeds))} images to process "
                  f"({work(alone * len(args.seeds))} if nothing was shared)"]
    return "\n".join(lines)
