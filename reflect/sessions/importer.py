"""Import transcripts of coding agents: each session becomes an exchange, which `reflect run
--from-traffic` reviews.

A transcript is identified by its first record, so a copy or a moved file is the same one. It is
read from where the last import ended. Until a run has reflected on its exchange, a session that
grew replaces it; afterwards the rest of the session is an exchange of its own (`choice` counts
them). The state is a JSON file next to the database; the exchanges themselves say what was imported
when it is lost.

Nothing is stored before `redact` has seen it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock

from reflect.errors import UsageError
from reflect.reading import clipped, expand_home
from reflect.records import Exchange, now
from reflect.sessions.atif import is_trajectory, read_trajectory
from reflect.sessions.claude import ClaudeReader
from reflect.sessions.codex import CodexReader
from reflect.sessions.hook import digest, scope_of
from reflect.sessions.hook import write as write_file
from reflect.sessions.hook_lessons import folder_of
from reflect.sessions.redaction import redact, redact_all
from reflect.sessions.session import AgentSession, as_dict, stored
from reflect.sessions.signals import SessionReward, Signal, reward_of
from reflect.store import exchanges, lessons
from reflect.store.exchanges import SESSION
from reflect.types import Finish, Trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.store import Store
    from reflect.types import Json

MOST_LINE = 2**25  # bytes of one record; longer ones are skipped
MOST_FILE = 2**27  # bytes of an ATIF file
SETTLED = 24 * 3600.0  # seconds after which a commit that is still there counts as kept
GIVEN_UP = 30 * 86400.0  # seconds after which the fate of a commit is not asked any more
FORGOTTEN = 90 * 86400.0  # seconds after which the draws of a session are deleted
GIT_SECONDS = 5.0
MEASURE = hashlib.sha256(b"sessions/1").hexdigest()[:12]
AGENTS = {
    "claude": ("~/.claude/projects", "*/*.jsonl"),
    "codex": ("~/.codex/sessions", "**/*.jsonl"),
}
HOMES = {"claude": "CLAUDE_CONFIG_DIR", "codex": "CODEX_HOME"}  # environment variables
TAKEN = ("new", "grown")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class ImportedSession:
    """One session of a report."""

    path: str
    name: str
    scope: str
    status: str
    """new, grown, unchanged; or why it was skipped: headless, subagent, empty, repeated, broken."""
    signal: str = ""
    reward: float | None = None
    prompts: int = 0
    answers: int = 0
    calls: int = 0
    tokens: int = 0
    """Estimated tokens of its text for one reflection."""


@dataclass
class ImportReport:
    """What an import did, or would do."""

    sessions: list[ImportedSession] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """prompts, answers, calls, results, grades, records, of the imported sessions."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records outside the conversations, by kind."""
    signals: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    """Tokens that the sessions used, as their transcripts have it."""
    tokens_out: int = 0
    review_tokens: int = 0
    """Estimated tokens of the reflections on sessions with a reward."""
    price: float | None = None
    """Of the reflections; None if the model has no price."""
    settled: int = 0
    """Earlier sessions whose reward came now, from a commit."""


