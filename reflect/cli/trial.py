"""reflect trial: what the lessons are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import BaseUrl, Db, Json, JudgeModel, Model, Profile, Seed, workspace
from reflect.cli.output import print_json, print_status, progress, shape, table
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.records import Lesson, Trial
    from reflect.workspace.workspace import Workspace

OTHER = "measured with another verifier or system prompt"


def trial(
    lesson: Annotated[
        int | None, typer.Argument(metavar="LESSON", help="A lesson's id. [default: all]")
    ] = None,
    aa: Annotated[
        str | None,
        typer.Option(metavar="TASKSET", help="Run the same prompts twice to measure the noise."),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="TASKSET", help="Measure all its lessons together.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--tasks", min=1, help="Number of tasks. [--aa: 40]")
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", "--rollouts", min=1, help="Rollouts per task. [default: 8]")
    ] = None,
    effect: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Smallest effect to detect.")
    ] = 0.1,
    taskset: Annotated[
        str | None, typer.Option(help="Tasks to compare on. [default: the lesson's scope]")
    ] = None,
    seed: Seed = 0,
    db: Db = None,
    model: Model = None,
    base_url: BaseUrl = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """What each lesson changes, measured by withholding it.

    Ordinary runs measure it by the way. `reflect trial LESSON --tasks N` compares at once, on the
    same tasks and seeds with the lesson and without it, if there is no verdict yet. `--bundle
    TASKSET` asks the same of all its lessons together. `--aa TASKSET` runs identical prompts twice.
    """
    ws = workspace(db, profile, model, k=k, base_url=base_url, judge=judge)
    if aa is not None:
        if lesson is not None:
            raise UsageError(
                "--aa takes no lesson.",
                "It measures the noise of a taskset: reflect trial --aa TASKSET",
            )
        return aa_report(ws, aa, n or 40, seed, json)
    if bundle is not None:
        if lesson is not None:
            raise UsageError(
                "--bundle takes no lesson.",
                "All lessons of a taskset: reflect trial --bundle TASKSET",
            )
        return together(ws, bundle, n, seed, json)
    if n is None:
        return verdicts(ws, lesson, json)
    if lesson is None:
        raise UsageError("Which lesson is to be compared?", "reflect trial LESSON --tasks N")
    return compare(ws, lesson, taskset, n, effect, seed, json)


# -- the verdicts so far
# -----------------------------------------------------------------------------------------------


def verdicts(ws: Workspace, lesson_id: int | None, json: bool) -> None:
    from reflect.store import lessons, nights, trials
    from reflect.trials.bundle import in_words

    with ws.store.read() as s:
        profile = ws.settings.profile if lesson_id is None else lessons.get(s, lesson_id).profile
        active = nights.active_adapter(s, profile)
        every = trials.of_day(s, profile, lesson_id)
        measures = measures_of(ws, {lesson.scope for lesson, _ in every})
        rows = [
            row_of(
                lesson,
                found,
                trials.since(s, lesson),
                active.id if active else None,
                measures.get(lesson.scope),
            )
            for lesson, found in every
        ]
        bundles = trials.newest_bundles(s, profile) if lesson_id is None else []
    if json:
        return print_json(rows)
    for run in bundles:
        print(f"bundle {run.taskset}: {in_words(run.bundle)}")
    table(
        [
            [
                row["lesson"],
                row["status"],
                row["effect"],
                row["interval"],
                row["n"],
                row["verdict"],
                row["missing"],
            ]
            for row in map(in_cells, rows)
        ],
        ["lesson", "status", "effect", "95 % interval", "n", "verdict", "missing"],
    )
    if not rows:
        print_status("No lesson is on trial. Practise first: reflect run TASKSET")


def measures_of(ws: Workspace, scopes: Iterable[str]) -> dict[str, str]:
    """taskset -> what its rewards mean now; those that are not here are left out, and general
    lessons have no own."""
    from reflect.trials.reward_version import reward_version

    found = {}
    for scope in filter(None, scopes):
        with suppress(
            Exception
        ):  # somebody's taskset: whatever is wrong with it is for `reflect tasks check`
            found[scope] = reward_version(ws.taskset(scope))
    return found


def row_of(
    lesson: Lesson,
    every: Sequence[Trial],
    since: int,
    adapter_id: int | None,
    measure: str | None = None,
) -> dict[str, Any]:
    """What is known of a lesson, and what is missing for a verdict on it as it stands now.

    An accepted lesson is on trial again from then on, because its effect may change: its verdict is
    reported with the new estimate (`watch`) until there is another verdict. `measure`: the version
    of the reward, where it is known.
    """
    row: dict[str, Any] = {"lesson": lesson.id, "status": lesson.status, "pinned": lesson.pinned}
    row |= {"when": lesson.when, "do": lesson.do}
    if not every:
        return row | {"verdict": "undecided", "n": 0, "missing": "no rollouts yet"}
    trial, before = every[-1], [other for other in every if other.moved == since]
    if before and trial.moved is None and trial.verdict == "undecided":
        watch, trial = trial, before[-1]
        if watch is not trial:
            row["watch"] = figures(watch)
    row |= figures(trial)
    anew = measure is not None and trial.measure != measure
    if anew and "watch" not in row:
        return row | {"missing": f"a new trial: {OTHER}"}
    if trial.moved is None and (trial.version != since or trial.adapter_id != adapter_id):
        return row | {"missing": "a new trial: the lesson or the adapter has changed"}
    if "watch" in row:
        return row | {
            "missing": f"{f'{OTHER}; ' if anew else ''}since then {effect_of(watch)} over {watch.n}"
        }
    more = effect_of(trial).more()
    about = "more rollouts" if more is None else f"about {more} more rollouts at this effect"
    return row | {"missing": about if more != 0 else ""}


def figures(trial: Trial) -> dict[str, Any]:
    names = {"kind", "version", "effect", "low", "high", "n", "verdict", "moved"}
    names |= {"model_fingerprint", "adapter_id", "measure"}
    return {name: value for name, value in shape(trial).items() if name in names}


def effect_of(trial: Trial) -> Any:
    from reflect.stats.confidence import Effect

    return Effect(trial.effect, trial.low, trial.high, trial.n, trial.verdict)  # type: ignore[arg-type]


def in_cells(row: dict[str, Any]) -> dict[str, Any]:
    known = "effect" in row
    effect = f"{row['effect']:+.2f}" if known else None
    return row | {
        "effect": effect,
        "interval": f"{row['low']:+.2f} to {row['high']:+.2f}" if known else None,
    }


# -- rollouts spent on a question
# --------------------------------------------------------------------------------------


def compare(
    ws: Workspace, lesson_id: int, name: str | None, n: int, effect: float, seed: int, json: bool
) -> None:
    from reflect.rollouts.context import TasksetContext
    from reflect.store import lessons
    from reflect.trials import comparison

    with ws.store.read() as s:
        scope = name or lessons.get(s, lesson_id).scope
    if not scope:
        raise UsageError(
            f"Lesson {lesson_id} is for every taskset.", "Say where to compare: --taskset TASKSET"
        )
    found = ws.taskset(scope)
    ctx = TasksetContext(ws.model, ws.store, found, ws.settings)
    options: dict[str, Any] = {"n": n, "k": ws.settings.k, "wanted": effect, "seed": seed}
    plan = comparison.plan(ctx, lesson_id, **options)
    told = f"{plan.known} over {plan.known.n} rollouts" if plan.known.n else "no rollouts yet"
    if plan.known.verdict != "undecided":
        print_status(
            f"Lesson {lesson_id} has its verdict: {plan.known.verdict}, {told}. Nothing is spent on it."
        )
        return verdicts(ws, lesson_id, json)
    print_status(f"Lesson {lesson_id} is undecided: {told}.")
    print_status(
        f"An effect of {effect:.2f} needs about {plan.needed} pairs (standard deviation {plan.sd:.2f}); "
        f"{len(plan.tasks)} tasks x {plan.k} = {plan.pairs} pairs find one of {plan.smallest:.2f}."
    )
    with progress() as tell:
        trial = comparison.compare(replace(ctx, progress=tell), plan)
    if json:
        data = {"needed": plan.needed, "planned": plan.pairs, "smallest": round(plan.smallest, 4)}
        return print_json(shape(trial) | data)
    moved = (
        f"; lesson {lesson_id} is now {'active' if trial.verdict == 'accept' else 'retired'}"
        if trial.moved
        else ""
    )
    print(f"lesson {lesson_id}: {trial.verdict}, {effect_of(trial)} over {trial.n} pairs{moved}")


def together(ws: Workspace, name: str, n: int | None, seed: int, json: bool) -> None:
    """All lessons of a taskset: as its runs have measured them, or compared with none on n tasks
    now."""
    from reflect.rollouts.context import TasksetContext
    from reflect.store import trials
    from reflect.trials import comparison
    from reflect.trials.bundle import in_words

    found = ws.taskset(name)
    if n is None:
        with ws.store.read() as s:
            rows = trials.newest_bundles(s, ws.settings.profile, found.name)
        if json:
            return print_json(
                {"taskset": found.name, **(rows[0].bundle | {"run": rows[0].id} if rows else {})}
            )
        if not rows:
            return print_status(
                f"Nothing is known of the lessons of {name} together. Practise first: reflect run {name}"
            )
        return print(f"bundle {name}: {in_words(rows[0].bundle)}")
    with progress() as tell:
        ctx = TasksetContext(ws.model, ws.store, found, ws.settings, progress=tell)
        effect = comparison.compare_bundle(ctx, n=n, k=ws.settings.k, seed=seed)
    if json:
        return print_json({"taskset": found.name, "kind": "paired", **asdict(effect)})
    print(f"bundle {found.name}: {in_words(asdict(effect), 'pairs')}")


def aa_report(ws: Workspace, name: str, n: int, seed: int, json: bool) -> None:
    from reflect.rollouts.context import TasksetContext
    from reflect.trials import comparison

    found = ws.taskset(name)
    with progress() as tell:
        ctx = TasksetContext(ws.model, ws.store, found, ws.settings, progress=tell)
        both = comparison.run_twice(ctx, n=n, k=ws.settings.k, seed=seed)
    if json:
        return print_json(asdict(both))
    noise = both.noise
    print(
        f"{both.taskset}: {both.tasks} tasks x {both.k} rollouts, twice: {both.first:.3f} and {both.second:.3f}"
    )
    print(
        f"noise: {noise.noise:.2f} within a task; 95 % of trials of nothing measure less than {noise.floor:.3f}"
    )
    print(f"smallest effect that {2 * both.tasks * both.k} rollouts resolve: {noise.smallest:.3f}")
    print(f"false alarms in 200 trials of nothing: {noise.alarms:.1%}")
