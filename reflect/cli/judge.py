"""reflect judge: does the judge grade as people do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reflect.cli.common import Db, Json, JudgeModel, Model, Seed, workspace
from reflect.cli.output import emit, progress, say


def judge(
    file: Annotated[Path, typer.Argument(help="Answers with rewards that people gave: tasks with `text`, `reward`.")],
    seed: Seed = 0,
    db: Db = None,
    model: Model = None,
    judge: JudgeModel = None,
    json: Json = False,
) -> None:
    """Measure the judge on a labelled sample: agreement, kappa, and whether the order of two answers sways it."""
    from reflect.agreement import agree, labelled
    from reflect.day.judge import judge_of
    from reflect.errors import BadTaskFile

    labels = labelled(file)
    if not labels:
        raise BadTaskFile(f"{file} holds no labelled answer.", "See docs/tasks.md for what a row looks like.")
    ws = workspace(db, None, model, judge=judge)
    with progress() as tell:
        found = agree(judge_of(ws.settings, lambda: ws.model), labels, seed, tell)
    if json:
        return emit(found._asdict())
    print(f"{found.n} answers graded, {found.unreadable} not readable")
    if found.agreement is not None and found.agreement_ci95:
        print(f"agreement with people {found.agreement:.2f} ({_between(found.agreement_ci95)}), pass or fail")
        told = "not defined: one side always says the same" if found.kappa is None else f"{found.kappa:.2f}"
        print(f"kappa {told}" + (f" ({_between(found.kappa_ci95)})" if found.kappa_ci95 and found.kappa else ""))
        print(f"judge minus people {found.difference:+.2f}")
    if found.pairs:
        print(f"{found.pairs} pairs in both orders: {found.steady:.2f} steady, {found.right:.2f} steady and as people")
    for problem in found.problems[:5]:
        say(problem)


def _between(interval: tuple[float, float]) -> str:
    return f"95 %: {interval[0]:.2f} to {interval[1]:.2f}"
