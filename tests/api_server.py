"""A server that speaks chat completions by script, on a free loopback port: it can answer, and it
can misbehave.

    with Server(script=[status(429, {"Retry-After": "0.01"}), say("answer: 3")]) as server: ...

Each request takes the next step of the script; when there is none left, `default` answers. `asked`
holds the bodies of all chat requests, in order, the misbehaved ones too.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Step = Callable[["Handler", dict[str, Any]], None]
NAME = "m"


class Server:
    """`models`: name -> what it says of it; None has no list. `keys`: those it takes, any when
    None."""

    def __init__(
        self,
        script: Sequence[Step] = (),
        default: Step | None = None,
        models: dict[str, Any] | None = None,
        keys: Sequence[str] | None = None,
        loras: bool = True,
        resolver: Path | None = None,
    ) -> None:
        self.script, self.default = list(script), default or say("answer: 3")
        self.models: dict[str, Any] | None = {NAME: {}} if models is None else models
        self.keys, self.loras = keys, loras
        self.resolver = resolver  # the folder in which it looks for adapters by name
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []  # of the same, names in small letters
        self.posts: list[tuple[str, dict[str, Any]]] = []  # to other paths
        self.most = self.now = 0  # requests at the same time
        self.lock = threading.Lock()

    def __enter__(self) -> Server:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"mine": self}))
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is expected
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mine: Server

    def log_message(self, *_: object) -> None:
        pass

    def send_json(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.mine.keys is None or key in self.mine.keys:
            return False
        self.send_json(
            401,
            error(
                f"Incorrect API key provided: {key}. No such key as {key[:12]}.", "invalid_api_key"
            ),
        )
        return True

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path != "/v1/models" or self.mine.models is None:
            return self.send_json(404, error("Not Found"))
        rows = [
            {"id": name, "object": "model", "owned_by": "test"} | card
            for name, card in self.mine.models.items()
        ]
        self.send_json(200, {"object": "list", "data": rows})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            with self.mine.lock:
                self.mine.posts.append((self.path, body))
            return None if self.refused() else self.lora(body)
        with self.mine.lock:
            self.mine.asked.append(body)
            self.mine.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.mine.now += 1
            self.mine.most = max(self.mine.most, self.mine.now)
            step = self.mine.script.pop(0) if self.mine.script else self.mine.default
        try:
            if not self.refused():
                step(self, body)
        finally:
            with self.mine.lock:
                self.mine.now -= 1

    def lora(self, body: dict[str, Any]) -> None:
        """Load and unload adapters as vLLM does, also by its filesystem resolver."""
        models, name = self.mine.models, body.get("lora_name")
        if self.path == "/v1/completions" and models is not None:
            name = str(body["model"])
            config = self.mine.resolver and self.mine.resolver / name / "adapter_config.json"
            base = models[NAME].get("root", NAME)
            known = name not in models and config and config.is_file()
            if known and json.loads(config.read_text())["base_model_name_or_path"] == base:
                models[name] = {"root": str(config.parent), "parent": NAME}
            if name not in models:
                return self.send_json(404, error(f"The model `{name}` does not exist."))
            return self.send_json(200, {"choices": [{"index": 0, "text": "a"}]})
        if not self.mine.loras or models is None:
            return self.send_json(404, error("Not Found"))
        if self.path == "/v1/load_lora_adapter":
            if name in models:
                return self.send_json(
                    400, error(f"The lora adapter '{name}' has already been loaded.")
                )
            models[name] = {"root": body["lora_path"], "parent": NAME}
        elif models.pop(name, None) is None:
            return self.send_json(404, error(f"The lora adapter '{name}' cannot be found."))
        self.send_json(200, f"Success: {name}")


# -- steps
# -------------------------------------------------------------------------------------------------------------


def error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    }


def reply(body: dict[str, Any], *texts: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, **more},
            "finish_reason": finish,
        }
        for i, text in enumerate(texts)
    ]
    size = sum(len(m["content"].split()) for m in body["messages"])
    usage = {"prompt_tokens": size, "completion_tokens": sum(len(text.split()) for text in texts)}
    usage["total_tokens"] = sum(usage.values())
    head = {"id": "c1", "object": "chat.completion", "created": 0, "model": f"{body['model']}-2026"}
    return head | {"choices": choices, "usage": usage}


def say(text: str, after: float = 0.0, finish: str = "stop", **more: Any) -> Step:
    """An answer, as many times as it is asked for."""

    def step(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(after)
        handler.send_json(200, reply(body, *[text] * body.get("n", 1), finish=finish, **more))

    return step


def think(answer: Callable[[dict[str, Any]], str]) -> Step:
    """An answer that depends on the request."""
    return lambda handler, body: handler.send_json(
        200, reply(body, *[answer(body)] * body.get("n", 1))
    )


def status(code: int, headers: dict[str, str] | None = None, body: Any = None) -> Step:
    """An error. It asks for a retry at once, so that tests are quick, unless `headers` say
    otherwise."""
    words = {"Retry-After": "0.01"} if headers is None else headers
    return lambda handler, _: handler.send_json(code, body or error(f"scripted {code}"), words)


def hang(seconds: float) -> Step:
    """No answer until it is too late."""

    def step(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return step


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Half an answer, and the connection is gone."""
    data = json.dumps(reply(body, "answer: 3")).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def garbage(text: str, kind: str = "application/json") -> Step:
    return lambda handler, _: handler.send_json(200, text.encode(), {"Content-Type": kind})
