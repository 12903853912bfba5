"""Where heavy packages may be imported, and that the command line starts without them. The layers of
reflect/ are import-linter contracts in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "reflect"

# package -> the packages of reflect/ that may import it at all
HEAVY = {
    "torch": {"models", "training", "gate", "night", "adapters", "reviewer"},
    "transformers": {"models", "training", "gate", "night", "adapters"},
    "peft": set(),  # the tests compare with it
    "safetensors": {"models", "training", "gate", "night", "adapters"},
    "openai": {"models"},
    "alembic": {"store"},
    "sqlalchemy": {"records", "store"},
    "typer": {"cli"},
    "rich": {"cli"},
    "starlette": {"mcp", "serve", "web"},
    "uvicorn": {"serve"},
    "httpx2": {"serve"},
}
SLOW = {
    "torch",
    "transformers",
    "peft",
    "sqlmodel",
    "sqlalchemy",
    "pydantic",
    "psutil",
    "alembic",
    "openai",
    "numpy",
    "jinja2",
}
SLOW |= {"starlette", "uvicorn", "httpx2"}
FILES = sorted(HOUSE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it: `from reflect import config` gives
    reflect.config."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import it by its full name"
            if node.module == "reflect":
                yield from (
                    f"reflect.{a.name}" if is_module(a.name) else "reflect" for a in node.names
                )
            elif node.module:
                yield node.module


def is_module(name: str) -> bool:
    return (HOUSE / name).is_dir() or (HOUSE / f"{name}.py").is_file()


def dotted(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_heavy_packages_are_imported_where_they_belong(path: Path) -> None:
    module = dotted(path)
    for imported in imports(path):
        top = imported.split(".")[0]
        if top in HEAVY:
            assert ([*module.split("."), ""])[1] in HEAVY[top], (
                f"{module} imports {imported}, which belongs in {HEAVY[top]}"
            )


def test_the_command_line_starts_without_anything_slow() -> None:
    code = "import sys, reflect, reflect.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not SLOW & set(loaded)
