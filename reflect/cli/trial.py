"""reflect trial: the measured effect of lessons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from reflect.cli.common import Json, Seed, with_workspace
from reflect.cli.output import print_json, print_status, print_table, progress, to_dict
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.records import Lesson, Trial
    from reflect.stats.confidence import Effect
    from reflect.workspace.workspace import Workspace

OTHER = "measured with another verifier or system prompt"
FIGURES = "kind version effect low high n verdict moved model_fingerprint adapter_id measure"


@with_workspace("k model base_url judge profile")
def trial(
    ws: Workspace,
    lesson: int | None = Argument(None, metavar="LESSON", help="A lesson's id. [default: all]"),
    aa: str | None = Option(
        None, metavar="TASKSET", help="Run the same prompts twice to measure the noise."
    ),
    bundle: str | None = Option(None, metavar="TASKSET", help="Measure all its lessons together."),
    n: int | None = Option(None, "-n", "--tasks", min=1, help="Number of tasks. [--aa: 40]"),
    effect: float = Option(0.1, min=0.01, max=1.0, help="Smallest effect to detect."),
    taskset: str | None = Option(None, help="Tasks to compare on. [default: the lesson's scope]"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show the effect of each lesson, measured by withholding it.

    Ordinary runs measure it too. `reflect trial LESSON --tasks N` compares at once, on the same
    tasks and seeds with the lesson and without it, if there is no verdict yet. `--bundle TASKSET`
    measures all its lessons together. `--aa TASKSET` runs identical prompts twice.
    """
    for option, name, hint in (
        ("--aa", aa, "It measures the noise of a taskset: reflect trial --aa TASKSET"),
        ("--bundle", bundle, "All lessons of a taskset: reflect trial --bundle TASKSET"),
    ):
        if name is not None and lesson is not None:
            raise UsageError(f"{option} takes no lesson.", hint)
    if aa is not None:
        return aa_report(ws, aa, n or 40, seed, json)
    if bundle is not None:
        return compare_bundle(ws, bundle, n, seed, json)
    if n is None:
        return verdicts(ws, lesson, json)
    if lesson is None:
        raise UsageError("Which lesson is to be compared?", "reflect trial LESSON --tasks N")
    compare(ws, lesson, taskset, n, effect, seed, json)


# -- the verdicts so far


def verdicts(ws: Workspace, lesson_id: int | None, json: bool) -> None:
    """The newest trial of each lesson, or of one."""
    from reflect.store import lessons, nights, trials
    from reflect.trials.bundle import describe

    with ws.store.read() as s:
        profile = ws.settings.profile if lesson_id is None else lessons.get(s, lesson_id).profile
        active = nights.active_adapter(s, profile)
        adapter_id = active.id if active else None
        lesson_trials = trials.of_day(s, profile, lesson_id)
        versions = reward_versions(ws, {lesson.scope for lesson, _ in lesson_trials})
        rows = [
            verdict_row(x, found, trials.since(s, x), adapter_id, versions.get(x.scope))
            for x, found in lesson_trials
        ]
        bundles = trials.newest_bundles(s, profile) if lesson_id is None else []
    if json:
        return print_json(rows)
    for run in bundles:
        print(f"bundle {run.taskset}: {describe(run.bundle)}")
    cells = []
    for row in rows:
        effect, interval = None, None
        if "effect" in row:
            effect, interval = f"{row['effect']:+.2f}", f"{row['low']:+.2f} to {row['high']:+.2f}"
        rest = [row["n"], row["verdict"], row["missing"]]
        cells.append([row["lesson"], row["status"], effect, interval, *rest])
    print_table(cells, "lesson, status, effect, 95 % interval, n, verdict, missing")
    if not rows:
        print_status("No lesson is on trial. Practise first: reflect run TASKSET")


def reward_versions(ws: Workspace, scopes: Iterable[str]) -> dict[str, str]:
    """Taskset -> version of its reward, for the installed tasksets among the scopes."""
    from reflect.trials.reward_version import reward_version

    versions = {}
    for scope in filter(None, scopes):
        with suppress(Exception):  # any error of a user's taskset: `reflect tasks check` shows it
            versions[scope] = reward_version(ws.taskset(scope))
    return versions


def verdict_row(
    lesson: Lesson,
    lesson_trials: Sequence[Trial],
    since: int,
    adapter_id: int | None,
    reward_version: str | None = None,
) -> dict[str, Any]:
    """The newest figures of a lesson, and what is missing for a verdict on its present text.

    An accepted lesson is on trial again from then on, because its effect may change: its verdict is
    reported with the new estimate (`watch`) until there is another verdict.
    """
    row: dict[str, Any] = {"lesson": lesson.id, "status": lesson.status, "pinned": lesson.pinned}
    row |= {"when": lesson.when, "do": lesson.do}
    if not lesson_trials:
        return row | {"verdict": "undecided", "n": 0, "missing": "no rollouts yet"}
    trial, before = lesson_trials[-1], [x for x in lesson_trials if x.moved == since]
    if before and trial.moved is None and trial.verdict == "undecided":
        watch, trial = trial, before[-1]
        if watch is not trial:
            row["watch"] = trial_json(watch)
    row |= trial_json(trial)
    changed = reward_version is not None and trial.measure != reward_version
    if changed and "watch" not in row:
        return row | {"missing": f"a new trial: {OTHER}"}
    if trial.moved is None and (trial.version != since or trial.adapter_id != adapter_id):
        return row | {"missing": "a new trial: the lesson or the adapter has changed"}
    if "watch" in row:
        note = f"{OTHER}; " if changed else ""
        return row | {"missing": f"{note}since then {effect_of(watch)} over {watch.n}"}
    more = effect_of(trial).more()
    missing = "more rollouts" if more is None else f"about {more} more rollouts at this effect"
    return row | {"missing": missing if more != 0 else ""}


