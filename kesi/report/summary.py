"""Every number of a report, computed once for each run; tables, figures and page format them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kesi import models
from kesi.method import paper, sizes
from kesi.method.recipes import RETRAININGS, retraining_named
from kesi.method.snapshot import BASELINE, KESI, StageName, chain, ensemble_name
from kesi.report.statistics import Spread, spread
from kesi.runs.record import Ensemble, Result
from kesi.runs.results import Run


@dataclass(frozen=True)
class Row:
    """One stage, with its results by seed.

    ``params``, ``nonzero``, ``macs``: means over seeds; of an ensemble, of all members together.
    ``remaining``: parameters in percent of the baseline's, non-zero ones where weights are pruned.
    ``saved``: MACs in percent of the baseline's. ``published``: what the paper has for it.
    """

    label: str
    run: Run
    stage: str
    results: Mapping[int, Result | Ensemble]
    params: float | None = None
    nonzero: float | None = None
    macs: float | None = None
    remaining: float | None = None
    saved: float | None = None
    published: paper.PaperRow | None = None

    def spread(self, name: str) -> Spread | None:
        """A field of the results, over the seeds that have it."""
        found = [getattr(result, name, None) for _, result in sorted(self.results.items())]
        return spread([value for value in found if value is not None])

    @property
    def accuracy(self) -> Spread | None:
        """On the test images, in percent."""
        return self.spread("test_accuracy")

    @property
    def size(self) -> float | None:
        """The parameters that count: of weight pruning, those that are not zero."""
        return self.nonzero if self.run.record.method == "weight" else self.params


@dataclass(frozen=True)
class Retrained:
    """What one retraining gave: the baseline and every round's snapshot, and their ensemble.

    ``growing``: accuracy of the first one, two, ... networks together. ``disagreement``: mean over
    seeds of the share (%) of images that two of ``members`` classify differently, or None.
    """

    name: str
    label: str
    colour: str
    marker: str
    rows: list[Row]
    ensemble: Row
    growing: list[Spread | None]
    members: list[str]
    disagreement: list[list[float]] | None


@dataclass(frozen=True)
class Summary:
    """The numbers of a run. ``retrained``: the method's own retraining first; ``last``: of KESI.

    ``lost``: how many points KESI is below the snapshot that it started from, None if it is not.
    """

    run: Run
    baseline: Row
    retrained: list[Retrained]
    last: Row
    lost: float | None
    missing: list[str]

    @property
    def size_name(self) -> str:
        """What Row.size counts."""
        return "non-zero parameters" if self.run.record.method == "weight" else "parameters"

    def main(self) -> list[Row]:
        """The rows of the main table but for the baseline, in the paper's order, then ensembles."""
        own, *others = self.retrained
        rows = [one.rows[-1] for one in (*others, own)]
        short = paper.abbreviation(self.run.record.method, self.run.record.recipe["criterion"])
        if short:  # once
            label = rows[0].label.replace(self.run.label, f"{self.run.label} ({short})", 1)
            rows[0] = replace(rows[0], label=label)
        return [*rows, self.last, *(one.ensemble for one in self.retrained if one.ensemble.results)]


def summarise(run: Run) -> Summary:
    """The numbers of a run, of what is finished."""
    record, label = run.record, run.label
    baseline = _row(run, BASELINE, "baseline")
    own, *others = [_retrained(run, name, baseline, own=place == 0)
                    for place, name in enumerate(record.retrainings)]
    last = _row(run, KESI, f"{label} + KESI", baseline)
    common = sorted(own.rows[-1].results.keys() & last.results.keys())
    points = [own.rows[-1].results[seed].test_accuracy - last.results[seed].test_accuracy
              for seed in common]
    lost = statistics.fmean(points) if points and statistics.fmean(points) > 0 else None
    absent = {seed: [stage for stage in record.stages() if stage not in results]
              for seed, results in sorted(run.seeds.items())}
    missing = [f"{label}, seed {seed}: {', '.join(names) if run.seeds[seed] else 'not begun'}"
               for seed, names in absent.items() if names]
    return Summary(run, baseline, [own, *others], last, lost, missing)


