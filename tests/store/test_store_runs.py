"""Runs continue where they stopped; a rollout or a reflection is never there twice."""

from __future__ import annotations

import pytest
from test_store import Problem, a_run, attempt

from reflect.errors import UnknownName
from reflect.records import Exposure, Reflection
from reflect.store import Store, doctor, lessons, runs


def note(run, task: Problem) -> Reflection:
    return Reflection(
        run_id=run.id,
        task_key=task.key,
        pack_hash="h",
        pack_tokens=9,
        prompt_version="p",
        raw="NONE",
    )


def test_the_same_key_is_the_same_run(store: Store):
    with store.write() as s:
        first, _ = a_run(s, "one")
        again, _ = a_run(s, "one")
        other, _ = a_run(s, "two", seed=4)
        assert (first.id, again.id, other.id) == (1, 1, 2)
        assert (
            [r.id for r in runs.list_runs(s)]
            == [2, 1]
            == [r.id for r in runs.unfinished(s, "letters", "default")]
        )
        assert runs.unfinished(s, "dialect", "default") == []
        ended = runs.finish_run(s, 1).ended
        assert runs.finish_run(s, 1).ended == ended
        assert [r.id for r in runs.unfinished(s, "letters", "default")] == [2]
        assert runs.next_seed(s, "letters", "default") == 5
        assert runs.next_seed(s, "letters", "other") == 0 == runs.next_seed(s, "dialect", "default")
        with pytest.raises(UnknownName, match="no run 9"):
            runs.get_run(s, 9)


def test_tasks_are_kept_once_by_content(store: Store):
    tasks = [Problem(str(i)) for i in range(1200)]
    with store.write() as s:
        runs.save_tasks(s, "letters", tasks[:700])
        runs.save_tasks(s, "letters", [*tasks, *tasks])
        assert runs.task(s, tasks[-1].key).task_id == "1199"
        with pytest.raises(UnknownName):
            runs.task(s, "nothing")


def test_a_resumed_group_is_filled_up_and_not_doubled(store: Store):
    with store.write() as s:
        run, (task, other) = a_run(s, k=4)
        lesson = lessons.add(s, when="a", do="b", author="human")
        shown = lambda: [Exposure(rollout_id=0, lesson_id=lesson.id, version=1)]  # noqa: E731
        assert (
            runs.save_rollouts(s, [attempt(run, task, i) for i in (2, 0)], [shown(), shown()]) == 2
        )
        again = [attempt(run, task, i, 0.5) for i in (0, 1, 2, 3, 3)]
        assert runs.save_rollouts(s, again, [shown() for _ in again]) == 2
        assert runs.save_rollouts(s, [attempt(run, other, 0, None)], [[]]) == 1
        assert [(r.index, r.reward) for r in runs.rollouts(s, run.id, task.key)] == [
            (0, 1),
            (1, 0.5),
            (2, 1),
            (3, 0.5),
        ]
        assert [r.index for r in runs.rollouts(s, run.id)] == [2, 0, 1, 3, 0]
        assert {e.rollout_id for e in runs.exposures(s, lesson.id)} == {1, 2, 3, 4}
        assert runs.figures(s, run.id) == (5, 1, 0.75)
        assert runs.figures(s, 99) == (0, 0, None)
    assert doctor.check(store) == []


def test_a_group_is_reflected_on_once(store: Store):
    with store.write() as s:
        run, (task, other) = a_run(s)
        runs.save_rollouts(s, [attempt(run, task, 0)], [[]])
        first = runs.save_reflection(s, note(run, task))
        assert (
            runs.save_reflection(s, note(run, task)).id
            == first.id
            == runs.get_reflection(s, run.id, task.key).id
        )
        assert runs.get_reflection(s, run.id, other.key) is None
        first.edits = [
            {"outcome": "added"}
        ]  # what became of the edits is known only after they were applied
    with store.read() as s:
        assert (
            runs.reflection(s, 1).edits == [{"outcome": "added"}]
            and len(runs.reflections(s, 1)) == 1
        )


def test_pruning_keeps_what_a_lesson_rests_on(store: Store):
    with store.write() as s:
        for key in ("taught", "plain", "newest"):
            run, (task, _) = a_run(s, key)
            lesson = lessons.add(s, when=key, do="b", author="human")
            shown = [Exposure(rollout_id=0, lesson_id=lesson.id, version=1)]
            runs.save_rollouts(s, [attempt(run, task, i) for i in range(2)], [shown, []])
            item = runs.save_reflection(s, note(run, task))
            if key == "taught":
                lessons.revise(s, lesson.id, author="model", do="c", reflection_id=item.id)
            runs.finish_run(s, run.id)
        a_run(s, "unfinished")
        assert runs.prune(s, keep=1) == ([2], [])
        assert [run.key for run in runs.list_runs(s)] == ["unfinished", "newest", "taught"]
        assert len(runs.rollouts(s, 1)) == 2 and runs.rollouts(s, 2) == []
    assert doctor.check(store) == []
