"""What attacks on files, flags and the environment found: each is one line before it does harm."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from doors import ROOT, fails, script, works
from kesi import checkpoints
from kesi.data import load
from kesi.method import recipes
from kesi.method.objectives import CrossEntropy
from kesi.method.schedules import Training
from kesi.method.snapshot import digest_of
from kesi.method.training import fit
from kesi.report.report import report
from kesi.runs import pipeline
from kesi.system.errors import KesiError
from kesi.system.files import csv_text
from kesi.system.locks import held
from saving import keep
from tinyrun import ENVIRONMENT, same_command

pytest_plugins = ["tinyrun"]

PIPELINE, TRAIN = "cifar/pipeline.py", "cifar/train.py"
TINY = ("--arch", "resnet20", "--dataset", "digits", "--device", "cpu")


# -- checkpoints

@pytest.mark.parametrize(("name", "value", "says"), [
    ("conv1.weight", float("nan"), "conv1.weight holds values that are not finite"),
    ("fc.bias", float("-inf"), "fc.bias holds values that are not finite"),
    ("bn1.running_var", -1.0, "bn1.running_var holds a negative variance")])
@pytest.mark.parametrize("ours", [False, True])
def test_weights_that_give_no_answer_are_refused_by_name(tmp_path, name, value, says, ours):
    path, model = tmp_path / "x.pth.tar", models.create("resnet20", 10, [2] * 9)
    state = model.state_dict()
    name = name if name in state else next(one for one in state if one.endswith(name[-6:]))
    says = says.replace(says.split()[0], name)
    keep(path, model, stage="baseline")
    content = torch.load(path, weights_only=True) if ours else {"state_dict": state}
    content["state_dict"][name].view(-1)[0] = value
    if ours:
        content.pop("digest")
        content["digest"] = digest_of(content)
    torch.save(content, path)
    fails("kesi", "compare", path, path, "--no-accuracy", code=1, says=f"{path} is damaged: {says}")


def test_a_file_of_zeros_is_refused_by_its_first_bytes(tmp_path):
    path = tmp_path / "x.pth.tar"
    with open(path, "wb") as file:
        file.truncate(2**36)  # to look through it would take hours
    fails("kesi", "predict", path, "x.png", code=1, says="not a checkpoint: it begins with")


# -- words of a command

@pytest.mark.parametrize("command", [
    (PIPELINE, "--save"), (PIPELINE, "--data"), (PIPELINE, "--model"), (TRAIN, "--resume"),
    ("kesi report", "x", "--out"), ("kesi report", "x", "--data-name"), ("kesi verify",),
    ("cifar/filter_pruning/prune.py", "--model"), ("reproduce", "--table", "digits", "--save")])
@pytest.mark.parametrize(("word", "says"), [("a\nb", "holds a control character: 'a\\nb'"),
                                            ("\x1b[2J", "holds a control"), ("", "is empty")])
def test_words_that_cannot_be_shown_are_refused(command, word, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = command[0].split()
    flag = command[-1] if command[-1].startswith("--") else "an argument"
    fails(*where, *command[1:], word, code=2, says=f"{flag} {says}")
    if flag != "an argument":
        fails(*where, *command[1:-1], f"{flag}={word}", code=2, says=f"{flag} ")
    assert not list(tmp_path.iterdir())


def test_no_folder_becomes_a_line_of_the_slurm_script(tmp_path, monkeypatch):
    here = tmp_path / "a\n#SBATCH --wrap=evil\nevil"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    fails("reproduce", "--table", "digits", "--gpus", 0, "--slurm", "--save", "runs", code=2,
          says="no path with a control character")


@pytest.mark.parametrize(("words", "says"), [
    (("--batch-size", 10**9), "batch size must be at most 100,000"),
    (("--epochs", 10**9, 1, 1), "epochs must be at most 100,000"),
    (("--lr", "inf"), "must be finite"), (("--lr", "1e18"), "must be finite"),
    (("--lr", "nan"), "must be finite"), (("--seeds", 2**63), "a seed is a whole number"),
    (("--seeds", 0, "x"), "a seed is a whole number"),
    (("--temperature", "1e30"), "below 1e18"), (("--threads", 10_000), "at most 1024"),
    (("--image-size", 100_000), "image size 100000 is too large")])
def test_what_no_run_could_write_down_is_refused_first(tmp_path, words, says):
    fails(PIPELINE, *TINY, *words, "--save", tmp_path / "run", code=2, says=says)
    (fails(PIPELINE, *TINY, *words, "--dry-run", code=2, says=says) if "--threads" not in words
     else None)
    assert not (tmp_path / "run").exists()


# -- what files of others say

def test_commands_of_others_are_shown_quoted_and_commits_are_hexadecimal(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    said = json.loads((run / "run.json").read_text())
    evil = said | {"command": "python cifar/pipeline.py; touch evil `touch evil` $(touch evil)"}
    (run / "run.json").write_text(json.dumps(evil))
    works("kesi", "report", run, "--no-plots", "--html", "--no-latency")
    text = (run / "report" / "table.md").read_text()
    quoted = "python 'cifar/pipeline.py;' touch evil '`touch' 'evil`' '$(touch' 'evil)'"
    assert f"- command: `` {quoted} ``" in text
    page = (run / "report" / "report.html").read_text()
    assert "pipeline.py; touch" not in page and "cifar/pipeline.py;" in page
    for name, value in (("commit", "HEAD; touch evil"), ("command", "python x\n# forged"),
                        ("versions", {"torch": "2\n# forged"}), ("device", "\x1b[2J")):
        (run / "run.json").write_text(json.dumps(said | {name: value}))
        fails("kesi", "report", run, "--no-plots", code=1,
              says=f"run.json is damaged: its {name} is")


def test_a_name_forges_no_heading_and_no_tag(filter_run, tmp_path):
    works("kesi", "report", filter_run, "--no-plots", "--out", tmp_path, "--data-name",
          "<h1>x</h1>")
    text = (tmp_path / "table.md").read_text()
    assert "<h1>" not in text.replace(r"\<", "") and r"resnet20 on \<h1>x\</h1>" in text
    report([filter_run], tmp_path, plots=False, data_name="x\n# forged\r# too")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "# resnet20 on x # forged # too"
    assert not [line for line in lines if line.startswith(("# forged", "# too"))]


def test_no_cell_is_a_formula_and_numbers_stay_numbers():
    row = {"a": "=1+1", "b": "+x", "c": "-x", "d": "@x", "e": "-1.5", "f": -2, "g": "+1e-3",
           "h": "a=1", "i": "-1+1", "j": None}
    assert csv_text([row]).splitlines()[1] == "'=1+1,'+x,'-x,'@x,-1.5,-2,+1e-3,a=1,'-1+1,"


# -- the machine around it

def test_a_finite_loss_beyond_all_measure_is_divergence():
    model, digits = models.create("resnet20", 10, [2] * 9), load("digits")
    stage = Training(epochs=1, batch_size=100, lr=1e-9, schedule="constant")
    with pytest.raises(KesiError,
                       match="training diverges: the loss is 2.*e\\+20 in epoch 1, step 1"):
        fit(model, digits, stage, seed=0,
            objective=lambda *given: CrossEntropy()(*given) * 1e20)


@pytest.mark.parametrize(("environment", "says"), [
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set: start it with "
     "torchrun"), ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is not set"),
    ({"WORLD_SIZE": "2", "RANK": "7", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is 7"),
    ({"WORLD_SIZE": "two"}, "are no numbers")])
def test_half_an_environment_of_torchrun_is_one_line(tmp_path, monkeypatch, environment, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fails(TRAIN, *TINY, "--save", tmp_path / "x", code=2, says=says)
    assert not (tmp_path / "x").exists()


def test_a_rank_without_others_is_alone_and_speaks(filter_run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert "accuracy" in works("kesi", "report", filter_run, "--no-plots", "--out", tmp_path)
    assert (tmp_path / "table.md").exists()


def test_a_terminal_of_ascii_is_no_reason_to_fail(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    done = subprocess.run([sys.executable, PIPELINE, *same_command(run)], cwd=ROOT,
                          capture_output=True, text=True,
                          env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "one-cycle" in done.stdout, done.stderr


def test_signals_until_it_is_gone_are_one_line(tmp_path):
    words = [str(ROOT / TRAIN), *TINY, "--epochs", "500", "--save", str(tmp_path / "b")]
    running = subprocess.Popen([sys.executable, *words], env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "b" / "state.pth.tar").exists() and running.poll() is None:
        time.sleep(0.01)
    while running.poll() is None:  # to its last moment, when Python has taken its handlers away
        running.send_signal(signal.SIGTERM)
        time.sleep(0.003)
    errors = running.communicate()[1]
    assert running.returncode == 130, errors
    said = [line for line in errors.splitlines() if not line.startswith("baseline, epoch ")]
    assert said == ["interrupted; the same command continues from the last saved epoch"]


class _Meanwhile:
    """Somebody who does something to a run after its first epoch."""

    def __init__(self, act):
        self._act = act

    def after_epoch(self, folder):
        act, self._act = self._act, lambda: None
        act()

    def after_stage(self):
        """Nothing."""


def _settings(folder, act):
    recipe = replace(recipes.recipe("resnet20", "digits", "filter").changed((3, 1, 1)),
                     rounds=((0.25,) * 9,))
    return pipeline.Settings(recipe, load("digits"), folder, watch=_Meanwhile(act))


@pytest.mark.parametrize("kind", ["renamed", "removed", "replaced"])
def test_a_folder_that_goes_away_meanwhile_is_noticed_and_not_made_anew(tmp_path, kind):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def act():
        shutil.rmtree(run) if kind == "removed" else run.rename(moved)
        if kind == "replaced":
            run.mkdir()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KesiError,
                           match=f"^{run} was moved or removed while it was in use") as error:
            pipeline.run(_settings(run, act))
    assert "\n" not in str(error.value)
    assert not list(run.rglob("*"))
    if kind == "renamed":  # nothing is lost: moved back, it continues
        moved.rename(run)
        pipeline.run(_settings(run, lambda: None))
        assert (run / "seed0" / "kesi" / "result.json").exists()


def _of(host):
    return json.dumps({"pid": 7, "host": host, "command": "x; evil", "since": "then"})


def test_another_machine_that_locks_do_not_keep_out_is_noticed(tmp_path):
    """A lock file of another host is a machine that was lost, or one that is at work behind NFS."""
    run = tmp_path / "run"
    with pytest.raises(KesiError,
                       match=f"^{run} was taken by another process meanwhile.*elsewhere"):
        pipeline.run(_settings(run, lambda: (run / ".lock").write_text(_of("elsewhere"))))
    assert json.loads((run / ".lock").read_text())["host"] == "elsewhere"  # its lock is left to it
    with pytest.warns(UserWarning, match=r"not let go of by process 7 on elsewhere since then "
                                         r"\(x\\?; evil|'x;' evil"):
        with held(run):
            pass
    assert not (run / ".lock").exists()
    with warnings.catch_warnings(), held(run):
        warnings.simplefilter("error")  # one's own machine is no news


def test_two_machines_that_share_a_lock_leave_none(tmp_path, monkeypatch):
    """At two stages of one run: neither warns of the other, and the last removes the run's lock."""
    (tmp_path / "run.json").write_text("{}")
    with warnings.catch_warnings(), contextlib.ExitStack() as one, contextlib.ExitStack() as other:
        warnings.simplefilter("error")
        one.enter_context(held(tmp_path / "a"))
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        other.enter_context(held(tmp_path / "b"))
        other.close()
        monkeypatch.undo()
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_another_number_of_threads_is_said(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    threads = torch.get_num_threads()
    try:
        outcome = script(PIPELINE, *same_command(run), "--threads", threads + 1)
    finally:
        torch.set_num_threads(threads)
    assert outcome.code == 0
    assert (outcome.err.count("\n") == 1
            and outcome.err.startswith("warning: begun on ")), outcome.err
    assert f"goes on with {json.loads((run / 'run.json').read_text())['device']}" in outcome.err


def test_a_stage_that_goes_on_with_other_threads_says_so(tmp_path):
    words = (TRAIN, *TINY, "--epochs", 4, "--batch-size", 300, "--save", tmp_path / "b")
    killed = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=ENVIRONMENT)
    while not (tmp_path / "b" / "state.pth.tar").exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    threads = torch.get_num_threads()
    try:
        outcome = script(*words, "--threads", 3)
    finally:
        torch.set_num_threads(threads)
    assert (outcome.code == 0 and "1 threads, and goes on with" in outcome.err
            and "continues after" in outcome.out)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    outcomes = []
    for jump in (0, -10**9):
        run = tmp_path / f"run{jump}"
        now = time.time
        pipeline.run(_settings(run, lambda jump=jump, now=now: monkeypatch.setattr(
            time, "time", lambda: now() + jump)))
        outcomes.append(checkpoints.load(run / "seed0" / "kesi").digest)
        monkeypatch.undo()
        for path in run.rglob("*"):
            os.utime(path, (4e9, 4e9))  # in the year 2096
        pipeline.run(_settings(Path(run), lambda: pytest.fail("a finished stage ran again")))
    assert outcomes[0] == outcomes[1]
