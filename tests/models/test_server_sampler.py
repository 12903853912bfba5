"""A server answers in place of the local model: `reflect serve`, which loads adapters as vLLM does
and whose seeds give the answers of the local model, to the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch
from api_server import Server
from conftest import save_tiny
from serving import serving
from test_night_sleep import SMALL, teach

from reflect.config import Settings
from reflect.errors import ContextTooLong, ModelHalted
from reflect.models import load_model
from reflect.models.adapter_server import AdapterServer
from reflect.models.base import Completion, Request
from reflect.models.local import LocalModel
from reflect.models.server_sampler import ServerSampler, sampling_by_server
from reflect.night.sleep import sleep
from reflect.store import Store
from reflect.training.plan import NightOptions

TEXTS = ("apply reku to the list 3 1 2.", "what is 3 + 4?", "say hello", "count to 3", "a. b. c.")
OTHER = "candidate-00000000-0123"


def exact() -> LocalModel:
    """The pocket model in float32, in which no answer depends on the batch."""
    model = load_model("pocket", Settings(dtype="float32"))
    assert isinstance(model, LocalModel)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own model."""
    with serving(tmp_path_factory.mktemp("serve") / "lessons.db", exact(), queue=1000) as url:
        yield url


@pytest.fixture(scope="module")
def loaded() -> LocalModel:
    return exact()


@pytest.fixture
def local(loaded: LocalModel) -> Iterator[LocalModel]:
    yield loaded
    for name in list(loaded.adapters):
        loaded.drop_adapter(name)


@pytest.fixture
def wanted(base: str, tmp_path: Path) -> Settings:
    return Settings(db=str(tmp_path / "lessons.db"), sampler="openai:pocket", base_url=base)


def noisy(model: LocalModel, name: str, seed: int) -> None:
    """An adapter that changes the answers."""
    model.new_adapter(name, rank=4, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapter_parameters(name):
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)


def requests(n: int = 2, **more: object) -> list[Request]:
    messages = [[{"role": "user", "content": text}] for text in TEXTS]
    return [Request(m, tuple(range(n)), 10, **{"temperature": 1.0} | more) for m in messages]  # type: ignore[arg-type]


def test_answers_are_those_of_the_local_model(
    local: LocalModel, wanted: Settings, tmp_path: Path
) -> None:
    noisy(local, "a", 1)
    noisy(local, "b", 2)
    tools = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)
    cases = [
        requests(),
        requests(temperature=0.0, adapter=None),
        requests(stop=(" 3", "e")),
        requests(top_p=0.5, adapter="b"),
        requests(tools=tools, temperature=0.0),
        [replace(r, adapter=x) for r, x in zip(requests(), ("a", None, "b", "", "a"), strict=True)],
        [*requests(1, adapter="a"), *requests(1, adapter="a")],
        [replace(requests(1)[0], seeds=(7, 7, 2**62 + 5))],
        [],
    ]
    for active in (None, "b"):
        with local.using(active):
            ours = [local.sample(case) for case in cases]
            with sampling_by_server(local, wanted, tmp_path / "candidates") as why:
                assert why == ""
                served = [local.sample(case) for case in cases]
            assert served == ours
        cases = [requests(1), requests(1, adapter=None)]
    names = AdapterServer(wanted.base_url).names()
    assert names == {"pocket"} and not (tmp_path / "candidates").exists()


def test_each_state_of_an_adapter_has_a_name_of_its_own(
    local: LocalModel, wanted: Settings, tmp_path: Path
) -> None:
    noisy(local, "a", 1)
    server, ask = AdapterServer(wanted.base_url), requests(adapter="a", temperature=0.0)
    sampler = ServerSampler("openai:pocket", wanted, local, tmp_path / "candidates")
    sampler.check()
    seen: list[set[str]] = []
    states = []
    for step in range(4):
        if step < 2:
            with torch.no_grad():
                local.adapter_parameters("a")[1].add_(0.05)
        else:
            local.scale_adapter("a", 0.5 if step == 2 else 0.0)
        ours = local.sample(ask)
        assert sampler.sample(ask) == ours
        states.append(ours)
        seen.append(server.names() - {"pocket"})
        assert sampler.sample(ask) == ours and server.names() - {"pocket"} == seen[-1]
    assert [len(names) for names in seen] == [1, 2, 2, 2]
    assert len(set.union(*seen)) == 4 and states[0] != states[-1]
    assert all(name.startswith(sampler.prefix) for name in set.union(*seen))
    # Another process of the same home folder clears what a killed one left, and nothing of others.
    server.load(OTHER, tmp_path / "candidates" / max(seen[-1]))
    later = ServerSampler("openai:pocket", wanted, local, tmp_path / "candidates")
    later.check()
    assert server.names() == {"pocket", OTHER}
    server.unload(OTHER)


def test_an_error_ends_the_block_without_candidates(
    local: LocalModel, wanted: Settings, tmp_path: Path
) -> None:
    noisy(local, "a", 1)
    with pytest.raises(ContextTooLong), sampling_by_server(local, wanted, tmp_path / "c"):
        local.sample(requests(adapter="a"))
        assert len(AdapterServer(wanted.base_url).names()) == 2
        local.sample([Request([{"role": "user", "content": "hello " * 2000}])])
    assert AdapterServer(wanted.base_url).names() == {"pocket"}
    assert local.sampler is None


