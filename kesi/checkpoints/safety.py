"""What a checkpoint may hold and ask for, so that a hostile file is refused before it does harm.

torch.load(weights_only=True) runs no code of a file, but it unpacks what the file asks it to.
Before: the archive and the pickle in it are read as text, for their sizes and names. After: what
came out is looked through, before anything is computed from it. Nothing here allocates more than
the file's own size.
"""

import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kesi.checkpoints import fields
from kesi.checkpoints.fields import optional
from kesi.checkpoints.records import Info, decode
from kesi.system.errors import KesiError, first_line

MEMBERS = 100_000

PICKLE = 16 * 2**20  # bytes of structure and metadata; the largest network of ours has 0.3 MB

VALUES, DEPTH = 2_000_000, 50  # in all of a file, counted where they are repeated by reference, too

STRING = 100  # characters that count as a value

PROTOCOL = b"\x80"  # with which a pickle begins, and so a checkpoint of before torch 1.6

_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")

GLOBALS = {"collections OrderedDict", "collections Counter",
           "torch Size", "torch.nn.parameter Parameter", "torch._utils _rebuild_tensor",
           "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
           "torch.storage TypedStorage", "torch.storage UntypedStorage",
           *(f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in _STORAGES)}

KIND = "is not a checkpoint"

CONTENT = {"arch": fields.text, "num_classes": fields.integer,
           "cfg": lambda value: isinstance(value, (list, tuple)), "state_dict": fields.dictionary,
           "info": fields.dictionary, "masks": optional(fields.dictionary),
           "training": optional(fields.dictionary), "digest": fields.text,
           "code": optional(fields.line)}

TRAINING = {"epoch": fields.integer, "history": fields.several(lambda value: True),
            "optimizer": fields.dictionary, "schedule": fields.dictionary}


def check_file(path: Path) -> None:
    """Look through a file that torch.load() is about to read.
    Raises KesiError that says what is wrong with it."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK\3\4"):  # how torch tells, too
                _check_archive(path, file, size)
            elif b"ustar" in head[257:265] or (head[:1] == PROTOCOL and tarfile.is_tarfile(path)):
                # of torch before 0.1.10, which unpacked it to the disk
                raise KesiError(f"{path} is a tar archive, which is not read")
            elif head[:1] != PROTOCOL:  # before anything looks for a structure in what may be long
                raise KesiError(
                    f"{path} is damaged or not a checkpoint: it begins with {head[:4]!r}")
            else:
                # magic number, protocol, system, content, names of the storages that follow
                for _ in range(5):
                    _check_pickle(path, file, size)
    except OSError as error:
        raise KesiError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise KesiError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from error


def _check_archive(path: Path, file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise KesiError(f"{path} is not a checkpoint: it has {len(members):,} members")
        unpacked = sum(member.file_size for member in members)
        if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise KesiError(f"{path} is refused: its {size:,} bytes would unpack to {unpacked:,}, "
                            "and a checkpoint is not compressed")
        structure = [member for member in members
                     if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(structure) != 1 or structure[0].file_size > PICKLE:
            raise KesiError(f"{path} is not a checkpoint: it has {len(structure)} data.pkl, of "
                            f"{sum(member.file_size for member in structure):,} bytes")
        with archive.open(structure[0]) as pickle:
            _check_pickle(path, pickle, size)


def _check_pickle(path: Path, file: Any, size: int) -> None:
    """One pickle, instruction by instruction, none of which is carried out."""
    last = None
    for number, (code, argument, _) in enumerate(pickletools.genops(file)):
        if number > 2 * VALUES:
            raise KesiError(f"{path} is not a checkpoint: it has too many values")
        if (code.name in ("GLOBAL", "INST") and argument not in GLOBALS
                or code.name == "STACK_GLOBAL"):
            name = ("a name that it makes up" if argument is None
                    else str(argument).replace(" ", ".")[:100])
            raise KesiError(f"{path} is damaged or not a checkpoint: it asks for {name}, which no "
                            "checkpoint needs")
        if isinstance(argument, int) and not code.name.endswith(("PUT", "GET")):
            last = argument
        if code.name == "BINPERSID" and (last is None or not 0 <= last <= size):
            raise KesiError(
                f"{path} is refused: it has {size:,} bytes, and a tensor of {last} elements")


def check_content(path: Path, content: dict) -> None:
    """Look through what torch.load() gave. Raises KesiError where it is too much,
    or of unknown types."""
    size = path.stat().st_size
    waiting, values, total = [(content, 0)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        values += 1 + (len(value) // STRING if isinstance(value, (str, bytes)) else 0)
        if values > VALUES or depth > DEPTH:
            raise KesiError(f"{path} is refused: its values are too many or too deeply nested")
        if isinstance(value, torch.Tensor):
            if (value.layout is not torch.strided or value.device.type != "cpu"
                    or value.is_quantized):
                raise KesiError(f"{path} is refused: it holds a tensor that is not plain "
                                f"({value.layout}, {value.device.type})")
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, depth + 1) for item in value]
        elif not isinstance(value, (str, bytes, int, float, complex, type(None))):
            raise KesiError(f"{path} is refused: it holds a {type(value).__name__}")
    if total > 2 * size + 2**20:  # twice: two names for the same weights are possible
        raise KesiError(f"{path} is refused: it has {size:,} bytes, and tensors of {total:,}")


def check_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """That a network can be computed with. Raises KesiError that names the first tensor
    that forbids it."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise KesiError(f"{path} is damaged: {name} holds values that are not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise KesiError(f"{path} is damaged: {name} holds a negative variance")


def check_fields(path: Path, content: dict) -> None:
    """That a file of ours has fields of the right types.
    Raises KesiError that names the first that has not."""
    fields.checked(path, content, CONTENT, tuple(CONTENT), KIND)
    decode(Info, content["info"], path, KIND, "info.")
    for name, mask in (content["masks"] or {}).items():
        if (not isinstance(name, str) or not isinstance(mask, torch.Tensor)
                or mask.dtype != torch.bool):
            raise KesiError(f"{path} is not a checkpoint: the mask of {name!r:.60} is not boolean")
    if content["training"] is not None:
        fields.checked(path, content["training"], TRAINING, (), KIND, "training.")
