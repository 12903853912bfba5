"""Asking a model for many answers of which some may fail: what was answered is kept, and never asked for again."""

from __future__ import annotations

from collections.abc import Sequence

from reflect.errors import ModelError, ModelHalted
from reflect.models.base import Completion, Model, Request

Answer = Completion | ModelError


def ask(model: Model, requests: Sequence[Request]) -> list[list[Answer]]:
    """For each request one answer, or an error of its own, per seed.

    A model with a method `answer_each` (one whose answers cost something) says so itself, each request asked once. Of
    any other, one request that cannot be answered does not take the others with it: they are asked again, one by one.
    """
    answer = getattr(model, "answer_each", None)
    if answer is not None:
        found: list[list[Answer]] = answer(requests)
        return found
    if not requests:
        return []
    try:
        return [list(row) for row in model.sample(requests)]
    except ModelError as whole:
        if len(requests) == 1:
            return [[whole] * len(requests[0].seeds)]
    return [row for request in requests for row in ask(model, [request])]


def sample_each(model: Model, requests: Sequence[Request]) -> list[list[Completion] | ModelError]:
    """The completions of each request, or the error of the first that is missing. Raises ModelHalted where the model
    answers nothing more."""
    rows: list[list[Completion] | ModelError] = []
    for answers in ask(model, requests):
        failed = [one for one in answers if isinstance(one, ModelError)]
        rows.append(failed[0] if failed else [one for one in answers if isinstance(one, Completion)])
        if failed and isinstance(failed[0], ModelHalted):
            raise failed[0]
    return rows
