"""reflect tasks: what can be practised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reflect.cli.common import Json, Seed, noun
from reflect.cli.output import print_json, print_status, table
from reflect.errors import UnknownName

if TYPE_CHECKING:
    from reflect.tasksets.gymcheck import Checked
    from reflect.tasksets.task import Split

app = noun("Tasksets: what can be practised.")


def the_split(text: str) -> Split:
    if text == "practice":
        return "practice"
    if text == "holdout":
        return "holdout"
    raise UnknownName(f"There is no split '{text}'.", "The splits are: practice, holdout.")


@app.command("list")
def list_(
    source: Annotated[
        str | None, typer.Argument(help="gym: every generator of reasoning-gym.")
    ] = None,
    json: Json = False,
) -> None:
    """The tasksets that can be used by name: those of ./tasks/, of installed packages, and the
    built-in ones."""
    from reflect.tasksets import available, imports

    if source not in (None, "gym"):
        raise UnknownName(
            f"There is no source '{source}'.", "See: reflect tasks list, reflect tasks list gym"
        )
    if source:
        from reflect.tasksets import reasoning_gym

        rows = [{"name": name, "about": about} for name, about in reasoning_gym.listing()]
    else:
        rows = [{"name": taskset.name, "about": taskset.about} for taskset in available()]
        rows += [
            {"name": name, "about": f"of {point.value}"}
            for name, point in imports.packaged().items()
        ]
    if json:
        return print_json(rows)
    table([[row["name"], row["about"]] for row in rows], ["name", "about"])
    if not source:
        print_status(
            "A file works as well: reflect run my.jsonl, reflect run my_tasks.py. Generators: reflect tasks list gym"
        )


@app.command()
def show(
    taskset: Annotated[str, typer.Argument(help="A taskset's name, or a file of tasks.")],
    split: Annotated[str, typer.Option(help="practice or holdout.")] = "practice",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of tasks.")] = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Some tasks of a taskset, with their answers."""
    from reflect.tasksets import load_taskset

    rows = load_taskset(taskset).tasks(the_split(split), n, seed)
    if json:
        return print_json([task.shape() for task in rows])
    table(
        [[t.id, t.verifier, t.answer, t.text] for t in rows], ["id", "verifier", "answer", "task"]
    )


@app.command()
def check(
    tasksets: Annotated[
        list[str] | None, typer.Argument(help="Names or files. [default: all by name]")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--tasks", min=1, help="Tasks per split. [default: all; gym: 20]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time limit per generator of gym.")
    ] = 120.0,
    json: Json = False,
) -> None:
    """Prove without a model that every known-good answer scores 1.0 and that the splits are apart.

    `gym` stands for all generators of reasoning-gym.
    """
    from reflect.tasksets import available
    from reflect.tasksets.gymcheck import check_all

    found: list[Checked] = []
    for name in tasksets or [taskset.name for taskset in available()]:
        for checked in check_all(n or 20, seconds) if name == "gym" else [_checked(name, n)]:
            found.append(checked)
            if not json:
                verdict = f"{len(checked.problems)} problems" if checked.problems else "ok"
                print(
                    f"{checked.name}: {verdict}, {checked.practice} practice, {checked.holdout} holdout",
                    flush=True,
                )
                for text in checked.problems:
                    print(f"  {text}")
    wrong = [checked for checked in found if checked.problems]
    if json:
        print_json(
            {
                checked.name: {"ok": not checked.problems, "problems": checked.problems}
                for checked in found
            }
        )
    elif len(found) > 1:
        print_status(f"{len(found) - len(wrong)} of {len(found)} tasksets are ok.")
    if wrong:
        raise typer.Exit(1)


def _checked(name: str, n: int | None) -> Checked:
    """A taskset by name or file; one generator of gym is sampled, for some take a second for each
    item."""
    from reflect.tasksets import check, load_taskset
    from reflect.tasksets.gymcheck import Checked

    taskset = load_taskset(name)
    if n is None and name.startswith("gym:"):
        n = 20
    practice, holdout = len(taskset.tasks("practice", n)), len(taskset.tasks("holdout", n))
    return Checked(taskset.name, check(taskset, n), practice, holdout)
