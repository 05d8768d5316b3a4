"""What an audit of the GPU path found, each held by a test: on the CPU where that shows it, else on
a GPU."""

import contextlib
import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import models
from doors import fails, works
from kesi import checkpoints
from kesi.data import load
from kesi.data.batches import TrainBatches, eval_batch_size, eval_batches
from kesi.method.distillation import Distillation, SnapshotEnsemble
from kesi.method.objectives import CrossEntropy, KullbackLeibler
from kesi.method.recipes import ONE_CYCLE
from kesi.method.snapshot import Snapshot
from kesi.method.training import Options, evaluate, fit, predict
from kesi.system import distributed, execution, norms
from kesi.system.errors import UsageError
from kesi.system.execution import make_forward, make_step, set_up
from kesi.system.execution.capture import CapturedForward, CapturedStep, Recorder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(Recorder, "failed", False)
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark)
    yield
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def network(seed=0, cfg=(2, 3, 4) * 3):
    torch.manual_seed(seed)
    model = models.create("resnet20", 10, list(cfg))
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(16, 3, 8, 8))
    return model.to(memory_format=torch.channels_last)


def batch(size=8, device="cpu", seed=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    return images.to(device), torch.randint(0, 10, (size,), generator=generator).to(device)


def weights(model):
    return torch.cat([value.flatten().double().cpu() for value in model.state_dict().values()])


class Dropping(nn.Module):
    """Quick to compile, with random numbers and running statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.fc(nn.functional.dropout(x, 0.5, self.training))


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no kernel for the backward pass")


def test_what_fails_to_compile_in_the_backward_pass_costs_a_line_and_no_bit(monkeypatch, capsys):
    def compile_(function, **_):
        def call(*given):
            loss, correct = function(*given)  # counts in the norms, draws for dropout
            return _FailsBackward.apply(loss), correct

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    torch.manual_seed(0)
    eager = Dropping()
    model = copy.deepcopy(eager)
    found = []
    for one, how in ((eager, "off"), (model, "on")):
        torch.manual_seed(1)
        step = make_step(one, CrossEntropy(), "cpu", "fp32", how, 1)
        found.append([float(step(*batch())[0]) for _ in range(3)])
    assert found[0] == found[1]
    assert torch.equal(weights(eager), weights(model))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no kernel for the backward pass" in said


def test_an_error_after_the_first_step_is_no_failed_compilation(monkeypatch):
    calls = []

    def compile_(function, **_):
        def call(*given):
            calls.append(1)
            if len(calls) > 1:
                raise ZeroDivisionError
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    step = make_step(network(), CrossEntropy(), "cpu", "fp32", "on", 1)
    step(*batch())
    with pytest.raises(ZeroDivisionError):
        step(*batch())


@pytest.mark.slow
def test_dropout_draws_the_same_numbers_compiled_and_not(capsys):
    torch.manual_seed(0)
    model, losses = Dropping(), []
    for how in ("off", "on"):
        step = make_step(copy.deepcopy(model), CrossEntropy(), "cpu", "fp32", how, 1)
        torch.manual_seed(1)
        losses.append([float(step(*batch())[0]) for _ in range(2)])
    if "compiling failed" in capsys.readouterr().err:
        pytest.skip("needs a C++ compiler: torch.compile has none here")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_cudnn_searches_for_the_first_shape_only(monkeypatch):
    seen = []
    monkeypatch.setattr(
        execution.step,
        "_eager",
        lambda model, forward: (
            lambda images, labels, weight=1.0: seen.append(
                (len(images), torch.backends.cudnn.benchmark)
            )
        ),
    )
    step = make_step(network(), CrossEntropy(), "cuda", "fp32", "off", 1)
    for size in (8, 3, 8):
        step(*batch(size))
    assert seen == [(8, True), (3, False), (8, True)] and not torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    make_step(network(), CrossEntropy(), "cuda", "fp32", "off", 1)(*batch(8))
    assert seen[-1] == (8, False)


def test_deterministic_compiles_nothing_and_fills_no_memory(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: pytest.fail("compiled"))
    set_up("cpu", "auto", True)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    make_step(network(), CrossEntropy(), "cuda", "fp32", "auto", 10**6)
    with pytest.raises(UsageError, match="--deterministic"):
        make_step(network(), CrossEntropy(), "cpu", "fp32", "on", 1)


def test_deterministic_and_compiled_is_one_line(tmp_path):
    fails(
        "cifar/train.py",
        "--arch",
        "resnet20",
        "--dataset",
        "digits",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--deterministic",
        "--compile",
        "on",
        "--save",
        tmp_path / "a",
        code=2,
        says="--deterministic",
    )


def test_capture_without_compiling_is_a_choice(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: pytest.fail("compiled"))
    assert isinstance(
        make_step(network(), CrossEntropy(), "cuda", "fp32", "capture", 10**6), CapturedStep
    )
    make_step(network(), CrossEntropy(), "cpu", "fp32", "capture", 10**6)(*batch())


@pytest.fixture
def no_cuda(monkeypatch):
    """A device that captures nothing, so that the way around it can be seen without one."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    tried = []

    def record(function, inputs, model):
        tried.append(1)
        function(*inputs)  # a warm-up, then the failure
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(Recorder, "_record", staticmethod(record))
    return tried


def test_after_a_failed_capture_no_other_is_tried_and_nothing_of_it_stays(no_cuda, capsys):
    torch.manual_seed(0)
    eager = Dropping()
    captured = copy.deepcopy(eager)
    plain = make_step(eager, CrossEntropy(), "cpu", "fp32", "off", 1)
    torch.manual_seed(1)
    expected = [float(plain(*batch())[0]) for _ in range(2)]
    torch.manual_seed(1)
    step = CapturedStep(captured, make_step(captured, CrossEntropy(), "cpu", "fp32", "off", 1))
    assert [float(step(*batch())[0]) for _ in range(2)] == expected
    assert torch.equal(weights(eager), weights(captured)) and step.replay is None
    CapturedStep(captured, step)(*batch())
    CapturedForward(captured.eval())(batch()[0])
    assert len(no_cuda) == 1
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "capturing the step as a CUDA graph failed (operation not" in said
    )


