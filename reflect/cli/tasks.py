"""reflect tasks: the tasksets that can be practised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from reflect.cli.common import Json, Seed, TasksetName, noun
from reflect.cli.output import print_json, print_status, print_table
from reflect.errors import UnknownName

if TYPE_CHECKING:
    from reflect.tasksets.gymcheck import Checked
    from reflect.tasksets.task import Split

app = noun("Tasksets: what can be practised.")


def split_of(text: str) -> Split:
    """A split by its name. Raises UnknownName."""
    if text == "practice":
        return "practice"
    if text == "holdout":
        return "holdout"
    raise UnknownName(f"There is no split '{text}'.", "The splits are: practice, holdout.")


@app.command("list")
def list_(
    source: str | None = Argument(None, help="gym, or a suite such as world: its tasksets."),
    json: Json = False,
) -> None:
    """List the tasksets that can be used by name: those of ./tasks/, of installed packages, and the
    built-in ones."""
    from reflect.tasksets import available, imports, suites

    if source not in (None, "gym", *suites.SUITES):
        hint = f"There are: gym, {', '.join(suites.SUITES)}."
        raise UnknownName(f"There is no source '{source}'.", hint)
    if source == "gym":
        from reflect.tasksets import reasoning_gym

        rows = list(reasoning_gym.listing())
    elif source:
        rows = suites.listing(source)
    else:
        rows = [(taskset.name, taskset.about) for taskset in available()]
        rows += [(name, f"of {point.value}") for name, point in imports.packaged().items()]
    if json:
        return print_json([{"name": name, "about": about} for name, about in rows])
    print_table(rows, "name, about")
    if not source:
        print_status("A file works as well: reflect run my.jsonl, reflect run my_tasks.py.")
        print_status("Generators of reasoning-gym: reflect tasks list gym")
        print_status(f"Public suites: reflect tasks list {'|'.join(suites.SUITES)}")


@app.command()
def show(
    taskset: TasksetName,
    split: str = Option("practice", help="practice or holdout."),
    n: int = Option(5, "-n", min=1, help="Number of tasks."),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show some tasks of a taskset, with their answers."""
    from reflect.tasksets import load_taskset

    rows = load_taskset(taskset).tasks(split_of(split), n, seed)
    if json:
        return print_json([task.shape() for task in rows])
    print_table([(t.id, t.verifier, t.answer, t.text) for t in rows], "id, verifier, answer, task")


@app.command()
def check(
    tasksets: Annotated[
        list[str] | None, Argument(help="Names or files. [default: all by name]")
    ] = None,
    n: int | None = Option(
        None, "-n", "--tasks", min=1, help="Tasks per split. [default: all; gym, suites: 20]"
    ),
    seconds: float = Option(120.0, min=0.1, max=1e6, help="Time limit per generator of gym."),
    json: Json = False,
) -> None:
    """Prove without a model that every known-good answer scores 1.0, that a model can give it
    within max_tokens, and that the splits are disjoint.

    `gym` means all generators of reasoning-gym.
    """
    from reflect.tasksets import available
    from reflect.tasksets.gymcheck import check_all

    results: list[Checked] = []
    for name in tasksets or [taskset.name for taskset in available()]:
        for result in check_all(n or 20, seconds) if name == "gym" else [_check(name, n)]:
            results.append(result)
            if not json:
                _print_check(result)
    failed = [result for result in results if result.problems]
    if json:
        print_json({x.name: {"ok": not x.problems, "problems": x.problems} for x in results})
    elif len(results) > 1:
        print_status(f"{len(results) - len(failed)} of {len(results)} tasksets are ok.")
    if failed:
        raise typer.Exit(1)


def _print_check(result: Checked) -> None:
    state = f"{len(result.problems)} problems" if result.problems else "ok"
    sizes = f"{result.practice} practice, {result.holdout} holdout"
    print(f"{result.name}: {state}, {sizes}", flush=True)
    for text in result.problems:
        print(f"  {text}")


def _check(name: str, n: int | None) -> Checked:
    """Check a taskset by name or file. Generators of gym and suites are sampled, because some take
    a second for each task."""
    from reflect import config
    from reflect.tasksets import check, load_taskset, suites
    from reflect.tasksets.gymcheck import Checked

    taskset = load_taskset(name)
    if n is None and name.partition(":")[0] in ("gym", *suites.SUITES):
        n = 20
    practice, holdout = len(taskset.tasks("practice", n)), len(taskset.tasks("holdout", n))
    problems = check(taskset, n, config.load().max_tokens)
    return Checked(taskset.name, problems, practice, holdout)
