"""Errors of reflect as errors of the API."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from reflect.errors import (
    AdapterError,
    ContextTooLong,
    MessagesRefused,
    ReflectError,
    StoreError,
    UnknownName,
    UsageError,
)
from reflect.serve.schema import ApiError

RETRY = {"retry-after": "1"}


def reply(e: ApiError) -> Response:
    """The response that refuses a request."""
    return JSONResponse(e.body, e.status, e.headers)


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
    if isinstance(e, MessagesRefused | UsageError):
        return ApiError(400, str(e), param="messages", code="invalid_value")
    message = str(e) if isinstance(e, ReflectError) else f"{type(e).__name__}: {e}"
    return ApiError(500, message, code="internal_error", kind="server_error")
