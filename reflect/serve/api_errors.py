"""Errors of reflect as errors of an API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from reflect.errors import (
    AdapterError,
    ContextTooLong,
    MessagesRefused,
    ReflectError,
    SchemaRefused,
    StoreError,
    UnknownName,
    UsageError,
)
from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from reflect.types import Json

RETRY = {"retry-after": "1"}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

RESPONSES_PARAMS: dict[object, str] = {"messages": "input", "response_format": "text"}
"""Fields of chat completions by which errors of the model name a field of the responses API."""


def reply(e: ApiError, path: str) -> Response:
    """The response that refuses a request to this path."""
    body = anthropic_body(e) if is_messages(path) else e.body
    if path == "/v1/responses":
        error = e.body["error"]
        body = {"error": error | {"param": RESPONSES_PARAMS.get(error["param"], error["param"])}}
    return JSONResponse(body, e.status, e.headers)


def is_messages(path: str) -> bool:
    """True for the paths of Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def anthropic_body(e: ApiError) -> Json:
    """The error in the form of Anthropic's API."""
    other = "api_error" if e.status >= 500 else "invalid_request_error"
    kind = ANTHROPIC_TYPES.get(e.status, other)
    return {"type": "error", "error": {"type": kind, "message": str(e)}}


def api_error(e: BaseException) -> ApiError:
    """The status and code of an error."""
    if isinstance(e, ApiError):
        return e
    if isinstance(e, UnknownName):
        return ApiError(404, str(e), param="model", code="model_not_found")
    if isinstance(e, AdapterError):
        return ApiError(400, str(e), code="adapter_error")
    if isinstance(e, StoreError):
        code = "database_unavailable"
        return ApiError(503, str(e), code=code, kind="server_error", headers=RETRY)
    if isinstance(e, ContextTooLong):
        return ApiError(400, str(e), param="messages", code="context_length_exceeded")
    if isinstance(e, SchemaRefused):
        return ApiError(400, str(e), param="response_format", code="invalid_value")
    if isinstance(e, MessagesRefused | UsageError):
        return ApiError(400, str(e), param="messages", code="invalid_value")
    message = str(e) if isinstance(e, ReflectError) else f"{type(e).__name__}: {e}"
    return ApiError(500, message, code="internal_error", kind="server_error")
