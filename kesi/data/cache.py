"""Images are decoded once: into one uint8 array on disk, which is mapped into memory from then on.

Beside `NAME.npy` (N, H, W, C) lies `NAME.json`, written last: without it an array does not count.
NAME holds a fingerprint of what the array was made from (names, sizes, times and inodes of all
files, form of storage, version of this format), so anything that changed makes another NAME, and
the old files are removed. A build holds a lock: a second process waits and finds the work done. The
cache is in `.kesi-cache` in the data folder or, where that is read-only, in the user's cache
folder.

The manifest keeps the array's SHA-256, and what the system says of its file (size, times, inode).
An array of up to CHECKED bytes is held against the digest whenever it is opened; a larger one only
where the system says something else of the file than before: somebody wrote to it, or moved it.
"""

import contextlib
import hashlib
import json
import os
import sys
import warnings
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
from kesi.data.split import digest_begun, digest_of, mean_and_std
from kesi.system.errors import KesiError
from kesi.system.files import write_whole
from kesi.system.locks import held_by_one

VERSION = 3  # of the format, and of how files are decoded
CHECKED = 2**28  # bytes
SHOWN = 5  # names of further images that cannot be read
CHUNK_BYTES = 4 * 2**20  # decoded pixels that a task hands over; two tasks a core are under way


@dataclass(frozen=True)
class Cached:
    """A mapped array of images."""

    images: Tensor  # uint8 (N, H, W, C), mapped from the file
    sizes: Tensor  # int64 (N, 2), heights and widths of the files
    mean: tuple[float, ...]  # of the values scaled to 0..1, by channel
    std: tuple[float, ...]
    pixels: str  # digest_of(images)


def cached(root: Path, name: str, files: Sequence[str], storage: Storage) -> Cached:
    """The images `files` (paths relative to `root`) in order, decoded now or earlier.

    name: what these files are, for instance "train". Raises KesiError that names the file if one is
    unreadable, and if there is no place for the cache.
    """
    height, width, channels = storage.shape
    form = "squeezed" if storage.squeeze else "cropped"
    prefix = (f"{name}-{form}-{'grey-' if channels == 1 else ''}"
              f"{height if height == width else f'{height}x{width}'}-")
    stem = prefix + _fingerprint(root, files, storage)
    folders = [root / ".kesi-cache", _user_folder(root)]
    for folder in folders:
        if (found := _open(folder / stem)) is not None:
            return found
    with _writable(folders) as folder:
        if (found := _open(folder / stem)) is not None:  # another process was faster
            return found
        _build(folder / stem, root, files, storage)
        for path in folder.glob(f"{prefix}*"):
            if not path.name.startswith(stem):
                path.unlink(missing_ok=True)
        found = _open(folder / stem)
    if found is None:
        raise KesiError(f"{folder / stem}.npy was damaged right after it was written: check the "
                        f"disk")
    return found


def _fingerprint(root: Path, files: Sequence[str], storage: Storage) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, asdict(storage)]).encode())
    for file in files:
        try:
            digest.update(f"{file}\0{_state(root / file)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise KesiError(f"{root / file} cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:16]


def _state(path: Path) -> list[int]:
    """What changes with a file's content, also where its size and its own time are set back."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _user_folder(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "kesi" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


@contextlib.contextmanager
def _writable(folders: list[Path]) -> Iterator[Path]:
    """Hold the first folder that can be written to, and say so if it is not the first one."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            try:
                stack.enter_context(held_by_one(folder))
            except KesiError as error:
                reason = error
                continue
            if folder != folders[0]:
                print(f"{folders[0].parent} is read-only: decoded images go to {folder}",
                      file=sys.stderr)
            yield folder
            return
    raise KesiError(f"no place for decoded images: neither {folders[0]} nor {folders[1]} can be "
                    f"written to ({reason}); set XDG_CACHE_HOME to a folder with space")


def _open(path: Path) -> Cached | None:
    """The finished array at path.npy, or None if there is none or it is not whole."""
    array = path.with_name(path.name + ".npy")
    manifest = path.with_name(path.name + ".json")
    try:
        said = json.loads(manifest.read_text())
        state = _state(array)
        images = np.load(array, mmap_mode="c")  # "c" is writable for torch, not for the file
        sizes = torch.tensor(said["sizes"]).view(-1, 2)
        sizes = sizes.repeat_interleave(torch.tensor(said["repeats"]), dim=0)
        if list(images.shape) != said["shape"] or len(sizes) != len(images):
            return None
        found = Cached(torch.from_numpy(images), sizes, tuple(said["mean"]), tuple(said["std"]),
                       said["pixels"])
        if images.nbytes > CHECKED and state == said["state"]:
            return found
        if digest_of(found.images) != found.pixels:
            warnings.warn(f"{array} is damaged: the images are decoded anew", stacklevel=2)
            return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    if state != said["state"]:  # a copy, whole: no need to read it again
        with contextlib.suppress(KesiError):
            _write_json(manifest, {**said, "state": state})
    return found


def _build(path: Path, root: Path, files: Sequence[str], storage: Storage) -> None:
    """Writes path.npy and then path.json."""
    shape = (len(files), *storage.shape)
    counts, sizes = np.zeros(256 * storage.channels, dtype=np.int64), []
    digest = digest_begun(shape)

    def write(file) -> None:
        nonlocal counts
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image in _decoded(root, files, storage):
            file.write(image.pixels.data)
            digest.update(image.pixels.data)
            counts += image.histogram
            sizes.append(image.true_size)

    array = path.with_name(path.name + ".npy")
    write_whole(array, write)
    mean, std = mean_and_std(counts.reshape(-1, 256))
    distinct, repeats = torch.unique_consecutive(torch.tensor(sizes), dim=0, return_counts=True)
    _write_json(path.with_name(path.name + ".json"), {
        "version": VERSION, "storage": asdict(storage), "shape": shape, "mean": mean, "std": std,
        "sizes": distinct.flatten().tolist(), "repeats": repeats.tolist(),
        "pixels": digest.hexdigest(), "state": _state(array)})


def _write_json(path: Path, value: dict) -> None:
    write_whole(path, lambda file: file.write(json.dumps(value).encode()) and None)


def _decoded(root: Path, files: Sequence[str], storage: Storage) -> Iterator[Decoded]:
    """The images in order, decoded on all cores (Pillow lets other threads run), not far ahead.

    Raises KesiError where some cannot be read, once all of these are known.
    """
    chunk = max(1, CHUNK_BYTES // int(np.prod(storage.shape)))
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1

    broken: dict[str, str] = {}

    def work(start: int) -> list[Decoded]:
        found = []
        for file in files[start : start + chunk]:
            try:
                found.append(decode(root / file, storage))
            except KesiError as error:
                broken[file] = str(error)
        return found

    def next_of(coming: deque) -> list[Decoded]:
        images = coming.popleft().result()
        bar.update(len(images))
        return [] if broken else images

    with (
        ThreadPoolExecutor(cores) as pool,
        tqdm(total=len(files), unit="image", desc="decoding", disable=None) as bar,
    ):
        coming = deque()
        try:
            for start in range(0, len(files), chunk):
                coming.append(pool.submit(work, start))
                if len(coming) > 2 * cores:
                    yield from next_of(coming)
            while coming:
                yield from next_of(coming)
        finally:
            for task in coming:
                task.cancel()
    if broken:
        first, *others = sorted(broken)
        names = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
        raise KesiError(f"{broken[first]}; {len(others)} more will not do: {names}"
                        if others else broken[first])
