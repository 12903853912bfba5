"""A server answers in place of a local model: vLLM or `reflect serve` with the same base.

A night trains a network here and samples thousands of answers. With `settings.sampler` these come
from an engine that is made for it. Prompts are rendered and answers are read here: the server gets
token ids and returns token ids, so an answer is what the local model could have sampled. Weights of
an adapter that is being trained or judged are pushed under a name of their own for each state, and
unloaded afterwards. Logits are always computed here.

Their names begin with `candidate-` and a hash of the home folder, so that a night clears what a
killed one left, and nothing of others.

Not covered: a server whose weights differ so little that `ServerSampler.check` does not notice;
sampling is then off-policy.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from reflect.errors import ContextTooLong, ModelError, ModelHalted, ReflectError
from reflect.models import distributed
from reflect.models.adapter_server import AdapterServer
from reflect.models.base import ACTIVE, Completion, Request
from reflect.models.remote import Answer, RemoteModel
from reflect.models.remote_replies import NoCompletion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from reflect.config import Settings
    from reflect.models.generation import GenerationRow
    from reflect.models.local import LocalModel
    from reflect.types import Json

AT_ONCE = 256  # concurrent requests: an engine batches them
PATIENCE = 900.0  # seconds for one answer, which may wait behind many others
SEEDS = 2**63  # servers take seeds below
KEPT = 2  # candidates on the server at once: vLLM's --max-loras is often small
PROBES = ("Hello!", "What is two and two?", "Name a colour.", "Write a short sentence.")


class ServerSampler(RemoteModel):
    """Answers of `local` by the model `name` (openai:NAME) of a server at `settings.base_url`."""

    def __init__(self, name: str, settings: Settings, local: LocalModel, folder: Path) -> None:
        """`folder`: for the files of candidates."""
        most, patience = max(settings.concurrency, AT_ONCE), max(settings.timeout, PATIENCE)
        own = replace(settings, concurrency=most, timeout=patience, samples=1)
        super().__init__(name, own)
        self.local, self.folder = local, folder
        self.server = AdapterServer(self.url, "base_url", settings.serve_adapters)
        home = hashlib.sha256(str(settings.home_path.resolve()).encode()).hexdigest()[:8]
        self.prefix = f"candidate-{home}-"
        self.pushed: list[str] = []
        self._rows: dict[int, GenerationRow] = {}  # id of a request -> its prompt and limits

    # -- answers

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `LocalModel.sample`: the active adapter and the named ones are those of the local
        model, in their present state. ModelHalted when the server fails."""
        try:
            return self._sample(requests)
        except ContextTooLong:
            raise
        except ModelError as e:
            again = "When the server works again, run the same command: the night continues."
            raise ModelHalted(e.message, again) from e

    def _sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        active = self.local.active
        adapters = [active if r.adapter == ACTIVE else r.adapter for r in requests]
        rows = [self.local.rows(replace(r, seeds=r.seeds[:1])) for r in requests]
        names = [name for name in dict.fromkeys(adapters) if name is not None]
        served = {name: self.push(name) for name in names}
        for old in self.pushed[: -max(KEPT, len(names))]:
            self._drop(old)
        asked = [
            replace(r, adapter=None if name is None else served[name])
            for r, name in zip(requests, adapters, strict=True)
        ]
        self._rows = {id(r): row for r, (row,) in zip(asked, rows, strict=True)}
        return super().sample(asked)

    async def _send(
        self, request: Request, seeds: tuple[int, ...], size: int
    ) -> tuple[list[Answer], tuple[int, int]]:
        row = replace(self._rows[id(request)], seed=seeds[0], tokens=[], ended=False)
        fields: Json = {
            "model": request.adapter or self.served,
            "prompt": list(row.prompt),
            "max_tokens": row.limit,
            "temperature": request.temperature,
            "seed": row.seed % SEEDS,
        }
        fields |= {"top_p": request.top_p} if request.top_p < 1 else {}
        fields |= {"stop": list(request.stop[:4])} if request.stop else {}
        fields = {name: value for name, value in fields.items() if name not in self.declined}
        more = {"return_token_ids": True, "skip_special_tokens": False}
        reply = await self._client.completions.create(**fields, extra_body=more)
        choices = getattr(reply, "choices", None) or [None]
        tokens = getattr(choices[0], "token_ids", None)
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise NoCompletion("there are no token_ids in it")
        end = next((i for i, token in enumerate(tokens) if token in self.local.ends), None)
        row.tokens = tokens[:end]
        row.ended = end is not None or choices[0].finish_reason == "stop"
        done = self.local.completion(row, request)
        return [done], (done.prompt_tokens, done.completion_tokens)

    # -- adapters

    def push(self, name: str) -> str:
        """Load the present state of a local adapter on the server; returns its name there."""
        served = self.prefix + self._digest(name)
        if served not in self.pushed:
            self.local.save_adapter(name, self.folder / served)
            self.server.load(served, self.folder / served)
            self.pushed.append(served)
        self.pushed.sort(key=served.__eq__)  # the last one was used last
        return served

    def _digest(self, name: str) -> str:
        lora, total = self.local.known_adapter(name), hashlib.sha256()
        total.update(f"{lora.rank} {lora.alpha * lora.scale}".encode())
        for parameter in self.local.adapter_parameters(name):
            data = parameter.detach().to("cpu", torch.float32).contiguous()
            total.update(data.numpy().tobytes())
        return total.hexdigest()[:16]

    def _drop(self, served: str) -> None:
        self.server.unload(served)
        shutil.rmtree(self.folder / served, ignore_errors=True)
        if served in self.pushed:
            self.pushed.remove(served)

    def clear(self) -> None:
        """Unload all candidates of this home folder, also those of a night that was killed."""
        for name in sorted(self.server.names()):
            if name.startswith(self.prefix):
                self._drop(name)
        self.pushed.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self) -> None:
        """Compare the server with the local model: greedy first tokens of short prompts, and an
        adapter without effect, which it must load and unload. ModelError when it does not fit."""
        self.clear()
        requests = [
            Request(
                [{"role": "user", "content": text}], max_tokens=1, temperature=0.0, adapter=None
            )
            for text in PROBES
        ]
        ours, theirs = self.local.sample(requests), self._sample(requests)
        differ = sum(a[0].tokens != b[0].tokens for a, b in zip(ours, theirs, strict=True))
        if differ > len(PROBES) // 2:
            raise ModelError(
                f"{self.served} at {self.url} answers {differ} of {len(PROBES)} short prompts "
                "otherwise than this model: it has other weights or another tokenizer."
            )
        name = f"{self.prefix}probe"
        self.local.new_adapter(name, rank=1)
        try:
            self.push(name)
        finally:
            self.local.drop_adapter(name)
            self.clear()


@contextmanager
def sampling_by_server(model: LocalModel, settings: Settings, folder: Path) -> Iterator[str]:
    """Within a with-block, answers of the model come from `settings.sampler`, if one is named.
    Yields "", or one sentence why they do not. `folder`: for the files of candidates, which the
    server must see."""
    if not settings.sampler:
        yield ""
        return
    sampler = ServerSampler(settings.sampler, settings, model, folder)
    try:
        if distributed.size() > 1:
            raise ModelError("Several processes sample together.")
        sampler.check()
    except ReflectError as e:
        sampler.close()
        yield f"The night samples on this machine, not by {settings.sampler}: {e}"
        return
    model.sampler = sampler
    try:
        yield ""
    finally:
        model.sampler = None
        with suppress(ReflectError):  # without the server, the next night clears them
            sampler.clear()
        sampler.close()
