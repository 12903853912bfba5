"""A stand-in for a model behind an API, so that the judge example runs offline.

Run:     python stand_in.py COMMAND ...
It does: start a server of OpenAI's chat completions on a free port of this machine, run the
         command with REFLECT_BASE_URL set to the server, and stop the server.
Prints:  what the command prints.

It is not a model: it answers with fixed sentences and grades by keywords. With a real server, run
the same commands without `python stand_in.py`: set REFLECT_BASE_URL and OPENAI_API_KEY, and name
its models as openai:NAME.
"""

import json
import os
import random
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REPLIES = ["No.", "Sorry, I cannot come.", "I cannot come, because I am at work that day."]
BEST = "Thank you for asking. I cannot come, because I am at work that day."
LESSON = "when: declining an invitation do: thank the person and give a reason with because"


def worth(text: str) -> tuple[float, str]:
    """A reward and its reason: half for a polite word, half for "because"."""
    polite = any(word in text.lower() for word in ("thank", "sorry"))
    reason = "because" in text.lower()
    missing = ["not polite"] * (not polite) + ["no reason"] * (not reason)
    return 0.5 * polite + 0.5 * reason, ", ".join(missing) or "polite, with a reason"


def grade(prompt: str, mark: str) -> str:
    """The two lines that prompts/judge.jinja asks for. `mark` encloses the answer."""
    reward, why = worth(prompt.partition(f"[answer {mark}]")[2].partition(f"[end {mark}]")[0])
    return f"why {mark}: {why}\nreward {mark}: {reward}"


def compare(prompt: str, mark: str) -> str:
    """The line that prompts/compare.jinja asks for: which of two answers is better."""
    first, _, second = prompt.partition(f"[answer 1 {mark}]")[2].partition(f"[answer 2 {mark}]")
    difference = worth(first)[0] - worth(second.partition(f"[end {mark}]")[0])[0]
    return f"better {mark}: {'1' if difference > 0 else '2' if difference < 0 else 'same'}"


def answer(messages: list[dict], seed: int) -> str:
    """What a prompt asks for: a grade, a comparison, a lesson, or a reply to an invitation."""
    prompt = "\n".join(message["content"] for message in messages)
    if mark := re.search(r"^reward (\w+): number$", prompt, re.MULTILINE):
        return grade(prompt, mark[1])
    if mark := re.search(r"^better (\w+): ", prompt, re.MULTILINE):
        return compare(prompt, mark[1])
    if "ADD when:" in prompt:
        return "NOTE\n" + ("NONE" if LESSON in prompt else f"ADD {LESSON}")
    return BEST if LESSON in prompt else random.Random(seed).choice(REPLIES)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = answer(body["messages"], body.get("seed") or 0)
        message = {"role": "assistant", "content": text}
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
        self.send(200, completion)

    def do_GET(self) -> None:
        self.send(404, {"error": {"message": "Only /v1/chat/completions is here."}})

    def send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """No line per request."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    env = os.environ | {"REFLECT_BASE_URL": url, "REFLECT_API_KEY": "none"}
    sys.exit(subprocess.run(sys.argv[1:], env=env).returncode)
