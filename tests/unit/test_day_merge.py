"""Likeness, MERGE, tidying up near duplicates."""

import pytest
from curating import SAYS, SPELL, SPELT, add, apply, merging, prove
from fakes import FixedModel

from reflect.config import Settings
from reflect.lessons.deduplicate import merge
from reflect.lessons.edit_format import Edit
from reflect.lessons.similarity import alike, apart, covers_condition, families, stems, telling
from reflect.lessons.voting import ProposedEdits, select_winning_edits
from reflect.records import Lesson
from reflect.store import lessons as db
from reflect.store.lessons import links, successor
from reflect.workspace.workspace import Workspace

# -- likeness
# ----------------------------------------------------------------------------------------------------------


def lesson(when, do="use sort"):
    return Lesson(when=when, do=do)


def test_one_telling_word_makes_two_things_of_one_sentence():
    conditions = [SAYS, "the task says fapo", "the task says the word fapo"]
    distinctive = telling(conditions)
    assert {"zubi", "fapo"} <= distinctive and "says" not in distinctive
    assert apart(SAYS, conditions[1]) and apart(SAYS, conditions[2], distinctive)
    assert not apart("counting letters in a word", "you count the letters of a word")
    assert apart("at most 3 words", "at most 4 words in a line") and apart(
        "use sort", "do not use sort"
    )
    assert not alike(lesson(SAYS), lesson(conditions[2]), distinctive)
    assert alike(lesson(*SPELL), lesson(*SPELT)) and not alike(lesson(*SPELL), lesson(SAYS))
    assert alike(lesson(SAYS, "use sort"), lesson(SAYS, "sort it, then give the list")) is True
    assert not alike(lesson(SAYS, "use sort"), lesson(SAYS, "use swap")), (
        "other advice is a contradiction"
    )


def test_a_condition_is_kept_by_one_that_names_all_of_it():
    assert covers_condition("counting letters or vowels in a word", "counting letters in a word")
    assert covers_condition("You count the letters of a word!", "counting letters of a word")
    assert not covers_condition("the task says fapo", SAYS) and not covers_condition("a task", SAYS)
    assert stems("zubis") != stems("zubi"), "made-up words are short: nothing is cut from them"


def test_all_of_a_family_are_alike():
    rows = [
        lesson("a b c d e f", "x"),
        lesson("a b c d e f g h", "x"),
        lesson("a b c d e f g h i j k", "x"),
    ]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert alike(rows[1], rows[2]) and not alike(rows[0], rows[2])
    assert families(rows, pairs) == [[0, 1]]
    assert families(rows, []) == []


# -- MERGE
# -------------------------------------------------------------------------------------------------------------


def test_the_oldest_takes_the_text_and_the_others_retire_with_a_link_and_all_has_an_undo(
    sqlite_session,
):
    old, new = (
        add(sqlite_session, *SPELL, status="active", tags=["words"]),
        add(sqlite_session, *SPELT, tags=["count"]),
    )
    edit = merging(new, old, when="counting letters of a word", do="spell it out, with a counter")
    outcome = apply(sqlite_session, edit, shown=[old, new])
    assert (outcome.outcome, outcome.lesson_id, outcome.gone) == ("merged", old.id, (new.id,))
    assert (old.do, old.status, old.version, old.tags) == (
        edit.do,
        "candidate",
        2,
        ["count", "words"],
    )
    assert (new.status, db.history(sqlite_session, new.id)[-1].reason) == (
        "retired",
        f"merged into lesson {old.id}",
    )
    (result,) = links(sqlite_session, new.id)
    assert (result.lesson_id, result.other_id, result.kind) == (old.id, new.id, "merged")
    assert (
        links(sqlite_session, old.id) == [result]
        and successor(sqlite_session, new.id) == old.id
        and successor(sqlite_session, old.id) is None
    )
    assert outcome.row()["ids"] == [new.id, old.id] and outcome.row()["gone"] == [new.id]
    again = apply(sqlite_session, Edit("add", *SPELT))
    assert (again.outcome, again.lesson_id) == ("known", old.id), (
        "what was merged does not come back by itself"
    )
    db.undo(sqlite_session, new.id)
    db.undo(sqlite_session, old.id)
    assert (old.do, old.status, new.do, new.status) == (SPELL[1], "active", SPELT[1], "candidate")


def test_the_same_text_needs_no_new_trial(sqlite_session):
    old, new = add(sqlite_session, *SPELL, status="active"), add(sqlite_session, *SPELT)
    apply(sqlite_session, merging(old, new), shown=[old, new])
    assert (old.status, old.version, new.status) == ("active", 1, "retired")


@pytest.mark.parametrize("why", ["pinned", "proven", "in the weights"])
def test_words_that_are_pinned_proven_or_slept_stay_and_the_others_go_into_them(
    sqlite_session, why
):
    loose = add(sqlite_session, *SPELL)
    held = add(
        sqlite_session,
        *SPELT,
        status="distilled" if why == "in the weights" else "active",
        pinned=why == "pinned",
    )
    if why == "proven":
        prove(sqlite_session, held)
    outcome = apply(
        sqlite_session, merging(loose, held, do="say it letter by letter"), shown=[loose, held]
    )
    assert (outcome.outcome, outcome.lesson_id, outcome.edit.do) == ("merged", held.id, SPELT[1])
    assert (held.version, held.do, loose.status) == (1, SPELT[1], "retired")


