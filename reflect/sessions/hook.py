"""The program that Claude Code and Codex start as a hook: `python -I -S hook.py FOLDER`.

At a prompt it prints the lessons for the session; at the end of a turn or a session it queues the
transcript for `reflect sessions import`. It needs the standard library only, reads the small files
that `reflect.sessions.hook_lessons` writes into FOLDER, and calls no model.

Each lesson is drawn once per session, with the hash of `reflect.trials.assignment`: the session is
the unit of the experiment. The draws are saved in FOLDER/sessions before anything is printed, and
the import copies them into the exchange of the session. Whether a lesson is chosen does not depend
on draws: withheld lessons use up the budget as shown ones do.

Any error means: no output, exit code 0.

Not covered: full-text search (lessons are ordered by the words that the prompt shares with their
condition), and a user's own prompts/system.jinja.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    from reflect.types import Json

HEAD = "Lessons from practice. Use each one that fits the task."
GRADES = ("/reflect", "$reflect")  # prompts that grade the session begin so
HOMES = ("home", "Users")
MOST_BYTES = 2**23  # of the event on stdin
MOST_DAYS = 14.0  # age of the lessons' files; older ones are not shown
UNRELATED, UNKNOWN = 0.25, 0.1  # as in reflect.lessons.selection
TURN_ENDS = ("Stop", "SessionEnd")


def digest(text: str) -> str:
    """The name of the file of a scope, a session or a transcript."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:20]


def scope_of(folder: str) -> str:
    """The scope of a working folder: the name of its git repository, or else its own name.

    A linked worktree belongs to the repository that it was made from. The name of a home folder,
    which is that of a person, is no scope.
    """
    start = Path(folder)
    for top in (start, *start.parents):
        mark = top / ".git"
        if mark.is_dir():
            return top.name or "sessions"
        if mark.is_file():
            target = Path(mark.read_text(errors="replace").partition("gitdir:")[2].strip())
            linked = target.parent.name == "worktrees" and target.parent.parent.name == ".git"
            return (target.parents[2] if linked else top).name or "sessions"
    home = str(start) in ("/root", os.path.expanduser("~")) or start.parent.name in HOMES
    return "home" if home else start.name or "sessions"


