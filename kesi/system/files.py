"""Writing so that nothing is ever half-written: a temporary file, fsync, rename,
fsync of the folder."""

import contextlib
import csv
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from kesi.system import distributed
from kesi.system.errors import KesiError

# what write_atomic() calls a file that it has not finished
TEMPORARY = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp")

LOCK = ".lock"

# by this process, and what it wrote to their locks; see kesi.system.locks
held_folders: dict[Path, bytes | None] = {}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KesiError(f"cannot write {path}: {error.strerror or error}; what was there before "
                        "is unchanged") from error


def refuse_lost(path: Path) -> None:
    """Raises KesiError where a folder around ``path`` that this process holds is not the one it
    took any more."""
    here = Path(os.path.realpath(path))  # resolve() fails where links lead in a circle
    for folder, signed in list(held_folders.items()):  # threads take some, too
        if signed is None or not here.is_relative_to(folder):
            continue
        try:
            said = (folder / LOCK).read_bytes()
        except FileNotFoundError:
            raise KesiError(f"{folder} was moved or removed while it was in use: nothing more is "
                            "written; move it back, and the same command continues") from None
        except OSError:
            continue
        if said != signed:
            raise KesiError(
                f"{folder} was taken by another process meanwhile, which locks did not keep out "
                f"(does another machine work on it?): nothing more is written here; {said[:300]!r}")


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents. Raises KesiError where that is not possible."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomic(path: Path, write: Callable[[BinaryIO], None], durable: bool = True,
                 previous: Path | None = None) -> None:
    """write_whole(), of several processes that train together by the first only."""
    if distributed.is_main():
        write_whole(path, write, durable, previous)


def write_whole(path: Path, write: Callable[[BinaryIO], None], durable: bool = True,
                previous: Path | None = None) -> None:
    """Let ``write`` fill a file that appears under ``path`` as a whole or not at all.

    ``durable``: also survive a power cut right after the return (fsync). ``previous``: keep the
    file that was there under this name; it is renamed only once the new one is complete on the
    disk, so that at every moment one of the two is whole. Raises KesiError when the disk is full,
    the folder read-only or the like; the file that was there before stays.
    """
    path = Path(path)
    refuse_lost(path)
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        raise KesiError(f"cannot write {path}: it is there already, and no file")
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with _explained(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if durable and os.name == "posix":  # Windows cannot open a folder
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what a killed process left half-written in a folder (not in those below);
    returns their names.

    For the one process that may write there: see kesi.system.locks. What cannot be removed stays.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(folder).iterdir()):
            if TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed.append(path)
    return removed


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """write_atomic() of UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode()) and None, durable)


def write_json(path: Path, value: Any) -> None:
    """write_atomic() of indented JSON with a final newline."""
    write_text(path, _json(path, value, indent=1) + "\n")


def write_json_lines(path: Path, values: list[dict], durable: bool = False) -> None:
    """write_atomic() of one JSON object a line;
    not forced to the disk where it is rewritten every epoch."""
    write_text(path, "".join(_json(path, value) + "\n" for value in values), durable)


def _json(path: Path, value: Any, **style) -> str:
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError as error:
        raise KesiError(f"{path} is not written: a figure in it is not finite") from error


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. Raises KesiError where there is none or it cannot be read."""
    try:
        if Path(path).is_fifo():  # to be read, it would be waited for
            raise KesiError(f"cannot read {path}: it is a pipe, and no file")
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise KesiError(f"cannot read {path}: {reason}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises KesiError where there is none or it is damaged."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KesiError(f"cannot read {path}: not valid JSON ({error})") from error


def csv_text(lines: Sequence[dict]) -> str:
    """CSV with a header, in which no text is a formula to a spreadsheet:
    an apostrophe stands before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def walk(folder: Path, onerror: Callable[[OSError], None] | None = None,
         ) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk() that goes into linked folders too, and into each once: a link may lead back."""
    been = set()
    for here, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        there = os.path.realpath(here)
        if there in been:
            folders.clear()
            continue
        been.add(there)
        folders.sort()
        yield Path(here), folders, names


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how what a spreadsheet computes begins


def as_said(text: str) -> str:
    """A text of csv_text() without the apostrophe that stands before what would be a formula."""
    return text.removeprefix("'") if text[1:].startswith(FORMULA) else text


def _harmless(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    return value if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value) else f"'{value}"
