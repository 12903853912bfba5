"""The house plan, read from the source: who may import whom, and where the heavy packages may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "reflect"

# A room imports rooms of the floors above it in this table, and itself. Nothing else.
FLOORS = [
    ["errors", "types"],
    ["config", "records"],
    ["prompts"],
    ["tasksets", "store"],
    ["models"],
    ["day"],
    ["evaluate", "export"],
    ["agreement"],
    ["night"],
    ["workspace"],  # with reflect/__init__.py, book.py and shelf.py: the Python interface
    ["serve"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
INTERFACE = {"", "book", "context", "grades", "shelf", "workspace"}

# package -> the rooms that may import it at all
HEAVY = {
    "torch": {"models", "night"},
    "transformers": {"models", "night"},
    "peft": {"models", "night"},
    "safetensors": {"models", "night"},
    "openai": {"models"},
    "alembic": {"store"},
    "sqlalchemy": {"records", "store"},
    "typer": {"cli"},
    "rich": {"cli"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "httpx2": {"serve"},
}
SLOW = {"torch", "transformers", "peft", "sqlmodel", "sqlalchemy", "alembic", "openai", "numpy", "jinja2"}
SLOW |= {"starlette", "uvicorn", "httpx2"}
FILES = sorted(HOUSE.rglob("*.py"))


def room(module: str) -> str:
    """reflect.day.packing -> day; reflect, reflect.book, reflect.shelf and reflect.workspace are one room."""
    name = (module.split(".") + [""])[1]
    return "workspace" if name in INTERFACE else name


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it: `from reflect import config` gives reflect.config."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import it by its full name"
            if node.module == "reflect":
                yield from (f"reflect.{a.name}" if is_module(a.name) else "reflect" for a in node.names)
            elif node.module:
                yield node.module


def is_module(name: str) -> bool:
    return (HOUSE / name).is_dir() or (HOUSE / f"{name}.py").is_file()


def dotted(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_a_module_imports_only_floors_below_its_own(path: Path) -> None:
    mine = room(dotted(path))
    assert mine in FLOOR, f"{mine} is a new room: give it a floor in this table"
    for module in imports(path):
        top = module.split(".")[0]
        if top == "reflect":
            other = room(module)
            assert other == mine or FLOOR[other] < FLOOR[mine], f"{dotted(path)} ({mine}) imports {module} ({other})"
        elif top in HEAVY:
            assert mine in HEAVY[top], f"{dotted(path)} imports {module}, which belongs in {HEAVY[top]}"


def test_files_stay_small() -> None:
    large = {dotted(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not large, "more than 400 lines is two rooms"


def test_the_command_line_starts_without_anything_slow() -> None:
    code = "import sys, reflect, reflect.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not SLOW & set(loaded)
