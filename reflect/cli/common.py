"""Options of the commands: those that override settings, and those that many commands share."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from reflect.cli.output import print_status
from reflect.config import Settings
from reflect.errors import UsageError
from reflect.reading import plain_text, shortened

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

P = ParamSpec("P")

DryRun = Annotated[bool, Option("--dry-run", help="Print the plan and do nothing.")]
Host = Annotated[str, Option(help="Address to listen on. Other than loopback needs a key.")]
Json = Annotated[bool, Option("--json", help="Print JSON.")]
Key = Annotated[
    str,
    Option(
        envvar="REFLECT_SERVE_KEY",
        show_envvar=False,
        help="Key that a client must send, or a browser once. [REFLECT_SERVE_KEY]",
    ),
]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 = any free port.")]
RunId = Annotated[int, Argument(metavar="ID", help="A run's id.")]
Seed = Annotated[int, Option("--seed", help="The same seed gives the same figures.")]
TasksetName = Annotated[str, Argument(help="A taskset's name, or a file of tasks.")]
Yes = Annotated[bool, Option("--yes", help="Replace an existing one.")]

OPTION_NAMES = {  # setting -> its option, if that is not the setting's name
    "k": ("-k", "--rollouts"),
    "model": ("--model", "-m"),
    "n": ("-n", "--tasks"),
    "require_approval": ("--approval/--no-approval",),
}
METAVARS = {"base_url": "URL", "db": "FILE"} | dict.fromkeys(("model", "profile"), "NAME")
METAVARS |= dict.fromkeys(("judge", "reflector", "sampler"), "NAME")
FIELDS = {field.name: field for field in fields(Settings)}


def setting_option(name: str) -> inspect.Parameter:
    """An option that overrides a setting; its type, bounds and help come from `Settings`."""
    if name == "review":  # the first name of require_approval, until version 0.2
        option = Option("--review/--no-review", hidden=True)
        return _parameter(name, Annotated[bool | None, option])
    setting = FIELDS[name]
    kind, text = type(setting.default), setting.metadata["description"]
    shown = setting.default not in ("", False, 0)
    option = Option(
        *OPTION_NAMES.get(name, (f"--{name.replace('_', '-')}",)),
        metavar=METAVARS.get(name),
        min=setting.metadata["ge"] if kind in (int, float) else None,
        max=setting.metadata["le"] if kind in (int, float) else None,
        help=f"{text[0].upper()}{text[1:]}.{f' [default: {setting.default}]' if shown else ''}",
    )
    return _parameter(name, Annotated[kind | None, option])


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def with_workspace(
    settings: str = "",
) -> Callable[[Callable[Concatenate[Workspace, P], None]], Callable[..., None]]:
    """Decorate a command: in place of its first parameter, the workspace, the command line has an
    option for `db` and each of `settings`. Warnings of the workspace are printed at the end."""
    names = ["db", *settings.split()]

    def decorate(command: Callable[Concatenate[Workspace, P], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            ws = open_workspace(**{name: kwargs.pop(name, None) for name in names})
            try:
                command(ws, *args, **kwargs)
            finally:
                ws.refresh_hooks()
                for text in ws.complaints:
                    print_status(f"Warning: {text}")

        signature = inspect.signature(command, locals={"Workspace": object}, eval_str=True)
        own = [x.replace(kind=x.KEYWORD_ONLY) for x in list(signature.parameters.values())[1:]]
        own += [setting_option(name) for name in names]
        own.sort(key=lambda parameter: parameter.name == "json")  # the last one
        vars(run)["__signature__"] = signature.replace(parameters=own)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
        return run

    return decorate


def open_workspace(**settings: object) -> Workspace:
    """A workspace with these settings; those that are None come from the environment or a file."""
    from reflect import config
    from reflect.workspace.workspace import Workspace

    return Workspace(config.load(**settings))


def check_values(command: Any) -> Any:
    """The command, and every command in it, with arguments that are checked beyond their type:
    numbers are finite, integers have 64 bits, texts are UTF-8. Invalid ones are usage errors."""
    for child in getattr(command, "commands", {}).values():
        check_values(child)
    if getattr(command, "commands", None) is None:
        names = {
            param.name: param.metavar or param.name if param.opts[0][0] != "-" else param.opts[0]
            for param in command.params
        }
        command.callback = _checked(command.callback, names)
    return command


def _checked(callback: Callable[..., object], names: dict[str, str]) -> Callable[..., object]:
    @functools.wraps(callback)
    def run(**values: object) -> object:
        for name, value in values.items():
            for item in value if isinstance(value, list | tuple) else [value]:
                if problem := _problem(item):
                    text = shortened(str(item) if isinstance(item, os.PathLike) else item)
                    shown = f"Invalid value for '{names.get(name, name)}': {text}"
                    raise UsageError(f"{shown} is {problem}.", "See --help for the values.")
        return callback(**values)

    return run


def _problem(value: object) -> str:
    """Why a value of the command line is invalid; empty if it is valid."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "not a finite number"
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else "an integer of more than 64 bits"
    text = str(value) if isinstance(value, str | os.PathLike) else ""
    return "" if plain_text(text) else "no text: control characters or bytes that are not UTF-8"


class DefaultList(TyperGroup):
    """`reflect lessons --json` is `reflect lessons list --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a command, `list`."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def noun(help: str, cls: type[TyperGroup] = DefaultList) -> typer.Typer:
    """A group of verbs on one noun."""
    return typer.Typer(help=f"{help} Default verb: list.", cls=cls, rich_markup_mode=None)
