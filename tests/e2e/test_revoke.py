"""A revoked lesson leaves prompts and weights at once, comes back by undo, and the next gate asks
if it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import RuleModel
from sqlmodel import Session
from test_workspace import ASK, make_adapter, ws  # noqa: F401  (ws is a fixture)

import reflect
from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import UnknownName, UsageError
from reflect.gate import forgetting
from reflect.night.sleep import NightOutcome, RunningNight, end
from reflect.night.workdir import NightDir
from reflect.records import Adapter
from reflect.store import Store, doctor, lessons, nights, revoked_adapters
from reflect.tasksets import load_taskset
from reflect.training.context import NightContext, TasksetLessons
from reflect.training.plan import make_plan
from reflect.types import NightStatus
from reflect.workspace.workspace import Workspace


def asked(model, name, store, subjects, settings, plan):
    """The gate's checks of revoked lessons: the base is asked once, then the adapter."""
    ctx = NightContext(model, store, settings, plan, subjects)
    return [forgetting.check(ctx, name, one) for one in forgetting.probes_of(ctx)]


def teach(s: Session, *does: str, **more: Any) -> list[int]:
    return [lessons.add(s, when=f"case {do}", do=do, author="model", **more).id or 0 for do in does]


def slept(s: Session, name: str, ids: list[int], profile: str = "default") -> Adapter:
    """A night over these lessons as they stand, and its adapter."""
    pairs = [[i, lessons.get(s, i).version] for i in ids]
    night = nights.start_night(s, key=name, profile=profile, config={}, lessons=pairs)
    return nights.add_adapter(
        s,
        name=name,
        path=name,
        manifest={"w": name},
        base_model="pocket",
        base_fingerprint="f",
        night_id=night.id,
    )


def wake(s: Session, name: str, ids: list[int], profile: str = "default") -> None:
    nights.promote(s, slept(s, name, ids, profile).id, profile)


def active(s: Session, profile: str = "default") -> str | None:
    result = nights.active_adapter(s, profile)
    return result.name if result else None


def statuses(s: Session, profile: str = "default") -> list[str]:
    return [lesson.status for lesson in lessons.listing(s, profile)]


def marked(s: Session) -> dict[str, list[int]]:
    return {adapter.name: adapter.revoked for adapter in nights.list_adapters(s) if adapter.revoked}


# -- the fallback
# ------------------------------------------------------------------------------------------------------


