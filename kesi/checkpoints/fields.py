"""What the JSON files of a run may say, looked through once when they are read.

A forged or half-written value ends in one line that names the file and the field.
"""

import re
from collections.abc import Callable
from pathlib import Path

from kesi.data.datasets import LARGEST
from kesi.method.schedules import DIVERGED
from kesi.system.errors import KesiError, controls

Check = Callable[[object], bool]

MOST = DIVERGED  # of any number: what a run may write can be read


def number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def whole(low: int, high: float = MOST) -> Check:
    """A whole number from ``low`` to ``high``."""
    return lambda value: isinstance(value, int) and not isinstance(value,
                                                                   bool) and low <= value <= high


integer = whole(-MOST)


def text(value: object) -> bool:
    """A string."""
    return isinstance(value, str)


def line(value: object) -> bool:
    """A string without control characters, which would begin a line of their own where it is shown.
    """
    return text(value) and not controls(value)


def commit(value: object) -> bool:
    """A commit, which is hexadecimal."""
    return text(value) and re.fullmatch("[0-9a-f]{4,64}", value) is not None


def file_path(value: object) -> bool:
    """A path that a system would take, on one line."""
    return line(value) and len(value) < 4096 and all(map(file_name, value.split("/")))


def file_name(value: object) -> bool:
    """A name of a file or folder, or none."""
    return line(value) and "/" not in value and len(value.encode(errors="replace")) < 256


def folder_name(value: object) -> bool:
    """A name of a folder in the one at hand."""
    return file_name(value) and value not in ("", ".", "..")


def true_or_false(value: object) -> bool:
    """A boolean."""
    return isinstance(value, bool)


def dictionary(value: object) -> bool:
    """A dictionary of anything."""
    return isinstance(value, dict)


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda value: value is None or check(value)


def several(check: Check) -> Check:
    """A list of what ``check`` takes."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def mapping(check: Check) -> Check:
    """A dictionary of what ``check`` takes."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def described(value: object) -> bool:
    """What Dataset.describe() says, as far as it is read again."""
    if not dictionary(value):
        return False
    return (mapping(whole(0))(value.get("images", {})) and several(line)(value.get("classes", []))
            and dictionary(value.get("augmentation", {}))
            and optional(size)(value.get("image_size")))


def size(value: object) -> bool:
    """Pixels of images: of a square, or [height, width]."""
    return whole(1, LARGEST)(value) or several(whole(1, LARGEST))(value) and len(value) == 2


REFERENCE: dict[str, Check] = {"path": file_path, "stage": text, "network": optional(text)}

ORIGIN: dict[str, Check] = {"commit": optional(commit), "dirty": optional(true_or_false),
                            "versions": optional(mapping(line)), "device": optional(line),
                            "command": optional(line), "recipe_hash": optional(line)}


def origin(value: object) -> bool:
    """What kesi.system.provenance says, of the epochs before an interruption."""
    return dictionary(value) and all(check(value.get(name)) for name, check in ORIGIN.items())


def checked(path: Path, value: object, checks: dict[str, Check], needed: tuple[str, ...] = (),
            trouble: str = "is damaged", prefix: str = "") -> dict:
    """``value``, after looking at the fields that it has.
    Raises KesiError for the first that cannot be.

    ``trouble``: what such a file is; ``prefix``: where in it the fields stand ("info.").
    """
    if not isinstance(value, dict):
        raise KesiError(f"{path} {trouble}: it holds no fields")
    for name, check in checks.items():
        if (name in value or name in needed) and not check(value.get(name)):
            raise KesiError(f"{path} {trouble}: its {prefix}{name} is {shown(value.get(name))}")
    return value


def shown(value: object) -> str:
    """A value for a message: short, and of a nested one the type only."""
    if isinstance(value, (int, float, str, type(None))):
        return f"{value!r:.40}"
    return f"a {type(value).__name__}"
