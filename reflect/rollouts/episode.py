"""One rollout, turn by turn: what the model is asked next, what its environment answers, how it
ends.

A bad rollout is data: where the model, the environment or the verifier breaks, the rollout keeps
the error and has no reward. One that meets a limit says so in `Rollout.finish` ("turns", "tokens",
"time"); it has the reward that its environment has given so far, else 0. What its turns have to
tell is in `Rollout.parts` (see `transcript`).

Not covered: an environment or a tool that never comes back (limits are looked at between turns).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from reflect import prompts
from reflect.errors import ModelError, ModelHalted, UsageError
from reflect.models.base import Completion, Model
from reflect.records import CHEATED, Rollout
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.rollouts.transcript import LESSONS, STEPS, TOOL_ERRORS, TURNS
from reflect.tasksets import isolation
from reflect.tasksets.base import Taskset
from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.task import HUMAN, JUDGE, Message, Score, Task
from reflect.tasksets.tools import schema, shortened
from reflect.types import Finish, Limits, RolloutErrorKind

AUDIT = "audit"  # in `Rollout.parts`: what Taskset.audit says of it
# `Rollout.finish` of an attempt that was not made, for the run had stopped: its place is kept
HALTED = "halted"
MOST_ERRORS = 50  # of tools, that one record keeps
AROUND = 8  # tokens of the chat template around a message
LIMITS = {
    "turns": "it did not end in {} turns",
    "tokens": "the context was full",
    "time": "its time was over",
}


class Advice(Protocol):
    """What the prompt needs of a lesson: a `records.Lesson` is one."""

    when: str
    do: str


class AssistantTurn(NamedTuple):
    """One answer of the assistant: its place in the conversation, the lessons in its prompt, and
    the answer."""

    at: int
    lessons: Sequence[Advice]
    done: Completion


def rollout_seed(seed: int, task_key: str, index: int) -> int:
    """The seed of one rollout, 0 <= seed < 2**63: a hash, so that it depends on nothing else in the
    run."""
    return _hash(f"{seed}/{task_key}/{index}")


def messages_for(
    task: Task, lessons: Sequence[Advice] = (), said: Sequence[Message] | None = None
) -> list[Message]:
    """Exactly what the model will see: the task, with `lessons` and the lessons that the task
    brings itself. `said`: the conversation so far, where that is not just the task."""
    now = lessons.at(task.text) if isinstance(lessons, PerTurnLessons) else lessons
    rows = [{"when": lesson.when, "do": lesson.do} for lesson in now]
    rows += [{"when": when, "do": do} for when, do in task.lessons]
    return prompts.with_lessons(list(task.messages if said is None else said), rows)


def validate_reward(reward: float) -> float:
    """A reward in [0, 1]; anything else (NaN included) is a ValueError, stored as the rollout's
    error."""
    if not 0.0 <= float(reward) <= 1.0:
        raise ValueError(f"the reward {reward} is not between 0 and 1")
    return float(reward)


def opening(taskset: Taskset, task: Task) -> tuple[list[Message], str]:
    """What a rollout of the task begins with, and the words by which lessons for its first turn are
    chosen. UsageError where its environment breaks."""
    try:
        env = taskset.environment(task)
        if env is None:
            return list(task.messages), task.text
        said = _messages(env.reset(task))
        return said, (env.state() or str(said[-1]["content"])) if taskset.stepwise else task.text
    except Exception as e:
        told = f"The environment of the task {task.id} does not begin: {type(e).__name__}: {e}."
        raise UsageError(told, f"Mend it; then: reflect tasks check {taskset.name}") from e


class Episode:
    """A rollout while it runs: `prompt` and `take` in turn until it is `over`; then `row` is
    complete.

    `said` is the conversation without lessons, `turns` what the assistant said in it.
    """

    def __init__(
        self,
        model: Model,
        taskset: Taskset,
        task: Task,
        lessons: Sequence[Advice],
        index: int,
        seed: int,
    ) -> None:
        self.model, self.taskset, self.task, self.lessons = model, taskset, task, lessons
        self.said: list[Message] = list(task.messages)
        self.turns: list[AssistantTurn] = []
        self.over = False
        self.halted: ModelHalted | None = None  # why the model answers nothing more
        self._chosen = lessons
        self.tools: tuple[dict[str, Any], ...] = ()
        self._env: Environment | None = None
        self._state = ""
        self._began = time.monotonic()
        self._reward: float | None = None
        self._steps: list[list[Any]] = []
        self._errors: list[str] = []
        self.row = Rollout(
            run_id=0,
            task_key=task.key,
            index=index,
            messages=self.said,
            seed=rollout_seed(seed, task.key, index),
            model=model.name,
            trust="untrusted" if task.untrusted else "clean",
        )
        try:
            self._env = taskset.environment(task)
            if self._env is not None:
                self.said = _messages(self._env.reset(task))
                self.tools = (
                    () if self._env.lines else tuple(schema(tool) for tool in self._env.tools)
                )
                self._state = str(self._env.state())
        except (
            Exception,
            SystemExit,
        ) as e:  # a user's environment may raise anything; one task must not end a run
            self._broke(e)

    @property
    def several(self) -> bool:
        """May it have more than one turn?"""
        return self._env is not None

    @property
    def seed(self) -> int:
        """Of the turn that comes next: the rollout's own, then hashes of it."""
        return _hash(f"{self.row.seed}/turn {len(self.turns)}") if self.turns else self.row.seed

    def prompt(self) -> list[Message]:
        """The messages of the next turn."""
        if isinstance(self.lessons, PerTurnLessons):
            self._chosen = self.lessons.at(self._state or str(self.said[-1]["content"]))
        return messages_for(self.task, self._chosen, self.said)

    def asked(self, turn: AssistantTurn) -> list[Message]:
        """The prompt of a turn that is past."""
        return messages_for(self.task, turn.lessons, self.said[: turn.at])

    def take(
        self, sent: Sequence[Message], answer: Completion | ModelError, limits: Limits, room: int
    ) -> None:
        """Go on with the answer to the prompt `sent`. `room`: tokens that the next prompt may
        have."""
        row = self.row
        row.messages = list(sent)
        if isinstance(answer, ModelError):
            self.halted = answer if isinstance(answer, ModelHalted) else None
            row.error, row.error_kind = f"model: {answer.message}", RolloutErrorKind.MODEL
            row.finish = HALTED if self.halted else Finish.ERROR
            return self._end()
        row.model = answer.model or row.model
        message: Message = {"role": "assistant", "content": answer.text}
        if answer.calls:
            message["tool_calls"] = [dict(call) for call in answer.calls]
        self.turns.append(AssistantTurn(len(self.said), self._chosen, answer))
        self.said = [*self.said, message]
        row.messages = [*sent, message]
        row.prompt_tokens += answer.prompt_tokens
        row.completion_tokens += answer.completion_tokens
        row.finish = answer.finish
        if self._env is None:
            self._score()
            return self._end()
        try:
            step = self._heed(self._env.step(message))
            stopped = "" if step.done else self._limit(answer, step.messages, limits, room)
            self._state = "" if step.done or stopped else str(self._env.state())
        except (Exception, SystemExit) as e:
            return self._broke(e)
        if step.done:
            self._score(None if self._reward is None else Score(self._reward, step.feedback))
            self._end()
        elif stopped:
            row.finish = stopped
            self._score(Score(self._reward or 0.0, LIMITS[stopped].format(len(self.turns))))
            self._end()

    def _heed(self, step: Any) -> EnvironmentStep:
        """Take in what came back; TypeError, ValueError where it is not what a step gives back."""
        if not isinstance(step, EnvironmentStep):
            raise TypeError(f"step gave back {type(step).__name__}, not a Step")
        if not step.done and not step.messages:
            raise ValueError("it is not done, and says nothing")
        back = _messages(step.messages) if step.messages else []
        self.said, self.row.messages = [*self.said, *back], [*self.row.messages, *back]
        self._reward = self._reward if step.reward is None else step.reward
        if step.feedback:
            self._steps.append([len(self.turns), shortened(step.feedback, 1000)])
        self._errors += step.errors[: max(0, MOST_ERRORS - len(self._errors))]
        if step.untrusted:
            self.row.trust = "untrusted"
        return step

    def _limit(self, answer: Completion, back: Sequence[Message], limits: Limits, room: int) -> str:
        """The limit that it has met, "" while it may go on."""
        most = (
            limits.turns
            if self._env is None or self._env.turns is None
            else min(limits.turns, self._env.turns)
        )
        if len(self.turns) >= most:
            return "turns"
        size = answer.prompt_tokens + answer.completion_tokens
        size += sum(self.model.count_tokens(str(message["content"])) + AROUND for message in back)
        if size > (min(room, limits.tokens) if limits.tokens > 0 else room):
            return "tokens"
        return "time" if 0 < limits.seconds < time.monotonic() - self._began else ""

    def _score(self, given: Score | None = None) -> None:
        """By the environment where it gave a reward, else by the verifier."""
        row, text = self.row, self.turns[-1].done.text
        if given is None and self.task.verifier in (JUDGE, HUMAN):
            return  # scored later: by a model, all of a wave together, or by a person
        try:
            score = isolation.verify(self.taskset, self.task, text) if given is None else given
            row.trust = CHEATED if isolation.flagged(score) else row.trust
            row.reward, row.feedback, row.parts = (
                validate_reward(score.reward),
                score.feedback,
                dict(score.parts),
            )
            hidden = isolation.audit(self.taskset, self.task, text)
            if hidden is not None:
                row.parts = row.parts | {AUDIT: validate_reward(hidden)}
        except Exception as e:  # a user's verifier may raise anything; one task must not end a run
            row.error, row.error_kind = (
                f"verifier: {type(e).__name__}: {e}",
                RolloutErrorKind.VERIFIER,
            )

    def _broke(self, e: BaseException) -> None:
        row = self.row
        row.error, row.error_kind = (
            f"environment: {type(e).__name__}: {e}",
            RolloutErrorKind.ENVIRONMENT,
        )
        row.finish = Finish.ERROR
        self._end()

    def _end(self) -> None:
        self.over = True
        if self._env is None:
            return
        told: dict[str, Any] = {TURNS: len(self.turns)}
        told |= {STEPS: self._steps} if self._steps else {}
        told |= {TOOL_ERRORS: self._errors} if self._errors else {}
        if isinstance(self.lessons, PerTurnLessons):
            told[LESSONS] = [
                [getattr(lesson, "id", None) for lesson in turn.lessons] for turn in self.turns
            ]
        self.row.parts = self.row.parts | told


def _messages(rows: Any) -> list[Message]:
    """What an environment says, copied; ValueError where these are no messages."""
    valid = isinstance(rows, list) and all(
        isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content"))
        for m in rows
    )
    if not rows or not valid:
        raise ValueError(f"{str(rows)[:80]} is no list of messages with role and content")
    return [dict(m) for m in rows]


def _hash(words: str) -> int:
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
