"""What to type with a run at hand: to continue it, to repeat it, and to go on with its network."""

import re
import shlex

from kesi import models
from kesi.data import DATASETS
from kesi.runs.results import Run
from kesi.system.provenance import requoted

OURS = re.compile(r"kesi |python (cifar/|tinyimagenet/)")  # else it is a program of somebody's with compress()


def next_steps(run: Run) -> list[tuple[str, str]]:
    """What can be done and the command lines for it; of a network of one's own with the module that registers it."""
    command = requoted(run.info.get("command") or "python cifar/pipeline.py")
    command = re.sub(r" --fresh\b", "", command)
    commit = run.info.get("commit")
    checkout = f"git checkout {commit}\n" if commit else ""
    if OURS.match(command):
        steps = [("Continue: the same command takes an interrupted run up at its last saved epoch, and leaves what is "
                  "finished alone.", command),
                 ("Repeat it from nothing; the run that is there is moved aside.", f"{checkout}{command} --fresh")]
    else:
        steps = [("Continue: the program that called kesi.compress takes an interrupted run up at its last saved "
                  "epoch, and leaves what is finished alone; with fresh=True in the call it starts over.", command)]
    folder = shlex.quote(str(run.folder))
    seed = min(run.seeds, default=0)
    last, kesi, note = f"{folder}/seed{seed}/kesi", "kesi", ""
    network = models.ARCHITECTURES.get(run.info["arch"])
    if network is None or network.graph:
        added = _given(command, "--with")
        kesi = f"kesi{added or ' --with FILE'}"
        note = "" if added else "; FILE is the Python file that registers the network"
    lines = [f"{kesi} export {last} --out kesi.onnx{_data(command)}",
             f"{kesi} predict {last} image.png"]
    if run.info["dataset"] in DATASETS:
        lines.append(f"{kesi} compare {folder}/seed{seed}/baseline {last}{_data(command)}")
        check = "Check the files, and compute the accuracies anew.", f"{kesi} verify {folder}{_data(command)}"
    else:
        check = ("Check the files. Accuracies of images that were handed over in Python are computed anew there, by "
                 "kesi.report.verify.verify(folder, dataset).", f"{kesi} verify {folder} --no-accuracy")
    what = "Use the compressed network, or look at it next to its baseline"
    finished = "kesi" in run.seeds.get(seed, ())
    return [*steps, *[(f"{what}{note}.", "\n".join(lines)), check] * finished]


def _data(command: str) -> str:
    """Where the images are, if the run's command says so."""
    return _given(command, "--data")


def _given(command: str, flag: str) -> str:
    """A flag of a command with its value, as it is typed; "" where there is none."""
    words = shlex.split(command)
    if flag not in words[:-1]:
        return ""
    return f" {flag} {shlex.quote(words[words.index(flag) + 1])}"
