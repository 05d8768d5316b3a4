"""A large archive from the web: resumable, verified before it is unpacked, unpacked all or nothing."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from kesi.system.errors import KesiError

BLOCK = 2**20


@dataclass(frozen=True)
class Archive:
    """A zip file on the web."""

    url: str
    size: int  # bytes
    md5: str
    unpacked_limit: int = 2**30  # bytes; more than that is not what was expected


TINY_IMAGENET = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"
)


def fetch(archive: Archive, root: Path, folder: str) -> Path:
    """Downloads the archive to `root` and unpacks its top folder `folder` there; returns root/folder.

    An interrupted download goes on where it stopped at the next call. Raises KesiError when there is no
    network, when size or MD5 are not as expected, or when the archive holds anything unsafe; nothing is
    unpacked then.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = root / archive.url.rsplit("/", 1)[1]
        if not path.exists():
            _download(archive, path)
        _verify(archive, path)
        _unpack(archive, path, root, folder)
        path.unlink()
    except OSError as error:
        raise KesiError(
            f"{folder} could not be set up in {root} ({error}): free some space or choose another folder"
        ) from error
    return root / folder


def _download(archive: Archive, path: Path) -> None:
    """Fetches into path.part, from where an earlier try stopped, and renames it once it has its full size."""
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    if done > archive.size:
        done = 0
    if done < archive.size:
        request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                if response.status != 206:  # the server does not resume: it sends everything
                    done = 0
                _receive(response, part, done, archive)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise KesiError(
                f"{archive.url} could not be downloaded ({getattr(error, 'reason', error)}): try again, "
                f"or put the file at {path}"
            ) from error
    size = part.stat().st_size
    if size < archive.size:
        raise KesiError(
            f"the download of {archive.url} stopped at {size} of {archive.size} bytes: "
            "run the command again to go on"
        )
    os.replace(part, path)


def _receive(response, part: Path, done: int, archive: Archive) -> None:
    with (
        open(part, "ab" if done else "wb") as file,
        tqdm(
            total=archive.size, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=None
        ) as bar,
    ):
        while block := response.read(BLOCK):
            done += len(block)
            if done > archive.size:
                file.truncate(0)
                raise KesiError(
                    f"{archive.url} is longer than {archive.size} bytes: it is not the expected file"
                )
            file.write(block)
            bar.update(len(block))


def _verify(archive: Archive, path: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    size = path.stat().st_size
    if size != archive.size or digest.hexdigest() != archive.md5:
        raise KesiError(
            f"{path} is damaged (expected {archive.size} bytes with MD5 {archive.md5}, found {size} bytes "
            f"with {digest.hexdigest()}): remove it and try again"
        )


def _unpack(archive: Archive, path: Path, root: Path, folder: str) -> None:
    """Unpacks into a temporary folder first, so that an interrupted unpacking leaves no half data set."""
    try:
        with (
            zipfile.ZipFile(path) as source,
            tempfile.TemporaryDirectory(dir=root, prefix=f".{folder}-") as temporary,
        ):
            members = source.infolist()
            _check_members(archive, path, members, folder)
            for member in tqdm(members, unit="file", desc="unpacking", disable=None):
                source.extract(member, temporary)
            os.replace(Path(temporary) / folder, root / folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise KesiError(f"{path} cannot be unpacked ({error}): remove it and try again") from error


def _check_members(archive: Archive, path: Path, members: list[zipfile.ZipInfo], folder: str) -> None:
    for member in members:
        name = PurePosixPath(member.filename)
        if "\\" in member.filename or name.is_absolute() or ".." in name.parts or name.parts[:1] != (folder,):
            raise KesiError(
                f"{path} holds {member.filename!r}, which does not belong into {folder}/: not unpacked"
            )
    total = sum(member.file_size for member in members)
    if total > archive.unpacked_limit:
        raise KesiError(
            f"{path} would unpack to {total} bytes, more than {archive.unpacked_limit}: not unpacked"
        )
