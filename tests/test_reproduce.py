"""The whole grid: what it consists of, what is done, and running it here, as a Slurm array,
and on Ray."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from doors import ROOT, fails, script, works
from kesi import checkpoints
from kesi.data import INFO
from kesi.method import plan
from kesi.runs import steps
from kesi.system.locks import LOCK, held, in_use
from reproduce import __main__ as reproduce
from reproduce import cluster, grid

TINY = ("--table", "digits", "--epochs-scale", "0.02", "--rounds", "1", "--device", "cpu",
        "--threads", "1")


def job_of(save, **changes):
    settings = {"rounds": 1, "epochs_scale": 0.02} | changes
    return grid.jobs([("resnet20", "digits", "filter")], [0], save, **settings)[0]


def test_the_grid_is_that_of_the_papers_tables(tmp_path):
    cifar = grid.pipelines(["cifar"])
    assert len(cifar) == len(set(cifar)) == 18
    for dataset in ("cifar10", "cifar100"):
        filters, weights = ({arch for arch, where, how in cifar if (where, how)
                             == (dataset, method)} for method in ("filter", "weight"))
        assert filters == {"resnet56", "resnet110", "preresnet164", "wrn-16-8", "vgg16"}
        assert weights == filters - {"preresnet164"}
    assert (grid.pipelines(["tinyimagenet"])
            == [(arch, "tinyimagenet", "filter") for arch in ("resnet18", "resnet34")])
    assert (grid.pipelines(["digits"])
            == [("resnet20", "digits", method) for method in ("filter", "weight")])
    jobs = grid.jobs(grid.pipelines(["cifar", "tinyimagenet"]), [2, 0, 1], tmp_path)
    assert len({job.folder for job in jobs}) == len(jobs) == 60
    assert [job.seed for job in jobs] == [2] * 20 + [0] * 20 + [1] * 20
    # none begins by waiting for the baseline of the one before it
    assert [job.trains for job in jobs[:20]] == [True] * 12 + [False] * 8
    assert {job.words()[0] for job in jobs if job.recipe.family == "tinyimagenet"} == {
        os.path.relpath(ROOT / "tinyimagenet/pipeline.py")}


def test_the_estimate_is_the_work_of_the_plan(tmp_path):
    for method in ("filter", "weight"):
        job = grid.jobs([("resnet20", "digits", method)], [0], tmp_path)[0]
        sizes = plan.sizes(job.recipe, 10, INFO["digits"].image_size)
        assert grid.work(job) == {stage.name: stage.work(300)
                                  for stage in plan.stages(job.recipe, sizes)}
        assert ({*grid.work(job)}
                == {stage for stage in job.stages if not stage.startswith("ensemble")})


def test_a_baseline_is_trained_once_for_both_methods(tmp_path):
    jobs = grid.jobs(grid.pipelines(["digits"]), [0, 1], tmp_path)
    assert [(job.recipe.method, grid.work(job)["baseline"] > 0) for job in jobs] == [
        ("filter", True), ("weight", False)] * 2
    folders = {job.words()[job.words().index("--baseline-folder") + 1] for job in jobs}
    assert folders == {str(tmp_path / "digits-resnet20-baselines")}


def test_the_time_left_goes_by_the_networks_own_speed(tmp_path):
    begun, other = grid.jobs([("resnet20", "digits", "filter"), ("resnet32", "digits", "filter")],
                             [0], tmp_path)
    amount = grid.work(begun)
    done = {"baseline": SimpleNamespace(seconds=7200.0), "ensemble": SimpleNamespace()}
    statuses = [grid.Status(begun, grid.MISSING, done),
                grid.Status(other, grid.MISSING)]
    left = sum(amount.values()) - amount["baseline"] + sum(grid.work(other).values())
    assert grid.hours_left(statuses) == pytest.approx(2 * left / amount["baseline"])
    assert grid.hours_left(statuses[1:]) is None


def test_a_dry_run_lists_the_jobs_and_touches_nothing(tmp_path):
    out = works("reproduce", "--table", "cifar", "--arch", "resnet56", "--method", "weight",
                "--seeds", 4, 7, "--save", tmp_path / "none", "--data", "my images", "--save-every",
                5, "--deterministic", "--sync-bn", "--dry-run")
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("python ")]
    assert [(words[words.index("--dataset") + 1], words[words.index("--seeds") + 1])
            for words in commands] == [
                ("cifar10", "4"), ("cifar100", "4"), ("cifar10", "7"), ("cifar100", "7")]
    assert (commands[0][-6:]
            == ["--data", "my images", "--save-every", "5", "--deterministic", "--sync-bn"])
    assert "4 pipelines: 0 done, 0 running, 4 missing" in out and not (tmp_path / "none").exists()


@pytest.mark.parametrize("words, says", [
    (("--table", "cifar", "--arch", "resnet18"), "--arch resnet18 is not in the table: choose from "
     "vgg16"), (("--table", "cifar", "--arch", "preresnet164", "--method", "weight"),
                "no pipeline of this"), (("--table", "digits", "--gpus", "2"), "one GPU at most"),
    (("--table", "digits", "--gpus", "0.5", "--slurm"), "whole GPUs"),
    (("--table", "digits", "--seeds", "-1"), "a seed is a whole number from 0"),
    (("--table", "digits", "--epochs-scale", "0"), "--epochs-scale must be above 0"),
    (("--table", "digits", "--ray", "--slurm"), "not allowed with"),
    (("--table", "mnist"), "invalid choice")])
def test_wrong_usage_is_one_line(tmp_path, words, says):
    fails("reproduce", "--save", tmp_path, *words, code=2, says=says)


def test_what_is_running_is_told_from_its_lock_and_left_alone(tmp_path):
    job = job_of(tmp_path)
    assert grid.look(job).state == grid.MISSING
    with held(job.folder):
        status = grid.look(job)
        assert status.state == grid.RUNNING and f"process {os.getpid()} on " in status.holder
        out = works("reproduce", *TINY, "--method", "filter", "--seeds", 0, "--save", tmp_path)
        assert "1 running, 0 missing" in out and "nothing is finished yet" in out
    (job.folder / LOCK).write_text("{}")  # of a process that was killed
    assert grid.look(job).state == grid.MISSING


@pytest.fixture(scope="module")
def half_failed(tmp_path_factory):
    """Three pipelines one after the other, of which the second cannot make its folder."""
    save = tmp_path_factory.mktemp("grid")
    (save / "digits-resnet20-filter-seed1").write_text("in the way")
    return (save,
            script("reproduce", *TINY, "--method", "filter", "--seeds", 0, 1, 2, "--save", save))


def test_one_failure_does_not_end_the_grid(half_failed):
    save, outcome = half_failed
    assert outcome.code == 1
    assert "failed: digits-resnet20-filter-seed1: exit code 1: python " in outcome.err
    assert "error: 1 of 3 pipelines failed: digits-resnet20-filter-seed1;" in outcome.err
    assert "3 pipelines: 2 done, 0 running, 1 missing" in outcome.out
    assert ([grid.look(job).state for job in grid.jobs([("resnet20", "digits", "filter")], [
        0, 1, 2], save, 1, 0.02)] == [grid.DONE, grid.MISSING, grid.DONE])


def test_it_ends_in_the_papers_table_over_what_is_finished(half_failed):
    save, outcome = half_failed
    for text in (outcome.out, (save / "report" / "table.md").read_text()):
        assert ("digits, seeds 0, 2" in text and "resnet20 filter pruning + KESI" in text
                and "±" in text)
        assert ("Resnet20 filter pruning departs from KESI's own settings: baseline epochs 2"
                in " ".join(text.split()))
    assert ("digits-resnet20-filter-seed1: missing, 0 of 6 stages"
            in (save / "report" / "table.md").read_text())
    rows = {row["method"]: row for row in csv.DictReader((save / "report" / "digits.csv").open())}
    assert [*rows][:4] == ["resnet20 baseline", "resnet20 filter pruning (PFEC), usual retraining",
                           "resnet20 filter pruning + one-cycle", "resnet20 filter pruning + KESI"]
    found = [json.loads((save / f"digits-resnet20-filter-seed{seed}/seed{seed}/kesi/result.json")
                        .read_text()) for seed in (0, 2)]
    last = rows["resnet20 filter pruning + KESI"]
    assert last["seeds"] == "2" and float(last["accuracy_mean"]) == pytest.approx(
        sum(result["test_accuracy"] for result in found) / 2)
    singles = [*csv.DictReader((save / "report" / "stages.csv").open())]
    assert len(singles) == 12 and {row["run"] for row in singles} == {
        f"digits-resnet20-filter-seed{seed}" for seed in (0, 2)}


def test_a_damaged_result_is_not_done_and_other_settings_are_refused(half_failed):
    save = half_failed[0]
    path = save / "digits-resnet20-filter-seed0" / "seed0" / "usual-1" / "result.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    try:
        outcome = script("reproduce", *TINY, "--method", "filter", "--seeds", 0, 2, "--save", save,
                         "--dry-run")
    finally:
        path.write_text(whole)
    assert outcome.code == 0 and "1 done, 0 running, 1 missing" in outcome.out
    assert outcome.err.count("\n") == 1 and "warning: " in outcome.err and str(path) in outcome.err
    fails("reproduce", *TINY, "--rounds", 2, "--seeds", 0, "--save", save, "--dry-run", code=2,
          says="digits-resnet20-filter-seed0 holds a run with other settings (rounds): use "
               "another --save")


def test_seeds_of_other_images_are_refused_before_any_runs(half_failed, tmp_path):
    """Whether both are there, or one would be made."""
    save = shutil.copytree(half_failed[0], tmp_path / "grid")
    (save / "digits-resnet20-filter-seed1").unlink()
    path = save / "digits-resnet20-filter-seed2" / "run.json"
    said = json.loads(path.read_text())
    said["data"]["digests"]["train"] = "0" * 64
    path.write_text(json.dumps(said))
    words = ("reproduce", *TINY, "--method", "filter", "--save", save, "--seeds")
    fails(*words, 0, 2, code=2, says="seed2 is of other images than")
    fails(*words, 1, 2, code=2, says="seed2 is of other images than data: use another --save")


def test_the_results_of_a_lost_network_stand_in_no_file(half_failed, tmp_path):
    save = shutil.copytree(half_failed[0], tmp_path / "grid")
    (save / "digits-resnet20-filter-seed0" / "seed0" / "kesi" / "checkpoint.pth.tar").unlink()
    jobs = grid.jobs([("resnet20", "digits", "filter")], [0, 2], save, 1, 0.02)
    with pytest.warns(UserWarning, match="is not taken as finished"):
        statuses = [grid.look(job) for job in jobs]
    reproduce.report(statuses, tmp_path / "report")
    with open(tmp_path / "report" / "stages.csv") as file:
        found = [row["run"] for row in csv.DictReader(file) if row["stage"] == "kesi"]
    assert found == ["digits-resnet20-filter-seed2"]


def test_what_another_process_has_done_meanwhile_is_no_failure(tmp_path, monkeypatch, capsys):
    job = job_of(tmp_path)
    states = iter([grid.MISSING, grid.DONE, grid.MISSING, grid.MISSING])
    monkeypatch.setattr(reproduce, "_run", lambda words: 1)
    for failed in ([], [job.name]):
        assert [*reproduce.run_here([job], lambda job: grid.Status(job, next(states)))] == failed
    assert "left to the process that was faster" in capsys.readouterr().out


def test_a_seed_does_not_wait_for_the_baseline_of_another(tmp_path, monkeypatch):
    job, train = job_of(tmp_path), steps.train_baseline

    def looked_at(context, arch, training, folder, *more):
        assert in_use(folder.with_name(".seed0-waiting")) and in_use(folder.parent) is None
        return train(context, arch, training, folder, *more)

    monkeypatch.setattr("kesi.runs.steps.train_baseline", looked_at)
    works(*job.words(), "--rounds", 1, "--epochs-scale", 0.02, "--device", "cpu")
    assert (tmp_path / "digits-resnet20-baselines" / "seed0" / "checkpoint.pth.tar").is_file()


def test_an_interrupt_ends_the_pipeline_too(tmp_path, monkeypatch):
    """Also one that only this process was sent; with ctrl-C the child has its own."""
    monkeypatch.setattr(reproduce, "GRACE", 0.1)
    told, ready = tmp_path / "told", tmp_path / "ready"
    child = ("import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: "
             f"(pathlib.Path({str(told)!r}).touch(), sys.exit(130)))\n"
             f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)")

    def interrupt(*_):
        if ready.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            reproduce._run([sys.executable, "-c", child])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert told.exists()


@pytest.fixture
def array(tmp_path):
    """A Slurm script of four tasks, and a way to run a task with commands in the place of Slurm's.
    """
    save = tmp_path / "it's here" / "runs"
    text = works("reproduce", *TINY, "--seeds", 0, 1, "--gpus", 1, "--cpus", 3, "--save", save,
                 "--slurm")
    (tmp_path / "grid.sh").write_text(text)
    (tmp_path / "bin").mkdir()
    for name, body in (("srun", 'printf "%s\\n" "$@"; exit ${CODE:-0}'),
                       ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def task(number, **environment):
        return subprocess.run(["bash", tmp_path / "grid.sh"], capture_output=True, text=True,
                              timeout=30, env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                                               "SLURM_ARRAY_TASK_ID": str(number),
                                               "SLURM_ARRAY_JOB_ID": "77", **environment})
    jobs = grid.jobs(grid.pipelines(["digits"]), [0, 1], save, 1, 0.02,
                     ["--device", "cpu", "--threads", "1"])
    return tmp_path / "grid.sh", task, jobs


def test_the_slurm_script_runs_one_pipeline_a_task(array):
    path, task, jobs = array
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    options = [line.removeprefix("#SBATCH ") for line in path.read_text().splitlines()
               if line.startswith("#SBATCH")]
    assert {"--array=0-3", "--cpus-per-task=3", "--gpus-per-task=1", "--requeue"} <= {*options}
    assert (jobs[0].folder.parent / "logs").is_dir()  # where Slurm is to write
    assert len(jobs) == 4
    for number, job in enumerate(jobs):
        assert task(number).stdout.splitlines() == [
            "--cpus-per-task=3", sys.executable, *job.words(), "--no-download"]
    assert task(4).returncode == 2


def test_a_slurm_task_queues_again_at_the_end_of_its_time_only(array):
    _, task, _ = array
    soon, later = (str(int(time.time()) + seconds) for seconds in (100, 9999))
    done = task(2, CODE="130", SLURM_JOB_END_TIME=soon)
    assert done.stdout.splitlines()[-1] == "scontrol requeue 77_2" and done.returncode == 130
    for environment in ({"CODE": "130", "SLURM_JOB_END_TIME": later},  # cancelled
                        {"CODE": "130"}, {"CODE": "1", "SLURM_JOB_END_TIME": soon}):
        done = task(2, **environment)
        assert "scontrol" not in done.stdout and done.returncode == int(environment["CODE"])


def test_nothing_missing_is_no_script(half_failed):
    fails("reproduce", *TINY, "--method", "filter", "--seeds", 0, 2, "--save", half_failed[0],
          "--slurm", code=1, says="nothing is missing: 2 pipelines: 2 done")


STUDY = """
from kesi.method.recipes import recipe
from kesi.runs.study import Variant
paper = Variant(recipe("resnet20", "digits", "filter").changed(epochs=(1, 1, 1), rounds=1))
VARIANTS = {"paper": paper, "labels": paper.changed(teachers="labels")}
"""


@pytest.mark.slow
def test_a_study_is_a_job_a_seed_and_ends_in_its_own_table(tmp_path, monkeypatch):
    """One seed here, one as a worker of a cluster runs it, one still missing; then as an array."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(STUDY)
    machine = ("--device", "cpu", "--threads", 1, "--eval-every", 0)
    study = ("reproduce", "--study", "tiny.py", "--save", "runs", *machine)
    out = works(*study, "--seeds", 0)
    assert "1 seeds: 1 done, 0 running, 0 missing" in out
    words = ["-m", "kesi", "study", "tiny.py", "--seeds", "1", "--save", "runs",
             *map(str, machine)]
    code = f"from reproduce import cluster; print(cluster.in_worker('.', {words}, 'x', 'log'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment)
    assert done.stdout == "(0, 'exit code 0, see log')\n", done.stderr
    out = works(*study, "--seeds", 0, 1, 2, "--dry-run")
    assert "3 seeds: 2 done, 0 running, 1 missing" in out
    assert out.splitlines()[-1].startswith("python -m kesi study tiny.py --seeds 2 --save runs")
    with open("runs/study.csv") as file:  # by the worker, over all that is there
        assert [(row["variant"], row["seed"]) for row in csv.DictReader(file)] == [
            ("paper", "0"), ("paper", "1"), ("labels", "0"), ("labels", "1")]
    out = works(*study, "--seeds", 1, 2, "--slurm")
    assert "words=(-m kesi study tiny.py --seeds 2 " in out and "--array=0-0" in out
    assert "--gpus-per-task" not in out  # of digits
    shutil.copy("tiny.py", "a tiny one.py")
    out = works("reproduce", "--study", "a tiny one.py", *machine, "--slurm")
    assert "#SBATCH --job-name=kesi-a-tiny-one\n" in out
    fails(*study, "--seeds", 0, "--image-size", 8, code=2, says="other data image_size")
    (tmp_path / "tiny.py").write_text(STUDY.replace("rounds=1", "rounds=2"))
    assert "0 done, 0 running, 2 missing" in works(*study, "--seeds", 0, 1, "--dry-run")