def test_batches_are_counted_in_one_operation_and_as_often_as_before():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never, self.fc = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 10)
            self.own = nn.BatchNorm2d(3, momentum=None)

        def forward(self, x):
            return self.fc(self.own(self.twice(self.twice(x))).mean((2, 3)))

    model = Twice()
    step = make_step(model, CrossEntropy(), "cpu", "fp32", "off", 1)
    for _ in range(2):
        step(*batch())
    assert [int(norm.num_batches_tracked) for norm in (model.twice, model.never, model.own)] == [
        4,
        0,
        2,
    ]
    model = network()
    step, before = (
        make_step(model, CrossEntropy(), "cpu", "fp32", "off", 1),
        int(model.bn1.num_batches_tracked),
    )
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(*batch())
    names = [event.name for event in found.events()]
    assert names.count("aten::_foreach_add_") == 1
    counted = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == before + 1 for norm in counted)
    with pytest.raises(ZeroDivisionError), norms.counted(counted):
        raise ZeroDivisionError
    assert all(isinstance(norm.num_batches_tracked, torch.Tensor) for norm in counted)


def test_evaluation_batches_are_large_on_a_gpu_and_on_a_cpu_as_they_were():
    assert eval_batch_size(10_000, 32, "cpu") == 512 == eval_batch_size(10, 224, "cpu")
    assert eval_batch_size(10_000, 32, "cuda") == 3334  # three equal ones, of at most 4,096
    assert eval_batch_size(10_000, 224, "cuda:0") == 500 and eval_batch_size(7, 32, "cuda") == 7
    digits = load("digits")
    assert [len(labels) for _, labels in eval_batches(digits, digits.test)] == [512, 512, 473]


