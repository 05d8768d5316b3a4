"""The model card of a network: a README.md with the front matter that the Hugging Face hub reads.

Every figure is from the checkpoint, from the results of its run, or was measured for the card.
"""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kesi.checkpoints import fields
from kesi.checkpoints.checkpoint import Checkpoint
from kesi.data.split import height_width
from kesi.method.sizes import parameters
from kesi.runs.lineage import method_of
from kesi.runs.results import load_run
from kesi.system.errors import KesiError
from kesi.system.markdown import code, plain
from kesi.system.provenance import device_name
from kesi.tools.compare import Table
from kesi.tools.export import Exported

SHOWN = 50  # names of classes; the others stand in config.json


def card(checkpoint: Checkpoint, about: dict[str, Any], baseline: Checkpoint | None,
         files: Sequence[Exported] = (), table: Table | None = None, web: bool = False) -> str:
    """The text of the card. ``about``: see about_of(); ``files`` and ``table``: what was measured,
    where there is more than the weights.

    ``web``: there is a page for the browser.
    """
    arch, classes = checkpoint.network.arch, [_shown(name) for name in about["classes"]]
    named = ", ".join(name or str(label) for label, name in enumerate(classes[:SHOWN]))
    more = f" and {len(classes) - SHOWN:,} more, see config.json" if len(classes) > SHOWN else ""
    data = checkpoint.info.data
    counts = data.get("images") or {}
    channels, sides = len(about["mean"]), height_width(about["image_size"])
    size = f"{sides[0]} x {sides[1]} px" + " (height first)" * (sides[0] != sides[1])
    shape = ", ".join(map(str, (channels, *sides)))
    total = parameters(checkpoint.network)
    zeros = checkpoint.masks.pruned() if checkpoint.masks else 0
    sparse = f", {total - zeros:,} of them not zero" if zeros else ""
    origin = (f"{counts['train']:,} training images of {_shown(data['name'])}"
              if counts.get("train") else "images that its checkpoint does not name")
    if checkpoint.info.unlabelled_images:
        origin += (f", the last step also on {checkpoint.info.unlabelled_images:,} images without "
                   "labels")
    lines = [
        *_front_matter(checkpoint, about, bool(files)), "",
        f"# {arch} for {len(classes)} classes", "",
        f"A convolutional network that says what is in a picture: {named}{more}. It has {total:,} "
        f"parameters{sparse} and looks at {size}{', in grey' * (channels == 1)}.", "",
        "## How it was made", "",
        f"{_made(checkpoint)} Trained on {origin}.", "",
        *_provenance(checkpoint, baseline, about), "",
        "## Results", "", *_results(checkpoint, about, baseline), "",
        *(_measured(files, table) if table else []),
        "## How to use it", "",
        *(_programs(files, shape, channels, len(classes), web) if files else []),
        f"Preparation of a picture: {about['preprocessing']}.", "",
        "In torch: `network = kesi.from_pretrained(FOLDER)`, which takes images that are "
        f"normalised with mean {_numbers(about['mean'])} and standard deviation "
        f"{_numbers(about['std'])}."
        + f" First say how it is built: `kesi.register({arch!r}, FACTORY)`." * ("code" in about),
        "",
        "## Limits", "",
        "- It answers with one of its classes whatever the picture shows.",
        "- The accuracy is that on pictures of the same kind as those it learned from; on others "
        "it is not known.",
        "- Its probabilities have not been calibrated.",
        "- No licence is stated here: that of the training images and of the network is for "
        "whoever publishes it to say.", ""]
    return "\n".join(lines)


def _measured(files: Sequence[Exported], table: Table) -> list[str]:
    return [f"Measured in onnxruntime on {device_name('cpu')}, the networks in turn. Times are of "
            "this machine, and fewer MACs need not be less time.", "",
            "```", *table.text(), "```", "",
            *[f"{file.path.name} gives the checkpoint's class on {file.check.equal} of "
              f"{file.check.images} {plain(file.check.source)}." for file in files], ""]


def _programs(files: Sequence[Exported], shape: str, channels: int, classes: int,
              web: bool) -> list[str]:
    return ["```", "pip install onnxruntime numpy pillow", "python example.py photo.jpg", "```", "",
            f"`model.onnx` takes `images`, float32 (batch, {shape}), "
            f"{'grey' if channels == 1 else 'RGB'} from 0 to 1, and gives `logits` (batch, "
            f"{classes}); normalisation is inside.", "",
            *["`model-int8.onnx` takes and gives the same.", ""] * (len(files) > 1),
            *["In a browser: `python -m http.server` in this folder, then http://localhost:8000; "
              "pictures stay on the machine.", ""] * web]


