"""Requests to a model of which some may fail: answers are kept and not requested again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.errors import ModelError, ModelHalted
from reflect.models.base import Completion, MeteredModel, Model, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

Answer = Completion | ModelError


def ask(model: Model, requests: Sequence[Request]) -> list[list[Answer]]:
    """For each request one answer, or an error of its own, per seed.

    A MeteredModel gets each request once. With another model, if one request fails, all are sent
    again one by one.
    """
    if isinstance(model, MeteredModel):
        return model.answer_each(requests)
    if not requests:
        return []
    try:
        return [list(row) for row in model.sample(requests)]
    except ModelError as whole:
        if len(requests) == 1:
            return [[whole] * len(requests[0].seeds)]
    return [row for request in requests for row in ask(model, [request])]


def sample_each(model: Model, requests: Sequence[Request]) -> list[list[Completion] | ModelError]:
    """The completions of each request, or the error of the first that is missing. Raises
    ModelHalted if the model answers nothing more."""
    rows: list[list[Completion] | ModelError] = []
    for answers in ask(model, requests):
        failed = [one for one in answers if isinstance(one, ModelError)]
        good = [one for one in answers if isinstance(one, Completion)]
        rows.append(failed[0] if failed else good)
        if failed and isinstance(failed[0], ModelHalted):
            raise failed[0]
    return rows
