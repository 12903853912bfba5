"""Version of a reward: a hash of the code that gives it, and of the words around a lesson in the
prompt.

An effect was measured with a verifier, an audit and a system template. When one of them changes it
must be measured again. The hash holds the source of `verify`, `audit` and `environment` of the
taskset and of the functions and texts in `Taskset.rules`, with all that they use by name from their
own module: functions, methods, constants, tables that were read from a file. Comments and
docstrings do not count. Code without a source counts by its bytecode. A named verifier, and a
taskset class of this package, counts by its version (see `verifiers.reward_texts`). The tasksets
that are shipped keep version 1: later versions score their answers as version 1 does.

Not covered: what a verifier reads or imports while it runs, and what it keeps in `self`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.config import shipped
from reflect.tasksets.base import Taskset
from reflect.tasksets.verifiers import extract_answer, reward_texts

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


def reward_version(taskset: Taskset) -> str:
    """12 hex digits, the same in every process."""
    kind = type(taskset)
    own = [
        vars(cls)[name]
        for cls in kind.__mro__
        for name in ("verify", "audit", "environment")
        if name in vars(cls)
    ]
    texts: dict[Hashable, str] = {}
    for rule in [*own, *taskset.rules()]:
        if isinstance(rule, str):
            texts[rule] = rule
        else:
            _add_function(rule, kind, texts)
    text = json.dumps([sorted(texts.values()), prompts.version("system")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _add_function(rule: object, kind: type, texts: dict[Hashable, str]) -> None:
    """Add a function and all that it names, once each; base class methods define no reward."""
    code = getattr(rule, "fget", None) or getattr(rule, "__func__", None) or rule
    function = inspect.unwrap(code)  # type: ignore[arg-type]
    if (
        not isinstance(function, FunctionType)
        or function.__module__ == Taskset.__module__
        or id(function) in texts
    ):
        return
    if function.__module__.startswith("reflect."):
        own = reward_texts(function.__qualname__, first=_is_shipped(kind))
        if own:
            texts |= {text: text for text in own}
            return
    texts[id(function)] = _source(function)
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            _add(name, function.__globals__[name], function.__module__, kind, texts)
        elif (attribute := inspect.getattr_static(kind, name, None)) is not None:
            _add(name, attribute, None, kind, texts)


def _is_shipped(kind: type) -> bool:
    """Is the class defined in a taskset of this package?"""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and Path(file).parent == shipped("tasks")


def _add(
    name: str, value: object, module: str | None, kind: type, texts: dict[Hashable, str]
) -> None:
    """Add the value of a name: code of that module (None: of any), or data."""
    if callable(value) or hasattr(value, "fget") or hasattr(value, "__func__"):
        if module is not None and getattr(value, "__module__", None) != module:
            if value is extract_answer:  # of another module, but it has versions
                _add_function(value, kind, texts)
            return
        if isinstance(value, type):
            texts[value] = _source(value)
        else:
            _add_function(value, kind, texts)
    elif isinstance(value, dict):
        for key in value:
            _add(f"{name}[{key!r}]", value[key], module, kind, texts)
    elif (data := _data(value)) is not None:
        texts[name, data] = f"{name} = {data}"


def _data(value: object) -> str | None:
    """Data as a text that does not depend on the process; None for other objects."""
    if isinstance(value, str | int | float | bytes | bool | None):
        return repr(value)
    if isinstance(value, re.Pattern):
        return f"{value.pattern!r}, {value.flags}"
    if isinstance(value, list | tuple | set | frozenset):
        parts = [part for part in map(_data, value) if part is not None]
        return repr(sorted(parts) if isinstance(value, set | frozenset) else parts)
    return None


def _source(code: type | FunctionType) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # no file, or a lambda in the middle of a line
        return code.__qualname__ if isinstance(code, type) else "\n".join(_bytecode(code.__code__))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _bytecode(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        elif (data := _data(constant)) is not None:
            yield data


def _names(code: CodeType) -> Iterator[str]:
    """Every name that the code looks up, in functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
