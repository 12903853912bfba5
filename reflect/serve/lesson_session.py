"""What stands between a client and the model: lessons go in, the exchange is written down, rewards
come later.

Production is an experiment as practice is: lessons are withheld here and there (`trial.withhold`),
with the chance noted, so that the rewards of traffic measure them. The requests of one conversation
see the same lessons where the client names it (`reflect: {"conversation": ...}`); else each request
is drawn on its own.

An exchange is untrusted unless the server was told otherwise: its words are the client's, who may
be anybody, and so is the reward. What is learned from it waits in quarantine.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from reflect import prompts
from reflect.config import Settings
from reflect.lessons.selection import select_lessons
from reflect.models.base import Completion
from reflect.records import Adapter, Exchange, Exposure
from reflect.rollouts.runner import messages_for
from reflect.serve.schema import ChatRequest
from reflect.store import Store, exchanges, nights
from reflect.tasksets.task import Message, Task
from reflect.trials.bundle import Assignment, draw
from reflect.trials.lesson_trial import withhold

MARGIN = 64  # tokens kept free for the chat template and the beginning of an answer


@dataclass(frozen=True)
class PreparedRequest:
    """What the model sees of one request, and what was decided about its lessons. `task` has the
    client's own words."""

    name: str  # of the chat completion
    taskset: str
    task: Task
    messages: list[Message]
    exposures: list[Exposure]
    draw: Assignment
    adapter: Adapter | None  # the profile's, at this moment
    record: bool

    @property
    def lessons(self) -> str:
        """`3:1,7:2`: the lessons in the prompt with their versions."""
        return ",".join(f"{one.lesson_id}:{one.version}" for one in self.exposures if one.shown)


class LessonSession:
    """`context` is None where the model's is not known. `trusted`: are the clients' words our
    own?"""

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
        self.measure = hashlib.sha256(f"traffic/{prompts.version('system')}".encode()).hexdigest()[
            :12
        ]
        self._queue: SimpleQueue[tuple[list[Exchange], Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="desk", daemon=True)
        self._thread.start()

    def open(self, ask: ChatRequest) -> PreparedRequest:
        """Choose the lessons of a request and read which adapter is active: one moment of the
        database for both.

        A client that brings its own lessons (`lessons: false`) is answered as it stands: none are
        added, the profile's adapter is off, and nothing is written down.
        """
        name = f"chatcmpl-{secrets.token_hex(12)}"
        words = json.dumps(ask.messages, sort_keys=True, ensure_ascii=False)
        task = Task(
            id=f"asked-{hashlib.sha256(words.encode()).hexdigest()[:12]}",
            messages=ask.messages,
            verifier="traffic",
            answer="",  # nobody knows it
            untrusted=ask.untrusted or not self.trusted,
        )
        taskset, settings = ask.taskset or self.taskset, self.settings
        with self.store.read() as s:
            adapter = nights.active_adapter(s, settings.profile) if ask.lessons else None
            chosen = []
            if ask.lessons and (budget := self._budget(ask)) > 0:
                options: dict[str, Any] = {
                    "profile": settings.profile,
                    "limit": settings.lesson_limit,
                }
                chosen = select_lessons(
                    s, taskset, task, budget=budget, count_tokens=self.count_tokens, **options
                )
        key = ask.conversation or name
        drawn = draw(chosen, settings, 0, key, 0)
        exposures = drawn.applied(withhold(chosen, settings, 0, key, 0))
        shown = [lesson for lesson, one in zip(chosen, exposures, strict=True) if one.shown]
        messages = messages_for(task, shown) if shown else ask.messages
        return PreparedRequest(
            name, taskset, task, messages, exposures, drawn, adapter, ask.lessons
        )

    def _budget(self, ask: ChatRequest) -> int:
        """Tokens for lessons. Where the conversation leaves little room, the lessons of less worth
        go before it."""
        if self.context is None:
            return self.settings.lesson_budget
        asked = sum(self.count_tokens(message["content"]) for message in ask.messages)
        return min(self.settings.lesson_budget, self.context - asked - MARGIN)

    def close(
        self,
        shown: PreparedRequest,
        done: Sequence[Completion],
        model: str,
        fingerprint: str,
        also: str | None = None,
    ) -> Future[None]:
        """Write the answers down, under the name `also` where an upstream server gave them one. The
        future is done when they are on the disk: whoever has read an answer to its end can reward
        it. What is answered while the disk is busy is written in one transaction."""
        rows = [
            self._row(shown, index, one, model, fingerprint, also) for index, one in enumerate(done)
        ]
        written: Future[None] = Future()
        if shown.record:
            self._queue.put((rows, written))
        else:
            written.set_result(None)
        return written

    def _row(
        self,
        shown: PreparedRequest,
        index: int,
        done: Completion,
        model: str,
        fingerprint: str,
        also: str | None,
    ) -> Exchange:
        answer: Message = {"role": "assistant", "content": done.text}
        answer |= {"tool_calls": list(done.calls)} if done.calls else {}
        digest = hashlib.sha256(f"{shown.name}/{index}".encode()).digest()
        fields = ("lesson_id", "version", "shown", "probability")
        return Exchange(
            name=also or shown.name,
            choice=index,
            profile=self.settings.profile,
            taskset=shown.taskset,
            asked=shown.task.messages,
            messages=[*shown.messages, answer],
            exposures=[{name: getattr(one, name) for name in fields} for one in shown.exposures],
            bundle_shown=shown.draw.shown,
            bundle_probability=shown.draw.probability,
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            finish=done.finish,
            seed=int.from_bytes(digest[:8], "big") >> 1,
            model=model,
            model_fingerprint=fingerprint,
            adapter_id=shown.adapter.id if shown.adapter else None,
            measure=self.measure,
            trust="untrusted" if shown.task.untrusted else "clean",
        )

    def reward(self, name: str, reward: float, feedback: str, choice: int | None) -> None:
        """Errors as in `store.traffic.reward`."""
        with self.store.write() as s:
            exchanges.reward(s, name, reward, feedback, choice)

    def stop(self) -> None:
        """Write what is left."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _write(self) -> None:
        """All that has come since the last transaction, in one: a disk's flush costs as much for
        one as for many."""
        last = False
        while not last and (first := self._queue.get()) is not None:
            batch = [first]
            while not last and not self._queue.empty():
                more = self._queue.get()
                last = more is None
                batch += [] if more is None else [more]
            try:
                with self.store.write() as s:
                    exchanges.save(s, [row for rows, _ in batch for row in rows])
            except Exception as e:  # a full disk: those who wait are told, and the server goes on
                for _, written in batch:
                    written.set_exception(e)
            else:
                for _, written in batch:
                    written.set_result(None)
