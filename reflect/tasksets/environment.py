"""Tasks of several turns: the model and the environment take turns until the episode is done.

    env = taskset.environment(task)  one per rollout; None for a task with a single answer
    env.reset(task)                  the first messages
    env.step(assistant's message)    -> EnvironmentStep: messages, done, reward, feedback

`Toolbox` is the environment of most tasks: the model calls Python functions until it answers.
docs/environments.md shows a game of one's own.

An environment that raises ends its rollout with an error; one that never ends meets the turn limit
(`max_turns` in the settings). Not covered: a step that never comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reflect.tasksets.tools import Result, Tool, call_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.tasksets.task import Message, Task


@dataclass(frozen=True)
class EnvironmentStep:
    """What an environment answers to one message of the assistant.

    `reward` in [0, 1] is that of the whole episode as far as it is known: the last one given
    counts. Where none is given, `Taskset.verify` judges the last text. `feedback` is on this turn
    alone and never holds an answer. `errors`: calls that failed. `untrusted`: the messages hold
    bytes from outside.
    """

    messages: list[Message] = field(default_factory=list)
    done: bool = False
    reward: float | None = None
    feedback: str = ""
    errors: tuple[str, ...] = ()
    untrusted: bool = False


class Environment:
    """One episode. `Taskset.environment` makes a new one for each rollout, so it may keep what it
    likes in `self`."""

    tools: Sequence[Tool] = ()  # functions that the model may call
    # they are called by lines of plain text, which any model can write; the request names none
    lines = False
    turns: int | None = (
        None  # at most so many turns, where it knows; never more than the setting `max_turns`
    )

    def reset(self, task: Task) -> list[Message]:
        """The first messages: those of the task."""
        return [dict(message) for message in task.messages]

    def step(self, message: Message) -> EnvironmentStep:
        """The answer to a message of the assistant: {"role": "assistant", "content": text}, with
        "tool_calls" where its model has them."""
        raise NotImplementedError

    def state(self) -> str:
        """The present state as text: the query for lessons where they are selected at each turn
        (`Taskset.stepwise`). "": the last message."""
        return ""


class Toolbox(Environment):
    """The model calls tools until it says something without a call: that is its answer, for
    `Taskset.verify`.

    `lines=True`: it calls by lines `call: times(3, 4)` in its text. The task should say so, and
    name the tools.
    """

    def __init__(self, *tools: Tool, lines: bool = False) -> None:
        self.tools, self.lines = tools, lines

    def step(self, message: Message) -> EnvironmentStep:
        """Carry out the calls of a message."""
        results = call_all(self.tools, message, self.lines)
        if not results:
            return EnvironmentStep(done=True)
        errors = tuple(f"{result.call}: {result.error}" for result in results if result.error)
        return EnvironmentStep(
            as_messages(results), errors=errors, untrusted=any(result.outside for result in results)
        )


def as_messages(results: Sequence[Result]) -> list[Message]:
    """The results as messages: of the role `tool` where the calls have ids, else one of the
    user."""
    spoken = [
        result.text if result.error else f"result: {result.text}"
        for result in results
        if not result.id
    ]
    rows: list[Message] = [
        {"role": "tool", "tool_call_id": result.id, "content": result.text}
        for result in results
        if result.id
    ]
    return [*rows, {"role": "user", "content": "\n".join(spoken)}] if spoken else rows
