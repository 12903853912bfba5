"""One rollout, turn by turn: the next prompt, the environment's answer, the end.

A failed rollout is data: if the model, the environment or the verifier fails, the rollout keeps the
error and has no reward. If it meets a limit, `Rollout.finish` names the limit ("turns", "tokens",
"time") and the reward is the last one of its environment, else 0. `Rollout.parts` has the details
of its turns (see `transcript`).

Not covered: an environment or a tool that never returns (limits are checked between turns).
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from reflect import prompts
from reflect.errors import ModelError, ModelHalted, UsageError
from reflect.records import CHEATED, Rollout
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.rollouts.transcript import LESSONS, STEPS, TOOL_ERRORS, TURNS
from reflect.tasksets import isolation
from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.task import HUMAN, JUDGE, Message, Score, Task
from reflect.tasksets.tools import schema, shortened
from reflect.types import Finish, Limits, RolloutErrorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.base import Completion, Model
    from reflect.tasksets.base import Taskset

AUDIT = "audit"  # in `Rollout.parts`: the reward of `Taskset.audit`
HALTED = Finish.HALTED  # of a rollout that was not made because the run had stopped
MOST_ERRORS = 50  # tool errors kept in one record
AROUND = 8  # tokens of the chat template around a message
LIMITS = {
    "turns": "it did not end in {} turns",
    "tokens": "the context was full",
    "time": "its time limit was reached",
}


class Advice(Protocol):
    """The fields of a lesson that the prompt needs; `records.Lesson` has them."""

    when: str
    do: str


class AssistantTurn(NamedTuple):
    """One answer of the assistant."""

    at: int
    """The index of its message in `Episode.conversation`."""
    lessons: Sequence[Advice]
    """The lessons in its prompt."""
    completion: Completion


def rollout_seed(seed: int, task_key: str, index: int) -> int:
    """The seed of one rollout, 0 <= seed < 2**63: a hash of the arguments."""
    return _hash(f"{seed}/{task_key}/{index}")


def messages_for(
    task: Task, lessons: Sequence[Advice] = (), conversation: Sequence[Message] | None = None
) -> list[Message]:
    """The prompt of the model: the conversation so far (by default the task) with `lessons` and the
    task's own lessons in the system message."""
    now = lessons.at(task.text) if isinstance(lessons, PerTurnLessons) else lessons
    rows = [{"when": lesson.when, "do": lesson.do} for lesson in now]
    rows += [{"when": when, "do": do} for when, do in task.lessons]
    return prompts.with_lessons(list(task.messages if conversation is None else conversation), rows)


def validate_reward(reward: float) -> float:
    """The reward as a float. ValueError if it is not in [0, 1] (NaN included)."""
    if not 0.0 <= float(reward) <= 1.0:
        raise ValueError(f"the reward {reward} is not between 0 and 1")
    return float(reward)


def opening(taskset: Taskset, task: Task) -> tuple[list[Message], str]:
    """The first messages of a rollout of the task, and the text that selects the lessons of its
    first turn. UsageError if its environment fails."""
    try:
        env = taskset.environment(task)
        if env is None:
            return list(task.messages), task.text
        messages = _messages(env.reset(task))
        if not taskset.stepwise:
            return messages, task.text
        return messages, env.state() or str(messages[-1]["content"])
    except Exception as e:
        text = f"The environment of the task {task.id} does not begin: {type(e).__name__}: {e}."
        raise UsageError(text, f"Fix it; then: reflect tasks check {taskset.name}") from e


