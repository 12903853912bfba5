"""All tables in one file: one queryable chain from the rollout that taught a lesson to the adapter
that holds it.

Task <- Rollout -> Run          Rollout <- Exposure -> Lesson
Reflection -> LessonVersion -> Lesson <- Trial
Night -> Adapter <- Alias (profile -> active adapter)
Exchange (what a server answered) -> Run (--from-traffic, which made a Rollout of it)

`table=True` SQLModel classes do not validate: use `Model.model_validate` at every import boundary.
Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, UniqueConstraint
from sqlmodel import Field, SQLModel

from reflect.types import (
    AdapterStatus,
    LessonStatus,
    NightStatus,
    RuleKind,
    RunStatus,
    Trust,
    values,
)

LESSON_STATUSES = values(LessonStatus)
SHOWN_STATUSES = (
    LessonStatus.CANDIDATE.value,
    LessonStatus.ACTIVE.value,
)  # the statuses that may stand in a prompt
RUN_STATUSES = values(RunStatus)
NIGHT_STATUSES = values(NightStatus)
RULE_KINDS = values(RuleKind)
CHEATED = (
    Trust.CHEATED.value
)  # a rollout's trust where it was fitted to tests that contradict its task
ADAPTER_STATUSES = values(AdapterStatus)
SEED: Any = BigInteger().with_variant(
    Integer(), "sqlite"
)  # 63 bits, which every INTEGER of SQLite has


def now() -> datetime:
    """UTC, with tzinfo: the tables store UTC and give it back so, and refuse a time that does not
    say its zone."""
    return datetime.now(UTC)


def optional_json() -> Any:
    return Column(JSON(none_as_null=True), nullable=True)


def json_column() -> Any:
    return Column(JSON, nullable=False)


class TaskRow(SQLModel, table=True):
    """A snapshot of a task as it was when it was practised; `key` is the hash of its content."""

    __tablename__ = "task"
    key: str = Field(primary_key=True)
    taskset: str = Field(index=True)
    task_id: str
    split: str
    content: dict[str, Any] = Field(sa_column=json_column())  # Task.shape()


class Run(SQLModel, table=True):
    """One `reflect run`. `key` hashes what was asked (taskset, n, k, seed, model ...): the same
    words continue it."""

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
    config: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    from_traffic: bool = False  # its rollouts are exchanges that a server answered
    checkpoints: dict[str, Any] | None = Field(
        default=None, sa_column=optional_json()
    )  # see reflect.trials.checkpoints
    spent: dict[str, Any] | None = Field(
        default=None, sa_column=optional_json()
    )  # on models behind an API
    measure: str = (
        ""  # hash of the verifier's code and of the system template: what its rewards mean
    )
    bundle: dict[str, Any] = Field(
        default_factory=dict, sa_column=json_column()
    )  # all lessons together: an Effect
    status: str = "running"
    started: datetime = Field(default_factory=now)
    ended: datetime | None = None


class Rollout(SQLModel, table=True):
    """One attempt. Unique by (run, task, index), so that an interrupted run continues where it
    stopped.

    A bad rollout is data: `error` says what broke and `reward` stays None.
    """

    __table_args__ = (UniqueConstraint("run_id", "task_key", "index"),)
    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id", index=True)
    task_key: str = Field(foreign_key="task.key", index=True)
    index: int
    messages: list[dict[str, Any]] = Field(
        sa_column=json_column()
    )  # the whole conversation as the model saw it
    reward: float | None = None
    feedback: str = ""
    parts: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = "stop"
    seed: int = Field(default=0, sa_type=SEED)
    model: str = ""
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    error: str | None = None
    error_kind: str | None = None  # RolloutErrorKind; only where there is an error
    trust: str = "clean"  # clean | untrusted: it read outside bytes | cheated
    bundle_shown: bool = True  # False: all its lessons were withheld together
    bundle_probability: float = 1.0  # the chance that they were not
    created: datetime = Field(default_factory=now)


class Reflection(SQLModel, table=True):
    """One model call over a packed group, unique by (run, task)."""

    __table_args__ = (UniqueConstraint("run_id", "task_key"),)
    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id", index=True)
    task_key: str = Field(foreign_key="task.key")
    pack_hash: str
    pack_tokens: int
    cut: str = ""  # what the packer left out, in words
    prompt_version: str  # hash of the template
    raw: str  # the model's whole answer
    edits: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=json_column()
    )  # each with its outcome
    model: str = ""
    created: datetime = Field(default_factory=now)


class Lesson(SQLModel, table=True):
    """The head of a lesson: a copy of its newest LessonVersion, for choosing and searching."""

    __table_args__ = (Index("ix_lesson_profile_status_scope", "profile", "status", "scope"),)
    id: int | None = Field(default=None, primary_key=True)
    profile: str = "default"
    version: int = 1
    when: str  # the condition under which it applies
    do: str  # the advice
    scope: str = ""  # taskset name, or "" for everywhere
    tags: list[str] = Field(default_factory=list, sa_column=json_column())
    status: str = "candidate"
    pinned: bool = False  # a human's text: no merge or revision touches it
    trust: str = (
        "clean"  # clean | untrusted: learned from a rollout that read outside bytes, or cheated
    )
    tokens: int = 0  # cost of its line in a prompt
    created: datetime = Field(default_factory=now)
    updated: datetime = Field(default_factory=now)


class LessonVersion(SQLModel, table=True):
    """Append-only: every change of a lesson is a whole new snapshot with author and reason."""

    __tablename__ = "lesson_version"
    __table_args__ = (UniqueConstraint("lesson_id", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    version: int
    parent: int | None = None  # the version this one was made from
    author: str  # model | human | trial | night | rollback
    reason: str = ""
    quarantine: str | None = None  # QuarantineReason, while the status is quarantined
    closing: bool = (
        False  # an export ended with it, because the weights that held the text stayed behind
    )
    when: str
    do: str
    scope: str = ""
    tags: list[str] = Field(default_factory=list, sa_column=json_column())
    status: str
    pinned: bool = False
    trust: str = "clean"
    tokens: int = 0
    reflection_id: int | None = Field(default=None, foreign_key="reflection.id", index=True)
    night_id: int | None = Field(default=None, foreign_key="night.id", index=True)
    created: datetime = Field(default_factory=now)


class LessonLink(SQLModel, table=True):
    """Lesson `lesson_id` stands where `other_id` stood: `merged`, or `supersedes` it, which said
    something else. One that is `proposed` waits for a person, whose approval retires the other."""

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
    """A lesson was shown to, or withheld from, a rollout; `probability` is the chance with which it
    was shown."""

    __table_args__ = (UniqueConstraint("rollout_id", "lesson_id"),)
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: int = Field(foreign_key="rollout.id", index=True)
    lesson_id: int = Field(foreign_key="lesson.id", index=True)
    version: int
    shown: bool = True
    probability: float = 1.0


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
    kind: str  # preflight | probe | withhold | paired
    effect: float
    low: float
    high: float
    n: int
    verdict: str  # accept | reject | undecided
    model_fingerprint: str = ""
    measure: str = (
        ""  # as in Run: another verifier or another wording of the prompt is another trial
    )
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    night_id: int | None = Field(default=None, foreign_key="night.id")
    run_id: int | None = Field(
        default=None, foreign_key="run.id", index=True
    )  # in which it was last measured
    moved: int | None = None
    created: datetime = Field(default_factory=now)


class Night(SQLModel, table=True):
    """One distillation job. `key` hashes lessons + base + config: the same night is never slept
    twice."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(index=True, unique=True)
    profile: str = "default"
    config: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    stages: dict[str, Any] = Field(
        default_factory=dict, sa_column=json_column()
    )  # stage -> its figures, when done
    lessons: list[list[int]] = Field(
        default_factory=list, sa_column=json_column()
    )  # [lesson id, version]
    status: str = "running"
    reason: str = ""
    adapter_id: int | None = None
    started: datetime = Field(default_factory=now)
    ended: datetime | None = None


