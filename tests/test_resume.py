"""Nothing is lost: interrupts, damaged and half-written files, full disks, two processes,
and real kills."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from chaos import KINDS, differences
from doors import ROOT, fails, script, works
from kesi import checkpoints
from kesi.data import Split, load
from kesi.method.pruning import prune_weights
from kesi.method.recipes import ONE_CYCLE
from kesi.method.training import Options
from kesi.runs import resume
from kesi.runs.folder import move_aside
from kesi.runs.stage import Context
from kesi.runs.steps import retrain
from kesi.system import files
from kesi.system.errors import KesiError, UsageError
from kesi.system.locks import LOCK, held
from saving import keep
from tinyrun import same_command

pytest_plugins = ["tinyrun"]

EPOCHS = 6
STAGE = replace(ONE_CYCLE, epochs=EPOCHS, batch_size=32)


@pytest.fixture(scope="module")
def dataset():
    """Digits, but only as many as a test needs."""
    digits = load("digits")
    return replace(digits, train=Split(digits.train.images[:96], digits.train.labels[:96]),
                   test=Split(digits.test.images[:50], digits.test.labels[:50]))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A pruned network of a few filters, to be retrained within a second."""
    torch.manual_seed(0)
    network = models.create("resnet20", 10, [2] * 9)
    path = tmp_path_factory.mktemp("pruned") / "pruned.pth.tar"
    keep(path, network, prune_weights(network, 0.5), kind="pruned", round=1, method="weight")
    return checkpoints.load(path)


@pytest.fixture(scope="module")
def train(dataset, pruned):
    """Retrain into a folder; ``stop_after`` interrupts in the middle of the epoch that follows."""
    def run(folder, save_every=1, stop_after=None, fresh=False, seed=0,
            interrupt=KeyboardInterrupt):
        context = Context(dataset, seed, Options(eval_every=0, save_every=save_every), fresh)
        if stop_after is None:
            return retrain(context, STAGE, pruned, folder).path
        apply, left = torch.nn.functional.cross_entropy, [stop_after * 3 + 2]

        def counting(*arguments, **named):  # 3 steps an epoch
            left[0] -= 1
            if not left[0]:
                raise interrupt
            return apply(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(interrupt):
            patch.setattr("torch.nn.functional.cross_entropy", counting)
            retrain(context, STAGE, pruned, folder)
        return None
    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The checkpoint of a run that nothing disturbed."""
    return train(tmp_path_factory.mktemp("whole"))


def digest(path):
    return checkpoints.load(path).digest


def epoch_of(path):
    return checkpoints.load(path).training["epoch"]


# -- interrupts

def test_an_average_is_saved_and_goes_on_and_no_other_training_takes_it_up(dataset, pruned,
                                                                          tmp_path):
    averaged = replace(STAGE, ema=0.7)

    def stage(name, training, epochs=None):
        context = Context(dataset, 0, Options(eval_every=0))
        if epochs is not None:
            context = replace(context, watch=_Stop(epochs))
        return retrain(context, training, pruned, tmp_path / name).digest

    expected = stage("whole", averaged)
    with pytest.raises(KeyboardInterrupt):
        stage("halves", averaged, 3)
    state = checkpoints.load(tmp_path / "halves" / resume.STATE)
    assert state.training["epoch"] == 3 and resume.continuable(state)
    for other in (STAGE, replace(STAGE, ema=0.5)):
        with pytest.raises(UsageError, match="another ema"):
            stage("halves", other)
    assert stage("halves", averaged) == expected
    state.training["ema"].pop()
    assert not resume.continuable(state)
    del state.training["ema"]
    assert not resume.continuable(state)
    assert stage("plain", STAGE) != expected


class _Stop:
    """Interrupts a stage after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def after_epoch(self, folder):
        self.epoch -= 1
        if not self.epoch:
            raise KeyboardInterrupt

    def after_stage(self):
        pass


@pytest.mark.parametrize("save_every", [1, 4, 10])
@pytest.mark.parametrize("stop_after", [0, 1, 5])
def test_an_interrupt_loses_the_epoch_in_progress_and_no_other(train, whole, tmp_path, save_every,
                                                               stop_after, capsys):
    train(tmp_path, save_every, stop_after)
    assert (tmp_path / resume.STATE).exists() == bool(stop_after)
    if stop_after:
        assert epoch_of(tmp_path / resume.STATE) == stop_after
        assert (("saved as it was after" in capsys.readouterr().out)
                == (stop_after % save_every != 0))
    assert digest(train(tmp_path, save_every)) == digest(whole)
    assert ("continues after epoch" in capsys.readouterr().out) == bool(stop_after)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pth.tar", "metrics.jsonl", "result.json"]


def test_an_interrupted_write_is_made_good(train, whole, tmp_path, monkeypatch):
    write, calls = files.os.replace, []

    def interrupted(source, target):
        if str(target).endswith(resume.STATE):
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return write(source, target)

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert epoch_of(tmp_path / resume.STATE) == 2 and epoch_of(tmp_path / resume.PREVIOUS) == 1
    assert digest(train(tmp_path)) == digest(whole)


def test_an_error_saves_the_last_good_epoch_too(train, whole, tmp_path):
    train(tmp_path, 10, 3, interrupt=MemoryError)
    assert epoch_of(tmp_path / resume.STATE) == 3 and digest(train(tmp_path)) == digest(whole)


def test_the_copy_on_the_host_does_not_follow_the_training():
    value = {"a": [torch.ones(2), 3], "b": ({"c": torch.ones(1)},)}
    copied = resume.on_host(value)
    value["a"][0].zero_(), value["b"][0]["c"].zero_(), value["a"].append(4)
    assert (copied["a"][0].tolist() == [1, 1] and len(copied["a"]) == 2
            and copied["b"][0]["c"].tolist() == [1])


# -- damage

def damage(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content), 499):  # one bit alone may hit padding
        content[place] ^= 16
    path.write_bytes(bytes(content))