class Episode:
    """A rollout while it runs: call `prompt` and `take` in turn until it is `over`; then `row` is
    complete.

    `conversation` has the messages so far, without lessons; `turns` the assistant's answers in it.
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
        self.conversation: list[Message] = list(task.messages)
        self.turns: list[AssistantTurn] = []
        self.over = False
        self.halted: ModelHalted | None = None  # why the model stopped answering
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
            messages=self.conversation,
            seed=rollout_seed(seed, task.key, index),
            model=model.name,
            trust="untrusted" if task.untrusted else "clean",
        )
        try:
            self._env = taskset.environment(task)
            if self._env is not None:
                self.conversation = _messages(self._env.reset(task))
                self.tools = () if self._env.lines else tuple(map(schema, self._env.tools))
                self._state = str(self._env.state())
        # A user's environment may raise anything; one task must not end a run.
        except (Exception, SystemExit) as e:
            self._fail(e)

    @property
    def multi_turn(self) -> bool:
        """Whether it has an environment, and so possibly more than one turn."""
        return self._env is not None

    @property
    def seed(self) -> int:
        """The seed of the next turn: first the rollout's own, then hashes of it."""
        return _hash(f"{self.row.seed}/turn {len(self.turns)}") if self.turns else self.row.seed

    def prompt(self) -> list[Message]:
        """The messages of the next turn."""
        if isinstance(self.lessons, PerTurnLessons):
            self._chosen = self.lessons.at(self._state or str(self.conversation[-1]["content"]))
        return messages_for(self.task, self._chosen, self.conversation)

    def prompt_of(self, turn: AssistantTurn) -> list[Message]:
        """The prompt that an earlier turn answered."""
        return messages_for(self.task, turn.lessons, self.conversation[: turn.at])

    def take(
        self, sent: Sequence[Message], answer: Completion | ModelError, limits: Limits, room: int
    ) -> None:
        """Continue with the answer to the prompt `sent`. `room`: most tokens of the next prompt."""
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
        self.turns.append(AssistantTurn(len(self.conversation), self._chosen, answer))
        self.conversation = [*self.conversation, message]
        row.messages = [*sent, message]
        row.prompt_tokens += answer.prompt_tokens
        row.completion_tokens += answer.completion_tokens
        row.finish = answer.finish
        if self._env is None:
            self._score()
            return self._end()
        try:
            step = self._take_step(self._env.step(message))
            stopped = "" if step.done else self._limit(answer, step.messages, limits, room)
            self._state = "" if step.done or stopped else str(self._env.state())
        except (Exception, SystemExit) as e:
            return self._fail(e)
        if step.done:
            self._score(None if self._reward is None else Score(self._reward, step.feedback))
            self._end()
        elif stopped:
            row.finish = stopped
            self._score(Score(self._reward or 0.0, LIMITS[stopped].format(len(self.turns))))
            self._end()

    def _take_step(self, step: Any) -> EnvironmentStep:
        """Add the environment's messages; TypeError, ValueError if this is no valid step."""
        if not isinstance(step, EnvironmentStep):
            raise TypeError(f"step returned {type(step).__name__}, not an EnvironmentStep")
        if not step.done and not step.messages:
            raise ValueError("the step is not done and has no messages")
        back = _messages(step.messages) if step.messages else []
        self.conversation = [*self.conversation, *back]
        self.row.messages = [*self.row.messages, *back]
        self._reward = self._reward if step.reward is None else step.reward
        if step.feedback:
            self._steps.append([len(self.turns), shortened(step.feedback, 1000)])
        self._errors += step.errors[: max(0, MOST_ERRORS - len(self._errors))]
        if step.untrusted:
            self.row.trust = "untrusted"
        return step

    def _limit(self, answer: Completion, back: Sequence[Message], limits: Limits, room: int) -> str:
        """The limit that it has met, "" if it may continue."""
        own = self._env.turns if self._env else None
        most = limits.turns if own is None else min(limits.turns, own)
        if len(self.turns) >= most:
            return "turns"
        size = answer.prompt_tokens + answer.completion_tokens
        size += sum(self.model.count_tokens(str(message["content"])) + AROUND for message in back)
        if size > (min(room, limits.tokens) if limits.tokens > 0 else room):
            return "tokens"
        return "time" if 0 < limits.seconds < time.monotonic() - self._began else ""

    def _score(self, given: Score | None = None) -> None:
        """Score it: by the environment if it gave a reward, else by the verifier."""
        row, text = self.row, self.turns[-1].completion.text
        if given is None and self.task.verifier in (JUDGE, HUMAN):
            return  # scored later: by a model, all of a wave together, or by a person
        try:
            score = isolation.verify(self.taskset, self.task, text) if given is None else given
            row.trust = CHEATED if isolation.flagged(score) else row.trust
            row.reward = validate_reward(score.reward)
            row.feedback, row.parts = score.feedback, dict(score.parts)
            hidden = isolation.audit(self.taskset, self.task, text)
            if hidden is not None:
                row.parts = row.parts | {AUDIT: validate_reward(hidden)}
        except Exception as e:  # a user's verifier may raise anything; one task must not end a run
            row.error = f"verifier: {type(e).__name__}: {e}"
            row.error_kind = RolloutErrorKind.VERIFIER

    def _fail(self, e: BaseException) -> None:
        row, kind = self.row, RolloutErrorKind.ENVIRONMENT
        row.error, row.error_kind = f"environment: {type(e).__name__}: {e}", kind
        row.finish = Finish.ERROR
        self._end()

    def _end(self) -> None:
        self.over = True
        if self._env is None:
            return
        parts: dict[str, Any] = {TURNS: len(self.turns)}
        parts |= {STEPS: self._steps} if self._steps else {}
        parts |= {TOOL_ERRORS: self._errors} if self._errors else {}
        if isinstance(self.lessons, PerTurnLessons):
            parts[LESSONS] = [[getattr(x, "id", None) for x in turn.lessons] for turn in self.turns]
        self.row.parts = self.row.parts | parts


def _messages(rows: Any) -> list[Message]:
    """A copy of an environment's messages; ValueError if these are no messages."""
    valid = isinstance(rows, list) and all(
        isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content"))
        for m in rows
    )
    if not rows or not valid:
        raise ValueError(f"{str(rows)[:80]} is not a list of messages with role and content")
    return [dict(m) for m in rows]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
