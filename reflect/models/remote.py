"""A model behind OpenAI's chat completions API: a hosted one, vLLM, Ollama, llama.cpp,
`reflect serve`.

Requests are sent together, at most `concurrency` at a time, on an event loop in a thread of its
own, so that `sample` is an ordinary call. The openai client retries requests that were rate limited
(429, with Retry-After), failed (5xx), timed out or lost their connection. An answered request is
never sent again.

With `samples` = 1 each attempt is one request with its own seed, so that a server which supports
seeds gives the same answers in any grouping. With more samples per request the prompt is paid once,
and the first seed counts.

Not covered: streaming, images. `count_tokens` is an estimate.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import threading
import time
import uuid
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from reflect.errors import ContextTooLong, ModelError, ModelHalted, UsageError
from reflect.markup import break_role_tokens, map_strings
from reflect.models.base import ACTIVE, Completion, Request
from reflect.models.budget import Budget
from reflect.models.credentials import NAMES, checked_url, the_key
from reflect.models.remote_errors import Server, refusal, unreachable, words_of
from reflect.models.remote_replies import completions

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from reflect.config import Settings
    from reflect.types import Json

PREFIX = "openai:"
DEFAULT_URL = "https://api.openai.com/v1"
PATIENCE = 8  # consecutive failed requests after which no more are sent
OPTIONAL = ("seed", "stop", "temperature")  # left out when the server does not support them
# Fields of the server's model list that belong to the fingerprint.
IDENTITY = ("id", "owned_by", "root", "max_model_len", "context_length", "fingerprint")
# How servers name the form of an answer that they do not support.
FORM = re.compile(
    r"(?i)response_?format|json_?schema|json_?object|structured.?output|guided|grammar"
)
UNSUPPORTED = re.compile(r"(?i)unsupported|not supported|does not support|not permitted|unknown")

Answer = Completion | ModelError
Result = TypeVar("Result")


class RemoteModel:
    """`openai:NAME` at `settings.base_url`. Its weights and adapters are on the server."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.served = name.removeprefix(PREFIX)
        if not self.served:
            raise UsageError("The name of the server's model is missing.", "Write openai:NAME.")
        if importlib.util.find_spec("openai") is None:
            hint = "Install it: pip install 'second-nature[openai]'"
            raise UsageError(f"{name} needs the openai client.", hint)
        given = settings.base_url or os.environ.get("OPENAI_BASE_URL", "")
        self.url = checked_url(given or DEFAULT_URL, "base_url")
        self._key = the_key()
        if not given and not self._key:
            message = f"{name} needs a key, and none is in the environment."
            hint = f"Set {' or '.join(NAMES)}, or --base-url for another server."
            raise UsageError(message, hint)
        self.settings = settings
        self.budget = Budget(settings)
        self.budget.price(self.served, 0, 0)  # fails early when a limited cost has no price
        self.declined: set[str] = set()  # request fields that this server does not support
        self.active: str | None = None
        self._halt: ModelHalted | None = None  # why no more requests are sent in this call
        self._failed = 0  # consecutive failed requests
        self._next = 0.0  # when the next request may start

    def new_budget(self, spent: Json | None = None) -> Budget:
        """A budget by the settings; `spent` is what the same run has spent before."""
        return Budget(self.settings, spent)

    @cached_property
    def about(self) -> Json:
        """model -> its entry in the server's list, {} without one. ModelHalted if unreachable."""
        return wait_for(self._models())

    async def _models(self) -> Json:
        try:
            reply: object = await self._client.get("/models", cast_to=object)
        except Exception as e:
            if getattr(e, "status_code", None) in (400, 404, 405, 501):
                return {}  # a server without a list
            why = refusal(e, self._server())
            # From None: a traceback would print the server's text, and some servers repeat the key.
            raise ModelHalted(why.message, why.hint) from None
        data = reply.get("data") if isinstance(reply, dict) else None
        rows = [row for row in data or () if isinstance(row, dict)]
        return {row["id"]: row for row in rows if isinstance(row.get("id"), str)}

    @property
    def _card(self) -> Json:
        card: Json = self.about.get(self.served, {})
        return card

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the name, the server's host, and the server's entry for the model. Another model
        under the same name is noticed only when that entry differs."""
        facts = {key: self._card[key] for key in IDENTITY if self._card.get(key) is not None}
        text = json.dumps([self.served, urlsplit(self.url).hostname, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and answer together, by the server, else by the settings."""
        sizes = (self._card.get(key) for key in ("max_model_len", "context_length"))
        return next((n for n in sizes if isinstance(n, int) and n > 0), self.settings.context)

    def count_tokens(self, text: str) -> int:
        """A high estimate: one token per four bytes of a word, one per other character."""
        return sum((len(piece.encode()) + 3) // 4 for piece in re.findall(r"\w+|[^\w\s]", text))

    def serves(self, adapter: str) -> bool:
        """True when the server has an adapter of this name now."""
        return adapter in wait_for(self._models())

    def use(self, adapter: str | None) -> None:
        """Name the adapter in later requests; None is the base."""
        self.active = adapter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[RemoteModel]:
        """The adapter within a with-block."""
        before, self.active = self.active, adapter
        try:
            yield self
        finally:
            self.active = before

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed. Raises the first ModelError, and the other
        answers are lost: use `answer_each` to keep them."""
        rows = self.answer_each(requests)
        for answer in (answer for row in rows for answer in row):
            if isinstance(answer, ModelError):
                raise answer
        return [[answer for answer in row if isinstance(answer, Completion)] for row in rows]

    def answer_each(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """One answer or its own error per request and seed. After a ModelHalted running requests
        finish and no new one is sent. ModelHalted if the server's model list cannot be read."""
        self._halt, self._failed = None, 0
        _ = self.context  # read here, because the event loop cannot wait for itself
        rows: list[list[Answer | None]] = [[None] * len(request.seeds) for request in requests]
        interrupted: ModelHalted | None = None
        try:
            wait_for(self._answer_all(requests, rows))
        except KeyboardInterrupt as e:  # answers that were paid for are still returned
            interrupted = ModelHalted("It was interrupted.")
            interrupted.__cause__ = e
        why = interrupted or self._halt or ModelHalted("It was not asked.")
        return [[why if answer is None else answer for answer in row] for row in rows]

    def close(self) -> None:
        """Close the connections to the server."""
        if "_client" in self.__dict__:
            wait_for(self._client.close())

    async def _answer_all(
        self, requests: Sequence[Request], rows: list[list[Answer | None]]
    ) -> None:
        limit, size = asyncio.Semaphore(self.settings.concurrency), self.settings.samples

        async def chunk(row: list[Answer | None], request: Request, start: int) -> None:
            async with limit:
                seeds = request.seeds[start : start + size]
                row[start : start + size] = await self._ask(request, tuple(seeds))

        pairs = zip(requests, rows, strict=True)
        starts = ((row, request, i) for request, row in pairs for i in range(0, len(row), size))
        await asyncio.gather(*(chunk(*start) for start in starts))

    async def _ask(self, request: Request, seeds: tuple[int, ...]) -> list[Answer]:
        """Several attempts in one request; one by one when the server does not support `n`."""
        if len(seeds) > 1 and "n" in self.declined:
            return [answer for seed in seeds for answer in await self._ask(request, (seed,))]
        size = self._size(request)
        answers: list[Answer] = []
        try:
            async with self.budget.room(self.served, size, request.max_tokens * len(seeds)) as hold:
                await self._pace()
                if self._halt:
                    hold.took = (0, 0)
                    raise self._halt
                try:
                    self.budget.requests += 1
                    answers, hold.took = await self._send(request, seeds, size)
                except Exception as e:
                    if getattr(e, "status_code", None) or unreachable(e):
                        hold.took = (0, 0)  # refused; a lost connection may have been charged
                    raise
        except ModelHalted as e:  # the budget, or another request
            self._halt = self._halt or e
            return [self._halt] * len(seeds)
        except Exception as e:  # any error of the client, or of an unreadable reply
            asked_form = bool(request.response_format) and "response_format" not in self.declined
            if self._declines(e, len(seeds), asked_form):
                return await self._ask(request, seeds)
            return [self._broken(e, size)] * len(seeds)
        self._failed = 0
        if len(answers) < len(seeds):
            self.declined.add("n")
            answers += await self._ask(request, seeds[len(answers) :])
        return answers

    async def _send(
        self, request: Request, seeds: tuple[int, ...], size: int
    ) -> tuple[list[Answer], tuple[int, int]]:
        """One request: the answers for the first seeds, and the tokens in and out."""
        # A retry has the same headers: a server that supports this one charges once.
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        body = self._payload(request, seeds, size)
        reply = await self._client.chat.completions.create(**body, extra_headers=headers)
        return completions(reply, request, seeds, size, self.count_tokens, self._key)

    def _payload(self, request: Request, seeds: Sequence[int], size: int) -> Json:
        adapter = self.active if request.adapter == ACTIVE else request.adapter
        longest = "max_completion_tokens" if "max_tokens" in self.declined else "max_tokens"
        free = max(self.context - self._size(request), self.context // 4)
        fields: Json = {
            "model": adapter or self.served,
            "messages": map_strings(request.messages, break_role_tokens),
            "temperature": request.temperature,
            "seed": seeds[0],
            longest: min(request.max_tokens, free),
        }
        fields |= {"n": len(seeds)} if len(seeds) > 1 else {}
        # The API takes four stop strings; the reply is cut at all of them.
        fields |= {"top_p": request.top_p} if request.top_p < 1 else {}
        fields |= {"stop": list(request.stop[:4])} if request.stop else {}
        tools = map_strings(request.tools, break_role_tokens)
        fields |= {"tools": tools} if request.tools else {}
        form = request.response_format
        fields |= {"response_format": form} if form else {}
        return {name: value for name, value in fields.items() if name not in self.declined}

    def _size(self, request: Request) -> int:
        text = json.dumps([list(request.messages), list(request.tools)], ensure_ascii=False)
        return self.count_tokens(text)

    async def _pace(self) -> None:
        if self.settings.rate:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + 60 / self.settings.rate
            await asyncio.sleep(start - now)

    def _declines(self, e: Exception, n: int, asked_form: bool) -> bool:
        """Whether the server refuses an optional field, which is left out from now on."""
        if getattr(e, "status_code", None) not in (400, 422):
            return False
        message = words_of(e)
        name = str(getattr(e, "param", None) or "")
        if "max_completion_tokens" in message and "max_tokens" not in self.declined:
            name = "max_tokens"
        elif n > 1 and (name == "n" or re.search(r"\bn\b", message)):
            name = "n"
        elif asked_form and (FORM.search(name) or FORM.search(message)):
            name = "response_format"
        elif name not in OPTIONAL or name in self.declined or not UNSUPPORTED.search(message):
            return False
        self.declined.add(name)
        return True

    def _broken(self, e: Exception, size: int) -> ModelError:
        """The error of a failed request. Too many in a row stop further requests."""
        why = refusal(e, self._server(), size)
        self._failed += not isinstance(why, ContextTooLong)
        if isinstance(why, ModelHalted):
            self._halt = self._halt or why
        elif self._failed >= max(PATIENCE, self.settings.concurrency):
            message = f"{self._failed} requests in a row failed. {why.message}"
            self._halt = self._halt or ModelHalted(message, "Check the server.")
        return why

    def _server(self) -> Server:
        known, s = tuple(self.__dict__.get("about", {})), self.settings
        return Server(self.served, self.url, self._key, s.context, s.timeout, s.retries, known)

    @cached_property
    def _client(self) -> Any:  # AsyncOpenAI, whose typed parameters are narrower than ours
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
            default_headers={"x-reflect-lessons": "off"},  # the prompt already has its lessons
        )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all remote models, in its own thread: the caller may run a loop itself."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reflect-remote", daemon=True).start()
    return loop


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the coroutine; it is cancelled when the wait is interrupted."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
