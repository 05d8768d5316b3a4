"""A network as a file: KESI's own checkpoints, those of the authors' released code,
torchvision's weights."""

from kesi.checkpoints.checkpoint import (
    EXPORTED,
    Checkpoint,
    contents,
    find,
    load,
    load_model,
    read,
    require,
    save,
    warn_of_other_code,
    write,
)

__all__ = ["EXPORTED", "Checkpoint", "contents", "find", "load", "load_model", "read",
           "require", "save", "warn_of_other_code", "write"]
