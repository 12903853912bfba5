"""Profiles share a base and a database and nothing else; their adapters answer side by side in one
call."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny

import reflect
from reflect.adapters import activation, registry
from reflect.cli import run_command
from reflect.errors import AdapterError, UnknownName, UsageError
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.records import Adapter
from reflect.store import Store, lessons, nights, profiles
from reflect.training import lesson_set
from reflect.workspace.workspace import Workspace


def ask(*words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(f"w{i}" for i in words)}]


REQUESTS = [
    Request(ask(1, 2, 3), seeds=(1, 2, 3, 4, 5), max_tokens=24),
    Request(ask(*range(20)), seeds=(1, 9), max_tokens=7, temperature=0.5),
    Request(ask(7), seeds=(3,), max_tokens=16, temperature=0.0),
    Request(ask(5, 5), seeds=(), max_tokens=5),
]


def wake(model: LocalModel, name: str, seed: int) -> None:
    """Give a fresh adapter weights that change the answers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters(name):
        parameter.data.normal_(std=0.3, generator=generator)


# -- adapters side by side
# ---------------------------------------------------------------------------------------------


def test_requests_of_one_call_may_ask_for_different_adapters(tiny: LocalModel) -> None:
    alone: dict[str | None, Any] = {None: tiny.sample(REQUESTS)}
    for seed, name in enumerate(("one", "two")):
        tiny.new_adapter(name, rank=4 * (seed + 1))
        wake(tiny, name, seed)
        with tiny.using(name):
            alone[name] = tiny.sample(REQUESTS)
    assert len({str(answers) for answers in alone.values()}) == 3, (
        "the adapters must differ for this to show anything"
    )
    mixed = [
        dataclasses.replace(request, adapter=name)
        for request in REQUESTS
        for name in ("two", None, "one")
    ]
    expected = [alone[name][i] for i in range(len(REQUESTS)) for name in ("two", None, "one")]
    for active in (None, "one", "two"):
        tiny.use(active)
        assert tiny.sample(mixed) == expected
        assert tiny.active == active, "the call must leave the model as it was"
        assert tiny.sample(REQUESTS) == alone[active], "without a word it is the adapter that is on"


def test_an_adapter_that_is_not_loaded_is_named_and_nothing_is_sampled(tiny: LocalModel) -> None:
    with pytest.raises(UnknownName, match="No adapter 'gone'"):
        tiny.sample([*REQUESTS, dataclasses.replace(REQUESTS[0], adapter="gone")])
    assert tiny.active is None and tiny.sample(REQUESTS[:1])


def test_a_clone_says_the_same_and_learns_on_its_own(tiny: LocalModel) -> None:
    tiny.new_adapter("one", rank=4, alpha=16)
    wake(tiny, "one", 1)
    tiny.scale_adapter("one", 0.5)
    with tiny.using("one"):
        before = tiny.sample(REQUESTS)
    tiny.clone_adapter("one", "two")
    assert tiny.active is None
    with tiny.using("two"):
        assert tiny.sample(REQUESTS) == before
    assert [p.shape for p in tiny.adapter_parameters("two")] == [
        p.shape for p in tiny.adapter_parameters("one")
    ]
    assert all(p.requires_grad for p in tiny.adapter_parameters("two"))
    wake(tiny, "two", 2)
    with tiny.using("two"):
        assert tiny.sample(REQUESTS) != before
    with tiny.using("one"):
        assert tiny.sample(REQUESTS) == before, "the first must not change with its clone"
    with pytest.raises(AdapterError, match="already loaded"):
        tiny.clone_adapter("one", "two")
    with pytest.raises(UnknownName):
        tiny.clone_adapter("gone", "three")


# -- apart
# -------------------------------------------------------------------------------------------------------------


