"""Somebody's text in Markdown, as what it is and not as what it could say there."""

import re

from kesi.system.errors import controls


def plain(text: object) -> str:
    """Text that begins no line and no tag of its own, whoever wrote it."""
    return _line(text).replace("\\", r"\\").replace("<", r"\<")


def code(text: str) -> str:
    """Text as code on one line, whatever backticks are in it."""
    text = _line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _line(text: object) -> str:
    return "".join(" " if controls(letter) else letter for letter in str(text))
