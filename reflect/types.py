"""Values that several layers share: what the columns of the database and the reports may hold.

The program decides by these values and by the type of an error, never by the text of a message.
Each member is its stored string (`LessonStatus.ACTIVE == "active"`), so rows, JSON and command
lines keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

Json = dict[str, Any]
"""A JSON object."""
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is done)."""


def values(kind: type[StrEnum]) -> tuple[str, ...]:
    """The stored strings of an enum, in order."""
    return tuple(member.value for member in kind)


class LessonStatus(StrEnum):
    """The status of a lesson; `reflect.store.lessons.TRANSITIONS` lists the allowed steps."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    DISTILLED = "distilled"
    """In the weights, no longer in the prompt."""
    RETIRED = "retired"
    QUARANTINED = "quarantined"
    """Neither shown nor trained on."""


class QuarantineReason(StrEnum):
    """Why a version of a lesson is quarantined. Only OUTSIDE can be released without a person."""

    OUTSIDE = "outside"
    """Learned from attempts that read bytes from outside."""
    CHEATED = "cheated"
    """Learned from attempts that were fitted to tests which contradict the task."""
    TEXT = "text"
    """The text names what no lesson should name, or gives an answer away."""
    APPROVAL = "approval"
    """A person must approve it first."""
    IMPORTED = "imported"
    """A file brought it, with doubts."""
    PERSON = "person"
    """A person set it aside."""


class Author(StrEnum):
    """Who wrote a version of a lesson."""

    MODEL = "model"
    HUMAN = "human"
    TRIAL = "trial"
    NIGHT = "night"
    ROLLBACK = "rollback"


class Trust(StrEnum):
    """Where the evidence of a rollout, or the text of a lesson, comes from."""

    CLEAN = "clean"
    UNTRUSTED = "untrusted"
    """It read bytes from outside."""
    CHEATED = "cheated"
    """It was fitted to tests that contradict its task."""


class LinkKind(StrEnum):
    """How a lesson replaces another one."""

    MERGED = "merged"
    SUPERSEDES = "supersedes"
    PROPOSED = "proposed"
    """A person has not decided yet."""


class EditKind(StrEnum):
    """What a reflection wants to do to the lessons."""

    ADD = "add"
    REVISE = "revise"
    RETIRE = "retire"
    MERGE = "merge"


class EditOutcome(StrEnum):
    """What was done with one edit."""

    ADDED = "added"
    SUPERSEDED = "superseded"  # its text replaces other lessons
    REVISED = "revised"
    MERGED = "merged"
    RETIRED = "retired"
    KNOWN = "known"  # nothing to do
    QUARANTINED = "quarantined"  # a new lesson that a person must approve
    KEPT = "kept"  # the evidence does not speak against the lesson
    DEFENDED = "defended"  # the lesson is proven: a second group must ask for the edit
    OUTVOTED = "outvoted"  # by other groups of the same wave
    REFUSED = "refused"


class RunStatus(StrEnum):
    """A run that is not finished goes on when its command is repeated."""

    RUNNING = "running"
    DONE = "done"
    ABANDONED = "abandoned"
    """A person began another run in its place; what it practised counts."""


class Finish(StrEnum):
    """How a rollout ended: by the model's last answer, by a limit, or by a failure."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    TURNS = "turns"
    TOKENS = "tokens"
    TIME = "time"
    ERROR = "error"
    HALTED = "halted"
    """Not attempted, because the run had stopped."""


class RolloutErrorKind(StrEnum):
    """Which part failed in a rollout that has an error."""

    MODEL = "model"
    ENVIRONMENT = "environment"
    VERIFIER = "verifier"
    JUDGE = "judge"
    """Says nothing about the lessons: the rollout is no evidence."""


class TrialKind(StrEnum):
    """How an effect was measured: by a night (preflight, probe) or a day (withhold, paired)."""

    PREFLIGHT = "preflight"
    PROBE = "probe"
    WITHHOLD = "withhold"
    PAIRED = "paired"


