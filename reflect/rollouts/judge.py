"""A judge: a model grades what no program can, by the task's rubric, in a context of its own.

The bare base grades, greedily, with prompts/judge.jinja: it sees the task, the rubric, the
reference where the task has one, and the answer within a fence whose nonce the answer cannot hold.
Its grade counts only in a line with that nonce:

    why a3f90c41: polite, but it names no date
    reward a3f90c41: 0.5

It fails closed: what cannot be read is an error of that rollout, never a guessed reward.

Not covered: a judge that can be talked into something. Measure yours: `reflect judge FILE`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from reflect import prompts
from reflect.config import Settings
from reflect.errors import ModelError, ModelHalted, ReflectError
from reflect.models import load_model
from reflect.models.base import Completion, Model, Request
from reflect.models.partial import sample_each
from reflect.prompts import sanitize_block
from reflect.records import Rollout
from reflect.rollouts.episode import HALTED
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import JUDGE, Score, Task
from reflect.types import RolloutErrorKind

MAX_TOKENS = 400  # of one grade: a line of reasons, a number, and what a model thinks before
NUMBER = r"0|1|0?\.\d{1,6}|1\.0{1,6}"
Choice = Literal["first", "second", "same"]


class Grade(NamedTuple):
    """What the judge said: a reward in [0, 1], its reasons, and its whole reply."""

    reward: float
    why: str
    raw: str


class Judge:
    """Grades in batches. `model` may be given as a function that loads it when the first grade is
    wanted."""

    def __init__(self, model: Model | Callable[[], Model], name: str = "") -> None:
        self._model = model
        self.name = name  # "" for the model that practises

    @property
    def model(self) -> Model:
        """The model that grades, loaded at the first access."""
        if callable(self._model):
            self._model = self._model()
        return self._model

    def __call__(self, pairs: Sequence[tuple[Task, str]]) -> list[Score | Exception]:
        """A score for each (task, final text), or why there is none, all in one call of the
        model."""
        return [
            found if isinstance(found, Exception) else Score(found.reward, found.why)
            for found in self.grades(pairs)
        ]

    def grades(self, pairs: Sequence[tuple[Task, str]]) -> list[Grade | ReflectError]:
        """The same with the judge's whole replies. The same pair twice is graded once."""
        asked = list(dict.fromkeys((task.key, text) for task, text in pairs))
        tasks = {task.key: task for task, _ in pairs}
        prompted = [_prompt("judge", tasks[key], answer=text) for key, text in asked]
        replies = self._ask([text for text, _ in prompted])
        found = {
            pair: reply if isinstance(reply, ReflectError) else _grade(reply, nonce)
            for pair, reply, (_, nonce) in zip(asked, replies, prompted, strict=True)
        }
        return [found[task.key, text] for task, text in pairs]

    def compare(
        self, rows: Sequence[tuple[Task, str, str]]
    ) -> list[tuple[Choice, Choice] | ReflectError]:
        """Which of two answers is better, asked in both orders: (as given, swapped and turned
        back). A judge that goes by the order answers differently."""
        prompted = []
        for task, a, b in rows:
            prompted += [
                _prompt("compare", task, first=a, second=b),
                _prompt("compare", task, first=b, second=a),
            ]
        replies = self._ask([text for text, _ in prompted])
        said = [
            reply if isinstance(reply, ReflectError) else _choice(reply, nonce)
            for reply, (_, nonce) in zip(replies, prompted, strict=True)
        ]
        turned: dict[Choice, Choice] = {"first": "second", "second": "first", "same": "same"}
        found: list[tuple[Choice, Choice] | ReflectError] = []
        for given, swapped in zip(said[::2], said[1::2], strict=True):
            if isinstance(given, ReflectError) or isinstance(swapped, ReflectError):
                found.append(given if isinstance(given, ReflectError) else swapped)  # type: ignore[arg-type]
            else:
                found.append((given, turned[swapped]))
        return found

    def _ask(self, texts: Sequence[str]) -> list[Completion | ReflectError]:
        words: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "adapter": None}
        requests = [
            Request(messages=[{"role": "user", "content": text}], **words) for text in texts
        ]
        answers = sample_each(self.model, requests)
        return [answer if isinstance(answer, ModelError) else answer[0] for answer in answers]


