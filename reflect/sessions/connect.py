"""Add our hooks to the settings of Claude Code or Codex, and take them out again.

Both read a JSON object `hooks` with the same form: ~/.claude/settings.json, ~/.codex/hooks.json. A
change is computed first, so that a person sees it as a diff before anything is written. `record`
keeps the bytes from before, so `remove` restores them exactly; if the file was changed in the
meantime, only our entries are taken out.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.errors import UsageError
from reflect.reading import expand_home, read_text
from reflect.sessions import hook
from reflect.sessions.hook_lessons import folder_of

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.types import Json

MOST_BYTES = 2**22
OURS = re.compile(r"\breflect/sessions/hook\.py\b")
SECONDS = 5  # after which the agent goes on without the hook
PLUGIN = Path(__file__).parent / "plugin"
EVENTS: dict[str, tuple[tuple[str, str], ...]] = {  # agent -> (event, matcher)
    "codex": (("UserPromptSubmit", ""), ("SessionStart", "compact"), ("Stop", "")),
}
EVENTS["claude"] = (*EVENTS["codex"], ("SessionEnd", ""))
FILES = {
    "claude": ("CLAUDE_CONFIG_DIR", "~/.claude", "settings.json"),
    "codex": ("CODEX_HOME", "~/.codex", "hooks.json"),
}
SKILL = Path("skills/reflect/SKILL.md")
PLUGIN_FILES = {  # name in the package -> place in the plugin
    "plugin.json": ".claude-plugin/plugin.json",
    "mcp.json": ".mcp.json",
    str(SKILL): str(SKILL),
}


@dataclass(frozen=True)
class FileChange:
    """A file with its bytes before and after; None where it does not exist."""

    path: Path
    before: bytes | None
    after: bytes | None

    @property
    def diff(self) -> str:
        """The change as a unified diff; "" without a change."""
        old, new = (_lines(data) for data in (self.before, self.after))
        first, second = (
            "/dev/null" if data is None else str(self.path) for data in (self.before, self.after)
        )
        return "\n".join(difflib.unified_diff(old, new, first, second, lineterm=""))

    def write(self) -> None:
        """Make the change, whole or not at all. The file keeps its permissions, and a link to it
        stays a link."""
        target = Path(os.path.realpath(self.path))
        if self.after is None:
            target.unlink(missing_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.write_bytes(self.after)
        part.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o600)
        part.replace(target)


def _lines(data: bytes | None) -> list[str]:
    return (data or b"").decode(errors="replace").splitlines()


def command(settings: Settings) -> str:
    """The shell command of the hook. Its exit code is 0 even if Python or the package has moved: 2,
    which Python returns for a missing file, would stop the prompt."""
    parts = [sys.executable, "-I", "-S", str(Path(hook.__file__).resolve())]
    return f"{shlex.join([*parts, str(folder_of(settings).resolve())])} 2>/dev/null || true"


def hooks_of(agent: str, text: str) -> Json:
    """The object `hooks` with our entries only."""
    hooks: Json = {}
    for event, matcher in EVENTS[agent]:
        entry: Json = {"matcher": matcher} if matcher else {}
        entry["hooks"] = [{"type": "command", "command": text, "timeout": SECONDS}]
        hooks[event] = [entry]
    return hooks


def settings_file(agent: str) -> Path:
    """The file that holds the hooks of an agent."""
    variable, default, name = FILES[agent]
    return expand_home(os.environ.get(variable) or default) / name


def connect(settings: Settings, agent: str) -> list[FileChange]:
    """The changes that connect an agent; those without a difference are left out."""
    path = settings_file(agent)
    before = _read(path)
    wanted = hooks_of(agent, command(settings))
    document = _parse(path, before)
    result = _without_ours(document, path)
    hooks = result.setdefault("hooks", {})
    for event, entries in wanted.items():
        hooks.setdefault(event, [])
        hooks[event] = [*hooks[event], *entries]
    after = before if result == document else _dump(result, before)
    changes = [FileChange(path, before, after)]
    skill = path.parent / SKILL
    changes.append(FileChange(skill, _read(skill), (PLUGIN / SKILL).read_bytes()))
    return [change for change in changes if change.before != change.after]


def remove(settings: Settings, agent: str) -> list[FileChange]:
    """The changes that take our entries out of an agent's files."""
    record = read_record(settings, agent)
    changes = []
    path = settings_file(agent)
    for file in (path, path.parent / SKILL):
        now, old = _read(file), record.get(str(file))
        if now is None:
            continue
        if old and hashlib.sha256(now).hexdigest() == old["sha256"]:
            text = old["before"]
            changes.append(FileChange(file, now, None if text is None else base64.b64decode(text)))
        elif now == (PLUGIN / SKILL).read_bytes():
            changes.append(FileChange(file, now, None))
        elif file == path:
            document = _parse(path, now)
            result = _without_ours(document, path)
            if result != document:
                changes.append(FileChange(path, now, _dump(result, now)))
    return changes


