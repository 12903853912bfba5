"""stepwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from reflect.records import Lesson


class PerTurnLessons(list[Lesson]):
    """The lessons of an episode that chooses them again at each turn. As a list: all that may come,
    by id."""

    def __init__(self, may_come: Iterable[Lesson], at: Callable[[str], list[Lesson]]) -> None:
        super().__init__(may_come)
        self.at = at  # where things stand, in words -> the lessons of this turn


def only(lessons: Sequence[Lesson], keep: Callable[[Lesson], bool]) -> list[Lesson]:
    """Those of the lessons that are to be kept, at each turn where they are chosen at each."""
    kept = [lesson for lesson in lessons if keep(lesson)]
    if not isinstance(lessons, PerTurnLessons):
        return kept
    at = lessons.at
    return PerTurnLessons(kept, lambda state: [lesson for lesson in at(state) if keep(lesson)])
