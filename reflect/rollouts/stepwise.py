"""Lessons that are selected again at each turn of an episode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.records import Lesson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class PerTurnLessons(list[Lesson]):
    """Lessons that an episode selects again at each turn; as a list all of them, by id."""

    def __init__(self, candidates: Iterable[Lesson], at: Callable[[str], list[Lesson]]) -> None:
        super().__init__(candidates)
        self.at = at
        """The environment's state as text -> the lessons of this turn."""


def only(lessons: Sequence[Lesson], keep: Callable[[Lesson], bool]) -> list[Lesson]:
    """The lessons for which `keep` is true; for PerTurnLessons, at each turn."""
    kept = [lesson for lesson in lessons if keep(lesson)]
    if not isinstance(lessons, PerTurnLessons):
        return kept
    at = lessons.at
    return PerTurnLessons(kept, lambda state: [lesson for lesson in at(state) if keep(lesson)])
