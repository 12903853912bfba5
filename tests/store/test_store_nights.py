"""Promotion and rollback move the adapter and the statuses of its lessons together, and back
exactly."""

from __future__ import annotations

import pytest
from sqlmodel import Session

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import Adapter, Trial
from reflect.store import Store, doctor, lessons, nights


def teach(s: Session, *does: str, **more) -> list[int]:
    return [
        lessons.add(s, when=f"case {do}", do=do, author="model", tags=["t"], tokens=5, **more).id
        or 0
        for do in does
    ]


def sleep(s: Session, name: str, ids: list[int], profile: str = "default") -> Adapter:
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


def contents(s: Session) -> list[dict]:
    return [lessons.content(lesson) for lesson in lessons.listing(s)]


def statuses(s: Session) -> list[str]:
    return [lesson.status for lesson in lessons.listing(s)]


# -- nights and adapters
# -----------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_night_and_stages_add_up(store: Store):
    with store.write() as s:
        night = nights.start_night(s, key="k", profile="default", config={"rank": 8}, lessons=[])
        nights.save_stage(s, night.id, "harvest", {"kept": 3})
        nights.save_stage(s, night.id, "train", {"loss": float("nan")})
    with store.write() as s:
        again = nights.start_night(s, key="k", profile="default", config={}, lessons=[(1, 1)])
        assert (again.id, again.config, list(again.stages)) == (
            1,
            {"rank": 8},
            ["harvest", "train"],
        )
        nights.finish_night(s, 1, "failed", "the loss is not a number")
        assert (
            nights.start_night(s, key="k", profile="default", config={}, lessons=[]).status
            == "running"
        )
        done = nights.finish_night(s, 1, "nothing", "no headroom")
        assert (
            nights.start_night(s, key="k", profile="default", config={}, lessons=[]).status
            == "nothing"
        )
        assert done.ended is not None and [n.id for n in nights.list_nights(s)] == [1]
        assert nights.find_night(s, "k").id == 1 and nights.find_night(s, "other") is None
        with pytest.raises(UnknownName, match="no night 2"):
            nights.get_night(s, 2)
        with pytest.raises(ValueError, match="not as 'running'"):
            nights.finish_night(s, 1, "running")


def test_an_adapter_never_changes(store: Store):
    with store.write() as s:
        first = sleep(s, "a", [])
        assert sleep(s, "a", []).id == first.id
        with pytest.raises(Conflict, match="another adapter"):
            nights.add_adapter(
                s,
                name="a",
                path="a",
                manifest={"w": "x"},
                base_model="pocket",
                base_fingerprint="f",
            )
        assert (
            nights.get_adapter(s, "a").id
            == nights.get_adapter(s, 1).id
            == nights.get_adapter(s, "1").id
            == 1
        )
        assert [x.name for x in nights.list_adapters(s)] == ["a"]
        assert nights.set_adapter(s, 1, status="rejected", gate={"ok": False}).gate == {"ok": False}
        for name in ("b", 2, None):
            with pytest.raises(UnknownName, match=f"no adapter {name}"):
                nights.get_adapter(s, name)


def test_trials_are_kept_per_lesson(store: Store):
    with store.write() as s:
        for i in teach(s, "x", "y"):
            nights.add_trial(
                s,
                Trial(
                    lesson_id=i,
                    version=1,
                    kind="preflight",
                    effect=0,
                    low=-1,
                    high=1,
                    n=3,
                    verdict="undecided",
                ),
            )
        assert len(nights.trials(s)) == 2 and [t.lesson_id for t in nights.trials(s, 2)] == [2]


# -- promotion and rollback
# --------------------------------------------------------------------------------------------


def test_rollback_restores_every_lesson_exactly(store: Store):
    with store.write() as s:
        ids = teach(s, "a", "b", "c")
        lessons.revise(
            s, 2, author="human", status="active", pinned=True, tags=["ä"], scope="letters"
        )
        before, prompt = (
            contents(s),
            [(x.when, x.do) for x in lessons.listing(s, status=("candidate", "active"))],
        )
        adapter = sleep(s, "one", ids[:2])
    with store.write() as s:
        assert [x.id for x in nights.promote(s, adapter.id)] == [1, 2]
        assert statuses(s) == ["distilled", "distilled", "candidate"]
        assert (
            nights.active_adapter(s).name == "one" and nights.get_adapter(s, 1).status == "promoted"
        )
        assert [v.author for v in lessons.versions_of_night(s, adapter.night_id)] == [
            "night",
            "night",
        ]
    assert doctor.check(store) == []
    with store.write() as s:
        left, now = nights.rollback(s)
        assert (left.name, left.status, now) == ("one", "rolled_back", None)
        assert contents(s) == before
        assert [
            (x.when, x.do) for x in lessons.listing(s, status=("candidate", "active"))
        ] == prompt
        assert [v.author for v in lessons.history(s, 1)] == ["model", "night", "rollback"]
        with pytest.raises(UsageError, match="nothing to roll back"):
            nights.rollback(s)
    assert doctor.check(store) == []


