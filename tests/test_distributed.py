"""Two and three processes over gloo against one."""

import os
import subprocess
import sys

import pytest
import torch

from doors import ROOT, works
from kesi.system import distributed
from kesi.system.locks import held_by_one

pytestmark = pytest.mark.slow

WORKER = ROOT / "tests" / "ddp_worker.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


PIPELINE = (str(ROOT / "cifar" / "pipeline.py"), "--arch", "resnet20", "--dataset", "digits",
            "--method", "weight", "--rounds", "1", "--epochs", "10", "1", "1", "--no-report")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What one, two and three processes make of the same, with norms of all processes together
    or of each."""
    found, running = {}, []
    for count, sync in ((1, "sync"), (2, "sync"), (3, "sync"), (2, "own")):
        out = tmp_path_factory.mktemp("ddp") / "out.pt"
        command = [sys.executable] if count == 1 else [*TORCHRUN, str(count)]
        process = subprocess.run([*command, str(WORKER), str(out), sync], env=environment(),
                                 text=True, capture_output=True)
        assert process.returncode == 0, process.stderr
        found[count, sync] = torch.load(out, weights_only=True)
        running.append(process)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_the_same_images_are_seen_as_in_one_process(outcomes, count):
    assert torch.allclose(outcomes[count, "sync"]["seen"], outcomes[1, "sync"]["seen"], rtol=1e-9)


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_agree_with_one_process_where_norms_do(outcomes, count):
    ours, one = outcomes[count, "sync"], outcomes[1, "sync"]
    assert (ours["gradients"] - one["gradients"]).abs().max() < 1e-9  # in float64
    assert torch.allclose(ours["norms"], one["norms"], atol=1e-6)
    # the check can fail: without the norms of all processes the gradients are others
    assert (outcomes[2, "own"]["gradients"] - one["gradients"]).abs().max() > 1e-3


@pytest.mark.parametrize("count", [2, 3])
def test_training_together_ends_where_one_process_ends(outcomes, count):
    ours, one = outcomes[count, "sync"], outcomes[1, "sync"]
    for mine, theirs in zip(ours["history"], one["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=0.05)
    assert abs(ours["history"][-1]["test_accuracy"] - one["history"][-1]["test_accuracy"]) < 5


@pytest.mark.parametrize("key", [(2, "sync"), (3, "sync"), (2, "own")])
def test_sharded_evaluation_is_exact(outcomes, key, tmp_path):
    import models
    from kesi.data import load
    from kesi.method.training import predict, score
    found = outcomes[key]
    network = models.create("resnet20", 10, [2] * 9)
    network.load_state_dict(found["weights"])
    dataset = load("digits")
    assert found["logits"].shape == (1497, 10)
    assert torch.allclose(predict(network, dataset, dataset.test), found["logits"], atol=1e-4)
    assert score(found["logits"], dataset.test.labels)[1] == found["history"][-1]["test_accuracy"]


def test_a_pipeline_of_two_processes_is_continued_by_three_and_is_whole(tmp_path):
    """Interrupted in its baseline; another number of processes goes on from the saved epoch."""
    command = (*PIPELINE, "--save", str(tmp_path / "run"))
    killed = subprocess.Popen([*TORCHRUN, "2", *command], env=environment(),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "run" / "seed0" / "baseline" / "state.pth.tar"
    while not state.exists() and killed.poll() is None:
        pass
    killed.terminate()
    assert killed.wait(120) != 0 and state.exists()
    done = subprocess.run([*TORCHRUN, "3", *command], env=environment(), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "baseline continues after epoch" in done.stdout
    assert done.stdout.count("baseline: test accuracy") == 1  # rank 0 alone speaks
    assert "checks hold" in works("kesi", "verify", tmp_path / "run")
    again = works("cifar/pipeline.py", *command[1:])  # and one process finds nothing left to do
    assert again.count("is finished already") == 3


def test_two_processes_train_a_shared_baseline_after_whoever_is_at_it(tmp_path):
    """One of them holds it for both: the other would wait for the lock, and be waited for."""
    shared, said = tmp_path / "baselines", tmp_path / "said"
    command = (*TORCHRUN, "2", *PIPELINE, "--save", str(tmp_path / "run"), "--baseline-folder",
               str(shared))
    with open(said, "w") as errors, held_by_one(shared / ".seed0-waiting"):
        running = subprocess.Popen(command, env=environment(), text=True, stderr=errors,
                                   stdout=subprocess.PIPE)
        while "waiting for it" not in said.read_text() and running.poll() is None:
            pass
        assert not (shared / "seed0").exists()
    try:
        out = running.communicate(timeout=distributed.PATIENCE.total_seconds() / 2)[0]
    finally:
        running.terminate()
    assert running.returncode == 0, said.read_text()
    assert out.count("baseline: test accuracy") == 1 and "kesi: " in out
    assert "checks hold" in works("kesi", "verify", tmp_path / "run")


def test_a_dead_rank_ends_the_job_instead_of_hanging_it(tmp_path):
    """The other one waits for it in a sum by then, where it would wait for half an hour."""
    program = tmp_path / "dies.py"
    program.write_text(
        "import os, sys, torch\nfrom pathlib import Path\nfrom kesi.system import distributed\n"
        "distributed.start('cpu')\n"
        "Path(sys.argv[1], str(distributed.rank())).write_text(str(os.getpid()))\n"
        "distributed.barrier()\n"  # both are there: nobody dies, or waits, while they still connect
        "if distributed.rank() == 1:\n    os.kill(os.getpid(), 9)\n"
        "distributed.total(torch.ones(1))\nPath(sys.argv[1], 'went on').touch()\n")
    limit = distributed.PATIENCE.total_seconds() / 2  # a hang lasts longer; a busy machine does not
    ended = subprocess.run([*TORCHRUN, "2", str(program), str(tmp_path)], env=environment(),
                           text=True, capture_output=True, timeout=limit)
    assert ended.returncode != 0, ended.stderr
    assert (tmp_path / "0").exists() and not (tmp_path / "went on").exists(), ended.stderr
    killed = (tmp_path / "1").read_text()
    assert f"Signal 9 (SIGKILL) received by PID {killed}" in ended.stderr, ended.stderr
