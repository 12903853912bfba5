"""The command line with arguments that no person types on purpose: exit code 0, 1 or 2, at most a
few lines on stderr, no traceback, no hang."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hostile import NUMBERS, texts
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

import reflect
from reflect.cli import app, run_command
from reflect.cli.output import open_streams

SKIPPED = {
    "demo",
    "serve",
    "ui",
    "mcp",
    "schedule install",
    "schedule remove",
}  # they run long, or change the machine


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))


COMMANDS = [
    (path, command) for path, command in leaves(get_command(app)) if " ".join(path) not in SKIPPED
]
IDS = ["1", "0", "-1", "7", "9" * 22, str(2**63), "1e3", "nan", "٣", ""]
words = st.one_of(
    texts,
    st.sampled_from(IDS),
    st.sampled_from([str(x)[:400] for x in NUMBERS if abs(x) < 10**300 or x != x]),
).filter(lambda word: "/" not in word or word.strip("./"))
"""No "/": `sessions import /` would read the whole disk."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with hostile arguments and options. Models are never loaded: their name is wrong."""
    path, command = draw(st.sampled_from(COMMANDS))
    arguments, options = [], []
    for param in command.params:
        option = draw(st.sampled_from(param.opts)) if param.opts[0].startswith("-") else ""
        if option in ("--help", "--out", "-o") or not draw(st.booleans()):
            continue
        if not option:
            arguments += draw(st.lists(words, min_size=1, max_size=3 if param.nargs == -1 else 1))
        elif getattr(param, "is_flag", False):
            options.append(option)
        else:
            options += [option, draw(words)]
    return [*path, *options, *(["--"] if draw(st.booleans()) else []), *arguments]


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command(arguments)
        for stream in (out, err):
            stream.flush()
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "lessons.db"
    reflect.open(str(path)).lessons.add("it rains 😀", "smile", scope="letters")
    return path


