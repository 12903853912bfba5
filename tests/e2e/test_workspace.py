"""The Python interface: what the command line does, in a few lines; and what rollback owes to the
user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import save_tiny

import reflect
from reflect.adapters import registry
from reflect.errors import AdapterCorrupt, AdapterMismatch, Conflict, UnknownName, UsageError
from reflect.models.base import Request
from reflect.records import Adapter
from reflect.store import lessons, nights, runs
from reflect.types import OLD_ARMS, Arm, by_arm, with_old_arms
from reflect.workspace.workspace import Workspace

ASK = [Request([{"role": "user", "content": "w1 w2 w3"}], seeds=(0, 1), max_tokens=12)]


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace on a tiny random model, with a file of tasks in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"w1 w2 w{i}", "answer": "w9", "split": "practice" if i < 6 else "holdout"}
        for i in range(9)
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return reflect.open(
        tmp_path / "lessons.db", model=str(save_tiny(tmp_path / "tiny")), max_tokens=8
    )


def make_adapter(ws: Workspace, name: str, lesson_ids: list[int], seed: int = 1) -> Adapter:
    """An adapter of noise, published and recorded as a night leaves it: judged, not promoted
    yet."""
    import torch

    model = ws.model
    model.new_adapter(name, rank=4, alpha=8, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    for tensor in model.adapter_parameters(name):
        tensor.data = torch.randn(tensor.shape, generator=noise) * 0.2
    registry.publish(model, name, ws.settings, {})
    model.drop_adapter(name)
    with ws.store.write() as s:
        held = [[i, lessons.get(s, i).version] for i in lesson_ids]
        night = nights.start_night(s, key=name, profile="default", config={}, lessons=held)
        row = registry.row(model, name, ws.settings, night_id=night.id)
        row.gate = {"lessons": {str(i): {"verdict": "accept"} for i in lesson_ids}}
        adapter = nights.add_adapter(s, **row.model_dump(exclude={"id", "created"}))
        nights.finish_night(s, night.id, "promoted", adapter_id=adapter.id)
    return adapter


def prompt_text(ws: Workspace) -> bytes:
    return str(ws.prompt("my.jsonl")).encode()


def test_a_day_in_a_few_lines(ws: Workspace) -> None:
    ws.lessons.add("w1 w2", "say w9", scope="my.jsonl")
    report = ws.run("my.jsonl", n=6, k=2, seed=3)
    assert (report.n, report.rollouts, report.errors) == (6, 12, 0)
    arms = ws.evaluate("my.jsonl", arms=["base", "lessons"])
    assert arms["base"].n == 3 and arms["lessons"].lesson_tokens > 0
    assert ws.sleep(dry_run=True).status == "planned"
    assert ws.doctor() == []


def test_the_prompt_is_what_the_model_saw(ws: Workspace) -> None:
    ws.lessons.add("w1 w2", "say w9", scope="my.jsonl")
    task = ws.taskset("my.jsonl").tasks("practice")[0]
    report = ws.run("my.jsonl", n=6, k=1, learn=False)
    with ws.store.read() as s:
        (row,) = runs.rollouts(s, report.run_id, task.key)
    assert row.messages[:-1] == ws.prompt("my.jsonl", task.id).messages
    assert "say w9" in str(ws.prompt("my.jsonl", task.key))


def test_a_run_is_resumed_in_its_own_words(ws: Workspace) -> None:
    report = ws.run("my.jsonl", n=6, k=2, seed=3)
    with ws.store.write() as s:
        runs.get_run(s, report.run_id).status = "running"  # as if killed just before its end
    other = reflect.open(ws.settings.db, model="elsewhere", max_tokens=3, temperature=0.5)
    again = other.resume()
    assert (again.run_id, again.rollouts, again.rewards) == (report.run_id, 12, report.rewards)
    with pytest.raises(UsageError, match="No run is unfinished"):
        ws.resume()
    assert ws.resume(report.run_id).rollouts == 12


def test_a_persons_words_are_pinned_and_return_to_the_prompt(ws: Workspace) -> None:
    lesson = ws.lessons.add("w1 w2", "say w9")
    with pytest.raises(UsageError, match="says so already"):
        ws.lessons.add("W1 w2", "say w9")
    make_adapter(ws, "one", [lesson.id])
    ws.promote("one")
    assert ws.lessons.get(lesson.id).status == "distilled"
    edited = ws.lessons.edit(lesson.id, do="say w8")
    assert (edited.status, edited.pinned, edited.tokens) == ("active", True, lesson.tokens)
    with pytest.raises(Conflict, match="changed by somebody else"):
        ws.lessons.edit(lesson.id, do="say w7", expect_version=1)
    assert len(ws.lessons) == 1 and [x.do for x in ws.lessons] == ["say w8"]


def test_rollback_restores_the_prompt_byte_for_byte_and_the_previous_adapters_answers(
    ws: Workspace,
) -> None:
    first = ws.lessons.add("w1 w2", "say w9", scope="my.jsonl", pinned=False)
    second = ws.lessons.add("w2", "never w3", scope="my.jsonl")
    states = []

    def state() -> tuple:
        answers = [completion.tokens for completion in ws.model.sample(ASK)[0]]
        texts = [(x.id, x.when, x.do, x.status, x.pinned, x.tags, x.tokens) for x in ws.lessons]
        return prompt_text(ws), answers, ws.model.active, texts

    states.append(state())
    for name, held in (("one", [first.id]), ("two", [first.id, second.id])):
        make_adapter(ws, name, held, seed=len(states))
        ws.promote(name)
        states.append(state())
    assert (
        len({prompt for prompt, *_ in states}) == 3
        and len({str(answers) for _, answers, *_ in states}) == 3
    )

    left, now = ws.rollback()
    assert (left.name, now.name if now else None, state()) == ("two", "one", states[1])
    left, now = ws.rollback()
    assert (left.name, now, state()) == ("one", None, states[0])
    assert ws.doctor() == []
    with pytest.raises(UsageError, match="nothing to roll back"):
        ws.rollback()

    # the same from a process that was not there, and forward again
    other = reflect.open(ws.settings.db, model=ws.settings.model)
    other.promote("one")
    fresh = reflect.open(ws.settings.db, model=ws.settings.model)
    assert [x.tokens for x in fresh.model.sample(ASK)[0]] == states[1][1] and prompt_text(
        fresh
    ) == states[1][0]


def test_a_damaged_or_foreign_adapter_is_never_used(ws: Workspace, tmp_path: Path) -> None:
    adapter = make_adapter(ws, "one", [ws.lessons.add("w1 w2", "say w9").id])
    ws.promote("one")
    other = reflect.open(ws.settings.db, model=str(save_tiny(tmp_path / "other", seed=7)))
    with pytest.raises(AdapterMismatch, match="another base"):
        _ = other.model
    weights = registry.folder_of(adapter, ws.settings) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterCorrupt, match="differs from its manifest"):
        _ = reflect.open(ws.settings.db, model=ws.settings.model).model
    assert "damaged" in ws.adapters.verify()["one"] and "damaged" in ws.doctor()[0]
    fresh = reflect.open(ws.settings.db, model=ws.settings.model)
    fresh.rollback()  # the way out that the error names
    assert fresh.model.active is None


def test_old_names_of_arms_work_until_0_2(ws: Workspace) -> None:
    ws.lessons.add("one", "answer: 1")
    for old, new in OLD_ARMS.items():
        before, now = (ws.arm("my.jsonl", name) for name in (old, new))
        assert before == now and (now.lesson_tokens > 0) == new.has_lessons
    stored = with_old_arms(dict.fromkeys(Arm, 1))
    assert list(stored) == [*Arm, *OLD_ARMS] and by_arm(stored) == dict.fromkeys(Arm, 1)
    assert by_arm({old: old for old in OLD_ARMS}) == {new: old for old, new in OLD_ARMS.items()}


def test_unknown_names_say_what_there_is(ws: Workspace) -> None:
    with pytest.raises(UnknownName, match="no task 'x'"):
        ws.prompt("my.jsonl", "x")
    with pytest.raises(UnknownName, match="no arm"):
        ws.arm("my.jsonl", "sideways")
    with pytest.raises(UsageError, match="unknown setting"):
        reflect.open(colour="red")
