"""What stands in the JSON files of a run, looked through once when it is read."""

import dataclasses
import json
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints.fields import (
    ORIGIN,
    REFERENCE,
    Check,
    checked,
    described,
    dictionary,
    file_name,
    number,
    optional,
    origin,
    several,
    shown,
    text,
    true_or_false,
    whole,
)
from kesi.method import sizes
from kesi.method.pruning import Masks
from kesi.method.recipes import METHODS, STAGES, Recipe
from kesi.method.schedules import Training
from kesi.method.sizes import layers_of, macs, parameters
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import read_json, read_text
from models import Network


def layer(value: object) -> bool:
    """[name, before, after]; see kesi.layers."""
    return isinstance(value, list) and len(value) == 3 and text(value[0]) and several(whole(0))(value[1:])


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
    "precision": optional(text), "earlier": several(origin), "digest": optional(text),
    "network_digest": optional(text), **ORIGIN}

EPOCH: dict[str, Check] = {
    "epoch": whole(1), **dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "val_accuracy",
                                        "lr", "seconds"), optional(number))}


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
        for field in dataclasses.fields(Training):
            check = {int: whole(0, 10**5), float: number, str: text}.get(field.type, several(whole(0)))
            if field.name in fields and not check(fields[field.name]):
                raise ValueError(f"{name} {field.name} {shown(fields[field.name])}")
        stages[name] = Training(**fields | {"milestones": tuple(fields.get("milestones", ()))})
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

# What a result says in the words of the checkpoint, and which figures the checkpoint knows, too.
KEPT = ("stage", "kind", "round", "method", "seed", "settings", "pruned_accuracy", "parent", "commit", "dirty",
        "versions", "device", "command", "earlier", "recipe_hash", "temperature", "teachers", "precision")

METRICS_KEPT = ("test_accuracy", "test_loss", "val_accuracy")


def history_digest(history: list[dict]) -> str:
    """SHA-256 of the metrics of every epoch; not of the seconds, which no second run repeats."""
    return checkpoints.digest_of([{key: value for key, value in row.items() if key != "seconds"} for row in history])


def network_of(model: Network, masks: Masks | None, method: str | None, image_size: int) -> dict:
    """What a result says of the network itself, which its checkpoint alone tells: kesi.verify computes it anew."""
    params = parameters(model)
    return {"arch": model.arch, "num_classes": model.num_classes, "cfg": model.cfg, "params": params,
            "nonzero_params": params - (masks.pruned() if masks else 0),
            "sparsity": masks.sparsity() if masks else None, "macs": macs(model, image_size),
            "empty_layers": sizes.empty_layers(masks), "layers": layers_of(model, masks, method)}
