"""Text that no lesson may have: a task's answer, or anything about graders, addresses, keys and
commands.

Suspicious text is stored as `quarantined`: neither shown nor trained on until a person releases it.
A lesson that names one task without its answer is kept for that task only (see `instance`).

Not covered: numbers written as words, paraphrased or encoded answers, one-letter answers (they are
also words), wishes in words that the list below does not have, and a task that is named by a single
word of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reflect.markup import ROLE_TOKEN, skeleton
from reflect.tasksets.code import hardcodes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reflect.tasksets.task import Task

SUSPICIOUS = {
    "a web address": r"https?://|\bwww\.|\b[\w-]+\.(?:com|org|net|io|dev|ai|app|xyz)\b",
    "a grader": r"\b(?:graders?|verifiers?|scorers?|rewards?"
    r"|answer[ _-]?key|gold answers?|hidden tests?)\b",
    "a key": r"\b(?:api[ _-]?keys?|passwords?|passwd|credentials?|secrets?|private key)\b"
    r"|\bsk-\w{8,}|\bAKIA\w{8,}|\bgh[pousr]_\w{8,}|-----BEGIN",
    "a command": r"\b(?:sudo|chmod|rm -r|curl|wget|eval\(|exec\(|os\.system|subprocess)",
    "an order to disobey": r"\b(?:ignore|disregard|forget|override)\b"
    r".{0,40}\b(?:rules?|instructions?|lessons?|prompts?|above)\b",
    "a role token": ROLE_TOKEN.pattern,
}
RUN, NUMBERS = 6, 3  # words, or numbers, of a task in a row that no other task has
PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in SUSPICIOUS.items()}


def words(text: str) -> list[str]:
    """Lower-case words and numbers, in order; punctuation is dropped."""
    return re.findall(r"-?\d+(?:\.\d+)?|[^\W\d_]+", text.lower())


def suspicions(text: str) -> list[str]:
    """The forbidden things that the text names, in whatever letters; empty if it is clean."""
    forms = {text, skeleton(text)[0]}
    return [name for name, pattern in PATTERNS.items() if any(map(pattern.search, forms))]


def leaks(text: str, task: Task) -> str | None:
    """Why `text` gives away the task's answer, or None.

    It does if it holds the whole answer (of which a single word may be in the task itself), three
    or more words of it in a row, or a number of it that the task does not name; or if it names the
    whole task and any of the answer. That of a code task it gives away if it names the input of a
    case and the expected output.
    """
    mine = words(text)
    if task.verifier == "code":
        coded = hardcodes(mine, task.answer, words)
        return "it names what a case of its task gives and expects" if coded else None
    given = words(" ".join(str(m.get("content", "")) for m in task.messages))
    rest = _without(mine, words(task.text))
    for answer in filter(None, _answers(task.answer)):
        if rest is not None and set(answer) & set(rest):
            return "it names this one task and gives its answer"
        if len(answer) == 1:
            one_letter = len(answer[0]) == 1 and answer[0].isalpha()
            if answer[0] in mine and answer[0] not in given and not one_letter:
                return "it holds the answer of the task that taught it"
        elif _holds(mine, answer) and (_numeric(answer) or not _holds(given, answer)):
            return "it holds the answer of the task that taught it"
        parts = [answer[i : i + 3] for i in range(len(answer) - 2)]
        if any(_holds(mine, part) and not _holds(given, part) for part in parts):
            return "it holds a part of the answer of the task that taught it"
        if {w for w in mine if _numeric([w])} & set(answer) - set(given):
            return "it names a number of the answer of the task that taught it"
    return None


def instance(text: str, task: Task, others: Iterable[str]) -> str:
    """How `text` names this one task, "" if it does not: by its id, its whole text, RUN of its
    words in a row or NUMBERS of its numbers. `others` are the texts of other tasks of the taskset:
    what they hold too is the form of its tasks and names none. A single word, such as the verb of
    "the task says zubi", is no name either: many tasks may say it.
    """
    mine = words(text)
    named = re.search(rf"(?<!\w){re.escape(task.id)}(?!\w)", text)
    if named and len(task.id) > 3 and not task.id.isalnum():
        return "its id"
    asked = words(task.text)
    parts = {"its whole text": [asked] if len(asked) > 2 else []}
    parts["a part of its text"] = [asked[i : i + RUN] for i in range(len(asked) - RUN + 1)]
    numbers = [asked[i : i + NUMBERS] for i in range(len(asked) - NUMBERS + 1)]
    parts["its numbers"] = [part for part in numbers if _numeric(part)]
    hits = [(name, part) for name, every in parts.items() for part in every if _holds(mine, part)]
    shared = [words(other) for other in others] if hits else []
    own = (name for name, part in hits if not any(_holds(other, part) for other in shared))
    return next(own, "")


def _answers(answer: object) -> list[list[str]]:
    """The word lists that count as the answer: each item of a list or dict, and all of them in a
    row."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        items = [words(str(item)) for item in answer]
        return [*items, [w for item in items for w in item]]
    return [words(str(answer))]


def _numeric(sequence: list[str]) -> bool:
    return all(w[-1].isdigit() for w in sequence)


def _without(sequence: list[str], part: list[str]) -> list[str] | None:
    """The sequence without `part`; None if it is not in it."""
    n = len(part)
    starts = (i for i in range(len(sequence) - n + 1) if n and sequence[i : i + n] == part)
    return next((sequence[:i] + sequence[i + n :] for i in starts), None)


def _holds(sequence: list[str], part: list[str]) -> bool:
    n = len(part)
    return any(sequence[i : i + n] == part for i in range(len(sequence) - n + 1))