def read_record(settings: Settings, agent: str) -> dict[str, Json]:
    """path -> the bytes from before `connect`, and the hash of what it wrote."""
    file = folder_of(settings) / f"connect-{agent}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def apply(settings: Settings, agent: str, changes: list[FileChange], *, removed: bool) -> None:
    """Write the changes, after the bytes from before are saved."""
    folder = folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"connect-{agent}.json"
    if not removed:
        record = read_record(settings, agent)
        for change in changes:
            old, data = record.get(str(change.path)), change.before
            if data is not None and change.path == settings_file(agent):
                document = _parse(change.path, data)
                clean = _without_ours(document, change.path)
                data = data if clean == document else _dump(clean, data)
            before = None if data is None else base64.b64encode(data).decode()
            if old and hashlib.sha256(change.before or b"").hexdigest() == old["sha256"]:
                before = old["before"]  # ours already: what was there before the first time
            after = hashlib.sha256(change.after or b"").hexdigest()
            record[str(change.path)] = {"before": before, "sha256": after}
        hook.write(file, json.dumps(record))
    for change in changes:
        change.write()
    if removed:
        file.unlink(missing_ok=True)


def plugin_files(settings: Settings) -> dict[Path, bytes]:
    """The plugin for Claude Code: path in its folder -> content. Its hooks name this database."""
    files = {Path(place): (PLUGIN / name).read_bytes() for name, place in PLUGIN_FILES.items()}
    hooks = {"hooks": hooks_of("claude", command(settings))}
    return files | {Path("hooks/hooks.json"): (json.dumps(hooks, indent=2) + "\n").encode()}


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _parse(path: Path, data: bytes | None) -> Json:
    """The settings as JSON. UsageError where they cannot be changed without loss."""
    if data is None or not data.strip():
        return {}

    def unique(pairs: list[tuple[str, object]]) -> Json:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in one object")
        return dict(pairs)

    try:
        document = json.loads(read_text(path, MOST_BYTES), object_pairs_hook=unique)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} cannot be read: {e}.", "Fix the file, then try again.") from e
    return document


def _without_ours(document: Json, path: Path) -> Json:
    """A copy without our hooks, and without the lists that only these had made necessary."""
    hooks = document.get("hooks", {})
    lists = isinstance(hooks, dict) and all(isinstance(x, list) for x in hooks.values())
    if not lists:
        message = f"{path} has `hooks` that are no object of lists."
        raise UsageError(message, "Fix the file, then try again.")
    kept: Json = {}
    for event, entries in hooks.items():
        rows = []
        for entry in entries:
            inner = entry.get("hooks") if isinstance(entry, dict) else None
            if not isinstance(inner, list):
                rows.append(entry)
                continue
            others = [one for one in inner if not _is_ours(one)]
            if others == inner:
                rows.append(entry)
            elif others:
                rows.append({**entry, "hooks": others})
        if rows or not entries:
            kept[event] = rows
    result = {**document, "hooks": kept}
    if not kept and hooks:
        del result["hooks"]
    return result if "hooks" in document else {k: v for k, v in result.items() if k != "hooks"}


def _is_ours(one: object) -> bool:
    return isinstance(one, dict) and bool(OURS.search(str(one.get("command", ""))))


def _dump(document: Json, before: bytes | None) -> bytes:
    """The settings as text, with the indentation, line ends and mark of the old text."""
    old = (before or b"").decode("utf-8-sig", errors="replace")
    match = re.search(r"\n([ \t]+)\S", old)
    indent: str | int | None = match[1] if match else 2
    if old.strip() and "\n" not in old.strip():
        indent = None
    text = json.dumps(document, indent=indent, ensure_ascii=old.isascii() and "\\u" in old)
    text += "\n" if not old or old.endswith("\n") else ""
    text = text.replace("\n", "\r\n") if "\r\n" in old else text
    return (b"\xef\xbb\xbf" if (before or b"").startswith(b"\xef\xbb\xbf") else b"") + text.encode()