def since_seconds(text: str) -> float:
    """Seconds of a duration such as 90m, 12h, 7d, 2w. UsageError for anything else."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in UNITS or len(number) > 6:
        raise UsageError(f"--since {clipped(text)} is no duration.", "Write 90m, 12h, 7d or 2w.")
    return float(number) * UNITS[unit]


def find_transcripts(source: str, queue: Path, since: float | None) -> list[Path]:
    """The transcripts of `claude`, `codex` or a path, oldest first; "" is both agents and the
    transcripts that hooks queued. Files that were not changed in the last `since` seconds are left
    out."""

    paths: list[Path] = []
    for agent in (source,) if source in AGENTS else AGENTS if not source else ():
        home, pattern = AGENTS[agent]
        own = os.environ.get(HOMES[agent])
        folder = Path(own) / Path(home).name if own else expand_home(home)
        paths += folder.glob(pattern)
    if not source and queue.is_dir():
        paths += [Path(file.read_text()) for file in queue.iterdir() if file.suffix != ".part"]
    if source and source not in AGENTS:
        path = expand_home(source)
        if not path.exists():
            hint = "Name claude, codex, a transcript or a folder of transcripts."
            raise UsageError(f"There is no transcript {clipped(source)}.", hint)
        files = (p for p in path.rglob("*") if p.suffix in (".jsonl", ".json"))
        paths += files if path.is_dir() else [path]
    times: dict[Path, float] = {}
    for path in paths:
        try:
            info = path.stat()
        except OSError:  # a queued transcript that was deleted
            continue
        if path.is_file() and (since is None or info.st_mtime >= time.time() - since):
            times[path.resolve()] = info.st_mtime
    return sorted(times, key=lambda path: (times[path], str(path)))


def import_sessions(
    store: Store,
    settings: Settings,
    paths: Iterable[Path],
    *,
    trusted: bool = False,
    headless: bool = False,
    dry_run: bool = False,
) -> ImportReport:
    """Import transcripts, each in one transaction. `trusted`: their texts and rewards are our own.
    `headless`: also sessions that programs started. `dry_run`: report what would be done."""
    folder = folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "import.lock"):
        importer = Importer(store, settings, trusted, headless, dry_run)
        try:
            for path in paths:
                importer.add(path)
            importer.settle()
        finally:
            importer.save()
    return importer.report


class Importer:
    """One import. `add` each transcript, then `settle` the commits of earlier ones."""

    def __init__(
        self, store: Store, settings: Settings, trusted: bool, headless: bool, dry_run: bool
    ) -> None:
        self.store, self.settings = store, settings
        self.trusted, self.headless, self.dry_run = trusted, headless, dry_run
        self.folder = folder_of(settings)
        self.home = str(expand_home())
        self.report = ImportReport()
        self._file = self.folder / "imported.json"
        self._state: dict[str, Json] = {"transcripts": {}, "commits": {}}
        if self._file.exists():
            self._state |= json.loads(self._file.read_text())
        self._owners = {key: name for name, x in self._transcripts.items() for key in x["prompts"]}

    @property
    def _transcripts(self) -> dict[str, Json]:
        return self._state["transcripts"]

    def save(self) -> None:
        """Write the state. Without it the exchanges would be replaced, not doubled."""
        if not self.dry_run:
            write_file(self._file, json.dumps(self._state))

    # -- one transcript

    def add(self, path: Path) -> None:
        """Import a transcript, or the rest of one."""
        try:
            with path.open("rb") as file:
                self._add(path, file)
        except OSError:
            self._note(path, AgentSession("", path.stem), "broken")

    def _add(self, path: Path, file: BinaryIO) -> None:
        size = path.stat().st_size
        first, record = _first_record(file)
        if record is not None and not is_trajectory(record):
            return self._add_transcript(path, file, size, first, record)
        documents = _trajectories(file, size)
        for document in documents:
            identity = digest(json.dumps(document))
            if entry := self._transcripts.get(identity):
                self._note(path, _named(entry["name"]), "unchanged")
                continue
            session = AgentSession("agent", path.stem, identity=identity, known=self._owners)
            read_trajectory(session, document)
            self._take(path, session, identity, 0, size)
        return None if documents else self._note(path, AgentSession("", path.stem), "broken")

    def _add_transcript(
        self, path: Path, file: BinaryIO, size: int, first: str, record: Json
    ) -> None:
        identity, start = digest(first), 0
        if entry := self._transcripts.get(identity):
            start, name = entry["start"], entry["name"]
            again = entry["status"] == "headless" and self.headless
            if size <= entry["end"] and not again:
                return self._note(path, _named(name), "unchanged")
            if self._reviewed(name, entry["choice"]):
                start = entry["end"]
        agent = "codex" if _is_codex(record) else "claude"
        session = AgentSession(agent, path.stem, identity=identity, known=self._owners)
        end = _read(file, session, record, start)
        return self._take(path, session, identity, start, end)

    def _take(self, path: Path, session: AgentSession, identity: str, start: int, end: int) -> None:
        """Save the session that was read between two places of a file, and note that it was."""
        entry = self._transcripts.get(identity)
        if entry:
            choice = entry["choice"] + (start > entry["start"])
        else:  # another file may hold an earlier part of the same session
            same = (e for e in self._transcripts.values() if e["name"] == session.name)
            choice = max((e["choice"] + 1 for e in same if e["status"] in TAKEN), default=0)
        status = self._status(session, entry)
        if entry is None and choice == 0 and self._reviewed(session.name, 0):
            status = "unchanged"  # the state was lost
        if status in TAKEN:
            self._store(path, session, status, choice)
        else:
            self._note(path, session, status)
        keys = {*session.prompts, *(entry["prompts"] if entry else [])} - {""}
        self._transcripts[identity] = {
            "name": session.name,
            "status": status,
            "start": start,
            "end": end,
            "choice": choice,
            "prompts": sorted(keys),
        }
        self._owners |= {key: self._owners.get(key, identity) for key in keys}

    def _status(self, session: AgentSession, entry: Json | None) -> str:
        if session.headless and not self.headless:
            return "headless"
        if session.subagent:
            return "subagent"
        if session.asked is None or not session.counts["answers"]:
            return "repeated" if session.skipped["repeated"] and not session.prompts else "empty"
        return "grown" if entry and entry["status"] in TAKEN else "new"

    def _reviewed(self, name: str, choice: int) -> bool:
        with self.store.read() as s:
            rows = exchanges.of_sessions(s, self.settings.profile, name)
        return any(row.choice == choice and row.run_id is not None for row in rows)

    def _note(
        self,
        path: Path,
        session: AgentSession,
        status: str,
        row: Exchange | None = None,
        reward: SessionReward | None = None,
        tokens: int = 0,
    ) -> None:
        """Add a session to the report; `row`: its exchange."""
        counts = session.counts
        self.report.sessions.append(
            ImportedSession(
                str(path),
                row.name if row else session.name,
                row.taskset if row else "",
                status,
                str(reward.signal) if reward else "",
                reward.reward if reward else None,
                counts["prompts"],
                counts["answers"],
                counts["calls"],
                tokens,
            )
        )
        self.report.statuses[status] += 1
        self.report.skipped += session.skipped

    # -- the exchange

    def _store(self, path: Path, session: AgentSession, status: str, choice: int) -> None:
        log = self._log(session)
        scope = str(log.get("scope") or (scope_of(session.cwd) if session.cwd else "sessions"))
        kept = False if session.undone else self._kept(session)
        reward = reward_of(session.grade, session.check, kept)
        row = self._exchange(session, choice, scope, reward, log)
        tokens = sum(len(str(message.get("content"))) for message in row.messages) // 4
        self._note(path, session, status, row, reward, tokens)
        report = self.report
        report.counts += session.counts
        report.signals[str(reward.signal)] += 1
        report.tokens_in += session.tokens_in
        report.tokens_out += session.tokens_out
        report.review_tokens += tokens if reward.reward is not None else 0
        if self.dry_run:
            return
        with self.store.write() as s:
            saved = self._save_row(s, row)
        if saved and reward.signal == Signal.NONE and session.commits and kept is None:
            at = (session.last or now()).timestamp()
            commit = {"cwd": session.cwd, "ids": session.commits[-5:], "at": at, "choice": choice}
            self._state["commits"][row.name] = commit

    def _save_row(self, s: Session, row: Exchange) -> bool:
        """Save the exchange in place of its earlier form. False if a run has it already."""
        rows = exchanges.of_sessions(s, self.settings.profile, row.name)
        counted = {x["lesson_id"] for old in rows if old.choice < row.choice for x in old.exposures}
        known = {
            x.id: x.version for x in lessons.by_ids(s, [x["lesson_id"] for x in row.exposures])
        }
        row.exposures = [
            x
            for x in row.exposures
            if x["lesson_id"] not in counted and known.get(x["lesson_id"], 0) >= x["version"]
        ]
        same = next((old for old in rows if old.choice == row.choice), None)
        kept = same if same is not None and not row.exposures else None  # the log is gone
        if kept:
            row.exposures = kept.exposures
            row.bundle_shown, row.bundle_probability = kept.bundle_shown, kept.bundle_probability
        elif not row.exposures:
            row.bundle_shown, row.bundle_probability = True, 1.0
        if same is None:
            exchanges.save(s, [row])
        elif same.run_id is None:
            for name, value in row.model_dump(exclude={"id", "run_id"}).items():
                setattr(same, name, value)
            exchanges.save(s, [same])
        return same is None or same.run_id is None

    def _exchange(
        self, session: AgentSession, choice: int, scope: str, reward: SessionReward, log: Json
    ) -> Exchange:
        clean: Json = {
            "name": session.name,
            "taskset": scope[:200],
            "model": session.model[:200] or session.agent,
            "model_fingerprint": f"{SESSION}{session.agent}/{session.model[:200]}",
            "feedback": reward.feedback,
        }

        def cleaned(value: object) -> object:
            return redact_all(value, lambda text: redact(text, self.home))

        clean = as_dict(cleaned(clean))
        asked = [session.asked] if session.asked else []
        clean["asked"] = [stored(message, cleaned) for message in asked]
        messages = session.conversation.messages()
        clean["messages"] = [stored(message, cleaned) for message in messages]
        key = f"{self.settings.profile}/{clean['name']}/{choice}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return Exchange(
            **clean,
            choice=choice,
            profile=self.settings.profile,
            exposures=log.get("exposures", []),
            bundle_shown=log.get("bundle_shown", True),
            bundle_probability=log.get("bundle_probability", 1.0),
            prompt_tokens=min(session.tokens_in, 2**31 - 1),
            completion_tokens=min(session.tokens_out, 2**31 - 1),
            finish=Finish.STOP,
            seed=seed,
            measure=MEASURE,
            trust=Trust.CLEAN if self.trusted else Trust.UNTRUSTED,
            reward=reward.reward,
            created=session.last or now(),
        )

    def _log(self, session: AgentSession) -> Json:
        """The lessons that the hook drew for the session; {} without a hook."""
        try:
            return as_dict(
                json.loads((self.folder / "sessions" / f"{digest(session.id)}.json").read_text())
            )
        except (OSError, ValueError):
            return {}

    # -- commits

    def _kept(self, session: AgentSession) -> bool | None:
        age = time.time() - (session.last or datetime.now(UTC)).timestamp()
        return commits_kept(session.cwd, session.commits[-5:], age) if session.commits else None

    def settle(self) -> None:
        """Give a reward to earlier sessions whose commits are old enough by now; delete old logs of
        draws."""
        if self.dry_run:
            return
        for file in (self.folder / "sessions").glob("*.json"):
            if file.stat().st_mtime < time.time() - FORGOTTEN:
                file.unlink(missing_ok=True)
        for name, commit in list(self._state["commits"].items()):
            age = time.time() - commit["at"]
            kept = commits_kept(commit["cwd"], commit["ids"], age)
            if kept is None and age < GIVEN_UP:
                continue
            del self._state["commits"][name]
            if kept is None:
                continue
            reward = reward_of(None, None, kept)
            with self.store.write() as s:
                for row in exchanges.of_sessions(s, self.settings.profile, name):
                    fits = row.choice == commit["choice"] and row.reward is None
                    if fits and row.run_id is None:
                        row.reward, row.feedback = reward.reward, reward.feedback
                        exchanges.save(s, [row])
                        self.report.settled += 1


def commits_kept(cwd: str, ids: list[str], age: float) -> bool | None:
    """Whether all commits are still in the branch that is checked out, and not reverted. None where
    that cannot be known, or where they are there but younger than SETTLED. Runs `git` without its
    hooks."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", cwd, "-c", "core.fsmonitor=false", "--no-pager", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                                  timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        return done.stdout if done.returncode == 0 else None

    if not ids or not Path(cwd).is_dir() or git("rev-parse", "HEAD") is None:
        return None
    for commit in ids:
        if git("merge-base", "--is-ancestor", commit, "HEAD") is None:
            return False
        reverted = f"This reverts commit {commit}"
        if git("log", "--fixed-strings", f"--grep={reverted}", "-n1", "--format=%H", "HEAD"):
            return False
    return True if age >= SETTLED else None


