"""Groups that are several times longer than the context: a note on each attempt first, then the
reflection over the notes.

An attempt is read in pieces, in the order of its turns, with tool output trimmed before the model's
own words. At most MOST_PIECES of them are read, the first and the last ones; the prompt and the
record of the reflection say what was not read. So a group costs at most MOST_PIECES calls per
attempt, however long it is.

Not covered: a note is written by the model, and may miss what mattered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect import prompts
from reflect.day.packing import Attempt, reward_text
from reflect.day.reflection import (
    MARGIN,
    Group,
    SummarizedGroup,
    attempts_of,
    group_budget,
    quoted_task,
)
from reflect.errors import ModelError
from reflect.models.base import Completion, Model, Request
from reflect.models.partial import sample_each
from reflect.prompts import QUOTED, sanitize_block
from reflect.tasksets.tools import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

# Notes are taken from this multiple of the group's token budget on, tool output trimmed.
NOTES_FROM = 3
MOST_PIECES = 8  # of one attempt
MOST, LEAST = 96, 16  # tokens of the note on one piece
TOOL_CHARACTERS = 400  # of the tool output of one turn


def take_notes(
    model: Model, groups: Sequence[Group], max_tokens: int
) -> list[SummarizedGroup | None]:
    """Notes on the attempts of each group that is too long, in one batched call; None for the
    others.

    `max_tokens` are those of the reflection. Attempts on which a note failed are named in `cut`.
    """
    plans = [_plan(model, group, max_tokens) for group in groups]
    requests = [request for plan in plans if plan for _, request in plan.jobs]
    answers = iter(sample_each(model, requests))
    return [plan.notes([next(answers) for _ in plan.jobs]) if plan else None for plan in plans]


class _NotesPlan:
    """What is read of each attempt of a group. An attempt shorter than a note is kept as it is."""

    def __init__(self, model: Model, group: Group, attempts: list[Attempt], budget: int) -> None:
        self.attempts = attempts
        self.unread: list[int] = []  # attempts, from 0, whose middle is not read
        self._task = quoted_task(group.task)
        size = model.context - MOST - MARGIN
        size -= model.count_tokens(self._prompt(attempts[0], "", 1, 1))
        texts: list[tuple[int, str]] = []
        for i, attempt in enumerate(attempts):
            if len(attempt.words()) <= MOST:  # characters
                continue
            pieces = list(enumerate(_pieces(model, attempt, max(size, 64)), 1))
            count, half = len(pieces), MOST_PIECES // 2
            if count > MOST_PIECES:
                self.unread.append(i)
                pieces = pieces[:half] + pieces[-half:]
            texts += [(i, self._prompt(attempt, piece, part, count)) for part, piece in pieces]
        tokens = min(MOST, max(LEAST, budget // max(1, len(texts)) - LEAST))
        # (attempt, request for a note on one of its pieces)
        self.jobs = [
            (i, Request([{"role": "user", "content": text}], (0,), tokens, temperature=0.0))
            for i, text in texts
        ]

    def notes(self, answers: Sequence[list[Completion] | ModelError]) -> SummarizedGroup:
        """The attempts, with the notes in the place of their text."""
        notes: dict[int, list[str]] = {i: [] for i, _ in self.jobs}
        failed = []
        for (i, _), answer in zip(self.jobs, answers, strict=True):
            if isinstance(answer, ModelError):
                failed.append(i)
            else:
                notes[i].append(sanitize_block(answer[0].text).strip())
        attempts = list(self.attempts)
        for i, lines in notes.items():
            text = "\n".join(filter(None, lines)) or "(no note)"
            attempts[i] = Attempt(text, attempts[i].reward, attempts[i].feedback)
        cut = [
            text.format(", ".join(str(i + 1) for i in sorted(set(which))))
            for text, which in (
                ("all but notes on attempts {}", notes),
                ("attempts {} were read without their middle", self.unread),
                ("some notes on attempts {} failed", failed),
            )
            if which
        ]
        return SummarizedGroup(attempts, "; ".join(cut))

    def _prompt(self, attempt: Attempt, piece: str, part: int, parts: int) -> str:
        reward, fence = reward_text(attempt.reward), prompts.nonce(self._task, piece)
        values = {"reward": reward, "part": part, "parts": parts, "piece": piece}
        return prompts.render("notes", task=self._task, fence=fence, **values)


def _plan(model: Model, group: Group, max_tokens: int) -> _NotesPlan | None:
    attempts = attempts_of(group.attempts, group.task.hint)
    budget = group_budget(model, group, max_tokens)
    shortest = sum(model.count_tokens(attempt.words(tools=0.1)) for attempt in attempts)
    long = budget > 0 and shortest > NOTES_FROM * budget
    return _NotesPlan(model, group, attempts, budget) if long else None


def _pieces(model: Model, attempt: Attempt, size: int) -> list[str]:
    """The attempt in pieces of at most `size` tokens, turns whole if they fit."""
    turns = [turn.text(lambda text: shortened(text, TOOL_CHARACTERS)) for turn in attempt.turns]
    pieces: list[str] = []
    left = 0
    for block in turns or [attempt.words()]:
        for part, tokens in _split(model, block, size):
            if tokens <= left:
                pieces[-1] += f"\n{part}"
                left -= tokens + 1
            else:
                pieces.append(part)
                left = size - tokens - 1
    return pieces


def _split(model: Model, text: str, size: int) -> list[tuple[str, int]]:
    """The text, halved until each part has at most `size` tokens, with their tokens. A part that
    may begin within a line is marked as quoted."""
    tokens, half = model.count_tokens(text), len(text) // 2
    if tokens <= size or len(text) < 4 * len(QUOTED):
        return [(text, tokens)]
    return _split(model, text[:half], size) + _split(model, QUOTED + text[half:], size)
