"""What a server's errors mean: whether the request was at fault, and the run goes on (ModelError),
or nothing more can be had from the server for now, and the run stops where it is (ModelHalted)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from reflect.errors import ContextTooLong, ModelError, ModelHalted
from reflect.models.credentials import NAMES, hide

TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size)|maximum (?:context|model|sequence|input) len|too (?:long|many tokens)"
    r"|max_model_len|exceeds? .{0,40}\b(?:context|tokens)\b",
    re.IGNORECASE,
)
SAID = 300  # letters of a server's own words that are repeated


@dataclass(frozen=True)
class Server:
    """Whom an error is about. `models`: those that it says it has, as far as it was asked."""

    model: str
    url: str
    key: str
    context: int
    timeout: float
    retries: int
    models: tuple[str, ...] = ()


def refusal(e: Exception, server: Server, asked_tokens: int = 0) -> ModelError:
    """The error of the client in the reader's words. `asked_tokens`: an estimate of the prompt's
    size."""
    import openai

    status, said = getattr(e, "status_code", None), hide(words_of(e), server.key)
    tries = f"after {server.retries + 1} tries" if server.retries else "at the first try"
    if isinstance(e, openai.APITimeoutError):
        return ModelError(
            f"{server.url} did not answer within {server.timeout:g} seconds, {tries}."
        )
    if isinstance(e, openai.APIConnectionError):
        if unreachable(e):
            hint = "Start it, or mend the address (base_url, --base-url)."
            return ModelHalted(f"No server answers at {server.url}.", hint)
        return ModelError(f"{server.url} cut the connection, {tries}.")
    if status == 401:
        what = "refuses the key" if server.key else "wants a key"
        return ModelHalted(
            f"{server.url} {what} (401).", f"Set {' or '.join(NAMES)} to one of its keys."
        )
    if status == 403:
        return ModelHalted(f"{server.url} forbids this (403): {said}", "Use another key or model.")
    if status == 404:
        has = (
            f" It has {listed(server.models)}."
            if server.models
            else " Does the address end in /v1?"
        )
        return ModelHalted(
            f"{server.url} has no model {server.model} (404).{has}",
            "Name one with --model openai:NAME.",
        )
    if status == 429:
        hint = "Wait, ask less at a time (rate, concurrency), or see to the account."
        return ModelHalted(f"{server.url} takes no more requests (429) {tries}: {said}", hint)
    if status in (400, 413, 422) and (
        status == 413 or TOO_LONG.search(f"{getattr(e, 'code', '')} {said}")
    ):
        return too_long(*lengths(said, asked_tokens, server.context), server.model)
    if status is not None and status < 500:
        return ModelError(f"{server.url} refuses the request ({status}): {said}")
    if status is not None:
        return ModelError(f"{server.url} failed ({status}) {tries}: {said}")
    return ModelError(
        f"{server.url} answered with something that is no completion ({type(e).__name__})."
    )


def too_long(tokens: str, context: int, model: str) -> ContextTooLong:
    """The prompt does not fit: it has `tokens`, and prompt and answer share `context` tokens."""
    told = f"The prompt has {tokens} tokens, the model {model} reads {context} with its answer."
    return ContextTooLong(
        told, "Shorten the task, lower lesson_budget or max_tokens, or use a longer context."
    )


def lengths(said: str, asked: int, context: int) -> tuple[str, int]:
    """(tokens of the prompt, tokens of the context): by the server's own numbers where its sentence
    has them."""
    most = re.search(
        r"(?:maximum|context|limit|max_model_len)\D{0,60}?(\d{2,})", said, re.IGNORECASE
    )
    limit = int(most[1]) if most else context
    numbers = [int(x) for x in re.findall(r"\b\d{2,9}\b", said)]
    larger = [x for x in numbers if x > limit]
    return (str(min(larger)), limit) if larger else (f"about {asked}", limit)


def unreachable(e: BaseException) -> bool:
    """Was there never a connection? Then nothing was asked."""
    seen: BaseException | None = e
    while seen is not None:
        if type(seen).__name__ in ("ConnectError", "UnsupportedProtocol", "InvalidURL", "gaierror"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def words_of(e: Exception) -> str:
    """The server's own message, in one short line."""
    body: Any = getattr(e, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    said = inner.get("message") if isinstance(inner, dict) else inner
    line = " ".join(str(said or getattr(e, "message", "") or type(e).__name__).split())
    return f"{line.rstrip('.')}." if len(line) <= SAID else line[: SAID - 3] + "..."


def listed(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
