"""Sessions of coding agents in a workspace: import, export, hooks."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import ReflectError, UsageError
from reflect.rollouts.judge import MAX_TOKENS, judge_of
from reflect.sessions import hook_lessons
from reflect.sessions.signals import TOKEN_CAP, Signal
from reflect.store import exchanges
from reflect.tasksets.task import JUDGE, Task

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.records import Exchange
    from reflect.sessions.connect import FileChange
    from reflect.sessions.importer import ImportReport
    from reflect.types import Json
    from reflect.workspace.context import WorkspaceContext


CHARS, OVERHEAD = 4, 250  # of a token, and tokens of the judge's own prompt
MOST_MESSAGES = 20  # later messages of a session that the judge reads


@dataclass
class JudgedSessions:
    """What a judge read, or would read."""

    judged: int = 0
    silent: int = 0
    """Sessions in which the person wrote nothing after the first answer: they have no signal."""
    left: int = 0
    """Sessions that the cap leaves for the next time."""
    tokens: int = 0
    """At most so many, estimated."""
    price: float | None = None
    """None if the model has no price."""
    problems: list[str] = field(default_factory=list)
    """Grades that could not be read."""


def task_of_corrections(row: Exchange) -> tuple[Task, str] | None:
    """What the judge reads of a session: its first message as a task, and the person's later ones.
    None if there are none."""
    roles = [message["role"] for message in row.messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    later = [str(m["content"]) for m in row.messages[first:] if m["role"] == "user"]
    if not later:
        return None
    text = "\n".join(f"message {i}: {words}" for i, words in enumerate(later[-MOST_MESSAGES:], 2))
    rubric = prompts.render("corrections")
    return Task(f"{row.name}:{row.choice}", row.asked, JUDGE, None, rubric=rubric), text


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

    def judge(self, cap: int = TOKEN_CAP, *, dry_run: bool = False) -> JudgedSessions:
        """Let the judge (setting `judge`, else the model) read the person's later messages in
        sessions without a reward, the newest first, within `cap` tokens. `dry_run`: count only."""
        from reflect.models.budget import read_prices

        settings = self.context.settings
        prices = read_prices(settings.prices)
        rows = [row for row in reversed(self.listing()) if row.reward is None and not row.run_id]
        report, chosen = JudgedSessions(), []
        for row in rows:
            corrections = task_of_corrections(row)
            if corrections is None:
                report.silent += 1
                continue
            task, text = corrections
            size = (len(task.text) + len(task.rubric) + len(text)) // CHARS + OVERHEAD + MAX_TOKENS
            if report.tokens + size > cap:
                report.left += 1
                continue
            report.tokens += size
            chosen.append((row, task, text))
        name = (settings.judge or settings.model).removeprefix("openai:")
        if name in prices:
            price_in, price_out = prices[name]
            out = len(chosen) * MAX_TOKENS
            report.price = ((report.tokens - out) * price_in + out * price_out) / 1e6
        report.judged = len(chosen)
        if dry_run or not chosen:
            return report
        judge = judge_of(settings, lambda: self.context.model)
        grades = judge.grades([(task, text) for _, task, text in chosen])
        with self.context.store.write() as s:
            for (old, _, _), grade in zip(chosen, grades, strict=True):
                if isinstance(grade, ReflectError):
                    report.judged -= 1
                    report.problems.append(f"{old.name}: {grade.message}")
                    continue
                for row in exchanges.of_sessions(s, settings.profile, old.name):
                    if row.id == old.id and row.reward is None and row.run_id is None:
                        row.reward = grade.reward
                        row.feedback = f"{Signal.CORRECTION}: {grade.why}"
                        exchanges.save(s, [row])
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
