"""The reflection: show a packed group and the lessons it was given to the model, read back lesson
edits.

The answer is a line format that a small model can write and a parser cannot misread:

    NOTE 1 sort 0, 2 reverse 1
    ADD when: the task says zubi do: use reverse
    REVISE 7 when: the task says zubi do: use rotate
    RETIRE 7 why: reverse failed
    MERGE 3 7 when: the task says zubi do: use rotate
    NONE

It fails closed: a line that cannot be read is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from reflect import prompts
from reflect.day.packing import Attempt, Packed, pack
from reflect.models.base import Model
from reflect.prompts import sanitize_block
from reflect.records import Lesson, Rollout
from reflect.rollouts.transcript import Turn, last_words, turns_of
from reflect.tasksets.task import Message, Task

MARGIN = 48  # tokens kept free for the chat template around the prompt


class SummarizedGroup(NamedTuple):
    """Notes in the place of attempts, and what they do not tell, in words."""

    attempts: list[Attempt]
    cut: str


def has_failures(rollouts: Sequence[Rollout]) -> bool:
    """Is there anything to review? Not when every reward is 1, and not when nothing could be
    scored."""
    rewards = [r.reward for r in rollouts if r.reward is not None]
    return any(reward < 1.0 for reward in rewards)


def majority_success(rollouts: Sequence[Rollout]) -> bool:
    """Did the group earn more than half of what there was? An attempt without a reward earned
    nothing."""
    return sum(r.reward or 0.0 for r in rollouts) > len(rollouts) / 2


def rewards_differ(rollouts: Sequence[Rollout]) -> bool:
    """Did some attempts go better than others? Only then does the group show a way, and not just
    dead ends."""
    return len({r.reward for r in rollouts if r.reward is not None}) > 1


def attempts_of(rollouts: Sequence[Rollout]) -> list[Attempt]:
    """The rollouts as the reflector reads them; those in which the model gave no answer at all are
    left out."""
    return [_attempt(r) for r in rollouts if r.messages[-1]["role"] == "assistant" or turns_of(r)]


def _attempt(row: Rollout) -> Attempt:
    turns = tuple(
        Turn(t.number, sanitize_block(t.words), sanitize_block(t.back), sanitize_block(t.feedback))
        for t in turns_of(row)
    )
    return Attempt(
        "" if turns else sanitize_block(last_words(row)),
        row.reward,
        sanitize_block(row.feedback),
        turns,
    )


def reflection_messages(
    model: Model,
    task: Task,
    lessons: Sequence[Lesson],
    rollouts: Sequence[Rollout],
    *,
    max_tokens: int,
    noted: SummarizedGroup | None = None,
) -> tuple[list[Message], Packed]:
    """The prompt of one reflection and what was packed into it, within the model's context.

    `lessons` are those that the rollouts saw. The answer key and the verifier are never part of it.
    `noted`: notes on the attempts, in the place of attempts that are far too long (see
    `reflect.day.long_groups`).
    """
    attempts = noted.attempts if noted else attempts_of(rollouts)
    room = room_for(model, task, lessons, max_tokens) - (
        model.count_tokens(noted.cut) if noted else 0
    )
    room -= (
        MARGIN if any(attempt.turns for attempt in attempts) else 0
    )  # more may be cut, which takes words to say
    packed = pack(attempts, max(room, 1), model.count_tokens)
    if noted:
        packed = Packed(
            packed.text, packed.tokens, "; ".join(filter(None, [noted.cut, packed.cut]))
        )
    return [{"role": "user", "content": _prompt(task, lessons, packed.text, packed.cut)}], packed


def room_for(model: Model, task: Task, lessons: Sequence[Lesson], max_tokens: int) -> int:
    """Tokens that the packed group may have in the prompt of its reflection."""
    beside = model.count_tokens(_prompt(task, lessons, "", "the middle of some attempts"))
    return model.context - max_tokens - MARGIN - beside


def _prompt(task: Task, lessons: Sequence[Lesson], packed: str, cut: str) -> str:
    rows = [
        {"id": x.id, "when": prompts.sanitize_line(x.when), "do": prompts.sanitize_line(x.do)}
        for x in lessons
    ]
    asked = sanitize_block(task.text)
    fence = prompts.nonce(asked, packed)
    return prompts.render(
        "reflect", task=asked, lessons=rows, attempts=packed, cut=cut, fence=fence
    )
