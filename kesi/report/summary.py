"""The numbers of a report, over the seeds of a run."""

import statistics
from collections.abc import Sequence

from kesi.runs.results import Run


def by_baseline(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that started from the same baselines, told by the digests of these networks."""
    groups: list[tuple[dict, list[Run]]] = []
    for run in runs:
        baselines = {seed: results["baseline"] for seed, results in run.seeds.items()
                     if "baseline" in results}
        digests = {seed: baseline.get("network_digest") for seed, baseline in baselines.items()}
        for known, group in groups:
            common = known.keys() & digests.keys()
            if common and all(known[seed] and known[seed] == digests[seed] for seed in common):
                known.update(digests)
                group.append(run)
                break
        else:
            groups.append((digests, [run]))
    return [group for _, group in groups]


def missing(run: Run) -> list[str]:
    """What is not finished, a line for each seed."""
    absent = {seed: [stage for stage in run.stages() if stage not in results]
              for seed, results in sorted(run.seeds.items())}
    return [f"{run.label}, seed {seed}: {', '.join(stages) if run.seeds[seed] else 'not begun'}"
            for seed, stages in absent.items() if stages]


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def points(series: Sequence[tuple[float, list[float]]]) -> tuple[list[float], list[float], list[float]]:
    """(x, mean, sample standard deviation) of the places that have values; one value deviates by 0."""
    known = [(place, values) for place, values in series if values]
    return ([place for place, _ in known], [statistics.fmean(values) for _, values in known],
            [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in known])


def remaining(run: Run, stage: str) -> float | None:
    """The parameters of a stage in percent of the baseline's; of weight pruning, the non-zero ones."""
    name = "nonzero_params" if run.info["method"] == "weight" else "params"
    size, whole = run.values(stage, name), run.values("baseline", name)
    return 100 * statistics.fmean(size) / statistics.fmean(whole) if size and whole else None


def disagreement(run: Run, retraining: str) -> tuple[list[str], list[list[float]]] | None:
    """(members, mean over seeds of their pairwise disagreement in percent); of ensembles of equal members."""
    results = [result for result in run.results(run.ensemble(retraining)) if result.get("disagreement")]
    if not results:
        return None
    members = max((result["members"] for result in results), key=len)
    matrices = [result["disagreement"] for result in results if result["members"] == members]
    places = range(len(members))
    return members, [[statistics.fmean(matrix[i][j] for matrix in matrices) for j in places] for i in places]
