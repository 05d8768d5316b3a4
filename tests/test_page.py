"""The page: whole and alone. What a browser makes of it is seen in headless Chromium,
where there is one."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import models
from doors import fails, script, works
from kesi.report.page import page

pytest_plugins = ["tinyrun"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome",
                                                "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None,
                                    reason="no chromium, chromium-browser or chrome on PATH")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Tags that stay open or close too early, headings, and whatever refers to another place."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.wrong, self.headings, self.references, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attributes
                            if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def both(filter_run, weight_run, tmp_path_factory) -> Path:
    """The page of the two runs."""
    return page([filter_run, weight_run], tmp_path_factory.mktemp("page") / "report.html")


def test_it_is_whole_and_needs_nothing_else(both, filter_run):
    text = both.read_text(encoding="utf-8")
    outline = Outline(text)
    assert not outline.wrong and not outline.open
    assert outline.headings[0] == "Result" and "The network before and after" in outline.headings
    anchors = [reference for reference in outline.references if reference.startswith("#")]
    links = re.findall(r'<a href="#([^"]+)"', text)
    assert len(links) == 8 and {anchor[1:] for anchor in anchors} <= set(outline.ids)
    assert set(outline.references) - set(anchors) == {"data:,"}
    assert not re.search(r"<script|@import|url\((?!#)", text)
    assert "mathdefault" not in text  # which ticks of a logarithmic axis are by default
    result = json.loads((filter_run / "seed0/kesi/result.json").read_text())
    assert f"{result['test_accuracy']:.2f} %" in text and (result["commit"] or "")[:8] in text
    for stage in ("baseline", "onecycle-1", "onecycle-2", "usual-1", "usual-2", "kesi"):
        assert text.count(f"<summary><b>{stage}</b>") == 2
    assert result["command"].split("--save")[0] in text
    assert "kesi export" in text


def test_the_widths_are_those_of_the_networks(both, filter_run):
    text = both.read_text(encoding="utf-8")
    result = json.loads((filter_run / "seed0/kesi/result.json").read_text())
    first = re.search(r'aria-label="filter pruning: layers of kesi.*?</svg>', text, flags=re.S)[0]
    second = re.search(r'aria-label="weight pruning: layers of kesi.*?</svg>', text, flags=re.S)[0]
    with torch.device("meta"):
        names = [layer.conv for layer in models.create("resnet20", 10).prunable()]
    wanted = list(zip(result["cfg"], models.ARCHITECTURES["resnet20"].cfg, strict=True))
    assert re.findall(r">(layer[\d.]+conv\d)</text>", first) == names
    assert re.findall(r">\s*(\d+) of (\d+)</text>", first) == [
        (str(left), str(whole)) for left, whole in wanted]
    assert ">layer3.2.conv2</text>" in second and "of 36,864</text>" in second  # 64 x 64 x 9


def test_a_run_that_is_not_finished(filter_run, tmp_path):
    run = tmp_path / "run <b>"
    shutil.copytree(filter_run, run)
    page([run], tmp_path / "whole.html")
    assert "run &lt;b&gt;" in (tmp_path / "whole.html").read_text() and "run <b>" not in (
        tmp_path / "whole.html").read_text()  # a name is text, never markup
    shutil.rmtree(run / "seed0" / "kesi")
    shutil.rmtree(run / "seed0" / "usual-2")
    with open(run / "seed0" / "onecycle-2" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_lo')  # being written
    out = page([run])
    assert out == run / "report" / "report.html"
    text = out.read_text(encoding="utf-8")
    outline = Outline(text)
    assert not outline.wrong and not outline.open
    assert "Not finished" in text and "usual-2" in text and "layers of onecycle-2" in text
    assert "run <b>" not in text and "kesi export" not in text  # there is no network yet


def test_it_names_the_network_that_the_run_hands_over(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    said = json.loads((run / "run.json").read_text())
    for stage in ("kesi", "onecycle-2"):
        (run / "run.json").write_text(json.dumps(said | {"handed_over": {"seed0": stage}}))
        text = page([run]).read_text()
        assert f"{run}/seed0/{stage} --out handed-over" in text
        assert ("what is handed over is onecycle-2 (seed0)" in text) == (stage != "kesi")


def test_the_report_writes_it_on_request(filter_run, tmp_path):
    works("kesi", "report", filter_run, "--no-plots", "--out", tmp_path)
    assert not (tmp_path / "report.html").exists()
    out = works("kesi", "report", filter_run, "--no-plots", "--html", "--no-latency", "--out",
                tmp_path)
    assert str(tmp_path / "report.html") in out and (tmp_path / "report.html").is_file()


def test_it_shows_what_was_timed_here(filter_run, weight_run, tmp_path, monkeypatch):
    """The networks of the first seed in turn; one that cannot be loaded leaves the page as it is.
    """
    times = iter([(4e-3, 2e-3, 1e-3), (4e-1, 8e-1, 1e-1)] * 2)
    monkeypatch.setattr("kesi.tools.latency.alternated", lambda calls: list(next(times)))
    works("kesi", "report", filter_run, "--no-plots", "--html", "--out", tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for line in ("baseline|4.00|1.00x|400.00|1.00x", "onecycle-2|2.00|2.00x|800.00|0.50x",
                 "kesi|1.00|4.00x|100.00|4.00x"):
        name, *cells = line.split("|")
        assert f'<th scope="row">{name}</th>' + "".join(
            f"<td>{cell}</td>" for cell in cells) in text
    broken = shutil.copytree(filter_run, tmp_path / "broken")
    (broken / "seed0/kesi/checkpoint.pth.tar").write_bytes(b"nothing")
    done = script("kesi", "report", broken, weight_run, "--no-plots", "--html", "--out", tmp_path)
    assert done.code == 0 and done.err.count("\n") == 1 and "no latencies of" in done.err
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "weight pruning: kesi</th>" in text and "filter pruning: kesi</th>" not in text


def test_text_of_a_figure_stays_text(filter_run, tmp_path):
    """Names of folders are no markup and no formula, and colours follow the page."""
    run = tmp_path / "cost $10^ & <i>more$"
    shutil.copytree(filter_run, run)
    text = page([run, filter_run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cost $10^ &amp; &lt;i&gt;more$" in text and "<i>" not in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert drawings and not any("<image" in one or "<metadata" in one for one in drawings)
    assert not re.search(r"(?<!srgb): #[0-9a-f]{6}", "".join(drawings))
    ids = Outline(text).ids
    assert not [name for name in ids if name.startswith(("axes", "patch", "text", "figure"))]


def test_where_kesi_lost_a_tile_says_so(filter_run, tmp_path):
    run = shutil.copytree(filter_run, tmp_path / "run")
    path = run / "seed0/kesi/result.json"
    start = json.loads((run / "seed0/onecycle-2/result.json").read_text())["test_accuracy"]
    for change, lost in ((-2.5, True), (2.5, False)):
        result = json.loads(path.read_text()) | {"test_accuracy": start + change}
        path.write_text(json.dumps(result))
        text = page([run]).read_text(encoding="utf-8")
        assert ("2.50 below the snapshot that it started from" in text) == lost


def test_without_matplotlib_there_is_no_page(filter_run, tmp_path, monkeypatch):
    drawing = ("kesi.report.figures", "kesi.report.curves")
    for name in [name for name in sys.modules if name.startswith((*drawing, "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in drawing:
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails("kesi", "report", filter_run, "--html", "--no-plots", "--out", tmp_path, code=2,
          says='pip install -e ".[plots]"')


def chromium(url: str, *words: str) -> subprocess.CompletedProcess:
    """A headless browser without any network, its console on stderr."""
    return subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND", *words, url],
        capture_output=True, text=True, timeout=120)


def complaints(done: subprocess.CompletedProcess) -> list[str]:
    """What a browser had to say of a page in its console."""
    return re.findall(r"CONSOLE.*", done.stderr)


@needs_chromium
@pytest.mark.parametrize("intruder", ['<img src="http://example.com/x.png">',
                                      "<script>nothing.there()</script>"])
def test_complaints_of_a_browser_would_be_seen(both, tmp_path, intruder):
    """So that the next test can fail: the page's own policy forbids the network,
    and the browser says so."""
    bad = tmp_path / "bad.html"
    bad.write_text(both.read_text(encoding="utf-8").replace("</main>", f"</main>{intruder}"),
                   encoding="utf-8")
    found = complaints(chromium(bad.as_uri(), f"--screenshot={tmp_path / 'shot.png'}"))
    assert found and "Content Security Policy" in found[0]


@needs_chromium
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(both, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    dark = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    done = chromium(both.as_uri(), dark, f"--window-size={width},1600", f"--screenshot={shot}")
    assert not complaints(done), done.stderr
    image = Image.open(shot).convert("RGB")
    assert image.width == width
    counts = image.getcolors(image.width * image.height)
    background = max(counts)[1]
    assert (sum(background) < 120) == (scheme == "dark")
    drawn = 1 - max(counts)[0] / (image.width * image.height)
    assert 0.03 < drawn < 0.9 and len(counts) > 200


@needs_chromium
@pytest.mark.parametrize("width", [390, 500, 1280])
def test_tables_scroll_in_their_boxes_where_they_have_to(both, tmp_path, width):
    """The page is no wider than the screen: the result's table scrolls on a phone, with the
    accuracy in view, and on a desk it is seen whole."""
    probe = tmp_path / "probe.html"
    measure = ("<script>addEventListener('load', () => { const page = document.documentElement; "
               "document.title = 'wide ' + page.scrollWidth + ' of ' + page.clientWidth + ' box ' "
               "+ (box => box.scrollWidth - box.clientWidth)(document.querySelector("
               "'.scroll')) + ' edge ' + Math.ceil(document.querySelector('tbody "
               "td').getBoundingClientRect().right); });</script>")
    # which would forbid the script
    text = re.sub("<meta http-equiv=[^>]+>", "", both.read_text(encoding="utf-8"))
    probe.write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
    done = chromium(probe.as_uri(), f"--window-size={width},800", "--dump-dom")
    found = re.search(r"<title>wide (\d+) of (\d+) box (\d+) edge (\d+)</title>", done.stdout)
    wide, screen, box, accuracy = map(int, found.groups())
    assert wide <= screen and accuracy <= screen
    assert (box > 0) == (width < 1280)
