"""The evidence of the rollouts on lessons, and the trials that are made of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, String, and_, cast, or_, text
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, func, select

from reflect.records import SHOWN_STATUSES, Exposure, Lesson, LessonVersion, Rollout, Run, Trial
from reflect.store import lessons as db
from reflect.store.lesson_evidence import OF_DAY
from reflect.types import Author, Json, LessonStatus, RolloutErrorKind, RunStatus, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

# Not a rollout that waits for a person's grade, nor one whose judge could not be read: neither is
# evidence.
SAYS = or_(
    col(Rollout.reward).is_not(None),
    and_(
        col(Rollout.error).is_not(None),
        col(Rollout.error_kind).is_distinct_from(RolloutErrorKind.JUDGE),
    ),
)

# The verdicts on the present text of some lessons, oldest first. The inner question is asked of few
# rows, by their keys; from a join PostgreSQL would make one of whole tables.
PROVEN = """
    SELECT lesson_id, low, high, verdict, moved FROM trial
    WHERE lesson_id IN ({ids}) AND kind IN ('withhold', 'paired') AND verdict <> 'undecided'
    AND 1 = (
        SELECT count(*) FROM lesson_version v JOIN lesson l ON l.id = v.lesson_id
        WHERE v.lesson_id = trial.lesson_id AND v.version = trial.version
        AND v."when" = l."when" AND v."do" = l."do")
    ORDER BY id"""


class Observation(NamedTuple):
    """One rollout that a lesson was shown to or withheld from. A rollout that broke earned
    nothing."""

    exposure_id: int
    run_id: int
    task_key: str
    seed: int
    """The rollout's: equal seeds of one task are the same draw."""
    shown: bool
    probability: float
    reward: float
    parts: Json


def since(s: Session, lesson: Lesson) -> int:
    """The version from which on the evidence counts: the newest that changed the text, or put the
    lesson into the prompt by another hand than a model's. A model that brings a rejected text back
    brings its evidence back too."""
    versions = db.history(s, lesson.id)
    for old, new in reversed(list(itertools.pairwise(versions))):
        released = new.status in SHOWN_STATUSES and new.status != old.status
        if (old.when, old.do) != (new.when, new.do) or (released and new.author != Author.MODEL):
            return new.version
    return 1


def _observed(exposure: type[Exposure]) -> Any:
    """The columns of an Observation, from exposures with their rollouts and runs."""
    return (
        select(  # type: ignore[call-overload]  # sqlmodel types four columns at most
            exposure.id,
            Rollout.run_id,
            Rollout.task_key,
            Rollout.seed,
            exposure.shown,
            exposure.probability,
            func.coalesce(Rollout.reward, 0.0),
            Rollout.parts,
        )
        .join(Rollout, col(Rollout.id) == col(exposure.rollout_id))
        .join(Run, col(Run.id) == col(Rollout.run_id))
    )


def observations(
    s: Session,
    lesson_id: int | None,
    version: int,
    model_fingerprint: str,
    adapter_id: int | None = None,
    measure: str = "",
    after: int = 0,
    limit: int | None = None,
) -> list[Observation]:
    """The randomised exposures of a lesson from that version on, for one model, adapter and
    measure, in the order in which they were saved; the first `limit` after an exposure's id."""
    query = (
        _observed(Exposure)
        .where(Exposure.lesson_id == lesson_id, Exposure.version >= version)
        .where(col(Exposure.id) > after)
        .where(Exposure.probability > 0.0, Exposure.probability < 1.0)
        .where(Run.model_fingerprint == model_fingerprint, Run.measure == measure)
        .where(col(Rollout.adapter_id).is_not_distinct_from(adapter_id), SAYS)
        .order_by(col(Exposure.id))
        .limit(limit)
    )
    return [Observation(*row) for row in s.exec(query)]


