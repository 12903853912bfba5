"""The page and the API refuse the same requests; only the page may be opened by a link."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from reflect.errors import UsageError
from reflect.local_access import check_server, host_name, is_loopback
from reflect.serve.auth import AuthMiddleware
from reflect.web.guard import Access

OWN = "127.0.0.1:8000"


def refused(*lines: str, method: str = "GET", scheme: str = "http", key: str = "") -> list[bool]:
    """[the API refuses it, the page refuses it]."""
    rows = [tuple(part.strip().encode() for part in line.split(":", 1)) for line in lines]
    if not any(name.lower() == b"host" for name, _ in rows):
        rows.insert(0, (b"host", OWN.encode()))
    rows = [(name.lower(), value) for name, value in rows]
    scope = {"type": "http", "method": method, "scheme": scheme, "headers": rows}
    page = Access(key).refusal(method, scheme, Headers(scope=scope))
    api = AuthMiddleware(lambda *_: None, "").refusal(Request(scope))  # type: ignore[arg-type]
    return [api is not None, bool(page)]


PAGES = """
Origin: https://evil.example | Origin: null | Origin: | Origin: http://localhost:8000
Origin: http://127.0.0.1 | Origin: https://127.0.0.1:8000 | Origin: http://127.0.0.1:80000
Origin: http://u@127.0.0.1:8000 | Origin: ws://127.0.0.1:8000 | Origin: 127.0.0.1:8000
Sec-Fetch-Site: cross-site | Sec-Fetch-Site: same-site | Sec-Fetch-Site: new-value
Sec-Fetch-Mode: no-cors | Sec-Fetch-Dest: image | Sec-Fetch-Dest: script
Host: evil.example | Host: x.localhost | Host: 127.0.0.1.evil.example | Host: 2130706433 | Host: 0x7f.1
Host: 0.0.0.0 | Host: [::2]:1 | Host: [ | Host: | Host: localhost. | Host: u@localhost | Host: 127.0.0.1/x
"""
PROGRAMS = """
Accept: */* | Origin: http://127.0.0.1:8000 | Sec-Fetch-Site: none | Sec-Fetch-Site: same-origin
Host: LOCALHOST:1 | Host: [::1]:8000 | Host: 127.9.9.9 | Sec-Fetch-Mode: cors
"""


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_one_rule_for_both(method: str) -> None:
    for table, wanted in (PAGES, True), (PROGRAMS, False):
        for line in table.replace("\n", " | ").split(" | "):
            if ":" in line:
                assert refused(line, method=method) == [wanted] * 2, line
    both = ["Origin: http://127.0.0.1:8000", "Origin: http://evil.example"]
    assert refused(*both, method=method) == [True, True]


def test_a_link_opens_the_page_and_not_the_api() -> None:
    link = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]
    assert refused(*link) == refused(*link, method="HEAD") == [True, False]
    assert refused(*link, method="POST") == [True, True], "a form of another page"
    assert refused("Host: evil.example", *link) == [True, True]


def test_behind_a_proxy_that_ends_tls() -> None:
    lines = ["Host: team.example", "Origin: https://team.example"]
    assert refused(*lines, method="POST", key="k")[1] is False
    assert refused(*lines, method="POST")[1] is True
    other = ["Host: team.example", "Origin: https://other.example"]
    assert refused(*other, method="POST", key="k")[1] is True


def test_a_server_that_others_can_reach_needs_a_key() -> None:
    for host in "0.0.0.0", "::", "192.168.0.1", "example.com", "", "127.0.0.1.example.com":
        with pytest.raises(UsageError, match="needs a key"):
            check_server("reflect ui", host, "")
        check_server("reflect ui", host, "key")
    for host in "127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost":
        check_server("reflect ui", host, "")
        assert is_loopback(host_name(f"[{host}]:1" if ":" in host else host))
    with pytest.raises(UsageError, match="reflect ui needs no_such_module"):
        check_server("reflect ui", "127.0.0.1", "", "no_such_module")