def test_a_damaged_state_is_reported_and_the_one_before_it_used(train, whole, tmp_path, capsys):
    train(tmp_path, 1, 4)
    damage(tmp_path / resume.STATE)
    with pytest.warns(UserWarning,
                      match=rf"{resume.STATE} is damaged.*: trying {resume.PREVIOUS}") as seen:
        # one more epoch only, so that the good one before must still be there
        train(tmp_path, 1, 4 - 3)
    assert len(seen) == 1 and "continues after epoch 3" in capsys.readouterr().out
    assert epoch_of(tmp_path / resume.STATE) == 4 and epoch_of(tmp_path / resume.PREVIOUS) == 3
    assert digest(train(tmp_path)) == digest(whole)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pth.tar", "metrics.jsonl", "result.json"]


def test_without_a_whole_state_the_stage_starts_over(train, whole, tmp_path, capsys):
    train(tmp_path, 1, 4)
    damage(tmp_path / resume.STATE)
    (tmp_path / resume.PREVIOUS).write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged or not a checkpoint.*: the stage starts over"):
        assert digest(train(tmp_path)) == digest(whole)
    assert "continues" not in capsys.readouterr().out


def test_a_state_of_nothing_is_no_state(train, whole, tmp_path):
    tmp_path.joinpath(resume.STATE).write_bytes(whole.read_bytes())
    with pytest.warns(UserWarning,
                      match="is not the state of an unfinished stage: the stage starts over"):
        assert digest(train(tmp_path)) == digest(whole)


def test_a_kill_between_the_two_renames_costs_one_epoch(train, whole, tmp_path, capsys):
    train(tmp_path, 1, 3)
    (tmp_path / resume.STATE).replace(tmp_path / resume.PREVIOUS)
    assert digest(train(tmp_path)) == digest(whole)
    assert "continues after epoch 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.pth.tar", "result.json", "both"])
def test_a_damaged_finished_stage_is_reported_and_runs_again(train, whole, tmp_path, name):
    path = train(tmp_path)
    if name == "result.json":
        (tmp_path / name).write_text("{")
    else:
        damage(path)
    with pytest.warns(UserWarning,
                      match="is (damaged|not valid).*runs again|cannot read .*runs again"):
        assert digest(train(tmp_path)) == digest(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path)


def test_what_a_newer_kesi_left_is_neither_damaged_nor_made_anew(train, whole, tmp_path):
    folder = shutil.copytree(whole.parent, tmp_path / "stage")
    content = torch.load(whole, weights_only=True) | {"version": 2}
    torch.save(content, folder / whole.name)
    before = (folder / whole.name).read_bytes()
    with pytest.raises(UsageError, match="is of a newer KESI"):
        train(folder)
    assert (folder / whole.name).read_bytes() == before


def test_a_checkpoint_of_another_result_is_not_taken(train, whole, tmp_path):
    train(tmp_path).write_bytes(train(tmp_path / "other", seed=1).read_bytes())
    with pytest.warns(UserWarning, match="is not the checkpoint that .*result.json describes"):
        assert digest(train(tmp_path)) == digest(whole)


