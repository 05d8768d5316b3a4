"""Checkpoints: self-describing files of ours, and those of the authors' released code.

A file of ours is a dictionary with ``format``, ``version``, ``arch``, ``num_classes``, ``cfg``,
``state_dict``, ``masks``, ``info`` (stage, data set, recipe, seed, metrics, versions, parent ...),
``training`` (only while a stage runs), ``code`` (of a network that is not KESI's: what it computes)
and ``digest``, a SHA-256 over all of the rest. The digest is that of the content: a file either
gives exactly what was saved or is refused.
"""

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kesi import models
from kesi.checkpoints import fields, safety
from kesi.checkpoints.records import Info, Reference, decode, encode
from kesi.checkpoints.released import classes_of, published_info, recognise, skeleton, widths_of
from kesi.method.pruning.masks import Masks
from kesi.method.pruning.weights import masks_from_zeros
from kesi.method.snapshot import Snapshot, digest_of
from kesi.models import Network
from kesi.system.errors import KesiError, TrainingFailed, UsageError, check_choice, first_line
from kesi.system.files import write_atomic

FORMAT = "kesi-checkpoint"

VERSION = 1

EXPORTED = (".onnx", ".pt2", ".safetensors")  # what kesi export writes


@dataclass(frozen=True)
class Checkpoint(Snapshot):
    """A snapshot as it was saved, on the CPU and in eval mode,
    with all that its file says about it.

    ``file_digest`` is that of the file, ``digest`` that of the network alone. ``training``: the
    state of an unfinished stage.
    """

    info: Info = field(default_factory=Info)
    path: Path = Path()
    file_digest: str = ""
    training: dict | None = None

    @property
    def round(self) -> int | None:
        """How many rounds of pruning it went through; None where the file does not say."""
        return self.info.round

    def is_named_by(self, reference: Reference | None) -> bool:
        """Whether this is the network that a child names as its parent or teacher."""
        return reference is not None and reference.network == self.digest

    def describe(self) -> str:
        """For messages: where it is and what it holds."""
        return f"{self.path} ({self.network.arch}, {self.network.num_classes} classes)"


def save(path: Path, snapshot: Snapshot, info: Info, training: dict | None = None) -> str:
    """Write a checkpoint atomically and return its file's digest; see contents() and write()."""
    return write(path, contents(snapshot, info, training))


def contents(snapshot: Snapshot, info: Info, training: dict | None = None) -> dict:
    """What a checkpoint says, but for its digest.
    The weights are not copied where they are on the CPU already.

    ``training`` is the state of an unfinished stage (optimiser, schedule, epoch, history). Raises
    TrainingFailed when a weight is not finite: good weights are never replaced by broken ones.
    """
    model, masks = snapshot.network, snapshot.masks
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingFailed(f"{name} holds values that are not finite: they are not saved; try"
                                 " a lower learning rate")
    known = models.ARCHITECTURES.get(model.arch)
    return {"format": FORMAT, "version": VERSION, "arch": model.arch,
            "num_classes": model.num_classes, "cfg": list(model.cfg), "state_dict": state,
            "masks": None if masks is None else masks.state_dict(), "info": encode(info),
            "training": training, **({"code": known.code} if known and known.code else {})}


def write(path: Path, content: dict, previous: Path | None = None) -> str:
    """Write contents() with their digest, atomically, and return the digest.

    ``previous``: the name that the file before is kept under. Raises KesiError when it cannot be
    written.
    """
    content = {**content, "digest": digest_of(content)}
    # torch's own writer turns a full disk into an error of its own, which says nothing
    whole = io.BytesIO()
    torch.save(content, whole)
    write_atomic(Path(path), lambda file: file.write(whole.getbuffer()) and None, previous=previous)
    return content["digest"]


def find(path: str | Path) -> Path:
    """The checkpoint file at ``path``, which may also be the folder of the stage that wrote it.

    Raises UsageError where there is none.
    """
    path = Path(path)
    if not fields.file_path(str(path)):
        raise UsageError(f"no such checkpoint: {str(path)[:100]!r}")
    if path.is_dir():
        for name in ("checkpoint.pth.tar", "pruned.pth.tar"):
            if (path / name).is_file():
                return path / name
        if (path / "model.safetensors").is_file():
            raise UsageError(f"{path} was exported: its example.py classifies pictures, and "
                             "kesi.from_pretrained reads it; the stage that it was made from is a "
                             "checkpoint")
        raise UsageError(f"no checkpoint.pth.tar in the folder {path}: give the file of a "
                         "checkpoint, or the folder of a finished stage")
    if not path.is_file():
        raise UsageError(f"no such checkpoint: {path}")
    return path


