"""The jobs of a grid on several machines: as tasks of a Ray cluster, or as a Slurm array.

All machines see the run folders under the same path (shared storage): whichever of them a pipeline
is started on again, it continues there from its last saved epoch, and its lock keeps a second
process out meanwhile.
"""

import contextlib
import os
import runpy
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kesi import data
from kesi.system import files
from kesi.system.errors import UsageError, controls
from kesi.system.locks import in_use
from reproduce.grid import MISSING, ROOT, Job, Status

# of a lost pipeline; each continues where the one before it was, so that none is in vain
RETRIES = 20

# seconds in which shared storage notices that a machine is gone and lets go of its locks
LOCK_WAIT = 300

WARNING = 120  # seconds before the end of its time in which Slurm lets a task save its state

INTERRUPTED = 130


class Interrupted(Exception):
    """A pipeline was told to end (a machine that is drained): to be started again elsewhere."""


def run_on_ray(jobs: Sequence[Job], address: str, gpus: float, cpus: int, logs: Path,
               images: Path, look: Callable[[Job], Status]) -> dict[str, str]:
    """Run jobs as Ray tasks of so many GPUs and cores; returns the failed ones and why.

    ``address``: of a cluster; "local" for one of this machine; "auto" for the one at hand, else a
    local one. What the pipelines print goes to ``logs``. Raises UsageError where Ray is not
    installed or not reached.
    """
    ray = _ray()
    if not jobs:
        return {}
    files.make_folder(logs)
    fetch(jobs, images)
    failed = {}
    with _connected(ray, address, gpus):
        # A process for each pipeline (max_calls): it is the pipeline, so that no other one outlives
        # its loss.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=RETRIES,
                            retry_exceptions=[Interrupted])(_task())
        pending = {remote.options(name=job.name).remote(str(ROOT), os.getcwd(), cluster_words(
            job), str(job.folder), str(logs / f"{job.name}.log")): job for job in jobs}
        print(f"\n{len(pending)} pipelines are with Ray; what they print is in {logs}", flush=True)
        while pending:
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                job = pending.pop(reference)
                try:
                    code, reason = ray.get(reference)
                except ray.exceptions.RayError as error:
                    code, reason = 1, str(error).strip().splitlines()[-1]
                said = "is done"
                if code and (state := look(job).state) != MISSING:
                    said = f"is {state}, by the process that was faster"
                elif code:
                    failed[job.name], said = reason, f"failed: {reason}"
                print(f"{len(jobs) - len(pending)}/{len(jobs)} {job.name} {said}", flush=True)
    return failed


def cluster_words(job: Job) -> list[str]:
    """The words of a job; its images are there already,
    since several processes would get in each other's way."""
    return [*job.words(), *["--no-download"] * (job.recipe.family == "cifar")]


def fetch(jobs: Sequence[Job], images: Path) -> None:
    """Download the data sets of jobs, once, before many processes want them.
    Raises KesiError where that fails."""
    wanted = {job.recipe.dataset for job in jobs if "--no-download" not in job.flags}
    for name in sorted(wanted & {"cifar10", "cifar100"}):
        data.load(name, images)


