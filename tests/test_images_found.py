"""A run remembers where its images are, for those who look at it later; but it does not depend on
that."""

import json

from datagen import write_imagefolder
from doors import fails, script, works


def test_commands_find_the_images_of_a_run_and_say_so(tmp_path, monkeypatch):
    images = write_imagefolder(tmp_path / "images", ("ant", "bee"), 4, 2)
    for notes in tmp_path.rglob("notes.txt"):  # which would be a line of its own
        notes.unlink()
    monkeypatch.chdir(tmp_path)
    words = ("--arch", "resnet20", "--image-size", 8, "--rounds", 1, "--epochs", 1, 1, 1,
             "--batch-size", 4, "--save", "run", "--no-report")
    works("kesi", "compress", "images", *words)
    # published files hold no place of this machine
    assert json.loads((tmp_path / "run/images.json").read_text())["data"] == str(images)
    for path in (*tmp_path.glob("run/run.json"), *tmp_path.glob("run/*/*/result.json")):
        assert str(tmp_path) not in path.read_text(), path

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run, last = tmp_path / "run", tmp_path / "run/seed0/kesi"
    for command in (("verify", run), ("compare", last, "--no-latency"),
                    ("export", run, "--no-latency", "--out", tmp_path / "net.safetensors")):
        outcome = script("kesi", *command)
        assert outcome.code == 0, outcome.err
        assert outcome.err == f"images: {images}, where the run found them\n"
    assert script("kesi", "compare", last, "--no-accuracy", "--no-latency").err == ""
    fails("kesi", "verify", run, "--data", "nowhere", code=1, says="nowhere")

    images.rename(tmp_path / "moved")  # which is no other setting
    outcome = script("kesi", "verify", run)
    assert outcome.code == 1 and f"since {images}, where the run found them, is not there" in (
        outcome.err)
    monkeypatch.chdir(tmp_path)
    assert works("kesi", "compress", "moved", *words).count("is finished already") == 3
    assert "checks hold" in works("kesi", "verify", run)
