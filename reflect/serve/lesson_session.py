"""Adds lessons to requests and stores the exchanges; rewards come later.

Traffic is an experiment, as practice is: some lessons are withheld (`trial.withhold`) with a stored
probability, so that the rewards of traffic measure the lessons. The requests of one conversation
see the same lessons when the client names it (`reflect: {"conversation": ...}`); otherwise each
request is drawn independently.

An exchange is untrusted unless the server was started with `--trusted`: its text and its reward
come from the client. What is learned from it is quarantined.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.lessons.selection import select_lessons
from reflect.records import Adapter, Exchange, Exposure
from reflect.rollouts.episode import messages_for
from reflect.serve.writer import Writer
from reflect.store import Store, exchanges, nights
from reflect.tasksets.task import Message, Task
from reflect.trials.assignment import Assignment, draw, withhold
from reflect.types import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.models.base import Completion
    from reflect.serve.schema import ChatRequest

MARGIN = 64  # tokens reserved for the chat template and the start of an answer
SEARCHED = 2**16  # last characters of a conversation that lessons are searched for
EXPOSURE_FIELDS = ("lesson_id", "version", "shown", "probability")


@dataclass(frozen=True)
class PreparedRequest:
    """The messages for the model, and what was decided about the lessons in them."""

    name: str
    """The id of the answer."""
    taskset: str
    task: Task
    """The client's own messages."""
    messages: list[Message]
    exposures: list[Exposure]
    draw: Assignment
    adapter: Adapter | None
    """The profile's active adapter when the request came."""
    record: bool

    @property
    def lessons(self) -> str:
        """`3:1,7:2`: the lessons in the prompt with their versions."""
        return ",".join(f"{row.lesson_id}:{row.version}" for row in self.exposures if row.shown)


class LessonSession:
    """Prepares requests and stores their exchanges. `context` is None where the model's is unknown;
    `trusted`: the clients' text is our own."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        count_tokens: Callable[[str], int],
        context: int | None = None,
        taskset: str = "traffic",
        trusted: bool = False,
    ) -> None:
        self.store, self.settings, self.count_tokens = store, settings, count_tokens
        self.context, self.taskset, self.trusted = context, taskset, trusted
        version = f"traffic/{prompts.version('system')}"
        self.measure = hashlib.sha256(version.encode()).hexdigest()[:12]
        self.writer = Writer(store)

    def open(self, request: ChatRequest) -> PreparedRequest:
        """Choose the lessons of a request and read the active adapter, in one transaction.

        A client that brings its own lessons (`lessons: false`) gets the bare model: no lessons are
        added, the profile's adapter is off, and nothing is stored.
        """
        name = f"{request.prefix}{secrets.token_hex(12)}"
        text = json.dumps(request.messages, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        task = Task(
            id=f"asked-{digest[:12]}",
            messages=request.messages,
            verifier="traffic",
            answer="",  # unknown
            untrusted=request.untrusted or not self.trusted,
        )
        taskset, settings = request.taskset or self.taskset, self.settings
        about = task.text
        with self.store.read() as s:
            adapter = nights.active_adapter(s, settings.profile) if request.lessons else None
            chosen = []
            if request.lessons and (budget := self._budget(request)) > 0:
                chosen = select_lessons(
                    s,
                    taskset,
                    task,
                    profile=settings.profile,
                    limit=settings.lesson_limit,
                    budget=budget,
                    count_tokens=self.count_tokens,
                    state=about[-SEARCHED:] if len(about) > SEARCHED else "",
                )
        key = request.conversation or name
        assignment = draw(chosen, settings, 0, key, 0)
        exposures = assignment.applied(withhold(chosen, settings, 0, key, 0))
        shown = [lesson for lesson, row in zip(chosen, exposures, strict=True) if row.shown]
        messages = messages_for(task, shown) if shown else request.messages
        record = request.lessons
        return PreparedRequest(
            name, taskset, task, messages, exposures, assignment, adapter, record
        )

    def _budget(self, request: ChatRequest) -> int:
        """Tokens for lessons: at most `lesson_budget`, and what the conversation leaves free."""
        if self.context is None:
            return self.settings.lesson_budget
        prompt = sum(self.count_tokens(message["content"]) for message in request.messages)
        return min(self.settings.lesson_budget, self.context - prompt - MARGIN)

    def close(
        self,
        prepared: PreparedRequest,
        completions: Sequence[Completion],
        model: str,
        fingerprint: str,
        name: str = "",
    ) -> Future[None]:
        """Store the answers, under `name` where an upstream server has its own id for them.

        The future is done when they are committed: a client that has read an answer to its end can
        reward it. Answers that come while the disk is busy are stored in one transaction.
        """
        if not prepared.record:
            stored: Future[None] = Future()
            stored.set_result(None)
            return stored
        name, adapter = name or prepared.name, prepared.adapter.id if prepared.adapter else None
        exposures = [
            {field: getattr(row, field) for field in EXPOSURE_FIELDS} for row in prepared.exposures
        ]

        def exchange(index: int, completion: Completion) -> Exchange:
            answer: Message = {"role": "assistant", "content": completion.text}
            answer |= {"tool_calls": list(completion.calls)} if completion.calls else {}
            digest = hashlib.sha256(f"{prepared.name}/{index}".encode()).digest()
            return Exchange(
                name=name,
                choice=index,
                profile=self.settings.profile,
                taskset=prepared.taskset,
                asked=prepared.task.messages,
                messages=[*prepared.messages, answer],
                exposures=exposures,
                bundle_shown=prepared.draw.shown,
                bundle_probability=prepared.draw.probability,
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                finish=completion.finish,
                seed=int.from_bytes(digest[:8], "big") >> 1,
                model=model,
                model_fingerprint=fingerprint,
                adapter_id=adapter,
                measure=self.measure,
                trust=Trust.UNTRUSTED if prepared.task.untrusted else Trust.CLEAN,
            )

        return self.writer.submit(
            lambda s: exchanges.save(s, [exchange(*row) for row in enumerate(completions)])
        )

    def reward(self, name: str, reward: float, feedback: str, choice: int | None) -> Future[None]:
        """Store a reward; the future is done when it is committed. Errors as in
        `store.exchanges.reward`."""

        def write(s: Session) -> None:
            exchanges.reward(s, name, reward, feedback, choice)

        return self.writer.submit(write)

    def stop(self) -> None:
        """Store what is queued, and end the thread."""
        self.writer.stop()
