"""Lessons that contradict each other, lessons that a trial has proven, and the shrink alarm."""

import pytest
from curating import SAYS, add, apply, prove
from fakes import RuleModel, dialect

from reflect.config import Settings
from reflect.day.learning import GroupReflection, edit_lessons
from reflect.day.reflection import Group
from reflect.lessons.edit_format import Edit
from reflect.lessons.protection import EditTransaction
from reflect.records import Exposure, Reflection, Rollout
from reflect.rollouts.context import TasksetContext
from reflect.store import lessons as db
from reflect.store import runs
from reflect.store.lessons import link, links, successor

# -- contradiction
# -----------------------------------------------------------------------------------------------------


def test_a_general_lesson_that_is_contradicted_is_not_reworded_but_superseded(sqlite_session):
    general = add(sqlite_session, SAYS, "use sort", scope="")
    outcome = apply(sqlite_session, Edit("add", SAYS, "use reverse"), shown=[general])
    new = db.get(sqlite_session, outcome.lesson_id)
    assert (outcome.outcome, outcome.gone, new.scope, new.status) == (
        "superseded",
        (general.id,),
        "dialect",
        "candidate",
    )
    assert (general.do, general.status) == ("use sort", "retired")
    (found,) = links(sqlite_session, general.id)
    assert (found.lesson_id, found.kind, found.why) == (
        new.id,
        "supersedes",
        "a comparison of lessons says: use reverse",
    )
    back = apply(sqlite_session, Edit("add", SAYS, "use sort"), shown=[new])
    assert (back.outcome, back.lesson_id, back.gone) == ("superseded", general.id, (new.id,)), (
        "and the other way round"
    )


def test_of_two_lessons_of_one_condition_the_newer_evidence_leaves_one(sqlite_session):
    mine, general = (
        add(sqlite_session, SAYS, "use sort"),
        add(sqlite_session, SAYS, "use swap", scope=""),
    )
    outcome = apply(sqlite_session, Edit("add", SAYS, "use reverse"), shown=[mine, general])
    assert (outcome.outcome, outcome.lesson_id, outcome.gone) == (
        "superseded",
        mine.id,
        (general.id,),
    )
    assert mine.do == "use reverse" and general.status == "retired"
    assert (
        "says otherwise than version 1 (model): use sort"
        in db.history(sqlite_session, mine.id)[-1].reason
    )


def test_a_pinned_lesson_of_the_same_condition_stops_it_all(sqlite_session):
    mine, general = (
        add(sqlite_session, SAYS, "use sort"),
        add(sqlite_session, SAYS, "use swap", scope="", pinned=True, author="human"),
    )
    outcome = apply(sqlite_session, Edit("add", SAYS, "use reverse"), shown=[mine, general])
    assert outcome.outcome == "refused" and mine.version == general.version == 1


def test_a_revision_that_makes_two_conditions_equal_supersedes_the_other(sqlite_session):
    near, other = (
        add(sqlite_session, "the task says the word zubi", "use sort"),
        add(sqlite_session, SAYS, "use swap"),
    )
    edit = Edit("revise", SAYS, "use reverse", lesson_id=near.id)
    assert apply(sqlite_session, edit, shown=[near], contrast=False).outcome == "kept", (
        "the other one was not tried"
    )
    outcome = apply(sqlite_session, edit, shown=[near, other], contrast=False)
    assert (outcome.lesson_id, outcome.gone) == (near.id, (other.id,))
    assert (near.when, near.do, other.status) == (SAYS, "use reverse", "retired")
    assert [x.kind for x in links(sqlite_session, other.id)] == ["supersedes"]


def test_a_link_said_again_is_one_link(sqlite_session):
    a, b = add(sqlite_session, SAYS, "use sort"), add(sqlite_session, SAYS, "use swap")
    link(sqlite_session, a.id, b.id, "merged", "first")
    link(sqlite_session, a.id, b.id, "merged", "then")
    link(sqlite_session, b.id, a.id, "merged")
    assert [x.why for x in links(sqlite_session, a.id)] == ["then", ""]
    assert successor(sqlite_session, a.id) == b.id, "a ring of undone merges ends somewhere"
    for kind, other in (("other", b.id), ("merged", a.id)):
        with pytest.raises(ValueError, match="no link"):
            link(sqlite_session, a.id, other, kind)


