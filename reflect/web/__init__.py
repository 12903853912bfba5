"""Lessons, groups, nights and prompts as pages in a browser, without a build step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from reflect.config import Settings


def pages(settings: Settings, key: str) -> Starlette:
    """The application on a workspace of its own, which shares no model with others."""
    from reflect.web.app import build
    from reflect.workspace.workspace import Workspace

    return build(Workspace(settings), key)
