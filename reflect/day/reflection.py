"""The prompt of a reflection: a packed group of rollouts, and the lessons that they saw with their
measured effects.

`prompts/reflect_system.jinja` says what a lesson is and asks for JSON (see
`reflect.lessons.edit_json`). A model that was trained on a wording of its own, such as the pocket
model, has a `reflect.jinja` in its folder, which asks for lines:

    NOTE 1 sort 0, 2 reverse 1
    ADD when: the task says zubi do: use reverse
    REVISE 7 when: the task says zubi do: use rotate
    RETIRE 7 why: reverse failed
    MERGE 3 7 when: the task says zubi do: use rotate
    NONE

Both forms fail closed: an edit that cannot be read is reported, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from reflect import prompts
from reflect.day.packing import Attempt, Packed, pack
from reflect.lessons.edit_json import MOST_ASKED, review_schema
from reflect.models.base import ACTIVE, MeteredModel, reflection_template
from reflect.prompts import inert, lesson_text, quote, sanitize_block
from reflect.rollouts.transcript import Turn, last_words, turns_of
from reflect.types import Trust

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Model
    from reflect.records import Lesson, Rollout, Trial
    from reflect.tasksets.task import Message, Task
    from reflect.types import Json

CLOSE = 64  # last tokens of an answer, in which it is brought to its end
REVIEWER_SYSTEM = "You review."  # short, and in place of a template's own system message
MARGIN = 48  # tokens kept free for the chat template around the prompt


@dataclass(frozen=True)
class Group:
    """The rollouts of one task and the lessons that they saw."""

    task: Task
    shown: list[Lesson]
    """The lessons in the prompt that are still in use."""
    in_weights: list[Lesson]
    """The lessons for this task that the adapter holds."""
    rollouts: list[Rollout]
    missed: frozenset[int] = frozenset()
    """Index of each rollout from which a lesson was withheld."""
    effects: Mapping[int, Trial] = field(default_factory=dict)
    """Lesson id -> its newest trial, for the shown lessons that have one."""
    reviewer: str = ACTIVE
    """The reviewer adapter that reflects on the group; without one, the base does."""

    @property
    def complete(self) -> list[Rollout]:
        """The rollouts that saw all lessons; all rollouts if none did. They show what the lessons
        are worth."""
        return [row for row in self.rollouts if row.index not in self.missed] or self.rollouts

    @property
    def attempts(self) -> list[Rollout]:
        """The rollouts that the reflection reads: the complete ones. If all of these failed, the
        others too: one may have succeeded without the lesson."""
        return self.complete if any(row.reward for row in self.complete) else self.rollouts

    @property
    def trust(self) -> Trust:
        """CHEATED if a rollout was fitted to the tests, else UNTRUSTED if one read bytes from
        outside."""
        worst = {row.trust for row in self.rollouts}
        return next(
            (kind for kind in (Trust.CHEATED, Trust.UNTRUSTED) if kind in worst), Trust.CLEAN
        )


class SummarizedGroup(NamedTuple):
    """Notes in the place of rollouts, and what is missing in them, in words."""

    attempts: list[Attempt]
    cut: str


def has_failures(rollouts: Sequence[Rollout]) -> bool:
    """Is any reward below 1?"""
    return any(r.reward is not None and r.reward < 1.0 for r in rollouts)


def majority_success(rollouts: Sequence[Rollout]) -> bool:
    """Is the mean reward above one half? A rollout without a reward counts as 0."""
    return sum(r.reward or 0.0 for r in rollouts) > len(rollouts) / 2


def rewards_differ(rollouts: Sequence[Rollout]) -> bool:
    """Did some rollouts do better than others? Only then does the group show a way that works."""
    return len({r.reward for r in rollouts if r.reward is not None}) > 1


def attempts_of(rollouts: Sequence[Rollout], hint: str = "") -> list[Attempt]:
    """The rollouts as the reflector reads them, without those in which the model never answered.
    `hint`: of the task, a part of the feedback on failed attempts."""
    answered = (r for r in rollouts if r.messages[-1]["role"] == "assistant" or turns_of(r))
    return [_attempt(r, hint if (r.reward or 0.0) < 1.0 else "") for r in answered]


def _attempt(row: Rollout, hint: str) -> Attempt:
    turns = tuple(
        Turn(t.number, sanitize_block(t.words), sanitize_block(t.back), sanitize_block(t.feedback))
        for t in turns_of(row)
    )
    text = "" if turns else sanitize_block(last_words(row))
    feedback = "\n".join(filter(None, [row.feedback, hint]))
    return Attempt(text, row.reward, sanitize_block(feedback), turns)


def reflection_messages(
    model: Model, group: Group, max_tokens: int, notes: SummarizedGroup | None = None
) -> tuple[list[Message], Packed]:
    """The prompt of one reflection, within the model's context, and what was packed into it.

    It never contains the answer key or the verifier. `notes` replace rollouts that are far too
    long: see `reflect.day.long_groups`.
    """
    attempts = notes.attempts if notes else attempts_of(group.attempts, group.task.hint)
    budget = group_budget(model, group, max_tokens)
    if notes:
        budget -= model.count_tokens(notes.cut)
    if any(attempt.turns for attempt in attempts):
        budget -= MARGIN  # more may be cut, and the prompt says what
    packed = pack(attempts, max(budget, 1), model.count_tokens)
    if notes:
        cut = "; ".join(filter(None, [notes.cut, packed.cut]))
        packed = Packed(packed.text, packed.tokens, cut)
    return _messages(model, group, packed.text, packed.cut), packed


def group_budget(model: Model, group: Group, max_tokens: int) -> int:
    """Tokens that the packed group may have in the prompt of its reflection."""
    rest = _messages(model, group, "", "the middle of some attempts")
    used = sum(model.count_tokens(message["content"]) for message in rest)
    return model.context - max_tokens - MARGIN - used


def quoted_task(task: Task) -> str:
    """The text of the task for a prompt. For similar tasks in one group, a heading of the prompt
    begins each text from the second one on."""
    first, *others = (quote(inert(text)) for text in task.texts)
    return "\n".join([first, *(f"Task of attempt {i}: {text}" for i, text in enumerate(others, 2))])


def response_format(model: Model, group: Group, max_tokens: int) -> Json | None:
    """The form of the answer, for `Request.response_format`; None for a model with a template of
    its own."""
    if _own_template(model) and not group.reviewer:
        return None
    ids = [lesson.id for lesson in group.shown if lesson.id is not None]
    # Servers compile schemas by rules of their own, which may lack the bounds of texts.
    bounded = not isinstance(model, MeteredModel)
    schema = review_schema(ids, max_tokens if bounded else 0)
    form: Json = {
        "type": "json_schema",
        "json_schema": {"name": "review", "schema": schema, "strict": True},
    }
    return form | ({"close_within": CLOSE} if bounded else {})


def prompt_version(model: Model, reviewer: str = ACTIVE) -> str:
    """The hash of the templates of a reflection. Stored with its answer."""
    if reviewer:
        return prompts.version("reviewer")
    if own := _own_template(model):
        return prompts.source_version(own)
    return prompts.source_version(prompts.version("reflect_system") + prompts.version("reflect"))


def effect_text(trial: Trial | None) -> str:
    """The measured effect of a lesson, for the prompt; "" without a trial."""
    if trial is None or not trial.n:
        return ""
    interval = f"95 % interval {trial.low:+.2f} to {trial.high:+.2f}"
    return f"{trial.effect:+.2f} reward ({interval}, {trial.n} attempts): {trial.verdict}"


def _own_template(model: Model) -> str:
    """The template in the model's folder; "" without one, and where the user's own folder has a
    prompts/reflect.jinja."""
    return "" if prompts.is_customized("reflect") else reflection_template(model)


def _messages(model: Model, group: Group, packed: str, cut: str) -> list[Message]:
    lessons = [
        {
            "id": x.id,
            "when": lesson_text(x.when),
            "do": lesson_text(x.do),
            "effect": effect_text(group.effects.get(x.id or 0)),
        }
        for x in group.shown
    ]
    task = quoted_task(group.task)
    texts = "\n".join(f"{row['when']} {row['do']}" for row in lessons)
    fence = prompts.nonce(task, packed, avoid=texts)
    values = {"task": task, "lessons": lessons, "attempts": packed, "cut": cut, "fence": fence}
    if group.reviewer:
        return [
            {"role": "system", "content": REVIEWER_SYSTEM},
            {"role": "user", "content": prompts.render("reviewer", **values)},
        ]
    if own := _own_template(model):
        text = prompts.render_source(own, f"reflect.jinja of {model.name}", **values)
        return [{"role": "user", "content": text}]
    system = prompts.render("reflect_system", most=MOST_ASKED)
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": prompts.render("reflect", **values)},
    ]