def uniform(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: as in reflect.trials.assignment."""
    return int.from_bytes(hashlib.sha256(f"withhold/{key}".encode()).digest()[:8], "big") / 2**64


def load(folder: Path, scope: str) -> Json:
    """The lessons of a scope and the settings, as hook_lessons wrote them; {} if they are old."""
    try:
        cache = json.loads((folder / "lessons" / f"{digest(scope)}.json").read_text())
    except FileNotFoundError:
        return {}
    return cache if time.time() - cache["written"] < MOST_DAYS * 86400 else {}


def select(lessons: list[Json], prompt: str, limit: int, budget: int) -> list[Json]:
    """At most `limit` lessons and `budget` tokens of them: all if they fit, else those whose
    condition shares most words with the prompt and that are proven to help."""
    if len(lessons) > limit or sum(lesson["tokens"] for lesson in lessons) > budget:
        words = set(re.findall(r"\w+", prompt.lower()))
        scores = {}
        for lesson in lessons:
            own = set(re.findall(r"\w+", lesson["when"].lower()))
            scores[lesson["id"]] = len(own & words) / max(len(own), 1)
        best = max(scores.values(), default=0.0) or 1.0

        def value(lesson: Json) -> float:
            relevance = UNRELATED + (1 - UNRELATED) * scores[lesson["id"]] / best
            return float(relevance * max(UNKNOWN + lesson["proven"], 0.01))

        lessons = sorted(lessons, key=lambda lesson: -value(lesson))
    chosen: list[Json] = []
    for lesson in lessons:
        if len(chosen) < limit and lesson["tokens"] <= budget:
            chosen.append(lesson)
            budget -= lesson["tokens"]
    return sorted(chosen, key=lambda lesson: lesson["id"])


def draw(lesson: Json, session: str, bundle: tuple[bool, float]) -> Json:
    """The exposure of a lesson in a session, as an Exchange has it."""
    shown = uniform(f"0/{session}/0/{lesson['id']}") >= lesson["share"]
    return {
        "lesson_id": lesson["id"],
        "version": lesson["version"],
        "shown": shown and bundle[0],
        "probability": 1.0 - lesson["share"] if bundle[0] else 0.0,
    }


def expose(log: Json, caches: list[Json], session: str, prompt: str) -> list[Json]:
    """Choose and draw lessons that the session has not met; add the draws to `log`. Returns the
    lessons to show."""
    settings = caches[0]["settings"]
    met = {row["lesson_id"] for row in log["exposures"]}
    every = {row["id"]: row for cache in caches for row in cache["lessons"]}
    new = [row for row in every.values() if row["id"] not in met]
    room = settings["lesson_budget"] - log["tokens"]
    chosen = select(new, prompt, settings["lesson_limit"] - len(met), room)
    share = settings["withhold_bundle"] if settings["trials"] else 0.0
    bundle = uniform(f"0/{session}/0/bundle") >= share, 1.0 - share
    draws = [draw(lesson, session, bundle) for lesson in chosen]
    if chosen:
        log["bundle_shown"], log["bundle_probability"] = bundle
        log["tokens"] += sum(lesson["tokens"] for lesson in chosen)
        log["exposures"] += draws
    return [lesson for lesson, row in zip(chosen, draws, strict=True) if row["shown"]]


def render(lines: list[str]) -> str:
    """The lessons between two fences, as prompts/system.jinja writes them."""
    if not lines:
        return ""
    text = "\n".join(lines)
    fence = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{HEAD} [{fence}]\n{text}\n[end {fence}]"


def at_prompt(folder: Path, event: Json, *, again: bool = False) -> str:
    """The lessons that the prompt adds to the session. `again`: the context was compacted, so those
    that the session has met are shown once more."""
    session, prompt = str(event["session_id"]), str(event.get("prompt") or "")
    file = folder / "sessions" / f"{digest(session)}.json"
    log: Json = {"session": session, "exposures": [], "tokens": 0, "lines": []}
    if file.exists():
        log = json.loads(file.read_text())
    if again:
        return render(log["lines"])
    if prompt.strip().startswith(GRADES):
        return ""
    log["scope"] = scope_of(str(event["cwd"]))
    caches = [cache for scope in (log["scope"], "") if (cache := load(folder, scope))]
    met = len(log["exposures"])
    shown = expose(log, caches, session, prompt) if caches else []
    lines = [f"- when: {lesson['when']} do: {lesson['do']}" for lesson in shown]
    log["lines"] += lines
    if len(log["exposures"]) > met:
        file.parent.mkdir(exist_ok=True)
        write(file, json.dumps(log))
    return render(lines)


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(file)


def queue(folder: Path, event: Json) -> None:
    """Note the transcript for the next import; one file per transcript."""
    path = event.get("transcript_path")
    if isinstance(path, str) and path:
        (folder / "queue").mkdir(exist_ok=True)
        write(folder / "queue" / digest(path), path)


def answer(folder: Path, event: Json) -> str:
    """What the hook prints for an event: a JSON object with additional context, or nothing."""
    name = event.get("hook_event_name")
    if name in TURN_ENDS:
        queue(folder, event)
    again = name == "SessionStart" and event.get("source") == "compact"
    text = at_prompt(folder, event, again=again) if again or name == "UserPromptSubmit" else ""
    context = {"hookEventName": name, "additionalContext": text}
    return json.dumps({"hookSpecificOutput": context}) if text else ""


def main() -> None:
    """Read one event from stdin; print what it adds to the session."""
    try:
        event = json.loads(sys.stdin.buffer.read(MOST_BYTES))
        if text := answer(Path(sys.argv[1]), event):
            sys.stdout.write(text)
            sys.stdout.flush()
    except BaseException:  # the session goes on without lessons
        os._exit(0)
    os._exit(0)  # also where the agent has closed the pipe


if __name__ == "__main__":
    main()
