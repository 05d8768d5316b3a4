"""How a step runs must not change what it computes: precision, compilation, CUDA graphs."""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import models
from doors import fails, works
from kesi import checkpoints
from kesi.method.distillation import Distillation, SnapshotEnsemble, frozen
from kesi.method.objectives import CrossEntropy
from kesi.method.pruning import prune_weights
from kesi.method.recipes import DISTILLATION, OWN, RETRAININGS
from kesi.method.schedules import optimizer_for, schedule_for
from kesi.method.snapshot import Snapshot
from kesi.method.training import Options
from kesi.system import execution
from kesi.system.errors import UsageError
from kesi.system.execution import machine, make_step, set_up
from kesi.system.execution.capture import CapturedStep

ONE_CYCLE, cross_entropy = RETRAININGS[OWN].training, CrossEntropy()

needs_graph = pytest.mark.skipif(not torch.cuda.is_available(),
                                 reason="needs a GPU: captures a CUDA graph")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(),
                               reason="needs a GPU: its fused optimiser and precisions")
needs_bf16 = pytest.mark.skipif(not torch.cuda.is_available() or not torch.cuda.is_bf16_supported(),
                                reason="needs a GPU with bfloat16")


@pytest.fixture(autouse=True)
def _switches_as_they_were():
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark)
    yield
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)


def network(seed=0, cfg=(2, 3, 4) * 3, device="cpu"):
    """A small ResNet-20 whose batch norms have seen images, so that it says something in eval mode.
    """
    torch.manual_seed(seed)
    model = models.create("resnet20", 10, list(cfg))
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(16, 3, 8, 8))
    return model.to(device=device, memory_format=torch.channels_last)


