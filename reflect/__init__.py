"""An agent that learns from its own practice: text lessons by day, LoRA weights by night.

import reflect

ws = reflect.open("lessons.db")
ws.run("letters", n=16)                 # practise, reflect, write lessons
ws.sleep()                              # train the lessons into weights, if the gate passes them
ws.evaluate("letters", arms=["base", "lessons", "adapter"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from reflect import errors

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Score, Task
    from reflect.workspace.workspace import Workspace

__version__ = "0.1.0"
__all__ = ["Score", "Task", "Taskset", "Workspace", "errors", "open"]

MODULES = {  # imported on first use, so that `import reflect` is fast
    "Score": "reflect.tasksets.task",
    "Task": "reflect.tasksets.task",
    "Taskset": "reflect.tasksets.base",
    "Workspace": "reflect.workspace.workspace",
}


def open(db: str | Path | None = None, **settings: object) -> Workspace:
    """A workspace on that database, which is created if it is missing. `settings` are fields of
    `reflect.config.Settings`.

    Other settings come from REFLECT_NAME in the environment, then from ./reflect.toml, then from
    the defaults. Nothing is read or loaded before it is needed. Raises UsageError for an unknown
    setting or an invalid value.
    """
    from reflect import config
    from reflect.workspace.workspace import Workspace

    return Workspace(config.load(db=str(db) if db is not None else None, **settings))


def __getattr__(name: str) -> object:
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module 'reflect' has no attribute '{name}'")
