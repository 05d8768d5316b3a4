"""KESI's commands: kesi COMMAND ... (or python -m kesi COMMAND ...)."""

import difflib
import importlib
import sys
from pathlib import Path

COMMANDS = {  # name: (module, function, what it does)
    "run": ("kesi.cli.pipeline", "run",
            "train, prune, retrain, repeat, distil: the whole method into one folder"),
    "compress": ("kesi.cli.pipeline", "compress",
                 "a folder of images in, a network as small as asked for out"),
    "study": ("kesi.cli.study", "study", "variants of the method against each other, over seeds"),
    "pool": ("kesi.cli.runs", "pool", "finished studies of the same variants as one table"),
    "plan": ("kesi.cli.runs", "plan", "the sizes of every round, before any training"),
    "report": ("kesi.cli.runs", "report",
               "tables, plots and a page of finished or half-finished runs"),
    "verify": ("kesi.cli.runs", "verify", "check a finished run, and compute its accuracies anew"),
    "publish": ("kesi.cli.publish", "publish",
                "finished runs as a folder for others: records, networks, table, page"),
    "tensorboard": ("kesi.cli.runs", "tensorboard",
                    "the curves of a run as TensorBoard event files"),
    "predict": ("kesi.cli.networks", "predict", "what a network says of image files"),
    "compare": ("kesi.cli.networks", "compare",
                "checkpoints side by side: size, MACs, latency, accuracy"),
    "export": ("kesi.cli.export", "export",
               "a checkpoint as a folder to hand over, or as one file, checked"),
    "landscape": ("kesi.cli.networks", "landscape", "the loss between networks, or around one"),
}
WITH = "--with"

# What COMMAND --help prints, as tests/test_help.py writes it: importing torch takes seconds.
HELP = Path(__file__).parent / "cli" / "help"


def main() -> None:
    """Run the command that the command line names."""
    words = sys.argv[1:]
    before = []  # --with FILE may stand before the command, too
    while words and (words[0].startswith(f"{WITH}=") or words[0] == WITH and len(words) > 1):
        count = 1 + (words[0] == WITH)
        before, words = [*before, *words[:count]], words[count:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        from kesi.system import provenance

        print(provenance.ours())
        return
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: there is no command {words[0]!r}{hint} (kesi alone lists them)",
              file=sys.stderr)
        sys.exit(2)
    if not before and words[1:] in (["-h"], ["--help"]):
        print((HELP / f"{words[0]}.txt").read_text(encoding="utf-8"), end="")
        return
    from kesi.cli import entry

    module, function, _ = COMMANDS[words[0]]
    entry.run(lambda: getattr(importlib.import_module(module), function)([*before, *words[1:]]),
              resumes=words[0] in ("run", "compress", "study"))


def overview() -> str:
    """All commands, a line each, and one to begin with."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(["usage: kesi COMMAND ...", "", *lines, "", "Begin with: kesi run --arch "
                      "resnet20 --dataset digits", "kesi COMMAND --help tells more; --with FILE "
                      "adds your own networks and ideas to any command; kesi --version."])


if __name__ == "__main__":
    main()
