"""reflect judge: compare the judge's grades with those of people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from reflect.cli.common import Json, Seed, with_workspace
from reflect.cli.output import print_json, print_status, progress
from reflect.errors import BadTaskFile

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("model judge")
def judge(
    ws: Workspace,
    file: Annotated[
        Path, Argument(help="Answers with rewards by people: tasks with `text`, `reward`.")
    ],
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure the judge on a labelled sample: agreement, kappa, and whether the order of two
    answers sways it."""
    from reflect.evaluation.judge_agreement import agree, labelled
    from reflect.rollouts.judge import judge_of

    labels = labelled(file)
    if not labels:
        hint = "See docs/tasks.md for the format of a row."
        raise BadTaskFile(f"{file} holds no labelled answer.", hint)
    with progress() as bar:
        result = agree(judge_of(ws.settings, lambda: ws.model), labels, seed, bar)
    if json:
        return print_json(result._asdict())
    print(f"{result.n} answers graded, {result.unreadable} not readable")
    if result.agreement is not None and result.agreement_ci95:
        interval = _interval(result.agreement_ci95)
        print(f"agreement with people {result.agreement:.2f} ({interval}), pass or fail")
        kappa = "not defined: one side gives the same grade to all answers"
        if result.kappa is not None:
            kappa = f"{result.kappa:.2f}"
            if result.kappa and result.kappa_ci95:
                kappa += f" ({_interval(result.kappa_ci95)})"
        print(f"kappa {kappa}")
        print(f"judge minus people {result.difference:+.2f}")
    if result.pairs:
        right = f"{result.steady:.2f} steady, {result.right:.2f} steady and as people"
        print(f"{result.pairs} pairs in both orders: {right}")
    for problem in result.problems[:5]:
        print_status(problem)


def _interval(interval: tuple[float, float]) -> str:
    return f"95 %: {interval[0]:.2f} to {interval[1]:.2f}"
