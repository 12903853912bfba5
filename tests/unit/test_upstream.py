"""Which paths and headers pass between a client and an upstream server."""

from __future__ import annotations

import random
from urllib.parse import quote, unquote_to_bytes

import httpx2
import pytest

from reflect.errors import UsageError
from reflect.serve.schema import ApiError
from reflect.serve.upstream import base_url, reply_headers, request_headers, target

BASE = base_url("https://up.example:8443/base/v1/")


def sent(path: str, query: str = "", base: httpx2.URL = BASE) -> bytes:
    scope = {"raw_path": path.encode("latin-1"), "query_string": query.encode()}
    return target(scope, base)


OUTSIDE = """
/v1/.. /v1/../admin /v1/./x /v1/a/../../admin /v1/x/.. /v1/x/. /v1/... /v1/x/..../y
/v1/..%2f..%2fadmin /v1/%2e%2e/admin /v1/.%2e/admin /v1/%2E./admin /v1/%2e/x /v1/a%2f..%2f..%2fadmin
/v1/%252e%252e/admin /v1/..%252f..%252fadmin /v1/%25%32%65%25%32%65/admin /v1/%2525252e%2525252e/x
/v1/%252525252525252e%252525252525252e/x /v1/.%252e%2fadmin
/v1/..\\admin /v1/..%5cadmin /v1/%2e%2e%5cadmin /v1/..%255cadmin /v1/a\\..\\..\\admin /v1/a%5c..
/v1/..;/admin /v1/..;a=b/admin /v1/..%3b/admin /v1/%2e%2e%3bx/admin /v1/.;/x /v1/..%253b/x
/v1/..%3f/x /v1/..%23/x /v1/..%00/admin /v1/..%20/admin /v1/%20../x /v1/..%09/x /v1/..%0d%0a/x
/v1/%c0%ae%c0%ae/admin /v1/..%c0%afadmin /v1/%e0%80%ae%e0%80%ae/x /v1/..%c1%9cadmin /v1/%f0%80%80%ae/x
/v1/%25c0%25ae%25c0%25ae/admin /v1/%u002e%u002e/admin /v1/..%u2215admin /v1/%25u002e%25u002e/x
/v1/%ef%bc%8e%ef%bc%8e/admin /v1/%e2%80%a5/admin /v1/%e2%80%a4%e2%80%a4/x /v1/..%ef%bc%8fadmin
/v1/%ef%bc%852e%ef%bc%852e/x /v1/.%e2%80%8b./x /v1/%ff /v1/a%00b /v1/a%0ab /v1/%zz /v1/% /v1/%2 /v1/a%
/v1//evil.example/x /v1/%2f%2fevil.example /v1/%2fx /v1/\\\\evil.example /v1/%5cx
/v1/a#b /%76%31/admin /v1%2fadmin /V1/x /v1x/y http://evil.example/v1/x //evil.example/v1/x
"""


@pytest.mark.parametrize("path", OUTSIDE.split())
def test_a_path_that_could_leave_the_base_is_refused(path: str) -> None:
    with pytest.raises(ApiError) as refused:
        sent(path)
    assert refused.value.status == 400


INSIDE = """
/v1/ /v1/models /v1/models/org%2Fname /v1/models/org%2fname /v1/a%3Fb%3D1 /v1/a%23b /v1/a%25b /v1/100%2525
/v1/models/%2Fdata%2Fmodel /v1/a//b /v1/a/ /v1/ft:gpt-4o:org::id /v1/a;b=c/d /v1/v1.5/..x /v1/x../y /v1/.well-known
/v1/a.b..c /v1/@evil.example/x /v1/http://evil.example/x /v1/%7euser /v1/%41 /v1/files/%C3%A9t%C3%A9 /v1/a%20b
/v1/a+b /v1/{x}|"y" /v1/!$&'()*,=~ /v1/%E6%A8%A1%E5%9E%8B /v1/%F0%9F%A6%99
"""


@pytest.mark.parametrize("path", INSIDE.split())
def test_other_paths_go_upstream_byte_by_byte(path: str) -> None:
    assert sent(path) == b"/base" + path.encode()
    assert sent(path, "a=%2e%2e/&b={x}&a") == b"/base" + path.encode() + b"?a=%2e%2e/&b={x}&a"
    assert sent(path, base=base_url("http://up.example")) == path.encode()[3:]


def test_no_random_path_leaves_the_base() -> None:
    """As many servers would read it: decode up to three times, split, walk."""
    draw = random.Random(11)
    pieces = [".", "..", "/", "\\", "a", ";", "%", "?", "#", "\x00", "é", "v1", "\u2025", " "]
    passed = 0
    for _ in range(20_000):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 7)))
        for _ in range(draw.randrange(3)):
            text = quote(text, safe=draw.choice(["", "/", "./", "%", "/%;"])).replace("%2E", ".")
            text = "".join(
                f"%{ord(c):02x}" if c in "./" and draw.random() < 0.3 else c for c in text
            )
        if not text.isascii() or {" ", "\x00", "?"} & set(text):
            continue
        try:
            whole = sent(f"/v1/{text}")
        except ApiError:
            continue
        passed += 1
        assert whole == b"/base/v1/" + text.encode()
        for _ in range(4):
            depth = 0
            for part in whole.removeprefix(b"/base/v1/").replace(b"\\", b"/").split(b"/"):
                depth += -1 if part.split(b";")[0].strip() == b".." else 1
                assert depth >= 0, text
            whole = unquote_to_bytes(whole)
    assert passed > 1000


@pytest.mark.parametrize(
    "url",
    ["example.org", "ftp://x/v1", "http://", "http:///v1", "https://u:p@x/v1", "https://u@x/v1",
     "https://x/v1?key=a", "https://x/v1#a", "https://x/v1?", "http://[::1", "http://x:port/v1"],
)  # fmt: skip
def test_an_upstream_url_is_an_address_only(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        base_url(url)
    assert url not in str(refused.value)


def names(headers: list[str], key: str = "", own_key: str = "") -> list[str]:
    rows = [tuple(part.strip().encode() for part in line.split(":", 1)) for line in headers]
    return [name.decode() for name, _ in request_headers(rows, key, own_key)]


NEVER = """
connection keep-alive proxy-connection transfer-encoding upgrade te trailer trailers http2-settings
proxy-authorization proxy-authenticate content-length host expect cookie cookie2 transfer_encoding
forwarded via x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-user x_forwarded_for x-real-ip
x-client-ip true-client-ip cf-connecting-ip x-original-url x-rewrite-url x-original-host x-host x-remote-user
x-http-method-override x-reflect-taskset x-reflect-lessons x-reflect-conversation
""".split()
CREDENTIALS = """
authorization x-api-key api-key x-goog-api-key apikey x-apikey x-auth-token x-access-token x-amz-security-token
ocp-apim-subscription-key x-functions-key private-token x-vault-token x-csrf-token x-xsrf-token x-session-id
x-jwt-assertion x-client-secret x-password x-signature x-hub-signature-256 dpop x-client-cert x-auth-user
x-amzn-oidc-data x-api_key X-Api-Key x-portkey-api-key helicone-auth x-key x-otp authentication
""".split()
ALWAYS = """
accept content-type user-agent openai-organization openai-project openai-beta anthropic-version anthropic-beta
x-stainless-lang x-stainless-retry-count idempotency-key x-request-id traceparent tracestate http-referer x-title
accept-language x-custom content-encoding accept-encoding range if-none-match
""".split()


def test_headers_to_the_upstream() -> None:
    for name in NEVER:
        assert names([f"{name}: a"]) == names([f"{name}: a"], own_key="k") == [], name
        assert names([f"{name}: a"], key="k") == ["authorization"], name
    for name in ALWAYS:
        assert names([f"{name}: a"]) == names([f"{name}: a"], own_key="k") == [name], name
        assert names([f"{name}: a"], key="k") == [name, "authorization"], name
    for name in CREDENTIALS:
        assert names([f"{name}: a"]) == [name], "without our key the client's is the upstream's"
        assert names([f"{name}: a"], key="k") == ["authorization"], name


def test_the_key_of_this_server_goes_nowhere() -> None:
    for value in ("sesame", "Bearer sesame", 'token="sesame"', "a, sesame;q=1"):
        for name in ("authorization", "x-api-key", "x-custom", "user-agent"):
            assert names([f"{name}: {value}"], own_key="sesame") == []
    assert names(["authorization: Bearer other"], own_key="sesame") == []
    assert names(["x-api-key: other", "accept: sesame-seed"], own_key="sesame") == [
        "x-api-key",
        "accept",
    ]


def test_headers_that_connection_names_stay_here() -> None:
    lines = [
        "Connection: close, X-One",
        "connection: x_two ,,",
        "X-One: a",
        "x-two: b",
        "x-three: c",
    ]
    assert names(lines) == ["x-three"]


def test_the_upstreams_key_is_the_only_authorization() -> None:
    rows = [(b"authorization", b"Bearer client"), (b"authorization", b"Basic client")]
    assert request_headers(rows, "up", "own") == [(b"authorization", b"Bearer up")]


def test_headers_back_to_the_client() -> None:
    def back(*lines: str, key: str = "") -> list[bytes]:
        rows = [tuple(part.strip().encode() for part in line.split(":", 1)) for line in lines]
        *headers, last = reply_headers(rows, key)
        assert last == (b"content-security-policy", b"sandbox")
        return [name for name, _ in headers]

    for name in """set-cookie Set-Cookie set-cookie2 authorization connection keep-alive transfer-encoding trailer
        upgrade proxy-authenticate proxy-connection date server access-control-allow-origin alt-svc
        strict-transport-security clear-site-data content-security-policy x-reflect-id x-reflect-lessons set_cookie""".split():
        assert back(f"{name}: a") == [], name
    kept = """content-type content-length content-encoding retry-after x-request-id www-authenticate location
        x-ratelimit-remaining-requests openai-processing-ms vary etag x-reflect-adapter""".split()
    assert back(*(f"{name}: a" for name in kept)) == [name.encode() for name in kept]
    assert back("x: a", "x: b", "X: c") == [b"x"] * 3
    assert back("connection: x-a, content-encoding", "x-a: 1", "content-encoding: br") == [
        b"content-encoding"
    ]
    assert back("transfer-encoding: chunked", "content-length: 5") == []
    assert back("x-debug: Bearer sk-1", "x-ok: 1", key="sk-1") == [b"x-ok"]