def test_adapters_stack_and_each_rollback_takes_one_off(store: Store):
    with store.write() as s:
        teach(s, "a", "b", "c")
        states = [contents(s)]
        for name, ids in (("one", [1]), ("two", [1, 2]), ("three", [2, 3])):
            nights.promote(s, sleep(s, name, ids).id)
            states.append(contents(s))
        assert statuses(s) == ["active", "distilled", "distilled"], (
            "what the third does not hold is in the prompt again"
        )
        assert nights.get_adapter(s, "three").replaced == 2
        for name, state in (("two", states[2]), ("one", states[1]), (None, states[0])):
            now = nights.rollback(s).now
            assert (now.name if now else None) == name and contents(s) == state


def test_promoting_one_from_below_steps_back_to_it(store: Store):
    with store.write() as s:
        teach(s, "a", "b")
        nights.promote(s, sleep(s, "one", [1]).id)
        state = contents(s)
        nights.promote(s, sleep(s, "two", [1, 2]).id)
        nights.promote(s, "one")
        assert contents(s) == state and nights.get_adapter(s, "two").status == "rolled_back"
        nights.promote(s, "two")
        assert statuses(s) == ["distilled", "distilled"]
        nights.rollback(s)
        assert (
            contents(s) == state
            and nights.rollback(s).now is None
            and statuses(s) == ["candidate", "candidate"]
        )


def test_promoting_twice_is_promoting_once(store: Store):
    with store.write() as s:
        teach(s, "a")
        nights.promote(s, sleep(s, "one", [1]).id)
        versions = len(lessons.history(s, 1))
        assert nights.promote(s, "one") == [] and len(lessons.history(s, 1)) == versions
        assert nights.rollback(s).now is None


def test_what_changed_during_the_night_stays_in_the_prompt(store: Store):
    with store.write() as s:
        ids = teach(s, "a", "b", "c", "d")
        adapter = sleep(s, "one", ids)
        lessons.revise(s, 1, author="human", do="otherwise")
        lessons.revise(s, 2, author="trial", status="retired")
        lessons.revise(s, 3, author="model", status="quarantined")
        lessons.revise(s, 4, author="human", tags=[])  # the same text
        assert [x.id for x in nights.promote(s, adapter.id, "default", ids, adapter.night_id)] == [
            4
        ]
        assert statuses(s) == ["candidate", "retired", "quarantined", "distilled"]


def test_rollback_leaves_what_a_person_has_changed_since(store: Store):
    with store.write() as s:
        nights.promote(s, sleep(s, "one", teach(s, "a", "b", "c")).id)
        lessons.revise(s, 1, author="human", do="otherwise")  # back in the prompt by that
        lessons.revise(s, 2, author="human", status="retired")
        lessons.revise(s, 3, author="human", tags=["mine"])
        nights.rollback(s)
        rows = lessons.listing(s)
        assert [(x.do, x.status) for x in rows] == [
            ("otherwise", "active"),
            ("b", "retired"),
            ("c", "candidate"),
        ]
        assert rows[2].tags == ["mine"]
    assert doctor.check(store) == []


def test_undo_knows_what_is_in_the_weights(store: Store):
    with store.write() as s:
        nights.promote(s, sleep(s, "one", teach(s, "a")).id)
        lessons.revise(s, 1, author="human", do="otherwise")
        assert lessons.undo(s, 1).status == "distilled", "the active adapter holds this text"
        assert lessons.undo(s, 1).do == "otherwise"
        nights.rollback(s)
        assert (lessons.undo(s, 1).do, lessons.get(s, 1).status) == ("a", "active")


def test_profiles_do_not_touch_each_other(store: Store):
    with store.write() as s:
        teach(s, "a")
        theirs = teach(s, "a", profile="team")
        adapter = sleep(s, "theirs", theirs, "team")
        with pytest.raises(UsageError, match="belongs to the profile team"):
            nights.promote(s, adapter.id, "default")
        nights.promote(s, adapter.id, "team")
        assert statuses(s) == ["candidate"] and nights.active_adapter(s) is None
        assert nights.active_adapter(s, "team").name == "theirs"


def test_a_rejected_adapter_is_not_promoted(store: Store):
    with store.write() as s:
        adapter = sleep(s, "one", teach(s, "a"))
        nights.set_adapter(s, adapter.id, status="rejected")
        with pytest.raises(UsageError, match="did not pass the gate"):
            nights.promote(s, adapter.id)


def test_a_promotion_that_breaks_changes_nothing(store: Store):
    with store.write() as s:
        adapter = sleep(s, "one", teach(s, "a"))
    with pytest.raises(UnknownName), store.write() as s:
        nights.promote(s, adapter.id, "default", [1, 99])
    with store.read() as s:
        assert (
            statuses(s) == ["candidate"]
            and nights.active_adapter(s) is None
            and len(lessons.history(s, 1)) == 1
        )