def duels(s: Session, one: Lesson, other: Lesson, columns: Json) -> list[Observation]:
    """The rollouts in which a draw showed one of two lessons with the same condition and left the
    other out (see `reflect.trials.tournament`), by id; `shown`: it was `one`. `columns`: the model,
    adapter and measure, as in a Run."""
    mine, theirs = aliased(Exposure), aliased(Exposure)
    drawn = or_(
        and_(col(mine.shown), ~col(theirs.shown), col(theirs.probability) == 0.0),
        and_(~col(mine.shown), col(theirs.shown), col(mine.probability) == 0.0),
    )
    found = (
        _observed(mine)
        .join(theirs, col(theirs.rollout_id) == col(mine.rollout_id))
        .where(mine.lesson_id == one.id, mine.version >= since(s, one), drawn)
        .where(theirs.lesson_id == other.id, theirs.version >= _text_since(s, other), SAYS)
        .where(*_same(Run, {k: v for k, v in columns.items() if k != "adapter_id"}))
        .where(col(Rollout.adapter_id).is_not_distinct_from(columns["adapter_id"]))
        .order_by(col(mine.id))
    )
    draws = {(row[2], row[3]): Observation(*row) for row in s.exec(found)}  # equal seeds count once
    return list(draws.values())


def _text_since(s: Session, lesson: Lesson) -> int:
    """The version from which on the lesson has its present text."""
    versions = db.history(s, lesson.id)
    for old, new in reversed(list(itertools.pairwise(versions))):
        if (old.when, old.do) != (new.when, new.do):
            return new.version
    return 1


def rivals_of(s: Session, lesson: Lesson) -> list[Lesson]:
    """The lessons of the same condition and scope that prompts may show, by id."""
    same = select(Lesson).where(
        Lesson.profile == lesson.profile, Lesson.when == lesson.when, Lesson.scope == lesson.scope
    )
    shown = same.where(col(Lesson.status).in_(SHOWN_STATUSES))
    return list(s.exec(shown.order_by(col(Lesson.id))))


def place_of_test(s: Session, lesson: Lesson, version: int) -> int:
    """The place of this version, from 1, among all versions of lessons with its condition and scope
    that were candidates."""
    same = select(Lesson.id).where(
        Lesson.profile == lesson.profile, Lesson.when == lesson.when, Lesson.scope == lesson.scope
    )
    mine = db.version(s, lesson.id, version)
    counted = select(func.count()).select_from(LessonVersion)
    counted = counted.where(col(LessonVersion.lesson_id).in_(same))
    counted = counted.where(LessonVersion.status == LessonStatus.CANDIDATE)
    return max(1, s.exec(counted.where(col(LessonVersion.id) <= mine.id)).one())


def _same(table: type[Trial | Run], values: Json) -> list[ColumnElement[bool]]:
    """The rows whose columns have these values; None is a value."""
    return [col(getattr(table, name)).is_not_distinct_from(value) for name, value in values.items()]


def open_trial(s: Session, values: Json) -> Trial:
    """The row of a trial that has moved nothing yet, or a new one that is not saved. `values`:
    lesson_id, version, kind, model_fingerprint, adapter_id, measure."""
    mine = select(Trial).where(*_same(Trial, values), col(Trial.moved).is_(None))
    return s.exec(mine.order_by(col(Trial.id).desc())).first() or new_trial(values)


def new_trial(values: Json) -> Trial:
    """A trial without evidence, not saved."""
    return Trial(**values, effect=0.0, low=-1.0, high=1.0, n=0, verdict=TrialVerdict.UNDECIDED)


def of_day(
    s: Session, profile: str, lesson_id: int | None = None
) -> list[tuple[Lesson, list[Trial]]]:
    """Each lesson that prompts show or that a trial moved, by id, with its trials of the day,
    oldest first."""
    query = select(Lesson).where(Lesson.profile == profile).order_by(col(Lesson.id))
    if lesson_id is not None:
        query = query.where(Lesson.id == lesson_id)
    trials: dict[int | None, list[Trial]] = {}
    for trial in s.exec(select(Trial).where(col(Trial.kind).in_(OF_DAY)).order_by(col(Trial.id))):
        trials.setdefault(trial.lesson_id, []).append(trial)
    rows = [(lesson, trials.get(lesson.id, [])) for lesson in s.exec(query)]
    return [
        (lesson, own)
        for lesson, own in rows
        if lesson_id or lesson.status in SHOWN_STATUSES or any(trial.moved for trial in own)
    ]


