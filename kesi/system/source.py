"""What data says in words, and functions and classes in their text and byte code."""

import ast
import contextlib
import dis
import functools
import hashlib
import inspect
import textwrap
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch


def code(thing: Any) -> str:
    """A digest of the text of a function, a class or a code object, without comments and
    docstrings; of its byte code where the text does not tell it from others."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        tree = None
    lambdas = sum(isinstance(node, ast.Lambda) for node in ast.walk(tree)) if tree else 0
    if tree is None or (getattr(thing, "__name__", "") == "<lambda>" and lambdas != 1):
        made = getattr(thing, "__code__", None) or getattr(type(thing), "__name__", "")
        return digest([_bytes(made) if isinstance(made, CodeType) else repr(made)])
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            body[0].value.value = ""
    return digest([ast.unparse(tree)])


def _bytes(code: CodeType) -> str:
    """Byte code with the names and constants that it reads, also those of the code within it."""
    constants = [_bytes(one) if isinstance(one, CodeType) else in_words(one) or repr(one)
                 for one in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def taken(function: FunctionType) -> dict[str, Any]:
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


def defaults(function: FunctionType) -> list[Any]:
    """The values of all of its arguments that have one."""
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def unwritten(function: FunctionType) -> list[Any]:
    """Its defaults(), unless its text says all of them, as numbers and strings; those of a lambda,
    one of several in its line perhaps, for which the byte code counts, that has none."""
    values = defaults(function)
    if not values:
        return []
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        made = next(one for one in ast.walk(tree)
                    if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)))
        for one in (*made.args.defaults, *filter(None, made.args.kw_defaults)):
            ast.literal_eval(one)
    except (OSError, TypeError, SyntaxError, ValueError, StopIteration):
        return values
    return []


# where what they stand for is
BEHIND = {staticmethod: "__func__", classmethod: "__func__", property: "fget",
          functools.cached_property: "func", functools._lru_cache_wrapper: "__wrapped__"}


def behind(thing: Any) -> Any:
    """The function that a property, a method of a class or a cache stands for; else the thing."""
    while name := next((name for kind, name in BEHIND.items() if isinstance(thing, kind)), None):
        thing = getattr(thing, name)
    return thing


def assigned(kind: type) -> dict[str, Any]:
    """The classes in the body of a class, and the attributes that it gives by naming something: of
    all others its text says what they are."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    except (OSError, TypeError, SyntaxError, AttributeError):
        return {}
    names = {line.name for line in body if isinstance(line, ast.ClassDef)}
    for line in body:
        value = getattr(line, "value", None)
        if value is not None and any(isinstance(one, ast.Name) for one in ast.walk(value)):
            names |= {one.id for one in ast.walk(line)
                      if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return {name: value for name, value in vars(kind).items() if name in names}


def constant(value: Any) -> bool:
    """Whether a value cannot change, and tells itself from others in words."""
    if isinstance(value, tuple):
        return all(map(constant, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def in_words(value: Any, within: frozenset[int] = frozenset()) -> str | None:
    """Data in words that tell it from other data; None for what is no data, or holds what is none.

    ``within``: what this is a part of, by id().
    """
    if constant(value):
        return repr(value)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            return None
        kind = value.dtype
        flat = value.detach().cpu().contiguous().reshape(-1)
        return _array(kind, value.shape, flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return _array(value.dtype, value.shape, value.tobytes())
    if id(value) in within or not isinstance(value, (list, tuple, dict, set, frozenset)):
        return None
    within |= {id(value)}
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    said = [in_words(one, within) for one in parts]
    if None in said:
        return None
    said = sorted(said) if isinstance(value, (set, frozenset)) else said
    return f"{type(value).__name__}({', '.join(said)})"


def _array(kind: Any, shape: tuple[int, ...], content: bytes) -> str:
    return f"{kind} {tuple(shape)} {hashlib.sha256(content).hexdigest()}"


def digest(parts: list[str]) -> str:
    """12 digits of SHA-256 over strings, one after the other."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