# -- a proven lesson
# ---------------------------------------------------------------------------------------------------


def group(s, lesson, seen, missed=(), name="t", in_adapter=False, rivals=()):
    """The reflection of one group: the rewards of the rollouts that saw the lesson, and of those
    that missed it. `rivals`: other lessons, each with the indices of the rollouts that saw it."""
    run = runs.list_runs(s)[0] if runs.list_runs(s) else None
    if run is None:
        words = {"n": 1, "k": 8, "seed": 1, "model": "rule", "model_fingerprint": "rule-1"}
        run = runs.start_run(
            s, key="run", taskset="dialect", profile="default", adapter_id=None, config={}, **words
        )
    task = dialect.Dialect.task("zubi", "reverse", [9, 2, len(name)], "practice")
    runs.save_tasks(s, "dialect", [task])
    rows, exposed = [], []
    for i, reward in enumerate((*seen, *missed)):
        rows.append(Rollout(run_id=run.id, task_key=task.key, index=i, messages=[], reward=reward))
        shown = [] if in_adapter else [(i < len(seen), 0.9)]
        exposed.append(
            [
                Exposure(
                    rollout_id=0,
                    lesson_id=lesson.id,
                    version=lesson.version,
                    shown=x,
                    probability=p,
                )
                for x, p in shown
            ]
            + [
                Exposure(rollout_id=0, lesson_id=rival.id, version=1, shown=i in saw)
                for rival, saw in rivals
            ]
        )
    runs.save_rollouts(s, rows, exposed)
    row = Reflection(
        run_id=run.id,
        task_key=task.key,
        pack_hash="",
        pack_tokens=0,
        prompt_version="",
        raw="",
        edits=[],
    )
    return runs.save_reflection(s, row)


def ask(s, lesson, review, edit=None, **more):
    outcome = apply(
        s,
        edit or Edit("revise", SAYS, "use swap", lesson_id=lesson.id),
        [lesson],
        reflection_id=review.id,
        **more,
    )
    review.edits = [outcome.row()]
    s.add(review)
    s.flush()
    return outcome.outcome


@pytest.fixture
def good(sqlite_session):
    lesson = add(sqlite_session, SAYS, "use sort", status="active")
    prove(sqlite_session, lesson)
    return lesson


def test_one_group_that_went_well_with_a_proven_lesson_changes_nothing(sqlite_session, good):
    review = group(sqlite_session, good, [1, 1, 1, 0, 1, 1, 1], [0])
    edits = [
        Edit("revise", SAYS, "use swap", lesson_id=good.id),
        Edit("retire", why="it failed once", lesson_id=good.id),
        Edit("add", SAYS, "use swap"),
    ]
    assert [ask(sqlite_session, good, review, edit) for edit in edits] == ["kept"] * 3
    assert good.version == 1
    bare = add(sqlite_session, "the task says fapo", "use sort", status="active")
    edit = Edit("revise", "the task says fapo", "use swap", lesson_id=bare.id)
    assert apply(sqlite_session, edit, [bare]).outcome == "revised", (
        "one that was never proven has no such shield"
    )


def test_failures_that_two_lessons_on_trial_share_overrule_neither(sqlite_session):
    s = sqlite_session
    right, wrong = add(s, SAYS, "use sort"), add(s, "asked to zubi", "use last")
    edits = [
        Edit("add", SAYS, "use swap"),
        Edit("revise", SAYS, "use swap", lesson_id=right.id),
        Edit("retire", why="all failed", lesson_id=right.id),
    ]
    shared = group(s, right, [0, 0], [0] * 6, rivals=[(wrong, (0, 1, 4))])
    for edit in edits:
        assert ask(s, right, shared, edit, contrast=False) == "kept"
    assert (right.version, right.status) == (1, "candidate")
    alone = group(s, right, [0, 0], [0] * 6, name="ab", rivals=[(wrong, (1, 4))])
    assert ask(s, right, alone, edits[0], contrast=False) == "superseded", "one saw it alone"