def moves(s: Session, run_id: int | None) -> list[tuple[Trial, LessonVersion]]:
    """The verdicts of a run that moved a lesson, each with the version that it made, in order."""
    version = LessonVersion
    origin = and_(
        col(version.lesson_id) == col(Trial.lesson_id), col(version.version) == col(Trial.moved)
    )
    mine = select(Trial, version).join(version, origin).where(Trial.run_id == run_id)
    return [(trial, row) for trial, row in s.exec(mine.order_by(col(version.id)))]


def resting_on(s: Session, run_ids: Sequence[int]) -> set[int]:
    """Those of the runs whose exposures are evidence on the present version of a lesson in
    prompts."""
    exposed = (
        select(Rollout.run_id, Exposure.lesson_id, func.max(Exposure.version))
        .join(Exposure, col(Exposure.rollout_id) == col(Rollout.id))
        .join(Lesson, col(Lesson.id) == col(Exposure.lesson_id))
        .where(col(Rollout.run_id).in_(run_ids), col(Lesson.status).in_(SHOWN_STATUSES))
        .where(Exposure.probability > 0.0, Exposure.probability < 1.0)
        .group_by(col(Rollout.run_id), col(Exposure.lesson_id))
    )
    rows = list(s.exec(exposed))
    begun = {i: since(s, db.get(s, i)) for i in {lesson_id for _, lesson_id, _ in rows}}
    return {run_id for run_id, lesson_id, version in rows if version >= begun[lesson_id]}


def missed(s: Session, run_id: int | None) -> set[int]:
    """The rollouts (by id) of a run from which a lesson was withheld."""
    withheld = select(Exposure.rollout_id).where(col(Exposure.shown).is_(False))
    mine = withheld.join(Rollout, col(Rollout.id) == col(Exposure.rollout_id))
    return set(s.exec(mine.where(Rollout.run_id == run_id)))


def exposed(
    s: Session, run_id: int | None, task_keys: Sequence[str]
) -> dict[str, list[tuple[int, Exposure]]]:
    """task -> (index of the rollout, exposure) of a run, in order."""
    mine = (
        select(Rollout.task_key, Rollout.index, Exposure)
        .join(Exposure, col(Exposure.rollout_id) == col(Rollout.id))
        .where(Rollout.run_id == run_id, col(Rollout.task_key).in_(task_keys))
        .order_by(col(Exposure.id))
    )
    rows: dict[str, list[tuple[int, Exposure]]] = {key: [] for key in task_keys}
    for key, index, exposure in s.exec(mine):
        rows[key].append((index, exposure))
    return rows


def lessons_of(s: Session, run_id: int | None, task_keys: Sequence[str]) -> set[int]:
    """The lessons that were shown to or withheld from rollouts of these tasks in a run."""
    exposures = exposed(s, run_id, task_keys).values()
    return {exposure.lesson_id for rows in exposures for _, exposure in rows}


def proven_effects(s: Session, lesson_ids: Sequence[int]) -> dict[int, float]:
    """lesson id -> the end of its effect's interval that is nearer to 0, by the newest verdict on
    its present text, for those that have one. One query, for whatever model, adapter or measure: it
    orders lessons, and moves none.

    A verdict that took a lesson out of the prompt says nothing of one that was brought back since.
    """
    if not lesson_ids:
        return {}
    query = text(PROVEN.format(ids=", ".join(str(int(i)) for i in lesson_ids)))
    ends: dict[int, float] = {}
    for lesson_id, low, high, verdict, moved in s.connection().execute(query):
        if verdict == TrialVerdict.REJECT and moved is not None:
            ends.pop(lesson_id, None)
        else:
            ends[lesson_id] = max(low, 0.0) + min(high, 0.0)
    return ends


def newest_effects(s: Session, lessons: Sequence[Lesson]) -> dict[int, Trial]:
    """lesson id -> the newest trial of the day on its present text, for those that have one."""
    ids = [lesson.id for lesson in lessons]
    query = select(Trial).where(col(Trial.lesson_id).in_(ids), col(Trial.kind).in_(OF_DAY))
    newest = {trial.lesson_id: trial for trial in s.exec(query.order_by(col(Trial.id)))}
    first = {x.id: since(s, x) for x in lessons if x.id in newest}
    return {i: trial for i, trial in newest.items() if trial.version >= first[i]}


