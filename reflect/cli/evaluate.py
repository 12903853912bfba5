"""reflect eval: the arms of a comparison."""

from __future__ import annotations

from typing import Annotated

import typer

from reflect.cli.common import BaseUrl, Db, Json, JudgeModel, Model, Profile, Seed, workspace
from reflect.cli.output import print_json, progress, table


def evaluate(
    taskset: Annotated[str, typer.Argument(help="A taskset's name, or a file of tasks.")],
    arms: Annotated[
        str, typer.Option(help="Arms, comma-separated: base, lessons, adapter, both.")
    ] = "base,lessons",
    n: Annotated[
        int | None, typer.Option("-n", "--tasks", min=1, help="Number of tasks. [default: all]")
    ] = None,
    split: Annotated[str, typer.Option(help="practice or holdout.")] = "holdout",
    seed: Seed = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens of one answer. [default: 96]")
    ] = None,
    db: Db = None,
    model: Model = None,
    base_url: BaseUrl = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Measure on held-out tasks, with and without lessons.

    The same tasks in each arm, one greedy answer each.

    base: no lessons. lessons: all that are held. adapter: the active adapter, no lessons. both: as
    at run time.
    """
    from reflect.cli.tasks import the_split
    from reflect.errors import UnknownName
    from reflect.evaluation.arms import ARMS, paired_difference

    names = [name.strip() for name in arms.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise UnknownName(
            f"There is no arm '{', '.join(unknown)}'.", f"The arms are: {', '.join(ARMS)}."
        )
    ws = workspace(db, profile, model, max_tokens=max_tokens, base_url=base_url, judge=judge)
    found, side = ws.taskset(taskset), the_split(split)
    with progress() as tell:
        results = ws.evaluate(found, arms=names, n=n, split=side, seed=seed, progress=tell)
    if json:
        return print_json({"arms": {name: result.shape() for name, result in results.items()}})
    first = results[names[0]]
    rows = []
    for name, r in results.items():
        mean, low, high = paired_difference(r, first)
        against = "" if r is first else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append(
            [
                name,
                r.reward,
                f"{r.ci95[0]:.2f} to {r.ci95[1]:.2f}",
                r.n,
                f"{r.lesson_tokens:.0f}",
                against,
            ]
        )
    table(rows, ["arm", "reward", "95 % interval", "n", "lesson tokens", f"against {names[0]}"])
