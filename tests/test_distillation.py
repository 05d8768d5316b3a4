"""The ensemble and its distillation."""

import copy

import pytest
import torch
import torch.nn.functional as F

import models
from kesi.data import load
from kesi.method.distillation import (
    Distillation,
    SnapshotEnsemble,
    agreement,
    frozen,
)
from kesi.method.objectives import KullbackLeibler
from kesi.method.snapshot import Snapshot
from kesi.method.teachers import mean_probabilities
from kesi.system.errors import UsageError


def networks(count=3, arch="resnet20", classes=5):
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = models.create(arch, classes)
        network(torch.randn(16, 3, 16, 16))  # running statistics of its own
        found.append(network.eval())
    return found


def ensemble_of(*networks):
    return SnapshotEnsemble([Snapshot(f"member {n}", one) for n, one in enumerate(networks)])


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_one_loss_has_the_gradient_of_the_mean_of_kl_terms(temperature):
    torch.manual_seed(0)
    teachers = torch.randn(4, 8, 6, dtype=torch.float64) * 3
    student = torch.randn(8, 6, dtype=torch.float64)
    one, many = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = KullbackLeibler(temperature)(one, teachers, None)
    loss.backward()
    terms = 0
    for teacher in teachers:  # written out from the definition of the Kullback-Leibler divergence
        p, q = torch.softmax(teacher / temperature, 1), torch.softmax(many / temperature, 1)
        terms = terms + temperature ** 2 * (p * (p.log() - q.log())).sum(1).mean() / len(teachers)
    terms.backward()
    assert torch.allclose(one.grad, many.grad, rtol=1e-4, atol=1e-7)
    # the two losses differ by how much the teachers disagree, which the student cannot change
    assert terms.item() > loss.item()


def test_loss_is_zero_only_where_the_student_equals_the_teacher():
    logits = torch.randn(4, 5)
    loss = KullbackLeibler(5.0)
    assert loss(logits, logits[None], None).item() == pytest.approx(0, abs=1e-5)
    assert loss(logits + torch.randn(4, 5), logits[None], None).item() > 0.01


def test_no_gradient_reaches_a_teacher_and_none_is_changed():
    teachers = networks()
    before = [copy.deepcopy(teacher.state_dict()) for teacher in teachers]
    student = models.create("resnet20", 5)
    objective = Distillation(ensemble_of(*teachers))
    images = torch.randn(4, 3, 16, 16)
    objective(student(images), images, torch.zeros(4, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    for member in [*objective.ensemble.members, *teachers]:
        assert all(parameter.grad is None for parameter in member.parameters())
    for teacher, state in zip(teachers, before, strict=True):
        assert not any(member is teacher for member in objective.ensemble.members)
        assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet20", "preresnet164", "wrn-16-8", "vgg16", "resnet18"])
def test_frozen_teacher_predicts_what_the_network_predicts(arch):
    network = networks(1, arch)[0]
    images = torch.randn(2, 3, 32, 32)
    copied = frozen(network)
    with torch.no_grad():
        assert torch.allclose(copied(images), network(images), rtol=1e-3, atol=1e-4)
    norms = [module for module in copied.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    # their first norms have no convolution before them
    pre_activation = arch in ("preresnet164", "wrn-16-8")
    assert bool(norms) == pre_activation and not any(p.requires_grad for p in copied.parameters())


def test_probabilities_are_the_mean_of_the_members_softmax():
    members, images = networks(), torch.randn(4, 3, 16, 16)
    logits = ensemble_of(*members).logits(images)
    for temperature in (1.0, 5.0):
        expected = torch.stack([torch.softmax(m(images) / temperature, 1) for m in members]).mean(0)
        assert torch.allclose(mean_probabilities(logits, temperature), expected, atol=1e-5)


def test_members_have_to_know_the_same_classes():
    with pytest.raises(UsageError, match="a has 5, b has 7"):
        SnapshotEnsemble([Snapshot("a", models.create("resnet20", 5)),
                          Snapshot("b", models.create("resnet20", 7))])
    with pytest.raises(UsageError, match="at least one"):
        SnapshotEnsemble([])
    with pytest.raises(UsageError, match="temperature"):
        KullbackLeibler(0.0)


def test_agreement_by_hand():
    # three images, classes 0 1 2; member one is right on the first two, member two on the last two
    one = torch.tensor([[9.0, 0, 0], [0, 2, 1], [3, 0, 0]])
    two = torch.tensor([[0, 1.0, 0], [0, 3, 0], [0, 0, 9]])
    found = agreement(torch.stack([one, two]), torch.tensor([0, 1, 2]))
    assert found.accuracy == pytest.approx([200 / 3, 200 / 3])
    assert found.growing_accuracy == pytest.approx([200 / 3, 100])
    assert found.disagreement == [[0, pytest.approx(200 / 3)], [pytest.approx(200 / 3), 0]]
    mean = (torch.softmax(one, 1) + torch.softmax(two, 1)) / 2
    assert (found.loss
            == pytest.approx(float(F.nll_loss(mean.log(), torch.tensor([0, 1, 2]))), rel=1e-5))


def test_ensemble_predicts_each_member_on_the_whole_split_in_order():
    dataset = load("digits")
    members = networks(2, classes=10)
    logits = ensemble_of(*members).predict(dataset, dataset.test)
    assert logits.shape == (2, 1497, 10)
    from kesi.method.training import predict
    assert torch.allclose(logits[1], predict(members[1], dataset, dataset.test), rtol=1e-3,
                          atol=1e-4)
