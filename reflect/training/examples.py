"""What training sees, as data: questions, examples, practice tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reflect.rollouts.episode import messages_for

if TYPE_CHECKING:
    from reflect.tasksets.task import Message, Task


@dataclass(frozen=True)
class Question:
    """The prompts of student and teacher (equal for anchors), and the tools in them."""

    student: list[Message]
    teacher: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """A question with the answer to learn, as token ids."""

    question: Question
    answer: list[int]  # token ids, the end token included
    weight: float = 1.0


@dataclass(frozen=True)
class PracticeTask:
    """A task for reinforcement learning, and where its verifier is found."""

    taskset: str
    task: Task

    @property
    def prompt(self) -> list[Message]:
        """The messages without lessons."""
        return messages_for(self.task)
