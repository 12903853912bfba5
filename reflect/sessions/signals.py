"""The reward of a session, and the signal that it came from.

From the best signal to the weakest: the person's own grade (`/reflect good|bad`), the exit code of
the last test or build command, a commit that was kept or undone, and whether the person's later
messages correct the work, which a model judges (`reflect sessions judge`). A session without any of
them has no reward and is not reviewed.

Not covered: signals are not given at random: a lesson that makes an agent run tests more often
changes which sessions have a reward.
"""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from typing import NamedTuple

TESTS = re.compile(
    r"(?:(?:^|/)(?:pytest|py\.test|tox|nox|jest|vitest|mocha|ava|ctest|phpunit|pest|rspec|karma"
    r"|cypress|ninja|tsc|vue-tsc|make|gmake|just|bazel|buck2?|xcodebuild|rake|invoke|unittest)"
    r"|/(?:run[-_])?tests?(?:\.(?:sh|py|rb|js))?)$"
)
RUNNERS = set(
    "npm pnpm yarn bun npx bunx deno go cargo dotnet mvn mvnw gradle gradlew mix swift flutter "
    "dart cmake bundle poetry uv pipenv hatch rye pdm python python3 composer sbt stack cabal zig "
    "dune rails php lein task nx turbo meson rebar3 gleam elm scons".split()
)
GOALS = re.compile(
    r"(?:(?:test|build|check|verify|compile|package|vet|clippy|nextest|tests|t|--build|assemble)"
    r"(?::[\w:.-]+)?|pytest|unittest|tox|nox|jest|vitest|mocha|tsc|rspec|phpunit)$"
)
SHELLS, WRAPPERS = {"bash", "sh", "zsh", "dash"}, {"docker", "docker-compose", "podman", "kubectl"}
DRY = set("--help -h --version --co --collect-only --list --dry-run --fixtures".split())
PREFIXES = {"sudo", "time", "env", "timeout", "nice", "xvfb-run", "exec", "command", "nohup"}
REDIRECTED = re.compile(r"\d*>&\d+|&?\d*>>?\s*[^\s;&|>]+|<(?!<)\s*[^\s;&|]+")
TOKEN_CAP = 200_000  # of one `reflect sessions judge`
MOST_COMMAND = 200  # characters of a command in the feedback


class Signal(StrEnum):
    """Where the reward of a session comes from, best first."""

    GRADE = "grade"
    CHECK = "check"
    COMMIT = "commit"
    CORRECTION = "correction"
    NONE = "none"


class CheckCommand(NamedTuple):
    """A test or build command. `exit_code`: None where it says nothing of the command."""

    command: str
    exit_code: int | None


class SessionReward(NamedTuple):
    """The reward in [0, 1], None without a signal; and what a reflection reads of it."""

    signal: Signal
    reward: float | None = None
    feedback: str = ""


def reward_of(
    grade: tuple[float, str] | None, check: CheckCommand | None, kept: bool | None
) -> SessionReward:
    """The reward by the best signal.

    `grade`: the person's own, and why. `check`: the last test or build. `kept`: whether the commits
    of the session are still there; None without one, or where it is too early to say.
    """
    if grade:
        reward, why = grade
        verdict = "good" if reward else "bad"
        return SessionReward(Signal.GRADE, reward, f"{Signal.GRADE}: {verdict}. {why}".strip())
    if check and (code := exit_of(check)) is not None:
        command = " ".join(check.command.split())[:MOST_COMMAND]
        feedback = f"{Signal.CHECK}: `{command}` ended with exit code {code}."
        return SessionReward(Signal.CHECK, float(code == 0), feedback)
    if kept is not None:
        feedback = f"{Signal.COMMIT}: its commit was {'kept' if kept else 'undone'}."
        return SessionReward(Signal.COMMIT, float(kept), feedback)
    return SessionReward(Signal.NONE)


def is_check(command: str) -> bool:
    """Whether a shell command runs tests or a build."""
    return any(map(_checks, _commands(command) or ()))


def exit_of(check: CheckCommand) -> int | None:
    """The exit code of the test or build itself; None where another command hides it.

    In `pytest | tail`, `pytest; date` and `pytest || true` the shell reports another command. In
    `pytest && git push` only 0 says something of the tests.
    """
    parts = _split(check.command)
    if parts is None or check.exit_code is None:
        return None
    last = max((i for i, (words, _) in enumerate(parts) if _checks(words)), default=None)
    if last is None:
        return None
    before = {operator for _, operator in parts[:last]}
    after = {operator for _, operator in parts[last:]} - {""}
    if "pipefail" in check.command:
        after -= {"|", "|&"}
    # "||" before it: it may not have run. "&&" after it: another command may have failed.
    hidden = after - {"&&"} or "||" in before or ("&&" in after and check.exit_code != 0)
    return None if hidden else check.exit_code


def _commands(command: str) -> list[list[str]] | None:
    parts = _split(command)
    return None if parts is None else [words for words, _ in parts]


def _split(command: str) -> list[tuple[list[str], str]] | None:
    """The simple commands of a line, each with the operator after it; None if it cannot be read."""
    text = REDIRECTED.sub(" ", command.strip().replace("\\\n", " ")).replace("\n", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split, lexer.commenters = True, ""
    parts: list[tuple[list[str], str]] = []
    words: list[str] = []
    try:
        for token in lexer:
            if token in (";", "&", "&&", "|", "||", "|&", ";;"):
                if words:
                    parts.append((words, token))
                words = []
            elif token.strip("()"):
                words.append(token)
    except ValueError:  # an open quote, as in a here-document
        return None
    if words:
        parts.append((words, ""))
    elif parts and parts[-1][1] == ";":
        parts[-1] = parts[-1][0], ""
    return parts


def _checks(words: list[str]) -> bool:
    """Whether a simple command is a test or a build."""
    words = [word for word in words if not re.match(r"[A-Za-z_]\w*=", word)]
    while words and (words[0] in PREFIXES or re.fullmatch(r"-\S+|\d+[smh]?", words[0])):
        words = words[1:]
    if not words or DRY & set(words):
        return False
    program = words[0].rsplit("/", 1)[-1]
    if program in SHELLS and len(words) > 1:
        if re.fullmatch(r"-\w*c", words[1]):  # its exit code is that of the command in the text
            return any(exit_of(CheckCommand(text, 0)) == 0 for text in words[2:3])
        return _checks([words[1] if "/" in words[1] else f"./{words[1]}"])
    if program in WRAPPERS:
        return any(_checks(words[i:]) for i in range(2, len(words)))
    goals = [word for word in words[1:] if not word.startswith("-") or word == "--build"]
    if TESTS.search(words[0]):
        plan = "-n" in words and program in ("make", "gmake", "ninja")
        return not plan and not {"install", "clean"} & set(goals)
    return program in RUNNERS and any(map(GOALS.match, goals))
