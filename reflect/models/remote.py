"""A model behind an API that speaks OpenAI's chat completions: a hosted one, vLLM, Ollama,
llama.cpp, `reflect serve`.

Requests go out together, at most `concurrency` at a time, on an event loop of their own thread, so
that `sample` is an ordinary call. There is one retry loop, the openai client's: it repeats what was
limited (429, heeding Retry-After), failed (5xx), timed out or was cut off, and nothing else. What
was answered is never asked again.

An attempt is one request with its own seed (`samples` = 1), so that a server which heeds seeds
gives the same answers however they are grouped; with more samples in a request the prompt is paid
once, and the seed is the first one's.

Not covered: streaming, pictures, the thoughts that some servers send beside an answer.
`count_tokens` is an estimate.
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
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from reflect.config import Settings
from reflect.errors import ContextTooLong, ModelError, ModelHalted, UsageError
from reflect.models.base import ACTIVE, Completion, Request
from reflect.models.budget import Budget
from reflect.models.credentials import NAMES, checked_url, the_key
from reflect.models.remote_errors import Server, refusal, unreachable, words_of
from reflect.models.remote_replies import completions
from reflect.types import Json

PREFIX = "openai:"
DEFAULT_URL = "https://api.openai.com/v1"
PATIENCE = 8  # requests in a row that may fail before nothing more is asked
LEFT_OUT = ("seed", "stop", "temperature")  # what a server may decline, and is then asked without
OF_ITSELF = (
    "id",
    "owned_by",
    "root",
    "max_model_len",
    "context_length",
    "fingerprint",
)  # what a server says of a model

Answer = Completion | ModelError
Result = TypeVar("Result")


class RemoteModel:
    """`openai:NAME` at `settings.base_url`. It has no weights here; adapters are those that its
    server holds."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.served = name.removeprefix(PREFIX)
        if not self.served:
            raise UsageError(
                "Which model of the server? Its name is missing.", "Write openai:NAME."
            )
        if importlib.util.find_spec("openai") is None:
            raise UsageError(
                f"{name} needs the openai client.",
                "Install it: pip install 'second-nature[openai]'",
            )
        given = settings.base_url or os.environ.get("OPENAI_BASE_URL", "")
        self.url = checked_url(given or DEFAULT_URL, "base_url")
        self._key = the_key()
        if not given and not self._key:
            told = f"{name} needs a key, and none is in the environment."
            raise UsageError(told, f"Set {' or '.join(NAMES)}, or --base-url for another server.")
        self.settings = settings
        self.budget = Budget(settings)
        self.budget.price(
            self.served, 0, 0
        )  # is money limited, and has it no price? said before anything is asked
        self.declined: set[str] = set()  # what this server does not take
        self.active: str | None = None
        self._halt: ModelHalted | None = None  # why nothing more is asked in this call
        self._failed = 0  # requests in a row
        self._next = 0.0  # when the next request may begin

    def new_budget(self, spent: Json | None = None) -> Budget:
        """A budget by the settings, of which a run has spent this before."""
        return Budget(self.settings, spent)

    # ---- what the server says of itself

    @cached_property
    def about(self) -> Json:
        """model -> what the server says of it; {} where it does not say. ModelHalted where it
        cannot be asked."""
        return wait_for(self._models())

    async def _models(self) -> Json:
        try:
            found: Any = await self._client.get("/models", cast_to=object)
        except Exception as e:
            if getattr(e, "status_code", None) in (400, 404, 405, 501):
                return {}  # a server without a list
            why = refusal(e, self._server())
            # From None: a traceback would print the server's own words, and some servers repeat the
            # key.
            raise ModelHalted(why.message, why.hint) from None
        rows = found.get("data") if isinstance(found, dict) else None
        return {
            row["id"]: row
            for row in rows or ()
            if isinstance(row, dict) and isinstance(row.get("id"), str)
        }

    @property
    def _card(self) -> Json:
        card: Json = self.about.get(self.served, {})
        return card

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the name, the server's host, and what the server says of the model. Another model
        under the same name is noticed only where the server says so."""
        facts = {key: self._card[key] for key in OF_ITSELF if self._card.get(key) is not None}
        text = json.dumps([self.served, urlsplit(self.url).hostname, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and answer together, by the server, else by the settings."""
        said = (self._card.get(key) for key in ("max_model_len", "context_length"))
        return next((n for n in said if isinstance(n, int) and n > 0), self.settings.context)

    def count_tokens(self, text: str) -> int:
        """An estimate that rather says too many: a token for each four bytes of a word, one for
        each other sign."""
        return sum((len(piece.encode()) + 3) // 4 for piece in re.findall(r"\w+|[^\w\s]", text))

    # ---- adapters that the server holds

    def serves(self, adapter: str) -> bool:
        """Does the server hold an adapter of this name? Asked anew."""
        return adapter in wait_for(self._models())

    def use(self, adapter: str | None) -> None:
        self.active = adapter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[RemoteModel]:
        before, self.active = self.active, adapter
        try:
            yield self
        finally:
            self.active = before

    # ---- asking

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed. The first ModelError where any was not
        answered: then the others are lost, so ask `answer_each` where that matters."""
        found = self.answer_each(requests)
        for row in found:
            for one in row:
                if isinstance(one, ModelError):
                    raise one
        return [[one for one in row if isinstance(one, Completion)] for row in found]

    def answer_each(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """For each request one answer or its own error per seed. After a ModelHalted nothing new is
        asked; what is under way is waited for. It is raised where the server cannot even be asked
        for its models."""
        self._halt, self._failed = None, 0
        _ = self.context  # asked for here, once: the event loop could not wait for it
        found: list[list[Answer | None]] = [[None] * len(request.seeds) for request in requests]
        interrupted: ModelHalted | None = None
        try:
            wait_for(self._answer_all(requests, found))
        except (
            KeyboardInterrupt
        ) as e:  # what was answered is paid for: it is saved before the command ends
            interrupted = ModelHalted("It was interrupted.")
            interrupted.__cause__ = e
        why = interrupted or self._halt or ModelHalted("It was not asked.")
        return [[why if one is None else one for one in row] for row in found]

    async def _answer_all(
        self, requests: Sequence[Request], found: list[list[Answer | None]]
    ) -> None:
        places = asyncio.Semaphore(self.settings.concurrency)

        async def chunk(row: list[Answer | None], request: Request, at: range) -> None:
            async with places:
                row[at.start : at.stop] = await self._ask(
                    request, tuple(request.seeds[i] for i in at)
                )

        size = self.settings.samples
        await asyncio.gather(
            *(
                chunk(row, request, range(i, min(i + size, len(row))))
                for request, row in zip(requests, found, strict=True)
                for i in range(0, len(row), size)
            )
        )

    async def _ask(self, request: Request, seeds: tuple[int, ...]) -> list[Answer]:
        """Some attempts in one request; one by one where the server gives only one at a time."""
        if len(seeds) > 1 and "n" in self.declined:
            return [answer for seed in seeds for answer in await self._ask(request, (seed,))]
        size = self._size(request)
        found: list[Answer] = []
        try:
            async with self.budget.room(self.served, size, request.max_tokens * len(seeds)) as hold:
                await self._pace()
                if self._halt:
                    hold.took = (0, 0)
                    raise self._halt
                try:
                    # The client sends a retry with the same headers: a server that heeds this one
                    # charges it once.
                    once = {"Idempotency-Key": str(uuid.uuid4())}
                    self.budget.requests += 1
                    words = self._payload(request, seeds, size)
                    reply = await self._client.chat.completions.create(**words, extra_headers=once)
                    found, hold.took = completions(
                        reply, request, seeds, size, self.count_tokens, self._key
                    )
                except Exception as e:
                    if getattr(e, "status_code", None) or unreachable(e):
                        hold.took = (0, 0)  # refused; what broke on the way may have been charged
                    raise
        except ModelHalted as e:  # the budget, or another request
            self._halt = self._halt or e
            return [self._halt] * len(seeds)
        except Exception as e:  # whatever the client, or what the server wrote, makes of it
            if self._declines(e, len(seeds)):
                return await self._ask(request, seeds)
            return [self._broken(e, size)] * len(seeds)
        self._failed = 0
        if len(found) < len(seeds):
            self.declined.add("n")
            found += await self._ask(request, seeds[len(found) :])
        return found

    def _payload(self, request: Request, seeds: Sequence[int], size: int) -> Json:
        adapter = self.active if request.adapter == ACTIVE else request.adapter
        longest = "max_completion_tokens" if "max_tokens" in self.declined else "max_tokens"
        words: Json = {
            "model": adapter or self.served,
            "messages": list(request.messages),
        }
        room = max(
            self.context - self._size(request), self.context // 4
        )  # as a local model: a long answer is cut there
        words |= {
            "temperature": request.temperature,
            "seed": seeds[0],
            longest: min(request.max_tokens, room),
        }
        words |= {"n": len(seeds)} if len(seeds) > 1 else {}
        words |= (
            {"stop": list(request.stop[:4])} if request.stop else {}
        )  # the API takes four; the text is cut at all
        words |= {"tools": list(request.tools)} if request.tools else {}
        return {name: value for name, value in words.items() if name not in self.declined}

    def _size(self, request: Request) -> int:
        text = json.dumps([list(request.messages), list(request.tools)], ensure_ascii=False)
        return self.count_tokens(text)

    async def _pace(self) -> None:
        if self.settings.rate:
            now = time.monotonic()
            begins = max(self._next, now)
            self._next = begins + 60 / self.settings.rate
            await asyncio.sleep(begins - now)

    def _declines(self, e: Exception, n: int) -> bool:
        """Does the server refuse a word of the request that it can be asked without? Then it is,
        from now on, and no attempt is made twice by that: nothing was answered."""
        if getattr(e, "status_code", None) not in (400, 422):
            return False
        said = words_of(e)
        name = str(getattr(e, "param", None) or "")
        unknown = re.search(
            r"unsupported|not supported|does not support|not permitted|unknown", said, re.IGNORECASE
        )
        if "max_completion_tokens" in said and "max_tokens" not in self.declined:
            name = "max_tokens"
        elif n > 1 and (name == "n" or re.search(r"\bn\b", said)):
            name = "n"
        elif not (unknown and name in LEFT_OUT) or name in self.declined:
            return False
        self.declined.add(name)
        return True

    def _broken(self, e: Exception, size: int) -> ModelError:
        """A request that failed; after too many in a row nothing more is asked."""
        why = refusal(e, self._server(), size)
        self._failed += not isinstance(why, ContextTooLong)
        if not isinstance(why, ModelHalted) and self._failed >= max(
            PATIENCE, self.settings.concurrency
        ):
            self._halt = self._halt or ModelHalted(
                f"{self._failed} requests in a row failed. {why.message}", "See to the server."
            )
        elif isinstance(why, ModelHalted):
            self._halt = self._halt or why
        return why

    def _server(self) -> Server:
        known = self.__dict__.get("about", {})
        s = self.settings
        return Server(
            self.served, self.url, self._key, s.context, s.timeout, s.retries, tuple(known)
        )

    @cached_property
    def _client(self) -> Any:
        from openai import AsyncOpenAI

        words: Json = {
            "timeout": self.settings.timeout,
            "max_retries": self.settings.retries,
        }
        words["default_headers"] = {
            "x-reflect-lessons": "off"
        }  # to `reflect serve`: the prompt is whole as it stands
        return AsyncOpenAI(api_key=self._key or "none", base_url=self.url, **words)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all models behind an API, in a thread of its own: the caller may be in a
    loop already."""
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
