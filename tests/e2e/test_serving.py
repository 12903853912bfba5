"""Promoted adapters on a server that speaks vLLM's calls: loaded under a name of their own, the
older one unloaded a version later, and never in the way of a promotion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import NAME, Server
from serving import serving
from test_workspace import make_adapter, ws  # noqa: F401  a workspace on a tiny model

import reflect
from reflect.adapters import registry
from reflect.cli import run_command
from reflect.errors import AdapterError, ModelError, UsageError
from reflect.models.adapter_server import AdapterServer
from reflect.models.local import LocalModel
from reflect.workspace.workspace import Workspace


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("REFLECT_API_KEY", "sk-sentinel-0123456789")
    with Server(keys=["sk-sentinel-0123456789"]) as server:
        yield server


@pytest.fixture
def pushing(ws: Workspace, server: Server) -> Workspace:  # noqa: F811
    """A workspace whose promotions go to the server."""
    return reflect.open(
        ws.settings.db, model=ws.settings.model, max_tokens=8, serve_url=server.root
    )


def versions(ws: Workspace, *names: str) -> None:  # noqa: F811
    for i, name in enumerate(names):
        make_adapter(
            ws, name, [ws.lessons.add(f"w{i} w{i + 1} w{i + 2}", f"say w{i}").id or 0], seed=i
        )


def held(server: Server) -> list[str]:
    return sorted(set(server.models or ()) - {NAME})


def test_each_promotion_is_loaded_and_the_older_one_goes_a_version_later(
    pushing: Workspace, server: Server
) -> None:
    versions(pushing, "one", "two", "three")
    row = pushing.promote("one")
    folder = str(registry.folder_of(row, pushing.settings).resolve())
    assert server.posts == [("/v1/load_lora_adapter", {"lora_name": "one", "lora_path": folder})]
    assert (Path(folder) / "adapter_config.json").is_file()
    pushing.promote("two")
    assert held(server) == ["one", "two"]
    pushing.promote("three")
    assert held(server) == ["three", "two"]
    assert [path.rsplit("/")[-1] for path, _ in server.posts] == [
        "load_lora_adapter",
        "load_lora_adapter",
        "load_lora_adapter",
        "unload_lora_adapter",
    ]
    assert not any("load_inplace" in body for _, body in server.posts) and not pushing.complaints

    pushing.rollback()
    assert held(server) == ["three", "two"], "what is under way on the one that was left goes on"
    pushing.rollback()
    assert held(server) == ["one", "two"]
    assert pushing.adapters.push().unloaded == ["two"], "by then it is one version later"
    before = len(server.posts)
    assert pushing.adapters.push().loaded == "" and len(server.posts) == before, (
        "the same again does nothing"
    )


def test_a_revoked_lessons_adapter_is_unloaded_at_once(pushing: Workspace, server: Server) -> None:
    versions(pushing, "one")
    pushing.promote("one")
    pushing.lessons.revoke(next(iter(pushing.lessons)).id or 0, reason="wrong")
    assert held(server) == []


def test_a_push_that_fails_undoes_nothing(
    pushing: Workspace,
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions(pushing, "one")
    monkeypatch.setenv("REFLECT_MODEL", pushing.settings.model)
    monkeypatch.setenv("REFLECT_SERVE_URL", server.url)
    server.loras = False
    assert run_command(["adapters", "promote", "one", "--json"]) == 0
    out, err = capsys.readouterr()
    assert '"one"' in out and "Warning: /v1/load_lora_adapter of http://127.0.0.1" in err
    assert "The promotion is saved. When the server works again: reflect adapters push" in err
    assert run_command(["adapters", "push"]) == 1
    server.loras = True
    assert run_command(["adapters", "push", "--json"]) == 0
    assert '"loaded": "one"' in capsys.readouterr().out and held(server) == ["one"]
    assert run_command(["adapters", "push"]) == 0
    monkeypatch.delenv("REFLECT_SERVE_URL")
    assert (
        run_command(["adapters", "push"]) == 2 and "serve_url is not set" in capsys.readouterr().err
    )


def test_what_can_be_wrong_with_a_server(pushing: Workspace, server: Server) -> None:
    versions(pushing, "one")
    pushing.promote("one")
    server.keys = ["another"]
    with pytest.raises(ModelError, match=r"failed \(401\): .*Incorrect API key provided: \[key\]"):
        pushing.adapters.push()
    nowhere = reflect.open(
        pushing.settings.db, model=pushing.settings.model, serve_url="http://127.0.0.1:9"
    )
    with pytest.raises(ModelError, match="does not answer: "):
        nowhere.adapters.push()
    with pytest.raises(UsageError, match="serve_url is no address"):
        reflect.open(
            pushing.settings.db, model=pushing.settings.model, serve_url="here"
        ).adapters.push()


def test_a_model_on_that_server_answers_with_the_promoted_adapter(
    pushing: Workspace, server: Server
) -> None:
    versions(pushing, "one")
    pushing.promote("one")
    remote = {"model": f"openai:{NAME}", "base_url": server.url, "max_tokens": 8}
    there = reflect.open(pushing.settings.db, **remote)
    report = there.run("my.jsonl", n=6, k=2, seed=3)
    asked = [body["model"] for body in server.asked]
    reviews = asked[12:]  # the bare base, with a repair turn each, as its answers are no edits
    assert asked[:12] == ["one"] * 12 and reviews == [NAME] * 2 * report.reflections
    with there.store.read() as s:
        from reflect.store import runs

        assert runs.get_run(s, report.run_id).adapter_id
    server.asked.clear()
    there.evaluate("my.jsonl", arms=["base", "adapter"], n=2)
    assert [body["model"] for body in server.asked] == [NAME, NAME, "one", "one"]

    del (server.models or {})["one"]
    with pytest.raises(
        AdapterError, match=r"answers with the adapter one, which .* does not have"
    ) as e:
        _ = reflect.open(pushing.settings.db, **remote).model
    assert "reflect adapters push" in e.value.hint
    assert reflect.open(pushing.settings.db, **remote, profile="another").model


def test_a_server_without_our_files_resolves_the_adapter_by_its_name(
    pushing: Workspace, server: Server, tmp_path: Path
) -> None:
    server.resolver, server.models = tmp_path / "resolver", {NAME: {"root": "org/base"}}
    there = reflect.open(
        pushing.settings.db,
        model=pushing.settings.model,
        serve_url=server.root,
        serve_adapters=str(server.resolver),
    )
    versions(there, "one", "two", "three")
    for name in ("one", "two", "three"):
        row = there.promote(name)
        weights = (server.resolver / name / "adapter_model.safetensors").read_bytes()
        assert (
            weights
            == (registry.folder_of(row, there.settings) / "adapter_model.safetensors").read_bytes()
        )
    assert not there.complaints and held(server) == ["three", "two"]
    assert sorted(path.name for path in server.resolver.iterdir()) == ["three", "two"]
    assert {path for path, _ in server.posts} == {"/v1/completions", "/v1/unload_lora_adapter"}
    # What is wrong is one sentence that says what to mount or to set.
    server.resolver = None
    server.models = {NAME: {}}
    with pytest.raises(ModelError, match="VLLM_LORA_RESOLVER_CACHE_DIR"):
        there.adapters.push()
    (tmp_path / "file").write_text("")
    nowhere = reflect.open(
        pushing.settings.db, model=pushing.settings.model, serve_url=server.root,
        serve_adapters=str(tmp_path / "file"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"\(serve_adapters\) cannot be written"):
        nowhere.adapters.push()


def test_a_server_that_cannot_read_the_folder_is_a_sentence_about_mounts(
    tmp_path: Path, tiny: LocalModel
) -> None:
    with serving(tmp_path / "other.db", tiny) as base:
        server = AdapterServer(base)
        with pytest.raises(ModelError, match=r"mount that folder there .* or set serve_adapters"):
            server.load("one", tmp_path / "not here")
