"""All tables in one file: one queryable chain from the rollout that taught a lesson to the adapter
that holds it.

Task <- Rollout -> Run          Rollout <- Exposure -> Lesson
Reflection -> LessonVersion -> Lesson <- Trial
Night -> Adapter <- Alias (profile -> active adapter)
Exchange (an answer of a server) -> Run (--from-traffic, which made a Rollout of it)

SQLModel classes with `table=True` do not validate: use `Model.model_validate` at every import
boundary. Times are UTC. The columns of FACTS hold the values of an enum; CHECK constraints enforce
it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Integer, UniqueConstraint
from sqlmodel import Field, SQLModel

from reflect.types import (
    AdapterStatus,
    Author,
    Finish,
    FollowedSource,
    Json,
    LessonStatus,
    LinkKind,
    NightStatus,
    QuarantineReason,
    RolloutErrorKind,
    RuleKind,
    RunStatus,
    TrialKind,
    TrialVerdict,
    Trust,
    values,
)

if TYPE_CHECKING:
    from enum import StrEnum

LESSON_STATUSES = values(LessonStatus)
SHOWN_STATUSES = (LessonStatus.CANDIDATE.value, LessonStatus.ACTIVE.value)
"""The statuses of the lessons that prompts may show."""
HELD_STATUSES = (*SHOWN_STATUSES, LessonStatus.DISTILLED.value)
"""The statuses of the lessons that prompts may show or the weights hold."""
CHEATED = Trust.CHEATED.value
SEED = BigInteger().with_variant(Integer(), "sqlite")
"""63 bits, which every INTEGER of SQLite has."""
OPTIONAL_JSON = JSON(none_as_null=True)


def now() -> datetime:
    """The time in UTC, with tzinfo; the tables refuse a time without a zone."""
    return datetime.now(UTC)


class TaskRow(SQLModel, table=True):
    """A snapshot of a task as it was when it was practised; `key` is the hash of its content."""

    __tablename__ = "task"
    key: str = Field(primary_key=True)
    taskset: str = Field(index=True)
    task_id: str
    split: str
    content: Json = Field(sa_type=JSON)
    """`Task.shape()`."""


class Run(SQLModel, table=True):
    """One `reflect run`; `key` hashes its arguments (taskset, n, k, seed, model ...)."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(index=True, unique=True)
    taskset: str = Field(index=True)
    profile: str = Field(default="default", index=True)
    n: int
    k: int
    seed: int = Field(sa_type=SEED)
    model: str
    model_fingerprint: str
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    config: Json = Field(default_factory=dict, sa_type=JSON)
    from_traffic: bool = False  # its rollouts are exchanges that a server answered
    checkpoints: Json | None = Field(default=None, sa_type=OPTIONAL_JSON)
    """Trial estimates so far; see `reflect.trials.checkpoints`."""
    spent: Json | None = Field(default=None, sa_type=OPTIONAL_JSON)
    """Requests, tokens and cost of models behind an API."""
    measure: str = ""
    """Hash of the verifier's code and of the system template: what its rewards mean."""
    task_keys: list[str] | None = Field(default=None, sa_type=OPTIONAL_JSON)
    """Its tasks, in order. None: it practised traffic, or an earlier version began it."""
    bundle: Json = Field(default_factory=dict, sa_type=JSON)
    """The effect of all lessons together."""
    status: str = RunStatus.RUNNING
    started: datetime = Field(default_factory=now)
    ended: datetime | None = None

    @property
    def planned(self) -> int:
        """Rollouts of the whole run: a taskset may have fewer than n tasks."""
        return (self.n if self.task_keys is None else len(self.task_keys)) * self.k


class Rollout(SQLModel, table=True):
    """One attempt. Unique by (run, task, index), so that an interrupted run continues where it
    stopped.

    A bad rollout is data: `error` says what broke and `reward` stays None.
    """

    __table_args__ = (
        UniqueConstraint("run_id", "task_key", "index"),
        Index("ix_rollout_figures", "run_id", "reward", "error_kind"),  # lists of runs
    )
    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id", index=True)
    task_key: str = Field(foreign_key="task.key", index=True)
    index: int
    messages: list[Json] = Field(sa_type=JSON)
    """The whole conversation as the model saw it."""
    reward: float | None = None
    feedback: str = ""
    parts: Json = Field(default_factory=dict, sa_type=JSON)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = Finish.STOP
    seed: int = Field(default=0, sa_type=SEED)
    model: str = ""
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    error: str | None = None
    error_kind: str | None = None
    """The part that failed, where there is an error."""
    trust: str = Trust.CLEAN
    bundle_shown: bool = True
    """False: all its lessons were withheld together."""
    bundle_probability: float = 1.0
    """The chance that they were not."""
    created: datetime = Field(default_factory=now)