def _front_matter(checkpoint: Checkpoint, about: dict[str, Any], onnx: bool) -> list[str]:
    """YAML between two lines of dashes; JSON's strings and lists are YAML."""
    method = method_of(checkpoint)
    tags = ["kesi", *["onnx"] * onnx, "pruning"] + [f"{method}-pruning"] * (method is not None)
    tags += ["knowledge-distillation"] * (checkpoint.info.kind == "kesi")
    lines = ["---", "library_name: kesi", "pipeline_tag: image-classification",
             f"tags: {json.dumps(tags)}", "metrics: [accuracy]"]
    if about["accuracy"] is not None:
        name = json.dumps(str(checkpoint.info.data["name"]))
        lines += ["model-index:", f"- name: {json.dumps(checkpoint.network.arch)}", "  results:",
                  "  - task:", "      type: image-classification",
                  "    dataset:", f"      name: {name}", f"      type: {name}", "      split: test",
                  "    metrics:", "    - type: accuracy",
                  f"      value: {about['accuracy']['percent'] / 100:.6f}"]
    return [*lines, "---"]


def _made(checkpoint: Checkpoint) -> str:
    """The method in a sentence or two."""
    info, method = checkpoint.info, method_of(checkpoint)
    pruned = {"filter": "whole filters were removed", "weight": "single weights were set to zero"}
    if method is None:
        return f"It is an unpruned network ({plain(info.stage or 'of unknown training')})."
    count, many = checkpoint.round, "s" * (checkpoint.round != 1)
    rounds = f" in {count} round{many} of pruning and retraining" if count else ""
    said = f"From a trained network {pruned[method]}{rounds}."
    if info.kind == "kesi":
        said += (f" Then the ensemble of its {len(info.teachers)} snapshots was "
                 "distilled into the last one, as in Le, Vo and Thoai, *Paying more attention to "
                 "snapshots of Iterative Pruning*, BMVC 2020 (arXiv 2006.11487).")
    return said


def _provenance(checkpoint: Checkpoint, baseline: Checkpoint | None,
                about: dict[str, Any]) -> list[str]:
    """What tells where the network comes from, a line each, as far as it is known."""
    info = checkpoint.info
    known = {
        "made from": baseline and f"{baseline.network.arch}, {parameters(baseline.network):,} "
                                  f"parameters, network {baseline.digest[:16]}",
        "stage": info.stage, "seed": info.seed, "recipe": info.recipe_hash,
        "command": info.command and code(info.command),
        "commit": info.commit, "checkpoint": about["digest"],
        "exported by": about["made_with"]}
    return [f"- {name}: {value if name == 'command' else plain(value)}"
            for name, value in known.items() if value not in (None, "")]


def _results(checkpoint: Checkpoint, about: dict[str, Any],
             baseline: Checkpoint | None) -> list[str]:
    """The accuracy of this network with its interval, and that of the one it was made from."""
    if about["accuracy"] is None:
        said = checkpoint.info.data.get("image_size")
        other = said is not None and said != about["image_size"]
        return ["Its checkpoint does not say how accurate it is"
                + " on pictures of this size" * other + "."]
    right, count = about["accuracy"]["percent"], checkpoint.info.data["images"]["test"]
    low, high = wilson(right / 100, count)
    lines = [f"Accuracy {right:.2f} % on {_shown(about['accuracy']['images'])}; 95 % interval for "
             f"so many images {100 * low:.2f} to {100 * high:.2f} % (Wilson)."]
    ours, theirs = (one and one.info.data.get("digests") for one in (checkpoint, baseline))
    before = baseline and baseline.info.metrics.get("test_accuracy")
    if ours and ours == theirs and fields.number(before):
        lines += ["", f"The network that it was made from has {before:.2f} % on these."]
    return lines


def _shown(name: object) -> str:
    """Somebody's name for something, which is no link, picture or emphasis."""
    return re.sub(r"([\[\]*`])", r"\\\1", plain(name))


def with_seeds(text: str, values: Sequence[float]) -> str:
    """The card ``text`` with the accuracies (%) of its stage over the seeds of its run, instead of
    those that it has."""
    text = re.sub(r"\n\nThe same with \d+ seeds: .*", "", text)
    if len(values) < 2:
        return text
    said = (f"\n\nThe same with {len(values)} seeds: {statistics.fmean(values):.2f} % on average, "
            f"standard deviation {statistics.stdev(values):.2f}, from {min(values):.2f} to "
            f"{max(values):.2f} %.")
    return re.sub(r"(?<=% \(Wilson\)\.)$", said, text, count=1, flags=re.MULTILINE)


def accuracies_by_seed(path: Path) -> list[float]:
    """Test accuracies (%) of the stage of this checkpoint over the seeds of its run; none outside
    of a run.
    """
    stage = path.resolve().parent
    try:
        return load_run(stage.parent.parent).values(stage.name)
    except KesiError:
        return []


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share observed on ``count`` independent images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    return middle - half, middle + half


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
