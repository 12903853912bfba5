"""Ask a model for the reviews of groups, and once more where the answer cannot be read."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.day.long_groups import take_notes
from reflect.day.reflection import Group, reflection_messages, response_format
from reflect.errors import ModelError, ModelHalted, SchemaRefused
from reflect.lessons.edit_format import Edit, parse_edits
from reflect.lessons.edit_json import MOST_ASKED
from reflect.models.base import Model, Request, using
from reflect.models.partial import Answer, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.day.packing import Packed

MOST_SHOWN = 2000  # characters of an unreadable answer that the repair turn repeats
MOST_PROBLEMS = 5  # problems that it lists
NEXT = "\n\n----- another proposal -----\n\n"  # between the answers of one review


@dataclass(frozen=True)
class Review:
    """The answer of one reflection, read."""

    packed: Packed
    raw: str
    edits: list[Edit]
    problems: list[str]
    whole: bool
    """The answer was not cut off."""
    model: str
    halted: ModelHalted | None = None
    """Why the model answers nothing more; then there is no answer."""

    @property
    def unreadable(self) -> bool:
        """There is an answer, but no edit or NONE in it that could be read."""
        return bool(self.raw.strip() and self.problems and not self.edits)


def review(
    model: Model,
    groups: Sequence[Group],
    max_tokens: int,
    proposals: int = 1,
    temperature: float = 1.0,
) -> list[Review]:
    """One review per group, by its reviewer adapter or else by the base model: never by the adapter
    of a night, so that edits do not drift with nights. An answer without a readable edit gets one
    repair turn, which says what was wrong; a model with a template of its own, which was not
    trained on repairs, gets none.

    With several `proposals` the others are sampled at `temperature`, and the review has the edits
    of all of them. Unreadable ones among these are left out.
    """
    with using(model, None):
        notes = take_notes(model, groups, max_tokens)
        prompted = [
            reflection_messages(model, group, max_tokens, notes_on)
            for group, notes_on in zip(groups, notes, strict=True)
        ]
        requests = [
            Request(
                messages,
                (0,),
                max_tokens,
                temperature=0.0,
                adapter=group.reviewer,
                response_format=response_format(model, group, max_tokens),
            )
            for group, (messages, _) in zip(groups, prompted, strict=True)
        ]
        answers = [answer for (answer,) in ask(model, requests)]
        refused = [i for i, answer in enumerate(answers) if isinstance(answer, SchemaRefused)]
        if refused:  # the engine cannot compile or follow the form with this model's tokens
            for i in refused:
                requests[i] = replace(requests[i], response_format=None)
            free = ask(model, [requests[i] for i in refused])
            for i, (answer,) in zip(refused, free, strict=True):
                answers[i] = answer
        reviews = [
            read_answer(answer, packed, model.name)
            for answer, (_, packed) in zip(answers, prompted, strict=True)
        ]
        failed = [
            i for i, one in enumerate(reviews) if one.unreadable and requests[i].response_format
        ]
        repairs = (
            ask(model, [repair_request(requests[i], reviews[i]) for i in failed]) if failed else []
        )
        seeds = tuple(range(1, proposals))
        sampled = [replace(x, seeds=seeds, temperature=temperature) for x in requests]
        more = ask(model, sampled) if seeds else [[] for _ in requests]
    for i, (answer,) in zip(failed, repairs, strict=True):
        reviews[i] = _better(reviews[i], read_answer(answer, reviews[i].packed, model.name))
    return [
        functools.reduce(
            _joined, (read_answer(x, first.packed, model.name) for x in answers), first
        )
        for first, answers in zip(reviews, more, strict=True)
    ]


def read_answers(raw: str, whole: bool) -> tuple[list[Edit], list[str]]:
    """The edits, each once, and the problems of a saved review, which may hold several answers."""
    first, *others = raw.split(NEXT)
    edits, problems = parse_edits(first, complete=whole)
    for answer in others:
        known = {edit.wish for edit in edits}
        edits += [edit for edit in parse_edits(answer)[0] if edit.wish not in known]
    return edits, problems


def _joined(review: Review, other: Review) -> Review:
    """The review with the edits of a further proposal."""
    if other.halted or not other.edits or not other.whole:
        return replace(review, halted=review.halted or other.halted)
    raw = f"{review.raw}{NEXT}{other.raw.replace(NEXT, ' ')}"
    edits, problems = read_answers(raw, review.whole)
    return replace(review, raw=raw, edits=edits, problems=problems if edits else review.problems)


def read_answer(answer: Answer, packed: Packed, name: str) -> Review:
    """The review in an answer, or in an error. `name`: of the model, where the answer has none."""
    if isinstance(answer, ModelError):
        halted = answer if isinstance(answer, ModelHalted) else None
        return Review(packed, "", [], [answer.message], False, name, halted)
    whole = answer.finish == "stop"
    edits, problems = parse_edits(answer.text, complete=whole)
    return Review(packed, answer.text, edits, problems, whole, answer.model or name)


def repair_request(request: Request, first: Review) -> Request:
    """The same request with the answer and what was wrong with it."""
    again = prompts.render("repair", problems=first.problems[:MOST_PROBLEMS], most=MOST_ASKED)
    turns = [
        {"role": "assistant", "content": first.raw[:MOST_SHOWN]},
        {"role": "user", "content": again},
    ]
    return replace(request, messages=[*request.messages, *turns])


def _better(first: Review, second: Review) -> Review:
    """The second answer if it can be read, else the first."""
    if second.halted or second.unreadable or not second.raw.strip():
        return first
    if not second.edits:
        return second
    note = f"the first answer could not be read, this is the second: {first.problems[0]}"
    return replace(second, problems=[*second.problems, note])
