"""Groups that overflow the context many times over: notes on each attempt first, then the
reflection over the notes.

An attempt is read in pieces, in the order of its turns, what tools gave back trimmed before the
model's own words. At most MOST_PIECES of them are read, the first and the last ones; what was not
read is said in the reflection's prompt and in its record. So a group costs at most MOST_PIECES
calls an attempt, however long it is.

Not covered: a note is the model's own word on what it read, and may miss what mattered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reflect import prompts
from reflect.day.packing import Attempt, reward_text
from reflect.day.reflection import MARGIN, SummarizedGroup, attempts_of, room_for
from reflect.errors import ModelError
from reflect.models.base import Completion, Model, Request
from reflect.models.partial import sample_each
from reflect.prompts import sanitize_block
from reflect.records import Lesson, Rollout
from reflect.rollouts.runner import request_for
from reflect.tasksets.task import Task
from reflect.tasksets.tools import shortened

# times the room in the reflection's prompt, tool output trimmed: shorter groups are cut, not noted
NOTES_FROM = 3
MOST_PIECES = 8  # of one attempt, that are read
MOST, LEAST = 96, 16  # tokens of the note on one piece
TOOL_CHARACTERS = 400  # of what came back in one turn

Group = tuple[
    Task, Sequence[Lesson], Sequence[Rollout]
]  # what a reflection is about: see `reflection_messages`


def take_notes(
    model: Model, groups: Sequence[Group], max_tokens: int
) -> list[SummarizedGroup | None]:
    """Notes on the attempts of each group that is too long, in one batched call; None for the
    others.

    `max_tokens` are those of the reflection. Attempts on which a note failed are named in `cut`.
    """
    plans = [_plan(model, *group, max_tokens) for group in groups]
    answers = iter(
        sample_each(model, [request for plan in plans if plan for _, request in plan.jobs])
    )
    return [plan.noted([next(answers) for _ in plan.jobs]) if plan else None for plan in plans]


class _Plan:
    """What is read of each attempt of one group. An attempt that is shorter than a note stands as
    it is."""

    def __init__(self, model: Model, task: Task, attempts: Sequence[Attempt], room: int) -> None:
        self.attempts = attempts
        self.unread: list[int] = []  # attempts, from 0, whose middle nobody reads
        self.jobs: list[
            tuple[int, Request]
        ] = []  # (attempt, the question for a note on one of its pieces)
        self._task = sanitize_block(task.text)
        size = (
            model.context - MOST - MARGIN - model.count_tokens(self._prompt(attempts[0], "", 1, 1))
        )
        prompts_of: list[tuple[int, str]] = []
        for i, attempt in enumerate(attempts):
            if len(attempt.words()) <= MOST:  # characters
                continue
            pieces = list(enumerate(_pieces(model, attempt, max(size, 64)), 1))
            if len(pieces) > MOST_PIECES:
                self.unread.append(i)
            read = (
                pieces
                if len(pieces) <= MOST_PIECES
                else pieces[: MOST_PIECES // 2] + pieces[-MOST_PIECES // 2 :]
            )
            prompts_of += [
                (i, self._prompt(attempt, text, number, len(pieces))) for number, text in read
            ]
        tokens = min(MOST, max(LEAST, room // max(1, len(prompts_of)) - LEAST))
        self.jobs = [
            (i, request_for([{"role": "user", "content": text}], tokens)) for i, text in prompts_of
        ]

    def noted(self, answers: Sequence[list[Completion] | ModelError]) -> SummarizedGroup:
        """The attempts with the notes in their place."""
        notes: dict[int, list[str]] = {i: [] for i, _ in self.jobs}
        failed = []
        for (i, _), answer in zip(self.jobs, answers, strict=True):
            if isinstance(answer, ModelError):
                failed.append(i)
            else:
                notes[i].append(sanitize_block(answer[0].text).strip())
        attempts = [
            Attempt(
                "\n".join(filter(None, notes[i])) or "(no note)", attempt.reward, attempt.feedback
            )
            if i in notes
            else attempt
            for i, attempt in enumerate(self.attempts)
        ]
        said = [
            ("all but notes on attempts {}", notes),
            ("attempts {} were read without their middle", self.unread),
        ]
        said.append(("some notes on attempts {} failed", failed))
        return SummarizedGroup(
            attempts, "; ".join(text.format(_numbers(which)) for text, which in said if which)
        )

    def _prompt(self, attempt: Attempt, piece: str, part: int, parts: int) -> str:
        words = {
            "reward": reward_text(attempt.reward),
            "part": part,
            "parts": parts,
            "piece": piece,
        }
        return prompts.render(
            "notes", task=self._task, fence=prompts.nonce(self._task, piece), **words
        )


def _numbers(attempts: Iterable[int]) -> str:
    return ", ".join(str(i + 1) for i in sorted(set(attempts)))


def _plan(
    model: Model,
    task: Task,
    lessons: Sequence[Lesson],
    rollouts: Sequence[Rollout],
    max_tokens: int,
) -> _Plan | None:
    attempts = attempts_of(rollouts)
    room = room_for(model, task, lessons, max_tokens)
    shortest = sum(model.count_tokens(attempt.words(tools=0.1)) for attempt in attempts)
    return _Plan(model, task, attempts, room) if room > 0 and shortest > NOTES_FROM * room else None


def _pieces(model: Model, attempt: Attempt, size: int) -> list[str]:
    """The attempt in pieces of at most `size` tokens, turns whole where they fit."""
    blocks = [turn.text(shortened(turn.back, TOOL_CHARACTERS)) for turn in attempt.turns] or [
        attempt.text
    ]
    pieces: list[str] = []
    left = 0
    for block in blocks:
        for part, tokens in _split(model, block, size):
            if tokens <= left:
                pieces[-1] += f"\n{part}"
                left -= tokens + 1
            else:
                pieces.append(part)
                left = size - tokens - 1
    return pieces


def _split(model: Model, text: str, size: int) -> list[tuple[str, int]]:
    """The text, halved until each part has at most `size` tokens, with their tokens."""
    tokens = model.count_tokens(text)
    if tokens <= size or len(text) < 2:
        return [(text, tokens)]
    return [
        *_split(model, text[: len(text) // 2], size),
        *_split(model, text[len(text) // 2 :], size),
    ]