class Adapter(SQLModel, table=True):
    """An immutable folder of LoRA weights, with the sha256 of each file and the base it was trained
    for."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True, unique=True)
    path: str
    manifest: dict[str, Any] = Field(sa_column=json_column())  # file name -> sha256
    base_model: str
    base_fingerprint: str
    night_id: int | None = Field(default=None, foreign_key="night.id")
    replaced: int | None = None  # the adapter that was active before this one was promoted
    status: str = "candidate"
    gate: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    revoked: list[int] = Field(
        default_factory=list, sa_column=json_column()
    )  # lessons in it that must be forgotten
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
    kind: str = "words"  # words | regex
    why: str = ""
    created: datetime = Field(default_factory=now)
    lifted: datetime | None = None  # since when it holds no more


class Exchange(SQLModel, table=True):
    """One answer that `reflect serve` gave. Once it has a reward, a run --from-traffic makes a
    Rollout of it."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)  # the chat completion's id, by which feedback names it
    choice: int = 0  # which of its answers
    profile: str = "default"
    taskset: str  # whose tasks these are, for the scope of lessons
    asked: list[dict[str, Any]] = Field(
        sa_column=json_column()
    )  # the conversation as the client sent it
    messages: list[dict[str, Any]] = Field(
        sa_column=json_column()
    )  # as the model saw it, with the answer
    exposures: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=json_column()
    )  # as in Exposure
    bundle_shown: bool = True  # this and what follows as in Rollout and Run
    bundle_probability: float = 1.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = "stop"
    seed: int = Field(default=0, sa_type=SEED)  # names the draw: no two exchanges share one
    model: str
    model_fingerprint: str
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    measure: str = ""
    trust: str = (
        "untrusted"  # clean only where the server was told that its clients' words are its own
    )
    reward: float | None = None
    feedback: str = ""
    run_id: int | None = Field(
        default=None, foreign_key="run.id", index=True
    )  # in which it was reflected on
    created: datetime = Field(default_factory=now)