def test_a_group_with_a_success_or_an_active_rival_may_still_overrule(sqlite_session):
    s = sqlite_session
    right, rival = add(s, SAYS, "use sort"), add(s, "asked to zubi", "use last")
    both = group(s, right, [0, 0], [1], rivals=[(rival, (0, 1))])
    assert ask(s, right, both, contrast=True) == "revised"
    db.revise(s, rival.id, author="trial", status="active")
    both = group(s, right, [0, 0], [0], name="ab", rivals=[(rival, (0, 1))])
    edit = Edit("revise", SAYS, "use last", lesson_id=right.id)
    assert ask(s, right, both, edit, contrast=False) == "revised", "only one is on trial"


def test_a_group_that_did_worse_without_it_does_not_speak_against_it(sqlite_session, good):
    assert (
        ask(sqlite_session, good, group(sqlite_session, good, [1, 0, 1, 0, 0, 1, 0], [0])) == "kept"
    )


def test_where_all_attempts_with_it_fail_and_one_without_finds_the_way_it_goes_at_once(
    sqlite_session, good
):
    assert ask(sqlite_session, good, group(sqlite_session, good, [0] * 7, [1])) == "revised"
    assert good.do == "use swap"


def test_else_a_second_group_of_the_run_must_want_it_too(sqlite_session, good):
    assert ask(sqlite_session, good, group(sqlite_session, good, [0] * 8, name="a")) == "defended"
    assert good.version == 1
    assert ask(sqlite_session, good, group(sqlite_session, good, [1] * 8, name="ab")) == "kept", (
        "one that went well is no second voice"
    )
    assert ask(sqlite_session, good, group(sqlite_session, good, [0] * 8, name="abc")) == "revised"
    assert (
        ask(
            sqlite_session,
            good,
            group(sqlite_session, good, [0] * 8, name="abcd"),
            Edit("retire", why="x", lesson_id=good.id),
        )
        == "retired"
    ), "its new text has proven nothing"


def test_a_lesson_that_helps_is_bettered_when_three_groups_ask_for_the_same_words(
    sqlite_session, good
):
    rewards = [1, 1, 1, 0, 1, 1, 1]
    assert [
        ask(sqlite_session, good, group(sqlite_session, good, rewards, name=name))
        for name in ("a", "ab")
    ] == [
        "kept",
        "kept",
    ]
    other = Edit("revise", SAYS, "use rotate", lesson_id=good.id)
    assert (
        ask(sqlite_session, good, group(sqlite_session, good, rewards, name="abc"), other) == "kept"
    ), "other words are another wish"
    assert ask(sqlite_session, good, group(sqlite_session, good, [1] * 7, name="abcd")) == "kept", (
        "where it always works nothing is to better"
    )
    assert (
        ask(sqlite_session, good, group(sqlite_session, good, rewards, name="abcde")) == "revised"
    )


def test_what_the_weights_hold_all_attempts_have(sqlite_session):
    slept = add(sqlite_session, SAYS, "use sort", status="distilled")
    prove(sqlite_session, slept)
    more = {"edit": Edit("add", SAYS, "use swap"), "in_adapter": [slept]}
    assert (
        ask(
            sqlite_session,
            slept,
            group(sqlite_session, slept, [0] * 7 + [1], in_adapter=True, name="a"),
            **more,
        )
        == "defended"
    )
    assert (
        ask(
            sqlite_session,
            slept,
            group(sqlite_session, slept, [0] * 8, in_adapter=True, name="ab"),
            **more,
        )
        == "superseded"
    )


def test_a_proven_lesson_that_no_attempt_of_the_group_saw_stays(sqlite_session, good):
    other = add(sqlite_session, "else", "use swap")
    assert (
        ask(
            sqlite_session,
            good,
            group(sqlite_session, other, [0] * 7, [1]),
            Edit("add", SAYS, "use swap"),
        )
        == "kept"
    )


