"""A rollout as text, turn by turn.

    turn 1: call: times(374, 58)
    > result: 21692
    turn 2: The calculator was right.
    | answer: 21692                      a second line of the turn
    feedback: ...                        if the turn has feedback

The reflection reads this form, and `reflect runs show` prints it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.prompts import inert, quote

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect.records import Rollout
    from reflect.tasksets.task import Message

# Keys of `Rollout.parts` of a rollout with an environment: the number of the assistant's answers;
# [[turn, feedback], ...] of turns with feedback; the errors of tool calls; the lesson ids of each
# turn, if lessons are selected at each turn.
TURNS, STEPS, TOOL_ERRORS, LESSONS = "turns", "steps", "tool_errors", "lessons"


@dataclass(frozen=True)
class Turn:
    """One turn of a rollout, counted from 1."""

    number: int
    words: str
    """The assistant's message."""
    back: str = ""
    """The output of tools and the environment."""
    feedback: str = ""

    def text(self, cut: Callable[[str], str] = str) -> str:
        """The turn as text, its output shortened by `cut`."""
        words, feedback, back = self._quoted
        lines = [f"turn {self.number}: {words or '(empty)'}"]
        lines += [f"> {line}" for line in cut(back).splitlines() if line.strip()]
        return "\n".join([*lines, f"feedback: {feedback}"] if feedback else lines)

    @functools.cached_property  # a long group is packed many times
    def _quoted(self) -> tuple[str, str, str]:
        return quote(inert(self.words.strip())), quote(inert(self.feedback)), inert(self.back)


def turns_of(row: Rollout) -> list[Turn]:
    """The turns of a rollout with an environment, else []."""
    count = row.parts.get(TURNS, 0)
    if not count:
        return []
    places = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"][-count:]
    feedback = dict(row.parts.get(STEPS, []))
    ends = [*places[1:], len(row.messages)]
    return [
        Turn(
            number,
            words_of(row.messages[place]),
            "\n".join(words_of(message) for message in row.messages[place + 1 : end]),
            str(feedback.get(number, "")),
        )
        for number, (place, end) in enumerate(zip(places, ends, strict=True), 1)
    ]


def words_of(message: Message) -> str:
    """The text of a message and the tools that it calls, as `call: NAME(ARGUMENTS)`."""
    calls = [call.get("function", {}) for call in message.get("tool_calls") or ()]
    lines = [f"call: {call.get('name', '')}({call.get('arguments', '')})" for call in calls]
    return "\n".join(filter(None, [str(message.get("content") or ""), *lines]))


def last_words(row: Rollout) -> str:
    """The assistant's last message; "" if there is none."""
    return next((str(m["content"]) for m in reversed(row.messages) if m["role"] == "assistant"), "")