class TrialVerdict(StrEnum):
    """The verdict of a trial on its lesson."""

    ACCEPT = "accept"
    REJECT = "reject"
    UNDECIDED = "undecided"


class NightStatus(StrEnum):
    """The status of a night in the database. A report may also have planned, paused or not due."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    NOTHING = "nothing"
    FAILED = "failed"


class NightStage(StrEnum):
    """The stages of a night, in order."""

    PREFLIGHT = "preflight"
    HARVEST = "harvest"
    TRAIN = "train"
    PLACEBO = "placebo"
    GATE = "gate"
    PROMOTE = "promote"


class StopReason(StrEnum):
    """Why a night stopped before its end."""

    DEADLINE = "deadline"
    EXPORTED = "exported"


class AdapterStatus(StrEnum):
    """Where an adapter is between training and rollback."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class RuleKind(StrEnum):
    """How a pattern is matched against a text: by its words, or as a regular expression."""

    WORDS = "words"
    REGEX = "regex"

    @classmethod
    def of(cls, pattern: str) -> RuleKind:
        """REGEX if the pattern has a character of regular expressions, else WORDS."""
        return cls.REGEX if set(pattern) & set(r"\[](){}|*+^$") else cls.WORDS


class FollowedSource(StrEnum):
    """What decided whether an answer followed a lesson: its check, or a judge."""

    CHECK = "check"
    JUDGE = "judge"


class CheckKind(StrEnum):
    """What a check of the gate asks: is there a gain, is there harm, is the gain genuine."""

    GAIN = "gain"
    HARM = "harm"
    PROOF = "proof"


class CheckArea(StrEnum):
    """Where a check of the gate looks for harm."""

    OUTSIDE = "outside the night"
    FOLLOWING = "following new lessons"
    RULES = "contradicting rules"
    NEAR = "questions near the lessons"


class QuestionKind(StrEnum):
    """Which tasks a question of the gate is about."""

    NEAR = "near"
    """Tasks near those of the lessons."""
    NEIGHBOURS = "neighbours"
    """The questions of the lessons about something else."""
    FOLLOWING = "following"
    """Following lessons that are new to the adapter."""
    UNRELATED = "unrelated"
    """Tasksets outside the night."""


class Arm(StrEnum):
    """Arms of a comparison: with or without the adapter and lessons in the prompt."""

    BASE = "base"
    LESSONS = "lessons"
    ADAPTER = "adapter"
    BOTH = "both"

    @property
    def has_adapter(self) -> bool:
        """Whether the adapter is active."""
        return self in (Arm.ADAPTER, Arm.BOTH)

    @property
    def has_lessons(self) -> bool:
        """Whether lessons are in the prompt."""
        return self in (Arm.LESSONS, Arm.BOTH)

    @property
    def heading(self) -> str:
        """The heading of its column in a table."""
        return ("adapter" if self.has_adapter else "base") + " + lessons" * self.has_lessons


OLD_ARMS = dict(zip(("base_out", "base_in", "adapter_out", "adapter_in"), Arm, strict=True))
"""The arms' names in JSON before version 0.2; remove them there."""
Result = TypeVar("Result")


def with_old_arms(results: Mapping[Arm, Result]) -> dict[str, Result]:
    """Results of arms under their names, and again under their old ones."""
    old = {name: results[arm] for name, arm in OLD_ARMS.items() if arm in results}
    return {str(arm): result for arm, result in results.items()} | old


def by_arm(stored: Mapping[str, Result]) -> dict[Arm, Result]:
    """The results that JSON holds under new or old names."""
    names = OLD_ARMS | {str(arm): arm for arm in Arm}
    return {names[name]: result for name, result in stored.items()}


class Limits(NamedTuple):
    """Limits of a multi-turn rollout: settings max_turns, episode_tokens, episode_seconds."""

    turns: int = 32
    tokens: int = 0
    seconds: float = 3600.0
