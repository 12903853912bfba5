"""reflect serve: the profile's model, or another server, behind the chat completions API."""

from __future__ import annotations

from typing import Annotated

import typer

from reflect.cli.common import Db, Model, Profile, workspace
from reflect.cli.output import print_status


def serve(
    host: Annotated[
        str, typer.Option(help="The address to listen on. Off loopback a key is required.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")
    ] = 8000,
    key: Annotated[
        str,
        typer.Option(
            envvar="REFLECT_SERVE_KEY",
            show_envvar=False,
            help="Key that clients must send. [REFLECT_SERVE_KEY]",
        ),
    ] = "",
    upstream: Annotated[
        str, typer.Option(metavar="URL", help="Proxy to this server; URL with /v1.")
    ] = "",
    taskset: Annotated[
        str, typer.Option(metavar="NAME", help="Taskset of the traffic: the scope of its lessons.")
    ] = "traffic",
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted", help="Trust the clients' text: lessons from it need no approval."
        ),
    ] = False,
    queue: Annotated[
        int, typer.Option(min=1, help="Maximum waiting requests; further ones get 503.")
    ] = 256,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
) -> None:
    """Serve the model with its lessons and its adapter, as the OpenAI API does.

    An agent that points its base URL here learns: POST /v1/feedback, then `reflect run
    --from-traffic`.
    """
    ws = workspace(db, profile, model)
    from reflect.serve.server import ServeOptions, serve

    def ready(url: str) -> None:
        what = f"in front of {upstream}" if upstream else f"with the model {ws.settings.model}"
        print_status(
            f"Serving {what}, profile {ws.settings.profile}, database {ws.path}. Ctrl-C stops it."
        )
        print(url, flush=True)

    serve(ws, ServeOptions(host, port, key, upstream, taskset, trusted, queue), ready)