def trial_json(trial: Trial) -> dict[str, object]:
    """The figures of a trial."""
    row = to_dict(trial)
    return {name: value for name, value in row.items() if name in FIGURES.split()}


def effect_of(trial: Trial) -> Effect:
    """The estimate of a trial."""
    from reflect.stats.confidence import Effect

    return Effect(trial.effect, trial.low, trial.high, trial.n, trial.verdict)  # type: ignore[arg-type]


# -- comparisons that spend rollouts


def compare(
    ws: Workspace, lesson_id: int, name: str | None, n: int, effect: float, seed: int, json: bool
) -> None:
    """Rollouts with and without the lesson on the same tasks and seeds."""
    from reflect.store import lessons
    from reflect.trials import comparison

    scope = name or ws.context.read(lessons.get, lesson_id).scope
    if not scope:
        hint = "Say where to compare: --taskset TASKSET"
        raise UsageError(f"Lesson {lesson_id} is for every taskset.", hint)
    context, k = ws.context.practice_on(scope), ws.settings.k
    plan = comparison.plan(context, lesson_id, n=n, k=k, wanted=effect, seed=seed)
    known = f"{plan.known} over {plan.known.n} rollouts" if plan.known.n else "no rollouts yet"
    if plan.known.verdict != "undecided":
        verdict = f"{plan.known.verdict}, {known}. Nothing is spent on it."
        print_status(f"Lesson {lesson_id} has its verdict: {verdict}")
        return verdicts(ws, lesson_id, json)
    print_status(f"Lesson {lesson_id} is undecided: {known}.")
    print_status(
        f"An effect of {effect:.2f} needs about {plan.needed} pairs (standard deviation "
        f"{plan.sd:.2f}); {len(plan.tasks)} tasks x {plan.k} = {plan.pairs} pairs find one of "
        f"{plan.smallest:.2f}."
    )
    with progress() as bar:
        trial = comparison.compare(replace(context, progress=bar), plan)
    if json:
        data = {"needed": plan.needed, "planned": plan.pairs, "smallest": round(plan.smallest, 4)}
        return print_json(to_dict(trial) | data)
    status = "active" if trial.verdict == "accept" else "retired"
    moved = f"; lesson {lesson_id} is now {status}" if trial.moved else ""
    print(f"lesson {lesson_id}: {trial.verdict}, {effect_of(trial)} over {trial.n} pairs{moved}")


def compare_bundle(ws: Workspace, name: str, n: int | None, seed: int, json: bool) -> None:
    """All lessons of a taskset: as its runs measured them, or compared with none on n tasks now."""
    from reflect.store import trials
    from reflect.trials import comparison
    from reflect.trials.bundle import describe

    taskset, settings = ws.taskset(name), ws.settings
    if n is None:
        rows = ws.context.read(trials.newest_bundles, settings.profile, taskset.name)
        if json:
            figures = rows[0].bundle | {"run": rows[0].id} if rows else {}
            return print_json({"taskset": taskset.name, **figures})
        if not rows:
            hint = f"Practise first: reflect run {name}"
            return print_status(f"Nothing is known of the lessons of {name} together. {hint}")
        return print(f"bundle {name}: {describe(rows[0].bundle)}")
    with progress() as bar:
        context = ws.context.practice_on(taskset, bar)
        effect = comparison.compare_bundle(context, n=n, k=settings.k, seed=seed)
    if json:
        return print_json({"taskset": taskset.name, "kind": "paired", **asdict(effect)})
    print(f"bundle {taskset.name}: {describe(asdict(effect), 'pairs')}")


def aa_report(ws: Workspace, name: str, n: int, seed: int, json: bool) -> None:
    """Identical prompts twice: the noise of a taskset."""
    from reflect.trials import comparison

    taskset = ws.taskset(name)  # an unknown name is an error before the model is loaded
    with progress() as bar:
        context = ws.context.practice_on(taskset, bar)
        result = comparison.run_twice(context, n=n, k=ws.settings.k, seed=seed)
    if json:
        return print_json(result)
    noise, size = result.noise, f"{result.tasks} tasks x {result.k} rollouts"
    print(f"{result.taskset}: {size}, twice: {result.first:.3f} and {result.second:.3f}")
    floor = f"95 % of trials without an effect measure less than {noise.floor:.3f}"
    print(f"noise: {noise.noise:.2f} within a task; {floor}")
    rollouts = 2 * result.tasks * result.k
    print(f"smallest effect that {rollouts} rollouts resolve: {noise.smallest:.3f}")
    print(f"false alarms in 200 trials without an effect: {noise.alarms:.1%}")