def test_what_no_merge_may_do(sqlite_session):
    a, b = add(sqlite_session, *SPELL, pinned=True), add(sqlite_session, *SPELT, pinned=True)
    c, far = (
        add(sqlite_session, "letters of a word are counted", "spell it"),
        add(sqlite_session, "the task says fapo", "use sort"),
    )
    zubi = add(sqlite_session, SAYS, "use sort")
    general = add(sqlite_session, *SPELT, scope="")
    one = add(sqlite_session, *SPELT, tags=["task:abc"])
    gone = add(sqlite_session, *SPELT, status="retired")
    every = [a, b, c, far, zubi, general, one, gone]

    def refused(*lessons, shown=every, **more):
        outcome = apply(sqlite_session, merging(*lessons, **more), shown=shown)
        assert outcome.outcome == "refused"
        return outcome.reason

    assert "pinned and" in refused(a, b) and "both stay" in refused(a, b, c)
    assert "not among the lessons" in refused(a, c, shown=[a])
    assert "different conditions" in refused(zubi, far, when="a verb", do="use sort")
    assert "different tasks" in refused(c, general) and "different tasks" in refused(c, one)
    assert "is retired" in refused(c, gone)
    stale = c.model_copy(update={"version": 7})
    assert "has changed since" in refused(a, c, shown=[a, stale])
    assert all(x.version == 1 for x in every)
    d = add(sqlite_session, "the letters of a word are to be counted", "spell it")
    assert "grader" in refused(c, d, shown=[c, d], do="ask the grader")
    assert "answer of the task" in refused(c, d, shown=[c, d], do="answer 4 2 9")
    assert f"lesson {zubi.id} already" in refused(c, d, shown=[c, d], when=SAYS, do="spell it")
    assert all(x.version == 1 for x in (*every, d)) and not links(sqlite_session, c.id)


def test_where_a_person_reviews_a_merge_waits_once_and_changes_nothing(sqlite_session):
    old, new = add(sqlite_session, *SPELL), add(sqlite_session, *SPELT)
    edit = merging(old, new, do="spell it out, with a counter")
    first, second = (
        apply(sqlite_session, edit, shown=[old, new], require_approval=True) for _ in range(2)
    )
    assert (first.outcome, second.outcome) == ("quarantined", "known") and "person" in first.reason
    assert (
        "person"
        in apply(sqlite_session, merging(old, new), shown=[old, new], require_approval=True).reason
    )
    assert (old.version, new.version) == (1, 1) and {
        x.kind for x in links(sqlite_session, old.id)
    } == {"proposed"}


def test_approving_what_was_proposed_retires_what_it_replaces(tmp_path):
    ws = Workspace(Settings(db=str(tmp_path / "lessons.db")))
    with ws.store.write() as s:
        old, new = add(s, *SPELL), add(s, *SPELT)
        outcome = apply(
            s,
            merging(old, new, do="spell it out, with a counter"),
            shown=[old, new],
            require_approval=True,
        )
        ids = [old.id, new.id]
    assert ws.lessons.approve(outcome.lesson_id).status == "active"
    assert [ws.lessons.get(i).status for i in ids] == ["retired", "retired"]
    assert {(x.other_id, x.kind) for x in ws.lessons.links(outcome.lesson_id)} >= {
        (i, "supersedes") for i in ids
    }
    assert ws.lessons.undo(ids[0]).status == "candidate", "a person may have both"


def test_what_was_read_outside_merges_nothing(sqlite_session):
    old, new = add(sqlite_session, *SPELL), add(sqlite_session, *SPELT)
    assert (
        apply(sqlite_session, merging(old, new), shown=[old, new], trust="untrusted").outcome
        == "refused"
    )
    assert (old.version, new.version) == (1, 1)


def test_a_merge_must_win_for_each_of_its_lessons():
    three, seven = Lesson(id=3, when="a", do="b"), Lesson(id=7, when="c", do="d")
    edit = Edit("merge", "a", "b", lesson_ids=(3, 7))
    assert select_winning_edits([ProposedEdits([edit], [three, seven])]) == [[True]]
    assert select_winning_edits(
        [ProposedEdits([edit], [three, seven]), ProposedEdits([], [seven], content=True)]
    ) == [
        [False],
        [],
    ]
    retire = Edit("retire", why="x", lesson_id=7)
    assert select_winning_edits(
        [ProposedEdits([edit]), ProposedEdits([retire]), ProposedEdits([retire])]
    ) == [
        [False],
        [True],
        [True],
    ]


# -- tidying up
# --------------------------------------------------------------------------------------------------------