def test_the_night_samples_here_where_the_server_does_not_fit(
    local: LocalModel, wanted: Settings, tmp_path: Path
) -> None:
    def reason(**changes: str) -> str:
        with sampling_by_server(local, replace(wanted, **changes), tmp_path / "c") as why:
            assert local.sampler is None
            local.sample(requests(1)[:1])
        assert why.startswith(
            f"The night samples on this machine, not by {changes.get('sampler', wanted.sampler)}: "
        )
        return why

    assert "does not answer" in reason(base_url="http://127.0.0.1:9/v1")
    assert "has no model other" in reason(sampler="openai:other")
    with Server() as chat_only:  # no /v1/completions with token ids
        assert "no completion" in reason(base_url=chat_only.url, sampler="openai:m")
    tiny = load_model(str(save_tiny(tmp_path / "tiny")))
    assert isinstance(tiny, LocalModel)
    with serving(tmp_path / "other.db", tiny) as url:
        assert "Token ids are below 128" in reason(base_url=url, sampler="openai:tiny")
    with torch.no_grad():  # the same tokenizer, other weights
        weight = local.network.get_input_embeddings().weight
        before = weight.clone()
        weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert "it has other weights or another tokenizer" in reason()
    with torch.no_grad():
        weight.copy_(before)


def test_a_server_that_dies_halts_the_night_with_the_next_step(
    local: LocalModel, tmp_path: Path
) -> None:
    with serving(tmp_path / "serve.db", exact()) as url:
        settings = Settings(db=str(tmp_path / "l.db"), base_url=url, retries=0)
        sampler = ServerSampler("openai:pocket", settings, local, tmp_path / "c")
        sampler.check()
    with pytest.raises(ModelHalted, match="run the same command: the night continues"):
        sampler.sample(requests())


def test_prompts_in_token_ids(base: str, local: LocalModel) -> None:
    def ask(**fields: object) -> httpx2.Response:
        body = {"model": "pocket", "prompt": [4, 100, 2, 5], "temperature": 0.0} | fields
        return httpx2.post(f"{base}/completions", json=body, timeout=30)

    ids = local.encode([{"role": "user", "content": TEXTS[0]}])
    reply = ask(prompt=ids, n=2, max_tokens=5, return_token_ids=True).json()
    (done,) = local.sample([replace(requests(2, temperature=0.0)[0], max_tokens=5)])
    assert [x["text"] for x in reply["choices"]] == [x.text for x in done]
    assert [tuple(x["token_ids"]) for x in reply["choices"]] == [x.tokens for x in done]
    assert reply["usage"]["prompt_tokens"] == len(ids)
    text = local.chat.render([{"role": "user", "content": TEXTS[0]}])
    same = ask(prompt=text, max_tokens=5).json()["choices"]
    assert same[0]["text"] == done[0].text and "token_ids" not in same[0]
    for status, fields in (
        (404, {"model": "other"}),
        (400, {"prompt": [local.vocabulary]}),
        (400, {"prompt": [-1]}),
        (400, {"prompt": []}),
        (400, {"prompt": [[1, 2]]}),
        (400, {"prompt": [5] * 2000}),
        (400, {"stream": True}),
        (400, {"echo": True}),
        (400, {"logprobs": 3}),
        (400, {"max_tokens": 0}),
    ):
        assert ask(**fields).status_code == status, fields


@pytest.mark.slow
def test_a_night_sampled_by_a_server_resumes_and_leaves_no_candidate(
    base: str, local: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = NightOptions().changed(SMALL | {"budget": 0.1, "placebo": False})
    reports = {}
    left, inner = [10**6], ServerSampler.sample

    def sample(self: ServerSampler, asked: Sequence[Request]) -> list[list[Completion]]:
        left[-1] -= 1
        if left[-1] < 0:
            raise ModelHalted("The server is gone.")
        return inner(self, asked)

    monkeypatch.setattr(ServerSampler, "sample", sample)
    for name, url in (("local", ""), ("served", base), ("nowhere", "http://127.0.0.1:9/v1")):
        settings = Settings(db=str(tmp_path / name / "lessons.db"), base_url=url, retries=0)
        settings = replace(settings, sampler="openai:pocket" if url else "")
        (tmp_path / name).mkdir()
        store = Store(settings.db)
        teach(store)
        if name == "served":  # the server fails in the middle of the training and of the gate
            for calls in (12, 9):
                left.append(calls)
                with pytest.raises(ModelHalted, match="is gone"):
                    sleep(local, store, settings, options=options)
                assert AdapterServer(base).names() == {"pocket"} and local.sampler is None
            left.append(10**6)
        reports[name] = sleep(local, store, settings, options=options)
        store.close()
        local.use(None)
        for adapter in list(local.adapters):
            local.drop_adapter(adapter)
    assert len({report.status for report in reports.values()}) == 1, (
        "a plan so small may be rejected"
    )
    assert reports["served"].sampler == "" == reports["local"].sampler
    assert "The night samples on this machine" in reports["nowhere"].sampler
    assert AdapterServer(base).names() == {"pocket"}
    for stage in ("preflight", "harvest"):
        assert reports["served"].stages[stage] == reports["local"].stages[stage]
        assert reports["nowhere"].stages[stage] == reports["local"].stages[stage]
