"""How a command begins and ends: one line for a mistake, never a traceback."""

import argparse
import difflib
import importlib.util
import inspect
import io
import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import torch

from kesi.system import distributed
from kesi.system.describe import NOBODYS_OWN
from kesi.system.errors import KesiError, UsageError, controls, first_line, visible

WITH = "--with"


class _Parser(argparse.ArgumentParser):
    """Argparse without the screen of usage before the one line that matters."""

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        close = (difflib.get_close_matches(unknown.group(1), self._option_string_actions, 1, 0.75)
                 if unknown else [])
        raise UsageError(
            f"{message}{f'; did you mean {close[0]}?' if close else ''} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):
        """Argparse's, of words that can be shown and written down as they are."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            flag, equals, value = (word.partition("=") if word.startswith("--")
                                   else (before, "=", word))
            if equals and not value:
                raise UsageError(
                    f"{flag or 'an argument'} is empty: give a value, or leave it away")
            if controls(word):
                raise UsageError(
                    f"{flag or 'an argument'} holds a control character: {word!r:.100}")
        return super().parse_known_args(words, namespace)


def parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows a script's own head, with its example, as its help."""
    made = _Parser(prog=prog, description=inspect.cleandoc(doc), allow_abbrev=False,
                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(WITH, action="append", metavar="FILE",
                      help="first run this Python file, or import this module, which adds to KESI: "
                           "networks by kesi.register, criteria, losses, data sets")
    return made


def load_additions(words: Sequence[str]) -> None:
    """Run the Python files, and import the modules, that --with names.
    Raises UsageError where there is none.

    What they add is there before a command looks at its other words, which may be names of theirs.
    """
    for flag, name in zip(words, [*words[1:], ""], strict=False):
        if flag.startswith(f"{WITH}="):
            name = flag.partition("=")[2]
        elif flag != WITH:
            continue
        if name:  # else the parser says that it is missing
            load_module(name, f"{WITH} {name}")


def added(args: argparse.Namespace) -> list[str]:
    """The words of a command line that name what was run first, by --with."""
    return [word for name in getattr(args, "with") or () for word in (WITH, name)]


def refuse_checkpoint(flag: str, path: Path, instead: str) -> None:
    """Raises UsageError where a file that is to be written has the name of a checkpoint, before
    anything is computed for it."""
    if path.suffix == ".tar":
        raise UsageError(f"{flag} {path} is a checkpoint, or has the name of one: take another, "
                         f"such as {path.name.partition('.')[0]}{instead}")


class _AsWritten(SourceFileLoader):
    """Runs the text of a file as it is. Byte code that Python has kept counts as that of a text of
    the same size and second: of a file in which one digit was changed, the one before would run."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_module(name: str, said: str) -> ModuleType:
    """Run a Python file, or import a module by its name. Raises UsageError, which begins with
    ``said``, where there is none or it fails."""
    path = Path(name)
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(f"{said}: there is no such file")
    if path.suffix == ".py" and path.stem in {"models", *NOBODYS_OWN}:
        raise UsageError(f"{said}: {path.stem} is the name of another module: rename the file")
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(
            path.stem, path, loader=_AsWritten(path.stem, str(path)))
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        raise UsageError(f"{said}: there is no module {error.name}") from error
    except KesiError:
        raise
    except SystemExit as error:  # nothing of the command would be done, and no word said
        raise UsageError(f"{said}: it ends the program") from error
    except Exception as error:  # somebody else's code: anything
        raise UsageError(f"{said}: {type(error).__name__}: {first_line(error)}") from error


NO_MEMORY = "out of memory: use smaller batches or images"


def run(main: Callable[[], None], resumes: bool = False) -> None:
    """Call a script's main function and exit: 0, 2 for wrong usage, 1 for other errors,
    130 when interrupted.

    ``resumes``: it is one that, started again, continues where it was interrupted, which is said
    then.
    """
    warnings.showwarning = lambda message, *_args, **_kwargs: print(
        f"warning: {visible(message)}", file=sys.stderr)
    # a terminal that knows no "±" is no reason to fail after hours
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    _show_epochs()
    _listen(_once())
    speaks = True
    try:
        speaks = distributed.is_main()
        if not speaks:  # the first of several processes speaks for all
            warnings.showwarning = lambda *_args, **_kwargs: None
            sys.stdout = open(os.devnull, "w")
        load_additions(sys.argv[1:])
        main()
        distributed.stop()
    except UsageError as error:
        _end(str(error) if speaks else "", 2)
    except KesiError as error:
        _end(str(error), 1)
    except BrokenPipeError:
        # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # such as a name too long, or a folder that may not be entered
        _end(f"{error.filename or 'the system'}: {error.strerror or first_line(error)}", 1)
    except torch.OutOfMemoryError:
        _end("out of GPU memory: use smaller batches or images, or --device cpu", 1)
    except MemoryError:
        _end(NO_MEMORY, 1)
    except RuntimeError as error:  # of torch, on a CPU
        if "can't allocate memory" not in str(error):
            raise
        _end(NO_MEMORY, 1)
    except KeyboardInterrupt:
        # Python takes a handler of ours away before it is gone: a signal then would kill it
        _listen(signal.SIG_IGN)
        without = ", without --fresh," if "--fresh" in sys.argv else ""
        _end("interrupted"
             + f"; the same command{without} continues from the last saved epoch" * resumes, 130)


def _show_epochs() -> None:
    """A line an epoch on standard error, where no terminal shows a bar instead."""
    log = logging.getLogger("kesi")
    log.handlers = [] if sys.stderr.isatty() else [logging.StreamHandler()]
    log.setLevel(logging.INFO)


def _listen(handler: Callable) -> None:
    """Let ``handler`` have SIGTERM, and SIGINT unless it is ignored, as in background jobs."""
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _once() -> Callable:
    """A handler that interrupts once for the signals of a second:
    schedulers and shells send several."""
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            raise KeyboardInterrupt

    return interrupt


def _end(message: str, code: int) -> None:
    if not message:
        sys.exit(code)
    shown = f"error: {visible(' '.join(message.split()))}" if code != 130 else message
    print(shown, file=sys.stderr)
    sys.exit(code)