def test_on_a_cpu_an_epochs_accuracy_is_the_reported_one_bit_for_bit():
    digits, model = load("digits"), network()
    assert make_forward(model, "cpu", "bf16", "auto") is None
    history = fit(model, digits, ONE_CYCLE.scaled(0.02), seed=0, options=Options(eval_every=1))
    assert (history[-1].test_loss, history[-1].test_accuracy) == evaluate(
        model, digits, digits.test
    )


def test_what_an_epoch_is_evaluated_with_meanwhile_reports_nothing(monkeypatch):
    """On a GPU that is a captured TF32 pass; here one that is wrong, so that its figures tell."""
    monkeypatch.setattr("kesi.method.training.make_forward",
                        lambda *_: lambda images: torch.zeros(len(images), 10))
    digits, model, seen = load("digits"), network(), []
    history = fit(model, digits, ONE_CYCLE.scaled(0.05), seed=0, options=Options(eval_every=1),
                  on_epoch=lambda progress: seen.append(evaluate(model, digits, digits.test)))
    told = [(row.test_loss, row.test_accuracy) for row in history]
    assert told[-1] == seen[-1] and told[0] != seen[0]


@pytest.mark.parametrize(("precision", "tf32"), [("bf16", True), ("tf32", True), ("fp32", False)])
def test_a_gpu_evaluates_in_tf32_while_it_trains_and_reports_in_fp32(precision, tf32):
    digits, seen = load("digits"), []
    model = network()
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    forward = make_forward(model, "cuda", precision, "off")
    predict(model, digits, digits.test, "cpu", forward)
    assert seen == [tf32] * 3
    seen.clear()
    torch.backends.cudnn.allow_tf32 = True
    predict(model, digits, digits.test)
    assert seen == [False] * 3 and torch.backends.cudnn.allow_tf32


def test_teachers_are_held_in_bf16_and_say_the_same_bit_for_bit():
    ensemble = SnapshotEnsemble([Snapshot(str(seed), network(seed)) for seed in (1, 2)])
    images, labels = batch()
    with execution.autocast("cpu", "bf16"):
        cast = ensemble.logits(images)
    objective = Distillation(ensemble, KullbackLeibler(5.0))
    step = make_step(network(), objective, "cpu", "bf16", "off", 1)
    held = objective._teachers
    kinds = {weight.dtype for member in held.members for weight in member.parameters()}
    assert kinds == {torch.bfloat16}
    assert all(
        weight.dtype == torch.float32
        for member in ensemble.members
        for weight in member.parameters()
    )
    copies = []
    for one in (ensemble, held):
        with execution.autocast("cpu", "bf16"), profile(activities=[ProfilerActivity.CPU]) as found:
            assert torch.equal(one.logits(images), cast)
        copies.append(sum(event.name == "aten::_to_copy" for event in found.events()))
    assert cast.dtype == torch.float32
    assert copies[0] - copies[1] == sum(len(list(member.parameters())) for member in held.members)
    step(images, labels)
    other = Distillation(ensemble, KullbackLeibler(5.0))
    make_step(network(), other, "cpu", "fp32", "off", 1)
    assert other._teachers is ensemble


