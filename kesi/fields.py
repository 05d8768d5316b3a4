"""What the JSON files of a run may say: looked through once when they are read, so that nobody else has to doubt them.

A forged or half-written value ends in one line that names the file and the field.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from kesi.errors import KesiError, UsageError
from kesi.files import read_json, read_text
from kesi.recipes import METHODS, STAGES, Recipe, Stage

Check = Callable[[object], bool]
MOST = 1e18  # of any number; beyond it sums and formats overflow
LARGEST = 4096  # pixels of an image; more is a slip, or a file that asks for the memory


def number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def whole(low: int, high: float = MOST) -> Check:
    """A whole number from ``low`` to ``high``."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


integer = whole(-MOST)


def text(value: object) -> bool:
    """A string."""
    return isinstance(value, str)


def file_path(value: object) -> bool:
    """A path that a system would take."""
    return text(value) and "\0" not in value and len(value) < 4096 and all(map(file_name, value.split("/")))


def file_name(value: object) -> bool:
    """A name of a file or folder, or none."""
    return text(value) and not {"\0", "/"} & set(value) and len(value.encode(errors="replace")) < 256


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
    size = value.get("image_size")
    return mapping(whole(0))(value.get("images", {})) and dictionary(value.get("augmentation", {})) and (
        optional(whole(1, LARGEST))(size))


def layer(value: object) -> bool:
    """[name, before, after]; see kesi.layers."""
    return isinstance(value, list) and len(value) == 3 and text(value[0]) and several(whole(0))(value[1:])


REFERENCE: dict[str, Check] = {"path": file_path, "stage": text, "network": optional(text)}  # kesi.running.reference()
ORIGIN: dict[str, Check] = {
    "commit": optional(text), "dirty": optional(true_or_false), "versions": optional(mapping(text)),
    "device": optional(text), "command": optional(text), "recipe_hash": optional(text)}


def origin(value: object) -> bool:
    """What kesi.provenance says, of the epochs before an interruption."""
    return dictionary(value) and all(check(value.get(name)) for name, check in ORIGIN.items())


RUN: dict[str, Check] = {
    "arch": text, "dataset": text, "method": lambda value: value in METHODS, "rounds": whole(0, 1000),
    "seeds": several(whole(0)), "compare": true_or_false, "recipe": optional(dictionary),
    "data": described, "baseline": optional(text), "pretrained": optional(text), **ORIGIN}
RESULT: dict[str, Check] = {
    "stage": text, "kind": optional(text), "round": optional(whole(0, 1000)), "method": optional(text), "arch": text,
    "dataset": optional(text), "num_classes": whole(1, 10**6), "seed": whole(0), "image_size": whole(1, 10**5),
    "cfg": several(lambda value: value == "M" or whole(0, 10**6)(value)), "parent": optional(dictionary),
    "teachers": several(dictionary),
    **dict.fromkeys(("params", "nonzero_params", "macs", "sparsity", "test_accuracy", "test_loss", "val_accuracy",
                     "pruned_accuracy", "epochs", "images", "seconds"), optional(number)),
    "layers": optional(several(layer)),
    "accuracy": several(number), "growing_accuracy": several(number), "disagreement": several(several(number)),
    "members": several(file_name), "members_digests": several(text), "started": optional(text),
    "earlier": several(origin), "digest": optional(text), "network_digest": optional(text), **ORIGIN}
EPOCH: dict[str, Check] = {
    "epoch": whole(1), **dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "val_accuracy",
                                        "lr", "seconds"), optional(number))}


def checked(path: Path, value: object, checks: dict[str, Check], needed: tuple[str, ...] = (),
            trouble: str = "is damaged", prefix: str = "") -> dict:
    """``value``, after looking at the fields that it has. Raises KesiError for the first that cannot be.

    ``trouble``: what such a file is; ``prefix``: where in it the fields stand ("info.").
    """
    if not isinstance(value, dict):
        raise KesiError(f"{path} {trouble}: it holds no fields")
    for name, check in checks.items():
        if (name in value or name in needed) and not check(value.get(name)):
            raise KesiError(f"{path} {trouble}: its {prefix}{name} is {shown(value.get(name))}")
    return value


def read_run(path: Path) -> dict:
    """What a run.json says. Raises KesiError where it is damaged."""
    info = checked(path, read_json(path), RUN, ("arch", "dataset", "method", "rounds"))
    if info.get("recipe") is not None:
        try:
            recipe_of(info["recipe"])
        except (UsageError, TypeError, ValueError) as error:
            raise KesiError(f"{path} is damaged: its recipe is none ({error})") from error
    return info


def read_result(path: Path, needed: tuple[str, ...] = ("stage",)) -> dict:
    """What a result.json says. Raises KesiError where it is damaged, or lacks what is ``needed``."""
    result = checked(path, read_json(path), RESULT, needed)
    if result.get("parent") is not None:
        checked(path, result["parent"], REFERENCE, ("path",), prefix="parent.")
    members = len(result.get("members", ()))
    for name in ("accuracy", "growing_accuracy", "disagreement", "members_digests"):
        if name in result and len(result[name]) != members:
            raise KesiError(f"{path} is damaged: its {name} is not that of {members} members")
    if any(len(row) != members for row in result.get("disagreement", ())):
        raise KesiError(f"{path} is damaged: its disagreement is not that of {members} members")
    return result


def recipe_of(said: dict) -> Recipe:
    """A recipe as Recipe.to_dict() gave it. Raises TypeError, ValueError or UsageError where it is none."""
    stages = {}
    for name in STAGES:
        fields = dict(said[name]) if isinstance(said.get(name), dict) else {}
        for field in dataclasses.fields(Stage):
            check = {int: whole(0, 10**5), float: number, str: text}.get(field.type, several(whole(0)))
            if field.name in fields and not check(fields[field.name]):
                raise ValueError(f"{name} {field.name} {shown(fields[field.name])}")
        stages[name] = Stage(**fields | {"milestones": tuple(fields.get("milestones", ()))})
    rounds = said.get("rounds")
    amounts = several(lambda amount: number(amount) or several(number)(amount))
    if not amounts(rounds) or not number(said.get("temperature")) or not all(
            text(said.get(name)) for name in ("arch", "dataset", "method", "family")):
        raise ValueError("rounds, temperature and names")
    return Recipe(**{**said, **stages, "rounds": tuple(tuple(amount) if isinstance(amount, list) else amount
                                                       for amount in rounds)})


def read_epochs(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, one an epoch, but for one that is being written. Raises KesiError if damaged."""
    rows = []
    lines = read_text(path).splitlines(keepends=True)
    for place, line in enumerate(lines, start=1):
        try:
            rows.append(checked(path, json.loads(line), EPOCH, ("epoch",)))
        except (ValueError, RecursionError) as error:
            if place == len(lines) and not line.endswith("\n"):
                break
            raise KesiError(f"{path} is damaged: line {place} is not valid JSON") from error
    return rows


def shown(value: object) -> str:
    """A value for a message: short, and of a nested one the type only."""
    if isinstance(value, (int, float, str, type(None))):
        return f"{value!r:.40}"
    return f"a {type(value).__name__}"
