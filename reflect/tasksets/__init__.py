"""Find tasksets by name, list them, check them.

load_taskset("letters")              tasks/letters.py: the user's ./tasks/, then the shipped ones
load_taskset("dialect:2")            a variant of one
load_taskset("my.jsonl")             a file of tasks
load_taskset("my_folder")            its files train.* and test.*
load_taskset("my_tasks.py")          a Python file; my_tasks.py:NAME when it has several
load_taskset("package.module:NAME")  a taskset of a module
load_taskset("gym:leg_counting")     a generator of reasoning-gym
load_taskset("world:coin")           a taskset of a public suite (`reflect.tasksets.suites`)
"""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import shipped
from reflect.errors import ReflectError, UnknownName
from reflect.tasksets import imports, suites
from reflect.tasksets.base import Taskset
from reflect.tasksets.environment import Environment, EnvironmentStep, Toolbox
from reflect.tasksets.files import FileTaskset, name_of
from reflect.tasksets.functions import taskset
from reflect.tasksets.rows import SUFFIXES, ensure_readable
from reflect.tasksets.task import Score, Task
from reflect.tasksets.tools import Outside
from reflect.tasksets.validation import check, ensure_disjoint_splits
from reflect.tasksets.verifiers import extract_answer

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Environment", "EnvironmentStep", "Outside", "Score", "Task", "Taskset", "Toolbox"]
__all__ += ["available", "check", "extract_answer", "load_taskset", "taskset"]

MARK = re.compile(r"^(TASKSET\b|@taskset\b)", re.MULTILINE)
RENAMED = {"judged": "extract_answer", "Step": "EnvironmentStep"}  # first names, until version 0.2


def __getattr__(name: str) -> object:
    """The first names of what was renamed, so that existing tasksets load."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = RENAMED[name]
    warnings.warn(f"reflect.tasksets.{name} is now {new}", DeprecationWarning, stacklevel=2)
    return globals()[new]


def load_taskset(name: str | Path) -> Taskset:
    """The taskset of that name or file. UnknownName lists the known ones; UsageError for a broken
    file."""
    text = str(name)
    if text.lower().endswith(SUFFIXES):
        return FileTaskset(Path(text))
    if file := imports.FILE.fullmatch(text):
        path = Path(file["path"])
        suffix = f":{file['name']}" if file["name"] else ""
        return _named(imports.from_file(path, file["name"] or ""), name_of(path) + suffix)
    base, _, argument = text.partition(":")
    if base == "gym":
        from reflect.tasksets import reasoning_gym

        return reasoning_gym.load(argument)
    if base in suites.SUITES:
        return suites.load(base, argument)
    files, packaged = _modules(), imports.packaged()
    if base in files:
        return _variant(_load(files[base]), base, argument)
    if base in packaged:
        return _named(_variant(imports.from_package(packaged[base]), base, argument), text)
    dotted = imports.DOTTED.fullmatch(text)
    imported = imports.from_module(dotted["module"], dotted["name"]) if dotted else None
    if imported:
        return _named(imported, text)
    if Path(text).is_dir():
        return FileTaskset(Path(text))
    ensure_readable(Path(text))
    near = difflib.get_close_matches(base, [*files, *packaged, "gym", *suites.SUITES], n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    known, suffixes = ", ".join([*files, *packaged]), ", ".join(SUFFIXES)
    hint = f"There are {known}, gym:NAME; a file ends in {suffixes}, .py. More: reflect tasks list"
    raise UnknownName(f"There is no taskset '{text}'.{meant}", hint)


def available() -> list[Taskset]:
    """The tasksets of ./tasks/ and the built-in ones. One that does not load has a `load_error`."""
    tasksets = []
    for name, path in _modules().items():
        try:
            tasksets.append(_load(path))
        except ReflectError as e:
            broken = Taskset()
            broken.name, broken.about, broken.load_error = name, f"broken: {e.message}", e
            tasksets.append(broken)
    return tasksets


def scope_problem(scope: str, used: Collection[str]) -> str:
    """Why no prompt would show a lesson of this scope; "" if a taskset has this name. `used`: names
    that runs and lessons have already. No file is loaded."""
    path = Path(scope)
    if not scope or scope in used or scope.partition(":")[0] in {*_modules(), *imports.packaged()}:
        return ""
    if scope.partition(":")[0] in ("gym", *suites.SUITES) or (
        len(scope) < 200 and path.exists() and name_of(path) == scope
    ):
        return ""
    files = [file.name for file in Path.cwd().iterdir() if file.suffix.lower() in SUFFIXES]
    near = [file for file in files if Path(file).stem == scope]
    near += difflib.get_close_matches(scope, [*files, *_modules(), *used], n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return (
        f"No taskset and no run is called {scope[:80]!r}, so no prompt shows the lesson yet.{meant}"
    )


def _variant(base: Taskset, name: str, argument: str) -> Taskset:
    if not argument:
        return base
    variant = getattr(base, "variant", None)
    if variant is None:
        problem = f"The taskset {name} has no variants, so there is no '{name}:{argument}'."
        raise UnknownName(problem, f"Use {name}.")
    taskset: Taskset = variant(argument)
    return taskset


def _named(taskset: Taskset, name: str) -> Taskset:
    """The taskset under the name that loads it again. Its splits must be disjoint."""
    taskset.name = name
    return ensure_disjoint_splits(taskset)


def _modules() -> dict[str, Path]:
    """name -> Python file, the user's own first. Only files with a taskset: any project may have a
    folder `tasks`."""
    modules: dict[str, Path] = {}
    for folder in (Path.cwd() / "tasks", shipped("tasks")):
        for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
            if MARK.search(path.read_text(errors="replace")):
                modules.setdefault(path.stem, path)
    return dict(sorted(modules.items()))


def _load(path: Path) -> Taskset:
    taskset = imports.from_file(path)
    return taskset if path.parent == shipped("tasks") else _named(taskset, path.stem)
