"""Lessons for agents over the Model Context Protocol, on stdin and stdout or over HTTP.

Needs the package `mcp` (extra `[mcp]`), which is imported when a server is made.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from reflect.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from reflect.config import Settings
    from reflect.workspace.workspace import Workspace

PATH = "/mcp"
"""Where `reflect serve` has the server."""


def is_installed() -> bool:
    """True if the package `mcp` is there."""
    return importlib.util.find_spec("mcp") is not None


def application(settings: Settings, taskset: str) -> ASGIApp:
    """The server over HTTP on a workspace of its own, without access control."""
    from reflect.mcp.http import HttpServer
    from reflect.mcp.server import build
    from reflect.workspace.workspace import Workspace

    return HttpServer(build(Workspace(settings), taskset))


def serve_stdio(ws: Workspace, taskset: str) -> None:
    """Serve one client on stdin and stdout until it closes them. UsageError without the package."""
    if not is_installed():
        hint = "Install it with the extra: pip install 'second-nature[mcp]'"
        raise UsageError("reflect mcp needs the package mcp.", hint)
    from reflect.mcp.server import build

    build(ws, taskset).run("stdio")
