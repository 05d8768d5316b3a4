"""Images are decoded once: into one uint8 array on disk, which is mapped into memory from then on.

Beside `NAME.npy` (N, S, S, 3) lies `NAME.json`, written last: without it an array does not count. NAME holds
a fingerprint of what the array was made from (names, sizes and times of all files, form of storage, version
of this format), so anything that changed makes another NAME, and the old files are removed. A build works in
`.part` files under a lock: a second process waits and finds the work done, and `.part` files found under the
lock are those of a build that died. The cache is in `.kesi-cache` in the data folder or, where that is
read-only, in the user's cache folder.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kesi.data.decode import Decoded, Storage, decode
from kesi.data.split import mean_and_std
from kesi.system.errors import KesiError

VERSION = 1
CHUNK_BYTES = 4 * 2**20  # decoded pixels that one task hands over; two tasks a core are under way


@dataclass(frozen=True)
class Cached:
    """A mapped array of images."""

    images: Tensor  # uint8 (N, S, S, 3), mapped from the file
    sizes: Tensor  # int64 (N, 2), heights and widths of the files
    mean: tuple[float, ...]  # of the values scaled to 0..1, by channel
    std: tuple[float, ...]


def cached(root: Path, name: str, files: Sequence[str], storage: Storage) -> Cached:
    """The images `files` (paths relative to `root`) in order, decoded now or earlier.

    name: what these files are, for instance "train". Raises KesiError that names the file if one is
    unreadable, and if there is no place for the cache.
    """
    prefix = f"{name}-{'squeezed' if storage.squeeze else 'cropped'}-{storage.size}-"
    stem = prefix + _fingerprint(root, files, storage)
    folders = [root / ".kesi-cache", _user_folder(root)]
    for folder in folders:
        if (found := _open(folder / stem)) is not None:
            return found
    folder = _writable(folders)
    with _lock(folder) as locked:
        if (found := _open(folder / stem)) is not None:  # another process was faster
            return found
        if locked:
            _remove(folder.glob(f"{prefix}*.part"))
        _build(folder / stem, root, files, storage)
        _remove(path for path in folder.glob(f"{prefix}*") if not path.name.startswith(stem))
    found = _open(folder / stem)
    if found is None:
        raise KesiError(f"{folder / stem}.npy was damaged right after it was written: check the disk")
    return found


def _fingerprint(root: Path, files: Sequence[str], storage: Storage) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, asdict(storage)]).encode())
    for file in files:
        try:
            status = os.stat(root / file)
        except OSError as error:
            raise KesiError(f"{root / file} cannot be read ({error.strerror})") from error
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _user_folder(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "kesi" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def _writable(folders: list[Path]) -> Path:
    """The first folder that can be written to; says so on stderr if it is not the first one."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"probe-{os.getpid()}.part"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            reason = error
            continue
        if folder != folders[0]:
            print(f"{folders[0].parent} is read-only: decoded images go to {folder}", file=sys.stderr)
        return folder
    raise KesiError(
        f"no place for decoded images: neither {folders[0]} nor {folders[1]} can be written to "
        f"({reason.strerror}); set XDG_CACHE_HOME to a folder with space"
    )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lets one process at a time build in a folder. Gives False where the system or its file system has no
    locks."""
    try:
        import fcntl  # POSIX only

        file = open(folder / "lock", "w")
    except (ImportError, OSError):
        yield False
        return
    with file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process decodes images in {folder}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            locked = False
        yield locked  # closing the file releases the lock, and so does the death of the process


def _open(path: Path) -> Cached | None:
    """The finished array at path.npy, or None if there is none or it is not whole."""
    try:
        manifest = json.loads(path.with_name(path.name + ".json").read_text())
        images = np.load(
            path.with_name(path.name + ".npy"), mmap_mode="c"
        )  # "c" is writable for torch, not for the file
        sizes = torch.tensor(manifest["sizes"]).view(-1, 2)
        sizes = sizes.repeat_interleave(torch.tensor(manifest["repeats"]), dim=0)
        if list(images.shape) != manifest["shape"] or len(sizes) != len(images):
            return None
        return Cached(torch.from_numpy(images), sizes, tuple(manifest["mean"]), tuple(manifest["std"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _build(path: Path, root: Path, files: Sequence[str], storage: Storage) -> None:
    """Writes path.npy and then path.json, each under a temporary name first."""
    shape = (len(files), storage.size, storage.size, 3)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    counts, sizes = np.zeros(768, dtype=np.int64), []
    try:
        with open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in _decoded(root, files, storage):
                file.write(image.pixels.data)
                counts += image.histogram
                sizes.append(image.true_size)
            _finish(file, path.with_name(path.name + ".npy"))
        mean, std = mean_and_std(counts.reshape(3, 256))
        distinct, repeats = torch.unique_consecutive(torch.tensor(sizes), dim=0, return_counts=True)
        manifest = {
            "version": VERSION,
            "storage": asdict(storage),
            "shape": shape,
            "mean": mean,
            "std": std,
            "sizes": distinct.flatten().tolist(),
            "repeats": repeats.tolist(),
        }
        with open(temporary, "wb") as file:
            file.write(json.dumps(manifest).encode())
            _finish(file, path.with_name(path.name + ".json"))
    except OSError as error:
        raise KesiError(f"decoded images could not be written to {path.parent} ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _finish(file, path: Path) -> None:
    """Makes a temporary file the finished one, only after its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)


def _decoded(root: Path, files: Sequence[str], storage: Storage) -> Iterator[Decoded]:
    """The images in order, decoded on all cores (Pillow lets other threads run), a bounded number ahead."""
    chunk = max(1, CHUNK_BYTES // (storage.size**2 * 3))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def work(start: int) -> list[Decoded]:
        return [decode(root / file, storage) for file in files[start : start + chunk]]

    with (
        ThreadPoolExecutor(cores) as pool,
        tqdm(total=len(files), unit="image", desc="decoding", disable=None) as bar,
    ):
        coming = deque()
        try:
            for start in range(0, len(files), chunk):
                coming.append(pool.submit(work, start))
                if len(coming) > 2 * cores:
                    yield from _counted(coming.popleft().result(), bar)
            while coming:
                yield from _counted(coming.popleft().result(), bar)
        finally:
            for task in coming:
                task.cancel()


def _counted(images: list[Decoded], bar: tqdm) -> list[Decoded]:
    bar.update(len(images))
    return images


def _remove(paths: Iterator[Path]) -> None:
    for path in list(paths):
        path.unlink(missing_ok=True)
