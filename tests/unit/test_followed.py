"""Was a lesson that was shown also followed? Checks, a judge's sample, shares and intervals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes import JudgeModel, RuleModel

from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import UnknownName, UsageError
from reflect.evaluation.followed import answers_of, judge_sample, read_checks
from reflect.records import Exposure, Lesson, Rollout
from reflect.rollouts.judge import Judge
from reflect.stats.proportion import wilson
from reflect.store import Store, followed, lessons, runs
from reflect.tasksets import isolation
from reflect.tasksets.task import Task
from reflect.workspace.workspace import Workspace

TASK = Task("t", [{"role": "user", "content": "Apply zubi to the list 3 1 2."}], "exact", "1 2 3")
USED, OTHER = "zubi means sort. answer: 1 2 3", "zubi means last. answer: 2"


def practised(store: Store, texts: list[tuple[str, bool]], do: str = "use sort") -> Lesson:
    """A lesson, and a run whose rollouts have these answers; True: it was shown."""
    with store.write() as s:
        lesson = lessons.add(s, when="the task says zubi", do=do, author="human", status="active")
        run = runs.start_run(
            s, key=f"k{lesson.id}", taskset="dialect", n=1, k=len(texts), seed=0, model="m",
            model_fingerprint="f",
        )  # fmt: skip
        runs.save_tasks(s, "dialect", [TASK])
        rows = [
            Rollout(
                run_id=run.id or 0, task_key=TASK.key, index=i, reward=1.0, seed=i,
                messages=[*TASK.messages, {"role": "assistant", "content": text}],
            )
            for i, (text, _) in enumerate(texts)
        ]  # fmt: skip
        shown = [
            [
                Exposure(
                    rollout_id=0, lesson_id=lesson.id or 0, version=1, shown=saw, probability=0.5
                )
            ]
            for _, saw in texts
        ]
        runs.save_rollouts(s, rows, shown)
    return lesson


def shares(store: Store, lesson: Lesson) -> followed.FollowedShares | None:
    with store.read() as s:
        return followed.shares(s, [lesson.id or 0]).get(lesson.id or 0)


def check(store: Store, lesson: Lesson, kind: str, pattern: str) -> None:
    with store.write() as s:
        followed.set_check(s, lesson.id or 0, kind, pattern)


def test_shown_and_withheld_are_counted_apart(store: Store) -> None:
    lesson = practised(
        store, [(USED, True)] * 9 + [(OTHER, True)] + [(USED, False), (OTHER, False)]
    )
    assert shares(store, lesson) is None and read_checks(store, "default") == 0
    check(store, lesson, "words", "means SORT")
    assert read_checks(store, "default") == 12 and read_checks(store, "default") == 0
    mine = shares(store, lesson)
    assert mine and mine.source == "check"
    assert (mine.shown, mine.withheld) == ((9, 10), (1, 2))
    assert mine.shown.share == 0.9 and mine.shown.interval == wilson(9, 10)
    check(store, lesson, "words", "means sort!")
    assert shares(store, lesson) is None, "another check reads anew"


def test_the_interval_of_a_share() -> None:
    """Table 1 of Newcombe 1998 (method 3), Wilson without continuity correction."""
    for yes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                              (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert wilson(yes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(29, 29)[1] == 1.0


def test_a_check_is_about_the_advice_it_was_written_for(store: Store) -> None:
    lesson = practised(store, [(USED, True)] * 3)
    check(store, lesson, "regex", r"means (sort|order)\b")
    assert read_checks(store, "default") == 3
    with store.write() as s:
        lessons.revise(s, lesson.id, author="human", do="use last")
    assert shares(store, lesson) is None and read_checks(store, "default") == 0
    with store.write() as s:
        lessons.undo(s, lesson.id)
    mine = shares(store, lesson)
    assert mine and mine.shown == (3, 3), "the old results are about the old advice, and return"


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("regex", "("), ("regex", "x*"), ("words", " "), ("words", "..."), ("regex", "")],
)
def test_a_pattern_that_tells_nothing_is_refused(store: Store, kind: str, pattern: str) -> None:
    lesson = practised(store, [(USED, True)])
    with pytest.raises(UsageError):
        check(store, lesson, kind, pattern)
    with pytest.raises(UnknownName), store.write() as s:
        followed.set_check(s, 99, "words", "sort")


def test_a_pattern_without_end_costs_its_time_limit_and_nothing_else(store: Store) -> None:
    lesson = practised(store, [("a" * 40, True), (USED, True)])
    check(store, lesson, "regex", r"(a+)+$b")
    isolation.limit(0.5, 4096)
    try:
        assert read_checks(store, "default") == 0 or shares(store, lesson)
    finally:
        isolation.limit(10, 4096)
    assert shares(store, lesson) is None or shares(store, lesson).shown.n < 2  # type: ignore[union-attr]


def test_what_is_searched_is_all_that_the_model_said_and_called() -> None:
    call = {"function": {"name": "times", "arguments": "{}"}}
    talk = [*TASK.messages, {"role": "assistant", "content": "I think.", "tool_calls": [call]},
            {"role": "tool", "content": "use sort"}, {"role": "assistant", "content": "answer: 3"}]  # fmt: skip
    row = Rollout(run_id=1, task_key="t", index=0, messages=talk, parts={"turns": 2})
    assert answers_of(row) == "I think.\ncall: times({})\nanswer: 3"


def test_a_judge_reads_half_shown_half_withheld(store: Store) -> None:
    lesson = practised(store, [(USED, True)] * 30 + [(OTHER, False)] * 5)

    def reply(nonce: str, text: str) -> str:
        return f"why {nonce}: it says so\nreward {nonce}: 1"

    model = JudgeModel(reply=reply)
    judged = judge_sample(store, Judge(model), lesson, 20, seed=3)
    assert judged == (20, [])
    prompt = model.judged[0][0].messages[-1]["content"]
    assert "when: the task says zubi do: use sort" in prompt and "Grade only whether" in prompt
    mine = shares(store, lesson)
    assert mine and (mine.source, mine.shown.n, mine.withheld.n) == ("judge", 15, 5)
    assert judge_sample(store, Judge(model), lesson, 20, seed=3).graded == 15, "the others"
    assert judge_sample(store, Judge(model), lesson, 20, seed=3).graded == 0
    check(store, lesson, "words", "sort")
    read_checks(store, "default")
    mine = shares(store, lesson)
    assert mine and (mine.source, mine.shown) == ("check", (30, 30)), "a check comes first"


def test_a_judge_that_cannot_be_read_is_no_result(store: Store) -> None:
    lesson = practised(store, [(USED, True)] * 4)
    judged = judge_sample(store, Judge(JudgeModel(reply=lambda nonce, text: "Yes!")), lesson, 4, 0)
    assert judged.graded == 0 and len(judged.problems) == 4 and shares(store, lesson) is None


def test_results_go_with_their_run(store: Store) -> None:
    lesson = practised(store, [(USED, True)])
    check(store, lesson, "words", "sort")
    read_checks(store, "default")
    with store.write() as s:
        runs.delete_runs(s, [run.id for run in runs.list_runs(s) if run.id])
    assert shares(store, lesson) is None


def test_a_run_reads_its_rollouts_and_the_commands_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ws = Workspace(Settings(db="lessons.db"))
    lesson = practised(ws.store, [(USED, True)] * 8 + [(OTHER, False)] * 8)
    assert run_command(["lessons", "followed"]) == 0
    assert "reflect lessons check ID PATTERN" in capsys.readouterr().err
    assert run_command(["lessons", "check", str(lesson.id), "means sort"]) == 0
    out = capsys.readouterr().out
    assert "shown: 1.00 [0.68, 1.00] of 8" in out and "withheld: 0.00 [0.00, 0.32] of 8" in out
    assert run_command(["lessons", "stats", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["lessons"]
    assert row["followed"]["shown"] == {
        "share": 1.0,
        "low": pytest.approx(0.6756, abs=1e-4),
        "high": 1.0,
        "n": 8,
    }
    assert run_command(["lessons", "followed"]) == 0
    assert re.search(
        r"1\.00 \[0\.68, 1\.00\] of 8 .*0\.00 \[0\.00, 0\.32\] of 8", capsys.readouterr().out
    )
    text = ws.lessons.export()
    assert '"check":{"do":"use sort","kind":"words","pattern":"means sort"}' in text
    Path("out.jsonl").write_text(text)
    other = Workspace(Settings(db="other.db"))
    other.lessons.import_("out.jsonl", trust=True)
    assert other.lessons.export() == text
    other.lessons.import_("out.jsonl", trust=True)
    assert other.lessons.export() == text
    assert run_command(["lessons", "check", str(lesson.id), "--remove"]) == 0
    assert run_command(["lessons", "check", str(lesson.id), "--remove"]) == 2
    assert run_command(["lessons", "check", str(lesson.id)]) == 2
    assert run_command(["lessons", "followed", "--ask"]) == 2


def test_practice_reads_the_checks_at_its_end(store: Store) -> None:
    from reflect.day.practice import practice
    from reflect.tasksets import load_taskset

    with store.write() as s:
        lesson = lessons.add(
            s, when="the task says zubi", do="use sort", author="human", status="active"
        )
        followed.set_check(s, lesson.id or 0, "words", "means")
    practice(RuleModel(), store, load_taskset("dialect"), Settings(), n=4, k=4, learn=False)
    with store.read() as s:
        seen = len(runs.exposures(s, lesson.id))
        read = followed.shares(s, [lesson.id or 0])
    assert seen == 0 or read[lesson.id or 0].shown.n + read[lesson.id or 0].withheld.n == seen