@pytest.mark.parametrize("mixup", [False, True])
def test_teachers_answer_several_batches_at_once_with_the_same_result(monkeypatch, mixup):
    digits = load("digits")
    training = replace(ONE_CYCLE, epochs=2, batch_size=64, mixup=mixup)
    asked, found = [], []
    for count in (1, 3):
        monkeypatch.setattr(execution.Ahead, "together", lambda self, shape, count=count: count)
        ensemble = SnapshotEnsemble([Snapshot(str(seed), network(seed)) for seed in (1, 2)])
        ensemble.members[0].register_forward_hook(lambda *given: asked.append(len(given[2])))
        model = network()
        history = fit(model, digits, training, seed=1, objective=Distillation(ensemble))
        found.append((weights(model), history, [*asked]))
        asked.clear()
    (one, rows, singly), (other, others, together) = found
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # but for rounding
    assert [row.train_loss for row in rows] == pytest.approx([row.train_loss for row in others],
                                                             rel=1e-4)
    sizes = TrainBatches(digits, 64, 1)
    odd = sizes.images % 64
    assert len(singly) == 2 * sizes.steps and singly.count(odd) == 2
    assert len(together) == 2 * -(-sizes.steps // 3) and sum(together) == sum(singly)


def test_as_many_batches_are_answered_at_once_as_fill_a_gpu():
    ensemble = SnapshotEnsemble([Snapshot("teacher", network())])
    for objective, device, counts in ((Distillation(ensemble), "cuda", (4, 4, 1)),
                                      (Distillation(ensemble), "cpu", (1, 1, 1)),
                                      (CrossEntropy(), "cuda", (1, 1, 1))):
        ahead = execution.Ahead(network(), objective, device, "fp32", "auto")
        shapes = (128, 3, 32, 32), (16, 3, 224, 224), (128, 3, 224, 224)
        assert tuple(ahead.together(torch.Size(shape)) for shape in shapes) == counts


def test_teachers_for_whom_the_memory_does_not_suffice_answer_one_batch_at_a_time(
        no_cuda, monkeypatch, capsys):
    """Neither a failed capture nor a full memory costs a batch, or its answers."""
    ensemble = SnapshotEnsemble([Snapshot("teacher", network(1))])
    objective, given = Distillation(ensemble), [batch(8, seed=seed) for seed in range(6)]

    def full(module, inputs):
        if most is not None and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("out of memory")

    ensemble.members[0].register_forward_pre_hook(full)
    for most in (None, 8):
        found = list(execution.Ahead(network(), objective, "cuda", "fp32", "auto")(given))
        for (images, _, answers), (one, _) in zip(found, given, strict=True):
            assert images is one and (answers is None) == (most == 8)
            if answers is not None:
                torch.testing.assert_close(answers, ensemble.logits(images), rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().err
    assert said.count("one at a time") == 1 and said.count("capturing the teachers") == 1


def test_a_short_last_batch_is_asked_for_like_those_before(monkeypatch):
    ahead = execution.Ahead(network(), Distillation(SnapshotEnsemble(
        [Snapshot("teacher", network())])), "cuda", "fp32", "off")
    monkeypatch.setattr("kesi.system.execution.step.PIXELS", 8 * 8 * 8)
    assert [answers for _, _, answers in ahead([batch(8), batch(8), batch(2)])] == [None] * 3


@pytest.fixture
def replayed(monkeypatch):
    """A device whose graphs are Python, so that what goes in and comes out can be seen without a
    GPU: a replay writes over what the recording returned, gradients included."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def record(function, inputs, model):
        model.zero_grad(set_to_none=True)
        found = function(*inputs)
        kept = [parameter.grad for parameter in model.parameters()]

        class Graph:
            @staticmethod
            def replay():
                new = function(*inputs)
                for ours, theirs in zip(found if isinstance(found, tuple) else (found,),
                                        new if isinstance(new, tuple) else (new,), strict=True):
                    ours.copy_(theirs)
                for ours, parameter in zip(kept, model.parameters(), strict=True):
                    if ours is not None:
                        ours.copy_(parameter.grad)

        return Graph, found

    monkeypatch.setattr(Recorder, "_record", staticmethod(record))


@pytest.mark.parametrize("teachers", [1, 2])
def test_captured_teachers_and_step_pass_on_what_belongs_to_each_batch(replayed, teachers):
    given = [batch(size, seed=place) for place, size in enumerate((8, 8, 8, 8, 8, 8, 3))]
    losses, found = [], []
    for captured in (False, True):
        ensemble = SnapshotEnsemble([Snapshot(str(seed), network(seed + 1))
                                     for seed in range(teachers)])
        objective, model = Distillation(ensemble), network()
        device = "cuda" if captured else "cpu"
        ahead = execution.Ahead(model, objective, device, "fp32", "auto")
        step = make_step(model, objective, device, "fp32", "auto", 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for images, labels, answers in list(ahead(given)):  # none is written over by a later one
            assert (answers is not None) == captured
            losses.append(float(step(images, labels, 1.0, answers)[0]))
            optimizer.step()
        found.append(weights(model))
    assert losses[:7] == pytest.approx(losses[7:], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_synchronised_norms_are_torchs_on_a_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    norm = nn.BatchNorm2d(3)
    with distributed.synchronised_norms(norm, True):
        assert type(norm) is distributed._SyncBatchNorm
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", property(lambda self: True), raising=False)
    with distributed.synchronised_norms(norm, True):
        assert type(norm) is nn.SyncBatchNorm and norm.process_group is None
    assert type(norm) is nn.BatchNorm2d and "process_group" not in vars(norm)


def test_auto_has_a_name_on_every_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert (
        execution.resolved("cpu", "auto") == "fp32" and execution.resolved("cuda", "auto") == "bf16"
    )
    assert execution.resolved("cuda:1", "tf32") == "tf32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert execution.resolved("cuda", "auto") == "fp32"


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_precision_is_recorded_as_what_it_became(tmp_path, precision):
    works(
        "cifar/train.py",
        "--arch",
        "resnet20",
        "--dataset",
        "digits",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--precision",
        precision,
        "--save",
        tmp_path,
    )
    became = {"auto": "fp32"}.get(precision, precision)
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["precision"] == became
    assert checkpoints.load(tmp_path / "checkpoint.pth.tar").info.settings["precision"] == became


# What follows needs a GPU.


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_and_captured_on_a_gpu_it_is_the_eager_step(precision, capsys):
    torch.manual_seed(0)
    model, losses = Dropping().cuda(), []
    set_up("cuda", precision, False)
    for how in ("off", "capture", "on"):
        step = make_step(copy.deepcopy(model), CrossEntropy(), "cuda", precision, how, 1)
        torch.manual_seed(1)
        losses.append([float(step(*batch(size, "cuda"))[0]) for size in (8, 8, 3, 8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3 if precision == "fp32" else 3e-2)
    assert "continuing without" not in capsys.readouterr().err


@needs_gpu
def test_an_evaluation_that_is_captured_sees_the_weights_of_now():
    model, digits = network().cuda(), load("digits")
    set_up("cuda", "fp32", False)
    forward = make_forward(model, "cuda", "fp32", "auto")
    for _ in range(2):
        exact = predict(model, digits, digits.test, "cuda")
        found = predict(model, digits, digits.test, "cuda", forward)
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            model.fc.weight.mul_(-2)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_teachers_answer_as_they_do_one_batch_at_a_time(precision):
    ensemble = SnapshotEnsemble([Snapshot(str(seed), network(seed)) for seed in (1, 2)], "cuda")
    model, objective, calls, captured = network().cuda(), Distillation(ensemble), [], []
    set_up("cuda", precision, False)
    make_step(model, objective, "cuda", precision, "auto", 1)  # holds the teachers in bf16
    objective._teachers.members[0].register_forward_hook(lambda *_: calls.append(1))
    ahead = execution.Ahead(model, objective, "cuda", precision, "auto")
    near = {"fp32": 1e-3, "bf16": 5e-2}[precision]
    for _ in range(2):
        for images, _, answers in (
                ahead(batch(size, "cuda", seed) for seed, size in enumerate((8, 8, 8, 8, 8, 3)))):
            captured.append(len(calls))
            with execution.autocast("cuda", precision, cache=False):
                alone = objective.ask(images)
            torch.testing.assert_close(answers, alone, rtol=near, atol=near)
            calls.pop()
    assert len(captured) == 12 and len(set(captured)) == 1  # no Python of a teacher runs any more


@needs_gpu
def test_captures_share_a_stream():
    streams = []
    for _ in range(2):
        step = make_step(network().cuda(), CrossEntropy(), "cuda", "fp32", "capture", 1)
        step(*batch(device="cuda"))
        assert step.replay is not None
        streams.append(Recorder.stream)
    assert streams[0] is streams[1] is not None
