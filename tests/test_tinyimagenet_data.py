"""Tiny-ImageNet as it is distributed, and its download from a server on this machine."""

import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

import datagen
from kesi.data import INFO, TrainBatches, download, eval_batches, load
from kesi.data.decode import Storage
from kesi.data.download import Archive, fetch
from kesi.data.sources import tinyimagenet
from kesi.system.errors import KesiError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return datagen.write_tiny_imagenet(tmp_path)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# The files


def test_the_data_set_is_read_as_it_is_distributed(root):
    data = load("tinyimagenet", root.parent, family="tinyimagenet")
    # by sorted wnid
    assert data.classes == ("creature 0", "creature 1", "creature 2", "creature 3")
    assert data.train.images.shape == (48, 64, 64, 3) and len(data.test) == 16
    assert torch.bincount(data.train.labels).tolist() == [12] * 4
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert (data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
            and data.image_size == 224)
    wnid = datagen.WNIDS[2]
    names = sorted(path.name for path in (root / "train" / wnid / "images").glob("*.JPEG"))
    for position, name in enumerate(names, start=24):
        with Image.open(root / "train" / wnid / "images" / name) as image:
            expected = torch.frombuffer(bytearray(image.convert("RGB").tobytes()),
                                        dtype=torch.uint8)
        assert torch.equal(data.train.images[position].flatten(), expected)
    grey = data.train.images[names.index(f"{wnid}_1.JPEG") + 24]
    assert torch.equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("family", "image_size", "expected"),
    [
        ("tinyimagenet", None, 224),
        ("tinyimagenet", 64, 64),
        ("cifar", None, 64),
        ("cifar", 32, 32),
    ],
)
def test_batches_have_the_size_that_was_asked_for(root, family, image_size, expected):
    data = load("tinyimagenet", root, family=family, image_size=image_size, val_fraction=0.25)
    assert len(data.val) == 12 and len(data.train) == 36
    x, y = next(TrainBatches(data, 12, seed=0).epoch(0))
    assert x.shape == (12, 3, expected, expected) and len(set(y.tolist())) > 1
    for split in (data.val, data.test):
        x, y = next(eval_batches(data, split))
        assert x.shape == (len(split), 3, expected, expected) and torch.equal(y, split.labels)
    assert INFO["tinyimagenet"].num_classes == 200


def test_a_second_start_decodes_nothing(root, monkeypatch):
    load("tinyimagenet", root)
    monkeypatch.setattr("kesi.data.cache.decode", None)
    assert len(load("tinyimagenet", root.parent).train) == 48


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


W0 = datagen.WNIDS[0]


@pytest.mark.parametrize(("spoil", "names", "says"), [
    (lambda root: empty(root / "train" / W0 / "images"), f"train/{W0}/images", "has no image"),
    (lambda root: append(root / "wnids.txt", "n99999999\n"), "train/n99999999/images",
     "has no image"),
    (lambda root: append(root / "val/val_annotations.txt", "val_0.JPEG\tn0\t0\t0\t1\t1\n"),
     "val/val_annotations.txt",
     "line 17: class 'n0' of val_0.JPEG is not in wnids.txt"),
    (lambda root: append(root / "val/val_annotations.txt", f"val_99.JPEG\t{W0}\n"),
     "val/images/val_99.JPEG",
     "is not there"),
    (lambda root: append(root / "val/val_annotations.txt", f"../../wnids.txt\t{W0}\n"),
     "val/val_annotations.txt",
     "is not there"),
    (lambda root: (root / "val/val_annotations.txt").write_text(""),
     "val/val_annotations.txt",
     "lists no image"),
    (lambda root: (root / "val/val_annotations.txt").unlink(),
     "val/val_annotations.txt",
     "cannot be read"),
    (lambda root: (root / "words.txt").unlink(), "words.txt", "cannot be read"),
    (lambda root: (root / "wnids.txt").unlink(), "wnids.txt", "is not there"),
    (lambda root: (root / "wnids.txt").write_text("\n"), "wnids.txt", "names no class"),
    (lambda root: (root / f"train/{W0}/images/{W0}_3.JPEG").write_bytes(b"?"),
     f"train/{W0}/images/{W0}_3.JPEG",
     "not a readable image"),
])
def test_what_is_wrong_is_named(root, spoil, names, says):
    spoil(root)
    with pytest.raises(KesiError) as error:
        load("tinyimagenet", root)
    assert str(root / names) in one_line(error) and says in one_line(error)


def test_a_missing_data_set_is_not_downloaded_where_that_is_not_wanted(tmp_path):
    with pytest.raises(KesiError) as error:
        load("tinyimagenet", tmp_path, download=False)
    assert str(tmp_path) in one_line(
        error
    ) and "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in one_line(error)


