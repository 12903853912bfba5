"""An agent that learns from its own practice: text lessons by day, LoRA weights by night.

import reflect

ws = reflect.open("lessons.db")
ws.run("letters", n=16)                 # practise, review, write lessons
ws.sleep()                              # lessons become weights, if the gate lets them
ws.evaluate("letters", arms=["base", "lessons", "adapter"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

__version__ = "0.1.0"
__all__ = ["open"]


def open(db: str | Path | None = None, **settings: Any) -> Workspace:
    """A workspace on that database (made when missing). `settings` are fields of
    `reflect.config.Settings`.

    What is not given comes from REFLECT_* in the environment, then from ./reflect.toml, then from
    the defaults. Nothing is read or loaded before it is needed. Raises UsageError for a setting
    that there is not.
    """
    from reflect import config
    from reflect.workspace.workspace import Workspace

    return Workspace(config.load(db=str(db) if db is not None else None, **settings))
