"""A taskset from a file: JSONL (one task per line), JSON and YAML (a list of tasks), CSV and TSV.

    {"prompt": "How many r are in strawberry?", "verifier": "number", "answer": 3}
    {"id": "capital-fr", "prompt": "The capital of France?", "answer": "Paris", "split": "holdout"}

Fields: `prompt` (text) or `messages` ([{role, content}]); `answer` (text or number; the pattern for
regex); `verifier` (exact when absent); `id` (a hash of the task when absent); `split` (by hash of
the messages when absent, about 70 % practice, so that a question is never in both splits);
`gold` (a known-good final text, required for regex); `untrusted` (true for a task that carries
outside bytes); `hint` (what a reflection may know of a right answer, such as its form: feedback on
failed attempts); `rubric` (the criteria of a judge; `answer` is then a reference and may be
missing). A task with the verifier `code` has `cases` instead of an answer, and more (see
`reflect.tasksets.code`). Other fields are ignored. A repeated task without an id counts once.
Rows of other formats are read as `reflect.tasksets.formats` says.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import random
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import BadTaskFile
from reflect.tasksets import code
from reflect.tasksets.base import Taskset
from reflect.tasksets.formats import converted, line_that_converts
from reflect.tasksets.numbers import only_number
from reflect.tasksets.rows import FileRow, rows_of
from reflect.tasksets.task import HUMAN, JUDGE, Message, Split, Task
from reflect.tasksets.verifiers import VERIFIERS, extract_answer, final_answer, normal

if TYPE_CHECKING:
    from reflect.types import Json

OWN_FIELDS = ("id", "prompt", "messages", "verifier", "answer", "split", "gold", "untrusted")
FIELDS = (*OWN_FIELDS, "hint", "rubric", *code.FIELDS)
TRUTH = {True: True, False: False, "true": True, "false": False}  # YAML gives texts
ROLES = ("system", "user", "assistant", "tool")
PRACTICE_SHARE = 0.7


class FileTaskset(Taskset):
    """The tasks of one file. The whole file is checked first: a bad line stops a run before it
    starts."""

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
        """See `Taskset.tasks`."""
        rows = [task for task in self._tasks if task.split == split]
        random.Random(f"{split} {seed}").shuffle(rows)
        return rows if n is None else rows[:n]

    def gold(self, task: Task) -> str:
        """See `Taskset.gold`."""
        return self._gold[task.id]


def name_of(path: Path) -> str:
    """The path relative to the current folder: the same for my.jsonl, ./my.jsonl and its full
    path."""
    full, here = path.resolve(), Path.cwd().resolve()
    return (full.relative_to(here) if full.is_relative_to(here) else full).as_posix()


def _read_tasks(path: Path) -> list[tuple[Task, str]]:
    """(task, known-good text) of every row. Ids are unique, no question is in both splits."""
    rows = [(row, messages_of(row)) for row in map(converted, rows_of(path))]
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
            problem = f"'{task.id}' is already the id of {tasks[task.id][2].where}"
            row.fail("id", problem, "Give every task its own id.")
        side, first = sides.setdefault(_hash(messages), (split, row))
        if side != split:
            problem = f"the same question is {side} in {first.where}"
            row.fail("split", problem, "Put it on one side only.")
        tasks[task.id] = (task, gold, row)
    return [(task, gold) for task, gold, _ in tasks.values()]


def task_of(
    row: FileRow, messages: list[Message], split: Split, own: bool = False
) -> tuple[Task, str]:
    """The task and its known-good text. `own`: the taskset's own verifier scores it, so the answer
    may have any type."""
    verifier = "taskset" if own else _verifier(row)
    if own:
        answer = row.fields.get("answer")
    else:
        answer = _code(row) if verifier == "code" else _answer(row, verifier)
    name = row.fields.get("id", _hash([messages, verifier, answer])[:8])
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        step = "Give a short text or a number, or leave the field out."
        row.fail("id", f"{name!r} is not an id", step)
    gold = row.fields.get("gold")
    if gold is not None and not isinstance(gold, str):
        row.fail("gold", "it is not a text", "Give one final text that must score 1.")
    hint = row.fields.get("hint", "")
    if not isinstance(hint, str):
        row.fail("hint", "it is not a text", 'Say what a right answer is like: "one word".')
    if gold is None and verifier == "regex":
        problem = "a regex task needs a text that its pattern matches"
        row.fail("gold", problem, 'Add one: "gold": "answer: 3 apples".')
    if gold is None:  # `reflect tasks check` asks for the gold of a code task
        gold = "" if verifier == "code" else f"answer: {answer}"
    task = Task(
        id=str(name).strip(),
        messages=messages,
        verifier=verifier,
        answer=answer,
        split=split,
        untrusted=_untrusted(row),
        rubric=row.fields.get("rubric", "").strip(),
        hint=hint.strip(),
    )
    return task, gold


def _verifier(row: FileRow) -> str:
    """The verifier of a row: the named one, else `judge` with a rubric, else `exact`."""
    rubric = row.fields.get("rubric")
    verifier = row.fields.get("verifier", "exact" if rubric is None else JUDGE)
    known = [*VERIFIERS, JUDGE, HUMAN]
    if verifier not in known:
        problem = f"there is no verifier {verifier!r}"
        row.fail("verifier", problem, f"Use one of {', '.join(known)}.")
    if verifier == JUDGE or rubric is not None:
        step = 'Say by what it is graded: "rubric": "Is it polite? Does it name a date?"'
        if not isinstance(rubric, str) or not rubric.strip():
            row.fail("rubric", "there is none" if rubric is None else "it is not a text", step)
        if verifier != JUDGE:
            problem = f"it is not used: the verifier is {verifier}"
            row.fail("rubric", problem, f"Leave it out, or use {JUDGE}.")
        if problem := prompts.rubric_problem(rubric):
            step = f"It may name {', '.join(prompts.RUBRIC)}, as in {{{{ task }}}}."
            row.fail("rubric", problem, step)
    return str(verifier)


def _untrusted(row: FileRow) -> bool:
    """Only true and false are valid, so that a misspelt value is never read as trusted."""
    value = row.fields.get("untrusted", False)
    if not isinstance(value, bool | str) or value not in TRUTH:
        problem = f"{value!r} is neither true nor false"
        row.fail("untrusted", problem, "Write true where the task carries outside text.")
    return TRUTH[value]


def _code(row: FileRow) -> Json:
    if "answer" in row.fields:
        step = "Say in 'cases' what goes in and what must come back."
        row.fail("answer", "a code task has none", step)
    try:
        return code.answer_of(row.fields)
    except code.Bad as e:
        row.fail(*e.args)


def _answer(row: FileRow, verifier: str) -> str | int | float:
    answer = row.fields.get("answer")
    if answer is None and verifier in (JUDGE, HUMAN):
        return ""  # the reference is optional
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        near = difflib.get_close_matches("answer", set(row.fields) - set(FIELDS), cutoff=0.7)
        others = set(row.fields) - {"id", "split", "prompt", "messages", "verifier", "answer"}
        step = line_that_converts(row) if others else "Give the right answer."
        step = f"Rename '{near[0]}' to 'answer'." if near else step
        row.fail("answer", "there is none", step)
    if isinstance(answer, bool):
        return "true" if answer else "false"
    if not isinstance(answer, str | int | float):
        row.fail("answer", "it is not a text or a number", 'Write it as one text, such as "2 1 3".')
    if isinstance(answer, float) and not math.isfinite(answer):
        row.fail("answer", f"{answer} is no number that can be compared", "Give a finite number.")
    if verifier == "number" and only_number(final_answer(str(answer))) is None:
        problem = f"{reprlib.repr(answer)} is not one number"
        row.fail("answer", problem, "Give the number alone, or use another verifier.")
    if verifier == "regex":
        try:
            re.compile(str(answer))
        except re.error as e:
            row.fail("answer", f"{answer!r} is no regular expression: {e}", "Correct the pattern.")
    elif not normal(extract_answer(str(answer))):
        step = "Give the right answer."
        row.fail("answer", "nothing is left of it (it ends after 'answer:', or is invisible)", step)
    return answer


def messages_of(row: FileRow) -> list[Message]:
    """The conversation of a row, from `prompt` or `messages`. A misspelt field is reported before a
    missing one."""
    other = () if row.fields.get("verifier") == "code" else code.FIELDS
    known = [name for name in FIELDS if name not in other]
    for field in set(row.fields) - set(FIELDS):
        near = _near(field, tuple(known))
        if near and near not in row.fields:
            row.fail(field, "it is not known", f"Rename it to '{near}'.")
    prompt, messages = row.fields.get("prompt"), row.fields.get("messages")
    if (prompt is None) == (messages is None):
        if prompt is None:
            row.fail("prompt", "there is none", line_that_converts(row))
        row.fail("prompt", "there is 'messages' too", "Give one of the two.")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            row.fail("prompt", "it is not a text", 'Write "prompt": "your question".')
        return [{"role": "user", "content": prompt}]
    step = 'Write "messages": [{"role": "user", "content": "your question"}].'
    if not isinstance(messages, list) or not messages:
        row.fail("messages", "it is not a list of messages", step)
    for m in messages:
        valid = isinstance(m, dict) and m.get("role") in ROLES
        if not valid or not isinstance(m.get("content"), str):
            row.fail("messages", f"{m!r} has no role ({', '.join(ROLES)}) and content", step)
    if messages[-1]["role"] not in ("user", "tool") or not messages[-1]["content"].strip():
        step = "End with what the model has to answer."
        row.fail("messages", "the last one is not the user's", step)
    return [dict(m) for m in messages]


@functools.lru_cache(1024)  # the rows of a file have the same fields
def _near(field: str, known: tuple[str, ...]) -> str:
    return next(iter(difflib.get_close_matches(field, known, n=1, cutoff=0.75)), "")


def _split(row: FileRow, default: Split) -> Split:
    split = row.fields.get("split", default)
    if split == "practice":
        return "practice"
    if split == "holdout":
        return "holdout"
    step = "Use practice or holdout, or leave the field out."
    row.fail("split", f"there is no split {split!r}", step)


def _splits(hashes: list[str]) -> dict[str, Split]:
    """The split of every question by its hash. With two questions or more neither is empty."""
    order = sorted(set(hashes))
    bound = f"{int(PRACTICE_SHARE * 16**8):08x}"
    cut = sum(h[:8] < bound for h in order)
    cut = min(max(cut, 1), max(1, len(order) - 1))
    return {h: "practice" if i < cut else "holdout" for i, h in enumerate(order)}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