def _retrained(run: Run, name: str, baseline: Row, own: bool) -> Retrained:
    shown, said = retraining_named(name), label_of(run, name)
    label = f"{run.label} + {said}" if own else f"{run.label}, {said} retraining"
    _, *names = chain(name, run.record.rounds)
    rows = [baseline, *(_row(run, stage, label, baseline) for stage in names)]
    stage = ensemble_name(name, run.record.retrainings)
    ensembles = {seed: results[stage] for seed, results in run.seeds.items()
                 if isinstance(results.get(stage), Ensemble)}
    members = max((one.members for one in ensembles.values()), key=len, default=[])
    matrices = [one.disagreement for one in ensembles.values() if one.members == members]
    places = range(len(members))
    mean = [[statistics.fmean(matrix[i][j] for matrix in matrices) for j in places]
            for i in places] or None
    together = {field: _sum(_mean(run.values(member, field)) for member in members)
                for field in ("params", "nonzero_params", "macs")}
    ensemble = Row(f"{run.label}, ensemble of {len(members)}, {said}", run, stage, ensembles,
                   *together.values())
    growing = [spread(run.growing(name, count + 1)) for count in range(run.record.rounds + 1)]
    return Retrained(name, said, shown.colour, shown.marker, rows, ensemble, growing, members, mean)


def label_of(run: Run, name: str) -> str:
    """What a retraining is called; one that is not as its entry has it, by what it is."""
    made, known = run.record.training(name), RETRAININGS.get(name)
    if made is not None and known is not None:
        constant = made.schedule == "constant"
        if made.schedule != known.training.schedule or (constant and made.lr != known.training.lr):
            return f"{made.schedule} from {made.lr:g}"
    return retraining_named(name).label


def _row(run: Run, stage: str, label: str, baseline: Row | None = None) -> Row:
    results = {seed: found[stage] for seed, found in sorted(run.seeds.items())
               if isinstance(found.get(stage), Result)}
    params, nonzero, macs = (_mean([getattr(result, field) for result in results.values()])
                             for field in ("params", "nonzero_params", "macs"))
    kind = StageName.parse(stage).kind
    theirs = paper.published(run.record.arch, run.record.dataset, run.record.method).get(kind)
    if kind != BASELINE and run.record.rounds != paper.ROUNDS:
        theirs = None  # all of its figures are after five rounds
    row = Row(label, run, stage, results, params, nonzero, macs, published=theirs)
    whole = baseline or row
    left = _share(macs, whole.macs)
    return replace(row, remaining=_share(row.size, whole.size),
                   saved=None if left is None else 100 - left)


def main_rows(summaries: Sequence[Summary]) -> list[Row]:
    """The rows of the main table; runs that started from the same baselines share a row of theirs.

    That the baselines are the same is told by the digests of the networks.
    """
    groups: list[list[Summary]] = []
    for one in summaries:
        digests = _digests(one.baseline)
        for group in groups:
            known = {seed: digest for other in group
                     for seed, digest in _digests(other.baseline).items()}
            common = known.keys() & digests.keys()
            if common and all(known[seed] == digests[seed] for seed in common):
                group.append(one)
                break
        else:
            groups.append([one])
    rows = []
    for group in groups:
        shared = group[0].baseline
        results = {seed: result for one in reversed(group)
                   for seed, result in one.baseline.results.items()}
        if len(groups) > 1:
            names = ", ".join(one.run.label for one in group)
            shared = replace(shared, label=f"baseline of {names}")
        rows += [replace(shared, results=results), *(row for one in group for row in one.main())]
    return rows


def _digests(baseline: Row) -> dict[int, str]:
    return {seed: result.network_digest for seed, result in baseline.results.items()}


def paper_macs(row: Row) -> int | None:
    """MACs of one image as the authors' tool counted them, to be held against the paper's."""
    count = getattr(sizes, "paper_macs", sizes.macs)
    result = next(iter(row.results.values()), None)
    if not isinstance(result, Result):
        return None
    try:
        with torch.device("meta"):  # shapes are enough
            network = models.create(result.arch, result.num_classes, result.cfg)
        return count(network, result.image_size)
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError):  # cannot be built
        return None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sum(values) -> float | None:
    values = list(values)
    return sum(values) if values and None not in values else None


def _share(part: float | None, whole: float | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None