class Reflection(SQLModel, table=True):
    """One model call over a packed group, unique by (run, task)."""

    __table_args__ = (UniqueConstraint("run_id", "task_key"),)
    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id", index=True)
    task_key: str = Field(foreign_key="task.key")
    pack_hash: str
    pack_tokens: int
    cut: str = ""
    """The parts that the packer left out, as text."""
    prompt_version: str
    """Hash of the template."""
    raw: str
    """The model's whole answer."""
    edits: list[Json] = Field(default_factory=list, sa_type=JSON)
    """Lesson edits, each with its outcome."""
    model: str = ""
    created: datetime = Field(default_factory=now)


class Lesson(SQLModel, table=True):
    """The head of a lesson: a copy of its newest LessonVersion, for choosing and searching."""

    __table_args__ = (Index("ix_lesson_profile_status_scope", "profile", "status", "scope"),)
    id: int | None = Field(default=None, primary_key=True)
    profile: str = "default"
    version: int = 1
    when: str
    """The condition under which it applies."""
    do: str
    """The advice."""
    scope: str = ""
    """Taskset name, or "" for everywhere."""
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    status: str = LessonStatus.CANDIDATE
    pinned: bool = False
    """A human's text: no merge or revision touches it."""
    trust: str = Trust.CLEAN
    tokens: int = 0
    """Cost of its line in a prompt."""
    created: datetime = Field(default_factory=now)
    updated: datetime = Field(default_factory=now)


