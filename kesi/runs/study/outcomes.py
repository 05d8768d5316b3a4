"""What the folder of a study holds: which variants are finished, and what came out of them."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kesi.checkpoints import fields
from kesi.method.snapshot import ENSEMBLE, digest_of
from kesi.runs.record import RESULT, STUDY, Ensemble, Result, read_result
from kesi.runs.results import clearly_above
from kesi.runs.study.variants import Variant
from kesi.system.errors import KesiError
from kesi.system.files import read_json


@dataclass(frozen=True)
class Outcome:
    """What a variant gave with one seed: the result of its last training, or of the one whose
    network it hands over.

    ``images``: processed in all of its trainings, also those that it shares. ``stages``: the names
    of their folders. ``ensemble``: of all networks that were made before the last step, if there
    are several.
    """

    result: Result
    images: int
    stages: list[str]
    ensemble: Ensemble | None = None


def finished(folder: Path, variants: Mapping[str, Variant],
             seeds: Collection[int] = ()) -> dict[str, dict[int, Outcome]]:
    """The outcomes by variant and seed in a study's folder, of all that is finished.

    Raises KesiError where a file of one of ``seeds`` is damaged; of others it is said, and they
    are left out.
    """
    by_seed: dict[int, dict[str, Outcome]] = {}
    said = said_of(variants)
    roots = {path.name.removeprefix("seed"): path for path in Path(folder).glob("seed*")}
    for seed in sorted(int(text) for text in roots if text.isdecimal() and text == str(int(text))):
        root = roots[str(seed)]
        try:
            by_seed[seed] = {name: outcome(root, stages, variants[name])
                             for name, stages in made_of(root, said).items()}
        except KesiError as error:
            if seed in seeds:
                raise
            warnings.warn(f"seed {seed} is left out: {error}", stacklevel=2)
    names = [name for name in variants if any(name in one for one in by_seed.values())]
    return {name: {seed: one[name] for seed, one in by_seed.items() if name in one}
            for name in names}


def is_finished(folder: Path, variants: Mapping[str, Variant], seed: int) -> bool:
    """Whether all variants are, of a seed. Raises KesiError where its note is damaged."""
    return len(made_of(Path(folder) / f"seed{seed}", said_of(variants))) == len(variants)


def said_of(variants: Mapping[str, Variant]) -> dict[str, tuple[dict, int]]:
    """What variants are, and of how many stages, by name; once for all seeds, since it reads the
    code of losses and criteria."""
    return {name: (one.describe(), len(one.steps())) for name, one in variants.items()}


def made_of(root: Path, said: Mapping[str, tuple[dict, int]]) -> dict[str, list[str]]:
    """The stages of those variants, as said_of() says them, that a seed has finished."""
    before = notes(root / STUDY)
    stages = {name: before[key]["stages"] for name, (now, _) in said.items()
              if (key := digest_of(now)[:12]) in before}
    return {name: made for name, made in stages.items() if len(made) == said[name][1]
            and all((root / one / RESULT).is_file() for one in made)}


def noted(folder: Path) -> dict:
    """What a study's folder says of its images, and of how they are computed with; {} where there
    is none yet. Raises KesiError where that is damaged."""
    path = folder / STUDY
    try:
        return (fields.checked(path, read_json(path), {"data": fields.described}, ("data",))
                if path.exists() else {})
    except KesiError as error:
        raise KesiError(f"{error}: remove it, and the same command writes it anew") from error


def notes(path: Path) -> dict[str, dict]:
    """What is finished of a seed, also of other studies in this folder."""
    if not path.exists():
        return {}
    found = read_json(path)
    kept = {"is": fields.dictionary, "stages": fields.several(fields.folder_name)}
    if not isinstance(found, dict) or not all(
            isinstance(one, dict) and all(check(one.get(name)) for name, check in kept.items())
            for one in found.values()):
        raise KesiError(f"{path} is damaged: remove it, and the same command writes it anew")
    return found


def ensemble_folder(digests: Sequence[str]) -> str:
    """The folder of the ensemble of the networks of these digests."""
    return f"{ENSEMBLE}-{digest_of(list(digests))[:12]}"


def outcome(root: Path, stages: Sequence[str], variant: Variant) -> Outcome:
    """What a variant gave whose stages these are. Raises KesiError for damaged files."""
    results = []
    for name in stages:
        result = read_result(root / name / RESULT)
        if not isinstance(result, Result):
            raise KesiError(f"{root / name / RESULT} is damaged: it is no training's")
        results.append(result)
    members = [one.network_digest for one in variant.members(results)]
    path, ensemble = root / ensemble_folder(members) / RESULT, None
    if path.is_file() and not isinstance(ensemble := read_result(path), Ensemble):
        raise KesiError(f"{path} is damaged: it is no ensemble's")
    last = results[-1]
    if variant.hand_over == "best":
        best = max((one for one in results
                    if (one.params, one.nonzero_params) == (last.params, last.nonzero_params)),
                   key=lambda one: one.val_accuracy)
        images = noted(root.parent).get("data", {}).get("images", {}).get("val")
        if images and clearly_above(best.val_accuracy, last.val_accuracy, images):
            last = best
    return Outcome(last, sum(one.images for one in results), list(stages), ensemble)
