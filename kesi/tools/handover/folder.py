"""A network as a folder to hand over: files that run elsewhere, what they are, and how to use them.

    model.onnx  model-int8.onnx   for onnxruntime; takes images from 0 to 1
    model.safetensors config.json the weights, for kesi.from_pretrained; what the network is
    README.md   example.py        a model card; a program without torch that classifies image files
    index.html  ort/              the same in a browser, with onnxruntime-web
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kesi.checkpoints.checkpoint import Checkpoint
from kesi.system.errors import KesiError, UsageError
from kesi.system.files import make_folder, write_json, write_text
from kesi.tools.compare import Table, compared
from kesi.tools.export import (
    Exported,
    about_of,
    calibration_images,
    export,
    export_int8,
    network_for,
)
from kesi.tools.handover.card import accuracies_by_seed, card, with_seeds
from kesi.tools.inputs import Inputs

HERE = Path(__file__).parent

PACKAGE = "onnxruntime-web"  # of npm

RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@dataclass(frozen=True)
class HandedOver:
    """The folder, its ONNX files (as it is, and in int8), and how they did beside the baseline."""

    folder: Path
    files: list[Exported]
    table: Table


def hand_over(checkpoint: Checkpoint, inputs: Inputs, out: Path, *,
              baseline: Checkpoint | None = None, int8: bool = False, web: Path | None = None,
              sparse: bool = False, root: str | Path = "data", clock: bool = True) -> HandedOver:
    """Write the folder ``out``, which appears as a whole or not at all.

    ``web``: the folder of onnxruntime-web's files, see runtime(). ``sparse``: of the safetensors
    file. Raises UsageError where ``out`` exists and is not empty, KesiError where a file does not
    give what the checkpoint gives.
    """
    network_for(checkpoint.network, inputs, False)  # what is wrong with the request is said first
    ranges = calibration_images(checkpoint, inputs, root, False) if int8 else None
    with whole_folder(out) as folder:
        files = [export(checkpoint, inputs, folder / "model.onnx", "onnx", root=root)]
        if int8:
            files.append(export_int8(checkpoint, inputs, files[0].path, folder / "model-int8.onnx",
                                     ranges, root=root))
        about = write_weights(checkpoint, inputs, folder, sparse=sparse, root=root)
        shutil.copy(HERE / "example.py", folder)
        if web is not None:
            shutil.copy(HERE / "index.html", folder)
            make_folder(folder / "ort")
            for path in (*(web / name for name in RUNTIME), web.parent / "package.json"):
                if path.is_file():  # its package.json says version and licence
                    shutil.copy(path, folder / "ort")
        table = compared(checkpoint, baseline, files, inputs, "onnx", root=root, clock=clock)
        text = card(checkpoint, about, baseline, files, table, web is not None)
        write_text(folder / "README.md", with_seeds(text, accuracies_by_seed(checkpoint.path)))
    return HandedOver(out, files, table)


def write_weights(checkpoint: Checkpoint, inputs: Inputs, folder: Path, *, sparse: bool = False,
                  root: str | Path = "data") -> dict[str, Any]:
    """Write model.safetensors and config.json, which kesi.from_pretrained reads, and return what
    they say of the network: see about_of().
    """
    export(checkpoint, inputs, folder / "model.safetensors", "safetensors", sparse=sparse,
           root=root)
    model, about = checkpoint.network, about_of(checkpoint, inputs, False)
    write_json(folder / "config.json", {"model_type": "kesi", "num_classes": model.num_classes,
                                        "cfg": list(model.cfg), **about})
    return about


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder to be filled, which takes the name ``out`` at the end, or vanishes on an error.

    Raises UsageError where ``out`` is there already, unless it is an empty folder.
    """
    if not out.name:
        raise UsageError(f"{out} is this folder: name a new one")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out} is there already: name a folder that is not, or remove it first")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    make_folder(temporary)
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        os.rename(temporary, out)
    except OSError as error:
        raise KesiError(f"cannot write {out}: {error.strerror or error}; nothing was "
                        "written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def runtime(given: Path | None) -> Path:
    """The folder of onnxruntime-web's files: below ``given``, or as npm installed them here or
    above.

    Raises UsageError that says how to get them where they are not there.
    """
    bases = [given] if given is not None else [Path.cwd(), *Path.cwd().parents]
    for base in bases:
        for folder in (base, base / "dist", base / "node_modules" / PACKAGE / "dist"):
            if all((folder / name).is_file() for name in RUNTIME):
                return folder
    where = (f"in {given}" if given is not None
             else "here or above (or name its folder: --web FOLDER)")
    raise UsageError(f"--web needs {PACKAGE}, which is not {where}: npm install {PACKAGE}")
