"""reflect ui, reflect report: lessons, groups and nights in a browser, or in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from reflect.cli.common import Host, Key, Port, Yes, with_workspace
from reflect.cli.output import print_status
from reflect.errors import UsageError
from reflect.local_access import check_server

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

MODULES = ("starlette", "uvicorn")


@with_workspace("model profile")
def ui(
    ws: Workspace,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    key: Key = "",
) -> None:
    """Read and change lessons, runs and nights in a browser.

    Every change is a new version with author human, as on the command line.
    """
    check_server("reflect ui", host, key, *MODULES)
    import asyncio

    from reflect.serve.server import listen, server, url
    from reflect.web.app import build

    app = build(ws, key)
    with listen(host, port) as listener:

        def ready() -> None:
            print_status(f"Profile {ws.settings.profile}, database {ws.path}. Ctrl-C stops it.")
            print(url(listener, host).removesuffix("v1"), flush=True)

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
    check_server("reflect report", "127.0.0.1", "", "starlette")
    from reflect.web.app import report as page

    text = page(ws)
    if html.exists() and not overwrite:
        raise UsageError(f"{html} exists already.", "Give another name, or add --yes.")
    html.write_text(text, encoding="utf-8")
    print_status(f"Written: {html}")
