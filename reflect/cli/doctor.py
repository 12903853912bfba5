"""reflect doctor: check the database, the adapters and the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from typer import Option

from reflect.cli.common import Json, with_workspace
from reflect.cli.output import join, print_json
from reflect.errors import ReflectError, UsageError

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

PACKAGES = ("torch", "transformers", "safetensors", "sqlmodel", "SQLAlchemy", "alembic")
ACCEPT = (
    "If the rows above were changed on purpose: reflect doctor --deep --accept. If not, put back a "
    "copy (reflect lessons backup makes them)."
)


@with_workspace("model profile")
def doctor(
    ws: Workspace,
    deep: bool = Option(False, "--deep", help="Compare every row with the hash saved with it."),
    accept: bool = Option(
        False, "--accept", help="With --deep: take the rows as they are now as right."
    ),
    json: Json = False,
) -> None:
    """Check the database, the adapters and the set-up. Exit 1 when something is wrong.

    The files of killed nights are removed, unless a night is running.
    """
    import platform
    from importlib.metadata import version

    import reflect
    from reflect.models import find
    from reflect.store import lessons, nights
    from reflect.store.row_hashes import OUTSIDE

    if accept and not deep:
        raise UsageError("--accept needs --deep.", "See: reflect doctor --deep")
    problems, name = ws.doctor(deep=deep, accept=accept), ws.settings.model
    facts: dict[str, object] = {
        "reflect": reflect.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "database": ws.path,
        "model": name,
        "home": str(ws.settings.home_path),
    }
    try:
        folder = "(not looked up)" if name.startswith("hf:") else str(find(name))
        facts["model_folder"] = folder
    except ReflectError as e:
        facts["model_folder"] = ""
        problems.append(str(e))
    facts["removed"] = [] if problems else [str(path) for path in ws.sweep()]
    try:
        with ws.store.read() as s:
            active = nights.active_adapter(s, ws.settings.profile)
            facts["lessons"] = lessons.count(s, profile=ws.settings.profile)
        facts["adapter"] = active.name if active else None
    except (ReflectError, ValueError):
        if not problems:
            raise
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
        if any(OUTSIDE in problem for problem in problems):
            print(ACCEPT)
        print(f"{len(problems)} problems" if problems else "all is well")
    if problems:
        raise typer.Exit(1)
