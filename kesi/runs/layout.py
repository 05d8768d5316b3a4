"""The names of files and folders in a run."""

import re
from pathlib import Path

CHECKPOINT, PRUNED = "checkpoint.pth.tar", "pruned.pth.tar"

# what a stage came out as whose own network was lost, and is named by others
OTHER = "other.pth.tar"

# where the images are on this machine: of use here only, and no part of what is published
IMAGES = "images.json"

METRICS, RESULT, RUN = "metrics.jsonl", "result.json", "run.json"


# what move_aside() calls a folder that is in the way of a fresh start
ASIDE = re.compile(r"\.old-\d+$")


def seed_of(folder: Path) -> int | None:
    """The seed whose stages are in a folder of a run: 0 of "seed0"; None if it is no such folder.
    """
    number = folder.name.removeprefix("seed")
    return (int(number) if number != folder.name and number.isdecimal() and number.isascii()
            else None)
