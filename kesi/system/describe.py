"""What decides an outcome, in plain values: two runs whose descriptions are equal do the same."""

import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import textwrap
from types import CodeType, FunctionType
from typing import Any


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


def code_digest(thing: Any) -> str:
    """12 digits of SHA-256 over what a function or a class does:
    its code without comments and docstrings.

    A class counts with those that it derives from; functools.partial, and an object that can be
    called, with what they hold. Of something without source text (made in an interpreter) the byte
    code counts. Of code that is somebody's own, so does what it takes from around it: values of an
    enclosing function, and constants, functions and classes of its own file.
    """
    if isinstance(thing, functools.partial):
        return _digest([code_digest(thing.func), repr(describe([thing.args, thing.keywords]))])
    held = []
    if not isinstance(thing, type) and not hasattr(thing, "__name__"):  # an object
        held = [f"{name} {value!r}" for name, value in sorted(
            getattr(thing, "__dict__", {}).items())
                if constant(value)]
        thing = type(thing)
    parts = [_code(thing)]
    if isinstance(thing, type):
        parts = [_code(one) for one in thing.__mro__
                 if one.__module__ not in ("builtins", "typing", "abc")]
    parts += held + _around(thing, {id(thing)})
    return parts[0] if len(parts) == 1 else _digest(parts)


def own_digest(kind: type) -> str | None:
    """code_digest() of those classes that are somebody's own, of a class and all that it derives
    from; None without one."""
    own = [one for one in kind.__mro__ if _own(one)]
    return _digest([*map(_code, own), *_around(kind, {id(kind)})]) if own else None


# whose code is told by the commit, and by the versions of packages
NOBODYS_OWN = {"kesi", "models", "torch", "torchvision", "timm", "numpy", "builtins", "typing",
               "abc"}


def _own(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] not in NOBODYS_OWN


def _around(thing: Any, seen: set[int]) -> list[str]:
    """What the functions of somebody's own code take from around them, but for what is ``seen``."""
    found = []
    functions = [value for one in thing.__mro__ for value in vars(one).values()] if isinstance(
        thing, type) else [thing]
    for function in functions:
        function = getattr(function, "__func__", getattr(function, "fget", function))
        if (not isinstance(function, FunctionType) or not _own(function)
                or function.__code__.co_filename == "<string>"):  # what dataclasses write
            continue
        for name, value in sorted(_taken(function).items()):
            if constant(value):
                found.append(f"{name} {value!r}")
            elif isinstance(value, (type, FunctionType)) and id(value) not in seen and (
                    value.__module__ == function.__module__):
                seen.add(id(value))
                found += [name, _code(value), *_around(value, seen)]
    return found


def _taken(function: FunctionType) -> dict[str, Any]:
    """The names that a function, and those within it, read outside of themselves,
    and never write to."""
    loaded, stored, codes = set(), set(), [function.__code__]
    while codes:
        code = codes.pop()
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded.add(step.argval)
            elif step.opname == "STORE_GLOBAL":
                stored.add(step.argval)
    taken = {name: function.__globals__[name] for name in loaded - stored
             if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            taken[name] = cell.cell_contents
    return taken


def constant(value: Any) -> bool:
    """Whether a value cannot change, and tells itself from others in words."""
    if isinstance(value, tuple):
        return all(map(constant, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _code(thing: Any) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        code = getattr(thing, "__code__", None) or getattr(type(thing), "__name__", "")
        text = repr((code.co_code, code.co_consts)) if hasattr(code, "co_code") else repr(code)
        return _digest([text])
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            body[0].value.value = ""
    return _digest([ast.unparse(tree)])
