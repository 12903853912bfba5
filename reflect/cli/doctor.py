"""reflect doctor: check the database, the adapters and the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from reflect.cli.common import Json, with_workspace
from reflect.cli.output import join, print_json
from reflect.errors import ReflectError

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

PACKAGES = ("torch", "transformers", "safetensors", "sqlmodel", "SQLAlchemy", "alembic")


@with_workspace("model profile")
def doctor(ws: Workspace, json: Json = False) -> None:
    """Check the database, the adapters and the set-up. Exit 1 when something is wrong.

    The files of killed nights are removed, unless a night is running.
    """
    import platform
    from importlib.metadata import version

    import reflect
    from reflect.models import find
    from reflect.store import lessons, nights

    problems, name = ws.doctor(), ws.settings.model
    removed = [] if problems else ws.sweep()
    folder = ""
    try:
        folder = "(not looked up)" if name.startswith("hf:") else str(find(name))
    except ReflectError as e:
        problems.append(str(e))
    with ws.store.read() as s:
        active = nights.active_adapter(s, ws.settings.profile)
        count = lessons.count(s, profile=ws.settings.profile)
    facts: dict[str, object] = {
        "reflect": reflect.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "database": ws.path,
        "lessons": count,
        "model": name,
        "model_folder": folder,
        "adapter": active.name if active else None,
        "home": str(ws.settings.home_path),
        "removed": [str(path) for path in removed],
    }
    if json:
        print_json({"ok": not problems, "problems": problems, **facts})
    else:
        for key, value in facts.items():
            if isinstance(value, dict):
                value = join(f"{k} {v}" for k, v in value.items())
            elif isinstance(value, list):
                value = join(value) or None
            print(f"{key.replace('_', ' ')}: {'-' if value is None else value}")
        for problem in problems:
            print(f"PROBLEM {problem}")
        print(f"{len(problems)} problems" if problems else "all is well")
    if problems:
        raise typer.Exit(1)
