"""The story of `reflect demo`: a day, an exam, a night, the same exam in the morning."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflect.cli.output import aligned, duration, join, progress
from reflect.cli.report import check_line
from reflect.types import Arm, with_old_arms
from reflect.workspace.workspace import Workspace

if TYPE_CHECKING:
    from reflect.day.report import Report
    from reflect.evaluation.arms import ArmResult
    from reflect.night.sleep import NightReport
    from reflect.records import Reflection, Rollout
    from reflect.tasksets.task import Task

Arms = dict[str, dict[Arm, "ArmResult"]]  # taskset -> arm -> result
DAY = {"letters": (24, 8), "dialect": (32, 8), "shop": (48, 3)}  # tasks, rollouts per task
ANY_DAY = (32, 8)  # of other tasksets
EXAM = 96  # holdout tasks of each taskset, the same in every arm
EPISODES = 32  # the same for multi-turn tasks
ABOUT = {
    "letters": "How often is a letter in a word? The model reads whole words, never their letters.",
    "dialect": "Made-up verbs stand for operations on lists. What a verb means can only be found "
    "out by trying.",
}


@dataclass(frozen=True)
class Story:
    """One demo: its workspace, the seed, and the function that prints a line."""

    ws: Workspace
    seed: int
    tell: Callable[[str], None]

    def day(self, name: str, seed: int) -> int:
        """Practise, then print a failed and a successful rollout and the lessons. Returns the
        number of rollouts."""
        n, k = DAY.get(name.partition(":")[0], ANY_DAY)
        with progress() as bar:
            report = self.ws.run(name, n=n, k=k, seed=seed, progress=bar)
        waves = " ".join(f"{reward:.2f}" for reward in report.rewards)
        size = f"{report.n} tasks x {k} attempts in {duration(report.seconds)}"
        self.tell(f"{size}; reward from wave to wave: {waves}.")
        rows = self.ws.lessons.list(scope=name)
        lessons = [row for row in rows if row.status in ("candidate", "active")]
        self.tell_group(report, [(lesson.when, lesson.do) for lesson in lessons])
        self.tell(f"\nLessons of {name} at the end of the day:")
        for lesson in lessons:
            self.tell(f"  {lesson.id}. when: {lesson.when} do: {lesson.do}")
        return report.rollouts

    def tell_group(self, report: Report, texts: Sequence[tuple[str, str]]) -> None:
        """Print the first group with a failure, a success and a reflection that wrote one of these
        lessons."""
        from reflect.rollouts.transcript import last_words, turns_of
        from reflect.store import runs

        with self.ws.store.read() as s:
            rows = runs.rollouts(s, report.run_id)
            reflections = {row.task_key: row for row in runs.reflections(s, report.run_id)}
        groups = [[row for row in rows if row.task_key == key] for key in reflections]
        if not groups:
            return
        group = max(groups, key=lambda rows: interest(rows, reflections[rows[0].task_key], texts))
        task = self.ws.context.read(runs.task, group[0].task_key).content
        question = " / ".join(m["content"] for m in task["messages"] if m["role"] == "user")
        self.tell(f"\nOne of the tasks: {question}")
        for outcome, row in (("failed", failure(group)), ("succeeded", success(group))):
            if row is not None:
                feedback = f", {row.feedback}" if row.feedback else ""
                self.tell(f"An attempt that {outcome} (reward {row.reward:g}{feedback}):")
                text = "\n".join(turn.text() for turn in turns_of(row)) or last_words(row)
                self.tell(quoted(text))
        self.tell(f"The model read its {len(group)} attempts with their rewards, and wrote:")
        self.tell(quoted(reflections[group[0].task_key].raw))

    def tell_prompts(self, tasks: Sequence[tuple[str, Task]], title: str) -> None:
        """Print the prompts of tasks, each with its taskset."""
        for name, task in tasks:
            self.tell(f"\n{title}, {name}:\n{quoted(str(self.ws.prompt(name, task)))}")

    def night(self) -> NightReport:
        """Sleep, then print the steps, the checks of the gate and the lessons that left."""
        with progress() as bar:
            report = self.ws.sleep(seed=self.seed, progress=bar)
        steps = report.plan.get("steps")
        self.tell(
            f"Slept over {len(report.lessons)} lessons for {duration(report.seconds)}: the model "
            "with lessons in its prompt taught the one without"
            f"{f', {steps} steps' if steps else ''}."
        )
        for check in report.stages.get("gate", {}).get("checks", []):
            self.tell(f"  {check_line(check)}")
        self.tell(f"The night's verdict: {report.status}. {report.reason}")
        if report.distilled:
            self.tell(f"Lessons {join(report.distilled)} have left the prompt.")
        return report

    def exam(self, name: str, arms: Sequence[Arm]) -> dict[Arm, ArmResult]:
        """These arms on the same holdout tasks each time."""
        from reflect.tasksets.base import has_environment

        n = EPISODES if has_environment(self.ws.taskset(name)) else EXAM
        with progress() as bar:
            return {arm: self.ws.arm(name, arm, n=n, seed=self.seed, progress=bar) for arm in arms}


def play(
    ws: Workspace, names: Sequence[str] = (), *, nights: int, seed: int, tell: Callable[[str], None]
) -> dict[str, object]:
    """Run days and nights in the workspace. Returns the figures. `names`: the tasksets of the days,
    by default letters and dialect."""
    began, story = time.monotonic(), Story(ws, seed, tell)
    size = f"{parameters(ws) / 1e6:.1f} million weights"
    tell(f"The model: {ws.settings.model}, {size}, with an empty lessons database.")
    arms: Arms = {}
    rollouts, mornings = 0, []
    for night in range(1, nights + 1):
        today = tasksets_of_day(ws, names, night)
        for name in today:
            about = ABOUT.get(name.partition(":")[0]) or ws.taskset(name).about
            tell(f"\n== Day {night}: {name}\n{about}")
            rollouts += story.day(name, seed if name not in arms else seed + night)
            arms[name] = story.exam(name, (Arm.BASE, Arm.LESSONS))
            base, lessons = arms[name][Arm.BASE], arms[name][Arm.LESSONS]
            rewards = f"{base.reward:.2f} without lessons, {lessons.reward:.2f} with them"
            tell(f"On {base.n} tasks never practised: {rewards} in the prompt.")
        tasks = [(name, example(ws, name)) for name in today]
        story.tell_prompts(tasks, "The prompt in the evening")
        tell(f"\n== Night {night}")
        report = story.night()
        story.tell_prompts(tasks, "The same prompt in the morning")
        for name in arms:
            arms[name] |= story.exam(name, (Arm.ADAPTER, Arm.BOTH))
        mornings.append(
            {
                "night": night,
                "status": report.status,
                "reason": report.reason,
                "adapter": report.adapter,
                "tasksets": arms_json(arms),
            }
        )
    return finish(story, arms, mornings, rollouts, began)


def tasksets_of_day(ws: Workspace, names: Sequence[str], night: int) -> list[str]:
    """The tasksets of a day: the same each day, or their next variants if they have any."""
    if not names:
        return ["letters", "dialect"] if night == 1 else [f"dialect:{night}"]

    def varies(name: str) -> bool:
        return night > 1 and ":" not in name and hasattr(ws.taskset(name), "variant")

    return [f"{name}:{night}" if varies(name) else name for name in names]


def interest(
    group: Sequence[Rollout], reflection: Reflection, texts: Sequence[tuple[str, str]]
) -> int:
    """2 for a group with a failure, a success and a reflection that wrote one of the texts; 1 for a
    part of that."""
    outcomes = ("added", "superseded", "revised")
    edits = [(x["when"], x["do"]) for x in reflection.edits if x["outcome"] in outcomes]
    both = success(group) is not None and failure(group) is not None
    return both + any(edit in texts for edit in edits)


def success(group: Sequence[Rollout]) -> Rollout | None:
    """The first rollout with reward 1."""
    return next((row for row in group if row.reward == 1), None)


def failure(group: Sequence[Rollout]) -> Rollout | None:
    """The first rollout with a lower reward."""
    return next((row for row in group if row.reward is not None and row.reward < 1), None)


def quoted(text: str) -> str:
    """Text, wrapped and marked at the left."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110) or [""]]
    return textwrap.indent("\n".join(lines) or "(nothing)", "  | ", lambda line: True)


