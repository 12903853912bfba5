"""A judge: a model that grades answers by the task's rubric, if no program can.

The base model without adapter grades, greedily, with prompts/judge.jinja. Its prompt has the task,
the rubric, the reference answer if there is one, and the answer in a fence whose nonce the answer
cannot contain; each further line of them is quoted. A grade counts only in a line with that nonce:

    why a3f90c41: polite, but it names no date
    reward a3f90c41: 0.5

It fails closed: an unreadable grade is an error of that rollout, never a guessed reward.

Not covered: an answer that persuades the judge. Measure your judge: `reflect judge FILE`.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from reflect import prompts
from reflect.errors import ModelError, ModelHalted, ReflectError
from reflect.models import load_model
from reflect.models.base import Completion, Model, Request
from reflect.models.partial import sample_each
from reflect.prompts import quote
from reflect.rollouts.episode import HALTED
from reflect.tasksets.task import JUDGE, Score, Task
from reflect.types import RolloutErrorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.config import Settings
    from reflect.records import Rollout
    from reflect.tasksets.base import Taskset

MAX_TOKENS = 400  # of one grade: a line of reasons, a number, and what a model thinks before
NUMBER = r"0|1|0?\.\d{1,6}|1\.0{1,6}"
Choice = Literal["first", "second", "same"]


class Grade(NamedTuple):
    """One grade of the judge."""

    reward: float
    """In [0, 1]."""
    why: str
    raw: str
    """The judge's whole reply."""


class Judge:
    """Grades in batches. `model` may be a function that loads the model for the first grade."""

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
        """A score, or the error, for each (task, final text), in one call of the model."""
        return [
            grade if isinstance(grade, Exception) else Score(grade.reward, grade.why)
            for grade in self.grades(pairs)
        ]

    def grades(self, pairs: Sequence[tuple[Task, str]]) -> list[Grade | ReflectError]:
        """A grade, or the error, for each (task, final text). Equal pairs are graded once."""
        asked = list(dict.fromkeys((task.key, text) for task, text in pairs))
        tasks = {task.key: task for task, _ in pairs}
        prompted = [_prompt("judge", tasks[key], answer=text) for key, text in asked]
        replies = self._ask([text for text, _ in prompted])
        grades = {
            pair: reply if isinstance(reply, ReflectError) else _grade(reply, nonce)
            for pair, reply, (_, nonce) in zip(asked, replies, prompted, strict=True)
        }
        return [grades[task.key, text] for task, text in pairs]

    def compare(
        self, rows: Sequence[tuple[Task, str, str]]
    ) -> list[tuple[Choice, Choice] | ReflectError]:
        """For each (task, a, b): the better answer, judged in both orders, as (order a b, order
        b a), or the error. "first" is always a. The two differ if the order decides."""
        prompted = []
        for task, a, b in rows:
            prompted += [
                _prompt("compare", task, first=a, second=b),
                _prompt("compare", task, first=b, second=a),
            ]
        replies = self._ask([text for text, _ in prompted])
        choices = [
            reply if isinstance(reply, ReflectError) else _choice(reply, nonce)
            for reply, (_, nonce) in zip(replies, prompted, strict=True)
        ]
        swap: dict[Choice, Choice] = {"first": "second", "second": "first", "same": "same"}
        results: list[tuple[Choice, Choice] | ReflectError] = []
        for given, swapped in zip(choices[::2], choices[1::2], strict=True):
            if isinstance(given, ReflectError) or isinstance(swapped, ReflectError):
                results.append(given if isinstance(given, ReflectError) else swapped)  # type: ignore[arg-type]
            else:
                results.append((given, swap[swapped]))
        return results

    def _ask(self, texts: Sequence[str]) -> list[Completion | ReflectError]:
        requests = [
            Request(
                [{"role": "user", "content": text}],
                max_tokens=MAX_TOKENS,
                temperature=0.0,
                adapter=None,
            )
            for text in texts
        ]
        answers = sample_each(self.model, requests)
        return [answer if isinstance(answer, ModelError) else answer[0] for answer in answers]


