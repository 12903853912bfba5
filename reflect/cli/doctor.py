"""reflect doctor: is everything as it should be?"""

from __future__ import annotations

from typing import Any

import typer

from reflect.cli.common import Db, Json, Model, Profile, workspace
from reflect.cli.output import print_json

PACKAGES = ("torch", "transformers", "peft", "sqlmodel", "SQLAlchemy", "alembic")


def doctor(db: Db = None, model: Model = None, profile: Profile = None, json: Json = False) -> None:
    """Check the database, the adapters and the set-up. Exit 1 when something is wrong.

    What killed nights left behind is removed, unless a night is running.
    """
    import platform
    from importlib.metadata import version

    import reflect
    from reflect.errors import ReflectError
    from reflect.models import find
    from reflect.store import lessons, nights

    ws = workspace(db, profile, model)
    problems = ws.doctor()
    swept = [] if problems else ws.sweep()  # where something is wrong, nothing is touched
    try:
        folder = (
            str(find(ws.settings.model))
            if not ws.settings.model.startswith("hf:")
            else "(not looked up)"
        )
    except ReflectError as e:
        folder = ""
        problems.append(str(e))
    with ws.store.read() as s:
        active = nights.active_adapter(s, ws.settings.profile)
        count = lessons.count(s, profile=ws.settings.profile)
    facts: dict[str, Any] = {
        "reflect": reflect.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "database": ws.path,
        "lessons": count,
        "model": ws.settings.model,
        "model_folder": folder,
        "adapter": active.name if active else None,
        "home": str(ws.settings.home_path),
        "removed": [str(path) for path in swept],
    }
    if json:
        print_json({"ok": not problems, "problems": problems, **facts})
    else:
        for name, value in facts.items():
            text = (
                ", ".join(f"{k} {v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            text = ", ".join(value) or None if isinstance(value, list) else text
            print(f"{name.replace('_', ' ')}: {'-' if text is None else text}")
        for problem in problems:
            print(f"PROBLEM {problem}")
        print("all is well" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)
