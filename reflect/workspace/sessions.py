"""Sessions of coding agents in a workspace: import, export, hooks."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from reflect.errors import ReflectError, UsageError
from reflect.sessions import hook_lessons
from reflect.store import exchanges

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.records import Exchange
    from reflect.sessions.connect import FileChange
    from reflect.sessions.importer import ImportReport
    from reflect.types import Json
    from reflect.workspace.context import WorkspaceContext


class Sessions:
    """Import and export of sessions, and the hooks that show lessons in them."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context

    def listing(self, name: str = "") -> list[Exchange]:
        """The exchanges of imported sessions, oldest first; with `name` those of one session."""
        return self.context.read(exchanges.of_sessions, self.context.settings.profile, name)

    def load(
        self,
        source: str = "",
        *,
        since: str | None = None,
        trusted: bool = False,
        headless: bool = False,
        dry_run: bool = False,
    ) -> ImportReport:
        """Import transcripts of `claude`, `codex`, or a path; by default of both agents and those
        that hooks queued. See `reflect.sessions.importer`."""
        from reflect.models.budget import read_prices
        from reflect.sessions import importer

        settings = self.context.settings
        prices = read_prices(settings.prices)
        seconds = None if since is None else importer.since_seconds(since)
        began = time.time()
        queue = hook_lessons.folder_of(settings) / "queue"
        paths = importer.find_transcripts(source, queue, seconds)
        report = importer.import_sessions(
            self.context.store, settings, paths,
            trusted=trusted, headless=headless, dry_run=dry_run,
        )  # fmt: skip
        for file in queue.glob("*") if not dry_run and not source and seconds is None else ():
            if file.stat().st_mtime < began:
                file.unlink(missing_ok=True)
        rewarded = sum(n for signal, n in report.signals.items() if signal != "none")
        name = (settings.reflector or settings.model).removeprefix("openai:")
        if name in prices:
            price_in, price_out = prices[name]
            tokens_out = rewarded * settings.reflect_tokens
            report.price = (report.review_tokens * price_in + tokens_out * price_out) / 1e6
        return report

    def export(self, name: str = "") -> list[Json]:
        """Imported sessions as ATIF trajectories."""
        from reflect.sessions.atif import trajectory_of

        return [trajectory_of(row) for row in self.listing(name)]

    def connect(self, agent: str, *, remove: bool = False, write: bool = False) -> list[FileChange]:
        """The changes to an agent's settings that add our hooks or take them out; `write` makes
        them."""
        from reflect.sessions import connect

        settings = self.context.settings
        if "://" in settings.db and not settings.home:
            message = "The hooks need a folder that does not depend on where a command starts."
            raise UsageError(message, "Set home in reflect.toml, or REFLECT_HOME.")
        settings = replace(settings, home=str(settings.home_path.resolve()))
        change = connect.remove if remove else connect.connect
        changes = change(settings, agent)
        if write:
            connect.apply(settings, agent, changes, removed=remove)
            if not remove:
                hook_lessons.refresh(self.context.store, self.context.settings)
        return changes

    def write_plugin(self, folder: Path, *, overwrite: bool = False) -> list[str]:
        """Write the plugin for Claude Code into a folder. Returns the paths of its files."""
        from reflect.sessions.connect import plugin_files

        if folder.exists() and any(folder.iterdir()) and not overwrite:
            raise UsageError(f"{folder} is not empty.", "Give another folder, or add --yes.")
        files = plugin_files(self.context.settings)
        for path, data in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        hook_lessons.refresh(self.context.store, self.context.settings)
        return [str(folder / path) for path in files]

    def refresh(self) -> None:
        """Write the lessons for connected hooks anew. A failure is no error of the caller."""
        with suppress(ReflectError, OSError):
            hook_lessons.refresh_if_used(self.context.store, self.context.settings)