def judge_of(settings: Settings, model: Model | Callable[[], Model]) -> Judge:
    """The model of the setting `judge`, loaded when it is first asked; else `model`, bare."""
    if settings.judge:
        return Judge(functools.partial(_loaded, settings.judge, settings), settings.judge)
    return Judge(model)


def bind(taskset: Taskset, settings: Settings, model: Model | Callable[[], Model]) -> Taskset:
    """Set the taskset's judge: the model of the setting `judge`, else `model`."""
    taskset.judge = judge_of(settings, model)
    return taskset


@functools.cache
def _loaded(name: str, settings: Settings) -> Model:
    return load_model(name, settings)


def grade(model: Model, taskset: Taskset, pairs: Sequence[tuple[Task, Rollout]]) -> None:
    """Grade the rollouts of judged tasks in one batch: by the taskset's judge, else by the model
    without adapter. Raises ModelHalted if it stops answering; then none of them is graded."""
    wanted = [(task, row) for task, row in pairs if task.verifier == JUDGE and row.error is None]
    if not wanted:
        return
    judge: Any = taskset.judge or Judge(model)
    texts = [(task, str(row.messages[-1]["content"])) for task, row in wanted]
    try:
        grades = judge.grades(texts)
    except ModelHalted as e:  # a continued run makes ungraded rollouts again
        for _, row in wanted:
            row.error, row.error_kind = f"judge: {e.message}", RolloutErrorKind.JUDGE
            row.finish = HALTED
        raise
    version = prompts.version("judge")
    for (_, row), one in zip(wanted, grades, strict=True):
        if isinstance(one, ReflectError):
            row.error, row.error_kind = f"judge: {one.message}", RolloutErrorKind.JUDGE
        else:
            row.reward, row.feedback = one.reward, one.why
            part = {"model": judge.model.name, "said": one.raw, "prompt": version}
            row.parts = row.parts | {JUDGE: part}


def _prompt(template: str, task: Task, **answers: str) -> tuple[str, str]:
    """(prompt, its nonce), which occurs in no other text of the prompt."""
    reference = "" if task.answer is None else str(task.answer)
    rubric = prompts.rubric(task.rubric, task.text, reference)
    shown = {name: quote(text, own_line=True) for name, text in answers.items()}
    nonce = prompts.nonce(task.text, rubric, reference, *shown.values(), digits=8)
    values = {"task": task.text, "rubric": rubric, "reference": reference}
    quoted = {name: quote(text) for name, text in values.items()}
    return prompts.render(template, **quoted, **shown, fence=nonce), nonce


def _grade(reply: Completion, nonce: str) -> Grade | ReflectError:
    number = _value(reply, "reward", nonce)
    if isinstance(number, ReflectError):
        return number
    if not re.fullmatch(NUMBER, number):
        return _unreadable(reply, f"{number!r} is no number from 0 to 1")
    why = re.findall(rf"^\W*why\s+{nonce}\s*:(.*)$", reply.text, re.IGNORECASE | re.MULTILINE)
    return Grade(float(number), prompts.sanitize_line(" ".join(why))[:500], reply.text)


def _choice(reply: Completion, nonce: str) -> Choice | ReflectError:
    value = _value(reply, "better", nonce)
    if isinstance(value, ReflectError):
        return value
    choices: dict[str, Choice] = {"1": "first", "2": "second", "same": "same"}
    return choices.get(value.lower()) or _unreadable(reply, f"{value!r} is not 1, 2 or same")


def _value(reply: Completion, word: str, nonce: str) -> str | ReflectError:
    """The text after `word nonce:`, which must occur exactly once, in a reply that is complete."""
    if reply.finish != "stop":
        return _unreadable(reply, "its reply was cut off")
    values = re.findall(
        rf"^\W*{word}\s+{nonce}\s*:\s*(.*?)[\s*.]*$", reply.text, re.IGNORECASE | re.MULTILINE
    )
    if len(values) != 1:
        return _unreadable(
            reply, f"its reply has {len(values) or 'no'} lines '{word} {nonce}: ...', not one"
        )
    return str(values[0]).strip("*` ")


def _unreadable(reply: Completion, why: str) -> ReflectError:
    text = " ".join(reply.text.split())
    return ModelError(f"{why}: {text[:157] + '...' if len(text) > 160 else text}")
