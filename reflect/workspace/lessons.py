"""The lessons of a workspace, for a person to read and edit.

What a person adds or rewrites is pinned: no reflection changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from reflect.errors import ModelError, UsageError
from reflect.evaluation.followed import Judged, judge_sample, read_checks
from reflect.export import formats, lines
from reflect.export.restore import Imported, restore
from reflect.export.wording import Piece, word_diff
from reflect.lessons.deduplicate import Merged, merge
from reflect.lessons.selection import MAX_TOKENS, format_lesson
from reflect.reading import expand_home, read_bytes, read_stdin
from reflect.rollouts.judge import judge_of
from reflect.store import backup, followed, forbidden_rules, lesson_evidence, lessons, nights
from reflect.tasksets import scope_problem
from reflect.types import Author, LessonStatus, LinkKind, RuleKind, Trust
from reflect.workspace.adapters import AdapterManager

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Unpack

    from sqlmodel import Session

    from reflect.records import Lesson, LessonLink, LessonVersion, Rule
    from reflect.workspace.context import WorkspaceContext

TRAFFIC = "traffic"  # the default taskset of `reflect serve`
MOST_BYTES = 256 * 2**20  # of an import
DIFF_FIELDS = ("when", "do", "scope", "tags", "status", "pinned", "trust")


class Changes(TypedDict, total=False):
    """The fields of a lesson that a person edits."""

    when: str
    do: str
    scope: str
    tags: Sequence[str]
    pinned: bool


class Revision(Changes, total=False):
    """The fields of a lesson that an edit sets."""

    tokens: int
    status: LessonStatus
    trust: Trust


@dataclass(frozen=True)
class Diff:
    """The differences between two versions of a lesson."""

    lesson_id: int
    old: int
    new: int
    fields: dict[str, Sequence[Piece]]
    """Field -> its pieces, for the fields that differ."""


class Lessons:
    """One profile's lessons. Every change is a new version with author `human`; nothing is
    deleted."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context
        self.profile = context.settings.profile

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self.list())

    def __len__(self) -> int:
        return self.context.read(lessons.count, profile=self.profile)

    # -- reading

    def list(
        self, *, status: str | None = None, scope: str | None = None, limit: int | None = None
    ) -> Sequence[Lesson]:
        """Lessons by id. Raises UnknownName for an unknown status."""
        return self.context.read(
            lessons.listing, profile=self.profile, status=status, scope=scope, limit=limit
        )

    def get(self, lesson_id: int) -> Lesson:
        """One lesson. Raises UnknownName for an unknown id."""
        return self.context.read(lessons.get, lesson_id)

    def history(self, lesson_id: int) -> Sequence[LessonVersion]:
        """All versions, oldest first. Raises UnknownName for an unknown id."""
        return self.context.read(lessons.history, lesson_id)

    def search(self, text: str, *, limit: int = 20) -> Sequence[tuple[Lesson, float]]:
        """(lesson, score), best match first. Any text is a valid query."""
        return self.context.read(lessons.search, text, profile=self.profile, limit=limit)

    def diff(self, lesson_id: int, old: int | None = None, new: int | None = None) -> Diff:
        """The word-level diff from version `old` (by default the parent of `new`) to `new` (by
        default the newest)."""
        with self.context.store.read() as s:
            head = lessons.get(s, lesson_id)
            last = lessons.version(s, lesson_id, head.version if new is None else new)
            before = (last.parent or last.version) if old is None else old
            first = lessons.version(s, lesson_id, before)
        fields: dict[str, Sequence[Piece]] = {}
        for name in DIFF_FIELDS:
            values = [getattr(row, name) for row in (first, last)]
            if values[0] != values[1]:
                was, now = (", ".join(x) if isinstance(x, list | tuple) else str(x) for x in values)
                fields[name] = word_diff(was, now)
        return Diff(lesson_id, first.version, last.version, fields)

    def stats(self) -> Sequence[lesson_evidence.Cost]:
        """The cost and the measured effect of each lesson, by id."""
        return self.context.read(lesson_evidence.costs, self.profile)

    def followed_shares(self, lesson_ids: Sequence[int]) -> dict[int, followed.FollowedShares]:
        """lesson -> how many rollouts followed it; lessons without a result are left out."""
        return self.context.read(followed.shares, lesson_ids)

    def links(self, lesson_id: int) -> Sequence[LessonLink]:
        """The lessons that replace this one or that it replaces, oldest first."""
        return self.context.read(lessons.links, lesson_id)

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
        """Write a lesson by hand; it is active at once. `scope`: a taskset's name, "" = everywhere.

        Raises UsageError if a lesson with this text exists, or if the text is empty or too long.
        """
        tokens = self.tokens(when, do)
        self._check_scope(scope)
        with self.context.store.write() as s:
            same = lessons.find_exact(s, when, do, self.profile)
            if same is not None:
                hint = f"See: reflect lessons show {same.id}"
                raise UsageError(f"Lesson {same.id} ({same.status}) says so already.", hint)
            return lessons.add(
                s,
                when=when,
                do=do,
                author=Author.HUMAN,
                reason=reason,
                scope=scope,
                tags=tuple(tags),
                status=LessonStatus.ACTIVE,
                pinned=pinned,
                profile=self.profile,
                tokens=tokens,
            )

    def edit(
        self,
        lesson_id: int,
        *,
        expect_version: int | None = None,
        reason: str = "",
        **changes: Unpack[Changes],
    ) -> Lesson:
        """Change a lesson. New text is pinned, and returns to the prompt if it was distilled.

        Raises Conflict if the lesson is no longer at `expect_version`.
        """
        with self.context.store.write() as s:
            head = lessons.get(s, lesson_id)
            if changes.get("scope", head.scope) != head.scope:
                self._check_scope(changes["scope"])
            when = " ".join(changes.get("when", head.when).split())
            do = " ".join(changes.get("do", head.do).split())
            fields = cast("Revision", changes)
            if (when, do) != (head.when, head.do):
                fields.setdefault("pinned", True)
                fields["tokens"] = self.tokens(when, do)
            return lessons.revise(
                s,
                lesson_id,
                author=Author.HUMAN,
                reason=reason,
                expect_version=expect_version,
                **fields,
            )

    def retire(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Remove a lesson from every prompt and from the next night. An adapter that was trained on
        it keeps it until then (see `revoke`)."""
        return self.context.write(_set_status, lesson_id, LessonStatus.RETIRED, reason)

    def revoke(self, lesson_id: int, *, reason: str = "") -> nights.Revoked:
        """Remove a lesson everywhere at once: it is retired for good, and the profile returns to
        weights that were not trained on it.

        The next night is trained without it, and its gate checks that it is gone. `undo` restores
        the text.
        """
        revoked = self.context.write(nights.revoke, lesson_id, reason)
        if revoked.left is not None:
            AdapterManager(self.context).switch()
        return revoked

    def approve(self, lesson_id: int, *, reason: str = "") -> Lesson:
        """Release a quarantined lesson, restore a retired one, or activate a candidate. Unpinned
        lessons that it was proposed to replace are retired."""
        with self.context.store.write() as s:
            lesson = _set_status(s, lesson_id, LessonStatus.ACTIVE, reason, trust=Trust.CLEAN)
            for old in lessons.proposed_for(s, lesson_id):
                if old.status != LessonStatus.RETIRED and not old.pinned:
                    why = f"lesson {lesson_id} was approved in its place"
                    _set_status(s, old.id, LessonStatus.RETIRED, why)
                    lessons.link(s, lesson_id, old.id, LinkKind.SUPERSEDES, why)
            return lesson

    def reject(self, lesson_id: int, *, reason: str) -> Lesson:
        """Retire a lesson for good: no reflection restores it. Raises UsageError without a
        reason."""
        if not reason.strip():
            raise UsageError("A lesson is rejected for a reason.", "Say why: --why '...'")
        with self.context.store.write() as s:
            # Pinned, or a lesson that a model had retired before could be learned again.
            changes: Revision = {"pinned": True, "status": LessonStatus.RETIRED}
            return lessons.revise(s, lesson_id, author=Author.HUMAN, reason=reason, **changes)

    def pin(self, lesson_id: int) -> Lesson:
        """Protect a lesson: no reflection changes or retires it."""
        return self.edit(lesson_id, pinned=True)

    def unpin(self, lesson_id: int) -> Lesson:
        """Let reflections change a lesson again."""
        return self.edit(lesson_id, pinned=False)

    def undo(self, lesson_id: int) -> Lesson:
        """Revert the last change of a lesson, as a new version; a second undo redoes it."""
        return self.context.write(lessons.undo, lesson_id)

    def merge(self, *, scope: str | None = None, dry_run: bool = False) -> Merged:
        """Merge lessons that say the same: see `reflect.lessons.deduplicate`. Each change can be
        undone."""
        context = self.context
        return merge(
            lambda: context.model, context.store, context.settings, scope=scope, dry_run=dry_run
        )

    # -- were they followed?

    def set_check(
        self, lesson_id: int, pattern: str, *, kind: str = RuleKind.REGEX
    ) -> followed.FollowedShares | None:
        """Set the check that tells whether an answer followed the lesson, and read the newest
        rollouts with it. None without such rollouts. UsageError for a broken pattern."""
        self.context.write(followed.set_check, lesson_id, kind, pattern)
        read_checks(self.context.store, self.profile, [lesson_id])
        return self.followed_shares([lesson_id]).get(lesson_id)

    def remove_check(self, lesson_id: int) -> bool:
        """Delete the check of a lesson and its results. False if there is none."""
        return self.context.write(followed.remove_check, lesson_id)

    def judge_followed(self, lesson_id: int, sample: int, seed: int = 0) -> Judged:
        """Let the judge (setting `judge`, else the model) say of `sample` rollouts whether they
        followed the lesson."""
        context = self.context
        judge = judge_of(context.settings, lambda: context.model)
        return judge_sample(context.store, judge, self.get(lesson_id), sample, seed)

    # -- rules: what must never be learned

    def forbid(self, pattern: str, *, kind: str = RuleKind.WORDS, why: str = "") -> Rule:
        """Refuse every edit by a model that matches: see `reflect.store.forbidden_rules`. `kind` is
        words or regex."""
        return self.context.write(
            forbidden_rules.add, pattern, kind=kind, why=why, profile=self.profile
        )

    def forbidden(self, *, lifted: bool = False) -> Sequence[Rule]:
        """The rules in force; with `lifted` also the lifted ones."""
        return self.context.read(forbidden_rules.listing, self.profile, lifted=lifted)

    def allow(self, rule_id: int) -> Rule:
        """Lift a rule."""
        return self.context.write(forbidden_rules.lift, rule_id, self.profile)

    def breaking(self, rule: Rule) -> Sequence[Lesson]:
        """The lessons, except retired ones, that the rule would forbid."""
        return [
            row
            for row in self.list()
            if row.status != LessonStatus.RETIRED
            and forbidden_rules.matches(rule, row.when, row.do)
        ]

    # -- export and import

    def export(self, format: str = "jsonl", *, scope: str | None = None) -> str:
        """The lessons as text: `jsonl` (all, lossless), `markdown` (to read) or `agents` (the block
        of AGENTS.md)."""
        return self.context.read(formats.text, format, profile=self.profile, scope=scope)

    def export_to(
        self,
        path: str | Path,
        format: str = "jsonl",
        *,
        scope: str | None = None,
        overwrite: bool = False,
    ) -> Sequence[Path]:
        """Write the lessons to a file, whole or not at all. Returns the files that changed.

        `agents` writes the block into the file and leaves every other byte as it is; `skill` writes
        one folder per scope into the folder `path`. Raises UsageError if a file of another origin
        exists there and `overwrite` is not set.
        """
        return self.context.read(
            formats.save,
            expand_home(path),
            format,
            profile=self.profile,
            scope=scope,
            overwrite=overwrite,
        )

    def import_(self, path: str | Path, *, trust: bool = False) -> Sequence[Imported]:
        """Read lessons from a JSON Lines export ("-" = stdin): all, or none if a line is malformed.

        `trust` is for your own file: everything is restored as it was. Without it the texts become
        candidates. The rules are those of `reflect.export.restore`.
        """
        stdin = str(path) == "-"
        name = "stdin" if stdin else str(path)
        data = read_stdin(MOST_BYTES) if stdin else read_bytes(path, MOST_BYTES)
        return self.context.write(
            restore,
            lines.load(data, name),
            profile=self.profile,
            trust=trust,
            source=Path(name).name,
            count_tokens=self._count,
        )

    def backup(self, path: str | Path | None = None) -> Path:
        """Copy the whole database with all profiles while others use it; never overwrites a file.

        `path`: a file, or a folder; by default next to the database, with the time in its name.
        Adapters are separate files and not included.
        """
        target = expand_home(path) if path is not None else None
        return backup.backup(self.context.store, target)

    def _check_scope(self, scope: str) -> None:
        """Warn if no taskset, run or lesson of the profile has the name `scope`."""
        used = {TRAFFIC, *self.context.read(lessons.scopes_in_use, self.profile)}
        if problem := scope_problem(scope, used):
            self.context.complaints.append(problem)

    def tokens(self, when: str, do: str) -> int:
        """Tokens of a lesson's line in a prompt; 0 if the model is not available. UsageError if it
        is too long; without the model its words are counted."""
        text = format_lesson(when, do)
        tokens, words = self._count(text), len(text.split())
        limit = min(self.context.settings.lesson_budget, MAX_TOKENS)
        if max(tokens, words) > limit:
            raise UsageError(
                f"{tokens or words} tokens are too long for a lesson (at most {limit}).",
                "Shorten it, or split it into two lessons.",
            )
        return tokens

    def _count(self, text: str) -> int:
        try:
            return self.context.count_tokens(text)
        except ModelError:
            return 0


def _set_status(
    s: Session, lesson_id: int | None, status: LessonStatus, reason: str, trust: Trust | None = None
) -> Lesson:
    head = lessons.get(s, lesson_id)
    if head.status == status or (head.status, status) == ("distilled", "active"):
        return head  # a lesson in the weights is active already
    changes: Revision = {"status": status}
    if trust:
        changes["trust"] = trust
    return lessons.revise(s, lesson_id, author=Author.HUMAN, reason=reason, **changes)
