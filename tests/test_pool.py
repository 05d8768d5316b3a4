"""What is told of several seeds and of several studies, and what is published of it."""

import itertools
import math
import random
import re
import statistics

import numpy
import pytest
import torch

from doors import ROOT, fails, table_of, works
from kesi.report.statistics import Paired, holm, paired, pooled, t_quantile


@pytest.mark.parametrize("freedom, tabled", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764),
                                             (9, 2.2622), (30, 2.0423)])
def test_the_quantiles_are_those_of_the_tables(freedom, tabled):
    assert t_quantile(0.95, freedom) == pytest.approx(tabled, abs=5e-5)


def test_the_interval_is_students():
    """Its ends are where the density of t, integrated, leaves 2.5 % on either side."""
    draw = random.Random(0)
    first, second = ([draw.gauss(0, 1) for _ in range(6)] for _ in range(2))
    found = paired(first, second)
    differences = torch.tensor(second, dtype=torch.float64) - torch.tensor(first)
    assert found.mean == pytest.approx(float(differences.mean()), abs=1e-6)
    t = found.half / float(differences.std()) * math.sqrt(6)
    places = torch.linspace(-t, t, 20001, dtype=torch.float64)
    density = torch.exp(torch.lgamma(torch.tensor(3.0)) - torch.lgamma(torch.tensor(2.5))) / (
        math.sqrt(5 * math.pi)) * (1 + places.square() / 5) ** -3
    assert float(torch.trapezoid(density, places)) == pytest.approx(0.95, abs=1e-5)
    outside = places.abs() >= abs(found.mean) / float(differences.std()) * math.sqrt(6)
    assert found.p_value == pytest.approx(
        float(torch.trapezoid(density * outside, places)) + 0.05, abs=1e-4)
    assert paired([1.0], [2.0]).half is None and paired([1.0], [2.0]).told_from_chance is None
    assert paired([1.0, 2.0], [1.5, 2.5]).told_from_chance is None  # twice the same, of two
    assert paired([1.0, 2.0], [1.0, 2.0]).told_from_chance is False


def test_several_groups_are_a_contrast_of_a_linear_model():
    """Of numpy's least squares: a mean for each group, and the error of the mean of these."""
    groups = [[0.4, 0.1, 0.9], [1.4, 0.2], [0.3, 0.8, -0.6, 0.5]]
    design = numpy.repeat(numpy.eye(3), [len(one) for one in groups], axis=0)
    means, (squares,), *_ = numpy.linalg.lstsq(design, numpy.concatenate(groups), rcond=None)
    contrast = numpy.full(3, 1 / 3)
    error = math.sqrt(squares / 6 * contrast @ numpy.linalg.inv(design.T @ design) @ contrast)
    found = pooled(groups)
    assert found.mean == pytest.approx(contrast @ means)
    assert found.half == pytest.approx(2.4469 * error, abs=1e-4)  # of six degrees of freedom
    assert pooled([[1.0], [2.0]]) == Paired(1.5)


def test_corrected_for_their_number():
    """Against every step of Holm's definition; those of which no chance is known count, too."""
    def of(*chances):
        return holm([Paired(1.0, 1.0, one) for one in chances])
    assert of(0.01, 0.04, 0.03, 0.005) == 2  # 0.0125, 0.0167, then 0.03 > 0.025
    assert of(0.03, 0.01) == 2 and of(0.026, 0.04) == 0 and of(0.05) == 1 and of() == 0
    assert of(None, 0.04) == 0 and of(None, 0.02) == 1


