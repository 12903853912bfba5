"""Which lessons stand in a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from sqlmodel import Session

from reflect.config import Settings
from reflect.lessons.similarity import normal
from reflect.models.base import Model
from reflect.records import SHOWN_STATUSES, Lesson
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import lessons as db
from reflect.store import search, trials
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task

# lessons looked at for one prompt: the most relevant, and as many of the taskset's and the general
# ones
POOL = 50
MAX_TOKENS = 120  # of one lesson's line
UNRELATED = 0.25  # relevance of a lesson that shares no word with the task; the best match has 1
UNKNOWN = 0.1  # the effect that a lesson without a verdict is given the credit of
AROUND = (
    32  # tokens kept free for what stands around lessons in a prompt, and for the chat template
)
# where not all fit: share of the practice tasks in which a lesson without a verdict goes first
TRIED = 0.25

Count = Callable[[str], int]


def format_lesson(when: str, do: str) -> str:
    """The lesson as it stands in a prompt; its token cost is counted on this."""
    return f"- when: {when} do: {do}"


# -- choosing
# ----------------------------------------------------------------------------------------------------------


def select_lessons(
    s: Session,
    taskset_name: str,
    task: Task,
    *,
    profile: str,
    budget: int,
    limit: int,
    count_tokens: Count,
    statuses: Sequence[str] = SHOWN_STATUSES,
    state: str = "",
) -> list[Lesson]:
    """The lessons for this task's prompt, by id: at most `limit` lessons and `budget` tokens of
    them. `state`: what is searched in the place of the task's text.

    Where there are more, relevance x measured effect decides (see `worth`): lessons whose condition
    shares words with the task before the others of the taskset's scope and the general ones, for a
    condition such as "counting letters in a word" need not share a word with a task that it fits;
    among equals those that are proven to help. What nothing is known of must be tried, so in some
    practice tasks one place is for such a lesson.

    A lesson whose condition names something that the task does not speak of is left out (see
    `misses`); those that have left the prompt for the weights still tell which conditions are of
    one family. So is one with a tag `task:KEY` where the task has another key.
    """
    where: dict[str, Any] = {"profile": profile, "scopes": [taskset_name, ""], "limit": POOL}
    about = state or task.text
    pool = search.pool(s, about, statuses=statuses, task=task.key, **where)
    slept = (
        search.conditions(s, statuses=["distilled"], **where)
        if pool and "distilled" not in statuses
        else []
    )
    off = misses([*(found.when for found in pool), *slept], about)
    fits = [found for found, missed in zip(pool, off, strict=False) if not missed]
    costs = {
        found.id: count_tokens(format_lesson(found.when, found.do)) for found in fits[: limit + 1]
    }
    if len(fits) > limit or sum(costs.values()) > budget:
        fits = _ordered(s, fits, task)
    chosen: list[int] = []
    left = budget
    for found in fits:
        if len(chosen) == limit:
            break
        cost = costs.get(found.id) or count_tokens(format_lesson(found.when, found.do))
        if cost <= left:
            chosen.append(found.id)
            left -= cost
    return db.by_ids(s, chosen)


def rank_score(score: float, proven: float | None) -> float:
    """What a lesson may bring to a prompt: relevance x measured effect.

    `score`: its full-text score divided by the best one, in [0, 1]. `proven`: the end of the
    interval of its effect that is nearer to 0, which is what is proven of it; None where there is
    no verdict on its text.
    """
    return (UNRELATED + (1 - UNRELATED) * score) * max(UNKNOWN + (proven or 0.0), 0.01)


def _ordered(s: Session, fits: Sequence[search.Found], task: Task) -> list[search.Found]:
    """The best first; where it is this task's turn to try something, a lesson that has no verdict
    before all others."""
    proven = trials.proven_effects(s, [found.id for found in fits])
    best = max((found.score for found in fits), default=0.0) or 1.0
    value = {found.id: rank_score(found.score / best, proven.get(found.id)) for found in fits}
    order = sorted(
        fits, key=lambda found: -value[found.id]
    )  # stable: among equals as they were found
    untried = [found for found in fits if found.id not in proven]
    if task.split == "practice" and untried and _lot(task.key) < TRIED:
        first = max(untried, key=lambda found: value[found.id] * _lot(f"{task.key}/{found.id}"))
        order = [first, *(found for found in order if found.id != first.id)]
    return order


def _lot(words: str) -> float:
    """A number in [0, 1) that depends on the words alone: the same prompt, however often it is
    asked for."""
    return int.from_bytes(hashlib.sha256(f"choose/{words}".encode()).digest()[:8], "big") / 2**64


def lessons_for(
    model: Model,
    s: Session,
    taskset: Taskset,
    task: Task,
    settings: Settings,
    statuses: Sequence[str] = SHOWN_STATUSES,
) -> list[Lesson]:
    """The lessons that stand in the prompt of this task at run time, by the settings; where the
    taskset is `stepwise` all that may come (see `PerTurnLessons`)."""
    words: dict[str, Any] = {
        "profile": settings.profile,
        "count_tokens": model.count_tokens,
        "statuses": statuses,
    }
    within: dict[str, Any] = {"limit": settings.lesson_limit}
    within["budget"] = room_for_lessons(task, settings, model.context, model.count_tokens)
    if not taskset.stepwise:
        return select_lessons(s, taskset.name, task, **within, **words)
    engine = s.get_bind()

    @lru_cache(maxsize=1024)  # many episodes come to the same state
    def found(state: str) -> tuple[Lesson, ...]:
        with Session(engine, expire_on_commit=False) as now:
            return tuple(select_lessons(now, taskset.name, task, state=state, **within, **words))

    scopes = (taskset.name, "")
    every = [
        lesson
        for scope in scopes
        for lesson in db.listing(s, settings.profile, statuses, scope, limit=4 * POOL)
    ]
    return PerTurnLessons(every, lambda state: list(found(state)))


def room_for_lessons(task: Task, settings: Settings, context: int, count_tokens: Count) -> int:
    """Tokens of lessons in the prompt of this task: `lesson_budget`, or what the context leaves
    beside task and answer.

    So where it is short lessons go, the least worth first, before the task is touched. Of the
    answer a quarter of the context is kept free at most: a longer one is cut there, as it is
    without lessons."""
    own = [format_lesson(when, do) for when, do in task.lessons]
    taken = sum(
        count_tokens(text) for text in (*own, *(str(m.get("content") or "") for m in task.messages))
    )
    answer = min(settings.max_tokens, context // 4)
    return max(0, min(settings.lesson_budget, context - taken - answer - AROUND))


def misses(conditions: Sequence[str], text: str) -> list[bool]:
    """For each condition: does it belong to a family that differs in one word only, its word not
    being in `text`?

    "the task says zubi" and "the task says fapo" are such a family; for a task about fapo the first
    is noise. A family of two in which neither word is in the text may be about something that no
    task names, and is kept; so is a condition of two words, which is hardly a form.
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
    """(word, the condition with this word blanked) for each of its words; none where it is too
    short to be a form."""
    row = normal(condition).split()
    return (
        [(word, " ".join([*row[:i], "", *row[i + 1 :]])) for i, word in enumerate(row)]
        if len(row) > 2
        else []
    )