def batches(*sizes, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    made = [(torch.randn(size, 3, 8, 8, generator=generator),
             torch.randint(0, 10, (size,), generator=generator)) for size in sizes]
    return [(x.to(device=device, memory_format=torch.channels_last), y.to(device)) for x, y in made]


def gradients(model):
    return torch.cat([weight.grad.float().cpu().flatten() for weight in model.parameters()])


def train(model, objective, how, given, device="cpu", precision="fp32"):
    """Losses, correct predictions, and the network after one step a batch."""
    step = make_step(model, objective, device, precision, how, 100)
    optimizer = optimizer_for(model, replace(ONE_CYCLE, lr=0.01))
    losses, correct = [], []
    for images, labels in given:
        loss, hits = step(images, labels)
        optimizer.step()
        losses.append(float(loss))
        correct.append(int(hits))
    return losses, correct, model


def reference(model, objective, given):
    """The same as anybody would write it: no layouts, no fused optimiser,
    nothing kept on the device."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses, correct = [], []
    for images, labels in given:
        optimizer.zero_grad()
        logits = model(images)
        loss = objective(logits, images, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct.append(
            sum(a == b for a, b in zip(logits.argmax(1).tolist(), labels.tolist(), strict=True)))
    return losses, correct, model


def ensemble_of(*networks, device="cpu"):
    return SnapshotEnsemble([Snapshot(f"member {n}", one) for n, one in enumerate(networks)],
                            device)


def distillation(device="cpu"):
    return Distillation(ensemble_of(network(1), network(2, (2,) * 9), device=device))


@pytest.mark.parametrize("make_objective", [lambda: cross_entropy, distillation],
                         ids=["cross-entropy", "distillation"])
def test_an_eager_step_is_the_plain_one(make_objective):
    objective, given = make_objective(), batches(6, 6, 3)
    found, expected = network(), copy.deepcopy(network()).to(memory_format=torch.contiguous_format)
    ours = train(found, objective, "auto", given)
    plain = reference(expected, objective, given)
    assert ours[0] == pytest.approx(plain[0], rel=1e-4) and ours[1] == plain[1]
    torch.testing.assert_close(gradients(found), gradients(expected), rtol=1e-2, atol=1e-4)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_step_says_how_many_are_right_and_leaves_only_its_own_gradient():
    model, ((images, labels),) = network(), batches(8)
    step = make_step(model, cross_entropy, "cpu", "fp32", "off", 1)
    state = copy.deepcopy(model.state_dict())
    loss, correct = step(images, labels)
    first = gradients(model)
    model.load_state_dict(state)
    assert not loss.requires_grad and correct.dtype == torch.int64
    with torch.no_grad():
        assert int(correct) == int((model(images).argmax(1) == labels).sum())
    model.load_state_dict(state)
    step(images, labels)
    assert torch.equal(gradients(model), first)


def test_a_share_of_a_batch_weighs_its_gradient_and_not_its_loss():
    model, ((images, labels),) = network(), batches(8)
    step = make_step(model, cross_entropy, "cpu", "fp32", "off", 1)
    whole, _ = step(images, labels)
    expected = gradients(model) / 2
    half, _ = step(images, labels, 0.5)
    assert float(half) == float(whole)
    torch.testing.assert_close(gradients(model), expected)


class Tiny(nn.Module):
    """Quick to compile."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_a_compiled_step_is_the_eager_one(capsys):
    torch.manual_seed(0)
    model, given = Tiny(), batches(4, 4)
    eager = train(copy.deepcopy(model), cross_entropy, "off", given)
    compiled = train(model, cross_entropy, "on", given)
    if "compiling failed" in capsys.readouterr().err:
        pytest.skip("needs a C++ compiler: torch.compile has none here")
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5) and compiled[1] == eager[1]
    torch.testing.assert_close(gradients(model), gradients(eager[2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("no compiler\nsecond line"), ValueError()])
def test_where_compiling_fails_one_line_says_so_and_the_step_runs(monkeypatch, capsys, error):
    def compile_(function, **_):
        def call(*_):
            raise error
        return call

    monkeypatch.setattr(torch, "compile", compile_)
    expected = train(network(), cross_entropy, "off", batches(4, 4, 2))
    found = train(network(), cross_entropy, "on", batches(4, 4, 2))
    assert found[:2] == expected[:2]
    said = capsys.readouterr().err
    assert (said.count("\n") == 1 and said.startswith("compiling failed (")
            and "continuing without" in said)


def test_auto_does_not_compile_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: pytest.fail("compiled"))
    for steps_ in (1, 10**6):
        step = make_step(network(), cross_entropy, "cpu", "fp32", "auto", steps_)
        step(*batches(2)[0])


def test_auto_compiles_long_stages_on_a_gpu_and_captures_every_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile",
                        lambda function, **_: compiled.append(function) or function)
    for steps_, times in ((execution.COMPILE_FROM_STEPS - 1, 0), (execution.COMPILE_FROM_STEPS, 1)):
        compiled.clear()
        assert isinstance(make_step(network(), cross_entropy, "cuda", "fp32", "auto", steps_),
                          CapturedStep)
        assert len(compiled) == times
    compiled.clear()
    assert not isinstance(make_step(network(), cross_entropy, "cuda", "fp32", "off", 10**6),
                          CapturedStep)
    assert not compiled


def test_bf16_on_a_cpu_is_close_to_fp32():
    objective, given = distillation(), batches(16, 16, 16)
    for one in (cross_entropy, objective):
        exact = train(network(), one, "off", given)[0]
        half = train(network(), one, "off", given, precision="bf16")[0]
        assert half == pytest.approx(exact, rel=0.03, abs=0.01) and half != exact
    model = network()
    train(model, cross_entropy, "off", given[:1], precision="bf16")
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in model.parameters())


