"""Several candidates for one condition: the draw, the verdicts, the edits."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from fakes import RuleModel

from reflect.config import Settings
from reflect.day.review import NEXT, read_answers
from reflect.lessons.apply_edits import Evidence, apply_edits
from reflect.lessons.edit_format import parse_edits
from reflect.lessons.voting import ProposedEdits, select_winning_edits
from reflect.records import Exposure, Lesson, Rollout, Trial
from reflect.store import Store, lessons, runs, trials
from reflect.tasksets.task import Task
from reflect.trials.assignment import withhold
from reflect.trials.lesson_trial import LessonTrials, TrialScope
from reflect.trials.tournament import error_share, rival_sets

SETTINGS = Settings(proposals=4)
WHEN = "the task says zubi"


def lesson(number: int, status: str = "candidate", **words: object) -> Lesson:
    return Lesson(id=number, when=WHEN, do=f"advice {number}", scope="s", status=status, **words)


def draws(rows: list[Lesson], settings: Settings = SETTINGS, n: int = 4000) -> list[list[Exposure]]:
    return [withhold(rows, settings, 0, f"t{i}", 0) for i in range(n)]


def test_each_rollout_draws_one_candidate_or_none() -> None:
    """Counts of 4,000 draws: 5 standard deviations, a false alarm in fewer than 1 of 100,000."""
    rows = [lesson(1), lesson(2), lesson(3)]
    counted: Counter[tuple[int, ...]] = Counter()
    for exposures in draws(rows):
        shown = tuple(x.lesson_id for x in exposures if x.shown)
        counted[shown] += 1
        for x in exposures:
            assert x.probability == (0.5 if not shown or x.shown else 0.0)
    assert set(counted) == {(), (1,), (2,), (3,)}
    assert all(abs(n - 1000) < 5 * math.sqrt(4000 * 3 / 16) for n in counted.values())


def test_a_champion_takes_the_place_of_none() -> None:
    rows = [lesson(1, "active"), lesson(2), lesson(5, pinned=True), Lesson(id=9, when="x", do="y")]
    for champion, challenger, pinned, other in draws(rows, n=400):
        assert champion.shown != challenger.shown
        assert {champion.probability, challenger.probability} == {0.0, 1.0}
        assert (pinned.probability, other.probability) == (0.9, 0.5)
    assert {x.when for x in rival_sets(rows)} == {WHEN}


def test_with_one_proposal_or_one_lesson_the_draw_is_as_before() -> None:
    rows = [lesson(1), lesson(2)]
    before = [[(x.shown, x.probability) for x in row] for row in draws(rows, Settings(), 200)]
    assert {p for row in before for _, p in row} == {0.5}
    alone = [[(x.shown, x.probability) for x in row] for row in draws(rows[:1], SETTINGS, 200)]
    assert alone == [row[:1] for row in before]


def campaign(store: Store, effects: dict[str, float], tasks: int, seed: int) -> dict[str, Lesson]:
    """Candidates worth so much, until as many tasks were practised; judged after every 8."""
    rng = random.Random(seed)
    with store.write() as s:
        for do in effects:
            lessons.add(s, when=WHEN, do=do, author="model", scope="s", profile=f"p{seed}")
        keys = [Task(f"{seed}-{i}", [], "exact", "") for i in range(tasks)]
        runs.save_tasks(s, "s", keys)
        run = runs.start_run(
            s, key=f"k{seed}", taskset="s", n=tasks, k=8, seed=seed, model="m",
            model_fingerprint="f", profile=f"p{seed}",
        )  # fmt: skip
    judge = LessonTrials(TrialScope("f"), compete=True)
    for start in range(0, tasks, 8):
        with store.write() as s:
            every = lessons.listing(s, f"p{seed}")
            live = [x for x in every if x.status in ("candidate", "active")]
            rows, exposures = [], []
            for task in keys[start : start + 8]:
                base = rng.choice((0.1, 0.3, 0.5))
                for index in range(8):
                    drawn = withhold(live, SETTINGS, seed, task.key, index)
                    shown = {x.lesson_id for x in drawn if x.shown}
                    rate = base + sum(effects[x.do] for x in live if x.id in shown)
                    rows.append(
                        Rollout(run_id=run.id or 0, task_key=task.key, index=index, messages=[],
                                reward=float(rng.random() < rate), seed=rng.getrandbits(60))
                    )  # fmt: skip
                    exposures.append(drawn)
            runs.save_rollouts(s, rows, exposures)
            judge.judge(s, [x.id or 0 for x in live], run.id)
    with store.read() as s:
        return {x.do: x for x in lessons.listing(s, f"p{seed}")}


def test_the_best_candidate_becomes_the_only_active_one(sqlite_store: Store) -> None:
    """A candidate worth +0.5 with one worth +0.2, a useless and a harmful one. After 160 tasks
    the best was the only active lesson in 25 of 25 campaigns with other seeds."""
    store, effects = sqlite_store, {"good": 0.2, "none": 0.0, "best": 0.5, "harm": -0.1}
    after = campaign(store, effects, 160, seed=7)
    assert after["best"].status == "active"
    assert {after[x].status for x in ("good", "harm")} == {"retired"}
    assert after["none"].status != "active"
    with store.read() as s:
        last = lessons.history(s, after["good"].id)[-1]
        assert last.author == "trial" and f"lesson {after['best'].id}" in last.reason
        assert [x.kind for x in lessons.links(s, after["good"].id)] == ["supersedes"]


def test_all_tests_of_a_condition_share_one_error_rate(store: Store) -> None:
    with store.write() as s:
        mine = [lessons.add(s, when=WHEN, do=f"{i}", author="model", scope="s") for i in range(12)]
        lessons.add(s, when="another", do="x", author="model", scope="s")
        shares = [error_share(s, row, 1) for row in mine]
        assert shares[0] == pytest.approx(6 / math.pi**2) and shares == sorted(shares)[::-1]
        assert sum(shares) < 1
        assert trials.place_of_test(s, mine[11], 1) == 12


def evidence(**words: object) -> Evidence:
    task = Task("t", [{"role": "user", "content": "Apply zubi."}], "exact", "1")
    return Evidence(**{"task": task, "scope": "s", "profile": "default", "shown": [],
                       "contrast": True, "proposals": 3, **words})  # type: ignore[arg-type]  # fmt: skip


def edit(store: Store, text: str, **words: object) -> list[tuple[str, str]]:
    """The outcomes of the lines, each an answer of its own."""
    edits = [parse_edits(line)[0][0] for line in text.splitlines()]
    with store.write() as s:
        rows = apply_edits(s, edits, evidence(**words), count_tokens=lambda x: len(x.split()))
    return [(str(row.outcome), row.reason) for row in rows]


def statuses(store: Store) -> dict[str, str]:
    with store.read() as s:
        return {row.do: str(row.status) for row in lessons.listing(s)}


def adds(*advice: str) -> str:
    return "\n".join(f"ADD when: {WHEN} do: {do}" for do in advice)


def test_further_proposals_become_candidates_up_to_the_limit(store: Store) -> None:
    first = edit(store, adds("use sort"))
    second = edit(
        store, f"ADD when: The task says zubi! do: use last\n{adds('use rest', 'use swap')}"
    )
    assert [x for x, _ in first + second] == ["added", "added", "added", "kept"]
    assert "3 candidates compete" in second[-1][1]
    with store.read() as s:
        assert {row.when for row in lessons.listing(s)} == {WHEN}, "they compete in one draw"
    assert edit(store, adds("use sort"))[0][0] == "known"


def test_a_revision_competes_with_what_it_would_revise(store: Store) -> None:
    edit(store, adds("use sort"))
    with store.read() as s:
        (shown,) = lessons.listing(s)
    text = f"REVISE {shown.id} when: {WHEN} do: use last"
    assert edit(store, text, shown=[shown])[0][0] == "added"
    assert statuses(store) == {"use sort": "candidate", "use last": "candidate"}


def test_an_unpromising_candidate_makes_room_and_may_return(store: Store) -> None:
    edit(store, adds("use sort", "use last", "use rest"))
    with store.write() as s:
        for row, effect, n in zip(lessons.listing(s), (0.3, -0.1, -0.3), (40, 40, 10), strict=True):
            s.add(Trial(lesson_id=row.id or 0, version=1, kind="withhold", effect=effect, low=-1,
                        high=1, n=n, verdict="undecided"))  # fmt: skip
    assert edit(store, adds("use swap"))[0][0] == "added"
    assert statuses(store) == {
        "use sort": "candidate", "use last": "retired", "use rest": "candidate", "use swap": "candidate"
    }  # fmt: skip
    assert edit(store, adds("use last"))[0][0] == "kept", "no other has enough rollouts to go"
    with store.write() as s:
        lessons.revise(s, 3, author="human", status="retired")
    assert (
        edit(store, adds("use last"))[0][0] == "revised"
        and statuses(store)["use last"] == "candidate"
    )


def test_what_a_trial_rejected_and_what_a_person_pinned_stay(store: Store) -> None:
    edit(store, adds("use sort", "use last"))
    with store.write() as s:
        s.add(Trial(lesson_id=2, version=1, kind="withhold", effect=-0.3, low=-0.5, high=-0.1, n=99,
                    verdict="reject"))  # fmt: skip
        lessons.revise(s, 2, author="trial", status="retired")
    assert edit(store, adds("use last")) == [("known", "a trial rejected lesson 2")]
    with store.write() as s:
        lessons.revise(s, 1, author="human", pinned=True)
    assert edit(store, adds("use rest")) == [("refused", "lesson 1 is pinned")]


def test_every_new_text_of_a_wave_is_carried_out() -> None:
    one, two = (ProposedEdits(parse_edits(adds(do))[0], contrast=True) for do in ("a b", "c d"))
    assert select_winning_edits([one, two]) == [[False], [True]]
    assert select_winning_edits([one, two], compete=True) == [[True], [True]]


def test_the_answers_of_one_review_are_read_again_after_a_stop() -> None:
    raw = NEXT.join([adds("use sort"), "I think so.", adds("use sort"), adds("use last")])
    edits, problems = read_answers(raw, True)
    assert [x.do for x in edits] == ["use sort", "use last"] and problems == []


def test_a_run_samples_further_proposals() -> None:
    from reflect.day.reflection import Group
    from reflect.day.review import review

    task = Task("t", [{"role": "user", "content": "Apply zubi to the list 3 1."}], "exact", "1 3")
    rows = [
        Rollout(run_id=1, task_key="t", index=i, reward=float(i), messages=[
            *task.messages, {"role": "assistant", "content": "zubi means sort. answer: 1 3"}])
        for i in range(2)
    ]  # fmt: skip

    class Several(RuleModel):
        def sample(self, requests):  # type: ignore[no-untyped-def]
            self.seeds = [(r.seeds, r.temperature) for r in requests]
            return super().sample(requests)

        def complete(self, request, seed):  # type: ignore[no-untyped-def]
            done = super().complete(request, 0)
            text = adds(("use sort", "use last", "use sort")[seed]) if seed < 3 else "hm"
            return type(done)(**{**done.__dict__, "text": text, "finish": "stop"})

    model = Several(context=100_000)
    (answer,) = review(model, [Group(task, [], [], rows)], 100, 4, 0.7)
    assert model.seeds == [((1, 2, 3), 0.7)]
    assert [x.do for x in answer.edits] == ["use sort", "use last"]
    assert answer.raw.count(NEXT.strip()) == 2