def _ray():
    """Ray, an extra. Raises UsageError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's 15 leaves next to nothing on a machine that is shared
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        return ray
    except ModuleNotFoundError as error:
        raise UsageError(
            '--ray needs Ray, which is not installed: pip install -e ".[ray]"') from error


@contextlib.contextmanager
def _connected(ray, address: str, gpus: float) -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local" or not _join(ray, address):
            ray.init(address="local", include_dashboard=False, object_store_memory=100 * 2**20,
                     logging_level="warning")
            if gpus and not ray.cluster_resources().get("GPU"):
                raise UsageError(
                    "this machine has no GPU: use --gpus 0, or give --ray the address of a cluster")
        elif ray.cluster_resources().get("GPU", 0) < gpus:
            print("warning: the cluster has no GPU now, and the pipelines wait for one (or "
                  "use --gpus 0)", file=sys.stderr)
        signal.signal(signal.SIGTERM, before)  # Ray has put its own in its place
        yield
    finally:
        ray.shutdown()


def _join(ray, address: str) -> bool:
    """Connect to a cluster; False where "auto" finds none."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address != "auto":  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"--ray {address}: nothing answers there ({error}); an address is "
                             "HOST:PORT, as ray start prints it") from error
    try:
        ray.init(address=address, logging_level="warning")
        return True
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            return False
        raise UsageError(
            f"--ray {address}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _task():
    """The function that Ray sends to its workers:
    by value, so that they need not know this package beforehand."""
    def task(root: str, directory: str, words: list[str], folder: str, log: str) -> tuple[int, str]:
        if root not in sys.path:
            sys.path.insert(0, root)
        from reproduce.cluster import in_worker
        return in_worker(directory, words, folder, log)
    return task


def in_worker(directory: str, words: list[str], folder: str, log: str) -> tuple[int, str]:
    """Run a pipeline in this very process, as its script would be;
    returns its exit code and its error.

    In a process of its own it would go on when Ray's worker is killed, and hold the lock. Raises
    Interrupted where it was told to end.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        return (1, f"{directory} is not on {socket.gethostname()} ({error.strerror}): all machines "
                   "need the same storage")
    waited = time.monotonic()
    while in_use(Path(folder)) is not None and time.monotonic() - waited < LOCK_WAIT:
        time.sleep(1)  # the one before was lost with its machine, which the storage has to notice
    with open(log, "a+", encoding="utf-8", buffering=1) as file:
        start = file.seek(0, os.SEEK_END)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = _script(words)
        file.seek(start)
        errors = [line.strip() for line in file if line.startswith("error: ")]
    if code == INTERRUPTED:
        raise Interrupted(f"interrupted on {socket.gethostname()}")
    return code, (errors[-1].removeprefix("error: ") if errors else f"exit code {code}, see {log}")


def _script(words: list[str]) -> int:
    # Ray's workers block SIGINT, as which the script passes on the SIGTERM of a machine's end
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sys.argv = list(words)
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def slurm_script(jobs: Sequence[Job], title: str, gpus: float, cpus: int, save: Path) -> str:
    """A script for sbatch: an array with one task a job. Raises UsageError for a fraction of a GPU.

    A task that is requeued, or submitted again, continues. One that nears the end of its time saves
    its state and queues itself again; one that is cancelled does not.
    """
    if gpus not in (0, 1):
        raise UsageError(f"Slurm gives whole GPUs: --gpus takes 0 or 1 with --slurm, not {gpus:g}")
    logs = Path(save).absolute() / "logs"
    for path in (logs, sys.executable, ROOT):
        if controls(str(path)):  # a line of its own in the script, which would be run
            raise UsageError(f"--slurm takes no path with a control character: {str(path)!r}")
    files.make_folder(logs)  # without which Slurm ends a task without a word
    cases = [f"  {number}) words=({shlex.join(cluster_words(job))}) ;;"
             for number, job in enumerate(jobs)]
    # Slurm's own lines know no shell: a blank is written with a backslash
    options = [f"--job-name=kesi-{'-'.join(title.split())}", f"--array=0-{len(jobs) - 1}",
               f"--cpus-per-task={cpus}", *["--gpus-per-task=1"] * bool(gpus), "--ntasks=1",
               "--requeue", "--open-mode=append", f"--signal=TERM@{WARNING}",
               f"--output={str(logs).replace(' ', chr(92) + ' ')}/%x-%A-%a.log"]
    names = sorted({job.recipe.dataset for job in jobs})
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options),
                      f"# {len(jobs)} jobs, one a task; the images of {', '.join(names)} must "
                      "be in place. Submit it with", "#     sbatch --time=... --partition=... THIS",
                      "",
                      f"cd {shlex.quote(os.getcwd())} || exit 1",
                      f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
                      'case "$SLURM_ARRAY_TASK_ID" in', *cases,
                      '  *) echo "no job $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;', "esac",
                      # said again: from Slurm 22.05 on srun does not take the array's
                      f'srun --cpus-per-task={cpus} {shlex.quote(sys.executable)} "${{words[@]}}"',
                      "code=$?",
                      "# Interrupted, and its time is (nearly) over: go on in the next one.",
                      f'if [ "$code" -eq {INTERRUPTED} ] && [ "$(date '
                      f'+%s)" -ge $((${{SLURM_JOB_END_TIME:-9999999999}} - {2 * WARNING})) ]; then',
                      '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
                      "fi",
                      'exit "$code"', ""])
