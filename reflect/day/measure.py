"""What a reward means: a hash of the code that gives it, and of the words that stand around a lesson in the prompt.

An effect was measured with a verifier, an audit and a system template. Where one of them changes it must be measured
again. The hash holds the source of `verify`, `audit` and `environment` as the taskset has them and of the verifiers
that its practice tasks name (`Taskset.rules`), with all that they reach by name in their own module: functions,
methods, constants, tables that were read from a file. Comments and docstrings do not count. Code without a source
counts by its bytecode.

Not covered: what a verifier reads or imports while it runs, and what it keeps in `self`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Hashable, Iterator
from types import CodeType, FunctionType
from typing import Any

from reflect import prompts
from reflect.tasksets.base import Taskset


def measure(taskset: Taskset) -> str:
    """12 hex digits, the same in every process."""
    kind = type(taskset)
    own = [vars(cls)[name] for cls in kind.__mro__ for name in ("verify", "audit", "environment") if name in vars(cls)]
    found: dict[Hashable, str] = {}
    for thing in [*own, *taskset.rules()]:
        if isinstance(thing, str):
            found[thing] = thing
        else:
            _reach(thing, kind, found)
    text = json.dumps([sorted(found.values()), prompts.version("system")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _reach(thing: Any, kind: type, found: dict[Hashable, str]) -> None:
    """Put down a function, and all that it names, each once."""
    function = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing)
    ours = isinstance(function, FunctionType) and function.__module__ != Taskset.__module__  # the base has no rule
    if not ours or id(function) in found:
        return
    found[id(function)] = _source(function)
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            _put(name, function.__globals__[name], function.__module__, kind, found)
        elif (attribute := inspect.getattr_static(kind, name, None)) is not None:
            _put(name, attribute, None, kind, found)


def _put(name: str, value: Any, module: str | None, kind: type, found: dict[Hashable, str]) -> None:
    """What a name stands for: code of that module (None: any), or data."""
    if callable(value) or hasattr(value, "fget") or hasattr(value, "__func__"):
        if module is not None and getattr(value, "__module__", None) != module:
            return
        if isinstance(value, type):
            found[value] = _source(value)
        else:
            _reach(value, kind, found)
    elif isinstance(value, dict):
        for key in value:
            _put(f"{name}[{key!r}]", value[key], module, kind, found)
    elif (said := _plain(value)) is not None:
        found[name, said] = f"{name} = {said}"


def _plain(value: Any) -> str | None:
    """Data in words that do not depend on the process; None for what is no data."""
    if isinstance(value, str | int | float | bytes | bool | None):
        return repr(value)
    if isinstance(value, re.Pattern):
        return f"{value.pattern!r}, {value.flags}"
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_plain(part) for part in value]
        told = [part for part in parts if part is not None]
        return repr(sorted(told) if isinstance(value, set | frozenset) else told)
    return None


def _source(thing: Any) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):  # no file, or a lambda in the middle of a line
        return thing.__qualname__ if isinstance(thing, type) else "\n".join(_bytecode(thing.__code__))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _bytecode(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        elif (said := _plain(constant)) is not None:
            yield said


def _names(code: CodeType) -> Iterator[str]:
    """Every name that the code looks up, in functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