def tidy(store, answer=None, **more):
    scribe = FixedModel(answer)
    scribe.active = "an adapter"

    def model():
        assert answer is not None, "the model is not needed"
        return scribe

    result = merge(model, store, Settings(), **more)
    return result, scribe


def test_exact_duplicates_are_merged_without_a_model_and_verbs_are_no_duplicates(sqlite_store):
    with sqlite_store.write() as s:
        for verb in ("zubi", "fapo", "kimo"):
            add(s, f"the task says {verb}", "use sort")
        one, two = (
            add(s, "The task says: zubi", "use the sort"),
            add(s, SAYS, "use sort", scope="letters"),
        )
    for dry_run in (True, False):
        result, _ = tidy(sqlite_store, dry_run=dry_run)
        assert [(x["outcome"], x["lesson"], x["gone"]) for x in result.changes] == [
            ("merged", 1, [one.id])
        ]
        assert result.in_use["dialect"]["lessons"] == 3 + dry_run and not result.asked
    with sqlite_store.read() as s:
        assert (db.get(s, one.id).status, db.get(s, two.id).status) == ("retired", "candidate")
    assert not tidy(sqlite_store)[0].changes


def test_near_duplicates_are_for_the_bare_model_and_its_answer_is_kept(sqlite_store):
    with sqlite_store.write() as s:
        a, b = add(s, *SPELL), add(s, *SPELT)
        add(s, SAYS, "use sort")
    answer = f"MERGE {a.id} {b.id} when: counting letters of a word do: spell it, with a counter\nRETIRE 3 why: no"
    result, scribe = tidy(sqlite_store, answer, dry_run=True)
    assert [x["outcome"] for x in result.changes] == ["merged", "refused"] and result.asked[
        0
    ].lessons == [a.id, b.id]
    result, scribe = tidy(sqlite_store, answer, scope="dialect")
    assert scribe.asked_with == [None] and scribe.active == "an adapter"
    prompt = scribe.prompts[0]
    assert f"lesson {a.id} when: {SPELL[0]} do: {SPELL[1]}" in prompt and "zubi" not in prompt
    with sqlite_store.read() as s:
        assert (db.get(s, a.id).do, db.get(s, b.id).status) == (
            "spell it, with a counter",
            "retired",
        )
        assert db.get(s, 3).status == "candidate"
        assert answer.split("\n")[0] in links(s, b.id)[0].why
    assert not tidy(sqlite_store)[0].asked


def test_an_answer_that_says_none_or_adds_or_rambles_changes_nothing(sqlite_store):
    with sqlite_store.write() as s:
        add(s, *SPELL), add(s, *SPELT)
    assert not tidy(sqlite_store, "NONE")[0].changes
    (change,) = tidy(sqlite_store, "ADD when: always do: use sort")[0].changes
    assert change["outcome"] == "refused" and "only merges and retires" in change["reason"]
    assert (
        "no edit in the answer" in tidy(sqlite_store, "They are all fine.")[0].asked[0].problems[0]
    )
    with sqlite_store.read() as s:
        assert all(x.version == 1 for x in db.listing(s)) and db.count(s) == 2


def test_the_model_is_told_which_words_stay_and_not_asked_where_all_do(sqlite_store):
    with sqlite_store.write() as s:
        a, _ = add(s, *SPELL, pinned=True), add(s, *SPELT)
    _, scribe = tidy(sqlite_store, "NONE")
    assert f"lesson {a.id} when: {SPELL[0]} do: {SPELL[1]} (keep these words)" in scribe.prompts[0]
    with sqlite_store.write() as s:
        db.revise(s, 2, author="human", pinned=True)
    assert not tidy(sqlite_store)[0].asked


def test_a_tidy_up_that_loses_too_much_is_refused_whole(sqlite_store):
    with sqlite_store.write() as s:
        for word in ("paper", "river"):
            for when in (
                f"counting letters of the word {word}",
                f"you count letters of the word {word}",
            ):
                row = add(
                    s, when, "spell it out and keep a counter", author="human", status="active"
                )
    assert row.id == 4
    result, _ = tidy(
        sqlite_store, "RETIRE 1 why: no\nRETIRE 2 why: no\nRETIRE 3 why: no\nRETIRE 4 why: no"
    )
    assert "4 of 4" in result.alarm and [x["outcome"] for x in result.changes][-1] == "alarm"
    with sqlite_store.read() as s:
        assert all((x.version, x.status) == (1, "active") for x in db.listing(s))


def test_a_lesson_that_changed_while_the_model_was_asked_is_left_alone(sqlite_store):
    with sqlite_store.write() as s:
        a, _ = add(s, *SPELL), add(s, *SPELT)

    class Slow(FixedModel):
        def solve(self, prompt, rng):
            with sqlite_store.write() as s:
                db.revise(
                    s, a.id, author="human", do="spell the word out and keep a counter in mind"
                )
            return super().solve(prompt, rng)

    result = merge(
        lambda: Slow("MERGE 1 2 when: counting letters of a word do: spell it"),
        sqlite_store,
        Settings(),
    )
    assert "has changed since" in result.changes[0]["reason"]
