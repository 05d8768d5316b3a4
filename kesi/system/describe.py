"""What decides an outcome, in plain values: two runs whose descriptions are equal do the same."""

import contextlib
import dataclasses
import enum
import functools
import inspect
import math
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from kesi.system import source
from kesi.system.errors import UsageError
from kesi.system.source import constant, digest, in_words

# Digests by what they are of. The text of a file is read at the first question, which comes before
# any training: what is written into the file later is not what runs.
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

_asked: list[int] = []  # the id() of what a digest is being made of, and of what that is a part of


def describe(thing: Any) -> Any:
    """Strings, numbers, lists and dictionaries that tell ``thing`` from everything else
    of its kind.

    A dataclass gives its name, its fields and a digest of its code; a function its name and a
    digest of its code; what has a method ``describe()`` is asked. Plain values give themselves.
    """
    if not isinstance(thing, type) and hasattr(thing, "describe"):
        return thing.describe()
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {field.name: describe(getattr(thing, field.name))
                  for field in dataclasses.fields(thing)}
        return {"name": type(thing).__name__, "code": code_digest(type(thing)), **fields}
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value) for value in thing]
    if callable(thing):
        name = getattr(thing, "__name__", type(thing).__name__)
        return {"name": name, "code": code_digest(thing)}
    return thing


def check_plain(what: str, said: Any, name: str = "") -> None:
    """Raises UsageError where a description holds what a file cannot give back as it is, such as a
    number of numpy's, which is none of Python's."""
    if isinstance(said, dict):
        for key, value in said.items():
            check_plain(what, value, key)
    elif isinstance(said, list):
        for value in said:
            check_plain(what, value, name)
    elif type(said) not in (str, int, float, bool, type(None)):
        kind = type(said)
        advice = ": say float(...) or int(...)" * isinstance(said, np.generic)
        raise UsageError(f"{what} is said in values that its note cannot keep, {name} as a "
                         f"{kind.__module__}.{kind.__qualname__}{advice}")
    elif type(said) is float and not math.isfinite(said):
        raise UsageError(f"{what} is said in values that its note cannot keep, {name} as {said}")


def code_digest(thing: Any) -> str:
    """12 digits of SHA-256 over what a function or a class does:
    its code without comments and docstrings.

    A class counts with those that it derives from; functools.partial, a method of an object, and an
    object that can be called, with what they hold: data, code, and objects of these. Of something
    without source text of its own (made in an interpreter, or one of several lambdas in a line) the
    byte code counts. Of code that is somebody's own, so does what it takes from around it: values
    of an enclosing function, defaults, attributes of its class, and values, functions, classes and
    objects of its own file. Values are what data consists of: numbers, texts, arrays, tensors, and
    lists and dictionaries of these.
    """
    if id(thing) in _asked:
        return "itself"
    if not _asked:  # of a part of something that it holds, less is told than of it alone
        with contextlib.suppress(TypeError):  # it has no hash
            if thing in _known:
                return _known[thing]
    _asked.append(id(thing))
    try:
        found = _code_digest(thing)
    finally:
        _asked.pop()
    if not _asked:
        with contextlib.suppress(TypeError):  # no reference to it is weak
            _known[thing] = found
    return found


def _code_digest(thing: Any) -> str:
    thing, held = source.behind(thing), []
    if isinstance(thing, functools.partial):
        return digest([code_digest(thing.func), _contents([thing.args, thing.keywords], {})])
    if inspect.ismethod(thing):
        held = [code_digest(thing.__self__)]
    elif not isinstance(thing, type) and not hasattr(thing, "__name__"):  # an object
        held = _held(thing)
        thing = type(thing)
    parts = [source.code(thing)]
    if isinstance(thing, type):
        parts = [_text(one) for one in thing.__mro__
                 if one.__module__ not in ("builtins", "typing", "abc")]
    parts += held + _around(thing, {id(thing)})
    if isinstance(thing, FunctionType) and _own(thing):
        parts += [_called(one) for one in source.defaults(thing)]
    return parts[0] if len(parts) == 1 else digest(parts)