def load(path: str | Path, arch: str | None = None, num_classes: int | None = None) -> Checkpoint:
    """Read a checkpoint of ours or of the released code,
    without running any code that it might contain.

    ``arch`` and ``num_classes`` are needed only where neither the file nor its weights tell; given,
    they have to agree with it. A file of the released code without masks takes its zeros as the
    mask where it has any, and its zeros are taken once, here. Raises UsageError for a missing file
    or a wrong ``arch``, KesiError for a file that is damaged, not a checkpoint, or does not fit.
    """
    path = find(path)
    content = read(path)
    arch = arch and models.canonical(arch)
    if arch is not None:
        check_choice("architecture", arch, models.ARCHITECTURES)
    state = _state_dict(path, content)
    safety.check_weights(path, state)
    ours = content.get("format") == FORMAT
    if arch is None:
        arch = content["arch"] if ours else recognise(path, state)
    elif ours and content["arch"] != arch:
        raise UsageError(f"{path} is a {content['arch']}, not a {arch}")
    classes = content["num_classes"] if ours else (
        models.ARCHITECTURES[arch].num_classes or classes_of(path, state, num_classes))
    if num_classes is not None and num_classes != classes:
        raise UsageError(f"{path} has {classes} classes, not {num_classes}")
    require(arch, path, content.get("cfg"))
    graph = models.ARCHITECTURES[arch].graph
    try:
        cfg = content.get("cfg") or (None if graph else widths_of(arch, state))
        _refuse_other_shapes(arch, classes, cfg, state)
        model = models.create(arch, classes, cfg)
        model.load_state_dict(state)
        masks = Masks(model, content["masks"]) if content.get("masks") else None
    except (ValueError, KeyError, IndexError, OverflowError, RuntimeError, TypeError,
            AttributeError) as error:
        # without a message of many lines: load_state_dict lists every name
        raise KesiError(f"{path} does not fit {arch} with {classes} classes: "
                        f"{first_line(error).rstrip(': ')}") from error
    if ours:
        warn_of_other_code(path, arch, content.get("code"))
    if masks is None and not ours:
        masks = masks_from_zeros(model)
    if not ours:
        info = published_info(content)
        return Checkpoint(info.stage, model.eval(), masks, info, path, digest_of(state))
    info = decode(Info, content["info"], path)
    return Checkpoint(info.stage, model.eval(), masks, info, path, content["digest"],
                      content["training"])


def load_model(path: str | Path, arch: str | None = None,
               num_classes: int | None = None) -> Network:
    """The network of a checkpoint (ours or the released code's), on the CPU and in eval mode;
    see load()."""
    return load(path, arch, num_classes).network


def read(path: Path) -> dict:
    """The dictionary in a checkpoint file; of a file of ours the digest and all types are verified.

    Raises KesiError, also for a file that would take more memory than its own size; see
    kesi.checkpoints.safety.
    """
    if path.suffix in EXPORTED:
        raise UsageError(f"{path} is an exported file: give the checkpoint that it was made from")
    safety.check_file(path)
    try:
        with warnings.catch_warnings():
            # torch warns of old storage types; the content is checked below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise KesiError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise KesiError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise KesiError(
            f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary")
    safety.check_content(path, content)
    if content.get("format") == FORMAT:
        if content.get("version") != VERSION:
            if fields.whole(VERSION + 1)(content.get("version")):  # whole, and not to be made anew
                raise UsageError(f"{path} is of a newer KESI (checkpoint version "
                                 f"{content['version']}; this one reads {VERSION}): use that one")
            raise KesiError(f"{path} has checkpoint version {content.get('version')!r}; this KESI "
                            f"reads version {VERSION}")
        digest = content.get("digest")
        if digest != digest_of({key: value for key, value in content.items() if key != "digest"}):
            raise KesiError(f"{path} is damaged: its content does not match its checksum")
        safety.check_fields(path, content)
    return content


def _state_dict(path: Path, content: dict) -> dict[str, torch.Tensor]:
    state = content.get("state_dict")
    if ("state_dict" not in content
            and all(isinstance(value, torch.Tensor) for value in content.values())):
        state = content  # torch.save(model.state_dict(), ...)
    if (not isinstance(state, dict) or not state or not all(isinstance(name, str) and isinstance(
            value, torch.Tensor) for name, value in state.items())):
        raise KesiError(f"{path} is not a checkpoint: it has no state_dict of named tensors (for a "
                        "network of your own, see docs/own-network.md)")
    # DataParallel's
    if content.get("format") != FORMAT and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _refuse_other_shapes(arch: str, num_classes: int, cfg: list, state: dict) -> None:
    """Raises ValueError where the weights are not those of the network,
    before this one takes any memory."""
    shapes = {name: value.shape
              for name, value in skeleton(arch, num_classes, cfg).state_dict().items()}
    for name in sorted(shapes.keys() ^ state.keys()):
        raise ValueError(f"{name} is {'missing' if name in shapes else 'too much'}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(shape)}")


def require(arch: str, path: object, cfg: object = None) -> None:
    """Raise a UsageError unless the network ``arch``, of which a file speaks,
    is KESI's or registered, and can be built with the widths ``cfg``, where it has any."""
    if arch not in models.ARCHITECTURES:
        raise UsageError(f"{path} holds a network that is not one of KESI's: say how it is built "
                         f"with kesi.register({arch!r:.60}, factory), and load it then; a command "
                         "gets the module that does so by kesi --with MODULE COMMAND ...")
    graph = models.ARCHITECTURES[arch].graph
    if graph and graph.problem and cfg:
        raise UsageError(f"{path} cannot be loaded: {graph.problem}")


def warn_of_other_code(path: object, arch: str, said: object) -> None:
    """Warn where the code of a network of one's own is not what a file says, if it says so."""
    if said not in (None, models.ARCHITECTURES[arch].code):
        warnings.warn(f"{path} was saved when the code of {arch}, or the numbers of its layers, "
                      "were others than now: the same weights may answer otherwise", stacklevel=3)
