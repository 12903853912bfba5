"""reflect judge: does the judge grade as people do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reflect.cli.common import Db, Json, JudgeModel, Model, Seed, workspace
from reflect.cli.output import print_json, print_status, progress


def judge(
    file: Annotated[
        Path,
        typer.Argument(help="Answers with rewards that people gave: tasks with `text`, `reward`."),
    ],
    seed: Seed = 0,
    db: Db = None,
    model: Model = None,
    judge: JudgeModel = None,
    json: Json = False,
) -> None:
    """Measure the judge on a labelled sample: agreement, kappa, and whether the order of two
    answers sways it."""
    from reflect.errors import BadTaskFile
    from reflect.evaluation.judge_agreement import agree, labelled
    from reflect.rollouts.judge import judge_of

    labels = labelled(file)
    if not labels:
        raise BadTaskFile(
            f"{file} holds no labelled answer.", "See docs/tasks.md for what a row looks like."
        )
    ws = workspace(db, None, model, judge=judge)
    with progress() as tell:
        found = agree(judge_of(ws.settings, lambda: ws.model), labels, seed, tell)
    if json:
        return print_json(found._asdict())
    print(f"{found.n} answers graded, {found.unreadable} not readable")
    if found.agreement is not None and found.agreement_ci95:
        print(
            f"agreement with people {found.agreement:.2f} ({_between(found.agreement_ci95)}), pass or fail"
        )
        told = (
            "not defined: one side always says the same"
            if found.kappa is None
            else f"{found.kappa:.2f}"
        )
        print(
            f"kappa {told}"
            + (f" ({_between(found.kappa_ci95)})" if found.kappa_ci95 and found.kappa else "")
        )
        print(f"judge minus people {found.difference:+.2f}")
    if found.pairs:
        print(
            f"{found.pairs} pairs in both orders: {found.steady:.2f} steady, {found.right:.2f} steady and as people"
        )
    for problem in found.problems[:5]:
        print_status(problem)


def _between(interval: tuple[float, float]) -> str:
    return f"95 %: {interval[0]:.2f} to {interval[1]:.2f}"