def example(ws: Workspace, name: str) -> Task:
    """A holdout task, if possible with a lesson in its prompt."""
    tasks = ws.taskset(name).tasks("holdout", 8)
    return next((task for task in tasks if ws.prompt(name, task).lessons), tasks[0])


# -- the morning


def finish(
    story: Story, arms: Arms, mornings: Sequence[dict[str, object]], rollouts: int, began: float
) -> dict[str, object]:
    """Print the table, and return the figures."""
    ws, tell, nights = story.ws, story.tell, len(mornings)
    follows = following(ws, list(arms), story.seed)
    tokens = lesson_tokens(ws, arms, story.seed)
    gain, seconds = recovered(list(arms.values())), round(time.monotonic() - began, 1)
    figures: dict[str, object] = {
        "tasksets": arms_json(arms),
        "recovered": gain,
        "follows_new_lessons": ratio(follows["adapter"], follows["base"]),
        "following": follows,
        "lesson_tokens": tokens,
        "rollouts": rollouts,
        "seconds": seconds,
        "seed": story.seed,
        "model": ws.settings.model,
        "promoted": all(morning["status"] == "promoted" for morning in mornings),
        "nights": mornings,
    }
    tell("\n== The four arms, on holdout\n")
    for line in table_lines(arms):
        tell(line)
    tell(f"\nrecovered: {gain:.0%} of the gain that the lessons give is in the weights")
    tell(f"follows new lessons: {follows['adapter']:.2f}, the bare base {follows['base']:.2f}")
    now = tokens["after"] + tokens["kept"]
    tell(f"tokens of lessons in a prompt: {tokens['before']:.0f} before, {now:.0f} now")
    if nights > 1:
        held = figures["held"] = held_by_adapter(mornings)
        tell(f"lessons of the first night, after night {nights}: {held:.0%} of what they were")
    tell(f"{rollouts} attempts, {duration(seconds)} in all")
    return figures