def publish(ws: Workspace, name: str, lesson_ids: list[int], seed: int) -> Adapter:
    """An adapter of noise of the workspace's profile, as a night leaves it."""
    model: Any = ws.model
    model.new_adapter(name, rank=4, alpha=8, seed=seed)
    wake(model, name, seed)
    registry.publish(model, name, ws.settings, {})
    model.drop_adapter(name)
    with ws.store.write() as s:
        held = [[i, lessons.get(s, i).version] for i in lesson_ids]
        night = nights.start_night(
            s, key=name, profile=ws.settings.profile, config={}, lessons=held
        )
        row = registry.row(model, name, ws.settings, night_id=night.id)
        adapter = nights.add_adapter(s, **row.model_dump(exclude={"id", "created"}))
        nights.finish_night(s, night.id, "promoted", adapter_id=adapter.id)
    return adapter


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workspace, Workspace]:
    """Two profiles over one database and one tiny base, each with a lesson under the same
    condition."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"w1 w2 w{i}", "answer": "w9", "split": "practice" if i < 6 else "holdout"}
        for i in range(9)
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = str(save_tiny(tmp_path / "tiny"))
    ann, ben = (
        reflect.open(tmp_path / "lessons.db", model=folder, max_tokens=8, profile=x)
        for x in ("ann", "ben")
    )
    ann.lessons.add("w1 w2", "say w9", scope="my.jsonl")
    ben.lessons.add("w1 w2", "say w8", scope="my.jsonl")
    return ann, ben


def test_a_lesson_of_one_profile_is_nowhere_in_the_other(two: tuple[Workspace, Workspace]) -> None:
    for mine, do, other in ((two[0], "say w9", "say w8"), (two[1], "say w8", "say w9")):
        prompt, export = str(mine.prompt("my.jsonl")), mine.lessons.export()
        assert do in prompt and other not in prompt
        assert do in export and other not in export
        assert (
            [x.do for x in mine.lessons]
            == [do]
            == [x.do for x, _ in mine.lessons.search("w1 w2 say w9 w8")]
        )
        assert [x.do for x in lesson_set.pick(mine.store, mine.settings.profile)] == [do]
        report = mine.sleep(dry_run=True)
        assert report.status == "planned" and report.lessons == [x.id for x in mine.lessons]
        mine.run("my.jsonl", n=3, k=2, learn=False)
    with two[0].store.read() as s:
        from reflect.store import runs

        for run in runs.list_runs(s):
            own, foreign = ("say w9", "say w8") if run.profile == "ann" else ("say w8", "say w9")
            texts = [str(row.messages) for row in runs.rollouts(s, run.id)]
            assert any(own in text for text in texts) and not any(foreign in text for text in texts)


def test_promoting_in_one_profile_does_not_change_the_other(
    two: tuple[Workspace, Workspace],
) -> None:
    ann, ben = two
    requests = [Request(ask(1, 2, 3), seeds=(0, 1, 2), max_tokens=12)]
    before = (
        ben.model.sample(requests),
        str(ben.prompt("my.jsonl")),
        [lessons.content(x) for x in ben.lessons],
    )
    publish(ann, "anns", [1], seed=1)
    with pytest.raises(UsageError, match="belongs to the profile ann"):
        ben.promote("anns")
    ann.promote("anns")
    assert [x.status for x in ann.lessons] == ["distilled"] and ann.model.sample(
        requests
    ) != before[0]
    fresh = reflect.open(ben.settings.db, model=ben.settings.model, max_tokens=8, profile="ben")
    for other in (ben, fresh):
        after = (
            other.model.sample(requests),
            str(other.prompt("my.jsonl")),
            [lessons.content(x) for x in other.lessons],
        )
        assert after == before
    ann.lessons.revoke(1)
    assert [x.status for x in ben.lessons] == ["active"] and ann.doctor() == []


def test_one_model_answers_for_both(two: tuple[Workspace, Workspace]) -> None:
    ann, _ben = two
    request = Request(ask(1, 2, 3), seeds=(0, 1, 2), max_tokens=12)
    alone = []
    for seed, ws in enumerate(two):
        publish(ws, f"{ws.settings.profile}s", [x.id or 0 for x in ws.lessons], seed)
        ws.promote(f"{ws.settings.profile}s")
        alone += ws.model.sample([request])
    assert alone[0] != alone[1]
    model: Any = reflect.open(ann.settings.db, model=ann.settings.model, profile="nobody").model
    names = []
    for profile in ("ann", "ben", "nobody"):
        result = activation.load_active(
            model, ann.store, dataclasses.replace(ann.settings, profile=profile)
        )
        names.append(result.name if result else None)
    assert names == ["anns", "bens", None] and model.active is None
    model.use("anns")
    activation.load_active(model, ann.store, ann.settings)
    assert model.active == "anns", "what is on stays on, read anew or not"
    model.use(None)
    requests = [dataclasses.replace(request, adapter=name) for name in names]
    assert model.sample(requests) == [*alone, *model.sample([request])]


# -- the list
# ----------------------------------------------------------------------------------------------------------


def test_profiles_at_a_glance(store: Store) -> None:
    with store.write() as s:
        assert profiles.listing(s) == []
        for profile, n in (("team", 2), ("default", 1)):
            ids = [
                lessons.add(s, when=f"case {i}", do="x", author="human", profile=profile).id or 0
                for i in range(n)
            ]
            night = nights.start_night(
                s, key=profile, profile=profile, config={}, lessons=[[i, 1] for i in ids]
            )
            row = nights.add_adapter(
                s,
                name=profile,
                path="p",
                manifest={},
                base_model="m",
                base_fingerprint="f",
                night_id=night.id,
            )
            if profile == "team":
                nights.promote(s, row.id, "team", ids[:1])
        nights.finish_night(
            s, nights.start_night(s, key="k", profile="team", config={}, lessons=[]).id, "nothing"
        )
        first, second = profiles.listing(s)
        assert (first.name, first.lessons, first.active) == ("default", {"candidate": 1}, None)
        assert (second.name, second.lessons) == ("team", {"distilled": 1, "candidate": 1})
        assert second.active.name == "team" and second.last_night.status == "nothing"


def test_the_command_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = str(tmp_path / "lessons.db")
    assert (
        run_command(["profiles", "--db", db, "--json"]) == 0
        and json.loads(capsys.readouterr().out) == []
    )
    with Store(db).write() as s:
        lessons.add(s, when="x", do="y", author="human", status="active", profile="team")
    assert run_command(["profiles", "list", "--db", db, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["profile"], row["active"], row["last_night"], row["lessons"]["active"]) == (
        "team",
        None,
        None,
        1,
    )
    assert run_command(["profiles", "--db", db]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "team",
        "1",
        "0",
        "0",
        "0",
        "0",
        "-",
        "-",
    ]
