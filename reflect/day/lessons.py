"""Which lessons stand in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from sqlmodel import Session

from reflect.config import Settings
from reflect.day.reflection import normal
from reflect.models.base import Model
from reflect.records import SHOWN_STATUSES, Lesson
from reflect.store import lessons as db
from reflect.store import search
from reflect.tasksets.base import Task, Taskset

POOL = 50  # lessons looked at for one prompt: the most relevant, and as many of the taskset's and the general ones
MAX_TOKENS = 120  # of one lesson's line

Count = Callable[[str], int]


def line(when: str, do: str) -> str:
    """The lesson as it stands in a prompt; its token cost is counted on this."""
    return f"- when: {when} do: {do}"


# -- choosing ----------------------------------------------------------------------------------------------------------


def choose(
    s: Session,
    taskset_name: str,
    task: Task,
    *,
    profile: str,
    budget: int,
    limit: int,
    count_tokens: Count,
    statuses: Sequence[str] = SHOWN_STATUSES,
) -> list[Lesson]:
    """The lessons for this task's prompt, by id: at most `limit` lessons and `budget` tokens of them.

    First come lessons whose condition shares words with the task (best match first), then the others of the taskset's
    scope and the general ones: a condition such as "counting letters in a word" need not share a word with a task that
    it fits. A lesson whose condition names something that the task does not speak of is left out (see `misses`); those
    that have left the prompt for the weights still tell which conditions are of one family.
    """

    def pool_of(statuses: Sequence[str]) -> list[tuple[int, str, str]]:
        scopes = [taskset_name, ""]
        return search.pool(s, task.text, profile=profile, statuses=statuses, scopes=scopes, limit=POOL)

    pool = pool_of(statuses)
    slept = pool_of(("distilled",)) if pool and "distilled" not in statuses else []
    off = misses([when for _, when, _ in [*pool, *slept]], task.text)
    chosen: list[int] = []
    left = budget
    for (lesson_id, when, do), missed in zip(pool, off, strict=False):
        if len(chosen) == limit:
            break
        cost = 0 if missed else count_tokens(line(when, do))
        if not missed and cost <= left:
            chosen.append(lesson_id)
            left -= cost
    return db.by_ids(s, chosen)


def lessons_for(
    model: Model,
    s: Session,
    taskset: Taskset,
    task: Task,
    settings: Settings,
    statuses: Sequence[str] = SHOWN_STATUSES,
) -> list[Lesson]:
    """The lessons that stand in the prompt of this task at run time, by the settings."""
    return choose(
        s,
        taskset.name,
        task,
        profile=settings.profile,
        budget=settings.lesson_budget,
        limit=settings.lesson_limit,
        count_tokens=model.count_tokens,
        statuses=statuses,
    )


def misses(conditions: Sequence[str], text: str) -> list[bool]:
    """For each condition: does it belong to a family that differs in one word only, its word not being in `text`?

    "the task says zubi" and "the task says fapo" are such a family; for a task about fapo the first is noise. A family
    of two in which neither word is in the text may be about something that no task names, and is kept; so is a
    condition of two words, which is hardly a form.
    """
    said = set(normal(text).split())
    forms = [_forms(condition) for condition in conditions]
    families: dict[str, set[str]] = {}
    for pairs in forms:
        for word, form in pairs:
            families.setdefault(form, set()).add(word)
    telling = {
        form
        for form, family in families.items()
        if len(family) > 2 or (len(family) == 2 and not family.isdisjoint(said))
    }
    return [any(form in telling and word not in said for word, form in pairs) for pairs in forms]


@lru_cache(maxsize=4096)  # the pools of two prompts hold mostly the same lessons
def _forms(condition: str) -> list[tuple[str, str]]:
    """(word, the condition with this word blanked) for each of its words; none where it is too short to be a form."""
    row = normal(condition).split()
    return [(word, " ".join([*row[:i], "", *row[i + 1 :]])) for i, word in enumerate(row)] if len(row) > 2 else []