_text = functools.lru_cache(source.code)  # of a class, which is looked for in all of its file


def _held(thing: Any, seen: dict[int, tuple[int, Any]] | None = None) -> list[str]:
    """What an object holds, by name; of a torch.nn.Module its state and its parts, not what torch
    keeps there. ``seen``: what was met already, with its number, by id()."""
    seen = {id(thing): (0, thing)} if seen is None else seen
    found = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, torch.nn.Module):
        found = {name: value for name, value in found.items()
                 if name[:1] != "_" or constant(value)}
        found |= thing._modules | dict(thing.named_buffers()) | thing.state_dict()
    elif dataclasses.is_dataclass(thing):  # also one with slots
        found |= {one.name: getattr(thing, one.name, None) for one in dataclasses.fields(thing)}
    return [f"{name} {said}" for name, value in sorted(found.items())
            if (said := _contents(value, seen))]


def _contents(value: Any, seen: dict[int, tuple[int, Any]]) -> str:
    """What a value that something holds says of the outcome: data, code, objects with what they
    hold, and collections of these, each once; of an object of a package without weights its type.
    """
    if (said := in_words(value)) is not None:
        return said
    if id(value) in seen or isinstance(value, ModuleType):
        return f"#{seen[id(value)][0]}" if id(value) in seen else ""
    seen[id(value)] = len(seen), value  # itself as well, so that nothing else gets its id()
    if isinstance(value, (set, frozenset)):  # whose order is one of addresses
        return f"({', '.join(sorted(_contents(one, dict(seen)) for one in value))})"
    if isinstance(value, (dict, list, tuple)):
        parts = _flat(value) if isinstance(value, dict) else value
        return f"({', '.join(_contents(one, seen) for one in parts)})"
    if inspect.ismethod(value):
        return f"{value.__func__.__qualname__} {_contents(value.__self__, seen)}"
    if isinstance(value, (type, functools.partial)) or hasattr(value, "__name__"):
        return _called(value)
    kind = type(value)
    holds = isinstance(value, torch.nn.Module) or dataclasses.is_dataclass(value) or _own(kind)
    return f"{_called(kind)} ({', '.join(_held(value, seen) if holds else '')})"


def own_digest(kind: type) -> str | None:
    """code_digest() of those classes that are somebody's own, of a class and all that it derives
    from; None without one."""
    own = [one for one in kind.__mro__ if _own(one)]
    return digest([*map(source.code, own), *_around(kind, {id(kind)})]) if own else None


# whose code is told by the commit, and by the versions of packages
NOBODYS_OWN = {"kesi", "torch", "torchvision", "timm", "numpy", "builtins", "typing", "abc"}

# where Python's own modules are
LIBRARY = Path(os.__file__).parent

# ours in a checkout, where it stands beside kesi/; anywhere else it is somebody's
MODELS = Path(__file__).resolve().parents[2] / "models"


def _own(thing: Any) -> bool:
    return _owns(str(getattr(thing, "__module__", None)))


def _owns(module: str) -> bool:
    """Whether a module is somebody's own: a file may have the name of another one."""
    top = module.partition(".")[0]
    if top in NOBODYS_OWN or top in sys.builtin_module_names:
        return False
    if top != "models" and top not in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not Path(file).resolve().is_relative_to(
        MODELS if top == "models" else LIBRARY)


