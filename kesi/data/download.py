"""A large archive from the web: verified before it is unpacked, unpacked all or nothing."""

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchvision.datasets.utils import check_integrity, download_url
from tqdm import tqdm

from kesi.system.errors import KesiError


@dataclass(frozen=True)
class Archive:
    """A zip file on the web."""

    url: str
    md5: str
    unpacked_limit: int = 2**30  # bytes; more than that is not what was expected


TINY_IMAGENET = Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                        "90528d7ca1a48142e341f4ef8d21d0de")


def fetch(archive: Archive, root: Path, folder: str) -> Path:
    """Downloads the archive to `root` and unpacks its top folder `folder` there: root/folder.

    Raises KesiError when there is no network, when the MD5 is not as expected, or when the archive
    holds anything unsafe; nothing is unpacked then.
    """
    path = root / archive.url.rsplit("/", 1)[1]
    try:
        if not check_integrity(path, archive.md5):
            path.with_name(f"{path.name}.part").unlink(missing_ok=True)  # of versions before
            download_url(archive.url, str(root), path.name, archive.md5)
    except Exception as error:  # whatever urllib, http.client, the disk or the check raise
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise KesiError(f"{archive.url} could not be downloaded whole ({reason}): try again, or "
                        f"put the file with MD5 {archive.md5} at {path}") from error
    try:
        _unpack(archive, path, root, folder)
        path.unlink()
    except OSError as error:
        raise KesiError(f"{folder} could not be set up in {root} ({error}): free some space or "
                        f"choose another folder") from error
    return root / folder


def _unpack(archive: Archive, path: Path, root: Path, folder: str) -> None:
    """Unpacks into a temporary folder first: an interrupted unpacking leaves no half data set."""
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


def _check_members(archive: Archive, path: Path, members: list[zipfile.ZipInfo],
                   folder: str) -> None:
    for member in members:
        name = PurePosixPath(member.filename)
        outside = name.is_absolute() or ".." in name.parts or name.parts[:1] != (folder,)
        if "\\" in member.filename or outside:
            raise KesiError(f"{path} holds {member.filename!r}, which does not belong into "
                            f"{folder}/: not unpacked")
    total = sum(member.file_size for member in members)
    if total > archive.unpacked_limit:
        raise KesiError(f"{path} would unpack to {total} bytes, more than "
                        f"{archive.unpacked_limit}: not unpacked")
