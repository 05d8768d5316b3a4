"""Writing so that nothing is ever half-written: a temporary file, fsync, rename, fsync of the folder."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kesi.errors import KesiError


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KesiError(f"cannot write {path}: {error.strerror or error}; what was there before is unchanged"
                        ) from error


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents. Raises KesiError where that is not possible."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomic(path: Path, write: Callable[[BinaryIO], None], durable: bool = True) -> None:
    """Let ``write`` fill a file that appears under ``path`` as a whole or not at all.

    ``durable``: also survive a power cut right after the return (fsync). Raises KesiError when the disk is
    full, the folder read-only or the like; the file that was there before stays.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with _explained(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if durable:
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """write_atomic() of UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode()) and None, durable)


def write_json(path: Path, value: Any) -> None:
    """write_atomic() of indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, values: list[dict]) -> None:
    """write_atomic() of one JSON object a line; not forced to the disk, since it is rewritten every epoch."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values), durable=False)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises KesiError where there is none or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not valid JSON ({error})"
        raise KesiError(f"cannot read {path}: {reason}") from error
