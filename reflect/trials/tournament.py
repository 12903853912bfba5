"""Several lessons for one condition compete: each rollout gets one of them, the champion, or none.

Until a lesson of the condition is active, each rollout draws one of the m candidates or none, each
with probability 1 / (m + 1). The trial of a candidate reads the rollouts that drew it or none,
among which chance decided with probability 1/2. Once a lesson is active it is the champion and
takes the place of none: then a challenger is compared with the champion, over all rollouts that
drew one of the two.

Each test of a condition spends its own share of the error rate: the i-th text that was on trial
there spends 6 / (pi^2 i^2), and these sum to 1. So in at most ALPHA / 2 of all tournaments, however
many lessons are proposed and whenever one looks, does a lesson become active that does not help,
and in at most ALPHA / 2 does a challenger replace a champion that is no worse (Ville's inequality
and a union bound; alpha spending as in Foster and Stine 2008).

Not covered: lessons that are chosen again at each turn (stepwise tasksets) are drawn one by one;
lessons whose conditions differ in their words compete in their trials only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.records import SHOWN_STATUSES, Exposure, Lesson
from reflect.stats.confidence import USEFUL, WithheldEstimator
from reflect.store import lessons as db
from reflect.store import trials
from reflect.types import Author, LessonStatus, LinkKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlmodel import Session

    from reflect.types import Json

HALF = 0.5  # the probability of a candidate among the rollouts that drew it or none


@dataclass(frozen=True)
class Rivals:
    """The unpinned lessons of one condition that prompts may show, by id."""

    when: str
    champion: Lesson | None
    """The active one with the smallest id."""
    challengers: tuple[Lesson, ...]


def rival_sets(lessons: Sequence[Lesson]) -> list[Rivals]:
    """The conditions for which two or more of the lessons compete."""
    alike: dict[tuple[str, str], list[Lesson]] = {}
    for lesson in lessons:
        if not lesson.pinned and lesson.status in SHOWN_STATUSES:
            alike.setdefault((lesson.when, lesson.scope), []).append(lesson)
    sets = []
    for (when, _), rows in alike.items():
        rows.sort(key=lambda lesson: lesson.id or 0)
        champion = next((x for x in rows if x.status == LessonStatus.ACTIVE), None)
        if len(rows) > 1:
            sets.append(Rivals(when, champion, tuple(x for x in rows if x is not champion)))
    return sets


def compete(rivals: Rivals, exposures: Mapping[int, Exposure], u: float) -> None:
    """Draw one of the rivals by `u`, uniform in [0, 1), and write it into their exposures.

    A probability of 0 or 1 means that chance did not decide between the lesson and none, so its own
    trial does not read the rollout.
    """
    drawn = int(u * (len(rivals.challengers) + 1))  # 0: the champion, or none
    against_none = rivals.champion is None
    for number, lesson in enumerate(rivals.challengers, 1):
        exposure = exposures[lesson.id or 0]
        exposure.shown = number == drawn
        certain = 1.0 if exposure.shown else 0.0
        exposure.probability = HALF if against_none and drawn in (0, number) else certain
    if rivals.champion:
        exposure = exposures[rivals.champion.id or 0]
        exposure.shown, exposure.probability = drawn == 0, float(drawn == 0)


def error_share(s: Session, lesson: Lesson, version: int) -> float:
    """The share of the error rate for the trial of the lesson from that version on."""
    return share_of(trials.place_of_test(s, lesson, version))


def share_of(place: int) -> float:
    """The share of the error rate of the test with this place, from 1. All shares sum to 1."""
    return 6 / (math.pi * place) ** 2


def decide_duels(s: Session, lesson_ids: Sequence[int], columns: Json) -> None:
    """Compare the challengers of these lessons' conditions with their champions. The better one
    stays, the other is retired. `columns`: of the scope of the evidence, as in a Run."""
    seen: set[tuple[str, str]] = set()
    for lesson_id in lesson_ids:
        lesson = db.get(s, lesson_id)
        if (lesson.when, lesson.scope) not in seen:
            seen.add((lesson.when, lesson.scope))
            for rivals in rival_sets(trials.rivals_of(s, lesson)):
                _compare(s, rivals, columns)


def _compare(s: Session, rivals: Rivals, columns: Json) -> None:
    champion = rivals.champion
    for challenger in rivals.challengers if champion else ():
        assert champion is not None
        duel = WithheldEstimator()
        for row in trials.duels(s, challenger, champion, columns):
            duel.update((row.run_id, row.task_key), row.shown, HALF, row.reward)
        share = error_share(s, challenger, trials.since(s, challenger))
        if duel.above(0.0, share):
            winner, loser, more = challenger, champion, "more"
        elif duel.below(USEFUL):
            winner, loser, more = champion, challenger, f"less than {USEFUL} more"
        else:
            continue
        pair = f"lesson {challenger.id} earns {more} than lesson {champion.id}"
        reason = f"{pair}: {duel.result()} over {duel.n} rollouts"
        if winner.status != LessonStatus.ACTIVE:
            winner = db.revise(
                s, winner.id, author=Author.TRIAL, reason=reason, status=LessonStatus.ACTIVE
            )
        db.revise(s, loser.id, author=Author.TRIAL, reason=reason, status=LessonStatus.RETIRED)
        db.link(s, winner.id, loser.id, LinkKind.SUPERSEDES, reason)
        champion = winner