# -- checkpoints


def holders(s: Session, values: Json) -> list[Run]:
    """The runs that hold checkpoints of trial estimates (see `reflect.trials.checkpoints`), oldest
    first. `values`: model_fingerprint, adapter_id, measure and perhaps profile."""
    done = select(Run).where(*_same(Run, values), Run.status == RunStatus.DONE)
    return list(s.exec(done.where(col(Run.checkpoints).is_not(None)).order_by(col(Run.id))))


def twins(s: Session, run_ids: set[int]) -> bool:
    """Has another run of the same taskset the seed of one of these?"""
    other = aliased(Run)
    pair = and_(
        col(other.seed) == col(Run.seed),
        col(other.taskset) == col(Run.taskset),
        col(other.id) != col(Run.id),
    )
    mine = select(Run.id).join(other, pair).where(col(Run.id).in_(run_ids)).limit(1)
    return s.exec(mine).first() is not None


def streams(s: Session, profile: str) -> set[str]:
    """The names of the streams of evidence on the lessons that prompts show: `ID:VERSION`."""
    shown = db.listing(s, profile, SHOWN_STATUSES)
    return {f"{lesson.id}:{since(s, lesson)}" for lesson in shown}


# -- all lessons together


class Together(NamedTuple):
    """One rollout that kept all its lessons, or missed all of them. One that broke earned
    nothing."""

    rollout_id: int
    run_id: int
    task_key: str
    seed: int
    shown: bool
    probability: float
    reward: float


def bundle_observations(
    s: Session, run: Run, after: int = 0, limit: int | None = None
) -> list[Together]:
    """The rollouts with lessons of all runs like this one (see `_like`), in the order in which they
    were saved; the first `limit` after a rollout's id."""
    query = (
        select(  # type: ignore[call-overload]  # sqlmodel types four columns at most
            Rollout.id, Rollout.run_id, Rollout.task_key, Rollout.seed, Rollout.bundle_shown,
            Rollout.bundle_probability, func.coalesce(Rollout.reward, 0.0),
        )
        .join(Run, col(Run.id) == col(Rollout.run_id))
        .where(*_like(run), col(Rollout.id) > after)
        .where(Rollout.bundle_probability > 0.0, Rollout.bundle_probability < 1.0, SAYS)
        .order_by(col(Rollout.id)).limit(limit)
    )  # fmt: skip
    return [Together(*row) for row in s.exec(query)]


def bundle_since(s: Session, run: Run) -> int:
    """The last rollout that counted when lessons were retired because their bundle did harm; 0
    where none were."""
    harmed = cast(Run.bundle, String).contains('"harm"')
    bundles = s.exec(select(Run.bundle).where(*_like(run), harmed))
    harm = [harm for bundle in bundles for harm in bundle.get("harm", ())]
    return max((int(one["since"]) for one in harm), default=0)


def newest_bundles(s: Session, profile: str, taskset: str | None = None) -> list[Run]:
    """The newest run of each taskset that says something of its lessons together, by taskset."""
    mine = select(Run).where(Run.profile == profile).order_by(col(Run.id))
    if taskset is not None:
        mine = mine.where(Run.taskset == taskset)
    newest = {run.taskset: run for run in s.exec(mine) if run.bundle}
    return [newest[name] for name in sorted(newest)]


def accepted(s: Session, lesson: Lesson, values: Json) -> bool:
    """Does the present version of the lesson rest on an accepted trial? `values`:
    model_fingerprint, adapter_id, measure."""
    begun = since(s, lesson)
    own = select(Trial).where(Trial.lesson_id == lesson.id, col(Trial.kind).in_(OF_DAY))
    rows = s.exec(own.where(Trial.verdict == TrialVerdict.ACCEPT, *_same(Trial, values)))
    return any(trial.moved == begun or trial.version >= begun for trial in rows)


def _like(run: Run) -> list[ColumnElement[bool]]:
    """Runs whose bundle is this one's: same taskset, profile, model, adapter and measure."""
    names = ("taskset", "profile", "model_fingerprint", "adapter_id", "measure")
    return _same(Run, {name: getattr(run, name) for name in names})
