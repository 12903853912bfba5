"""Select the lessons for a prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from sqlmodel import Session

from reflect.lessons.similarity import FILLERS, normal
from reflect.records import SHOWN_STATUSES, Lesson
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import lessons as db
from reflect.store import search, trials
from reflect.types import LessonStatus

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.base import Model
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Task

# lessons looked at for one prompt: the most relevant, and as many of the taskset's and general ones
POOL = 50
MAX_TOKENS = 120  # of one lesson's line
UNRELATED = 0.25  # relevance of a lesson that shares no word with the task; the best match has 1
UNKNOWN = 0.1  # the effect that is assumed for a lesson without a verdict
FIRES, STEM = 0.5, 4  # see `fires`
# words of conditions and questions that say nothing about what these are about
EMPTY = FILLERS | set("asked what where which who how at to on with and or about say tell".split())
AROUND = 32  # tokens kept free for the text around lessons and for the chat template
# if not all fit: share of the practice tasks in which a lesson without a verdict goes first
TRIED = 0.25

Count = Callable[[str], int]


def format_lesson(when: str, do: str) -> str:
    """The line of a lesson in a prompt; its token cost is counted on this."""
    return f"- when: {when} do: {do}"


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
    them. `state`: searched instead of the task's text.

    If there are more, relevance x measured effect decides (see `rank_score`): lessons whose
    condition shares words with the task come before the others of the taskset's scope and the
    general ones, for a condition such as "counting letters in a word" need not share a word with a
    task that it fits; among equals those that are proven to help. A lesson without a verdict must
    be tried, so in some practice tasks one place is for such a lesson.

    A lesson whose condition names something that the task does not mention is left out (see
    `misses`); distilled lessons still show which conditions are of one family. So is one with a tag
    `task:KEY` of another task.
    """
    scopes, distilled = [taskset_name, ""], LessonStatus.DISTILLED
    about = state or task.text
    find = partial(search.pool, profile=profile, scopes=scopes, limit=POOL)
    pool = find(s, about, statuses=statuses, task=task.key)
    conditions = [row.when for row in pool]
    if pool and distilled not in statuses:
        where = partial(search.conditions, profile=profile, scopes=scopes, limit=POOL)
        conditions += where(s, statuses=[distilled.value])
    missed = misses(conditions, about)
    fits = [row for row, miss in zip(pool, missed, strict=False) if not miss]
    count = lru_cache(maxsize=None)(lambda row: count_tokens(format_lesson(row.when, row.do)))
    if len(fits) > limit or sum(map(count, fits)) > budget:
        fits = _ordered(s, fits, task)
    chosen: list[int] = []
    for row in fits:
        if len(chosen) == limit:
            break
        if count(row) <= budget:
            chosen.append(row.id)
            budget -= count(row)
    return db.by_ids(s, chosen)


def rank_score(score: float, proven: float | None) -> float:
    """The expected use of a lesson in a prompt: relevance x measured effect.

    `score`: its full-text score divided by the best one, in [0, 1]. `proven`: the end of the
    interval of its effect that is nearer to 0; None if there is no verdict on its text.
    """
    return (UNRELATED + (1 - UNRELATED) * score) * max(UNKNOWN + (proven or 0.0), 0.01)