class LessonVersion(SQLModel, table=True):
    """Append-only: every change of a lesson is a whole new snapshot with author and reason."""

    __tablename__ = "lesson_version"
    __table_args__ = (UniqueConstraint("lesson_id", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    version: int
    parent: int | None = None
    """The version this one was made from."""
    author: str
    reason: str = ""
    quarantine: str | None = None
    """Set while the status is quarantined."""
    closing: bool = False
    """An export ended with it, because the weights that held the text stayed behind."""
    when: str
    do: str
    scope: str = ""
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    status: str
    pinned: bool = False
    trust: str = Trust.CLEAN
    tokens: int = 0
    reflection_id: int | None = Field(default=None, foreign_key="reflection.id", index=True)
    night_id: int | None = Field(default=None, foreign_key="night.id", index=True)
    created: datetime = Field(default_factory=now)


class LessonLink(SQLModel, table=True):
    """Lesson `lesson_id` replaces `other_id`: `merged`, or `supersedes` it, whose advice differs.
    One that is `proposed` waits for a person, whose approval retires the other."""

    __tablename__ = "lesson_link"
    __table_args__ = (UniqueConstraint("lesson_id", "other_id", "kind"),)
    id: int | None = Field(default=None, primary_key=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    other_id: int = Field(foreign_key="lesson.id", index=True)
    kind: str
    why: str = ""
    reflection_id: int | None = Field(default=None, foreign_key="reflection.id")
    created: datetime = Field(default_factory=now)


class Exposure(SQLModel, table=True):
    """A lesson was shown to a rollout or withheld; `probability`: of being shown."""

    __table_args__ = (UniqueConstraint("rollout_id", "lesson_id"),)
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: int = Field(foreign_key="rollout.id", index=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    version: int
    shown: bool = True
    probability: float = 1.0


class FollowedCheck(SQLModel, table=True):
    """A pattern that is in an answer if, and only if, the answer follows the lesson."""

    __tablename__ = "followed_check"
    id: int | None = Field(default=None, primary_key=True)
    lesson_id: int = Field(foreign_key="lesson.id", unique=True)
    do: str
    """The advice that it was written for. It does not apply to another."""
    kind: str
    pattern: str
    created: datetime = Field(default_factory=now)


class Followed(SQLModel, table=True):
    """Whether a rollout followed the advice of a lesson that it saw, or that was withheld from
    it."""

    __table_args__ = (UniqueConstraint("lesson_id", "rollout_id", "source"),)
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: int = Field(foreign_key="rollout.id", index=True)
    lesson_id: int = Field(foreign_key="lesson.id")
    source: str
    followed: bool


class Trial(SQLModel, table=True):
    """The measured effect of a lesson: mean reward with it minus without it, for one model and
    adapter.

    A trial of the day (withhold, paired) measures the text and status as they are from `version`
    on; the row follows the evidence until a verdict moves the lesson: `moved` is the version which
    that made.
    """

    id: int | None = Field(default=None, primary_key=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    version: int
    kind: str
    effect: float
    low: float
    high: float
    n: int
    verdict: str
    model_fingerprint: str = ""
    measure: str = ""
    """As in Run: another verifier or another wording of the prompt is another trial."""
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    night_id: int | None = Field(default=None, foreign_key="night.id")
    run_id: int | None = Field(default=None, foreign_key="run.id", index=True)
    """The run in which it was last measured."""
    moved: int | None = None
    created: datetime = Field(default_factory=now)


class Night(SQLModel, table=True):
    """One distillation job. `key` hashes lessons + base + config: no night is run twice."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(index=True, unique=True)
    profile: str = "default"
    config: Json = Field(default_factory=dict, sa_type=JSON)
    stages: Json = Field(default_factory=dict, sa_type=JSON)
    """Stage -> its figures, when done."""
    lessons: list[list[int]] = Field(default_factory=list, sa_type=JSON)
    """[lesson id, version]."""
    status: str = NightStatus.RUNNING
    reason: str = ""
    adapter_id: int | None = None
    started: datetime = Field(default_factory=now)
    ended: datetime | None = None


class Adapter(SQLModel, table=True):
    """An immutable folder of LoRA weights: the sha256 of its files, its base model."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True, unique=True)
    path: str
    manifest: Json = Field(sa_type=JSON)
    """File name -> sha256."""
    base_model: str
    base_fingerprint: str
    night_id: int | None = Field(default=None, foreign_key="night.id")
    replaced: int | None = None
    """The adapter that was active before this one was promoted."""
    status: str = AdapterStatus.CANDIDATE
    gate: Json = Field(default_factory=dict, sa_type=JSON)
    revoked: list[int] = Field(default_factory=list, sa_type=JSON)
    """Lessons in it that must be forgotten."""
    created: datetime = Field(default_factory=now)


class Alias(SQLModel, table=True):
    """profile -> active adapter; None is the bare base model."""

    profile: str = Field(primary_key=True)
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    updated: datetime = Field(default_factory=now)


class Rule(SQLModel, table=True):
    """What a person never wants learned: an edit of a model that matches it is refused."""

    id: int | None = Field(default=None, primary_key=True)
    profile: str = Field(default="default", index=True)
    pattern: str
    kind: str = RuleKind.WORDS
    why: str = ""
    created: datetime = Field(default_factory=now)
    lifted: datetime | None = None
    """The time at which it was lifted."""


class Exchange(SQLModel, table=True):
    """An answer of `reflect serve`, or a session of a coding agent (see `reflect.sessions`). With a
    reward, run --from-traffic makes it a Rollout."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    """The chat completion's id, by which feedback names it."""
    choice: int = 0
    """Index of the answer among those of one completion."""
    profile: str = "default"
    taskset: str
    """The taskset of the request, for the scope of lessons."""
    asked: list[Json] = Field(sa_type=JSON)
    """The conversation as the client sent it."""
    messages: list[Json] = Field(sa_type=JSON)
    """As the model saw it, with the answer."""
    exposures: list[Json] = Field(default_factory=list, sa_type=JSON)
    """As in Exposure."""
    bundle_shown: bool = True
    """This field and the next ones are as in Rollout and Run."""
    bundle_probability: float = 1.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = Finish.STOP
    seed: int = Field(default=0, sa_type=SEED)
    """Identifies the random draw: unique per exchange."""
    model: str
    model_fingerprint: str
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    measure: str = ""
    trust: str = Trust.UNTRUSTED
    """CLEAN only if the server is configured to trust its clients."""
    reward: float | None = None
    feedback: str = ""
    run_id: int | None = Field(default=None, foreign_key="run.id", index=True)
    """The run that reflected on it."""
    created: datetime = Field(default_factory=now)


class Claim(SQLModel, table=True):
    """Work of a run that several processes share: see `reflect.store.claims`."""

    __table_args__ = (UniqueConstraint("run_id", "wave", "task_key"),)
    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id")
    wave: int
    task_key: str = ""
    """The task whose rollouts are to be made; "" for the reflections of the wave."""
    worker: str = ""
    """The process that has claimed it."""
    expires: datetime | None = None


class RowHash(SQLModel, table=True):
    """The hash of a row as reflect wrote it: see `reflect.store.row_hashes`."""

    __tablename__ = "row_hash"
    __table_args__ = {"sqlite_with_rowid": False}
    name: str = Field(primary_key=True)
    """The row's table."""
    key: str = Field(primary_key=True)
    """Its primary key, as text."""
    hash: str


FACTS: dict[tuple[str, str], type[StrEnum]] = {
    ("run", "status"): RunStatus,
    ("rollout", "finish"): Finish,
    ("rollout", "error_kind"): RolloutErrorKind,
    ("rollout", "trust"): Trust,
    ("lesson", "status"): LessonStatus,
    ("lesson", "trust"): Trust,
    ("lesson_version", "author"): Author,
    ("lesson_version", "status"): LessonStatus,
    ("lesson_version", "quarantine"): QuarantineReason,
    ("lesson_version", "trust"): Trust,
    ("lesson_link", "kind"): LinkKind,
    ("followed_check", "kind"): RuleKind,
    ("followed", "source"): FollowedSource,
    ("trial", "kind"): TrialKind,
    ("trial", "verdict"): TrialVerdict,
    ("night", "status"): NightStatus,
    ("adapter", "status"): AdapterStatus,
    ("rule", "kind"): RuleKind,
    ("exchange", "finish"): Finish,
    ("exchange", "trust"): Trust,
}
"""(table, column) -> the enum whose values it holds."""


def fact_check(table: str, column: str) -> CheckConstraint:
    """The constraint of a column of FACTS."""
    known = ", ".join(f"'{value}'" for value in values(FACTS[table, column]))
    return CheckConstraint(f"{column} IN ({known})", name=f"ck_{table}_{column}")


for _table, _column in FACTS:
    SQLModel.metadata.tables[_table].append_constraint(fact_check(_table, _column))
