"""What a run or a stage finds in its folder: whether it is finished, was begun with other settings,
is in the way."""

import os
import re
import shutil
import warnings
from pathlib import Path

from kesi import checkpoints
from kesi.checkpoints import fields
from kesi.checkpoints.records import Info, decode
from kesi.data.registry import SHIPPED
from kesi.runs.record import (
    CHECKPOINT,
    IMAGES,
    PRUNED,
    RESULT,
    RUN,
    Ensemble,
    Result,
    RunRecord,
    read_result,
    read_run,
)
from kesi.system import distributed
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import make_folder, read_json, write_json
from kesi.system.locks import LOCK, held, in_use


def finished(folder: Path, settings: dict) -> Result | None:
    """The result of the stage that was finished in ``folder`` with these settings;
    None if there is none.

    A checkpoint or a result that is damaged, or that are not of one another, are warned of, and the
    stage is not finished. Raises UsageError where it was made with other settings, also where its
    checkpoint is gone.
    """
    path, done = folder / CHECKPOINT, folder / RESULT
    if not done.is_file():
        return None
    try:
        result = read_result(done)
        if not isinstance(result, Result):
            raise KesiError(f"{done} is not the result of a training")
    except KesiError as error:
        return _not_finished(error)
    refuse_changes(folder, result.settings, settings)
    if not path.is_file():
        return None
    try:
        if checkpoints.read(path).get("digest") != result.digest:
            raise KesiError(f"{path} is not the checkpoint that {done} describes")
    except UsageError:
        raise
    except KesiError as error:
        return _not_finished(error)
    return result


def lost(folder: Path, settings: dict) -> Result | None:
    """The result of a stage whose checkpoint is gone or damaged, of the same settings;
    None without one."""
    try:
        result = read_result(folder / RESULT) if (folder / RESULT).is_file() else None
    except KesiError:
        return None
    return result if isinstance(result, Result) and result.settings == settings else None


def dependent(stages: Path, network: str) -> Path | None:
    """A file in the stages' folders that was made from a network, which its digest names;
    None without one."""
    for path in sorted(stages.glob(f"*/{RESULT}")) + sorted(stages.glob(f"*/{PRUNED}")):
        try:
            said = (read_result(path) if path.name == RESULT
                    else decode(Info, checkpoints.read(path).get("info"), path))
        except KesiError:
            continue
        if isinstance(said, Ensemble):
            named = said.members_digests
        else:
            named = [one.network for one in (said.parent, *said.teachers) if one is not None]
        if network in named:
            return path
    return None


def _not_finished(error: KesiError) -> None:
    warnings.warn(f"{error}: this stage is not taken as finished, and runs again", stacklevel=3)


def refuse_changes(folder: Path, before: object, now: dict,
                   cure: str = "use another --save, or --fresh to start over (the old one is moved "
                               "aside)") -> None:
    """Raises UsageError that names the first setting in which a run in ``folder`` differs
    from this one, and a cure."""
    before = before if isinstance(before, dict) else {}
    for key in {**now, **before}:  # what is said only where it is not the usual, too
        old, new = before.get(key), now.get(key)
        if key == "training" and isinstance(old, dict):
            key, old, new = next(((name, old.get(name), new.get(name)) for name in [*new, *old]
                                  if old.get(name) != new.get(name)), (key, None, None))
        if old != new:
            key, old, new = _innermost(key, old, new)
            key = re.sub(r"(?:data )?digests (\w+)", r"\1 images", key)
            # images, epochs, milestones
            plural = key.endswith("s") and not key.startswith("number of")
            other = "other" if plural else "another"
            raise UsageError(
                f"{folder} holds a run with {other} {key} ({_short(old)}, now {_short(new)}): "
                f"{cure}")


def chosen(folder: Path, what: str, asked: dict) -> RunRecord | None:
    """The record of the run in ``folder``, which measured for what is asked now ("latency" or
    "budget"); None without a run.

    Raises UsageError where that run was asked for something else.
    """
    if not (folder / RUN).is_file():
        return None
    record = read_run(folder / RUN)
    if (said := getattr(record, what)) is not None:  # what an older record leaves out is not held
        said = {name: getattr(said, name) for name in asked if getattr(said, name) is not None}
        asked = {name: asked[name] for name in said}
    refuse_changes(folder, {what: said}, {what: asked})
    return record


def _innermost(key: str, old: object, new: object) -> tuple[str, object, object]:
    """The first part in which two values differ: a setting of a stage, the length of a list."""
    if isinstance(old, dict) and isinstance(new, dict):
        part = next(name for name in [*new, *old] if old.get(name) != new.get(name))
        return _innermost(f"{key} {part}", old.get(part), new.get(part))
    if isinstance(old, list) and isinstance(new, list) and len(old) != len(new):
        return f"number of {key}", len(old), len(new)
    return key, old, new


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def note_images(folder: Path, dataset: str, root: str | Path) -> None:
    """Note where a run, or a stage by itself, finds its images.

    In a file of its own, which is no setting: images may move, and a run goes on.
    """
    if dataset != SHIPPED and Path(root).is_dir():  # what is registered may need no folder
        write_json(folder / IMAGES, {"dataset": dataset, "data": str(Path(root).resolve())})


def noted_images(path: Path, dataset: str | None = None) -> Path | None:
    """Where the run that a checkpoint or a folder belongs to found its images.

    None where it does not say, or where they are not those of ``dataset``.
    """
    path = Path(path).resolve()
    for folder in (path, *path.parents[:3]):  # a checkpoint, its stage, the seed, the run
        if not (folder / IMAGES).is_file():
            continue
        try:
            said = read_json(folder / IMAGES)
        except KesiError:
            return None
        if not (isinstance(said, dict) and fields.line(said.get("data"))):
            return None
        return Path(said["data"]) if dataset in (None, said.get("dataset")) else None
    return None


def move_aside(folder: Path) -> Path | None:
    """Rename what is in the way of a fresh start to `<folder>.old-1`, `-2`, ...;
    returns the new name.

    Raises KesiError where another process uses it, or a stage in it, and UsageError where this one
    stands in it: what it writes would go along.
    """
    if not folder.exists() or not distributed.is_main():
        return None
    absolute, linked = folder.is_absolute(), folder.is_symlink()
    folder, number = folder.resolve(), 1
    if not absolute and Path.cwd().resolve().is_relative_to(folder):
        raise UsageError(f"{folder} cannot be moved aside from within: start the command in "
                         "another folder")
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with held(folder):
        for lock in [*folder.glob(f"*/{LOCK}"), *folder.glob(f"*/*/{LOCK}")]:
            if (who := in_use(lock.parent)) is not None:
                raise KesiError(f"{lock.parent} is in use by {who}: wait for it")
        try:
            folder.rename(aside)
        except OSError as error:
            raise KesiError(
                f"cannot move {folder} to {aside}: {error.strerror or error}") from error
        (aside / LOCK).unlink(missing_ok=True)  # moved with it
        if linked:  # the link would lead nowhere
            folder.mkdir()
    return aside


def start_over(folder: Path) -> Path | None:
    """Move a stage aside but keep the pruned network it starts from,
    which prune() wrote to the same folder."""
    aside = move_aside(folder)
    if aside is not None and (aside / PRUNED).is_file():
        make_folder(folder)
        try:
            os.link(aside / PRUNED, folder / PRUNED)
        except OSError:  # not every file system has links
            shutil.copyfile(aside / PRUNED, folder / PRUNED)
    return aside