def test_other_settings_are_refused_even_where_the_checkpoint_is_damaged(train, tmp_path):
    damage(train(tmp_path))
    with pytest.raises(UsageError, match="another seed"):
        train(tmp_path, seed=1)


# -- full disks

def limited(megabytes, code):
    """Run Python code in a process whose files may not grow beyond a size;
    returns (code, stdout, stderr)."""
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 2**20),) * 2)

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True,
                          text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_a_full_disk_leaves_the_last_good_state_and_one_line(train, whole, tmp_path, pruned):
    train(tmp_path, 1, 2)
    before = (tmp_path / resume.STATE).read_bytes()
    code, out, err = limited(len(before) * 0.7 / 2**20, f"""
import sys
sys.argv = ["finetune.py"]
from kesi.cli import entry
from kesi.data import load
from kesi import checkpoints
from kesi.method.recipes import RETRAININGS
from kesi.runs.stage import Context
from kesi.runs.steps import retrain
from kesi.method.training import Options
from dataclasses import replace
from kesi.data import Split
d = load("digits")
d = replace(d, train=Split(d.train.images[:96], d.train.labels[:96]),
            test=Split(d.test.images[:50], d.test.labels[:50]))
stage = replace(RETRAININGS["onecycle"].training, epochs={EPOCHS}, batch_size=32)
entry.run(lambda: retrain(Context(d, 0, Options(eval_every=0)), stage,
                          checkpoints.load({str(pruned.path)!r}),
                          __import__("pathlib").Path({str(tmp_path)!r})))
""")
    assert code == 1 and "continues after epoch 2" in out
    assert (err.startswith("error: cannot write") and err.count("\n") == 1
            and "File too large" in err), err
    assert (tmp_path / resume.STATE).read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp") or name == LOCK]
    assert digest(train(tmp_path)) == digest(whole)


@pytest.mark.parametrize("number", [28, 122, 5])
def test_any_error_of_the_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch, number):
    path = tmp_path / "x.pth.tar"
    network = models.create("resnet20", 3, [1] * 9)
    keep(path, network)
    before = path.read_bytes()

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(KesiError, match=f"cannot write .*{os.strerror(number)}; what was "
                                        "there before") as error:
        keep(path, network, stage="x")
    assert ("\n" not in str(error.value) and path.read_bytes() == before
            and os.listdir(tmp_path) == ["x.pth.tar"])


# -- two processes

