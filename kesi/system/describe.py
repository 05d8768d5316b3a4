"""What decides an outcome, in plain values: two runs whose descriptions are equal do the same."""

import ast
import dataclasses
import hashlib
import inspect
import textwrap
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

    A class counts with those that it derives from. Of something without source text (made in an
    interpreter) the byte code counts.
    """
    if isinstance(thing, type):
        parts = [_code(one) for one in thing.__mro__
                 if one.__module__ not in ("builtins", "typing", "abc")]
        return (parts[0] if len(parts) == 1
                else hashlib.sha256("".join(parts).encode()).hexdigest()[:12])
    return _code(thing)


def _code(thing: Any) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        code = getattr(thing, "__code__", None) or getattr(type(thing), "__name__", "")
        text = repr((code.co_code, code.co_consts)) if hasattr(code, "co_code") else repr(code)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            body[0].value.value = ""
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]
