"""The story that `reflect demo` tells: a day, an exam, a night, the same exam in the morning."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from reflect.cli.output import clock, progress
from reflect.workspace.workspace import FOUR_ARMS, Workspace

if TYPE_CHECKING:
    from reflect.day.report import Report
    from reflect.evaluation.arms import ArmResult
    from reflect.records import Reflection, Rollout
    from reflect.tasksets.task import Task

Tell = Callable[[str], None]
DAY = {"letters": (24, 8), "dialect": (32, 8), "shop": (48, 3)}  # tasks, and attempts at each
ANY_DAY = (32, 8)  # of other tasksets
EXAM = 96  # holdout tasks of each taskset, the same in every arm
EPISODES = 32  # the same of tasks of several turns
ABOUT = {
    "letters": "How often is a letter in a word? The model reads whole words, never their letters.",
    "dialect": "Made-up verbs stand for operations on lists. What a verb means can only be found out by trying.",
}
HEADS = {
    "base_out": "base",
    "base_in": "base + lessons",
    "adapter_out": "adapter",
    "adapter_in": "adapter + lessons",
}


def live(
    ws: Workspace, names: Sequence[str] = (), *, nights: int, seed: int, tell: Tell
) -> dict[str, Any]:
    """Live through so many days and nights in that workspace, and give back the figures. `names`:
    the tasksets of the days, letters and dialect where there are none."""
    began = time.monotonic()
    tell(
        f"The model: {ws.settings.model}, {parameters(ws) / 1e6:.1f} million weights, with an empty lessons database."
    )
    arms: dict[str, dict[str, ArmResult]] = {}  # taskset -> arm -> result
    rollouts, mornings = 0, []
    for night in range(1, nights + 1):
        today = of_day(ws, names, night)
        for name in today:
            about = ABOUT.get(name.partition(":")[0]) or ws.taskset(name).about
            tell(f"\n== Day {night}: {name}\n{about}")
            rollouts += day(ws, name, seed if name not in arms else seed + night, tell)
            arms[name] = exam(ws, name, ("base_out", "base_in"), seed)
            out, into = arms[name]["base_out"], arms[name]["base_in"]
            words = f"{out.reward:.2f} without lessons, {into.reward:.2f} with them in the prompt."
            tell(f"On {out.n} tasks never practised: {words}")
        shown = [example(ws, name) for name in today]
        told_prompts(ws, shown, "The prompt in the evening", tell)
        tell(f"\n== Night {night}")
        report = sleep(ws, seed, tell)
        told_prompts(ws, shown, "The same prompt in the morning", tell)
        for name in arms:
            arms[name] |= exam(ws, name, ("adapter_out", "adapter_in"), seed)
        told = {
            "night": night,
            "status": report.status,
            "reason": report.reason,
            "adapter": report.adapter,
        }
        mornings.append(told | {"tasksets": shapes(arms)})
    return finish(ws, arms, mornings, rollouts, began, seed, tell)


def of_day(ws: Workspace, names: Sequence[str], night: int) -> list[str]:
    """The tasksets of a day: the same each day, or their next variants where they have any."""
    if not names:
        return ["letters", "dialect"] if night == 1 else [f"dialect:{night}"]
    free = [
        night > 1 and ":" not in name and hasattr(ws.taskset(name), "variant") for name in names
    ]
    return [
        f"{name}:{night}" if another else name for name, another in zip(names, free, strict=True)
    ]


# -- the day
# -----------------------------------------------------------------------------------------------------------


def day(ws: Workspace, name: str, seed: int, tell: Tell) -> int:
    """Practise, then tell one attempt that failed, one that succeeded, and the lesson that came of
    it."""
    n, k = DAY.get(name.partition(":")[0], ANY_DAY)
    with progress() as bar:
        report = ws.run(name, n=n, k=k, seed=seed, progress=bar)
    waves = " ".join(f"{reward:.2f}" for reward in report.rewards)
    tell(
        f"{report.n} tasks x {k} attempts in {clock(report.seconds)}; reward from wave to wave: {waves}."
    )
    standing = [
        lesson for lesson in ws.lessons.list(scope=name) if lesson.status in ("candidate", "active")
    ]
    told_group(ws, report, [(lesson.when, lesson.do) for lesson in standing], tell)
    tell(f"\nLessons of {name} at the end of the day:")
    for lesson in standing:
        tell(f"  {lesson.id}. when: {lesson.when} do: {lesson.do}")
    return report.rollouts


def told_group(ws: Workspace, report: Report, texts: Sequence[tuple[str, str]], tell: Tell) -> None:
    """The first group that failed and succeeded and became one of the lessons that stand, as it was
    written."""
    from reflect.rollouts.transcript import last_words, turns_of
    from reflect.store import runs

    with ws.store.read() as s:
        rows = runs.rollouts(s, report.run_id)
        reviews = {review.task_key: review for review in runs.reflections(s, report.run_id)}
    groups = [[row for row in rows if row.task_key == key] for key in reviews]
    if not groups:
        return
    group = max(groups, key=lambda group: worth_telling(group, reviews[group[0].task_key], texts))
    with ws.store.read() as s:
        task = runs.task(s, group[0].task_key).content
    tell(
        f"\nOne of the tasks: {' / '.join(m['content'] for m in task['messages'] if m['role'] == 'user')}"
    )
    for what, row in (("failed", worst(group)), ("succeeded", best(group))):
        if row is not None:
            tell(
                f"An attempt that {what} (reward {row.reward:g}{f', {row.feedback}' if row.feedback else ''}):"
            )
            tell(quoted("\n".join(turn.text() for turn in turns_of(row)) or last_words(row)))
    tell(f"The model read its {len(group)} attempts with their rewards, and wrote:")
    tell(quoted(reviews[group[0].task_key].raw))


def worth_telling(
    group: Sequence[Rollout], review: Reflection, texts: Sequence[tuple[str, str]]
) -> int:
    """2 for a group with a failure, a success and a lesson that stands; 1 for a part of that."""
    wrote = [edit for edit in review.edits if edit["outcome"] in ("added", "superseded", "revised")]
    stands = any((edit["when"], edit["do"]) in texts for edit in wrote)
    return (best(group) is not None and worst(group) is not None) + stands


def best(group: Sequence[Rollout]) -> Rollout | None:
    return next((row for row in group if row.reward == 1), None)


def worst(group: Sequence[Rollout]) -> Rollout | None:
    return next((row for row in group if row.reward is not None and row.reward < 1), None)


def quoted(text: str) -> str:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110) or [""]]
    return textwrap.indent("\n".join(lines) or "(nothing)", "  | ", lambda line: True)


def example(ws: Workspace, name: str) -> tuple[str, Task]:
    """A holdout task whose prompt holds a lesson, if there is one, with its taskset."""
    tasks = ws.taskset(name).tasks("holdout", 8)
    return name, next((task for task in tasks if ws.prompt(name, task).lessons), tasks[0])


def told_prompts(ws: Workspace, shown: Sequence[tuple[str, Task]], what: str, tell: Tell) -> None:
    for name, task in shown:
        tell(f"\n{what}, {name}:\n{quoted(str(ws.prompt(name, task)))}")


# -- the night
# ---------------------------------------------------------------------------------------------------------


def sleep(ws: Workspace, seed: int, tell: Tell) -> Any:
    with progress() as bar:
        report = ws.sleep(seed=seed, progress=bar)
    steps = report.plan.get("steps")
    tell(
        f"Slept over {len(report.lessons)} lessons for {clock(report.seconds)}: the model with lessons in its prompt "
        f"taught the one without{f', {steps} steps' if steps else ''}."
    )
    for check in report.stages.get("gate", {}).get("checks", []):
        tell(f"  {'ok  ' if check['ok'] else 'FAIL'} {check['text']}")
    tell(f"The night's verdict: {report.status}. {report.reason}")
    if report.distilled:
        tell(f"Lessons {', '.join(map(str, report.distilled))} have left the prompt.")
    return report


def exam(ws: Workspace, name: str, arms: Sequence[str], seed: int) -> dict[str, ArmResult]:
    """Those arms on the same holdout tasks each time."""
    from reflect.tasksets.base import has_environment

    n = EPISODES if has_environment(ws.taskset(name)) else EXAM
    with progress() as bar:
        return {arm: ws.arm(name, arm, n=n, seed=seed, progress=bar) for arm in arms}


# -- the morning
# -------------------------------------------------------------------------------------------------------


def finish(
    ws: Workspace,
    arms: dict[str, dict[str, ArmResult]],
    mornings: list[dict[str, Any]],
    rollouts: int,
    began: float,
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """The table and the figures."""
    follows = following(ws, list(arms), seed)
    tokens = lesson_tokens(ws, arms, seed)
    figures: dict[str, Any] = {
        "tasksets": shapes(arms),
        "recovered": recovered(list(arms.values())),
        "follows_new_lessons": ratio(follows["adapter"], follows["base"]),
        "following": follows,
        "lesson_tokens": tokens,
        "rollouts": rollouts,
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "model": ws.settings.model,
        "promoted": all(morning["status"] == "promoted" for morning in mornings),
        "nights": mornings,
    }
    if len(mornings) > 1:
        first, last = (
            sum_of_adapter_out(m["tasksets"], mornings[0]["tasksets"])
            for m in (mornings[0], mornings[-1])
        )
        figures["held"] = ratio(last, first)
    tell("\n== The four arms, on holdout\n")
    for line in table_lines(arms):
        tell(line)
    tell("")
    tell(
        f"recovered: {figures['recovered']:.0%} of the gain that the lessons give is in the weights"
    )
    tell(f"follows new lessons: {follows['adapter']:.2f}, the bare base {follows['base']:.2f}")
    tell(
        f"tokens of lessons in a prompt: {tokens['before']:.0f} before, {tokens['after'] + tokens['kept']:.0f} now"
    )
    if "held" in figures:
        tell(
            f"lessons of the first night, after night {len(mornings)}: {figures['held']:.0%} of what they were"
        )
    tell(f"{rollouts} attempts, {clock(figures['seconds'])} in all")
    return figures


def shapes(arms: dict[str, dict[str, ArmResult]]) -> dict[str, Any]:
    """The public JSON shape of the arms so far."""
    return {
        name: {arm: result.shape() for arm, result in results.items()}
        | {"recovered": recovered([results])}
        for name, results in arms.items()
    }


def recovered(arms: Sequence[dict[str, ArmResult]]) -> float:
    """Share of the lessons' gain that the bare adapter has, over all tasks of these tasksets."""
    out, into, adapter = (
        sum(sum(results[arm].rewards) for results in arms)
        for arm in ("base_out", "base_in", "adapter_out")
    )
    return ratio(adapter - out, into - out)


def ratio(a: float, b: float) -> float:
    return round(a / b, 4) if b else 0.0


def sum_of_adapter_out(now: dict[str, Any], of: dict[str, Any]) -> float:
    return sum(float(now[name]["adapter_out"]["reward"]) for name in of)


def following(ws: Workspace, names: Sequence[str], seed: int) -> dict[str, float]:
    """Mean reward on tasks that bring a lesson never seen before: the bare base and the adapter.
    Those of dialect, where the tasksets have none."""
    first = list(dict.fromkeys(name.partition(":")[0] for name in names))
    first = [name for name in first if ws.taskset(name).following(1)] or ["dialect"]
    found = {}
    for who, adapter in (("base", False), ("adapter", True)):
        rewards: list[float] = []
        for name in first:
            result = ws.following(name, adapter=adapter, n=EXAM, seed=1000 + seed)
            rewards += result.rewards if result else []
        found[who] = round(sum(rewards) / len(rewards), 4) if rewards else 0.0
    return found


def lesson_tokens(
    ws: Workspace, arms: dict[str, dict[str, ArmResult]], seed: int
) -> dict[str, float]:
    """Tokens of lessons in one holdout prompt, on average: `before` with all that are held in text,
    `after` those of the slept ones that still stand in it, `kept` those that were not slept."""
    after = kept = prompts = 0.0
    slept = {lesson.id for lesson in ws.lessons.list(status="distilled")}
    for name in arms:
        for task in ws.taskset(name).tasks("holdout", EXAM, seed):
            prompts += 1
            for lesson in ws.prompt(name, task).lessons:
                after += lesson.tokens * (lesson.id in slept)
                kept += lesson.tokens * (lesson.id not in slept)
    before = sum(results["base_in"].lesson_tokens for results in arms.values()) / len(arms)
    return {
        "before": round(before, 1),
        "after": round(after / prompts, 1),
        "kept": round(kept / prompts, 1),
    }


def table_lines(arms: dict[str, dict[str, ArmResult]]) -> list[str]:
    """The four arms as aligned text: mean reward and its 95 % interval."""
    rows = [["", *HEADS.values(), "n"]]
    for name, results in arms.items():
        row = [
            f"{r.reward:.2f} ({r.ci95[0]:.2f}-{r.ci95[1]:.2f})"
            for r in (results[arm] for arm in FOUR_ARMS)
        ]
        rows.append([name, *row, str(results["base_out"].n)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def parameters(ws: Workspace) -> int:
    from reflect.models.local import LocalModel

    return (
        sum(p.numel() for p in ws.model.network.parameters())
        if isinstance(ws.model, LocalModel)
        else 0
    )
