"""Tamper with a run between two of its commands, and see that it is noticed or changes nothing.

    python -m tests.tampering --tamperings 100 --seed 0

A run on a small folder of images stands half-finished, or finished. In a copy of it something is
changed: bytes of any file, an image, a label, a link, a time, a name. Then the same command goes
on, and `kesi verify` looks at what is there. Either one of the two says something (an error of
one line, a warning, a check that fails), or every file of the run is that of the run left alone.
The second part of `make chaos`; the first is tests/chaos.py.
"""

import argparse
import collections
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from kesi.runs.record import IMAGES
from kesi.system.errors import KesiError
from kesi.system.provenance import provenance
from tests.chaos import differences, run_whole, start, tail
from tests.datagen import write_imagefolder

COMMAND = ["cifar/pipeline.py", "--arch", "resnet20", "--dataset", "imagefolder",
           "--data", "images", "--image-size", "16", "--rounds", "1", "--epochs", "2", "2", "2",
           "--batch-size", "16", "--device", "cpu", "--save", "run"]
VERIFY = ["kesi/__main__.py", "verify", "run", "--data", "images"]

SAID = re.compile("error: |warning: |FAILED ")

NOTICED, SAME, UNNOTICED = "noticed", "changed nothing", "unnoticed"


def _files(here: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in here.rglob(pattern) if path.is_file()
                  and path.name not in ("log.txt", ".lock"))


def _images(here: Path) -> list[Path]:
    found = [path for path in _files(here / "images")
             if path.suffix.lower() in (".png", ".jpg", ".bmp")]
    return [path for path in found if not path.name.startswith(".")
            and ".kesi-cache" not in path.parts]


def _two(rng: random.Random, paths: list[Path]) -> tuple[Path, Path]:
    one, other = rng.sample(paths, 2)
    return one, other


def flip_bytes(rng: random.Random, here: Path) -> str:
    """One to eight bytes of any file; time and size stay."""
    path = rng.choice(_files(here))
    content, times = bytearray(path.read_bytes()), path.stat()
    for _ in range(rng.randint(1, 8)):
        if content:
            content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"bytes of {path.relative_to(here)}"


