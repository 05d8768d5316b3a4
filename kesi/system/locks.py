"""One process at a time in a folder: a run folder, or that of a stage run by hand.

    <folder>/.lock    held by flock while in use; it says who holds it: process, host, command,
                      since when

Whoever holds a stage inside a run folder (one with a run.json) shares the run's lock, so that no
pipeline begins there meanwhile; and while a pipeline holds the run, nobody else gets at its stages.

The lock is the kernel's and ends with the process that holds it, however that ends: what the file
of a dead process says is no obstacle. Where the system has no flock (Windows), or the file system
refuses it, nothing keeps two processes apart; held() warns of that and goes on.

Locks do not reach every machine that shares a folder (NFS without its lock daemon). Two things
tell: a lock that is free and was signed by another machine is warned of, and whoever finds the name
of another process in its own lock before it writes stops (kesi.system.files.refuse_lost).
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from kesi.system import distributed
from kesi.system.errors import KesiError
from kesi.system.files import LOCK, held_folders, make_folder, refuse_lost, remove_leftovers
from kesi.system.provenance import command, requoted

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

LOOKS = 3  # tries before a folder counts as in use

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Hold a folder, which is made if need be,
    and remove what a killed process left half-written in it.

    Raises KesiError that names the holder where another process (or this one) has it, and where the
    folder cannot be made or written.
    """
    if not distributed.is_main():  # the first of several processes holds it for all
        yield Path(folder)
        return
    refuse_lost(Path(folder).parent)  # the run around it
    folder = make_folder(Path(folder))
    run = _run_around(folder)
    with _lock(run, shared=True) if run is not None else contextlib.nullcontext(), _lock(folder):
        remove_leftovers(folder)
        yield folder


def _pause() -> None:
    time.sleep(0.2)


@contextlib.contextmanager
def held_by_one(folder: Path, wait: Callable[[], object] = _pause) -> Iterator[None]:
    """Hold a folder that all processes may write to, after whoever has it; otherwise like held().

    Also each of several processes that train together gets its turn. ``wait`` is called again and
    again while another has it. Raises KesiError where the folder cannot be made or written.
    """
    with _lock(make_folder(Path(folder)), wait=wait) as locked:
        if locked:  # else what is half-written may be another's who is at it
            remove_leftovers(folder)
        yield


@contextlib.contextmanager
def held_for_all(folder: Path) -> Iterator[None]:
    """held_by_one() of several processes that train together, by the first of them for all.

    The others are told again and again that it still waits, since none waits longer than
    distributed.PATIENCE for a word of the first, and whoever has the folder may train for days.
    """
    if not distributed.is_main():
        while not distributed.mean([0.0])[0]:
            pass
        yield
        return

    def wait() -> None:
        distributed.mean([0.0])
        _pause()

    with held_by_one(folder, wait):
        distributed.mean([1.0])
        yield


def in_use(folder: Path) -> str | None:
    """Who holds a folder, in words; None where nobody does, or where the system has no locks."""
    if fcntl is None:
        return None
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once, by the close
    except BlockingIOError:
        return holder(folder)
    except OSError:  # no such file, or no locks
        return None
    return None


def _run_around(folder: Path) -> Path | None:
    """The run folder that a stage's folder lies in, unless this process holds it as a whole."""
    for around in Path(os.path.realpath(folder)).parents[:2]:
        if around in held_folders:
            return None
        if (around / "run.json").is_file():
            return around
    return None


@contextlib.contextmanager
def _lock(folder: Path, shared: bool = False,
          wait: Callable[[], object] | None = None) -> Iterator[bool]:
    """Holds the folder's lock; gives whether there are locks here at all."""
    descriptor, signed = _acquire(folder, shared, wait)
    here = Path(os.path.realpath(folder))
    try:
        if not shared:
            held_folders[here] = signed
        yield descriptor is not None
    finally:
        if not shared:
            held_folders.pop(here, None)
        if descriptor is not None:
            # unlinked before it is released: the next one makes its own
            with contextlib.suppress(OSError):
                if shared:  # by the last that shares it
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _elsewhere(folder, shared) is None and _is_at(descriptor, folder / LOCK):
                    (folder / LOCK).unlink()
            os.close(descriptor)


def holder(folder: Path) -> str:
    """Who holds a folder, in words, as its lock file says."""
    try:
        said = json.loads((Path(folder) / LOCK).read_text(encoding="utf-8"))
        return (f"process {said['pid']} on {said['host']} since {said['since']} "
                f"({requoted(said['command'])})")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "another process"  # which has just made the file, or is about to remove it


def _acquire(folder: Path, shared: bool,
             wait: Callable[[], object] | None) -> tuple[int | None, bytes | None]:
    """(descriptor of the lock, what was written to it); None where there are no locks, or where a
    disk is full."""
    path = folder / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise KesiError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            if not _flock(descriptor, folder, shared, wait):
                os.close(descriptor)
                return None, None
            if _is_at(descriptor, path):
                _warn_of_another_machine(folder, shared)
                return descriptor, _sign(descriptor, shared)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it, or moved the folder, between open and flock


def _flock(descriptor: int, folder: Path, shared: bool,
           wait: Callable[[], object] | None) -> bool:
    """Whether there are locks here at all. Raises KesiError where another process holds this one,
    unless it is to be waited for."""
    if fcntl is None:
        warnings.warn(f"this system has no flock: nothing keeps a second process out of {folder}",
                      stacklevel=2)
        return False
    kind, told, tries = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, False, LOOKS
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if wait is None:
                tries -= 1
                if tries:
                    time.sleep(0.05)  # it may be somebody who only looks: in_use()
                    continue
                raise KesiError(f"{folder} is in use by {holder(folder)}: wait for it, or use "
                                f"another --save") from error
            if not told:
                print(f"{folder} is in use by {holder(folder)}: waiting for it", file=sys.stderr)
            told = True
            wait()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise KesiError(f"cannot lock {folder}: {error.strerror or error}") from error
            warnings.warn("the file system has no locks: nothing keeps a second process out "
                          f"of {folder}", stacklevel=2)
            return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _elsewhere(folder: Path, shared: bool) -> str | None:
    """The other machine that a folder's lock says has it; None where it says none, or this one, or
    one that shares it with this one."""
    try:
        said = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        host, shares = said["host"], shared and said.get("shared")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # empty: it is new
        return None
    return host if host != socket.gethostname() and not shares else None


def _warn_of_another_machine(folder: Path, shared: bool) -> None:
    if _elsewhere(folder, shared) is not None:
        warnings.warn(f"{folder} was not let go of by {holder(folder)}: if that is still "
                      "at work there, end one of the two, since locks do not reach every machine",
                      stacklevel=2)


def _sign(descriptor: int, shared: bool) -> bytes | None:
    """Say who holds the lock; a full disk is no reason not to hold it."""
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command(),
                       "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                       "shared": shared})
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        return text.encode()
    return None
