"""What README and docs/ say can be done: every command, every piece of Python, every link,
and the figures.

Commands run in an empty folder, in the order of their document, changed as little as brings them to
seconds:

- scripts: on digits with resnet20 and a hundredth of the epochs (a folder of images stays one),
  pipelines with one round and one seed; so does ``reproduce`` with its small table;
- of pipelines of one network and method in one document the first, of ``reproduce`` the first that
  runs here; the others, and what would fetch something, with --dry-run, which looks at everything
  but images;
- Python that begins with the comment ``# name.py`` is a file, to which further such pieces add;
  what takes it by ``--with`` runs in a process of its own, so that nothing of it stays here;
- ``kesi export``, ``kesi predict`` and the like: as they stand, with fewer points, images or
  repetitions where they have a flag for it. Run folders that a document names and does not make are
  copies of tiny runs on digits;
- what needs a cluster, and torchrun: their flags are read by their own parser, which then stops
  (test_reproduce.py and test_distributed.py run them).
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from doors import ROOT, script
from kesi.__main__ import COMMANDS
from kesi.data import INFO
from kesi.method import paper, plan, recipes
from kesi.method.pruning import allocation

pytestmark = pytest.mark.slow

pytest_plugins = ["tinyrun"]

DOCUMENTS = ["README.md", "CONTRIBUTING.md",
             *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINKED = sorted({*DOCUMENTS, "CHANGELOG.md",
                 *(str(path.relative_to(ROOT)) for folder in ("benchmarks", "results")
                   for path in (ROOT / folder).rglob("*.md"))})
STAGES = ("train.py", "prune.py", "finetune.py", "ensemble_finetune.py")
AS_THEY_ARE = {"plan": [], "report": [], "compare": ["--no-latency"], "verify": ["--no-accuracy"],
               "export": [], "predict": [], "landscape": ["--points", "3", "--images", "50"]}
QUICK = ["--rounds", "1", "--epochs-scale", "0.01", "--threads", "1"]
OURS = {"kesi", "python", "make", "pip", "torchrun"}
NOT_OURS = {"tensorboard", "git", "cd", "sbatch", "srun", "ray", "jupyter", "ssh", "export",
            "source", "module"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:kesi|python|make|pip install|torchrun) [^`\n]+)`(?!`)")


@dataclass
class Piece:
    """Something that a document tells to do: a command line, or lines of Python."""

    kind: str
    text: str
    place: int


def pieces(text: str) -> list[Piece]:
    """The commands and the Python of a document, in order."""
    found = []
    for block in FENCE.finditer(text):
        language, body = block.groups()
        if language == "python":
            found.append(Piece("python", body, block.start()))
        elif language in ("", "bash", "sh", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                line = re.sub(r"^(for .*; do )?(\$ )?(\w+=\S+ )*", "", line.strip())
                if line.partition(" ")[0] in OURS | NOT_OURS:
                    found.append(Piece("command", re.sub(r" \d?>.*; done$", "", line),
                                       block.start()))
    plain = FENCE.sub(lambda block: " " * len(block.group()), text)
    found += [Piece("command", code.group(1), code.start()) for code in INLINE.finditer(plain)]
    return sorted(found, key=lambda piece: piece.place)


class Sandbox:
    """An empty folder in which a document is followed."""

    def __init__(self, folder: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
        self.folder, self.runs, self.monkeypatch = folder, runs, monkeypatch
        self.known: set[tuple] = set()  # of pipelines, see planned()
        monkeypatch.chdir(folder)
        for split, count in (("train", 12), ("test", 2)):
            for shade, name in enumerate(("cat", "dog", "hen")):
                (folder / "my-images" / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = np.full((40, 36 + number, 3), 100 * shade + number, np.uint8)
                    Image.fromarray(pixels).save(
                        folder / "my-images" / split / name / f"{number}.png")
        (folder / "more-images").mkdir()
        for number in range(5):
            Image.fromarray(np.full((36, 36, 3), 50 + number, np.uint8)).save(
                folder / "more-images" / f"{number}.png")
        shutil.copytree(ROOT / "studies", folder / "studies")
        for copy in ("photos", "more-photos"):
            shutil.copytree(folder / "my-images", folder / copy)
        shutil.copy(folder / "photos/test/cat/0.png", folder / "photo.jpg")
        monkeypatch.setattr("kesi.tools.latency.SECONDS", 0.01)

    def follow(self, command: str) -> None:
        """Do what a command says, or see that it could be done."""
        words = shlex.split(command, comments=True)
        if ">" in words:
            words = words[:words.index(">")]
        # "RUN [RUN ...]"
        words = [word for word in words if not re.fullmatch(r"\[\w+|\[?\.\.\.\]?", word)]
        tool, arguments = words[0], words[1:]
        if tool == "make":
            targets = [word for word in arguments if "=" not in word]
            assert (targets and all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(),
                                              re.MULTILINE) for word in targets)), command
        elif tool == "pip":
            assert known_to_pip(arguments), command
        elif tool == "torchrun":
            place = next(place for place, word in enumerate(arguments) if word.endswith(".py"))
            self.read(arguments[place], arguments[place + 1:], command)
        elif tool == "kesi":
            self.kesi(arguments, command)
        elif tool == "python":
            self.python(arguments, command)
        else:
            assert tool in NOT_OURS, command

    def kesi(self, arguments: list[str], command: str) -> None:
        additions = arguments[:2] if arguments[0] == "--with" else []
        name, *rest = arguments[len(additions):]
        flags = ["runs/RUN-filter" if word == "RUN" else word for word in rest]
        assert name in COMMANDS, command
        if not flags:  # the name of a command rather than a line to type
            return
        if additions:
            self.apart([*additions, name, *without(flags, "--epochs"), *QUICK], command)
        elif name in ("run", "compress"):
            planned = self.planned(f"kesi {name}", flags)
            self.read("kesi", [name, *flags], command) if planned else self.run(
                "kesi", [name, *self.quick_pipeline(name, flags)], command)
        elif name in AS_THEY_ARE and self.provide(flags):
            self.run("kesi", [name, *flags,
                              *(word for word in AS_THEY_ARE[name] if word not in flags)], command)
        else:
            self.read("kesi", [name, *flags], command)

    def python(self, arguments: list[str], command: str) -> None:
        name, flags = ((arguments[1], arguments[2:]) if arguments[0] == "-m"
                       else (arguments[0], arguments[1:]))
        if name == "pip":
            assert known_to_pip(flags), command
            return
        if name == "-c":
            compile(flags[0], command, "exec")
            return
        if not flags:  # the name of a command rather than a line to type
            path = Path(name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
            assert ((ROOT / path).is_file()
                    or (ROOT / path.with_suffix("") / "__main__.py").is_file()), command
            return
        flags = ["runs/RUN-filter" if word == "RUN" else word for word in flags]
        if Path(name).name == "pipeline.py" and self.planned(name, flags):
            self.read(name, flags, command)
        elif Path(name).name == "pipeline.py":
            self.run(name, self.quick_pipeline(name, flags), command)
        elif name == "reproduce":
            self.run(name, self.quick_grid(flags), command)
        elif Path(name).name in STAGES and self.provide(flags):
            self.run(name, self.shortened(name, flags), command)
        else:
            self.read(name, flags, command)

    def planned(self, name: str, flags: list[str]) -> bool:
        """Whether a pipeline of this network and method was planned before;
        other classes or seeds say nothing new."""
        subject = (name, *(flags[flags.index(flag) + 1] for flag in ("--arch", "--method")
                           if flag in flags))
        known = subject in self.known
        self.known.add(subject)
        return known

    def quick_pipeline(self, name: str, flags: list[str]) -> list[str]:
        """Flags of a pipeline that is over in seconds, or of a dry run where it would have
        to fetch something."""
        if "--dry-run" in flags or "--pretrained" in flags or name.startswith("tinyimagenet/"):
            return [*flags, *([] if "--dry-run" in flags else ["--dry-run"])]
        flags = self.shortened(name,
                               without(without(without(flags, "--seeds"), "--rounds"), "--epochs"))
        return [*without(flags, "--epochs-scale"), *QUICK]

    def quick_grid(self, flags: list[str]) -> list[str]:
        """Flags of the small table, once; else, and where it needs a cluster, what there is to do.
        """
        here = (not {"--dry-run", "--ray", "--slurm", "--study"} & set(flags)
                and ("reproduce",) not in self.known)
        if not here:
            return [*flags, *([] if "--dry-run" in flags else ["--dry-run"])]
        self.known.add(("reproduce",))
        for flag in ("--table", "--arch", "--epochs-scale", "--seeds", "--save"):
            flags = without(flags, flag)
        return [*flags, "--table", "digits", "--method", "filter", "--seeds", "0", "--save",
                "runs/small", "--device", "cpu", *QUICK]

    def provide(self, flags: list[str]) -> bool:
        """Whether the run folders that a command reads are there;
        a whole run is made up where it is not."""
        written = {"--save", "--out", "--csv", "--logdir"}
        for place, word in enumerate(flags):
            if word.startswith("runs/") and not (place and flags[place - 1] in written):
                whole = Path(*Path(word).parts[:2])
                method = whole.name.rpartition("-")[2]
                if not whole.exists() and method in self.runs:
                    shutil.copytree(self.runs[method], whole)
                if not Path(word).exists():
                    return False
        return True

    def shortened(self, name: str, flags: list[str]) -> list[str]:
        """Flags of a stage on digits, unless they name a folder of images that is here."""
        door, words = ("kesi", [name, *flags]) if name in COMMANDS else (name, flags)
        # what is exchanged below has to exist, too
        self.read(door, words, shlex.join([door, *words]))
        flags = list(flags)
        values = {flag: flags[place + 1] for place, flag in enumerate(flags[:-1])
                  if flag.startswith("--")}
        swap = {"--arch": "resnet20"} if "--dataset" in flags else {}
        if values.get("--dataset") not in (None, "imagefolder"):
            swap["--dataset"] = "digits"
        for flag, value in swap.items():
            if flag in flags:
                flags[flags.index(flag) + 1] = value
        return (flags + ([] if name.endswith("/prune.py")
                         else ["--epochs-scale", "0.01", "--threads", "1"]))

    def apart(self, words: list[str], command: str) -> None:
        """A command of KESI's in a process of its own."""
        done = subprocess.run([sys.executable, "-m", "kesi", *words], capture_output=True,
                              text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    def run(self, name: str, flags: list[str], command: str) -> None:
        outcome = script(name, *flags)
        assert outcome.code == 0, f"{command}\n(run as {name} {shlex.join(flags)})\n{outcome.err}"

    def read(self, name: str, flags: list[str], command: str) -> None:
        """Only let the command's own parser read the flags."""
        def parse_and_stop(parser, args=None, namespace=None):
            found, rest = parser.parse_known_args(args, namespace)
            if rest:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            raise SystemExit(0)

        with self.monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
            outcome = script(name, *flags)
        assert outcome.code == 0, f"{command}\n{outcome.err}"


def without(flags: list[str], flag: str) -> list[str]:
    """Flags less one of them and its values."""
    if flag not in flags:
        return flags
    start = flags.index(flag)
    end = next((place for place in range(start + 1, len(flags)) if flags[place].startswith("--")),
               len(flags))
    return flags[:start] + flags[end:]


def known_to_pip(words: list[str]) -> bool:
    """Whether what is installed from here is here: files, and extras of pyproject.toml."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    asked = {extra.strip()
             for word in words for group in re.findall(r"(?:\.|kesi)\[([\w,\s]+)\]", word)
             for extra in group.split(",")}
    files = [words[place + 1] for place, word in enumerate(words) if word == "-r"]
    return asked <= extras and all((ROOT / file).is_file() for file in files)


@pytest.fixture
def sandbox(tmp_path, filter_run, weight_run, monkeypatch):
    return Sandbox(tmp_path, {"filter": filter_run, "weight": weight_run,
                              "w": weight_run / "seed0"}, monkeypatch)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "docs/own-network.md"])
def test_what_a_document_says_can_be_done(document, sandbox):
    names: dict = {}
    for piece in pieces((ROOT / document).read_text()):
        if piece.kind == "command":
            sandbox.follow(piece.text)
        elif file := re.match(r"# (\w+\.py)\n", piece.text):
            with open(sandbox.folder / file[1], "a") as into:
                into.write(piece.text)
        else:
            exec(compile(piece.text, document, "exec"), names)


def test_the_page_on_own_networks_can_be_followed(tmp_path):
    """In processes of their own, as its reader would:
    the first piece of Python is a module that the others import."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def ran(*words):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stderr}"
        return done.stdout

    page = pieces((ROOT / "docs/own-network.md").read_text())
    python, commands = ([piece.text for piece in page if piece.kind == kind]
                        for kind in ("python", "command"))
    module, compress, told, again, check, load = python
    (tmp_path / "my_networks.py").write_text(module)
    assert "epochs=(20, 10, 10)" in compress and again in compress
    whole = compress + told + again + check
    out = ran("-c", whole.replace("epochs=(20, 10, 10)", "epochs=(1, 1, 1)"))
    assert out.endswith("[]\n")
    ran("-c", load)
    install, export, compare, pipeline = (
        shlex.split(one) for one in commands if one != "kesi compress")  # only spoken of
    assert known_to_pip(install[1:])
    ran("-m", *export, "--no-latency")
    assert (tmp_path / "mine.onnx").is_file()
    place = next(place for place, word in enumerate(compare) if "{" in word)
    folder, names = compare[place][:-1].split("{")  # the shell's business
    folders = [folder + name for name in names.split(",")]
    ran("-m", *compare[:place], *folders, *compare[place + 1:], "--no-latency")
    ran(ROOT / pipeline[1], *pipeline[2:], *QUICK)


def test_make_demo_ends_in_the_report(tmp_path):
    """The Makefile's own recipe, with this Python in place of .venv's and a hundredth
    of the epochs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "bin/kesi").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kesi "$@"\n')
    (tmp_path / "bin/kesi").chmod(0o755)
    (tmp_path / ".ready").touch()
    line = re.search(r"^DIGITS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    done = subprocess.run(["make", "demo", f"VENV={tmp_path}", f"DEMO={tmp_path / 'demo'}",
                           f"DIGITS={line} {shlex.join(QUICK)}"], cwd=ROOT, capture_output=True,
                          text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    for row in ("baseline", "filter pruning + KESI", "weight pruning + KESI",
                "weight pruning, ensemble of 2, one-cycle"):
        assert f"\n{row} " in done.stdout
    assert (tmp_path / "demo/report/table.md").is_file()


def test_the_commands_are_found():
    text = ("Do `make x`.\n```\npython a.py --b  # c\n  --d\n$ git e\nfolder/\n```\n```python\n"
            "f()\n```\nor `python -m g`")
    assert [(piece.kind, piece.text) for piece in pieces(text)] == [
        ("command", "make x"), ("command", "python a.py --b  # c"), ("command", "git e"),
        ("python", "f()\n"), ("command", "python -m g")]


@pytest.mark.parametrize(
    "command", ["python cifar/train.py --lerning-rate 1", "kesi plan --arch resnet57",
                "python cifar/pipeline.py --dataset cifar11", "make tea", "python -m kesi.nothing",
                "pip install -e '.[tea]'", "python cifar/finetune.py", "tea", "python tea.py --b",
                "kesi verify runs/none --tea", "python -c 'f('"])
def test_a_command_that_does_not_work_is_noticed(command, sandbox):
    with pytest.raises((AssertionError, ImportError, OSError, SyntaxError)):
        sandbox.follow(command)


def headings(path: Path) -> set[str]:
    """The anchors of a Markdown file, as GitHub makes them."""
    text = FENCE.sub("", path.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("document", [*LINKED, "example.ipynb"])
def test_links_lead_somewhere(document):
    text = FENCE.sub("", (ROOT / document).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / document).parent / path if path else ROOT / document
        assert there.exists(), f"{document}: {target}"
        assert not anchor or anchor in headings(there), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_and_files_that_are_named_exist(document):
    sources = "".join(path.read_text() for folder in ("kesi", "benchmarks", "reproduce")
                      for path in (ROOT / folder).rglob("*.py"))
    sources += "".join(f'"--{measure}"' for measure in allocation.MEASURES)  # a flag each
    text = FENCE.sub("", (ROOT / document).read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code):
            assert f'"{flag}"' in sources or flag == "--help", f"{document}: {code}"
        for path in re.findall(
                r"(?<![\w./-])(?:kesi|models|cifar|tinyimagenet|tests|benchmarks)/[\w/]+\.py",
                code):
            assert (ROOT / path).is_file(), f"{document}: {code}"
        for module in re.findall(r"^kesi(?:\.\w+)+$", code):
            assert resolves(module), f"{document}: {code}"


def resolves(dotted: str) -> bool:
    """Whether a name like kesi.method.training.fit can be had."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


NAMES = {"ResNet-56": "resnet56", "ResNet-110": "resnet110", "PreResNet-164": "preresnet164",
         "WRN-16-8": "wrn-16-8",
         "VGG-16": "vgg16", "ResNet-18": "resnet18", "ResNet-34": "resnet34"}


def test_the_table_of_work_is_what_the_plan_says():
    lines = re.findall(r"^\| ([\w-]+) \| (filter|weight) \| (.*) \|$",
                       (ROOT / "docs/reproduce.md").read_text(), re.MULTILINE)
    assert len(lines) == 11
    for network, method, cells in lines:
        arch = NAMES[network]
        family = "tinyimagenet" if arch in ("resnet18", "resnet34") else "cifar"
        dataset = "tinyimagenet" if family == "tinyimagenet" else "cifar10"
        info, recipe = INFO[dataset], recipes.recipe(arch, dataset, method, family)
        sizes = plan.sizes(recipe, info.num_classes, info.image_size)
        stages = plan.stages(recipe, sizes)
        epochs = sum(one.training.epochs for one in stages)
        work = sum(one.work(info.train_images) for one in stages)
        assert cells.split(" | ") == [
            f"{sizes[0].params / 1e6:.3f} to {sizes[-1].nonzero_params / 1e6:.3f}",
            f"{sizes[0].macs / 1e6:.1f} to {sizes[-1].macs / 1e6:.1f}", str(epochs),
            f"{epochs * info.train_images / 1e6:.1f}", f"{work / 1e15:.1f}"]


def test_every_row_of_the_paper_has_its_command():
    text = (ROOT / "docs/reproduce.md").read_text()
    for arch in models.ARCHITECTURES:
        for dataset in INFO:
            for method in recipes.METHODS:
                where = ("tinyimagenet/pipeline.py" if dataset == "tinyimagenet"
                         else "cifar/pipeline.py")
                data = "" if dataset == "tinyimagenet" else f" --dataset {dataset}"
                command = (f"python {where} --arch {arch}{data} --method {method} --compare "
                           "--seeds 0 1 2`")
                assert (command in text) == bool(paper.published(arch, dataset, method)), command


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="the reference needs pdoc: pip install -e '.[docs]'")
    done = subprocess.run([sys.executable, "docs/build.py", str(tmp_path)], cwd=ROOT,
                          capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "fit" in (tmp_path / "api" / "kesi" / "method" / "training.html").read_text()
    assert "one of its class" in (tmp_path / "docs" / "data.html").read_text()
    assert "<img" in (tmp_path / "index.html").read_text()
    for page in [tmp_path / "index.html", *(tmp_path / "docs").glob("*.html")]:
        for target in re.findall(r'(?:href|src)="([^"#]+)', page.read_text()):
            assert re.match(r"\w+:",
                            target) or (page.parent / target).is_file(), (f"{page}: {target}")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200
