"""What a study says: its variants in one table, each against the first one.

Differences are paired: of one seed, which decides the first weights and the order of the images,
so that what seeds have in common falls out.
"""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict

from kesi.report.statistics import Paired, holm, paired, spread
from kesi.report.tables import NONE, Table, cell
from kesi.runs.record import Ensemble
from kesi.runs.study import Outcome

NEARLY = 0.02  # by which work may differ from equal work

Outcomes = Mapping[str, Mapping[int, Outcome]]


def accuracies(by_seed: Mapping[int, Outcome]) -> list[float]:
    """On the test images, in percent, by seed."""
    return [one.result.test_accuracy for _, one in sorted(by_seed.items())]


def pairs(found: Outcomes) -> dict[str, dict[int, tuple[Outcome, Outcome]]]:
    """The first variant's outcomes and each other's, by variant and seed, of seeds that have both;
    of variants that share one."""
    (_, base), *others = found.items()
    return {name: both for name, by_seed in others
            if (both := {seed: (base[seed], one) for seed, one in sorted(by_seed.items())
                         if seed in base})}


def differences(found: Outcomes) -> dict[str, Paired]:
    """Every variant but the first against the first, in points of accuracy."""
    return {name: paired(*([one.result.test_accuracy for one in side]
                           for side in zip(*both.values(), strict=True)))
            for name, both in pairs(found).items()}


def table(found: Outcomes, title: str) -> Table:
    """One row a variant."""
    against, first = differences(found), next(iter(found))

    def mean(by_seed: Mapping[int, Outcome], value: Callable[[Outcome], float]) -> float:
        return statistics.fmean(map(value, by_seed.values()))

    lines = []
    for name, by_seed in found.items():
        held_out = [one.result.val_accuracy for one in by_seed.values()]
        together = [one.ensemble for one in by_seed.values()]
        whole = None not in together
        lines.append([
            name, cell(spread(accuracies(by_seed))),
            cell(None if None in held_out else spread(held_out)), *_against(against.get(name)),
            f"{mean(by_seed, lambda one: one.images):,.0f}",
            cell(mean(by_seed, lambda one: one.result.nonzero_params), 3, 1e6),
            cell(mean(by_seed, lambda one: one.result.macs), 2, 1e6),
            cell(spread([one.test_accuracy for one in together]) if whole else None),
            cell(statistics.fmean(map(apart, together)) if whole else None),
            str(len(by_seed))])
    columns = ["variant", "accuracy (%)", "held out (%)", "difference (points)",
               "95 % interval", "told from chance", "images processed", "params (M)", "MACs (M)",
               "ensemble (%)", "apart (%)", "seeds"]
    shown = [place for place, column in enumerate(columns)
             if column not in ("held out (%)", "ensemble (%)", "apart (%)")
             or any(line[place] != NONE for line in lines)]
    notes = [f'Differences are to "{first}", seed by seed; the interval is that of Student\'s t. '
             f"{told(against.values())}",
             "Images processed: in all trainings that lead to a variant, those that it shares "
             "included; what teachers see is not counted. Parameters are those that are not zero.",
             *["Ensemble: of all networks before the last step, on the test images; apart: the "
               "share of them that two of these classify differently, mean over the pairs."]
             * any(one.ensemble for by_seed in found.values() for one in by_seed.values()),
             *remarks(found),
             f"The last trainings were made {'; '.join(origins(found))}."]
    return Table(title, [columns[place] for place in shown],
                 [[line[place] for place in shown] for line in lines], notes)


def remarks(found: Outcomes) -> list[str]:
    """Where a comparison with the first variant is none, not at equal work or MACs, or not of the
    same seeds, a line each."""
    first, base = next(iter(found.items()))
    lines = ["One seed tells nothing of chance: --seeds 0 1 2 gives intervals."] * (len(base) == 1)
    for name, by_seed in found.items():
        if set(by_seed) != set(base):
            has, wanted = (" ".join(map(str, sorted(one))) for one in (by_seed, base))
            which = ("the difference is of those that both have, and" if set(by_seed) & set(base)
                     else "there is no difference to tell, and")
            lines.append(f'"{name}" is finished with seeds {has}, "{first}" with {wanted}: {which} '
                         "the accuracies are of different seeds.")
    for name, both in pairs(found).items():
        if all(one.result.network_digest == before.result.network_digest
               for before, one in both.values()):
            lines.append(f'"{name}" is "{first}": it has the very same networks.')
        else:
            lines += unequal(name, first, [(before.images, one.images, before.result.macs,
                                            one.result.macs) for before, one in both.values()])
    return lines


def unequal(name: str, first: str, both: Sequence[tuple[float, float, float, float]]) -> list[str]:
    """Where two variants are not of equal work or MACs, a line each. ``both``: of every seed, the
    images that the first and the other processed, and the MACs of their networks."""
    images, macs = (statistics.fmean(one[place + 1] / one[place] for one in both)
                    for place in (0, 2))
    lines = []
    if abs(images - 1) > NEARLY:
        lines.append(f'"{name}" processes {images:.2f} times as many images as "{first}".')
    if abs(macs - 1) > NEARLY:
        lines.append(f'"{name}" has {macs:.2f} times the MACs of "{first}".')
    return lines


def told(found: Collection[Paired]) -> str:
    """What being told from chance means of so many comparisons, in two sentences."""
    some = sum(bool(one.told_from_chance) for one in found)
    corrected = (f", of which {some} are told from it, and {holm(found)} when corrected for their "
                 "number (Holm 1979)" if any(one.half is not None for one in found) else "")
    return ("Told from chance: 0 lies outside of it. Of twenty comparisons that are nothing but "
            f"chance, one is told from it; these are {len(found)}{corrected}.")


def _against(one: Paired | None) -> list[str]:
    return ([NONE] * 3 if one is None else
            [f"{one.mean:+.2f}", one.interval or NONE, against_chance(one)])


def against_chance(one: Paired) -> str:
    """Whether a difference is told from chance, as tables say it."""
    return {None: NONE, True: "yes", False: "no"}[one.told_from_chance]


def apart(ensemble: Ensemble) -> float:
    """How many test images two members classify differently, in percent, mean over the pairs."""
    return statistics.fmean(
        share for place, line in enumerate(ensemble.disagreement) for share in line[:place])


def origins(found: Outcomes) -> list[str]:
    """Code, versions and machine of the last trainings, in words; each once."""
    results = [one.result for by_seed in found.values() for one in by_seed.values()]
    return list(dict.fromkeys(
        f"at commit {(one.commit or 'unknown')[:8]}{' (changed)' if one.dirty else ''} with torch "
        f"{(one.versions or {}).get('torch', '?')} on {one.device}" for one in results))


def rows(found: Outcomes) -> list[dict]:
    """Every outcome as a line of numbers."""
    kept = ("test_accuracy", "test_loss", "val_accuracy", "params", "nonzero_params", "macs",
            "network_digest", "commit", "device")
    return [{"variant": name, "seed": seed, "images": one.images,
             **{field: asdict(one.result)[field] for field in kept},
             "ensemble_accuracy": one.ensemble and one.ensemble.test_accuracy,
             "disagreement": one.ensemble and apart(one.ensemble), "stages": " ".join(one.stages)}
            for name, by_seed in found.items() for seed, one in by_seed.items()]