def _ordered(s: Session, fits: Sequence[search.Match], task: Task) -> list[search.Match]:
    """The best first; if this task is to try something, a lesson without a verdict before them."""
    proven = trials.proven_effects(s, [row.id for row in fits])
    best = max((row.score for row in fits), default=0.0) or 1.0
    value = {row.id: rank_score(row.score / best, proven.get(row.id)) for row in fits}
    order = sorted(fits, key=lambda row: -value[row.id])  # stable: equals keep their order
    untried = [row for row in fits if row.id not in proven]
    if task.split == "practice" and untried and _draw(task.key) < TRIED:
        first = max(untried, key=lambda row: value[row.id] * _draw(f"{task.key}/{row.id}"))
        order = [first, *(row for row in order if row.id != first.id)]
    return order


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, so that a prompt is repeatable."""
    return int.from_bytes(hashlib.sha256(f"choose/{text}".encode()).digest()[:8], "big") / 2**64


def lessons_for(
    model: Model,
    s: Session,
    taskset: Taskset,
    task: Task,
    settings: Settings,
    statuses: Sequence[str] = SHOWN_STATUSES,
) -> list[Lesson]:
    """The lessons in the prompt of this task at run time, by the settings; all that may come if the
    taskset is `stepwise` (see `PerTurnLessons`)."""
    select = partial(
        select_lessons,
        taskset_name=taskset.name,
        task=task,
        profile=settings.profile,
        count_tokens=model.count_tokens,
        statuses=statuses,
        limit=settings.lesson_limit,
        budget=room_for_lessons(task, settings, model.context, model.count_tokens),
    )
    if not taskset.stepwise:
        return select(s)
    engine = s.get_bind()

    @lru_cache(maxsize=1024)  # many episodes come to the same state
    def at(state: str) -> tuple[Lesson, ...]:
        with Session(engine, expire_on_commit=False) as now:
            return tuple(select(now, state=state))

    listing = partial(db.listing, s, settings.profile, statuses, limit=4 * POOL)
    every = [lesson for scope in (taskset.name, "") for lesson in listing(scope)]
    return PerTurnLessons(every, lambda state: list(at(state)))


def room_for_lessons(task: Task, settings: Settings, context: int, count_tokens: Count) -> int:
    """Tokens of lessons in the prompt of this task: `lesson_budget`, or less if task and answer
    leave less of the context.

    So if the context is short, lessons are left out before the task is cut. At most a quarter of
    the context is kept free for the answer: a longer one is cut there, as it is without lessons.
    """
    own = [format_lesson(when, do) for when, do in task.lessons]
    used = sum(map(count_tokens, [*own, *(str(m.get("content") or "") for m in task.messages)]))
    answer = min(settings.max_tokens, context // 4)
    return max(0, min(settings.lesson_budget, context - used - answer - AROUND))


def misses(conditions: Sequence[str], text: str) -> list[bool]:
    """For each condition: does it belong to a family that differs in one word only, its word not
    being in `text`?

    "the task says zubi" and "the task says fapo" are such a family; for a task about fapo the first
    is noise. A family of two in which neither word is in the text may be about something that no
    task names, and is kept; so is a condition of two words.
    """
    words = set(normal(text).split())
    forms = [_forms(condition) for condition in conditions]
    families: dict[str, set[str]] = {}
    for pairs in forms:
        for word, form in pairs:
            families.setdefault(form, set()).add(word)
    telling = {
        form
        for form, family in families.items()
        if len(family) > 2 or (len(family) == 2 and not family.isdisjoint(words))
    }
    return [any(form in telling and word not in words for word, form in pairs) for pairs in forms]


def about(task: Task, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons whose condition fires on the task (per turn: all of them)."""
    if isinstance(lessons, PerTurnLessons):
        return list(lessons)
    fire = fires([x.when for x in lessons], task.text)
    return [x for x, fired in zip(lessons, fire, strict=True) if fired]


def fires(conditions: Sequence[str], text: str) -> list[bool]:
    """For each condition: is the text about it?

    It is if the condition shares with the text at least half of what the best one shares. A word
    that few conditions have counts for more; words are equal by their first four letters. One
    condition alone always fires, for "counting letters" need not share a word with its tasks.
    """
    rows = [_content(condition) for condition in conditions]
    spread = Counter(word for row in rows for word in row)
    words = _content(text)
    shared = [sum(1 / spread[word] for word in row & words) for row in rows]
    most = max(shared, default=0.0)
    return [value >= FIRES * most for value in shared]


def _content(text: str) -> set[str]:
    return {word.rstrip("s")[:STEM] for word in normal(text).split() if word not in EMPTY}


@lru_cache(maxsize=4096)  # the pools of two prompts hold mostly the same lessons
def _forms(condition: str) -> list[tuple[str, str]]:
    """(word, the condition with this word blanked) for each word; none for two words or fewer."""
    row = normal(condition).split()
    blanked = ((word, [*row[:i], "", *row[i + 1 :]]) for i, word in enumerate(row))
    return [(word, " ".join(form)) for word, form in blanked] if len(row) > 2 else []
