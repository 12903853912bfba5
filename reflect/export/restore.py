"""Lessons from a file into a database: what is new, what goes on, what is here already. Nothing is
overwritten.

A stranger's file (the default): the newest text of each lesson becomes a new candidate, untrusted,
unpinned, with its own history from now on; retired and forbidden ones stay out. Text that the
guards find suspicious is quarantined.

One's own file (`trust`): every lesson as it was, history, status, pins and trials. A lesson that is
here already and has more versions in the file is continued. Suspicious text is quarantined all the
same, unless the file says that a person wrote or approved it.

In both, a lesson whose text is here already (case, spacing, punctuation and articles aside) is left
as it is here. Not covered: two files that change the same lesson differently; the second comes in
as a lesson of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from reflect.export.lines import LessonLine, TrialLine, VersionLine, as_text, line_of
from reflect.lessons import safety
from reflect.lessons.selection import MAX_TOKENS, format_lesson
from reflect.lessons.similarity import identity
from reflect.prompts import sanitize_line
from reflect.records import Lesson, LessonVersion, Rule, Trial
from reflect.store import backup, followed, forbidden_rules
from reflect.store import lessons as db
from reflect.types import Author, LessonStatus, QuarantineReason, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmodel import Session

Key = tuple[tuple[str, ...], tuple[str, ...]]
Origin = tuple[datetime, str, str]  # of a lesson: when it was first written, and its first text


@dataclass(frozen=True)
class Imported:
    """The outcome of a line: + new, ~ continued, = exists already, ? new but quarantined, ! left
    out."""

    sign: str
    lesson_id: int | None
    when: str
    do: str
    why: str = ""


@dataclass
class Here:
    """The lessons of the database by their text, and histories by their beginning."""

    texts: dict[Key, Lesson] = field(default_factory=dict)
    origins: dict[Origin, tuple[Lesson, list[VersionLine], list[TrialLine]]] = field(
        default_factory=dict
    )
    forbidden: Sequence[Rule] = ()


def restore(
    s: Session,
    lines: Sequence[LessonLine],
    *,
    profile: str,
    trust: bool,
    source: str,
    count_tokens: Callable[[str], int],
) -> list[Imported]:
    """Import in the caller's transaction, in the order of the file; one outcome per line. `source`
    is the file's name, for the history."""
    here = Here(forbidden=forbidden_rules.listing(s, profile))
    for lesson in db.listing(s, profile):
        here.texts.setdefault(key(lesson.when, lesson.do), lesson)
    if not trust:
        return [_strange(s, one, here, profile, source, count_tokens) for one in lines]
    for lesson, versions, trials, *_ in backup.whole(s, profile):
        past = line_of(lesson, versions, trials)
        own = past.versions[: len(versions)]  # without the closing one, which is only in files
        here.origins[origin(past)] = (lesson, own, past.trials)
    done = [_own(s, one, here, profile, source) for one in lines]
    _link(s, lines, done)
    for one, row in zip(lines, done, strict=True):
        if one.check and row.lesson_id and (row.when, row.do) == (one.head.when, one.check.do):
            followed.set_check(s, row.lesson_id, one.check.kind, one.check.pattern)
    return done


def key(when: str, do: str) -> Key:
    """Condition and advice, but for case, punctuation and articles."""
    return identity(when), identity(do)


def origin(one: LessonLine) -> Origin:
    """The first version of a lesson, which identifies it across databases."""
    first = one.versions[0]
    return first.created, first.when, first.do


# -- a stranger's


def _strange(
    s: Session,
    one: LessonLine,
    here: Here,
    profile: str,
    source: str,
    count_tokens: Callable[[str], int],
) -> Imported:
    head = one.head
    when, do = sanitize_line(head.when), sanitize_line(head.do)
    if head.status == LessonStatus.RETIRED:
        return Imported("!", None, when, do, "it is retired there")
    if not when or not do:
        return Imported("!", None, when, do, "it has no readable text")
    if same := here.texts.get(key(when, do)):
        return Imported("=", same.id, when, do, f"lesson {same.id} says so ({same.status})")
    if rule := forbidden_rules.forbidding(here.forbidden, when, do):
        return Imported("!", None, when, do, rule)
    tokens = count_tokens(format_lesson(when, do))
    if tokens > MAX_TOKENS:
        why = f"{tokens} tokens are too long for a lesson (at most {MAX_TOKENS})"
        return Imported("!", None, when, do, why)
    doubts = _doubts(head.when, head.do)
    if head.status == LessonStatus.QUARANTINED:
        doubts.append("it is quarantined there")
    why = "; ".join(doubts)
    lesson = db.add(
        s,
        when=when,
        do=do,
        author=Author.HUMAN,  # the person who ran the import
        reason=f"imported from {source}{f': {why}' if why else ''}",
        scope=sanitize_line(head.scope),
        tags=[tag for tag in map(sanitize_line, head.tags) if tag],
        status=LessonStatus.QUARANTINED if doubts else LessonStatus.CANDIDATE,
        quarantine=QuarantineReason.IMPORTED if doubts else None,
        trust=Trust.UNTRUSTED,
        profile=profile,
        tokens=tokens,
    )
    here.texts[key(when, do)] = lesson
    return Imported("?" if doubts else "+", lesson.id, when, do, why)


