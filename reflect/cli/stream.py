"""reflect stream: practise several tasksets as a stream, and measure what is kept."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import Json, Seed, open_workspace
from reflect.cli.output import aligned, print_json, print_status, progress
from reflect.errors import UsageError, ensure_known

if TYPE_CHECKING:
    from reflect.stream.protocols import StreamReport


def stream(
    tasksets: Annotated[list[str], Argument(help="Tasksets or files, in the stream's order.")],
    protocol: str = Option("sequential", help="isolated, sequential or interleaved."),
    nights: bool = Option(True, help="End each stage with a night."),
    n: int = Option(32, "-n", "--tasks", min=1, help="Practice tasks of each taskset."),
    k: int = Option(8, "-k", "--rollouts", min=1, help="Attempts at each task."),
    exam: int = Option(60, min=1, help="Holdout tasks of each taskset in an exam."),
    seed: Seed = 0,
    svg: Annotated[Path | None, Option(help="Write the curve to this file.")] = None,
    folder: Annotated[
        Path | None,
        Option("--dir", help="Keep the database in this folder. [default: a temporary one]"),
    ] = None,
    model: str | None = Option(None, "--model", "-m", metavar="NAME", help="Another model."),
    base_url: str | None = Option(None, metavar="URL", help="Server of an openai: model."),
    json: Json = False,
) -> None:
    """Practise several tasksets as a stream, and measure what the agent keeps of the earlier ones.

    isolated: a new agent for each taskset. sequential: one agent, one taskset after the other.
    interleaved: one agent, a share of every taskset in each stage. Each stage ends with a night and
    an exam on held-out tasks. At the end, a second pass repeats the practised tasks.
    """
    from reflect.stream.protocols import Protocol, ProtocolOptions
    from reflect.stream.protocols import stream as run
    from reflect.training.plan import NightOptions

    ensure_known("protocol", protocol, Protocol)
    if svg and not svg.parent.is_dir():  # before hours of work
        raise UsageError(f"There is no folder {svg.parent}.", "Create it, or choose another file.")
    options = ProtocolOptions(n, k, exam, seed, nights, NightOptions(seed=seed))
    with tempfile.TemporaryDirectory(prefix="reflect-stream-") as temporary, progress() as bar:
        home = folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        paths = {"db": str(home / "lessons.db"), "home": str(home / ".reflect")}
        ws = open_workspace(**paths, model=model, base_url=base_url)
        settings = replace(ws.settings, n=n, k=k)
        report = run(settings, tasksets, Protocol(protocol), options, bar)
    if svg:
        from reflect.stream.curve import draw

        svg.write_text(draw(report))
        print_status(f"The curve is in {svg}.")
    if json:
        return print_json(report.shape())
    for text in table(report):
        print(text)


def table(report: StreamReport) -> list[str]:
    """The exams as a matrix, the nights, and the figures."""
    names = report.tasksets
    rows = [["stage", *names, "night"]]
    rows.append(["base", *(f"{arm.reward:.2f}" for arm in report.base), ""])
    for number, stage in enumerate(report.stages, 1):
        cells = [
            f"{arm.reward:.2f}{'*' * (i in stage.practised)}" for i, arm in enumerate(stage.exam)
        ]
        rows.append([str(number), *cells, stage.night.partition(":")[0] or "-"])
    again = [f"{report.second_pass[i].reward:.2f}" for i in range(len(names))]
    rows.append(["second pass", *again, ""])
    lines = ["Holdout reward after each stage (* practised in it):", *aligned(rows), ""]
    for name, value in report.figures().items():
        text = "-" if value is None else f"{value[0]:+.3f} ({value[1]:+.3f} to {value[2]:+.3f})"
        lines.append(f"{name.replace('_', ' '):18} {text}")
    return lines
