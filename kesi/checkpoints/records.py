"""What files say of the things in them, as dataclasses: decoded and checked in one place,
attributes from there on."""

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from kesi.checkpoints import fields
from kesi.checkpoints.fields import Check, shown
from kesi.system.errors import KesiError

T = TypeVar("T")

Round = Annotated[int, fields.whole(0, 1000)]
Count = Annotated[int, fields.whole(0)]
Data = Annotated[dict, fields.described]
Line = Annotated[str, fields.line]  # without control characters


@dataclass(kw_only=True)
class Origin:
    """Where something was made: see kesi.system.provenance."""

    commit: Annotated[str, fields.commit] | None = None
    dirty: bool | None = None
    versions: dict[str, Line] = field(default_factory=dict)
    device: Line | None = None
    command: Line | None = None


@dataclass(kw_only=True)
class Earlier(Origin):
    """Where the epochs before an interruption were made, if that was elsewhere."""

    until_epoch: Count


@dataclass(frozen=True)
class Reference:
    """How a file names the network that it was made from:
    relative to its own folder, and by its digest."""

    path: Annotated[str, fields.file_path]
    stage: str
    network: str | None = None


@dataclass(kw_only=True)
class Made(Origin):
    """How a network came about, in the words that its checkpoint and its result share.

    ``settings`` is what decided the outcome, as kesi.system.describe gives it. ``pruned_accuracy``:
    in percent, right after pruning. ``earlier``: the origins of epochs before interruptions.
    """

    stage: str = ""
    kind: str | None = None
    round: Round | None = None
    method: str | None = None
    seed: int | None = None
    settings: dict = field(default_factory=dict)
    recipe_hash: str | None = None
    pruned_accuracy: float | None = None
    parent: Reference | None = None
    teachers: list[Reference] = field(default_factory=list)
    earlier: list[Earlier] = field(default_factory=list)
    history_digest: str | None = None


@dataclass(kw_only=True)
class Info(Made):
    """What a checkpoint says of itself; one of the released code says next to nothing.

    ``data``: the images, as Dataset.describe() gave them; ``unlabelled_images``: how many more
    without labels the training drew from. ``recipe``: the training. ``criterion``
    and ``amount``: of a pruned network, and ``looked_at``, the digest of the images that the
    criterion looked at, if it did. ``metrics``: in percent, of the last epoch. ``source`` and
    ``epoch``: of the released code's files.
    """

    data: Data = field(default_factory=dict)
    unlabelled_images: Count | None = None
    recipe: dict = field(default_factory=dict)
    pretrained: str | None = None
    criterion: dict | None = None
    amount: Any = None
    looked_at: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    source: str | None = None
    epoch: int | None = None


def encode(record: Any) -> dict:
    """A record as plain values, without what it does not say and need not."""
    needed = {one.name for one in dataclasses.fields(record) if _needed(one)}
    return {name: value for name, value in dataclasses.asdict(record).items()
            if name in needed or value is not None and value != [] and value != {}}


def decode(kind: type[T], value: object, path: Path | str, trouble: str = "is damaged",
           prefix: str = "") -> T:
    """The record that ``value``, read from ``path``, says;
    fields that it does not know are left out.

    Raises KesiError that names the first field that cannot be: ``trouble`` says what such a file
    is, ``prefix`` where in it the fields stand ("info.").
    """
    if not isinstance(value, dict):
        raise KesiError(f"{path} {trouble}: it holds no fields")
    found = {}
    for one in dataclasses.fields(kind):
        if one.name not in value and not _needed(one):
            continue
        try:
            where = (path, trouble, f"{prefix}{one.name}.")
            found[one.name] = _as(_hints(kind)[one.name], value.get(one.name), where)
        except _Wrong:
            raise KesiError(f"{path} {trouble}: its {prefix}{one.name} is "
                            f"{shown(value.get(one.name))}") from None
    return kind(**found)


def _needed(one: dataclasses.Field) -> bool:
    return one.default is one.default_factory is dataclasses.MISSING


class _Wrong(Exception):
    """A value that is not of its field's type."""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


_PLAIN: dict[type, Check] = {float: fields.number, int: fields.integer, str: fields.text,
                             bool: fields.true_or_false, dict: fields.dictionary,
                             list: lambda value: isinstance(value, list)}


def _as(hint: Any, value: Any, where: tuple[Path | str, str, str]) -> Any:
    """``value`` as a type says, records made of what stands for them.
    Raises _Wrong where it is not."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _as(inner[0], value, where)
        if not all(check(value) for check in inner[1:]):
            raise _Wrong
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _as(inner[0], value, where)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise _Wrong
        return [_as(inner[0], item, where) for item in value]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _Wrong
        return {key: _as(inner[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _Wrong
        return decode(hint, value, *where)
    if hint is not Any and not _PLAIN[hint](value):
        raise _Wrong
    return value