def _around(thing: Any, seen: set[int]) -> list[str]:
    """What the functions of somebody's own code take from around them, but for what is ``seen``."""
    found = []
    functions = [value for one in thing.__mro__ for value in vars(one).values()] if isinstance(
        thing, type) else [thing]
    for one in filter(_own, getattr(thing, "__mro__", ())):
        fields = getattr(one, "__dataclass_fields__", ())  # which every object says itself
        found += [f"{name}{said}" for name, value in source.assigned(one).items()
                  if name not in fields and (said := _said(value, one.__module__, seen))]
    for function in map(source.behind, functions):
        if (not isinstance(function, FunctionType) or not _own(function)
                or function.__code__.co_filename == "<string>"):  # what dataclasses write
            continue
        if hasattr(function, "__wrapped__") and _owns(function.__globals__["__name__"]):
            found.append(source.code(function.__code__))  # the source is that of what it wraps
        if function is not thing:
            found += [_said(one, function.__module__, seen) for one in source.unwritten(function)]
        for name, value in sorted(source.taken(function).items()):
            if name in function.__code__.co_freevars and not _of_file(value, function.__module__):
                found.append(f"{name} {_called(value)}")
            elif said := _said(value, function.__module__, seen):
                found.append(f"{name}{said}")
    return found


def _of_file(value: Any, module: str) -> bool:
    return isinstance(value, (type, FunctionType)) and value.__module__ == module


def _said(value: Any, module: str, seen: set[int]) -> str:
    """What a value that code of a ``module`` takes from around it says of the outcome: data, the
    code of the same file, and collections of these, each once; else the name, if it has one.

    Of an object of the file the code of its class counts, and what it holds where that does not
    change: what an object counts for itself decides nothing.
    """
    value = source.behind(value)
    if (said := in_words(value)) is not None:
        return f" {said}"
    if id(value) in seen or isinstance(value, ModuleType):
        return ""
    seen.add(id(value))
    kind = type(value)
    if _of_file(value, module):
        if isinstance(value, type):
            said = [source.code(one) for one in value.__mro__ if one.__module__ == module]
        else:
            said = [source.code(value),
                    *(_said(one, module, seen) for one in source.unwritten(value))]
        return " ".join([*said, *_around(value, seen)])
    if isinstance(value, (dict, list, tuple, set, frozenset)) and _of_a_package(value):
        return ""
    parts = _parts(value, kind.__module__ == module)
    if parts is None:
        return _name(value)
    said = [_said(kind, module, seen) if kind.__module__ == module else "",
            *(_said(one, module, seen) for one in parts)]
    return f" ({', '.join(sorted(said) if isinstance(value, (set, frozenset)) else said)})"


def _parts(value: Any, here: bool) -> list[Any] | None:
    """What a value is put together from, if it is; ``here``: its class is of the file."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *_flat(value.keywords)]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if isinstance(value, dict):
        return _flat(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, torch.nn.Module):
        return _held(value)
    if isinstance(value, enum.Enum):
        return [value.name]
    if isinstance(value, SimpleNamespace):
        return _flat(vars(value))
    if here and dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:
        return _flat({one.name: getattr(value, one.name, None)
                      for one in dataclasses.fields(value)})
    return [] if here else None


def _flat(named: Mapping) -> list[Any]:
    return [one for pair in named.items() for one in pair]


def _of_a_package(value: Any) -> bool:
    """Whether it is a registry of ours: another entry of it decides nothing."""
    return any(value is one for name, module in list(sys.modules.items())
               if name.partition(".")[0] == "kesi" for one in vars(module).values())


def _name(value: Any) -> str:
    """What a function, a class or a type of numbers of another module is called; nothing of an
    object, which has no name."""
    if isinstance(value, (torch.dtype, torch.device)):
        return f" {value}"
    with contextlib.suppress(Exception):  # somebody else's __getattr__: anything
        return f" {getattr(value, '__module__', None)}.{value.__name__}" if callable(value) else ""
    return ""


def _called(value: Any) -> str:
    """What was handed to code that is somebody's own: data, or a function, of which the name tells
    which one it is if it is of a package."""
    if (said := in_words(value)) is not None:
        return said
    if not callable(value):
        return ""
    module = getattr(value, "__module__", None) or type(value).__module__
    name = f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    told = _owns(str(module)) or isinstance(value, (torch.nn.Module, functools.partial))
    return f"{name} {code_digest(value)}" if told else name
