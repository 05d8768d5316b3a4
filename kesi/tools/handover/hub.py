"""Networks that were handed over, read back: from a folder, or from and to the Hugging Face hub.

The hub needs the extra: pip install -e ".[hub]".
"""

import re
from pathlib import Path

from kesi.models import Network
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.tools.formats import load_with_metadata, need

WEIGHTS, NEEDED = "model.safetensors", ("model.safetensors", "config.json", "README.md")


def from_pretrained(name: str | Path, revision: str | None = None) -> Network:
    """The network in a folder that kesi export wrote, or in a repository "owner/name" of the hub.

    It is in eval mode on the CPU and takes float images (N, C, H, W) that are scaled to 0..1 and
    then normalised; ``network.about`` says how (mean, std, image_size), and its classes.
    ``revision``: branch, tag or commit on the hub. Raises UsageError where there is no such folder
    or a package is missing, KesiError for a damaged file and a hub that does not answer.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
            raise UsageError(f"no such folder: {name} (nor is it owner/name, a repository of the "
                             "hub)")
        need("huggingface_hub", extra="hub")
        import huggingface_hub
        try:
            folder = Path(huggingface_hub.snapshot_download(str(name), revision=revision,
                                                            allow_patterns=list(NEEDED)))
        except Exception as error:  # of its own, of its HTTP library and of the system
            raise KesiError(f"{name} is no folder here, and the hub does not give it: "
                            f"{first_line(error)}") from error
    if not (folder / WEIGHTS).is_file():
        raise UsageError(f"{name} has no {WEIGHTS}: kesi export CHECKPOINT --out FOLDER writes one")
    network, network.about = load_with_metadata(folder / WEIGHTS)
    return network


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False,
                message: str = "A network compressed by KESI") -> str:
    """Upload a folder that kesi export wrote to the hub's repository "owner/name"; returns its
    address.

    The repository is made where it is not there. Who may write is what the hub's own ``hf auth
    login`` settles. Raises UsageError for a folder of another kind or a missing package, KesiError
    where the hub refuses.
    """
    folder = Path(folder)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} has no {missing[0]}: give a folder of kesi export CHECKPOINT "
                         "--out FOLDER")
    need("huggingface_hub", extra="hub")
    import huggingface_hub
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # of its own, of its HTTP library and of the system
        raise KesiError(f"the hub does not take {folder} as {repository}: "
                        f"{first_line(error)}") from error
    return str(address)
