"""Tasksets that are Python: a file, an importable module, an installed package.

my_tasks.py           the one taskset in that file; my_tasks.py:sums where there are several
package.module:NAME   one by its import path
NAME                  an entry point of the group "reflect.tasksets", which a package declares
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.tasksets.base import Taskset

Loaded = TypeVar("Loaded")
GROUP = "reflect.tasksets"
FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?", re.IGNORECASE)
DOTTED = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType


def from_file(path: Path, name: str = "") -> Taskset:
    """The taskset of that name in a Python file; without a name its TASKSET, or the only one that
    it holds."""
    if not path.is_file():
        raise UnknownName(f"There is no file {path}.", "Check the path, or run: reflect tasks list")
    return _chosen(_run(path, lambda: load_module(path.resolve())), str(path), name)


def from_module(module: str, name: str) -> Taskset | None:
    """`module:name`, imported from here or from what is installed; None when there is no such
    module."""
    reach(Path.cwd())
    try:
        return _chosen(_run(module, lambda: importlib.import_module(module)), module, name)
    except UsageError as e:
        missing = e.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{module}.".startswith(f"{missing.name}."):
            return None
        raise


def packaged() -> Mapping[str, EntryPoint]:
    """name -> the taskset that an installed package declares."""
    return {point.name: point for point in entry_points(group=GROUP)}


def from_package(point: EntryPoint) -> Taskset:
    """The taskset behind an entry point."""
    whose = f"The package {point.dist.name}" if point.dist else f"The entry point {point.name}"
    found = _run(whose, point.load)
    if not isinstance(found, Taskset):
        raise UsageError(f"{whose}: {point.value} is no taskset.", "Ask its authors.")
    return found


def reach(folder: Path) -> None:
    """Let modules of that folder be imported, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _run(what: str | Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives; an error in the user's code says file, line and what."""
    if isinstance(what, Path):
        reach(what.resolve().parent)
    try:
        return load()
    except ReflectError:
        raise
    except (Exception, SystemExit) as e:
        _refuse(what, e)


def _refuse(what: str | Path, e: BaseException) -> NoReturn:
    where = _where(e)
    reason = e.msg if isinstance(e, SyntaxError) else str(e)
    place = f" ({where})" if where else ""
    message = f"{what} does not run: {type(e).__name__}: {reason}{place}."
    raise UsageError(message, "Correct or remove that file.") from e


def _where(e: BaseException) -> str:
    """file and line of the user's own code that broke: the last frame outside the import machinery
    and libraries."""
    if isinstance(e, SyntaxError) and e.filename:
        return f"{Path(e.filename).name}, line {e.lineno}"
    ours = str(Path(__file__).parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(e.__traceback__)
        if not frame.filename.startswith(("<frozen", ours))
        and "importlib" not in Path(frame.filename).parts
    ]
    own = [
        frame
        for frame in frames
        if not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)
    ]
    last = (own or frames)[-1:]
    return f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else ""


def _chosen(module: ModuleType, where: str, name: str) -> Taskset:
    """The taskset `name` of a module; its TASKSET, or the only one, without a name."""
    found = {key: value for key, value in vars(module).items() if isinstance(value, Taskset)}
    step = "Put @taskset over a function, or end the file with: TASKSET = YourTaskset()"
    if not name and "TASKSET" in vars(module):
        name = "TASKSET"
    if name in found:
        return found[name]
    if name in vars(module):
        raise UsageError(f"{name} in {where} is not a Taskset.", step)
    if name:
        raise UnknownName(
            f"There is no taskset '{name}' in {where}.", f"It has {', '.join(found) or 'none'}."
        )
    if not found:
        raise UsageError(f"There is no taskset in {where}.", step)
    if len(set(map(id, found.values()))) > 1:
        raise UsageError(
            f"{where} holds {', '.join(found)}.", f"Name one of them: {where}:{next(iter(found))}"
        )
    return next(iter(found.values()))


@functools.cache
def load_module(path: Path) -> ModuleType:
    """The Python file at `path` as a module, executed once. Errors in it are the caller's to
    word."""
    name = f"reflect_tasks_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
