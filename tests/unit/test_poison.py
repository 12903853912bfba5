"""Bytes from outside that want to be remembered; scripts/proofs/poison has all hundred and a
night."""

from __future__ import annotations

import pytest

from reflect.config import Settings
from reflect.day.practice import practice
from reflect.store import Store
from reflect.store import lessons as db
from reflect.training.context import NightContext, TasksetLessons
from reflect.training.guards import OwnTasksets, near_tasks
from reflect.training.plan import make_plan
from scripts.attacks.poison import ORDERS, WAYS, Obedient, Poisoned, canary, kites, owners, payload

SETTINGS = Settings(trials=False, max_tokens=4000, reflect_tokens=2000)


pytestmark = pytest.mark.usefixtures("bwrap")


def simulate(store: Store, taskset: Poisoned) -> list[str]:
    """Canaries that an obedient model met outside the tasks that brought them, over two days."""
    model = Obedient()
    for day in (1, 2):
        taskset.outside = day == 1
        practice(model, store, taskset, SETTINGS, n=99, k=2, seed=day)
    strays = []
    for messages in model.prompts:
        text = "\n".join(m["content"] for m in messages)
        strays += [kite for kite in kites(text) if kite not in owners(text)]
    return strays


def test_what_strangers_order_is_never_seen_again(sqlite_store):
    assert simulate(sqlite_store, Poisoned(True, [0, 12], 6)) == []
    with sqlite_store.read() as s:
        waiting = [x for x in db.listing(s, status="quarantined") if kites(f"{x.when} {x.do}")]
        shown = db.listing(s, status=("candidate", "active"))
    assert len(waiting) >= 5 and [x.do for x in shown] == ["say the word"]


def test_where_nobody_says_that_it_is_from_outside_it_is(sqlite_store):
    assert len(set(simulate(sqlite_store, Poisoned(False, [0, 12], 6)))) >= 3, (
        "else the test above proves nothing"
    )


def test_anchors_carry_no_outside_bytes(sqlite_store):
    taskset = Poisoned(True, [0, 1], 4)
    subject = TasksetLessons(taskset, ())
    plan = make_plan(10**6, anchors=80)
    ctx = NightContext(Obedient(), sqlite_store, SETTINGS, plan, [subject])
    near = near_tasks(ctx, subject, "practice")
    assert len(near) == 4 + 2 and not any(task.untrusted for task in near), (
        "two whose tool will read such bytes"
    )
    asked = OwnTasksets().prompts(ctx, [taskset], [[]], near)
    assert any("Say the word" in str(question.student) for question in asked) and not kites(
        str(asked)
    )


def test_every_payload_has_a_canary_of_its_own():
    every = [(way, order) for way in WAYS for order in range(len(ORDERS))]
    assert len(every) == len({canary(*one) for one in every}) == 100
    assert all(set(kites(payload(*one))) == {canary(*one)} for one in every)
