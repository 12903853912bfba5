"""Find tasksets by name, list them, check them.

load_taskset("letters")      tasks/letters.py: first the user's own ./tasks/, then the shipped ones
load_taskset("dialect:2")    a variant of one
load_taskset("my.jsonl")     a file of tasks
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from reflect.config import shipped
from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.tasksets import scoring
from reflect.tasksets.base import Score, Split, Task, Taskset, load_module
from reflect.tasksets.files import SUFFIXES, FileTaskset
from reflect.tasksets.verifiers import VERIFIERS

__all__ = ["Score", "Task", "Taskset", "available", "check", "load_taskset"]


def load_taskset(name: str | Path) -> Taskset:
    """The taskset of that name or file. UnknownName says what there is; a broken file is a UsageError."""
    text = str(name)
    if text.lower().endswith(SUFFIXES):
        return FileTaskset(Path(text))
    base, _, argument = text.partition(":")
    files = _modules()
    if base not in files:
        near = difflib.get_close_matches(base, files, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UnknownName(
            f"There is no taskset '{text}'.{meant}",
            f"There are {', '.join(files)}; a file ends in {', '.join(SUFFIXES)}. More: reflect tasks list",
        )
    taskset = _load(files[base])
    if not argument:
        return taskset
    variant = getattr(taskset, "variant", None)
    if variant is None:
        raise UnknownName(f"The taskset {base} has no variants, so there is no '{text}'.", f"Use {base}.")
    return variant(argument)


def available() -> list[Taskset]:
    """The named tasksets, by name. One that does not load says so in its `about`."""
    found = []
    for name, path in _modules().items():
        try:
            found.append(_load(path))
        except ReflectError as e:
            broken = Taskset()
            broken.name, broken.about = name, f"broken: {e.message}"
            found.append(broken)
    return found


def check(taskset: Taskset) -> list[str]:
    """What is wrong with a taskset, in sentences; [] when every known-good answer scores 1 and the splits are apart.

    Not covered: whether two differently worded tasks are the same task, and whether a verifier can be fooled.
    """
    sides: dict[Split, list[Task]] = {"practice": taskset.tasks("practice"), "holdout": taskset.tasks("holdout")}
    problems = []
    for side, tasks in sides.items():
        if not tasks:
            problems.append(f"there is no {side} task")
        twice = [name for name, times in Counter(task.id for task in tasks).items() if times > 1]
        problems += [f"{side}: the id {name} stands there more than once" for name in twice]
        problems += [f"{side}: task {task.id} says that it is {task.split}" for task in tasks if task.split != side]
        if taskset.tasks(side, 3, 7) != taskset.tasks(side, None, 7)[:3]:
            problems.append(f"{side}: the order depends on more than the seed")
    for what, of in (("id", lambda task: task.id), ("question", _question)):
        shared = {of(task) for task in sides["practice"]} & {of(task) for task in sides["holdout"]}
        problems += [f"the {what} {one} is in practice and in holdout" for one in sorted(shared)]
    with scoring.batch():
        for task in [*sides["practice"], *sides["holdout"], *taskset.following(20)]:
            problems += _wrong_scores(taskset, task)
    return problems


def _wrong_scores(taskset: Taskset, task: Task) -> list[str]:
    if task.verifier not in VERIFIERS and task.verifier != "taskset":
        return [f"task {task.id}: there is no verifier {task.verifier!r}"]
    try:
        good, empty = scoring.verify(taskset, task, taskset.gold(task)), scoring.verify(taskset, task, "")
    except Exception as e:  # somebody's verifier: whatever it raises is what is wrong with it
        return [f"task {task.id}: its verifier broke: {type(e).__name__}: {e}"]
    problems = []
    if good.reward != 1.0:
        problems.append(f"task {task.id}: its known-good answer {taskset.gold(task)!r} scores {good.reward:g}, not 1")
    if empty.reward >= 1.0:
        problems.append(f"task {task.id}: an empty answer scores 1")
    return problems


def _question(task: Task) -> str:
    return json.dumps(task.messages, sort_keys=True, ensure_ascii=False)


def _modules() -> dict[str, Path]:
    """name -> Python file, the user's own first. Only files with a TASKSET: any project may have a folder `tasks`."""
    found: dict[str, Path] = {}
    for folder in (Path.cwd() / "tasks", shipped("tasks")):
        for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
            if re.search(r"^TASKSET\b", path.read_text(errors="replace"), re.MULTILINE):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def _load(path: Path) -> Taskset:
    try:
        taskset: Any = load_module(path).TASKSET
    except ReflectError:
        raise
    except Exception as e:
        raise UsageError(f"{path} does not run: {type(e).__name__}: {e}.", "Mend or remove that file.") from e
    if not isinstance(taskset, Taskset):
        raise UsageError(f"TASKSET in {path} is not a Taskset.", "End the file with: TASKSET = YourTaskset()")
    return taskset