def test_a_later_verdict_or_another_text_ends_the_proof(sqlite_session, good):
    prove(sqlite_session, good, "undecided")
    assert ask(sqlite_session, good, group(sqlite_session, good, [1] * 8, name="a")) == "kept"
    prove(sqlite_session, good, "reject")
    assert ask(sqlite_session, good, group(sqlite_session, good, [1] * 8, name="ab")) == "revised"


# -- the shrink alarm
# --------------------------------------------------------------------------------------------------


VERBS = "zubi fapo kimo ruda nelo tive gosu bima".split()


def wellknown(s, n):
    return [
        add(s, f"the task says {verb}", "use sort", pinned=True, author="human")
        for verb in VERBS[:n]
    ]


@pytest.mark.parametrize(
    ("n", "lost", "alarm"),
    [(6, 2, False), (6, 3, True), (2, 1, False), (2, 2, True), (8, 0, False)],
)
def test_a_consolidation_that_loses_more_than_a_third_is_taken_back_whole(
    sqlite_session, n, lost, alarm
):
    rows = wellknown(sqlite_session, n)
    add(sqlite_session, "unproven", "use sort")
    tidy = EditTransaction(sqlite_session, "default")
    for row in rows[:lost]:
        db.revise(sqlite_session, row.id, author="model", status="retired")
    reason = tidy.close()
    assert bool(reason) == alarm
    assert db.count(sqlite_session, status="retired") == (0 if alarm else lost)
    if alarm:
        assert f"{lost} of {n} well-supported" in reason


def test_what_a_successor_keeps_and_what_was_never_supported_is_not_lost(sqlite_session):
    rows = wellknown(sqlite_session, 4)
    doubtful = [
        add(sqlite_session, f"on {word}", "use swap", status="active")
        for word in ("monday", "tuesday", "sunday")
    ]
    tidy = EditTransaction(sqlite_session, "default")
    for row in [*rows, *doubtful]:
        db.revise(sqlite_session, row.id, author="model", status="retired")
    for row in rows:
        add(sqlite_session, f"{row.when} at last", "use sort")
    assert tidy.close() == "" and db.count(sqlite_session, status="retired") == 7
    tidy = EditTransaction(sqlite_session, "default")
    add(sqlite_session, "for a rehearsal", "use sort")
    assert (
        tidy.close(keep=False) == ""
        and db.find_exact(sqlite_session, "for a rehearsal", "use sort") is None
    )


def test_a_wave_that_loses_too_much_is_one_outcome_and_changes_nothing(sqlite_store):
    with sqlite_store.write() as s:
        rows = [add(s, f"the task says {verb}", "use sort", status="active") for verb in VERBS[:3]]
        for row in rows:
            db.revise(
                s, row.id, author="human", status="candidate"
            )  # a person put it there: it is well supported
        reflections = []
        for i, row in enumerate(rows):
            found = group(s, row, [0] * 4, name="x" * i)
            task = dialect.Dialect.task("zubi", "reverse", [9, 2, i], "practice")
            attempts = runs.rollouts(s, found.run_id, found.task_key)
            run = runs.get_run(s, found.run_id)
            fresh = Reflection(**found.model_dump(exclude={"id", "created"}))
            s.delete(found)
            edit = Edit("retire", why="it failed", lesson_id=row.id)
            shown = Group(task, [row.model_copy()], [], attempts)
            reflections.append(GroupReflection(shown, fresh, [edit], []))
    context = TasksetContext(RuleModel(), sqlite_store, dialect.TASKSET, Settings()).in_run(run)
    edit_lessons(context, reflections, [reflection.group for reflection in reflections])
    with sqlite_store.read() as s:
        saved = [row.edits for row in runs.reflections(s, run.id)]
        assert db.count(s, status="candidate") == 3
    assert [[edit["outcome"] for edit in edits] for edits in saved] == [
        ["alarm", "refused"],
        ["refused"],
        ["refused"],
    ]
    assert "3 of 3" in saved[0][0]["reason"]
