"""reflect eval: the arms of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer import Option

from reflect.cli.common import Json, Seed, TasksetName, with_workspace
from reflect.cli.output import print_json, print_table, progress
from reflect.errors import ensure_known

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("max_tokens model base_url judge profile")
def evaluate(
    ws: Workspace,
    taskset: TasksetName,
    arms: str = Option("base,lessons", help="Arms, comma-separated: base, lessons, adapter, both."),
    n: int | None = Option(None, "-n", "--tasks", min=1, help="Number of tasks. [default: all]"),
    split: str = Option("holdout", help="practice or holdout."),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure on held-out tasks, with and without lessons.

    The same tasks in each arm, one greedy answer each.

    base: no lessons. lessons: all in the prompt, also those in an adapter. adapter: the active
    adapter, no lessons. both: the active adapter and the lessons that a run shows.
    """
    from reflect.cli.tasks import split_of
    from reflect.evaluation.arms import paired_difference
    from reflect.types import Arm

    names = [name.strip() for name in arms.split(",") if name.strip()]
    for name in names or [""]:  # before the model is loaded
        ensure_known("arm", name, Arm)
    with progress() as bar:
        results = ws.evaluate(
            taskset, arms=names, n=n, split=split_of(split), seed=seed, progress=bar
        )
    if json:
        return print_json({"arms": {name: result.shape() for name, result in results.items()}})
    first, rows = next(iter(results.values())), []
    for name, arm in results.items():
        mean, low, high = paired_difference(arm, first)
        difference = "" if arm is first else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        interval = f"{arm.ci95[0]:.2f} to {arm.ci95[1]:.2f}"
        rows.append([name, arm.reward, interval, arm.n, f"{arm.lesson_tokens:.0f}", difference])
    print_table(rows, f"arm, reward, 95 % interval, n, lesson tokens, against {names[0]}")
