"""The meaning of a server's errors: ModelError for a failed request, after which the run goes on;
ModelHalted when the server answers nothing more for now, and the run stops."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reflect.errors import ContextTooLong, ModelError, ModelHalted
from reflect.models.credentials import NAMES, hide

TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size)|maximum (?:context|model|sequence|input) len"
    r"|too (?:long|many tokens)|max_model_len|exceeds? .{0,40}\b(?:context|tokens)\b",
    re.IGNORECASE,
)
LIMIT = re.compile(r"(?:maximum|context|limit|max_model_len)\D{0,60}?(\d{2,})", re.IGNORECASE)
QUOTED = 300  # maximum characters of a server's message


@dataclass(frozen=True)
class Server:
    """The server of an error. `models`: its model list, when that was read."""

    model: str
    url: str
    key: str
    context: int
    timeout: float
    retries: int
    models: tuple[str, ...] = ()


def refusal(e: Exception, server: Server, asked_tokens: int = 0) -> ModelError:
    """The error for an exception of the client. `asked_tokens`: an estimate of the prompt."""
    import openai

    status, message = getattr(e, "status_code", None), hide(words_of(e), server.key)
    tries = f"after {server.retries + 1} tries" if server.retries else "at the first try"
    if isinstance(e, openai.APITimeoutError):
        return ModelError(
            f"{server.url} did not answer within {server.timeout:g} seconds, {tries}."
        )
    if isinstance(e, openai.APIConnectionError):
        if unreachable(e):
            hint = "Start it, or correct the address (base_url, --base-url)."
            return ModelHalted(f"No server answers at {server.url}.", hint)
        return ModelError(f"{server.url} cut the connection, {tries}.")
    if status == 401:
        what = "refuses the key" if server.key else "wants a key"
        return ModelHalted(
            f"{server.url} {what} (401).", f"Set {' or '.join(NAMES)} to one of its keys."
        )
    if status == 403:
        return ModelHalted(
            f"{server.url} forbids this (403): {message}", "Use another key or model."
        )
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
        return ModelHalted(f"{server.url} takes no more requests (429) {tries}: {message}", hint)
    if status in (400, 413, 422) and (
        status == 413 or TOO_LONG.search(f"{getattr(e, 'code', '')} {message}")
    ):
        return too_long(*lengths(message, asked_tokens, server.context), server.model)
    if status is not None and status < 500:
        return ModelError(f"{server.url} refuses the request ({status}): {message}")
    if status is not None:
        return ModelError(f"{server.url} failed ({status}) {tries}: {message}")
    return ModelError(
        f"{server.url} answered with something that is no completion ({type(e).__name__})."
    )


def too_long(tokens: str, context: int, model: str) -> ContextTooLong:
    """The prompt does not fit: it has `tokens`, and prompt and answer share `context` tokens."""
    message = f"The prompt has {tokens} tokens, the model {model} reads {context} with its answer."
    hint = "Shorten the task, lower lesson_budget or max_tokens, or use a longer context."
    return ContextTooLong(message, hint)


def lengths(message: str, asked: int, context: int) -> tuple[str, int]:
    """(tokens of the prompt, tokens of the context), from the server's message when it has them."""
    most = LIMIT.search(message)
    limit = int(most[1]) if most else context
    numbers = [int(x) for x in re.findall(r"\b\d{2,9}\b", message)]
    larger = [x for x in numbers if x > limit]
    return (str(min(larger)), limit) if larger else (f"about {asked}", limit)


def unreachable(e: BaseException) -> bool:
    """True when there was no connection, so that nothing was sent."""
    seen: BaseException | None = e
    while seen is not None:
        if type(seen).__name__ in ("ConnectError", "UnsupportedProtocol", "InvalidURL", "gaierror"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def words_of(e: Exception) -> str:
    """The server's own message, in one short line."""
    body: object = getattr(e, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    text = inner.get("message") if isinstance(inner, dict) else inner
    line = " ".join(str(text or getattr(e, "message", "") or type(e).__name__).split())
    return f"{line.rstrip('.')}." if len(line) <= QUOTED else line[: QUOTED - 3] + "..."


def listed(names: tuple[str, ...], most: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
