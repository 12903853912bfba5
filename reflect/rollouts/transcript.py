"""A rollout as text: what was said in it, turn by turn.

    turn 1: call: times(374, 58)
    > result: 21692
    turn 2: answer: 21692
    feedback: ...                        where a turn got any

So the reflection reads it, and `reflect runs show` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

from reflect.records import Rollout
from reflect.tasksets.task import Message

# In `Rollout.parts`, of a rollout with an environment: how many answers of the assistant it holds;
# [[turn, feedback],
# ...] where a turn got any; calls that failed, in words; and, where lessons are chosen at each
# turn, their ids.
TURNS, STEPS, TOOL_ERRORS, LESSONS = "turns", "steps", "tool_errors", "lessons"


@dataclass(frozen=True)
class Turn:
    """One turn: the assistant's words, what came back (of tools and the environment), feedback on
    this turn."""

    number: int
    words: str
    back: str = ""
    feedback: str = ""

    def text(self, back: str | None = None) -> str:
        """With `back` in the place of what came back, where it is given."""
        shown = self.back if back is None else back
        lines = [f"turn {self.number}: {self.words.strip() or '(empty)'}"]
        lines += [f"> {line}" for line in shown.splitlines() if line.strip()]
        return "\n".join([*lines, f"feedback: {self.feedback}"] if self.feedback else lines)


def turns_of(row: Rollout) -> list[Turn]:
    """The turns of a rollout that had an environment; [] for one that had none."""
    count = row.parts.get(TURNS, 0)
    if not count:
        return []
    places = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"][
        -count:
    ]
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
    said = [
        f"call: {function.get('name', '')}({function.get('arguments', '')})" for function in calls
    ]
    return "\n".join(filter(None, [str(message.get("content") or ""), *said]))


def last_words(row: Rollout) -> str:
    """What the assistant said last; "" where it said nothing."""
    return next((str(m["content"]) for m in reversed(row.messages) if m["role"] == "assistant"), "")