def test_revoking_falls_back_to_the_newest_adapter_without_it(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b", "c")
        wake(s, "one", [1])
        before = [lessons.content(lesson) for lesson in lessons.listing(s)]
        wake(s, "two", [1, 2])
        wake(s, "three", [1, 2, 3])
    with store.write() as s:
        done = nights.revoke(s, 2, "it was wrong")
        assert (done.left.name, done.now.name) == ("three", "one")
        assert [row.id for row in done.returned] == [3] and [a.name for a in done.marked] == [
            "two",
            "three",
        ]
    with store.read() as s:
        assert active(s) == "one" and marked(s) == {"two": [2], "three": [2]}
        assert statuses(s) == ["distilled", "retired", "candidate"]
        assert [lessons.content(lessons.get(s, i)) for i in (1, 3)] == [before[0], before[2]], (
            "as a rollback does it"
        )
        last = lessons.history(s, 2)[-1]
        assert (last.author, last.reason, last.pinned) == ("human", "it was wrong", True)
    assert doctor.check(store) == []
    for name in ("two", "three"):
        with (
            pytest.raises(UsageError, match="revoked or retired: lesson 2") as caught,
            store.write() as s,
        ):
            nights.promote(s, name)
        assert "reflect sleep" in caught.value.hint


def test_without_such_an_adapter_it_is_the_bare_base_and_the_others_are_text_again(
    store: Store,
) -> None:
    with store.write() as s:
        teach(s, "a", "b", "c")
        wake(s, "one", [1, 2])
        wake(s, "two", [1, 2, 3])
        done = nights.revoke(s, 1)
        assert (active(s), [row.id for row in done.returned]) == (None, [2, 3])
        assert statuses(s) == ["retired", "candidate", "candidate"]
        assert {a.status for a in nights.list_adapters(s)} == {"rolled_back"}
        with pytest.raises(UsageError, match="nothing to roll back"):
            nights.rollback(s)
    assert doctor.check(store) == []


def test_what_the_active_adapter_does_not_hold_costs_nothing(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b")
        wake(s, "one", [1])
        wake(s, "two", [2])  # the first is text again
        done = nights.revoke(s, 1)
        assert (done.left, done.now.name, done.returned) == (None, "two", [])
        assert marked(s) == {"one": [1]} and statuses(s) == ["retired", "distilled"]
        assert nights.rollback(s).now is None, "a rollback passes the marked adapter by"
        assert statuses(s) == ["retired", "candidate"]
        assert nights.revoke(s, 2).left is None
        with pytest.raises(UnknownName):
            nights.revoke(s, 9)
    assert doctor.check(store) == []


def test_undo_brings_back_the_text_and_lifts_the_marks(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b")
        wake(s, "one", [1, 2])
        nights.revoke(s, 1)
        back = lessons.undo(s, 1)
        assert (back.status, back.pinned, marked(s)) == ("active", False, {})
        assert lessons.undo(s, 1).status == "retired" and marked(s) == {"one": [1]}, (
            "undo of undo does it again"
        )
        lessons.revise(s, 1, author="human", status="active")
        assert marked(s) == {}
        nights.promote(s, "one")
        assert active(s) == "one" and statuses(s) == ["distilled", "distilled"]
    assert doctor.check(store) == []


def test_a_retired_lesson_marks_the_adapter_which_stays_until_the_next_night(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b")
        wake(s, "one", [1, 2])
        lessons.revise(s, 1, author="human", status="retired")
        assert (active(s), marked(s)) == ("one", {"one": [1]})
        with pytest.raises(UsageError, match="lesson 1"):
            nights.promote(s, "one")
        assert lessons.undo(s, 1).status == "distilled" and marked(s) == {}
        lessons.revise(s, 1, author="human", status="retired")
        assert nights.revoke(s, 1).left.name == "one", "a retired one can still be revoked"
        assert statuses(s) == ["retired", "candidate"]


def test_only_a_person_takes_a_text_lesson_out_of_old_weights(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b")
        wake(s, "one", [1, 2])
        nights.rollback(s)
        lessons.revise(s, 1, author="trial", status="retired")
        assert marked(s) == {}
        lessons.revise(s, 2, author="human", status="retired")
        assert marked(s) == {"one": [2]}


def test_a_lesson_that_was_taught_and_not_kept_is_known_all_the_same(store: Store) -> None:
    with store.write() as s:
        teach(s, "a", "b", "c")
        adapter = slept(s, "one", [1, 2, 3])
        nights.save_stage(s, adapter.night_id, "preflight", {"worth": [1, 2]})
        kept = {"1": {"verdict": "accept"}, "2": {"verdict": "reject"}}
        nights.set_adapter(s, adapter.id, gate={"lessons": kept})
        nights.promote(s, adapter.id, lesson_ids=[1])
        assert revoked_adapters.held_by(s, adapter) == {1, 2} and revoked_adapters.still_holds(
            adapter, nights.get_night(s, 1)
        ) == [1]
        assert nights.revoke(s, 3).left is None, "it was not worth sleeping, so no weights know it"
        assert nights.revoke(s, 2).left.name == "one"


def test_another_profile_is_not_touched(store: Store) -> None:
    with store.write() as s:
        teach(s, "a")
        theirs = teach(s, "a", profile="team")
        wake(s, "mine", [1])
        wake(s, "theirs", theirs, "team")
        nights.revoke(s, theirs[0])
        assert (active(s), active(s, "team")) == ("mine", None)
        assert (statuses(s), statuses(s, "team"), marked(s)) == (
            ["distilled"],
            ["retired"],
            {"theirs": theirs},
        )


# -- a night that was on meanwhile
# -------------------------------------------------------------------------------------


def test_what_a_night_made_of_a_lesson_revoked_meanwhile_is_not_promoted(tmp_path: Path) -> None:
    settings = Settings(db=str(tmp_path / "lessons.db"))
    store = Store(settings.db)
    with store.write() as s:
        ids = teach(s, "a", "b")
        night = nights.start_night(
            s, key="k", profile="default", config={}, lessons=[[i, 1] for i in ids]
        )
        nights.save_stage(s, night.id, "preflight", {"worth": ids})
    with store.write() as s:
        nights.revoke(s, 1)
    kept = {"verdict": "accept", "mean": 1, "low": 1, "high": 1, "n": 9}
    verdict = {"ok": True, "reasons": [], "lessons": {str(i): kept for i in ids}}
    adapter = Adapter(
        name="n", path="n", manifest={}, base_model="m", base_fingerprint="f", night_id=night.id
    )
    result = {"model_fingerprint": "f", "lessons": {}}
    work = NightDir(settings, "k")
    running = RunningNight(None, store, settings, None, [], night=night, work=work)  # type: ignore[arg-type]
    end(running, NightOutcome(NightStatus.PROMOTED, result, "", verdict, adapter))
    with store.read() as s:
        assert (active(s), nights.get_night(s, 1).status) == (None, "rejected")
        assert (
            "lesson 1" in nights.get_night(s, 1).reason
            and nights.get_adapter(s, "n").status == "rejected"
        )
        assert statuses(s) == ["retired", "candidate"]


def test_when_nothing_is_left_to_sleep_the_base_is_bare(ws: Workspace) -> None:  # noqa: F811
    lesson = ws.lessons.add("w1 w2", "say w9")
    make_adapter(ws, "one", [lesson.id])
    bare = ws.model.sample(ASK)
    ws.promote("one")
    ws.lessons.retire(lesson.id)
    assert (
        ws.model.active == "one"
        and ws.sleep(dry_run=True).status == "nothing"
        and ws.model.active == "one"
    )
    assert ws.sleep().status == "nothing"
    assert ws.model.active is None and ws.model.sample(ASK) == bare
    assert run_command(["sleep", "--db", ws.settings.db, "--model", ws.settings.model]) == 0
    assert ws.doctor() == []


# -- the command
# -------------------------------------------------------------------------------------------------------


def test_a_loaded_model_follows(ws: Workspace) -> None:  # noqa: F811
    first, second = (ws.lessons.add(when, "say w9") for when in ("w1 w2", "w2"))
    bare = ws.model.sample(ASK)
    for name, ids in (("one", [first.id]), ("two", [first.id, second.id])):
        make_adapter(ws, name, ids, seed=len(ids))
        ws.promote(name)
    done = ws.lessons.revoke(second.id, reason="no more")
    assert (ws.model.active, done.now.name) == ("one", "one")
    ws.lessons.revoke(first.id)
    assert ws.model.active is None and ws.model.sample(ASK) == bare
    fresh = reflect.open(ws.settings.db, model=ws.settings.model)
    with pytest.raises(UsageError, match="revoked"):
        fresh.promote("two")
    assert not fresh.context.model_is_loaded, "it is refused before the model is loaded"


def test_the_command_loads_no_torch_and_tells_what_it_did(tmp_path: Path) -> None:
    db = str(tmp_path / "lessons.db")
    with Store(db).write() as s:
        teach(s, "a", "b")
        wake(s, "one", [1, 2])
    words = ["lessons", "revoke", "1", "--why", "it was wrong", "--db", db, "--json"]
    code = f"import sys; from reflect.cli import run_command; code = run_command({words}); assert code == 0, code\n"
    code += "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    here = Path(reflect.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["id"], result["status"], result["left"], result["active"]) == (
        1,
        "retired",
        "one",
        None,
    )
    assert (result["marked"], result["returned"]) == (["one"], [2])
    assert "Left one. Active: the bare base." in done.stderr


def test_retire_says_that_the_weights_still_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = str(tmp_path / "lessons.db")
    with Store(db).write() as s:
        teach(s, "a")
        wake(s, "one", [1])
    assert run_command(["lessons", "retire", "1", "--db", db]) == 0
    assert (
        "weights still know 1 until the next night. At once: reflect lessons revoke 1"
        in capsys.readouterr().err
    )
    assert run_command(["adapters", "list", "--db", db, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["lessons"], row["revoked"], row["active"], row["profile"]) == (
        [1],
        [1],
        True,
        "default",
    )
    assert run_command(["adapters", "show", "one", "--db", db]) == 0
    assert "lesson 1 (version 1, REVOKED): when: case a do: a" in capsys.readouterr().out
    assert run_command(["adapters", "promote", "one", "--db", db]) == 2


# -- the proof
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def revoked_one(tmp_path: Path) -> tuple[Store, Settings, list[TasksetLessons]]:
    """Two dialect lessons were slept and the first is revoked; the night to come is over the
    second."""
    settings = Settings(db=str(tmp_path / "lessons.db"))
    store, taskset = Store(settings.db), load_taskset("dialect")
    with store.write() as s:
        for verb, op in list(taskset.meanings.items())[:2]:
            lessons.add(
                s, when=f"the task says {verb}", do=f"use {op}", author="human", scope="dialect"
            )
        wake(s, "one", [1, 2])
        nights.revoke(s, 1)
        current = lessons.get(s, 2)
    return store, settings, [TasksetLessons(taskset, (current,))]


def knowing(*verbs: int) -> RuleModel:
    """A model whose adapter `new` knows what these verbs of the dialect mean."""
    meanings = list(load_taskset("dialect").meanings.items())
    model = RuleModel()
    model.weights["new"] = dict(meanings[i] for i in verbs)
    return model


def test_the_gate_asks_whether_it_is_gone(
    revoked_one: tuple[Store, Settings, list[TasksetLessons]],
) -> None:
    store, settings, subjects = revoked_one
    plan = make_plan(1, gate_tasks=24)
    (clean,) = asked(knowing(1), "new", store, subjects, settings, plan)
    assert (
        clean.ok
        and clean.name == "revoked lesson 1"
        and clean.value == 0
        and "24 tasks" in clean.text
    )
    (leaking,) = asked(knowing(0, 1), "new", store, subjects, settings, plan)
    assert not leaking.ok and leaking.value > 0.4 and leaking.kind == "proof"
    with store.write() as s:
        lessons.undo(s, 1)
    assert asked(knowing(0, 1), "new", store, subjects, settings, plan) == []


def test_what_another_lesson_teaches_is_no_trace_of_the_revoked_one(
    revoked_one: tuple[Store, Settings, list[TasksetLessons]],
) -> None:
    store, settings, _ = revoked_one
    with store.write() as s:
        gone = lessons.get(s, 1)
        again = lessons.add(s, when=gone.when, do=f"{gone.do}!", author="human", scope="dialect")
    subjects = [TasksetLessons(load_taskset("dialect"), (again,))]
    (check,) = asked(knowing(0), "new", store, subjects, settings, make_plan(1, gate_tasks=12))
    assert check.ok and "the base with the other lessons 1.00, the adapter 1.00" in check.text


def test_where_nothing_can_be_shown_the_gate_says_so(
    revoked_one: tuple[Store, Settings, list[TasksetLessons]],
) -> None:
    store, settings, subjects = revoked_one
    with store.write() as s:
        lessons.revise(s, 1, author="human", scope="a taskset that is gone")
    (check,) = asked(knowing(0), "new", store, subjects, settings, make_plan(1))
    assert check.ok and "no holdout task is left" in check.text