# The download


class Server(HTTPServer):
    """Serves one file at every path; `cut` bytes a response if not None; counts the downloads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.downloads = content, None, 0


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(416 if self.headers.get("Range") else 200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self):
        self.server.downloads += 1
        self.do_HEAD()
        self.wfile.write(self.server.content[: self.server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    packed = datagen.zip_folder(datagen.write_tiny_imagenet(tmp_path / "source"),
                                tmp_path / "packed.zip")
    server = Server(packed.read_bytes())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def archive(server: Server, **changes) -> Archive:
    known = {"md5": hashlib.md5(server.content).hexdigest()}
    return Archive(f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip",
                   **{**known, **changes})


def test_the_real_archive_is_known():
    real = download.TINY_IMAGENET
    assert real.url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert real.md5 == "90528d7ca1a48142e341f4ef8d21d0de"


@pytest.mark.parametrize("inside", [False, True])
def test_a_missing_data_set_is_downloaded_and_unpacked(server, tmp_path, inside):
    target = tmp_path / "data" / "here"
    root = target / "tiny-imagenet-200" if inside else target
    found = tinyimagenet.load_tinyimagenet(root, Storage(64, False), True, archive(server))
    assert (len(found.train), len(found.test), len(found.classes)) == (48, 16, 4)
    assert [path.name for path in target.iterdir()] == [
        "tiny-imagenet-200"
    ]  # neither archive nor temporary files
    before = server.downloads
    tinyimagenet.load_tinyimagenet(target, Storage(64, False), True, archive(server))
    assert server.downloads == before


@pytest.mark.parametrize("left", ["tiny-imagenet-200.zip", "tiny-imagenet-200.zip.part"])
def test_an_interrupted_download_is_refused_and_begun_anew(server, tmp_path, left):
    root = tmp_path / "data"
    root.mkdir()
    (root / left).write_bytes(server.content + b"more than there is")  # of a download before
    server.cut = len(server.content) // 3
    with pytest.raises(KesiError) as error:
        fetch(archive(server), root, "tiny-imagenet-200")
    assert "try again" in one_line(error) and not (root / "tiny-imagenet-200").exists()
    server.cut = None
    assert (fetch(archive(server), root, "tiny-imagenet-200") / "wnids.txt").is_file()
    assert [path.name for path in root.iterdir()] == ["tiny-imagenet-200"]


def test_an_archive_with_another_content_is_not_unpacked(server, tmp_path):
    with pytest.raises(KesiError) as error:
        fetch(archive(server, md5="0" * 32), tmp_path / "data", "tiny-imagenet-200")
    assert "could not be downloaded whole" in one_line(error) and "0" * 32 in one_line(error)
    assert not (tmp_path / "data" / "tiny-imagenet-200").exists()


def test_an_archive_that_was_put_there_is_unpacked_without_a_network(server, tmp_path):
    path = tmp_path / "data" / "tiny-imagenet-200.zip"
    path.parent.mkdir()
    path.write_bytes(server.content)
    gone = Archive("http://127.0.0.1:1/tiny-imagenet-200.zip", archive(server).md5)
    assert (fetch(gone, path.parent, "tiny-imagenet-200") / "wnids.txt").is_file()


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    gone = Archive("http://127.0.0.1:1/tiny-imagenet-200.zip", "")
    with pytest.raises(KesiError) as error:
        fetch(gone, tmp_path / "data", "tiny-imagenet-200")
    assert "could not be downloaded" in one_line(error)
    assert str(tmp_path / "data") in one_line(error)


@pytest.mark.parametrize(
    "member", ["../outside", "/absolute", "tiny-imagenet-200/../../outside", "elsewhere/file"]
)
def test_an_archive_that_reaches_outside_is_not_unpacked(tmp_path, member):
    path = tmp_path / "data" / "tiny-imagenet-200.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny-imagenet-200/wnids.txt", W0)
        file.writestr(member, "bad")
    content = path.read_bytes()
    known = Archive("http://127.0.0.1:1/tiny-imagenet-200.zip", hashlib.md5(content).hexdigest())
    with pytest.raises(KesiError) as error:
        fetch(known, path.parent, "tiny-imagenet-200")
    assert "does not belong" in one_line(error)
    assert [found.name for found in path.parent.iterdir()] == ["tiny-imagenet-200.zip"]
    assert [found.name for found in tmp_path.iterdir()] == ["data"]


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(server, tmp_path):
    with pytest.raises(KesiError) as error:
        fetch(archive(server, unpacked_limit=1000), tmp_path / "data", "tiny-imagenet-200")
    assert "more than 1000" in one_line(error)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny-imagenet-200.zip"]