def cut(rng: random.Random, here: Path) -> str:
    """The end of any file is gone, or all of it."""
    path = rng.choice(_files(here))
    os.truncate(path, rng.choice((0, path.stat().st_size // 2)))
    return f"{path.relative_to(here)} cut"


def remove(rng: random.Random, here: Path) -> str:
    """A file of the run, or an image, is gone."""
    path = rng.choice(_files(here))
    path.unlink()
    return f"{path.relative_to(here)} removed"


def change_image(rng: random.Random, here: Path) -> str:
    """An image shows something else."""
    path = rng.choice(_images(here))
    with Image.open(path) as image:
        change = rng.choice((ImageOps.invert, ImageOps.mirror))
        changed = change(image.convert("RGB"))
    changed.save(path)
    return f"{path.relative_to(here)} {change.__name__}"


def change_label(rng: random.Random, here: Path) -> str:
    """An image moves to another class, or two classes change their names."""
    split = here / "images" / rng.choice(("train", "test"))
    one, other = _two(rng, sorted(path for path in split.iterdir() if path.is_dir()))
    if rng.random() < 0.5:
        one.rename(split / "between"), other.rename(one), (split / "between").rename(other)
        return f"{one.relative_to(here)} and {other.name} swapped"
    path = rng.choice([path for path in _images(here) if path.parent == one])
    path.rename(other / f"moved-{path.name}")
    return f"{path.relative_to(here)} to {other.name}"


def change_number(rng: random.Random, here: Path) -> str:
    """A digit in a JSON file of the run is another one."""
    path = rng.choice([path for path in _files(here / "run") if path.suffix in (".json", ".jsonl")
                       and path.name != IMAGES])  # it may have none
    text = path.read_text()
    place = rng.choice([found.start() for found in re.finditer(r"\d", text)])
    text = text[:place] + str((int(text[place]) + rng.randint(1, 9)) % 10) + text[place + 1:]
    path.write_text(text)
    line = text.count("\n", 0, place)
    return f"{path.relative_to(here)}, {text.splitlines()[line].strip()[:60]}"


def link(rng: random.Random, here: Path) -> str:
    """A file is a link to another one of its kind, or to itself elsewhere."""
    path = rng.choice(_files(here / "run"))
    alike = [other for other in _files(here / "run") if other.suffix == path.suffix]
    target = rng.choice(alike)
    if target == path:
        target = path.rename(here / f"elsewhere-{path.name}")
    else:
        path.unlink()
    path.symlink_to(os.path.relpath(target, path.parent))
    return f"{path.relative_to(here)} links to {target.relative_to(here)}"


def change_times(rng: random.Random, here: Path) -> str:
    """Every file is of another day, as after a copy or a jump of the clock."""
    when = rng.choice((0, 10**9, 4 * 10**9))
    for path in _files(here):
        os.utime(path, (when, when))
    return f"all times {when}"


def rename(rng: random.Random, here: Path) -> str:
    """Two files of one name change their places, or a file or a stage has another name."""
    if rng.random() < 0.5:
        path = rng.choice([*_files(here / "run"), *sorted((here / "run" / "seed0").iterdir())])
        path.rename(path.with_name(f"{path.name}-renamed"))
        return f"{path.relative_to(here)} renamed"
    names = collections.defaultdict(list)
    for path in _files(here / "run"):
        names[path.name].append(path)
    one, other = _two(
        rng, names[rng.choice(sorted(name for name, paths in names.items() if len(paths) > 1))])
    between = one.rename(here / "between")
    other.rename(one), between.rename(other)
    return f"{one.relative_to(here)} and {other.relative_to(here)} swapped"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "bytes": flip_bytes, "cut": cut, "removed": remove, "image": change_image, "label":
    change_label, "number": change_number, "link": link, "times": change_times, "name": rename}


def run_half(folder: Path, words: list[str]) -> None:
    """A run that is killed while it retrains."""
    process = start(folder, words)
    state = folder / "run" / "seed0" / "onecycle-1" / "state.pth.tar"
    while not state.exists():
        if os.waitpid(process, os.WNOHANG)[0]:
            raise KesiError(f"the run ended before it was killed: {tail(folder)}")
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def outcome(here: Path, whole: Path, usual: set[str]) -> tuple[str, str]:
    """What the same command and verify make of a copy:
    noticed or not, and what was said or differs.

    ``usual``: the warnings of a run that nobody touched.
    """
    log = here / "log.txt"
    log.unlink(missing_ok=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(start(here, words), 0)[1])
             for words in (COMMAND, VERIFY)]
    lines = log.read_text(errors="replace").splitlines()
    if any(line.startswith("Traceback") for line in lines) or not set(codes) <= {0, 1, 2}:
        return UNNOTICED, f"a traceback, exit codes {codes}: {lines[-1]}"
    said = [line for line in lines if SAID.match(line) and line not in usual]
    if said:
        return NOTICED, said[0]
    try:
        found = differences(whole / "run", here / "run")
    except (KesiError, OSError, ValueError) as error:
        found = [str(error)]
    strays = {f"{path.relative_to(here / 'run')} is in one run only"
              for path in (here / "run").rglob("*")}
    # what lies about besides is nobody's harm
    found = [line for line in found if line not in strays]
    return (UNNOTICED, "; ".join(found)) if found or any(codes) else (SAME, "")


def campaign(folder: Path, number: int, seed: int) -> dict[str, collections.Counter]:
    """So many tamperings, of every kind in turn, half of them with a finished run;
    how each kind ended."""
    here = folder / "here"  # all of them in one place: a run notes where its images are
    for state, run in (("whole", run_whole), ("half", run_half)):
        write_imagefolder(here / "images")
        for path in (here / "images").glob("*/*/*"):
            # of which the command would warn, untouched, too
            if path.name in ("notes.txt", ".hidden.png"):
                path.unlink()
        run(here, COMMAND)
        here.rename(folder / state)
    usual = set(filter(SAID.match, (folder / "whole" / "log.txt").read_text().splitlines()))
    shutil.copytree(folder / "half", here)
    if (left := outcome(here, folder / "whole", usual))[0] != SAME:
        raise KesiError(f"a run that nobody touched is another: {left}")
    shutil.rmtree(here)
    counts = {name: collections.Counter() for name in KINDS}
    for place in range(number):
        rng = random.Random(f"{seed}/{place}")  # each by itself, to be repeated alone
        name, state = list(KINDS)[place % len(KINDS)], ("half", "whole")[place // len(KINDS) % 2]
        shutil.copytree(folder / state, here, symlinks=True)
        what = KINDS[name](rng, here)
        ended, said = outcome(here, folder / "whole", usual)
        counts[name][ended] += 1
        print(f"{place:>4} {state:<5} {name:<7} {ended}: {what}{': ' * bool(said)}{said[:200]}",
              flush=True)
        shutil.rmtree(here)
    return counts


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tampering",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--tamperings", type=int, default=100, metavar="N",
                        help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of what is changed (default: 0)")
    args = parser.parse_args()
    # remembered by every process, so that a commit in the meantime changes nothing
    provenance("cpu")
    # of forking with threads: there is none that computes
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory(prefix="tampering-") as folder:
        try:
            counts = campaign(Path(folder), args.tamperings, args.seed)
        except KesiError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    for name, ended in counts.items():
        print(f"{name:<8} "
              + ", ".join(f"{ended[how]} {how}" for how in (NOTICED, SAME, UNNOTICED)))
    unnoticed = sum(ended[UNNOTICED] for ended in counts.values())
    print(f"{sum(map(collections.Counter.total, counts.values()))} tamperings, {unnoticed} of "
          "them unnoticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
