"""Lessons as JSON Lines: a header, then one line per lesson with all its versions and the trials
that travel.

    {"format":"reflect lessons","version":1}
    {"id":3,"created":"2026-01-31T22:15:07.120000Z","updated":"...","versions":[{"version":1,...}],"trials":[],"links":[]}

The same lessons are the same bytes: by id, keys in the order below, times in UTC, unicode as it is.
What points into one database stays behind: which reflection or night wrote a version, exposures,
and trials that were measured on an adapter. A file holds no weights, so a lesson that the weights
held ends with one more version, in which it is text.
"""

from __future__ import annotations

import codecs
import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from reflect.errors import UsageError
from reflect.export.files import text_of
from reflect.reading import clipped, shortened
from reflect.store import legacy
from reflect.store.lessons import CONTENT
from reflect.types import (
    Author,
    Json,
    LessonStatus,
    LinkKind,
    RuleKind,
    TrialKind,
    TrialVerdict,
    Trust,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from enum import StrEnum

    from reflect.records import FollowedCheck, Lesson, LessonLink, LessonVersion, Trial

FORMAT, VERSION = "reflect lessons", 1
AS_TEXT = "exported without the weights that held it"  # the reason of the closing version


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as e:
        raise ValueError("the time is out of range") from e


def _storable(text: str) -> str:
    return text.replace("\0", " ")  # PostgreSQL stores no NUL


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("it is no number")
    return value


def _one_of(names: type[StrEnum]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in values(names):
            raise ValueError(f"'{value}' is none of {', '.join(names)}")
        return value

    return check


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


Id = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, AfterValidator(_number)]
Text = Annotated[str, AfterValidator(_storable)]
Words = Annotated[Text, AfterValidator(_not_blank)]
Time = Annotated[AwareDatetime, AfterValidator(_utc)]


class Line(BaseModel):
    """One line of an export file: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")


class VersionLine(Line):
    """One version, as in `LessonVersion`."""

    version: Id
    parent: Id | None
    author: Annotated[str, AfterValidator(_one_of(Author))]
    reason: Text
    when: Words
    do: Words
    scope: Text
    tags: list[Text]
    status: Annotated[str, AfterValidator(_one_of(LessonStatus))]
    pinned: bool
    trust: Annotated[str, AfterValidator(_one_of(Trust))]
    tokens: Count
    created: Time
    quarantine: Annotated[Text | None, Field(exclude_if=lambda v: v is None)] = None
    closing: Annotated[bool, Field(exclude_if=lambda v: not v)] = False

    @model_validator(mode="after")
    def _facts(self) -> VersionLine:
        """Files of earlier versions hold these facts only in their sentences."""
        if self.quarantine is None:
            self.quarantine = legacy.quarantine(self.author, self.status, self.reason)
        self.closing = self.closing or legacy.closing(self.author, self.status, self.reason)
        return self

    def content(self) -> Json:
        """The fields that make up the content of a version."""
        return {name: getattr(self, name) for name in CONTENT}


class TrialLine(Line):
    """A measured effect on the bare base model, as in `Trial`."""

    version: Id
    kind: Annotated[str, AfterValidator(_one_of(TrialKind))]
    effect: Number
    low: Number
    high: Number
    n: Count
    verdict: Annotated[str, AfterValidator(_one_of(TrialVerdict))]
    model_fingerprint: Text
    measure: Text = ""  # files of before it was recorded have none
    moved: Id | None  # the version that its verdict made
    created: Time


class LinkLine(Line):
    """The lesson replaces the lesson `other` of the same file, as in `LessonLink`."""

    other: Id
    kind: Annotated[str, AfterValidator(_one_of(LinkKind))]
    why: Text
    created: Time


class CheckLine(Line):
    """The pattern of answers that follow the lesson, as in `FollowedCheck`."""

    do: Text
    kind: Annotated[str, AfterValidator(_one_of(RuleKind))]
    pattern: Words


class LessonLine(Line):
    """A lesson with all its versions, oldest first."""

    id: Id
    created: Time
    updated: Time
    versions: Annotated[list[VersionLine], Field(min_length=1)]
    trials: list[TrialLine]
    links: list[LinkLine] = Field(default_factory=list)
    check: Annotated[CheckLine | None, Field(exclude_if=lambda v: v is None)] = None

    @property
    def head(self) -> VersionLine:
        """The newest version."""
        return self.versions[-1]

    @model_validator(mode="after")
    def _history(self) -> LessonLine:
        if [v.version for v in self.versions] != list(range(1, len(self.versions) + 1)):
            raise ValueError("versions must be numbered 1, 2, 3 ...")
        if any(v.parent is not None and v.parent >= v.version for v in self.versions):
            raise ValueError("the parent of a version must be an earlier one")
        if any(trial.version > len(self.versions) for trial in self.trials):
            raise ValueError("a trial is of a version that is not there")
        return self


def line_of(
    lesson: Lesson,
    versions: Iterable[LessonVersion],
    trials: Iterable[Trial],
    links: Iterable[LessonLink] = (),
    check: FollowedCheck | None = None,
) -> LessonLine:
    """The line of a lesson. `trials` are those without an adapter, `links` those in which it
    replaces another."""
    history = [VersionLine.model_validate(_fields(row, VersionLine)) for row in versions]
    return LessonLine(
        id=lesson.id or 0,
        created=lesson.created,
        updated=lesson.updated,
        versions=as_text(history),
        trials=[TrialLine.model_validate(_fields(row, TrialLine)) for row in trials],
        links=[
            LinkLine(other=x.other_id, kind=x.kind, why=x.why, created=x.created) for x in links
        ],
        check=CheckLine.model_validate(_fields(check, CheckLine)) if check else None,
    )


def as_text(history: list[VersionLine]) -> list[VersionLine]:
    """The history, closed by a version of status active when it ends in the weights."""
    last = history[-1]
    if last.status != LessonStatus.DISTILLED:
        return history
    facts = {"author": Author.ROLLBACK, "reason": AS_TEXT, "closing": True}
    facts |= {"version": last.version + 1, "parent": last.version, "status": LessonStatus.ACTIVE}
    return [*history, last.model_copy(update=facts)]


def dump(lines: Iterable[LessonLine]) -> str:
    """The whole file, header first; every line ends with a newline."""
    header = json.dumps({"format": FORMAT, "version": VERSION}, separators=(",", ":"))
    return "".join(f"{text}\n" for text in (header, *(line.model_dump_json() for line in lines)))


def load(data: bytes, name: str) -> list[LessonLine]:
    """The lessons of a file. UsageError that names file, line and field for the first thing that is
    wrong."""
    lines: dict[int, LessonLine] = {}  # by id
    numbers: dict[int, int] = {}  # id -> number of its line
    head = False
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        data = data.decode("utf-16", errors="replace").encode(errors="replace")
    for number, raw in enumerate(text_of(data).split(b"\n"), 1):
        where = f"{name}, line {number}"
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as e:
            hint = "Export the lessons again, or fix that line."
            raise UsageError(f"{where} is not UTF-8 text.", hint) from e
        if not text:
            continue
        if not head:
            _header(text, where, name)
            head = True
            continue
        try:
            line = LessonLine.model_validate_json(text)
        except ValidationError as e:
            hint = "Nothing was imported. Fix that line, or export again."
            raise UsageError(_first_problem(e, where), hint) from e
        if line.id in lines:
            what = f"{where}, id: lesson {line.id} is in line {numbers[line.id]} already."
            raise UsageError(what, "Nothing was imported. Remove one of the two.")
        lines[line.id], numbers[line.id] = line, number
    if not head:
        raise UsageError(f"{name} is empty.", "Nothing was imported.")
    return list(lines.values())


def _header(text: str, where: str, name: str) -> None:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if (
        not isinstance(header, dict)
        or header.get("format") != FORMAT
        or type(header.get("version")) is not int
    ):
        message = f"{name} is not an export of lessons: {where} is no header."
        raise UsageError(message, "Make one with: reflect lessons export --out FILE")
    if header["version"] > VERSION:
        theirs = f"format {shortened(header['version'])}, this one reads {VERSION}"
        message = f"{name} was written by a newer reflect ({theirs})."
        raise UsageError(message, "Update reflect, then try again.")


def _first_problem(e: ValidationError, where: str) -> str:
    """The first problem: `lessons.jsonl, line 4, versions[0].status: ...`."""
    first = e.errors(include_url=False)[0]
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).lstrip(".")
    problem = clipped(first["msg"].removeprefix("Value error, ").rstrip("."))
    return f"{where}{f', {clipped(field)}' if field else ''}: {problem}."


def _fields(row: object, shape: type[BaseModel]) -> Json:
    return {name: getattr(row, name, None) for name in shape.model_fields}