def outcomes(folder, **variants):
    """A study of these accuracies by seed, of networks of this folder."""
    folder.mkdir()
    lines = ["variant,seed,images,test_accuracy,macs,network_digest"]
    lines += [f"{name},{seed},{100 if name != 'more' else 110},{accuracy},50,{folder.name}{seed}"
              for name, one in variants.items() for seed, accuracy in enumerate(one)]
    (folder / "study.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_studies_are_pooled_by_the_names_of_their_variants(tmp_path):
    one = outcomes(tmp_path / "one", plain=(50, 51, 52), more=(51, 53, 52.5, 99),
                   **{"'- alone": (1, 2, 3)})  # as a study writes what begins like a formula
    two = outcomes(tmp_path / "two", more=(21, 22), plain=(20, 21.5))
    said = works("kesi", "pool", one, two, "--out", tmp_path / "both.md")
    together = pooled([[1, 2, 0.5], [1, 0.5]])
    row = next(line for line in said.splitlines() if line.startswith("more"))
    assert row.split("  ")[-1] == "3 + 2" and f"{together.mean:+.2f} ({together.interval})" in row
    assert f"{paired((50, 51, 52), (51, 53, 52.5)).interval})" in row
    text = (tmp_path / "both.md").read_text()
    assert f"| {together.mean:+.2f} ({together.interval}) | yes | 3 + 2 |" in text
    assert "| plain | 51.00 ± 1.00 | – | 20.75 ± 1.06 | – | – | – | 3 + 2 |" in text
    assert "| more | 52.17 ± 1.04 |" in text  # of the seeds that plain has
    assert 'one: "more" processes 1.10 times as many images as "plain".' in text
    assert 'Not in all of them with a seed that "plain" has there: "- alone".' in text
    assert "these are 1, of which 1 are told from it, and 1 when corrected" in text
    assert works("kesi", "pool", one, two, "--against", "more").count("-1.1") > 0
    single = works("kesi", "pool", *(outcomes(tmp_path / name, plain=[1], more=[2])
                                     for name in ("a", "b")))
    assert "these are 1." in single and "1 + 1" in single


def test_what_cannot_be_pooled_is_one_line(tmp_path):
    one, two = (outcomes(tmp_path / name, plain=(1, 2), more=(2, 3)) for name in ("one", "two"))
    other = outcomes(tmp_path / "other", plain=(1, 2), third=(2, 3))
    (tmp_path / "again").mkdir()
    again = outcomes(tmp_path / "again" / "one", plain=(1, 2), more=(2, 3))
    same, twice, none = (outcomes(tmp_path / name, plain=(1, 2), more=(2, 3))
                         for name in ("same", "twice", "none"))
    text = (one / "study.csv").read_text()
    (same / "study.csv").write_text(re.sub("(plain.*)one", r"\1other", text))
    (twice / "study.csv").write_text(text + "more,0,1,2,3,x\n")
    (none / "study.csv").write_text(text + "more,2,0,2,3,x\n")  # images
    bad = outcomes(tmp_path / "bad", plain=("nan", 2), more=(2, 3))
    loud = outcomes(tmp_path / "loud", **{"plain": (1, 2), "\x1b[2J": (2, 3)})
    for words, code, says in (
            ([one], 2, "takes several studies"), ([one, two, one], 2, "each once"),
            ([one, tmp_path], 2, "has no study.csv"), ([one, other], 2, "no variant but 'plain'"),
            ([one, two, "--against", "third"], 2, "one has no variant 'third'"),
            ([one, again], 2, "would count twice"), ([one, same], 2, "would count twice"),
            *(([one, what], 1, "not what a study writes") for what in (twice, none, bad, loud))):
        fails("kesi", "pool", *words, code=code, says=says)


PUBLISHED = sorted(path.parent for path in (ROOT / "results").glob("*/study.csv"))


def accuracies(folder, column="test_accuracy"):
    rows = table_of(folder)
    seeds = sorted({seed for _, seed in rows})
    return {name: [float(rows[name, seed][column]) for seed in seeds]
            for name, _ in rows if rows[name, seeds[0]].get(column)}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_a_published_table_follows_from_its_outcomes(folder):
    values = accuracies(folder)
    names = list(values)
    text = (folder / "study.md").read_text()
    for name in names:
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} | "))
        mean, deviation = statistics.fmean(values[name]), statistics.stdev(values[name])
        assert f"| {mean:.2f} ± {deviation:.2f} |" in line
        if name != names[0]:
            against = paired(values[names[0]], values[name])
            assert f"| {against.mean:+.2f} | {against.interval} |" in line
        assert line.endswith(f"| {len(values[name])} |")


def prose(page):
    return " ".join((ROOT / page).read_text().split())


def test_the_evidence_says_how_many_comparisons_there_are():
    found = []
    for folder in PUBLISHED:
        base, *others = accuracies(folder).values()
        found += [paired(base, one) for one in others]
    told = sum(one.told_from_chance for one in found)
    assert (f"of {len(found)} comparisons with the first variant of a table {told} are told, and "
            f"{holm(found)} when corrected for their number (Holm)") in prose("results/studies.md")


def of_both_sets():
    """Every difference of two variants that studies of both data sets have."""
    for first, second in itertools.combinations(PUBLISHED, 2):
        if first.name.split("-")[0] == second.name.split("-")[0]:
            sets = accuracies(first), accuracies(second)
            for names in itertools.permutations(set.intersection(*map(set, sets)), 2):
                differences = [[b - a for a, b in zip(*map(one.get, names), strict=True)]
                               for one in sets]
                yield pooled(differences)


def test_the_page_says_how_many_fields_of_its_table_are_told():
    known = {(f"{one.mean:+.2f}", one.interval): one for one in of_both_sets()}
    table = (ROOT / "docs" / "beyond.md").read_text().split("| otherwise |")[1].split("\n\n")[0]
    fields = [known[one] for one in re.findall(r"([+-]\d+\.\d\d) \(([^)]*)\)", table)]
    told = sum(one.told_from_chance for one in fields)
    assert (f"of these {len(fields)} fields {told} are told, and {holm(fields)} when corrected "
            "for their number (Holm)") in prose("docs/beyond.md")


@pytest.mark.parametrize("page", ["docs/beyond.md", "results/studies.md"])
def test_what_pages_tell_of_studies_are_differences_of_their_variants(page):
    tables = [accuracies(folder, column) for folder in PUBLISHED
              for column in ("test_accuracy", "ensemble_accuracy")]
    found = [paired(one, other) for table in tables
             for one, other in itertools.permutations(table.values(), 2)]
    known = {(f"{one.mean:+.2f}", one.interval)
             for one in [*found, *of_both_sets()]}
    told = re.findall(r"([+-]?\d+\.\d\d)(?: \(|, )([+-]?\d+\.\d\d) to ([+-]?\d+\.\d\d)",
                      prose(page))
    assert len(told) > 30
    for numbers in told:
        mean, low, high = map(float, numbers)
        assert (f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}") in known, numbers
