"""Finished studies of the same variants, such as on several sets of images, in one table."""

import csv
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kesi.report.statistics import Paired, pooled, spread
from kesi.report.studies.table import against_chance, told, unequal
from kesi.report.tables import NONE, Table, cell
from kesi.system.errors import KesiError, UsageError, controls
from kesi.system.files import as_said, read_text

CSV = "study.csv"
NUMBERS = ("test_accuracy", "images", "macs")


@dataclass(frozen=True)
class Recorded:
    """An outcome as study.csv keeps it: test accuracy in percent, images processed, MACs and
    digest of the network."""

    accuracy: float
    images: float
    macs: float
    network: str


Study = Mapping[str, Mapping[int, Recorded]]  # by variant and seed


def read(folder: Path) -> Study:
    """The outcomes of a finished study, in the order of its table.

    Raises UsageError where there is none, and KesiError where it is not what a study writes.
    """
    path = folder / CSV
    if not path.is_file():
        raise UsageError(f"{folder} is no finished study: it has no {CSV}")
    found: dict[str, dict[int, Recorded]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path))):
            numbers = [float(row[name]) for name in NUMBERS]
            variant = as_said(row["variant"])
            by_seed = found.setdefault(variant, {})
            if (controls(variant) or not row["network_digest"] or not 0 <= numbers[0] <= 100
                    or not all(0 < one < float("inf") for one in numbers[1:])
                    or int(row["seed"]) in by_seed):
                raise ValueError
            by_seed[int(row["seed"])] = Recorded(*numbers, row["network_digest"])
        if not found:
            raise ValueError
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise KesiError(f"{path} is not what a study writes: a line an outcome, with its variant, "
                        f"seed, {', '.join(NUMBERS)} and network_digest") from error
    return found


def pool(studies: Mapping[str, Study], first: str) -> Table:
    """One row for every variant that all studies have, by their names: its accuracy in each, of the
    seeds that the first variant has there, too, the difference to that, and the mean of these.

    Raises UsageError where a study lacks the first variant, where no other is in all of them, and
    where two have the same networks, which would count twice.
    """
    check(studies, first)
    names = list(dict.fromkeys(name for study in studies.values() for name in study))
    pairs = {name: [[(study[first][seed], study[name][seed])
                     for seed in sorted(study[first].keys() & study.get(name, {}).keys())]
                    for study in studies.values()] for name in names}
    shared = [name for name in names if name != first and all(pairs[name])]
    if not shared:
        raise UsageError(f"no variant but {first!r} is in all of them, with a seed of its own "
                         "seeds: there is nothing to hold against it")
    lines, against, notes = [], [], []
    for name in [first, *shared]:
        differences = [[one.accuracy - before.accuracy for before, one in both]
                       for both in pairs[name]]
        together = pooled(differences)
        dash = name == first
        line = [name]
        for both, found in zip(pairs[name], differences, strict=True):
            line += [cell(spread([one.accuracy for _, one in both])),
                     NONE if dash else _shown(pooled([found]))]
        line += [NONE, NONE] if dash else [_shown(together), against_chance(together)]
        lines.append([*line, " + ".join(str(len(one)) for one in differences)])
        if not dash:
            against.append(together)
            for title, both in zip(studies, pairs[name], strict=True):
                texts = unequal(name, first, [(before.images, one.images, before.macs, one.macs)
                                              for before, one in both])
                if len(both) < len(studies[title][first]):
                    texts += [f'"{name}" is of {len(both)} of the seeds of "{first}".']
                notes += [f"{title}: {text}" for text in texts]
    notes += [f'Not in all of them with a seed that "{first}" has there: "{name}".'
              for name in names if name not in (first, *shared)]
    columns = ["variant", *(column for title in studies
                            for column in (f"{title} (%)", "difference (points)")),
               "together (points)", "told from chance", "seeds"]
    return Table(f"{len(studies)} studies together", columns, lines, [
        f'Differences are to "{first}", seed by seed, with their 95 % interval. Together: the mean '
        "of the mean differences, each study counting alike; the interval is Student's t by the "
        "spread within the studies, taken to be the same in all of them. It is about these sets of "
        f"images, and not about others. {told(against)}", *notes])


def check(studies: Mapping[str, Study], first: str) -> None:
    """Raises UsageError where a study lacks the first variant, and where two have a network in
    common."""
    for title, study in studies.items():
        if first not in study:
            raise UsageError(f"{title} has no variant {first!r} to hold the others against; it "
                             f"has: {', '.join(study)}")
    for one, other in itertools.combinations(studies, 2):
        mine, theirs = ({found.network for by_seed in studies[title].values()
                         for found in by_seed.values()} for title in (one, other))
        if mine & theirs:
            raise UsageError(f"{one} and {other} have networks in common, which would count twice: "
                             "studies of different images are wanted")


def _shown(one: Paired) -> str:
    return f"{one.mean:+.2f}" + (f" ({one.interval})" if one.interval else "")
