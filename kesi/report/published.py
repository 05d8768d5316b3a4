"""Finished runs as they are published: every record, the networks that people ask for, the report.

    published.json              the runs, the networks, and what these answer to a fixed batch
    table.md ... report.html    the report of all runs together
    RUN/run.json                what was run; seedN/STAGE/result.json, metrics.jsonl of every stage
    RUN/seedN/STAGE/            of a few stages the network too: model.safetensors, config.json and
                                a model card, for kesi.from_pretrained

Of where files lay on the machine that made them only the last names are kept.
"""

import shlex
from pathlib import Path

import torch

from kesi.data.split import Size, height_width
from kesi.method.sizes import channels_of
from kesi.method.snapshot import BASELINE, KESI, chain
from kesi.models import Network
from kesi.runs.record import METRICS, RESULT, RUN, RunRecord
from kesi.runs.results import Run
from kesi.system.errors import KesiError
from kesi.system.files import make_folder, read_json, read_text, write_json, write_text

PUBLISHED, WEIGHTS = "published.json", "model.safetensors"

LEADING = "/", "../../../../"  # away from the run; a stage is two folders down in it
NOISE = 2  # images of the fixed batch


def shown_stages(record: RunRecord) -> list[str]:
    """The stages whose networks are published: baseline, last snapshot, and what KESI made of it.
    """
    return [BASELINE, chain(record.retrainings[0], record.rounds)[-1], KESI]


def without_places(value: object) -> object:
    """A JSON value in which absolute paths, also those within commands, and paths that lead further
    from a stage than to what lies beside its run are their last names."""
    if isinstance(value, dict):
        return {name: _command(one) if name == "command" else without_places(one)
                for name, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(LEADING) else value


def _command(said: str | None) -> str | None:
    try:
        words = shlex.split(said or "")
    except ValueError:  # quotes that do not end: nothing that anybody could run
        return None
    def shortened(word: str) -> str:
        # of --data=/images the flag stays; of a path that has a "=" in it nothing but its name
        flag, given, value = ("", "", word) if word.startswith("/") else word.partition("=")
        return f"{flag}={without_places(value)}" if given else str(without_places(value or word))
    return shlex.join(map(shortened, words)) or None


def copy_records(run: Run, out: Path) -> None:
    """Write run.json and the result and epochs of every finished stage of ``run`` below ``out``."""
    said = read_json(run.folder / RUN) | {"seeds": run.record.seeds}
    if run.record.handed_over:
        said["handed_over"] = run.record.handed_over
    write_json(make_folder(out) / RUN, without_places(said))
    for seed, results in run.seeds.items():
        for stage in results:
            there, here = run.place(seed) / stage, out / f"seed{seed}" / stage
            write_json(make_folder(here) / RESULT, without_places(read_json(there / RESULT)))
            if (there / METRICS).is_file():
                write_text(here / METRICS, read_text(there / METRICS))


def answers(network: Network, image_size: Size) -> list[list[float]]:
    """The logits of a network for NOISE images of normally distributed noise, seed 0."""
    noise = torch.randn(NOISE, channels_of(network), *height_width(image_size),
                        generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network.eval()(noise).tolist()


def runs_of(folder: Path) -> list[Path]:
    """The run folders of what is published in ``folder``."""
    said = contents(folder)
    if not said["runs"] or not all(isinstance(name, str) and Path(name).name == name
                                   for name in said["runs"]):
        raise KesiError(f"{folder / PUBLISHED} is damaged: it names no runs")
    return [folder / name for name in said["runs"]]


def contents(folder: Path) -> dict:
    """What published.json says. Raises KesiError where it is damaged."""
    said = read_json(folder / PUBLISHED)
    kinds = {"runs": list, "networks": dict, "unfinished": list}
    for name, kind in kinds.items():
        if not isinstance(said, dict) or not isinstance(said.get(name), kind):
            raise KesiError(f"{folder / PUBLISHED} is damaged: it does not say {name}")
    return said


def describe(runs: dict[str, Run], networks: dict[str, list]) -> dict:
    """What published.json says; ``runs`` by their names in the folder, ``networks``: answers()."""
    unfinished = [f"{name}/seed{seed}/{stage}" for name, run in runs.items()
                  for seed in run.record.seeds for stage in run.record.stages()
                  if stage not in run.seeds[seed]]
    return {"runs": list(runs), "networks": networks, "unfinished": unfinished,
            "data_name": next(iter(runs.values())).data_name}
