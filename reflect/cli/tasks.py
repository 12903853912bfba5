"""reflect tasks: what can be practised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reflect.cli.common import Json, Seed, noun
from reflect.cli.output import emit, say, table
from reflect.errors import UnknownName

if TYPE_CHECKING:
    from reflect.tasksets.base import Split

app = noun("Tasksets: what can be practised.")


def the_split(text: str) -> Split:
    if text == "practice":
        return "practice"
    if text == "holdout":
        return "holdout"
    raise UnknownName(f"There is no split '{text}'.", "The splits are: practice, holdout.")


@app.command("list")
def list_(json: Json = False) -> None:
    """The tasksets that can be used by name: those of ./tasks/ and the built-in ones."""
    from reflect.tasksets import available

    rows = [{"name": taskset.name, "about": taskset.about} for taskset in available()]
    if json:
        return emit(rows)
    table([[row["name"], row["about"]] for row in rows], ["name", "about"])
    say("A file works as well: reflect run my.jsonl")


@app.command()
def show(
    taskset: Annotated[str, typer.Argument(help="A taskset's name, or a file of tasks.")],
    split: Annotated[str, typer.Option(help="practice or holdout.")] = "practice",
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Some tasks of a taskset, with their answers."""
    from reflect.tasksets import load_taskset

    rows = load_taskset(taskset).tasks(the_split(split), n, seed)
    if json:
        return emit([task.shape() for task in rows])
    table([[t.id, t.verifier, t.answer, t.text] for t in rows], ["id", "verifier", "answer", "task"])


@app.command()
def check(
    tasksets: Annotated[list[str] | None, typer.Argument(help="Names or files. [default: all by name]")] = None,
    json: Json = False,
) -> None:
    """Prove without a model that every known-good answer scores 1.0 and that the splits are apart."""
    from reflect.tasksets import available, load_taskset
    from reflect.tasksets import check as problems_of

    found = [load_taskset(name) for name in tasksets or [taskset.name for taskset in available()]]
    problems = {taskset.name: problems_of(taskset) for taskset in found}
    if json:
        emit({name: {"ok": not wrong, "problems": wrong} for name, wrong in problems.items()})
    else:
        for taskset in found:
            wrong = problems[taskset.name]
            sizes = [len(taskset.tasks(split)) for split in ("practice", "holdout")]
            verdict = f"{len(wrong)} problems" if wrong else "ok"
            print(f"{taskset.name}: {verdict}, {sizes[0]} practice, {sizes[1]} holdout")
            for text in wrong:
                print(f"  {text}")
    if any(problems.values()):
        raise typer.Exit(1)
