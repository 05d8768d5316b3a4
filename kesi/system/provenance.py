"""Where a result comes from: commit, versions, device, command."""

import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from kesi.system import distributed
from kesi.system.errors import visible

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or where the package is installed


@functools.cache
def commit() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout this code runs from;
    else (None, None)."""
    if not (ROOT / ".git").exists():  # an installed copy, perhaps inside somebody else's checkout
        return None, None
    # what git says of a repository to its hooks would be another one's
    around = {name: value for name, value in os.environ.items()
              if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        head, changes = (subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True,
                                        text=True, check=True, timeout=20,
                                        env=around).stdout.strip()
                         for words in (("rev-parse", "HEAD"),
                                       ("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head, bool(changes)


@functools.cache
def versions() -> dict[str, str]:
    """The versions that decide a result, by package."""
    found = {"python": platform.python_version()}
    for package in ("kesi", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def ours() -> str:
    """The versions in one line, with the commit where the code runs from a checkout."""
    head, changed = commit()
    at = f" (commit {head[:12]}{', changed since' if changed else ''})" if head else ""
    named = {name: f"{name} {number}" for name, number in versions().items()}
    return ", ".join([named.pop("kesi") + at, *named.values()])


@functools.cache
def processor() -> str:
    """The processor by its name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device | str) -> str:
    """The accelerator's name, or the processor's with the number of threads that torch uses."""
    device, world = torch.device(device), distributed.world()
    several = f"{world} x " if world > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    return f"{several}{processor()}, {torch.get_num_threads()} threads"


def command() -> str:
    """The command line of this process, as one would type it from the project's folder."""
    words = list(sys.argv)
    module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    program = Path(words[0]).resolve() if words and words[0] else Path()
    if module in ("kesi", "kesi.__main__") or program.name == "kesi":
        start = "kesi"
    elif module is not None:
        start = f"python -m {module.removesuffix('.__main__')}"
    elif program.is_relative_to(ROOT):
        start = f"python {program.relative_to(ROOT)}"
    else:
        start = f"python {program.name}"
    typed = " ".join([start, *map(shlex.quote, words[1:])])
    return visible(typed)


def requoted(said: str) -> str:
    """The command in somebody else's file, word by word, so that a shell runs that one command
    and no other."""
    try:
        return shlex.join(shlex.split(said))
    except ValueError:  # quotes that do not end
        return shlex.quote(said)


def recipe_hash(recipe: dict) -> str:
    """A short name of a recipe: two results that have the same one were made with the same numbers.
    """
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def provenance(device: torch.device | str) -> dict:
    """What every checkpoint and every row of results says about its origin."""
    head, dirty = commit()
    return {"commit": head, "dirty": dirty, "versions": versions(), "device": device_name(device),
            "command": command()}
