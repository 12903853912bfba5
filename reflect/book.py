"""The lessons of a workspace, as a person reads and edits them.

A person's words are theirs: what is added or rewritten by hand is pinned, so that no reflection touches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from reflect.errors import ModelError, UsageError

if TYPE_CHECKING:
    from reflect.records import Lesson, LessonVersion
    from reflect.workspace import Workspace


class Lessons:
    """One profile's lessons. Every change is a new version with author `human`; nothing is deleted."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.profile = ws.settings.profile

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self.list())

    def __len__(self) -> int:
        from reflect.store import lessons

        with self.ws.store.read() as s:
            return lessons.count(s, profile=self.profile)

    # -- reading

    def list(
        self, *, status: str | None = None, scope: str | None = None, limit: int | None = None
    ) -> Sequence[Lesson]:
        """Lessons by id. UnknownName for a status that there is not."""
        from reflect.store import lessons

        with self.ws.store.read() as s:
            return lessons.listing(s, profile=self.profile, status=status, scope=scope, limit=limit)

    def get(self, lesson_id: int) -> Lesson:
        from reflect.store import lessons

        with self.ws.store.read() as s:
            return lessons.get(s, lesson_id)

    def history(self, lesson_id: int) -> Sequence[LessonVersion]:
        """All versions, oldest first."""
        from reflect.store import lessons

        with self.ws.store.read() as s:
            lessons.get(s, lesson_id)  # an unknown id is an error, not an empty history
            return lessons.history(s, lesson_id)

    def search(self, text: str, *, limit: int = 20) -> Sequence[tuple[Lesson, float]]:
        """(lesson, score), best first; any text is a safe query."""
        from reflect.store import lessons

        with self.ws.store.read() as s:
            return lessons.search(s, text, profile=self.profile, limit=limit)

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
        """Write a lesson by hand: active at once. `scope` is a taskset's name, "" is everywhere."""
        from reflect.store import lessons

        with self.ws.store.write() as s:
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
                tokens=self._cost(when, do),
            )

    def edit(self, lesson_id: int, *, expect_version: int | None = None, reason: str = "", **changes: Any) -> Lesson:
        """Change any of when, do, scope, tags, pinned. New text is pinned, and returns to the prompt if it was slept.

        Raises Conflict when somebody else was faster than `expect_version`.
        """
        from reflect.store import lessons

        with self.ws.store.write() as s:
            head = lessons.get(s, lesson_id)
            when, do = (" ".join(changes.get(name, getattr(head, name)).split()) for name in ("when", "do"))
            if (when, do) != (head.when, head.do):
                changes = {"pinned": True, **changes, "tokens": self._cost(when, do)}
            words: dict[str, Any] = {"author": "human", "reason": reason, "expect_version": expect_version}
            return lessons.revise(s, lesson_id, **words, **changes)

    def retire(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Out of every prompt and of the next night; an adapter that holds it holds it until then."""
        return self._turn(lesson_id, "retired", reason)

    def approve(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Release a quarantined lesson, bring back a retired one, or settle a candidate."""
        return self._turn(lesson_id, "active", reason, trust="clean")

    def _turn(self, lesson_id: int, status: str, reason: str, **changes: Any) -> Lesson:
        from reflect.store import lessons

        with self.ws.store.write() as s:
            head = lessons.get(s, lesson_id)
            if head.status == status or (head.status, status) == ("distilled", "active"):
                return head  # a lesson that the weights hold is settled already
            return lessons.revise(s, lesson_id, author="human", reason=reason, status=status, **changes)

    def undo(self, lesson_id: int) -> Lesson:
        """Take back the last change of a lesson, as a new version; undoing that does it again."""
        from reflect.store import lessons

        with self.ws.store.write() as s:
            return lessons.undo(s, lesson_id)

    def _cost(self, when: str, do: str) -> int:
        """Tokens of its line in a prompt; 0, not counted, where the model is not on this machine."""
        from reflect.day.lessons import line

        try:
            return self.ws.count_tokens(line(when, do))
        except ModelError:
            return 0
