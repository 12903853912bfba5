"""The lessons of a workspace, as a person reads and edits them.

A person's words are theirs: what is added or rewritten by hand is pinned, so that no reflection
touches it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.errors import ModelError, UsageError

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.export.restore import Imported
    from reflect.export.wording import Piece
    from reflect.lessons.deduplicate import Merged
    from reflect.records import Lesson, LessonLink, LessonVersion, Rule
    from reflect.store.lesson_costs import Cost
    from reflect.store.revocation import Revoked
    from reflect.workspace.context import WorkspaceContext


@dataclass(frozen=True)
class Diff:
    """What differs between two versions of a lesson: field -> its pieces, for the fields that
    do."""

    lesson_id: int
    old: int
    new: int
    fields: dict[str, Sequence[Piece]]


class Lessons:
    """One profile's lessons. Every change is a new version with author `human`; nothing is
    deleted."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context
        self.profile = context.settings.profile

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self.list())

    def __len__(self) -> int:
        from reflect.store import lessons

        with self.context.store.read() as s:
            return lessons.count(s, profile=self.profile)

    # -- reading

    def list(
        self, *, status: str | None = None, scope: str | None = None, limit: int | None = None
    ) -> Sequence[Lesson]:
        """Lessons by id. UnknownName for a status that there is not."""
        from reflect.store import lessons

        with self.context.store.read() as s:
            return lessons.listing(s, profile=self.profile, status=status, scope=scope, limit=limit)

    def get(self, lesson_id: int) -> Lesson:
        from reflect.store import lessons

        with self.context.store.read() as s:
            return lessons.get(s, lesson_id)

    def history(self, lesson_id: int) -> Sequence[LessonVersion]:
        """All versions, oldest first."""
        from reflect.store import lessons

        with self.context.store.read() as s:
            lessons.get(s, lesson_id)  # an unknown id is an error, not an empty history
            return lessons.history(s, lesson_id)

    def search(self, text: str, *, limit: int = 20) -> Sequence[tuple[Lesson, float]]:
        """(lesson, score), best first; any text is a safe query."""
        from reflect.store import lessons

        with self.context.store.read() as s:
            return lessons.search(s, text, profile=self.profile, limit=limit)

    def diff(self, lesson_id: int, old: int | None = None, new: int | None = None) -> Diff:
        """What changed, word by word, from version `old` (the newest one's parent) to `new` (the
        newest)."""
        from reflect.export.wording import word_diff
        from reflect.store import lessons

        with self.context.store.read() as s:
            last = lessons.version(
                s, lesson_id, lessons.get(s, lesson_id).version if new is None else new
            )
            first = lessons.version(
                s, lesson_id, (last.parent or last.version) if old is None else old
            )
        fields: dict[str, Sequence[Piece]] = {}
        for name in ("when", "do", "scope", "tags", "status", "pinned", "trust"):
            was, now = (getattr(row, name) for row in (first, last))
            if was != now:
                was, now = (
                    ", ".join(x) if isinstance(x, list | tuple) else str(x) for x in (was, now)
                )
                fields[name] = word_diff(was, now)
        return Diff(lesson_id, first.version, last.version, fields)

    def stats(self) -> Sequence[Cost]:
        """What each lesson costs, and what it was measured to bring; by id."""
        from reflect.store.lesson_costs import costs

        with self.context.store.read() as s:
            return costs(s, self.profile)

    def links(self, lesson_id: int) -> Sequence[LessonLink]:
        """Which lessons stand in its place, and in whose place it stands; oldest first."""
        from reflect.store import lesson_links

        with self.context.store.read() as s:
            return lesson_links.links(s, lesson_id)

    # -- writing

    def add(
        self,
        when: str,
        do: str,
        *,
        scope: str = "",
        tags: Sequence[str] = (),
        pinned: bool = True,
        reason: str = "",
    ) -> Lesson:
        """Write a lesson by hand: active at once. `scope` is a taskset's name, "" is everywhere.

        UsageError when a lesson says so already, when the text is empty, or too long to be shown.
        """
        from reflect.store import lessons

        tokens = self._cost(when, do)
        with self.context.store.write() as s:
            same = lessons.find_exact(s, when, do, self.profile)
            if same is not None:
                hint = f"See: reflect lessons show {same.id}"
                raise UsageError(f"Lesson {same.id} ({same.status}) says so already.", hint)
            return lessons.add(
                s,
                when=when,
                do=do,
                author="human",
                reason=reason,
                scope=scope,
                tags=tuple(tags),
                status="active",
                pinned=pinned,
                profile=self.profile,
                tokens=tokens,
            )

    def edit(
        self, lesson_id: int, *, expect_version: int | None = None, reason: str = "", **changes: Any
    ) -> Lesson:
        """Change any of when, do, scope, tags, pinned. New text is pinned, and returns to the
        prompt if it was slept.

        Raises Conflict when somebody else was faster than `expect_version`.
        """
        from reflect.store import lessons

        with self.context.store.write() as s:
            head = lessons.get(s, lesson_id)
            when, do = (
                " ".join(changes.get(name, getattr(head, name)).split()) for name in ("when", "do")
            )
            if (when, do) != (head.when, head.do):
                changes = {"pinned": True, **changes, "tokens": self._cost(when, do)}
            words: dict[str, Any] = {
                "author": "human",
                "reason": reason,
                "expect_version": expect_version,
            }
            return lessons.revise(s, lesson_id, **words, **changes)

    def retire(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Out of every prompt and of the next night; an adapter that holds it holds it until then
        (see `revoke`)."""
        with self.context.store.write() as s:
            return self._turn(s, lesson_id, "retired", reason)

    def revoke(self, lesson_id: int, *, reason: str = "") -> Revoked:
        """Forget it everywhere, at once: retired for good, and the profile back on weights that do
        not hold it.

        The next night is built without it, and its gate asks whether it is gone. `undo` brings back
        the text.
        """
        from reflect.store import revocation

        with self.context.store.write() as s:
            done = revocation.revoke(s, lesson_id, reason)
        if done.left is not None:
            from reflect.workspace.adapters import AdapterManager

            AdapterManager(self.context).switch()
        return done

    def approve(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Release a quarantined lesson, bring back a retired one, or settle a candidate. Lessons in
        whose place it was proposed are retired with it, unless they are pinned."""
        from reflect.store import lesson_links, lessons

        with self.context.store.write() as s:
            now = self._turn(s, lesson_id, "active", reason, trust="clean")
            for old in lesson_links.proposed_for(s, lesson_id):
                if old.status != "retired" and not old.pinned:
                    why = f"lesson {lesson_id} was approved in its place"
                    lessons.revise(s, old.id or 0, author="human", reason=why, status="retired")
                    lesson_links.link(s, lesson_id, old.id, "supersedes", why)
            return now

    def reject(self, lesson_id: int, *, reason: str) -> Lesson:
        """Retire it for good: no review brings it back. UsageError without a reason."""
        from reflect.store import lessons

        if not reason.strip():
            raise UsageError("A lesson is rejected for a reason.", "Say why: --why '...'")
        with self.context.store.write() as s:
            # Pinned, or a lesson that a model had retired before could be learned again.
            words: dict[str, Any] = {"author": "human", "reason": reason, "pinned": True}
            return lessons.revise(s, lesson_id, status="retired", **words)

    def pin(self, lesson_id: int) -> Lesson:
        """No review may change or retire it."""
        return self.edit(lesson_id, pinned=True)

    def unpin(self, lesson_id: int) -> Lesson:
        """Reviews may change it again."""
        return self.edit(lesson_id, pinned=False)

    def _turn(self, s: Session, lesson_id: int, status: str, reason: str, **changes: Any) -> Lesson:
        from reflect.store import lessons

        head = lessons.get(s, lesson_id)
        if head.status == status or (head.status, status) == ("distilled", "active"):
            return head  # a lesson that the weights hold is settled already
        return lessons.revise(s, lesson_id, author="human", reason=reason, status=status, **changes)

    def undo(self, lesson_id: int) -> Lesson:
        """Take back the last change of a lesson, as a new version; undoing that does it again."""
        from reflect.store import lessons

        with self.context.store.write() as s:
            return lessons.undo(s, lesson_id)

    def merge(self, *, scope: str | None = None, dry_run: bool = False) -> Merged:
        """Make one lesson of those that say the same: see `reflect.lessons.deduplicate`. Each
        change has its undo."""
        from reflect.lessons.deduplicate import merge

        return merge(
            lambda: self.context.model,
            self.context.store,
            self.context.settings,
            scope=scope,
            dry_run=dry_run,
        )

    # -- never learn this

    def forbid(self, pattern: str, *, kind: str = "words", why: str = "") -> Rule:
        """No edit of a model that matches will be taken: see `reflect.store.forbidden_rules`.
        `kind` is words or regex."""
        from reflect.store import forbidden_rules

        with self.context.store.write() as s:
            return forbidden_rules.add(s, pattern, kind=kind, why=why, profile=self.profile)

    def forbidden(self, *, lifted: bool = False) -> Sequence[Rule]:
        """The rules that hold; with `lifted` also those that did."""
        from reflect.store import forbidden_rules

        with self.context.store.read() as s:
            return forbidden_rules.listing(s, self.profile, lifted=lifted)

    def allow(self, rule_id: int) -> Rule:
        """Lift a rule."""
        from reflect.store import forbidden_rules

        with self.context.store.write() as s:
            return forbidden_rules.lift(s, rule_id, self.profile)

    def breaking(self, rule: Rule) -> Sequence[Lesson]:
        """Lessons in use, or quarantined, that the rule would forbid."""
        from reflect.store import forbidden_rules

        return [
            row
            for row in self.list()
            if row.status != "retired" and forbidden_rules.matches(rule, row.when, row.do)
        ]

    # -- moving

    def export(self, format: str = "jsonl", *, scope: str | None = None) -> str:
        """The lessons as text: `jsonl` (all, lossless), `markdown` (to read) or `agents` (the block
        of AGENTS.md)."""
        from reflect.export import formats

        with self.context.store.read() as s:
            return formats.text(s, format, profile=self.profile, scope=scope)

    def export_to(
        self,
        path: str | Path,
        format: str = "jsonl",
        *,
        scope: str | None = None,
        overwrite: bool = False,
    ) -> Sequence[Path]:
        """The same into a file, whole or not at all; the files that changed by it.

        `agents` puts the block into the file and leaves every other byte as it is; `skill` makes a
        folder per scope in the folder `path`. UsageError when something of another's making stands
        there and `overwrite` is not set.
        """
        from reflect.export import formats

        words: dict[str, Any] = {"profile": self.profile, "scope": scope, "overwrite": overwrite}
        with self.context.store.read() as s:
            return formats.save(s, Path(path).expanduser(), format, **words)

    def import_(self, path: str | Path, *, trust: bool = False) -> Sequence[Imported]:
        """Lessons from a JSON Lines export ("-" is stdin), all or, when a line is malformed, none.

        `trust` is for one's own file: everything as it was. Without it the texts come in as
        candidates. The rules are those of `reflect.export.restore`.
        """
        from reflect.export import lines
        from reflect.export.restore import restore

        name = "stdin" if str(path) == "-" else str(path)
        data = sys.stdin.buffer.read() if name == "stdin" else Path(path).expanduser().read_bytes()
        found = lines.load(data, name)
        with self.context.store.write() as s:
            words: dict[str, Any] = {
                "trust": trust,
                "source": Path(name).name,
                "count_tokens": self._count,
            }
            return restore(s, found, profile=self.profile, **words)

    def backup(self, path: str | Path | None = None) -> Path:
        """Copy the whole database, of all profiles, while others may use it; never overwrites.

        By default beside the database, under its name and the time; in a folder, under that name.
        Adapters are files of their own and are not in it.
        """
        from reflect.store import backup

        return backup.backup(
            self.context.store, Path(path).expanduser() if path is not None else None
        )

    def _cost(self, when: str, do: str) -> int:
        """Tokens of its line in a prompt; 0, not counted, where the model is not on this machine.

        UsageError when it is too long; what cannot be counted has at least as many tokens as words.
        """
        from reflect.lessons.selection import MAX_TOKENS, format_lesson

        text = format_lesson(when, do)
        tokens = self._count(text)
        most = min(self.context.settings.lesson_budget, MAX_TOKENS)
        if max(tokens, len(text.split())) > most:
            told = (
                f"{tokens or len(text.split())} tokens are too long for a lesson (at most {most})."
            )
            raise UsageError(told, "Say it shorter, or make two of it.")
        return tokens

    def _count(self, text: str) -> int:
        try:
            return self.context.count_tokens(text)
        except ModelError:
            return 0
