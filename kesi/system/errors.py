"""The two kinds of error that a user can cause, and what messages need.

A script turns each kind into one line and an exit code.
"""

import re
from collections.abc import Iterable


class KesiError(Exception):
    """Something outside the program is wrong: a file, the data, the network, the disk. Exit code 1.
    """


class TrainingFailed(KesiError):
    """A network cannot be trained: its loss is no number any more, or nothing gets through it."""


class PruningFailed(KesiError):
    """A criterion gives nothing that filters or weights can be pruned by."""


class UsageError(KesiError):
    """An argument is wrong: an unknown name, a value out of range, settings that do not fit.
    Exit code 2."""


def check_choice(what: str, value: object, choices: Iterable[object], where: str = "") -> None:
    """Raises UsageError where ``value`` is none of ``choices``; ``what`` it should be, and
    ``where`` it was said, are for the message."""
    choices = tuple(choices)
    if value not in choices:
        raise UsageError(f"unknown {what} {value!r:.60}{where}; choose one of: "
                         f"{', '.join(map(str, choices))}")


def first_line(error: BaseException) -> str:
    """What another library's error says, in at most 160 characters of one line, without colours;
    its type where it says nothing."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()
    return (text[0][:160] if text else type(error).__name__).rstrip(".")


def visible(text: object) -> str:
    """A text as one may show it: with a question mark for what a terminal would obey."""
    return "".join("?" if controls(letter) else letter for letter in str(text))


def controls(text: str) -> bool:
    """Whether a text holds control characters, line separators or bytes that are no UTF-8,
    which no path or name needs."""
    return re.search("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]", text) is not None
