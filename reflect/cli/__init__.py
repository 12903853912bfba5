"""The command line: one module per noun, and the one place that catches errors.

stdout is data, stderr is everything else. Exit codes: 0 done (also "nothing to do"), 1 failed, 2
usage error (invalid arguments), 130 interrupted after saving, 143 by SIGTERM. Nothing slow is
imported here, so that `--help` is fast.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer import Option
from typer.core import TyperGroup
from typer.main import get_command

from reflect.cli import (
    adapters,
    connect,
    demo,
    doctor,
    evaluate,
    grade,
    init,
    judge,
    lessons,
    mcp,
    night,
    nights,
    profiles,
    prompt,
    reviewer,
    run,
    runs,
    schedule,
    serve,
    sessions,
    signals,
    sleep,
    stream,
    tasks,
    trial,
    ui,
)
from reflect.cli.common import check_values
from reflect.cli.output import open_streams, print_status
from reflect.errors import ReflectError, UsageError
from reflect.models import distributed
from reflect.reading import clipped


class InOrder(TyperGroup):
    """Commands in the order of use, not by alphabet."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of use, not of the alphabet."""
        return list(COMMANDS)


app = typer.Typer(
    cls=InOrder,
    name="reflect",
    help="An agent that learns from its own practice: text lessons by day, LoRA weights by night.",
    epilog="Settings: flag > REFLECT_NAME > reflect.toml > default. Data goes to stdout, all else "
    "to stderr.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: fast, and fit for pipes
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, typer.Typer | Callable[..., None]] = {
    "demo": demo.demo,
    "run": run.run,
    "eval": evaluate.evaluate,
    "prompt": prompt.prompt,
    "tasks": tasks.app,
    "grade": grade.app,
    "judge": judge.judge,
    "lessons": lessons.app,
    "trial": trial.trial,
    "stream": stream.stream,
    "runs": runs.app,
    "sessions": sessions.app,
    "connect": connect.connect,
    "sleep": sleep.sleep,
    "nights": nights.app,
    "night": night.app,
    "schedule": schedule.app,
    "adapters": adapters.app,
    "reviewer": reviewer.app,
    "profiles": profiles.app,
    "serve": serve.serve,
    "mcp": mcp.mcp,
    "ui": ui.ui,
    "report": ui.report,
    "doctor": doctor.doctor,
    "init": init.init,
}
for name, command in COMMANDS.items():
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from reflect import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def reflect(
    context: typer.Context,
    show: bool = Option(
        False, "--version", help="Print the version.", callback=version, is_eager=True
    ),
) -> None:
    """An agent that learns from its own practice: text lessons by day, LoRA weights by night."""
    if distributed.size() > 1 and context.invoked_subcommand != "sleep":
        command = f"`reflect {context.invoked_subcommand}`, which is for one"
        raise UsageError(
            f"{distributed.size()} processes were started for {command}.",
            "Start it without accelerate or torchrun: only `reflect sleep` shares its work.",
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit. An error is one sentence and the next step, never a
    traceback."""
    # Waiting threads of torch sleep instead of spinning, so that other processes keep their core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_streams()
    signals.listen()
    try:
        code = run_command([_utf8(text) for text in (sys.argv[1:] if argv is None else argv)])
        signals.finish()
    except KeyboardInterrupt:  # just before the end
        code = interrupted()
    except Exception as e:
        code = unexpected_error(e)
    try:
        sys.stdout.flush()
    except OSError as e:  # the reader has gone (`| head`), or the disk is full
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = system_error(e)
    sys.exit(code)


@functools.cache
def root_command() -> TyperGroup:
    """The whole command line."""
    command: TyperGroup = check_values(get_command(app))
    return command


def _utf8(text: str) -> str:
    """An argument that Python decoded by a locale without Unicode; others stay as they are."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def run_command(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    try:
        code = root_command().main(args=argv, prog_name="reflect", standalone_mode=False)
        if code == 130:
            return interrupted()
        return code if isinstance(code, int) else 0
    except ReflectError as e:
        if isinstance(e.__cause__, KeyboardInterrupt):  # what was answered until then is saved
            return interrupted()
        print_status(f"Error: {_shown(e.message)}")
        if e.hint:
            print_status(_shown(e.hint))
        return e.exit_code
    except typer.TyperException as e:  # invalid arguments
        if show := getattr(e, "show", None):
            show()
        else:
            print_status(f"Error: {e.format_message()}")
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return interrupted()
    except OSError as e:
        return system_error(e)


def _shown(text: str) -> str:
    """A message with lines of bounded length, whose control characters are escaped: it may quote a
    file or an argument."""
    return "\n".join(clipped(line, 2000) for line in text.split("\n"))


def system_error(e: OSError) -> int:
    """Print an error of the operating system in one sentence."""
    if e.errno == errno.ENOSPC:
        print_status("Error: The disk is full; what was saved before is whole.")
        print_status("Free some space, then run the same command: it continues where it stopped.")
    elif e.errno != errno.EPIPE:
        print_status(f"Error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}.")
    return 1


def unexpected_error(e: Exception) -> int:
    """Print an error that is a fault of reflect; with REFLECT_TRACEBACK set also its traceback."""
    if os.environ.get("REFLECT_TRACEBACK"):
        traceback.print_exception(e)
    frame = traceback.extract_tb(e.__traceback__)[-1]
    what = clipped(f"{type(e).__name__}: {e}")
    print_status(f"Error: reflect failed, by a fault of its own: {what}")
    print_status(
        f"It was in {Path(frame.filename).name}, line {frame.lineno}. What was finished is saved. "
        "Please report it with the output of the same command after: export REFLECT_TRACEBACK=1"
    )
    return 1


def interrupted() -> int:
    """Print that a signal stopped the command. Returns the exit code."""
    what = "Interrupted" if signals.exit_code() == 130 else "Terminated"
    print_status(f"\n{what}. What was finished is saved; the same command continues.")
    return signals.exit_code()
