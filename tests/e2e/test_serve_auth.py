"""Without a key the server answers programs of this machine, and no web page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import running, send_raw, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SEEN: list[str] = []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy in front of a server that records the paths."""

    async def anything(http: Request) -> Response:
        SEEN.append(http.url.path)
        return Response(b"pong")

    upstream = Starlette(routes=[Route("/{path:path}", anything, methods=["GET", "POST"])])
    db = tmp_path_factory.mktemp("auth") / "lessons.db"
    with running(upstream) as url, serving(db, upstream=url) as one:
        yield one


def status(base: str, *headers: str, method: str = "GET", key: str = "") -> int:
    """The status of a request with exactly these headers; {own} is the host and port."""
    SEEN.clear()
    own = base.removeprefix("http://").removesuffix("/v1")
    lines = [line.replace("{own}", own) for line in headers]
    if not any(line.lower().startswith("host:") for line in lines):
        lines.insert(0, f"Host: {own}")
    lines += ["Connection: close", "Content-Length: 0"] + [f"Authorization: Bearer {key}"] * bool(
        key
    )
    request = "\r\n".join([f"{method} /v1/any HTTP/1.1", *lines, "", ""])
    code = int(send_raw(base, request.encode("latin-1")).split()[1])
    passed = ["/v1/any"] if code == 200 else []
    assert passed == SEEN, "a refused request reaches the upstream"
    return code


PAGES = [
    ("Origin: https://evil.example",),
    ("Origin: null",),
    ("Origin:",),
    ("Origin: http://localhost",),
    ("Origin: http://localhost:3000",),
    ("Origin: http://127.0.0.1:1",),
    ("Origin: http://127.0.0.1",),
    ("Origin: https://{own}",),
    ("Origin: http://{own}.evil.example",),
    ("Origin: http://evil.example@{own}",),
    ("Origin: http://app.localhost:3000",),
    ("Origin: http://[::1]:3000",),
    ("Origin: http://{own}", "Origin: http://evil.example"),
    ("Origin: http://{own}", "Sec-Fetch-Site: same-site"),
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("Sec-Fetch-Site: Cross-Site",),
    ("Sec-Fetch-Site: unheard-of",),
    ("Sec-Fetch-Site: none, cross-site",),
    ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"),
    ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"),
    ("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"),
    ("Sec-Fetch-Mode: navigate",),
    ("Sec-Fetch-Dest: iframe",),
    ("Host: evil.example",),
    ("Host: evil.localhost",),
    ("Host: localhost.evil.example",),
    ("Host: 127.0.0.1.nip.io",),
    ("Host: 0.0.0.0",),
    ("Host: 2130706433",),
    ("Host: 127.1",),
    ("Host: 192.168.0.1:8000",),
    ("Host: [::2]",),
    ("Host:",),
]
PROGRAMS = [
    (),
    ("Host: localhost",),
    ("Host: LOCALHOST:9",),
    ("Host: 127.0.0.2:8000",),
    ("Host: [::1]:8000",),
    ("Origin: http://{own}",),
    ("Host: LocalHost:9", "Origin: http://localhost:9"),
    ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"),
    ("Sec-Fetch-Site: same-origin", "Origin: http://{own}"),
    ("Sec-Fetch-Mode: cors", "User-Agent: node"),
]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_are_refused_and_programs_pass(base: str, method: str) -> None:
    for headers in PAGES:
        assert status(base, *headers, method=method) == 403, headers
    for headers in PROGRAMS:
        assert status(base, *headers, method=method) == 200, headers


@pytest.mark.parametrize(
    "host", ["[", "[]", "a b", "localhost:x", "a/b", "u@localhost", "a\xe9", "[::1"]
)
def test_a_host_that_is_none_is_a_bad_request(base: str, host: str) -> None:
    assert status(base, f"Host: {host}") == 400


def test_with_a_key_only_the_key_counts(tmp_path_factory: pytest.TempPathFactory) -> None:
    SEEN.clear()
    db = tmp_path_factory.mktemp("key") / "lessons.db"
    with serving(db, upstream="http://127.0.0.1:9/v1", key="sesame") as base:
        for headers in [*PAGES, *PROGRAMS]:
            assert status(base, *headers) == 401, headers
        assert status(base, "Host: evil.example", key="sesame") == 502
        assert status(base, "Host: [", key="sesame") == 400
