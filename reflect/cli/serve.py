"""reflect serve: the profile's model, or another server, behind the chat completions API."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from typer import Option

from reflect.cli.common import Host, Key, Port, with_workspace
from reflect.cli.output import print_status

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("model profile")
def serve(
    ws: Workspace,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    key: Key = "",
    upstream: str = Option("", metavar="URL", help="Proxy to this server; URL with /v1."),
    taskset: str = Option(
        "traffic", metavar="NAME", help="Taskset of the traffic: the scope of its lessons."
    ),
    trusted: bool = Option(
        False, "--trusted", help="Trust the clients' text: lessons from it need no approval."
    ),
    queue: int = Option(
        256, min=1, max=2**31 - 1, help="Maximum waiting requests; further ones get 503."
    ),
) -> None:
    """Serve the model with its lessons and its adapter, as the OpenAI API does.

    An agent that points its base URL here learns: POST /v1/feedback, then `reflect run
    --from-traffic`.
    """
    from reflect import mcp
    from reflect.serve.server import ServeOptions, serve
    from reflect.web import pages

    def ready(url: str) -> None:
        model = f"in front of {upstream}" if upstream else f"with the model {ws.settings.model}"
        where = f"profile {ws.settings.profile}, database {ws.path}"
        print_status(f"Serving {model}, {where}. The page is under /ui. Ctrl-C stops it.")
        print(url, flush=True)

    serve(
        ws,
        ServeOptions(host, port, key, upstream, taskset, trusted, queue),
        ready,
        partial(pages, ws.settings, key),
        partial(mcp.application, ws.settings, taskset) if mcp.is_installed() else None,
    )