# -- reading


def _named(name: str) -> AgentSession:
    """An empty session of this name."""
    agent, _, number = name.partition(":")
    return AgentSession(agent, number)


def _first_record(file: BinaryIO) -> tuple[str, Json | None]:
    """The first whole record of a file, as text and as JSON; None if there is none."""
    file.seek(0)
    for line in iter(lambda: file.readline(MOST_LINE), b""):
        if line.strip():
            return line.decode(errors="replace").strip(), _record(line)
    return "", None


def _record(line: bytes) -> Json | None:
    try:
        record = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _trajectories(file: BinaryIO, size: int) -> list[Json]:
    """The trajectories in a file: one, or one a line."""
    if size > MOST_FILE:
        return []
    file.seek(0)
    data = file.read()
    rows = [_record(data)] if data.lstrip()[:1] == b"{" else []
    if rows == [None]:
        rows = [_record(line) for line in data.splitlines()]
    return [row for row in rows if row is not None and is_trajectory(row)]


def _is_codex(record: Json) -> bool:
    known = ("session_meta", "response_item", "event_msg", "turn_context", "message")
    return "payload" in record or record.get("type") in known or "instructions" in record


def _read(file: BinaryIO, session: AgentSession, first: Json, start: int) -> int:
    """Fill the session from the records after `start`. Returns where the last whole record ends."""
    reader = CodexReader(session) if session.agent == "codex" else ClaudeReader(session)
    if start and session.agent == "codex":
        reader.read(first)  # who and where
        session.skipped.clear()
    end = start
    seen: dict[str, None] = {}
    file.seek(start)
    for line, whole in _lines(file):
        record = _record(line) if line else None
        if record is None and not whole:  # the file is being written
            break
        end += len(line) if line else 0
        end = file.tell() if not line else end
        if not line.strip():
            if not line:
                session.skip("too long")
            continue
        session.counts["records"] += 1
        if record is None:
            session.skip("unreadable")
            continue
        key = record.get("uuid")
        if isinstance(key, str):
            if key in seen:
                session.skip("repeated")
                continue
            seen[key] = None
            if len(seen) > 2**16:
                del seen[next(iter(seen))]
        reader.read(record)
    return end


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file, and whether each has its end. A line of more than MOST_LINE bytes is
    read over, and is empty here."""
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE and not line.endswith(b"\n"):
            while (part := file.readline(MOST_LINE)) and not part.endswith(b"\n"):
                pass
            yield b"", bool(part)
        else:
            yield line, line.endswith(b"\n")
