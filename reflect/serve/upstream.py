"""What may pass between a client and the upstream server: the path, and the headers of both ways.

A path goes upstream as the client has written it, byte by byte, below the path of the upstream's
URL. One that could leave it is refused: servers decode a path differently, so no segment may be a
dot segment after any number of decodings.

Headers that belong to one connection (RFC 9110, 7.6.1), cookies and claims about the way of a
request stop here. When the upstream's key is ours, no credential of the client goes with it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

import httpx2

from reflect.errors import UsageError
from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, values as they came; a name can occur more than once."""

DECODINGS = 4  # a path that is encoded more often is refused
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
UNICODE_ESCAPE = re.compile(r"%u[0-9A-Fa-f]{4}", re.IGNORECASE)  # decoded by some old servers

HOP_BY_HOP = re.compile(
    r"connection|keep-alive|transfer-encoding|upgrade|te|trailers?|content-length"
    r"|http2-settings|proxy-.*"
)
NOT_UPSTREAM = re.compile(
    r"host|expect|cookie2?|x-reflect-.*"
    r"|forwarded|via|x-forwarded.*|x-(real|client|cluster-client|remote|originating)-ip"
    r"|(true-|fastly-)?client-ip|x-remote-addr|remote-addr|cf-.*|x-(original|rewrite)-.*|x-host"
    r"|x-(http-)?method(-override)?|(x-)?(remote|webauth|forwarded)-user"
)
CREDENTIAL = re.compile(
    r".*(auth|cookie|token|secret|passw|credential|session|jwt|csrf|xsrf|signature|bearer"
    r"|api-?key|access-?key|oidc|saml|hmac|principal|identity).*"
    r"|(.*-)?(key|pass|sig|sid|otp|dpop|cert)(-.*)?"
)
NOT_CREDENTIAL = {"idempotency-key", "sec-websocket-key"}
BODY = {"content-length", "content-encoding", "content-type"}
NOT_BACK = re.compile(
    r"set-cookie2?|authorization|date|server|x-reflect-(id|lessons)|access-control-.*|alt-svc"
    r"|strict-transport-security|content-security-policy.*|public-key-pins.*|clear-site-data"
)
NO_PAGE = (b"content-security-policy", b"sandbox")


def base_url(url: str) -> httpx2.URL:
    """The upstream's URL. UsageError, which does not repeat it, if it is not http(s)://HOST/PATH."""
    hint = "Write --upstream https://HOST/v1."
    try:
        base = httpx2.URL(url)
        urlsplit(url)  # it also refuses an incomplete address in brackets
    except (httpx2.InvalidURL, ValueError) as e:
        raise UsageError("The value of --upstream is not a URL.", hint) from e
    if base.scheme not in ("http", "https") or not base.host:
        raise UsageError("The value of --upstream is not a URL of a server.", hint)
    if base.userinfo or base.query or base.fragment or "?" in url or "#" in url:
        message = "The value of --upstream has more than an address and a path."
        raise UsageError(message, f"{hint} Put a key into REFLECT_UPSTREAM_KEY.")
    return base


def target(scope: Scope, base: httpx2.URL) -> bytes:
    """The path and query of a request to /v1/... for the upstream. ApiError 400."""
    raw: bytes = scope["raw_path"]
    if not raw.startswith(b"/v1/"):  # such as /%76%31/
        raise _bad_path("does not begin with /v1/")
    path, query = raw.removeprefix(b"/v1/"), scope["query_string"]
    if b"#" in path + query or not (path + query).isascii():
        raise _bad_path("has characters that a URL must encode")
    _refuse_escape(path.decode())
    whole: bytes = base.raw_path.rstrip(b"/") + b"/" + path
    return whole + b"?" + query if query else whole


def _refuse_escape(path: str) -> None:
    """ApiError 400 for a path that some server could read as one outside its folder."""
    if BAD_ESCAPE.search(path):
        raise _bad_path("has a '%' without two hexadecimal digits")
    for _ in range(DECODINGS + 1):
        first, *_ = segments = [re.split("[;?#]", part)[0] for part in re.split(r"[/\\]", path)]
        if any(name and set(name) <= {"."} for name in map(str.strip, segments)):
            raise _bad_path("has a dot segment")
        if not first and len(segments) > 1:
            raise _bad_path("begins with an empty segment")
        if UNICODE_ESCAPE.search(path) or not path.isprintable():
            raise _bad_path("has control characters")
        try:
            text = unquote_to_bytes(path).decode()
        except UnicodeDecodeError as e:  # also overlong forms of dots and slashes
            raise _bad_path("is not UTF-8") from e
        text = unicodedata.normalize("NFKC", text)
        if text == path:
            return
        path = text
    raise _bad_path("is encoded too often")


def _bad_path(problem: str) -> ApiError:
    message = f"The path of the request {problem}, so it is not sent upstream."
    return ApiError(400, message, code="invalid_path")


def request_headers(
    headers: Iterable[tuple[bytes, bytes]], key: str, own_key: str, header: str = "authorization"
) -> Headers:
    """The client's headers for the upstream. `key`: the upstream's key, in place of every
    credential of the client, sent as `header`; `own_key`: the key of this server, which no upstream
    gets."""
    rows = list(headers)
    stop = _named_in_connection(rows)
    kept = []
    for name, value in rows:
        text = _name(name)
        if text in stop or HOP_BY_HOP.fullmatch(text) or NOT_UPSTREAM.fullmatch(text):
            continue
        if key and CREDENTIAL.fullmatch(text) and text not in NOT_CREDENTIAL:
            continue
        if own_key and (text == "authorization" or own_key in _tokens(value)):
            continue
        kept.append((name, value))
    if not key:
        return kept
    bearer = "Bearer " * (header == "authorization")
    return [*kept, (header.encode(), f"{bearer}{key}".encode())]


def reply_headers(headers: Iterable[tuple[bytes, bytes]], key: str) -> Headers:
    """The upstream's headers for the client, without those that repeat the upstream's key. Length
    and encoding stay: the body is passed on as it comes. A browser that shows it as a page gives
    the page no access to this server."""
    rows = [(name.lower(), value) for name, value in headers]
    stop = _named_in_connection(rows) - BODY
    chunked = any(name == b"transfer-encoding" for name, _ in rows)
    kept = []
    for name, value in rows:
        text = _name(name)
        if text == "content-length":
            drop = chunked
        else:
            drop = text in stop or bool(HOP_BY_HOP.fullmatch(text) or NOT_BACK.fullmatch(text))
        if not drop and not (key and key.encode() in value):
            kept.append((name, value))
    return [*kept, NO_PAGE]


def _name(name: bytes) -> str:
    """In lower case, and with `-` for `_`, as servers that make variables of headers read it."""
    return name.decode("latin-1").lower().replace("_", "-")


def _tokens(value: bytes) -> set[str]:
    return set(re.split(r"[\s,;=\"']+", value.decode("latin-1")))


def _named_in_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """Headers that the sender declares to be of this connection only."""
    values = b",".join(value for name, value in headers if name.lower() == b"connection")
    return {_name(part.strip()) for part in values.split(b",")}
