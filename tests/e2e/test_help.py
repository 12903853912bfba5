"""Every command has help, says what each of its words means, and is in docs/cli.md."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from reflect.cli import app, run_command

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command and every group, from the root down."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


ALL = [
    pytest.param(words, command, id=" ".join(words) or "reflect")
    for words, command in commands(get_command(app))
]


@pytest.mark.parametrize(("words", "command"), ALL)
def test_every_command_has_help(
    words: tuple[str, ...], command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage: reflect" in out and not err
    assert command.help and command.help.strip(), "say in one line what it does"
    for parameter in command.params:
        if getattr(parameter, "opts", ["--help"])[0].startswith("--") and not getattr(
            parameter, "hidden", False
        ):
            assert getattr(parameter, "help", None), f"{parameter.name} has no help"


@pytest.mark.parametrize(("words", "command"), ALL)
def test_every_command_and_option_is_in_the_docs(words: tuple[str, ...], command: Any) -> None:
    docs = DOCS.read_text()
    assert " ".join(("reflect", *words)) in docs
    options = {
        o
        for p in command.params
        for o in p.opts
        if o.startswith("--") and o not in ("--help", "--version")
    }
    assert not {option for option in options if not re.search(rf"{option}\b", docs)}


def test_the_docs_name_no_command_that_there_is_not() -> None:
    known = {" ".join(words) for words, _ in commands(get_command(app))}
    for line in re.findall(r"^#+ .*`reflect ([a-z ]+?)`", DOCS.read_text(), re.MULTILINE):
        assert line.strip() in known, f"docs/cli.md has a section on reflect {line}"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("reflect"), "snore"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "snore" in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr
