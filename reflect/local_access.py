"""Which requests come from programs of this machine, and which from a web page in a browser.

A server without a key answers programs of its own machine only. A web page in a browser is no such
program: it is recognised by the headers that a page cannot change. `Host` must name this machine
(no other name that resolves to it: DNS rebinding), `Origin` must be exactly that of the server, and
`Sec-Fetch-Site` must not name another site; a browser sends the last one also with a GET without
Origin, such as that of an image.

Not covered: programs of other users of this machine. Only a key keeps them out.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from typing import Protocol

from reflect.errors import UsageError

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")
SAFE = ("GET", "HEAD")
"""The methods that change nothing."""


class Headers(Protocol):
    """The headers of a request; names in any case."""

    def get(self, key: str, /) -> str | None:
        """The first value; None without one."""

    def getlist(self, key: str, /) -> list[str]:
        """All values."""
        ...


def host_name(header: str) -> str | None:
    """The host in a `Host` header, without port and brackets; None if the header is malformed."""
    match = HOST.fullmatch(header)
    return match[1].strip("[]").lower() if match else None


def is_loopback(host: str | None) -> bool:
    """True for an address of this machine, and for the name `localhost`. Names below it
    (*.localhost) are refused: a page may have one."""
    try:
        return host is not None and (
            host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
        )
    except ValueError:
        return False


def from_other_page(method: str, scheme: str, headers: Headers, *, key: bool, links: bool) -> bool:
    """True for a request that a browser sends for a page of another origin.

    With a `key` the server may be behind a proxy that ends TLS: https is then an own origin too.
    With `links` a browser may open an address of the server from another page."""
    schemes = {scheme, "https"} if key else {scheme}
    own = {f"{name}://{headers.get('host') or ''}".lower() for name in schemes}
    if any(origin.lower() not in own for origin in headers.getlist("origin")):
        return True
    mode, dest = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    if links and method in SAFE and mode == "navigate":
        return False
    sites = {site.strip() for site in ",".join(headers.getlist("sec-fetch-site")).split(",")}
    if sites == {""}:
        # Some programs send a mode: fetch() of Node.js sends "cors". Only browsers send the others.
        return mode not in (None, "cors") or dest not in (None, "empty")
    return not sites <= {"same-origin", "none"}


def check_server(command: str, host: str, key: str, *modules: str) -> None:
    """UsageError if a server of `command` lacks modules, or the key that its address needs."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        hint = "Install them with the extra: pip install 'second-nature[serve]'"
        raise UsageError(f"{command} needs {', '.join(missing)}.", hint)
    if not key and not is_loopback(host):
        message = f"On {host} other machines can reach this server, so it needs a key."
        hint = "Set REFLECT_SERVE_KEY, or add --key KEY; or use --host 127.0.0.1."
        raise UsageError(message, hint)