@pytest.fixture
def busy_folder(folder: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a database and a lesson. No model, no editor, no scheduler."""
    monkeypatch.setattr("reflect.reading.SILENCE", 0.05)
    for module in ("workspace.lessons", "tasksets.rows"):
        monkeypatch.setattr(f"reflect.{module}.MOST_BYTES", 2**20)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    for name, value in {
        "HOME": str(folder),
        "PATH": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "REFLECT_MODEL": "nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    shutil.copy(database, folder / "lessons.db")
    os.mkfifo(folder / "pipe")
    return folder


@given(command_lines())
def test_any_command_line(busy_folder: Path, arguments: list[str]) -> None:
    code, _, err = run(arguments)
    assert code in (0, 1, 2), (arguments, err)
    assert "Traceback" not in err and len(err) < 5000, arguments
    assert code == 0 or "Error: " in err or "problem" in err or not err, (arguments, err)


BAD_NUMBERS = ["9223372036854775808", "9" * 22, "9" * 5001, "nan", "", "-1", "²", "1e3", "\udcff"]
NUMBER_LINES = [
    "run letters -k {}", "run letters --seed {} --dry-run", "run letters --temperature {}", "lessons show -- {}",
    "lessons history -- {}", "lessons retire -- {}", "lessons diff 1 -- {}", "lessons list -n {}", "lessons stats -- {}",
    "lessons allow -- {}", "grade give {} 1", "grade give 1 {}", "grade list --run {}", "runs show -- {}", "runs resume -- {}",
    "runs list -n {}", "nights show -- {}", "adapters show -- {}", "trial -- {}", "sleep --budget {}",
]  # fmt: skip


def test_a_number_that_is_none(busy_folder: Path) -> None:
    for line in NUMBER_LINES:
        for value in BAD_NUMBERS:
            if "--seed" in line and value == "-1":
                continue
            code, out, err = run([word.format(value) for word in line.split()])
            assert (code, out) == (2, "") and "Error: " in err, (line, value, err)


UNREADABLE = [
    ("lessons import /dev/zero", 2, "/dev/zero has more than 1 MiB, or no end"),
    ("lessons import pipe", 2, "pipe sent nothing for 0.05 seconds"),
    ("lessons import .", 2, ". cannot be read: it is a folder"),
    ("lessons import missing", 1, "missing cannot be read: No such file or directory"),
    ("lessons import ~nouser/x", 2, "The home folder '~nouser' is unknown"),
    ("lessons export --out /dev/full", 1, "The disk is full"),
    ("lessons export --format agents --out /dev/full", 1, "The disk is full"),
    ("lessons export --format skill --out /dev/full", 1, "Not a directory"),
    ("lessons export --out .", 2, ". is a folder"),
    ("lessons export --out lessons.db/x", 1, "lessons.db"),
    ("lessons export --out pipe", 1, "No such device or address: pipe"),
    (
        "lessons search \udcff\udcfe",
        2,
        "is no text: control characters or bytes that are not UTF-8",
    ),
    ("lessons --db a\udcff", 2, "Invalid value for '--db'"),
    ("run letters -m openai:x --base-url http://[", 2, "base_url is no address of a server"),
    ("serve --upstream http://[", 2, "--upstream is not a URL"),
    ("grade load /dev/zero", 2, "/dev/zero has more than 1 MiB, or no end"),
    ("judge pipe", 2, "pipe sent nothing"),
    ("serve --key \udcff", 2, "Invalid value for '--key'"),
    ("sleep --budget 9999999999h", 2, "is no length of time of at most 10000 minutes"),
    ("runs prune --days 9000000000000000000", 2, "--days"),
]


def test_what_cannot_be_read_or_written(busy_folder: Path) -> None:
    for line, code, message in UNREADABLE:
        result = run(line.split())
        assert result[0] == code and message in result[2] and len(result[2].splitlines()) <= 5, (
            line,
            result,
        )


def test_an_export_can_go_to_a_device(busy_folder: Path) -> None:
    assert run(["lessons", "export", "--out", "/dev/null"])[0] == 0
    assert Path("/dev/null").is_char_device()


def test_the_home_folder_of_an_unknown_user(
    busy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    code, _, err = run(["schedule", "status"])
    assert code == 2 and "The home folder '~' is unknown" in err and "Set HOME" in err


def process(script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in which `reflect` is the command."""
    command = f'reflect() {{ "{sys.executable}" -m reflect "$@"; }}; {script}'
    env = os.environ | {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, env=env
    )


def test_a_terminal_without_unicode_gets_escapes(
    busy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = process("PYTHONIOENCODING=ascii reflect lessons")
    assert (done.returncode, done.stderr) == (0, "") and r"it rains \U0001f600" in done.stdout
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", stdout)
    open_streams()
    for arguments in (["lessons", "--json"], ["lessons", "export"]):
        assert run_command(arguments) == 0
    stdout.flush()
    text = stdout.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert json.loads(text[: text.index("]\n{") + 1])[0]["when"] == "it rains 😀"
    assert '"when":"it rains 😀"' in text, "an export is a file in UTF-8"


def test_a_locale_without_unicode(busy_folder: Path) -> None:
    done = process("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 reflect lessons search 'rains 😀'")
    assert done.returncode == 0 and "smile" in done.stdout, done.stderr


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "9" * 5001, "٣"])
def test_a_launcher_with_a_wrong_number(
    busy_folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    code, _, err = run(["lessons"])
    assert code == 2 and "WORLD_SIZE is no number of a process" in err and len(err) < 400


def test_closed_streams(busy_folder: Path) -> None:
    done = process("reflect lessons >&-; echo $?; reflect lessons import - <&-; echo $?")
    assert done.stdout.split() == ["0", "2"]
    assert done.stderr == "Error: stdin is empty.\nNothing was imported.\n"


def test_a_fault_of_reflect_is_one_sentence(busy_folder: Path) -> None:
    script = "import reflect.cli as c; c.run_command = lambda argv: 1 / 0; c.main([])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(
        "Error: reflect failed, by a fault of its own: ZeroDivisionError"
    )
    assert "Traceback" not in done.stderr and "REFLECT_TRACEBACK=1" in done.stderr