def arms_json(arms: Arms) -> dict[str, dict[str, object]]:
    """The arms so far as JSON."""
    return {
        name: with_old_arms({arm: result.shape() for arm, result in results.items()})
        | {"recovered": recovered([results])}
        for name, results in arms.items()
    }


def recovered(arms: Sequence[dict[Arm, ArmResult]]) -> float:
    """Share of the lessons' gain that the bare adapter has, over all tasks of these tasksets."""
    base, lessons, adapter = (
        sum(sum(results[arm].rewards) for results in arms)
        for arm in (Arm.BASE, Arm.LESSONS, Arm.ADAPTER)
    )
    return ratio(adapter - base, lessons - base)


def ratio(a: float, b: float) -> float:
    """a / b, rounded; 0 if b is 0."""
    return round(a / b, 4) if b else 0.0


def held_by_adapter(mornings: Sequence[Mapping[str, Any]]) -> float:
    """The adapter's reward after the last night, divided by that after the first, on the tasksets
    of the first day."""
    first, last = mornings[0]["tasksets"], mornings[-1]["tasksets"]
    after, before = (
        sum(float(tasksets[name][Arm.ADAPTER]["reward"]) for name in first)
        for tasksets in (last, first)
    )
    return ratio(after, before)


def following(ws: Workspace, names: Sequence[str], seed: int) -> dict[str, float]:
    """Mean reward on tasks with a new lesson in the prompt: of the bare base and of the adapter.
    The tasks are those of dialect if the tasksets have none."""
    names = list(dict.fromkeys(name.partition(":")[0] for name in names))
    names = [name for name in names if ws.taskset(name).following(1)] or ["dialect"]
    means = {}
    for arm, adapter in (("base", False), ("adapter", True)):
        rewards: list[float] = []
        for name in names:
            result = ws.following(name, adapter=adapter, n=EXAM, seed=1000 + seed)
            rewards += result.rewards if result else []
        means[arm] = round(sum(rewards) / len(rewards), 4) if rewards else 0.0
    return means


def lesson_tokens(ws: Workspace, arms: Arms, seed: int) -> dict[str, float]:
    """Mean tokens of lessons in one holdout prompt: `before` with all lessons as text, `after`
    those of distilled lessons in the prompt now, `kept` those of the other lessons."""
    after = kept = prompts = 0.0
    distilled = {lesson.id for lesson in ws.lessons.list(status="distilled")}
    for name in arms:
        for task in ws.taskset(name).tasks("holdout", EXAM, seed):
            prompts += 1
            for lesson in ws.prompt(name, task).lessons:
                after += lesson.tokens * (lesson.id in distilled)
                kept += lesson.tokens * (lesson.id not in distilled)
    before = sum(results[Arm.LESSONS].lesson_tokens for results in arms.values()) / len(arms)
    means = {"before": before, "after": after / prompts, "kept": kept / prompts}
    return {name: round(value, 1) for name, value in means.items()}


def table_lines(arms: Arms) -> list[str]:
    """The four arms as aligned text: mean reward and its 95 % interval."""
    rows = [["", *(arm.heading for arm in Arm), "n"]]
    for name, results in arms.items():
        cells = [results[arm] for arm in Arm]
        rewards = [f"{x.reward:.2f} ({x.ci95[0]:.2f}-{x.ci95[1]:.2f})" for x in cells]
        rows.append([name, *rewards, str(results[Arm.BASE].n)])
    return aligned(rows)


def parameters(ws: Workspace) -> int:
    """The number of the model's weights; 0 if it is remote."""
    from reflect.models.local import LocalModel

    if not isinstance(ws.model, LocalModel):
        return 0
    return sum(p.numel() for p in ws.model.network.parameters())