def test_precisions_by_name():
    assert set_up("cpu", "auto", False) == "fp32" and set_up("cpu", "bf16", False) == "bf16"
    with pytest.raises(UsageError, match="tf32 is for GPUs"):
        set_up("cpu", "tf32", False)
    for wrong in ({"precision": "fp16"}, {"compile": "yes"}, {"save_every": 0}, {"eval_every": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
            Options(**wrong)
    assert isinstance(execution.autocast("cpu", "fp32"), contextlib.nullcontext)


def test_deterministic_sets_torchs_switch_and_takes_it_back():
    set_up("cpu", "auto", True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    set_up("cpu", "auto", False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_freed_memory_is_kept_where_the_c_library_can_and_else_nothing_happens(monkeypatch):
    machine._keep_freed_memory()
    # a library without mallopt
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    machine._keep_freed_memory()


def test_the_flags_through_a_script(tmp_path):
    words = ("cifar/train.py", "--arch", "resnet20", "--dataset", "digits", "--epochs", 1,
             "--device", "cpu")
    for name in ("a", "b"):
        works(*words, "--deterministic", "--compile", "off", "--save", tmp_path / name)
    a, b = (checkpoints.load(tmp_path / name / "checkpoint.pth.tar").network.state_dict()
            for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    works(*words, "--precision", "bf16", "--save", tmp_path / "c")
    fails(*words, "--precision", "tf32", "--save", tmp_path / "d", code=2, says="tf32 is for GPUs")
    fails(*words, "--precision", "fp8", "--save", tmp_path / "d", code=2, says="fp8")
    assert not (tmp_path / "d").exists()


def test_masks_are_one_operation_a_step():
    model = network()
    masks = prune_weights(model, 0.5)
    masks.follow()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        masks.apply()
    called = [event for event in found.events() if event.name.startswith("aten::")
              and event.cpu_parent is None]
    assert [event.name for event in called] == ["aten::_foreach_mul_"]
    assert not any("copy" in event.name or event.name in ("aten::to", "aten::_to_copy", "aten::ne")
                   for event in found.events())


def test_teachers_are_frozen_folded_and_in_layout():
    original = network(1)
    state = copy.deepcopy(original.state_dict())
    ensemble = ensemble_of(original, network(2))
    for member in ensemble.members:
        assert (not member.training
                and not any(weight.requires_grad for weight in member.parameters()))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in member.modules())
        assert all(weight.is_contiguous(memory_format=torch.channels_last)
                   for weight in member.parameters() if weight.dim() == 4)
    student, ((images, labels),) = network(), batches(4)
    before = [copy.deepcopy(member.state_dict()) for member in ensemble.members]
    train(student, Distillation(ensemble), "off", [(images, labels)])
    for member, held in zip(ensemble.members, before, strict=True):
        assert all(torch.equal(value, held[name]) for name, value in member.state_dict().items())
        assert all(weight.grad is None for weight in member.parameters())
    assert all(torch.equal(value, state[name]) for name, value in original.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(frozen(original)(images), original.eval()(images), rtol=1e-3,
                                   atol=1e-4)


# What follows needs a GPU. The sizes end with an odd batch, which the graph does not fit.

ODD = (8, 8, 8, 8, 8, 3)


def test_full_precision_is_for_a_while(monkeypatch):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    with pytest.raises(ZeroDivisionError), execution.full_precision():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_only_batches_of_the_first_shape_are_compiled(monkeypatch):
    """The last batch of an epoch is smaller: compiling it anew would take longer than it."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: compiled.append(
        len(given[0])) or function(*given))
    model, given = network(), batches(6, 6, 3, 6)
    expected = train(copy.deepcopy(model), cross_entropy, "off", given)
    found = train(model, cross_entropy, "on", given)
    assert compiled == [6, 6, 6] and found[0] == pytest.approx(expected[0], rel=1e-5)


@needs_graph
@pytest.mark.parametrize("distil", [False, True], ids=["cross-entropy", "distillation"])
def test_a_captured_step_is_the_eager_one_also_with_an_odd_last_batch(distil, capsys):
    objective = distillation("cuda") if distil else cross_entropy
    set_up("cuda", "fp32", False)
    torch.backends.cudnn.benchmark = False  # the same algorithms for both
    given = batches(*ODD, *ODD, device="cuda")
    eager = train(network(device="cuda"), objective, "off", given, "cuda")
    captured = train(network(device="cuda"), objective, "auto", given, "cuda")
    assert captured[0] == pytest.approx(eager[0], rel=1e-4) and captured[1] == eager[1]
    for name, value in eager[2].state_dict().items():
        torch.testing.assert_close(captured[2].state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert "continuing without" not in capsys.readouterr().err


@needs_graph
def test_capturing_counts_as_no_step():
    model, (first, second) = network(device="cuda"), batches(8, 8, device="cuda")
    expected = network(device="cuda")
    make_step(expected, cross_entropy, "cuda", "fp32", "off", 1)(*first)
    step = make_step(model, cross_entropy, "cuda", "fp32", "auto", 1)
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    step(*first)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for (name, value), other in zip(model.named_buffers(), expected.buffers(), strict=True):
        # num_batches_tracked among them
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)
    step(*second)
    assert int(model.bn1.num_batches_tracked) == int(expected.bn1.num_batches_tracked) + 1


@needs_graph
def test_teachers_who_are_not_asked_ahead_are_inside_the_graph():
    ensemble = ensemble_of(network(1), network(2), device="cuda")
    calls = []
    for member in ensemble.members:
        member.register_forward_hook(lambda *_: calls.append(1))
    step = make_step(network(device="cuda"), Distillation(ensemble), "cuda", "fp32", "auto", 1)
    first, second = batches(8, 8, device="cuda")
    one, _ = step(*first)
    captured = len(calls)
    other, _ = step(*second)
    assert captured > 0 and len(calls) == captured  # no Python of a teacher runs any more
    assert float(one) != float(other)


@needs_graph
def test_where_capturing_fails_one_line_says_so_and_the_step_runs(capsys):
    def objective(logits, images, labels):
        loss = cross_entropy(logits, images, labels)
        assert float(loss.detach()) > 0  # reads back, which a graph cannot
        return loss

    given = batches(*ODD, device="cuda")
    expected = train(network(device="cuda"), objective, "off", given, "cuda")
    found = train(network(device="cuda"), objective, "auto", given, "cuda")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "CUDA graph failed" in said
    assert found[0] == pytest.approx(expected[0], rel=1e-3)


@needs_graph
def test_what_a_captured_step_returns_outlives_the_next_one():
    step = make_step(network(device="cuda"), cross_entropy, "cuda", "fp32", "auto", 1)
    kept = [step(*one)[0] for one in batches(8, 8, 8, device="cuda")]
    assert len({float(loss) for loss in kept}) == 3


@needs_gpu
@pytest.mark.parametrize("stage", [ONE_CYCLE, DISTILLATION], ids=["sgd", "adam"])
def test_the_fused_optimiser_with_a_captured_step_follows_the_schedule(stage):
    stage, given = replace(stage, epochs=1), batches(*ODD, device="cuda")
    weights = []
    for how in ("off", "auto"):
        set_up("cuda", "fp32", False)
        torch.backends.cudnn.benchmark = False
        model = network(device="cuda")
        step = make_step(model, cross_entropy, "cuda", "fp32", how, len(given))
        optimizer = optimizer_for(model, stage)
        schedule = schedule_for(optimizer, stage, len(given))
        assert optimizer.defaults["fused"]
        for one in given:
            step(*one)
            optimizer.step()
            schedule.step()
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-2, atol=1e-3)


@needs_bf16
def test_bf16_is_the_default_on_a_gpu_and_close_to_fp32():
    assert set_up("cuda", "auto", False) == "bf16"
    given = batches(*ODD, device="cuda")
    exact = train(network(device="cuda"), cross_entropy, "off", given, "cuda")[0]
    half = train(network(device="cuda"), cross_entropy, "auto", given, "cuda", "bf16")[0]
    assert half == pytest.approx(exact, rel=0.05)


@needs_gpu
def test_tf32_is_a_choice():
    assert set_up("cuda", "tf32", False) == "tf32" and torch.backends.cudnn.allow_tf32
    set_up("cuda", "fp32", False)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_the_reference_here_uses_the_loss_of_the_paper():
    (images, labels), = batches(4)
    logits = network().eval()(images)
    torch.testing.assert_close(cross_entropy(logits, images, labels),
                               F.cross_entropy(logits, labels))