HOLD = """
import sys, time
from kesi.system.locks import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process():
    """Start a process that holds a folder."""
    started = []

    def hold(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)],
                                   stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_told_who_holds_the_folder_and_a_dead_one_is_no_obstacle(
        train, tmp_path, other_process):
    process = other_process(tmp_path)
    with pytest.raises(KesiError, match=rf"{tmp_path} is in use by process {process.pid} on .* "
                                        r"since 20.*: wait"):
        train(tmp_path)
    with pytest.raises(KesiError, match="in use by process"):
        train(tmp_path, fresh=True)
    fails("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--save", tmp_path,
          code=1, says=f"in use by process {process.pid}")
    assert os.listdir(tmp_path) == [LOCK]
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    train(tmp_path, stop_after=1)
    assert not (tmp_path / LOCK).exists()


def test_a_folder_is_held_once_and_made_and_left_as_it_was(tmp_path):
    with held(tmp_path / "a" / "b") as folder:
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(KesiError, match=f"in use by process {os.getpid()} "), held(folder):
            pass
        (folder / LOCK).write_text("not json")
        with pytest.raises(KesiError, match="in use by another process"), held(folder):
            pass
    assert os.listdir(folder) == []
    with held(folder):
        pass


def test_somebody_who_only_looks_is_in_nobodys_way(tmp_path, monkeypatch):
    looking = [os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)]
    fcntl.flock(looking[0], fcntl.LOCK_SH)
    monkeypatch.setattr("kesi.system.locks.time.sleep", lambda _: os.close(looking.pop()))
    with held(tmp_path):
        assert not looking


def test_only_one_of_many_holds_a_folder(tmp_path):
    inside, most, done = [], [], []

    def work():
        while len(done) < 200:
            try:
                with held(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
                    done.append(1)
            except KesiError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert max(most) == 1


def test_where_there_are_no_locks_this_is_said_and_the_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("kesi.system.locks.fcntl", None)
    with pytest.warns(UserWarning,
                      match="has no flock: nothing keeps a second process out"), held(tmp_path):
        pass


def test_a_fresh_start_moves_the_old_stage_aside_without_its_lock(train, tmp_path):
    train(tmp_path / "x", stop_after=2)
    train(tmp_path / "x", fresh=True, stop_after=1)
    assert (epoch_of(tmp_path / "x" / resume.STATE) == 1
            and epoch_of(tmp_path / "x.old-1" / resume.STATE) == 2)
    assert not list(tmp_path.rglob(LOCK))


def test_a_fresh_start_behind_a_link_stays_behind_it(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "result").touch()
    (tmp_path / "link").symlink_to("disk")
    assert move_aside(tmp_path / "link") == tmp_path / "disk.old-1"
    assert (tmp_path / "disk.old-1" / "result").is_file()
    assert not list((tmp_path / "link").iterdir())
    monkeypatch.chdir(tmp_path / "link")  # which would go along
    with pytest.raises(UsageError, match="cannot be moved aside from within"):
        move_aside(Path("."))


def test_what_a_killed_process_left_half_written_is_removed(train, tmp_path):
    litter = tmp_path / ".state.pth.tar.4711.0123abcd.tmp"
    other = [tmp_path / name for name in (".state.tmp", "state.4711.0123abcd.tmp", "notes.tmp")]
    for path in (litter, *other):
        path.write_bytes(b"half")
    train(tmp_path, stop_after=1)
    assert not litter.exists() and all(path.exists() for path in other)


def test_a_script_in_a_run_and_a_pipeline_keep_apart(train, weight_run, tmp_path, other_process):
    run = shutil.copytree(weight_run, tmp_path / "run")
    stage = run / "seed0" / "baseline"
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    process = other_process(run)
    by_hand = ("cifar/train.py", "--arch", "resnet20", "--dataset", "digits", "--epochs", 1,
               "--fresh", "--save", stage)
    says = f"{run} is in use by process {process.pid}"
    fails(*by_hand, code=1, says=says)
    process.kill(), process.wait()
    process = other_process(stage)  # as a script does
    again = ("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--method", "weight",
             "--save", run)
    for words in (again, (*again, "--fresh")):
        fails(*words, code=1, says=f"{run} is in use by process {process.pid}")
    other = run / "seed0" / "usual-1"
    with held(other):  # two scripts at two stages are no harm
        assert (run / LOCK).exists()
    process.kill(), process.wait()
    (run / "run.json").unlink()  # only stages made by hand
    process = other_process(stage)
    fails(*again, "--fresh", code=1, says=f"{stage} is in use by process {process.pid}")
    process.kill(), process.wait()
    assert {path: path.read_bytes() for path in before if path.is_file()} == {
        path: content for path, content in before.items() if path.name != "run.json"}
    with held(stage):
        pass
    assert not list(run.rglob(LOCK)) or list(run.rglob(LOCK)) == [run / LOCK]


# -- real kills

@pytest.mark.parametrize("method", ["filter", pytest.param("weight", marks=pytest.mark.slow)])
def test_a_pipeline_that_is_killed_again_and_again_gives_the_same_bit_for_bit(method):
    """The short form of make chaos: twenty kills, in every kind of stage."""
    words = ["--kills", "20", "--method", method, "--epochs", "2", "2", "2", "--no-report"]
    done = subprocess.run([sys.executable, "-m", "tests.chaos", *words], cwd=ROOT,
                          capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr + done.stdout
    kills = int(done.stdout.splitlines()[-1].split()[0])
    assert kills >= 20 and all(f"in {kind}" in done.stdout for kind in KINDS)
    assert done.stdout.count("  kill ") == kills and "those of the run left alone" in done.stdout


@pytest.mark.slow
def test_what_is_tampered_with_is_noticed_or_changes_nothing():
    """The short form of the second part of make chaos."""
    done = subprocess.run([sys.executable, "-m", "tests.tampering", "--tamperings", "9", "--seed",
                           "1"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.endswith("9 tamperings, 0 of them unnoticed\n")


def test_the_comparison_sees_what_differs(train, tmp_path):
    for name in ("a", "b"):
        train(tmp_path / name / "x")
        files.write_json(tmp_path / name / "table.json", {"seconds": name, "accuracy": 1})
    assert differences(tmp_path / "a", tmp_path / "b") == []
    train(tmp_path / "b" / "x", fresh=True, seed=1)
    files.write_json(tmp_path / "b" / "table.json", {"seconds": 1, "accuracy": 2})
    found = differences(tmp_path / "a", tmp_path / "b")
    for name in ("x/checkpoint.pth.tar", "x/result.json", "x/metrics.jsonl", "table.json"):
        assert f"{name} differs" in found
    assert "x.old-1/result.json is in one run only" in found


def test_what_a_damaged_stage_was_made_anew_from_by_another_command_keeps_its_children(weight_run,
                                                                                       tmp_path):
    run = shutil.copytree(weight_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.glob("seed0/*/*.tar")}
    damage(broken := run / "seed0" / "onecycle-1" / "checkpoint.pth.tar")
    words = same_command(run)
    outcome = script("cifar/pipeline.py", *words, "--no-report", "--save-every", "9")
    assert (outcome.code == 0 and re.search("onecycle-1/checkpoint.pth.tar is damaged.*runs again",
                                            outcome.err)), outcome
    assert broken.read_bytes() != before.pop(broken)  # it names the other command
    assert checkpoints.load(broken).digest == checkpoints.load(
        weight_run / "seed0" / "onecycle-1").digest
    assert all(path.read_bytes() == content for path, content in before.items())
    works("kesi", "report", run, "--no-plots")
    works("kesi", "verify", run, "--no-accuracy")


def test_a_stage_that_comes_out_otherwise_does_not_take_the_place_of_one_that_has_children(
        weight_run, tmp_path):
    run = shutil.copytree(weight_run, tmp_path / "run")
    damage(broken := run / "seed0" / "baseline" / "checkpoint.pth.tar")
    before = {path: path.read_bytes() for path in run.glob("seed0/*/*")
              if path.parent != broken.parent}
    words = same_command(run)
    outcome = script("cifar/pipeline.py", *words, "--no-report", "--threads", "2")
    torch.set_num_threads(1)
    assert (outcome.code == 1
            and "baseline came out as another network than the one that was lost" in outcome.err)
    assert "1 threads" in outcome.err and "2 threads" in outcome.err
    assert all(path.read_bytes() == content for path, content in before.items())
    other = checkpoints.load(run / "seed0" / "baseline" / "other.pth.tar")
    assert script("cifar/pipeline.py", *words).code == 0
    assert checkpoints.load(broken).digest == checkpoints.load(weight_run / "seed0/baseline").digest
    assert other.digest != checkpoints.load(broken).digest
    works("kesi", "verify", run, "--no-accuracy")


def test_a_state_from_elsewhere_is_looked_at_before_anything_is_replaced(train, whole, tmp_path):
    one = ("cifar/train.py", "--arch", "resnet20", "--dataset", "digits", "--epochs", 3,
           "--batch-size", 512)
    for name, seed in (("a", 0), ("b", 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume.Saver, "after_epoch", interrupted(resume.Saver.after_epoch))
            assert script(*one, "--save", tmp_path / name, "--seed", seed).code == 130
    state = tmp_path / "a" / resume.STATE
    before = state.read_bytes()
    fails(*one, "--save", tmp_path / "a", "--resume", tmp_path / "b", code=2,
          says="has a state of its own")
    fails(*one, "--save", tmp_path / "c", "--resume", tmp_path / "b", code=2,
          says="another seed (1, now 0)")
    fails(*one, "--save", tmp_path / "a", "--resume", tmp_path / "b", "--fresh", code=2,
          says="give one of them")
    fails(*one, "--save", tmp_path / "a", "--precision", "bf16", code=2,
          says="another precision (fp32, now bf16)")
    assert state.read_bytes() == before and not (tmp_path / "c" / resume.STATE).exists()
    assert ("continues after epoch 1" in works(*one, "--save", tmp_path / "d", "--resume",
                                               tmp_path / "a"))
    assert "continues after epoch 1" in works(*one, "--save", tmp_path / "a", "--eval-every", 1)
    d, a = (json.loads((tmp_path / name / "result.json").read_text()) for name in "da")
    assert d["network_digest"] == a["network_digest"]
    (earlier,) = a["earlier"]  # that command had no --eval-every
    assert earlier["until_epoch"] == 1 and a["command"].endswith(" --eval-every 1")
    assert earlier["command"] == a["command"].removesuffix(" --eval-every 1") + " --seed 0"


def interrupted(after_epoch):
    """A Saver.after_epoch() that is interrupted once it is through."""
    def replacement(saver, model, progress):
        after_epoch(saver, model, progress)
        raise KeyboardInterrupt

    return replacement
