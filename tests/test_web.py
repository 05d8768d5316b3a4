"""The page of kesi export --web, in Chromium without a network: a dropped picture, and what kesi
predict says of it.

Needs chromium (apt-get install chromium, or CHROMIUM=its path) and the files of npm's
onnxruntime-web (npm install onnxruntime-web in the project's folder, or ONNXRUNTIME_WEB=its
folder).
"""

import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kesi
import models
from datagen import write_imagefolder
from kesi import checkpoints
from kesi.cli.export import export
from kesi.data import load
from kesi.system.errors import UsageError
from kesi.tools.handover.folder import runtime
from kesi.tools.predict import predict_images
from saving import Grey, keep

pytest_plugins = ["tinyrun"]
pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Drops /picture on the page, and sends what the page then shows to the test.
HARNESS = """<iframe src="index.html"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = async () => {
  const inside = frame.contentWindow, blob = await (await fetch("picture")).blob();
  const transfer = new inside.DataTransfer();
  transfer.items.add(new inside.File([blob], "picture.png", {type: "image/png"}));
  inside.document.querySelector("label").dispatchEvent(
    new inside.DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
  const watch = setInterval(() => {
    const rows = [...inside.document.querySelectorAll("#answer tr")].map(row => row.innerText);
    const trouble = inside.document.getElementById("trouble").textContent;
    if (!rows.length && !trouble) return;
    clearInterval(watch);
    fetch("answer", {method: "POST", body: JSON.stringify({rows, trouble})});
  }, 100);
};
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """The folder, /harness, /picture, and a queue for what is sent back."""

    def __init__(self, *arguments, picture: Path, answers: queue.Queue, **options):
        self.picture, self.answers = picture, answers
        super().__init__(*arguments, **options)

    def do_GET(self):
        content = {"/harness": HARNESS.encode(), "/picture": self.picture.read_bytes()}.get(
            self.path
        )
        if content is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/harness" else "image/png")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def page(filter_run, tmp_path_factory) -> Path:
    """A folder with the page."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium, or CHROMIUM=its path")
    given = os.environ.get("ONNXRUNTIME_WEB")
    try:
        web = runtime(Path(given) if given else None)
    except UsageError:
        pytest.skip(
            "onnxruntime-web is not there: npm install onnxruntime-web, or "
            "ONNXRUNTIME_WEB=its folder"
        )
    out = tmp_path_factory.mktemp("page") / "net"
    export([str(filter_run / "seed0/kesi"), "--out", str(out), "--no-latency", "--web", str(web)])
    return out


def shown(page: Path, image: Path, profile: Path) -> dict:
    """What the page shows after ``image`` was dropped on it: {"rows": [...], "trouble": text}."""
    answers: queue.Queue = queue.Queue()
    handler = functools.partial(Server, directory=str(page), picture=image, answers=answers)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                f"--user-data-dir={profile}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"http://127.0.0.1:{server.server_address[1]}/harness",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return answers.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (230, 310)), ("RGB", (13, 12)), ("RGBA", (90, 90))]
)
def test_a_dropped_picture_gets_what_predict_says(page, filter_run, tmp_path, mode, size):
    pixels = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "picture.png")
    said = predict_images(checkpoints.load(filter_run / "seed0/kesi"), [tmp_path / "picture.png"])[
        0
    ]
    found = shown(page, tmp_path / "picture.png", tmp_path / "profile")
    assert not found["trouble"] and len(found["rows"]) == 5
    for row, name, share in zip(found["rows"], said.classes, said.probabilities, strict=False):
        label, *_, percent, sign = row.split()
        assert label == name and sign == "%"
        assert float(percent) / 100 == pytest.approx(share, abs=2e-4 if mode == "RGB" else 5e-3)


def test_a_real_picture_gets_what_predict_says(page, filter_run, tmp_path):
    """A scanned digit."""
    Image.fromarray(load("digits").test.images[3].numpy()).save(tmp_path / "picture.png")
    said, = predict_images(checkpoints.load(filter_run / "seed0/kesi"), [tmp_path / "picture.png"])
    found = shown(page, tmp_path / "picture.png", tmp_path / "profile")
    label, *_, percent, _ = found["rows"][0].split()
    assert label == said.classes[0]
    assert float(percent) / 100 == pytest.approx(said.probabilities[0], abs=2e-4)


def test_grey_pictures_that_are_no_squares(page, tmp_path, registry):
    kesi.register("grey", Grey, image_size=(20, 12), channels=1)
    root = write_imagefolder(tmp_path / "photos")
    torch.manual_seed(1)
    data = load("imagefolder", root, image_size=(20, 12), channels=1).describe()
    keep(tmp_path / "grey.pth.tar", models.create("grey", 3), stage="baseline", data=data)
    out = tmp_path / "net"
    export([str(tmp_path / "grey.pth.tar"), "--out", str(out), "--no-latency", "--data", str(root),
            "--web", str(page / "ort")])
    picture = next((root / "test").glob("*/*.png"))
    said = predict_images(checkpoints.load(tmp_path / "grey.pth.tar"), [picture])[0]
    found = shown(out, picture, tmp_path / "profile")
    assert not found["trouble"] and len(found["rows"]) == 3
    for row, share in zip(found["rows"], said.probabilities, strict=True):
        assert float(row.split()[-2]) / 100 == pytest.approx(share, abs=2e-4)


def test_a_file_that_is_no_picture_is_said(page, tmp_path):
    (tmp_path / "picture.png").write_text("not a picture")
    found = shown(page, tmp_path / "picture.png", tmp_path / "profile")
    assert not found["rows"] and found["trouble"].startswith("This does not work")