@pytest.mark.parametrize("words, says", [
    (("--arch", "resnet20"), "a study's file says what"), (("--val-fractoin", "0.1"),
                                                           "did you mean --val-fraction?"),
    (("--unlabelled", "x", "--percent", "0.1"), "unrecognized arguments: --percent"),
    (("--table", "digits"), "not allowed with")])
def test_a_study_is_refused_before_any_job(tmp_path, words, says):
    (tmp_path / "tiny.py").write_text(STUDY)
    fails("reproduce", "--study", tmp_path / "tiny.py", "--save", tmp_path, *words, code=2,
          says=says)


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    fails("reproduce", *TINY, "--save", tmp_path, "--ray", code=2, says='pip install -e ".[ray]"')


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    for address in ("localhost:1", "nonsense"):
        fails("reproduce", *TINY, "--save", tmp_path, "--ray", address, code=2,
              says=f"--ray {address}: nothing answers")


def test_a_worker_that_does_not_see_the_storage_says_so(tmp_path):
    code, reason = cluster.in_worker(str(tmp_path / "elsewhere"), [], "x", "y")
    assert code == 1 and "all machines need the same storage" in reason


@pytest.mark.slow
def test_ray_continues_the_pipeline_of_a_lost_worker(tmp_path):
    """Two workers; one is killed, the other told to end, both in the middle of a stage."""
    pytest.importorskip("ray", reason="Ray is not installed")
    words = ["--epochs-scale", "0.2", "--rounds", "1", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-m", "reproduce", "--table", "digits", "--seeds", "0", *words,
               "--save", "runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH":
                   os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with open(tmp_path / "out", "w") as out:
        grid_run = subprocess.Popen([*command, "--ray", "local"], cwd=tmp_path, env=environment,
                                    stdout=out, stderr=subprocess.STDOUT)
    try:
        lost = {}
        while len(lost) < 2 and grid_run.poll() is None:
            for method, number in (("filter", signal.SIGKILL), ("weight", signal.SIGTERM)):
                folder = tmp_path / "runs" / f"digits-resnet20-{method}-seed0"
                if (method not in lost
                        and (folder / "seed0" / "onecycle-1" / "state.pth.tar").is_file()):
                    lost[method] = json.loads((folder / LOCK).read_text())["pid"]
                    os.kill(lost[method], number)
            time.sleep(0.02)
        code = grid_run.wait(240)
    finally:
        grid_run.kill()
    said = (tmp_path / "out").read_text()
    assert code == 0, said
    assert len(lost) == 2 and "2 pipelines: 2 done" in said, said
    for method in ("filter", "weight"):
        log = (tmp_path / "runs" / "logs" / f"digits-resnet20-{method}-seed0.log").read_text()
        assert "onecycle-1 continues after epoch" in log
        assert ("interrupted; the same command continues" in log) == (method == "weight")
    for method in ("filter", "weight"):
        run = f"digits-resnet20-{method}-seed0"
        works("cifar/pipeline.py", "--arch", "resnet20", "--dataset", "digits", "--method", method,
              "--compare", *words, "--save", tmp_path / "whole" / run, "--no-report")
        files = [*(tmp_path / "whole" / run).rglob("checkpoint.pth.tar")]
        assert len(files) == 4
        for file in files:
            other = tmp_path / "runs" / file.relative_to(tmp_path / "whole")
            one, other = (checkpoints.load(path).network.state_dict() for path in (file, other))
            assert (one.keys() == other.keys()
                    and all(torch.equal(one[name], other[name]) for name in one)), file
    assert not [*(tmp_path / "runs").rglob(LOCK)]