# -- one's own


def _own(s: Session, one: LessonLine, here: Here, profile: str, source: str) -> Imported:
    when, do = one.head.when, one.head.do
    lesson, own, measured = here.origins.get(origin(one), (None, [], []))
    if lesson and own[: len(one.versions)] == one.versions[: len(own)]:
        more = one.versions[len(own) :]
        if not more or (more[0].closing and len(more) == 1):
            return Imported("=", lesson.id, when, do)
        return _go_on(s, lesson, one, more, [t for t in one.trials if t not in measured], source)
    if same := here.texts.get(key(when, do)):
        return Imported("=", same.id, when, do, f"lesson {same.id} says so ({same.status})")
    last = as_text(one.versions)[-1]
    new = Lesson.model_validate(
        last.content() | {"id": one.id, "profile": profile, "version": last.version}
        | {"created": one.created, "updated": one.updated}
    )  # fmt: skip
    backup.put(s, new, _versions(as_text(one.versions)), _trials(one.trials))
    why = _quarantine(s, new, one, source)
    return Imported("?" if why else "+", new.id, when, do, why)


def _go_on(
    s: Session,
    lesson: Lesson,
    one: LessonLine,
    more: list[VersionLine],
    trials: list[TrialLine],
    source: str,
) -> Imported:
    """The versions that the file has beyond those here, which are its beginning."""
    more = as_text(more)
    for name, value in more[-1].content().items():
        setattr(lesson, name, value)
    lesson.version, lesson.updated = more[-1].version, one.updated
    backup.extend(s, lesson, _versions(more), _trials(trials))
    why = _quarantine(s, lesson, one, source)
    outcome = why or f"now version {lesson.version}"
    return Imported("?" if why else "~", lesson.id, lesson.when, lesson.do, outcome)


def _link(s: Session, lines: Sequence[LessonLine], done: Sequence[Imported]) -> None:
    """The links between lessons of the file, under the ids that these have here. One that is here
    already stays."""
    now = {one.id: became.lesson_id for one, became in zip(lines, done, strict=True)}
    for one in lines:
        mine = now[one.id]
        here = {(x.other_id, x.kind) for x in db.links_from(s, mine)}
        for x in one.links:
            other = now.get(x.other)
            if mine and other and mine != other and (other, x.kind) not in here:
                db.link(s, mine, other, x.kind, x.why).created = x.created


def _quarantine(s: Session, lesson: Lesson, one: LessonLine, source: str) -> str:
    """Quarantine a suspicious lesson that no person wrote or approved; why, or ""."""
    doubts = _doubts(lesson.when, lesson.do)
    vouched = any(
        v.author == Author.HUMAN and (v.when, v.do) == (one.head.when, one.head.do)
        for v in one.versions
    )
    if not doubts or vouched or lesson.status in (LessonStatus.QUARANTINED, LessonStatus.RETIRED):
        return ""
    why = "; ".join(doubts)
    db.revise(
        s,
        lesson.id,
        author=Author.HUMAN,
        reason=f"imported from {source}: {why}",
        status=LessonStatus.QUARANTINED,
        quarantine=QuarantineReason.IMPORTED,
    )
    return why


def _doubts(when: str, do: str) -> list[str]:
    """The forbidden things that the text names, also when invisible characters divide them."""
    texts = f"{when} {do}", f"{sanitize_line(when)} {sanitize_line(do)}"
    names = dict.fromkeys(name for text in texts for name in safety.suspicions(text))
    return [f"it names {name}" for name in names]


def _versions(rows: Sequence[VersionLine]) -> list[LessonVersion]:
    return [LessonVersion.model_validate(row.model_dump() | {"lesson_id": 0}) for row in rows]


def _trials(rows: Sequence[TrialLine]) -> list[Trial]:
    return [Trial.model_validate(row.model_dump() | {"lesson_id": 0}) for row in rows]
