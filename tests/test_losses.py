"""The losses of distilling against formulas written out image by image, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F

from kesi.method.objectives import (
    LOSSES,
    Decoupled,
    Dist,
    KullbackLeibler,
    Standardised,
    WithLabels,
    loss_of,
)
from kesi.method.teachers import ByConfidence, Equal, Shares, mean_probabilities
from kesi.system.errors import UsageError

K, B, C = 3, 6, 5


def numbers(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(B, C, generator=generator, dtype=dtype) * 3
    teachers = torch.randn(K, B, C, generator=generator, dtype=dtype) * 4
    return student, teachers, torch.randint(0, C, (B,), generator=generator)


def softmax(values):
    exps = [torch.exp(value) for value in values]
    return [one / sum(exps) for one in exps]


def mean_of(teachers, image, temperature, shares):
    shares = shares[image] if isinstance(shares[0], list) else shares  # of every image its own
    each = [softmax(one[image].double() / temperature) for one in teachers]
    return [sum(share * one[c] for share, one in zip(shares, each, strict=True)) for c in range(C)]


def divergence(first, second):
    return sum(p * torch.log(p / q) for p, q in zip(first, second, strict=True))


def kl(student, teachers, labels, t, shares):
    return t * t * sum(divergence(mean_of(teachers, i, t, shares), softmax(student[i] / t))
                       for i in range(B)) / B


def z_scores(logits):
    rows = logits.double().reshape(-1, C)
    made = [(row - row.mean()) / math.sqrt(float(row.var(correction=0))) if not row.requires_grad
            else (row - row.mean()) / row.var(correction=0).sqrt() for row in rows]
    return torch.stack(made).reshape(logits.shape)


def pearson(first, second):
    a, b = first - first.mean(), second - second.mean()
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def dist(student, teachers, labels, t, shares):
    told = torch.stack([torch.stack(mean_of(teachers, i, t, shares)) for i in range(B)])
    said = torch.stack([torch.stack(softmax(student[i] / t)) for i in range(B)])
    inter = sum(1 - pearson(said[i], told[i]) for i in range(B)) / B
    intra = sum(1 - pearson(said[:, c], told[:, c]) for c in range(C)) / C
    return t * t * (2 * inter + 2 * intra)


def dkd(student, teachers, labels, t, shares):
    total = 0
    for i, label in enumerate(labels.tolist()):
        told, said = mean_of(teachers, i, t, shares), softmax(student[i] / t)
        total += divergence((told[label], 1 - told[label]), (said[label], 1 - said[label]))
        others = [c for c in range(C) if c != label]
        total += 8 * divergence([told[c] / (1 - told[label]) for c in others],
                                [said[c] / (1 - said[label]) for c in others])
    return t * t * total / B


EXPECTED = {
    "kl": lambda s, t, y, w: kl(s, t, y, 5, w),
    "labels": lambda s, t, y, w: 0.9 * kl(s, t, y, 5, w) - 0.1 * sum(
        torch.log(softmax(s[i])[y[i]]) for i in range(B)) / B,
    "standardised": lambda s, t, y, w: kl(z_scores(s), z_scores(t), y, 2, w),
    "dist": lambda s, t, y, w: dist(s, t, y, 4, w),
    "dkd": lambda s, t, y, w: dkd(s, t, y, 4, w)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [Equal(), Shares((70.0, 20.0, 10.0)), ByConfidence()],
                         ids=lambda one: type(one).__name__)
def test_loss_and_gradient_are_those_of_the_formula(name, weights):
    student, teachers, labels = numbers()
    loss = LOSSES[name](weights=weights)
    found_at, expected_at = student.clone().requires_grad_(), student.double().requires_grad_()
    found = loss(found_at, teachers, labels)
    shares = {Equal: [1 / K] * K, Shares: [0.7, 0.2, 0.1],
              ByConfidence: confidences(teachers, labels)}[type(weights)]
    expected = EXPECTED[name](expected_at, teachers, labels, shares)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found_at.grad.double(), expected_at.grad, rtol=1e-3, atol=1e-5)


def test_two_standardised_logits_teach_nothing_and_are_refused():
    student, teachers, labels = numbers()
    with pytest.raises(UsageError, match="standardised logits of two classes"):
        Standardised()(student[:, :2], teachers[..., :2], labels % 2)


def test_the_papers_loss_has_not_moved_by_a_bit():
    student, teachers, labels = numbers()
    mean = None
    for logits in teachers:  # as it was before teachers had weights
        one = torch.softmax(logits / 5.0, dim=1)
        mean = one if mean is None else mean.add_(one)
    before = F.kl_div(F.log_softmax(student.float() / 5.0, dim=1), mean.div_(len(teachers)),
                      reduction="batchmean") * 5.0 ** 2
    assert torch.equal(KullbackLeibler()(student, teachers, labels), before)


def confidences(teachers, labels):
    """The shares of the teachers by image, as the paper of CA-MKD has them."""
    worth = [[math.exp(-math.log(float(softmax(one[i].double())[label]))) for one in teachers]
             for i, label in enumerate(labels.tolist())]
    return [[(1 - one / sum(each)) / (K - 1) for one in each] for each in worth]


def test_confidence_weighs_each_image_by_how_well_a_teacher_knows_its_label():
    _, teachers, labels = numbers()
    weights = ByConfidence()(teachers, labels)
    assert weights.shape == (K, B)
    for i, expected in enumerate(confidences(teachers, labels)):
        assert weights[:, i].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        mean = mean_probabilities(teachers, 5.0, weights)[i]
        told = torch.stack(mean_of(teachers, i, 5.0, expected))
        torch.testing.assert_close(mean.double(), told, rtol=1e-4, atol=1e-6)
    assert torch.equal(ByConfidence()(teachers[:1], labels), torch.ones(1, B))


def test_decoupled_with_the_teachers_own_shares_is_the_divergence():
    student, teachers, labels = numbers()
    one, label = slice(0, 1), labels[:1]
    rest = 1 - float(mean_probabilities(teachers, 4.0)[0, label])
    found = Decoupled(others=rest)(student[one], teachers[:, one], label)
    expected = KullbackLeibler(4.0)(student[one], teachers[:, one], label)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_certain_teachers_and_level_students_give_finite_gradients(name):
    labels = torch.arange(B) % C
    teachers = (F.one_hot(labels, C).float() * 500).expand(K, B, C)
    for student in (torch.zeros(B, C), F.one_hot(labels, C).float() * 300):
        student = student.clone().requires_grad_()
        LOSSES[name]()(student, teachers, labels).backward()
        assert bool(student.grad.isfinite().all())


def test_standardising_forgets_scale_and_place():
    student, teachers, labels = numbers()
    expected = Standardised()(student, teachers, labels)
    scaled = torch.stack([one * factor + 7
                          for factor, one in zip((1, 10, 0.3), teachers, strict=True)])
    torch.testing.assert_close(Standardised()(student * 4 - 2, scaled, labels), expected)


@pytest.mark.parametrize("make", [
    lambda: KullbackLeibler(0.0), lambda: WithLabels(alpha=1.5), lambda: loss_of("nonesuch"),
    lambda: Shares((0.0, 0.0)), lambda: loss_of("kl", inter=1.0),
    lambda: Dist(weights=Shares((1.0, 2.0)))(*numbers())])
def test_what_will_not_do_is_said(make):
    with pytest.raises(UsageError):
        make()
