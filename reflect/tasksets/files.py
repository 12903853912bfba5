"""A taskset from a file: JSONL (one task per line), or JSON and YAML (a list of tasks).

    {"prompt": "How many r are in strawberry?", "verifier": "number", "answer": 3}
    {"id": "capital-fr", "prompt": "The capital of France?", "answer": "Paris", "split": "holdout"}

Fields: `prompt` (text) or `messages` ([{role, content}]); `answer` (text or number; the pattern for
regex); `verifier` (exact when absent); `id` (a hash of the task when absent); `split` (by hash of
the messages when absent, about 70 % practice, so that a question never stands on both sides);
`gold` (a known-good final text, required for regex); `untrusted` (true for a task that carries
outside bytes); `rubric` (by what a judge grades it; `answer` is then a reference and may be
missing). A task with the verifier `code` has `cases` instead of an answer, and more (see
`reflect.tasksets.code`). Other fields are ignored. A task without an id that stands there twice
counts once.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from reflect import prompts
from reflect.errors import BadTaskFile, UnknownName
from reflect.tasksets import code
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import HUMAN, JUDGE, Message, Split, Task
from reflect.tasksets.verifiers import VERIFIERS, extract_answer, last_number
from reflect.types import Json

SUFFIXES = (".jsonl", ".json", ".yaml", ".yml")
FIELDS = (
    "id",
    "prompt",
    "messages",
    "verifier",
    "answer",
    "split",
    "gold",
    "untrusted",
    "rubric",
    *code.FIELDS,
)
ROLES = ("system", "user", "assistant", "tool")
PRACTICE_SHARE = 0.7
LARGEST = 100_000  # values in one task of a YAML file, its aliases written out


class FileRow(NamedTuple):
    """One task as it stands in the file; `where` says file and line."""

    where: str
    fields: Json

    def fail(self, field: str, problem: str, step: str) -> NoReturn:
        raise BadTaskFile(f"{self.where}, field '{field}': {problem}.", step)


class FileTaskset(Taskset):
    """The tasks of one file. All of it is read and checked at once: a bad line stops a run before
    it starts."""

    about = "tasks of a file"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = name_of(path)
        self._tasks: list[Task] = []
        self._gold: dict[str, str] = {}
        for task, gold in _read_tasks(path):
            self._tasks.append(task)
            self._gold[task.id] = gold

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        rows = [task for task in self._tasks if task.split == split]
        random.Random(f"{split} {seed}").shuffle(rows)
        return rows if n is None else rows[:n]

    def gold(self, task: Task) -> str:
        return self._gold[task.id]


def name_of(path: Path) -> str:
    """The path from here, as `load_taskset` takes it again, and the same for my.jsonl, ./my.jsonl
    and its full path."""
    full = path.resolve()
    here = Path.cwd().resolve()
    return (full.relative_to(here) if full.is_relative_to(here) else full).as_posix()


def _read_tasks(path: Path) -> list[tuple[Task, str]]:
    """(task, known-good text) of every row, ids unique, no question on both sides."""
    rows = [(row, messages_of(row)) for row in rows_of(path)]
    if not rows:
        raise BadTaskFile(
            f"{path} holds no task.", 'Give one task per line: {"prompt": "...", "answer": "..."}.'
        )
    splits = _splits([_hash(messages) for row, messages in rows if "split" not in row.fields])
    tasks: dict[str, tuple[Task, str, FileRow]] = {}
    sides: dict[str, tuple[Split, FileRow]] = {}
    for row, messages in rows:
        split = _split(row, splits.get(_hash(messages), "practice"))
        task, gold = task_of(row, messages, split)
        if task.id in tasks:
            if "id" not in row.fields:
                continue
            row.fail(
                "id",
                f"'{task.id}' is already the id of {tasks[task.id][2].where}",
                "Give every task its own id.",
            )
        side, first = sides.setdefault(_hash(messages), (split, row))
        if side != split:
            row.fail(
                "split", f"the same question is {side} in {first.where}", "Put it on one side only."
            )
        tasks[task.id] = (task, gold, row)
    return [(task, gold) for task, gold, _ in tasks.values()]


def task_of(
    row: FileRow, messages: list[Message], split: Split, own: bool = False
) -> tuple[Task, str]:
    """The task and its known-good text. `own`: a verifier of the taskset scores it, and its answer
    may be anything."""
    verifier = "taskset" if own else _verifier(row)
    answer = (
        row.fields.get("answer")
        if own
        else _code(row)
        if verifier == "code"
        else _answer(row, verifier)
    )
    name = row.fields.get("id", _hash([messages, verifier, answer])[:8])
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        row.fail(
            "id", f"{name!r} is no id", "Give a short text or a number, or leave the field out."
        )
    gold = row.fields.get("gold")
    if gold is not None and not isinstance(gold, str):
        row.fail("gold", "it is not a text", "Give one final text that must score 1.")
    if gold is None and verifier == "regex":
        row.fail(
            "gold",
            "a regex task needs a text that its pattern matches",
            'Add one: "gold": "answer: 3 apples".',
        )
    if gold is None:
        gold = (
            "" if verifier == "code" else f"answer: {answer}"
        )  # `reflect tasks check` asks for that of code
    words: Json = {"answer": answer, "split": split, "untrusted": _untrusted(row)}
    rubric = row.fields.get("rubric", "").strip()
    return Task(
        id=str(name).strip(), messages=messages, verifier=verifier, rubric=rubric, **words
    ), gold


def _verifier(row: FileRow) -> str:
    """The verifier of a row: what it names, a judge where it has a rubric, else exact."""
    rubric = row.fields.get("rubric")
    verifier = row.fields.get("verifier", "exact" if rubric is None else JUDGE)
    known = [*VERIFIERS, JUDGE, HUMAN]
    if verifier not in known:
        row.fail(
            "verifier", f"there is no verifier {verifier!r}", f"Use one of {', '.join(known)}."
        )
    if verifier == JUDGE or rubric is not None:
        step = 'Say by what it is graded: "rubric": "Is it polite? Does it name a date?"'
        if not isinstance(rubric, str) or not rubric.strip():
            row.fail("rubric", "there is none" if rubric is None else "it is not a text", step)
        if verifier != JUDGE:
            row.fail(
                "rubric",
                f"nobody reads it: the verifier is {verifier}",
                f"Leave it out, or use {JUDGE}.",
            )
        if problem := prompts.rubric_problem(rubric):
            row.fail(
                "rubric", problem, f"It may name {', '.join(prompts.RUBRIC)}, as in {{{{ task }}}}."
            )
    return str(verifier)


def _untrusted(row: FileRow) -> bool:
    """A misread word here would trust what nobody should: only true and false are taken, in YAML as
    words."""
    value = row.fields.get("untrusted", False)
    words = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in words:
        row.fail(
            "untrusted",
            f"{value!r} is neither true nor false",
            "Write true where the task carries outside text.",
        )
    return words[value]


def _code(row: FileRow) -> Json:
    if "answer" in row.fields:
        row.fail(
            "answer", "a code task has none", "Say in 'cases' what goes in and what must come back."
        )
    try:
        return code.answer_of(row.fields)
    except code.Bad as e:
        row.fail(*e.args)


def _answer(row: FileRow, verifier: str) -> str | int | float:
    answer = row.fields.get("answer")
    if answer is None and verifier in (JUDGE, HUMAN):
        return ""  # a reference is welcome, but nothing rests on it
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        near = next(
            iter(difflib.get_close_matches("answer", set(row.fields) - set(FIELDS), cutoff=0.7)),
            None,
        )
        row.fail(
            "answer",
            "there is none",
            f"Rename '{near}' to 'answer'." if near else "Say what the right answer is.",
        )
    if isinstance(answer, bool):
        return "true" if answer else "false"
    if not isinstance(answer, str | int | float):
        row.fail("answer", "it is not a text or a number", 'Write it as one text, such as "2 1 3".')
    if isinstance(answer, float) and not math.isfinite(answer):
        row.fail("answer", f"{answer} is no number that can be compared", "Give a finite number.")
    if verifier == "number" and last_number(str(answer)) is None:
        row.fail("answer", f"{answer!r} holds no number", "Give a number, or another verifier.")
    if verifier == "regex":
        try:
            re.compile(str(answer))
        except re.error as e:
            row.fail("answer", f"{answer!r} is no regular expression: {e}", "Mend the pattern.")
    elif not extract_answer(str(answer)):
        row.fail("answer", "nothing follows its 'answer:'", "Say what the right answer is.")
    return answer


def messages_of(row: FileRow) -> list[Message]:
    """The conversation of a row, from `prompt` or `messages`. A misspelt field is reported before
    it is missed."""
    known = (
        FIELDS
        if row.fields.get("verifier") == "code"
        else [name for name in FIELDS if name not in code.FIELDS]
    )
    for field in set(row.fields) - set(FIELDS):
        near = next(iter(difflib.get_close_matches(field, known, n=1, cutoff=0.75)), None)
        if near and near not in row.fields:
            row.fail(field, "it is not known", f"Rename it to '{near}'.")
    prompt, messages = row.fields.get("prompt"), row.fields.get("messages")
    if (prompt is None) == (messages is None):
        row.fail(
            "prompt",
            "there is none" if prompt is None else "there is 'messages' too",
            "Give one of the two.",
        )
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            row.fail("prompt", "it is not a text", 'Write "prompt": "your question".')
        return [{"role": "user", "content": prompt}]
    step = 'Write "messages": [{"role": "user", "content": "your question"}].'
    if not isinstance(messages, list) or not messages:
        row.fail("messages", "it is not a list of messages", step)
    for m in messages:
        if (
            not isinstance(m, dict)
            or m.get("role") not in ROLES
            or not isinstance(m.get("content"), str)
        ):
            row.fail("messages", f"{m!r} has no role ({', '.join(ROLES)}) and content", step)
    if messages[-1]["role"] not in ("user", "tool") or not messages[-1]["content"].strip():
        row.fail(
            "messages", "the last one is not the user's", "End with what the model has to answer."
        )
    return [dict(m) for m in messages]


def _split(row: FileRow, default: Split) -> Split:
    match row.fields.get("split", default):
        case "practice":
            return "practice"
        case "holdout":
            return "holdout"
        case other:
            row.fail(
                "split",
                f"there is no split {other!r}",
                "Use practice or holdout, or leave the field out.",
            )


def _splits(hashes: list[str]) -> dict[str, Split]:
    """A side for every question by its hash. Neither side stays empty when there are two questions
    or more."""
    order = sorted(set(hashes))
    line = f"{int(PRACTICE_SHARE * 16**8):08x}"
    cut = sum(h[:8] < line for h in order)
    cut = min(max(cut, 1), max(1, len(order) - 1))
    return {h: "practice" if i < cut else "holdout" for i, h in enumerate(order)}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def rows_of(path: Path) -> Iterator[FileRow]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as e:
        raise UnknownName(
            f"There is no file {path}.", "Check the path, or run: reflect tasks list"
        ) from e
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise BadTaskFile(
            f"{path}, line {line}: it is not UTF-8 text.", "Save the file as UTF-8."
        ) from e
    except OSError as e:
        raise BadTaskFile(
            f"{path} cannot be read: {e.strerror}.", "Give a file that you may read."
        ) from e
    read = {".jsonl": _jsonl, ".json": _json}.get(path.suffix.lower(), _yaml)
    for where, fields in read(path, text):
        if not isinstance(fields, dict):
            raise BadTaskFile(
                f"{where}: it is not a task.",
                'A task looks like {"prompt": "...", "answer": "..."}.',
            )
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise BadTaskFile(
                f"{where}: it holds half a character (\\ud...).", "Write that character whole."
            ) from e
        except RecursionError as e:
            raise BadTaskFile(f"{where}: it is nested too deeply.", "Write it flat.") from e
        yield FileRow(
            where, {str(name): value for name, value in fields.items() if value is not None}
        )


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold U+2028
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as e:
                raise BadTaskFile(
                    f"{where}: this is no JSON: {_told(e)}.", "Write one whole task per line."
                ) from e


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError) as e:
        line = f", line {e.lineno}" if isinstance(e, json.JSONDecodeError) else ""
        step = "Write a list of tasks, or name the file .jsonl."
        raise BadTaskFile(f"{path}{line}: this is no JSON: {_told(e)}.", step) from e
    if not isinstance(tasks, list):
        raise BadTaskFile(f"{path} is not a list of tasks.", "Write [task, task, ...].")
    for number, fields in enumerate(tasks, 1):
        yield f"{path}, task {number}", fields


def _told(e: Exception) -> str:
    return f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)


def _yaml(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Plain texts only (BaseLoader): `answer: no` is the word no, `answer: 010` is 010. But `args`
    and `returns` of a code task's cases are JSON values: 2 is a number there, and "2" a text."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadTaskFile(
            f"{path}{line}: {getattr(e, 'problem', None) or e}.", "Mend the YAML there."
        ) from e
    except RecursionError as e:
        raise BadTaskFile(f"{path}: it is nested too deeply.", "Write it flat.") from e
    if root is None:
        return
    if not isinstance(root, yaml.SequenceNode):
        raise BadTaskFile(
            f"{path} is not a list of tasks.", "Begin each task with '- prompt: ...'."
        )
    sizes: dict[int, float] = {}
    for node in root.value:
        where = f"{path}, line {node.start_mark.line + 1}"
        if _size(node, sizes) > LARGEST:
            raise BadTaskFile(
                f"{where}: its aliases (*name) make it endless.", "Write out what they stand for."
            )
        yield where, _plain(node)


def _size(node: Any, sizes: dict[int, float]) -> float:
    """How many nodes it is with its aliases written out: few lines can be billions, or one that
    holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # while it is being counted: who meets it again is inside it
        parts = node.value if isinstance(node.value, list) else []
        flat = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in flat)
    return sizes[id(node)]


def _plain(node: Any, typed: bool = False) -> Any:
    """The value of a YAML node: texts, lists and tables; where it is `typed`, a bare word of JSON
    is what it is there. The nodes are no deeper than the parser of YAML went."""
    if isinstance(node.value, str):
        if typed and node.style is None:
            with contextlib.suppress(ValueError):
                return json.loads(node.value)
        return node.value
    if node.value and not isinstance(node.value[0], tuple):
        return [_plain(item, typed) for item in node.value]
    if node.id == "sequence":
        return []
    return {
        str(_plain(k)): _plain(v, typed or k.value in ("args", "returns")) for k, v in node.value
    }