def judge_of(settings: Settings, model: Model | Callable[[], Model]) -> Judge:
    """The model of the setting `judge`, loaded when it is first asked; else `model`, bare."""
    if settings.judge:
        return Judge(functools.partial(_loaded, settings.judge, settings), settings.judge)
    return Judge(model)


def bind(taskset: Taskset, settings: Settings, model: Model | None = None) -> Taskset:
    """Give the taskset its judge: the model of the setting `judge`, else `model`, else the one that
    practises."""
    taskset.judge = judge_of(settings, model) if settings.judge or model else None  # type: ignore[arg-type]
    return taskset


@functools.cache
def _loaded(name: str, settings: Settings) -> Model:
    return load_model(name, settings)


def grade(model: Model, taskset: Taskset, pairs: Sequence[tuple[Task, Rollout]]) -> None:
    """Have the rollouts of judged tasks graded, in one batch: by the taskset's judge, else by the
    model, bare. Raises ModelHalted where it answers nothing more; then none of them is graded."""
    wanted = [(task, row) for task, row in pairs if task.verifier == JUDGE and row.error is None]
    if not wanted:
        return
    judge: Any = taskset.judge or Judge(model)
    texts = [(task, str(row.messages[-1]["content"])) for task, row in wanted]
    try:
        grades = judge.grades(texts)
    except ModelHalted as e:  # what nobody graded is attempted again when the run goes on
        for _, row in wanted:
            row.error, row.error_kind, row.finish = (
                f"judge: {e.message}",
                RolloutErrorKind.JUDGE,
                HALTED,
            )
        raise
    for (_, row), found in zip(wanted, grades, strict=True):
        if isinstance(found, ReflectError):
            row.error, row.error_kind = f"judge: {found.message}", RolloutErrorKind.JUDGE
        else:
            row.reward, row.feedback = found.reward, found.why
            said = {
                "model": judge.model.name,
                "said": found.raw,
                "prompt": prompts.version("judge"),
            }
            row.parts = row.parts | {JUDGE: said}


def _prompt(template: str, task: Task, **answers: str) -> tuple[str, str]:
    """(prompt, its nonce). No answer holds it, whatever its author tried: there are more nonces
    than room for them."""
    reference = "" if task.answer is None else str(task.answer)
    rubric = prompts.rubric(task.rubric, task.text, reference)
    shown = {name: sanitize_block(text) for name, text in answers.items()}
    nonce = prompts.nonce(task.text, rubric, reference, *shown.values(), digits=8)
    words = {
        "task": sanitize_block(task.text),
        "rubric": rubric,
        "reference": reference,
        "fence": nonce,
    }
    return prompts.render(template, **words, **shown), nonce


def _grade(reply: Completion, nonce: str) -> Grade | ReflectError:
    found = _lines(reply, "reward", nonce)
    if isinstance(found, ReflectError):
        return found
    if not re.fullmatch(NUMBER, found):
        return _unreadable(reply, f"{found!r} is no number from 0 to 1")
    why = re.findall(rf"^\W*why\s+{nonce}\s*:(.*)$", reply.text, re.IGNORECASE | re.MULTILINE)
    return Grade(float(found), prompts.sanitize_line(" ".join(why))[:500], reply.text)


def _choice(reply: Completion, nonce: str) -> Choice | ReflectError:
    found = _lines(reply, "better", nonce)
    if isinstance(found, ReflectError):
        return found
    known: dict[str, Choice] = {"1": "first", "2": "second", "same": "same"}
    return known.get(found.lower()) or _unreadable(reply, f"{found!r} is not 1, 2 or same")


def _lines(reply: Completion, word: str, nonce: str) -> str | ReflectError:
    """What stands behind `word nonce:`, which must be there exactly once, in a reply that was not
    cut off."""
    if reply.finish != "stop":
        return _unreadable(reply, "its reply was cut off")
    found = re.findall(
        rf"^\W*{word}\s+{nonce}\s*:\s*(.*?)[\s*.]*$", reply.text, re.IGNORECASE | re.MULTILINE
    )
    if len(found) != 1:
        return _unreadable(
            reply, f"its reply has {len(found) or 'no'} lines '{word} {nonce}: ...', not one"
        )
    return str(found[0]).strip("*` ")


def _unreadable(reply: Completion, why: str) -> ReflectError:
    said = " ".join(reply.text.split())
    return ModelError(f"{why}: {said[:157] + '...' if len(said) > 160 else said}")
