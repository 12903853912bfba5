"""reflect ui, reflect report: lessons, groups and nights in a browser, or in one file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from reflect.cli.common import Yes, with_workspace
from reflect.cli.output import print_status
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

MODULES = ("starlette", "uvicorn")


@with_workspace("model profile")
def ui(
    ws: Workspace,
    host: str = Option("127.0.0.1", help="Address to listen on. Other than loopback needs a key."),
    port: int = Option(8765, min=0, max=65535, help="Port; 0 = any free port."),
    key: str = Option(
        "",
        envvar="REFLECT_SERVE_KEY",
        show_envvar=False,
        help="Key that a browser must give once. [REFLECT_SERVE_KEY]",
    ),
) -> None:
    """Read and change lessons, runs and nights in a browser.

    Every change is a new version with author human, as on the command line.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        message = f"reflect ui needs {', '.join(missing)}."
        raise UsageError(message, "Install what it needs: pip install 'second-nature[serve]'")
    import asyncio

    from reflect.serve.auth import loopback
    from reflect.serve.server import listen, server
    from reflect.web.app import build

    if not key and not loopback(host):
        message = f"On {host} others can reach this page, so it needs a key."
        hint = "Set REFLECT_SERVE_KEY, or add --key KEY; or stay on --host 127.0.0.1."
        raise UsageError(message, hint)
    app = build(ws, key)
    with listen(host, port) as listener:
        number = listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host

        def ready() -> None:
            print_status(f"Profile {ws.settings.profile}, database {ws.path}. Ctrl-C stops it.")
            print(f"http://{name}:{number}/", flush=True)

        asyncio.run(server(app, ready).serve(sockets=[listener]))


@with_workspace("profile")
def report(
    ws: Workspace,
    html: Annotated[Path, Option(metavar="FILE", help="The file to write.")],
    overwrite: Yes = False,
) -> None:
    """Write the lessons with their effects, the last night and the last day as one HTML file.

    It opens in any browser, without a server and without a network.
    """
    if importlib.util.find_spec("starlette") is None:
        raise UsageError(
            "reflect report needs starlette.", "Install it: pip install 'second-nature[serve]'"
        )
    from reflect.web.app import report as page

    text = page(ws)
    if html.exists() and not overwrite:
        raise UsageError(f"{html} exists already.", "Give another name, or add --yes.")
    html.write_text(text, encoding="utf-8")
    print_status(f"Written: {html}")
