"""Lessons: versions, statuses, undo, search."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import pytest
from sqlmodel import Session

import reflect
from reflect.errors import Conflict, UnknownName, UsageError
from reflect.lessons import similarity
from reflect.lessons.protection import EditTransaction
from reflect.records import LESSON_STATUSES, Exposure, Lesson, Reflection, Rollout, Trial
from reflect.store import Store, doctor, lesson_evidence, lessons, runs
from reflect.store.lessons import link, links
from reflect.tasksets.task import Task


def add(
    s: Session, when: str = "counting letters", do: str = "spell the word out", **more
) -> Lesson:
    return lessons.add(s, when=when, do=do, author="human", **more)


# -- versions
# ----------------------------------------------------------------------------------------------------------


def test_every_change_is_a_version_with_author_and_reason(store: Store):
    with store.write() as s:
        lesson = add(s, scope="letters", tags=["spelling"], tokens=9)
        lessons.revise(
            s, lesson.id, author="model", reason="it helped", status="active", tags=("a", "b")
        )
        lessons.revise(
            s, lesson.id, author="human", do="  spell\n it ", when="counting\tletters", tokens=7
        )
    with store.read() as s:
        first, second, third = lessons.history(s, 1)
        head = lessons.get(s, 1)
    assert [(v.version, v.parent, v.author) for v in (first, second, third)] == [
        (1, None, "human"),
        (2, 1, "model"),
        (3, 2, "human"),
    ]
    assert (first.tags, second.tags, second.status, second.reason) == (
        ["spelling"],
        ["a", "b"],
        "active",
        "it helped",
    )
    assert lessons.content(head) == lessons.content(third)
    assert (head.version, head.when, head.do, head.tokens) == (3, "counting letters", "spell it", 7)
    assert doctor.check(store) == []


def test_a_change_that_changes_nothing_is_no_version(store: Store):
    with store.write() as s:
        add(s, tags=["x"])
        assert (
            lessons.revise(s, 1, author="human", do=" spell the  word out ", tags=["x"]).version
            == 1
        )


def test_two_people_at_one_lesson_the_second_is_told_and_nothing_is_overwritten(store: Store):
    with store.write() as s:
        add(s)
        lessons.revise(s, 1, author="human", do="first", expect_version=1)
        with pytest.raises(Conflict, match="version 2, yours was 1"):
            lessons.revise(s, 1, author="human", do="second", expect_version=1)
        assert lessons.get(s, 1).do == "first"


def test_a_pinned_text_is_a_persons(store: Store):
    with store.write() as s:
        add(s, pinned=True)
        with pytest.raises(Conflict, match="pinned"):
            lessons.revise(s, 1, author="model", do="otherwise")
        assert lessons.revise(s, 1, author="night", status="distilled").version == 2
        assert lessons.revise(s, 1, author="human", do="otherwise").version == 3


def test_new_text_of_a_distilled_lesson_returns_to_the_prompt(store: Store):
    with store.write() as s:
        add(s, status="distilled", tokens=9)
        assert lessons.revise(s, 1, author="human", scope="letters").status == "distilled"
        lesson = lessons.revise(s, 1, author="human", do="otherwise")
        assert (lesson.status, lesson.tokens) == ("active", 0)


def test_what_cannot_be_a_lesson_is_refused(store: Store):
    with store.write() as s:
        add(s)
        with pytest.raises(UsageError, match="'do' is empty"):
            add(s, do=" \n ")
        with pytest.raises(UsageError, match="'when' is empty"):
            lessons.revise(s, 1, author="human", when="")
        with pytest.raises(UnknownName, match=r"no lesson status 'odd'.*candidate"):
            lessons.revise(s, 1, author="human", status="odd")
        with pytest.raises(UnknownName, match="no lesson 7"):
            lessons.get(s, 7)
        with pytest.raises(UnknownName, match="no lesson None"):
            lessons.history(s, None)
        with pytest.raises(TypeError, match="has no colour"):
            lessons.revise(s, 1, author="human", colour="red")
        assert lessons.count(s) == 1 and lessons.get(s, 1).version == 1


def test_statuses_go_where_the_table_says(store: Store):
    assert set(lessons.TRANSITIONS) == set(LESSON_STATUSES)
    with store.write() as s:
        for before, after in product(LESSON_STATUSES, LESSON_STATUSES):
            lesson = add(s, status=before)
            if before == after or after in lessons.TRANSITIONS[before]:
                assert lessons.revise(s, lesson.id, author="human", status=after).status == after
            else:
                with pytest.raises(UsageError, match=f"is {before} and cannot become {after}"):
                    lessons.revise(s, lesson.id, author="human", status=after)


# -- undo
# --------------------------------------------------------------------------------------------------------------


def test_undo_of_undo_redoes(store: Store):
    with store.write() as s:
        add(s, tags=["old"], tokens=3)
        lessons.revise(s, 1, author="model", do="otherwise", status="retired", tags=[], tokens=4)
        new, old = (lessons.content(v) for v in reversed(lessons.history(s, 1)))
        for wanted in (old, new, old):
            assert lessons.content(lessons.undo(s, 1)) == wanted
        assert len(lessons.history(s, 1)) == 5


def test_undo_of_the_first_version_retires_and_its_undo_brings_back(store: Store):
    with store.write() as s:
        add(s)
        assert lessons.undo(s, 1).status == "retired"
        assert lessons.undo(s, 1).status == "candidate"


def test_undo_does_not_call_distilled_what_no_adapter_holds(store: Store):
    with store.write() as s:
        add(s, status="distilled")
        lessons.revise(s, 1, author="human", do="otherwise")
        lesson = lessons.undo(s, 1)
        assert (lesson.do, lesson.status) == ("spell the word out", "active")


# -- finding
# -----------------------------------------------------------------------------------------------------------


def test_search_ranks_by_rarity_and_filters(store: Store):
    with store.write() as s:
        add(s, when="the task says zubi", do="zubi means sort the list", scope="dialect")
        add(
            s,
            when="the task says fapo",
            do="fapo means reverse the list",
            scope="dialect",
            status="retired",
        )
        add(s, when="counting letters in a word", scope="letters", tags=["Zählen"])
        add(s, when="the task says zubi", do="ignore it", profile="other")

        def found(text: str, **how) -> list[int]:
            rows = lessons.search(s, text, **how)
            assert [score for _, score in rows] == sorted(
                (score for _, score in rows), reverse=True
            )
            return [lesson.id for lesson, _ in rows]

        assert found("apply zubi to the list 3 1 2")[0] == 1
        assert found("Fapo the task")[0] == 2
        assert 2 not in found("Fapo the task", statuses=("candidate",))
        assert found("task list word", scopes=["letters", ""]) == [3]
        assert found("how many LETTERS? count!") == [3], "stemmed: counting, letter"
        assert found("zahlen") == [3], "tags too, accents aside"
        assert found("zubi", profile="other") == [4] and found("zubi", profile="nobody") == []
        assert len(found("task list word letters", limit=2)) == 2


ODD = (
    '"',
    "' OR 1=1 --",
    "NEAR(a b)",
    "when:",
    "*",
    "a* AND",
    "",
    " ",
    "日本",
    "-x",
    "(((",
    "\0",
    "x\0y",
    "^",
    "🙂",
)


def test_any_text_is_a_safe_query(store: Store):
    with store.write() as s:
        add(s, when="a near word", do="日本 x and y")
        for text in ODD:
            lessons.search(s, text)
            lessons.find_exact(s, text, text)
        assert (
            lessons.search(s, "NEAR(a b)")
            and lessons.search(s, "日本")
            and not lessons.search(s, "")
        )


def test_search_follows_every_change(store: Store):
    with store.write() as s:
        add(s)
        lessons.revise(s, 1, author="human", do="use an abacus")
        assert [x.id for x, _ in lessons.search(s, "abacus")] == [1] and lessons.search(
            s, "spell"
        ) == []
        lessons.undo(s, 1)
        assert lessons.search(s, "abacus") == [] and [
            x.id for x, _ in lessons.search(s, "spelling")
        ] == [1]


def test_find_exact_is_deaf_to_case_spacing_and_punctuation(store: Store):
    with store.write() as s:
        add(s, when="Counting letters", do="Spell the word out, then count.")
        add(s, when="!", do="?")
        find = lambda when, do, profile="default": lessons.find_exact(s, when, do, profile)  # noqa: E731
        assert find("counting  LETTERS:", "spell the word out then count").id == 1
        assert find("!", "?").id == 2
        assert find("counting letters", "spell the word out") is None
        assert find("letters", "then count") is None
        assert find("counting letters", "spell the word out then count", "other") is None


def test_listing_pages_and_counts(store: Store):
    with store.write() as s:
        for i in range(10):
            add(
                s,
                do=f"way {i}",
                scope="letters" if i % 2 else "",
                status="active" if i < 4 else "retired",
            )
        ids = lambda **how: [lesson.id for lesson in lessons.listing(s, **how)]  # noqa: E731
        assert (
            ids() == list(range(1, 11))
            and ids(limit=3, offset=2) == [3, 4, 5]
            and ids(offset=8) == [9, 10]
        )
        assert ids(status="active", scope="") == [1, 3] and ids(
            status=("active", "retired"), scope="letters", limit=1
        ) == [2]
        assert ids(profile="other") == [] and ids(status=()) == []
        assert lessons.count(s) == 10 and lessons.count(s, status="active", scope="letters") == 2
        with pytest.raises(UnknownName):
            lessons.listing(s, status="odd")


def test_ten_thousand_lessons_list_and_search_in_milliseconds(store: Store):
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    verbs = [a + b for a in syllables for b in syllables]
    with store.write() as s:
        rows = [
            Lesson(
                when=f"the task says {verbs[i % 4000]}",
                do=f"way {i} to sort the list",
                scope=("a", "b", "")[i % 3],
                status=("active", "candidate")[i % 2],
                tokens=9,
            )
            for i in range(10_000)
        ]
        s.add_all(rows)
    with store.read() as s:
        s.connection()
        for text in (
            f"apply {verbs[7]} to the list",
            "the task says sort the list",
            "to " * 500 + verbs[8],
        ):
            took = []
            for _ in range(3):  # the fastest counts: the collector of garbage may pass by
                began = time.process_time()
                assert (
                    len(
                        lessons.search(
                            s, text, statuses=("active", "candidate"), scopes=("a", ""), limit=20
                        )
                    )
                    == 20
                )
                assert (
                    lessons.find_exact(s, f"the task says {verbs[9]}", "way 9 to sort the list").id
                    == 10
                )
                assert len(lessons.listing(s, status="active", scope="b", limit=50)) == 50
                took.append(time.process_time() - began)
            assert min(took) < 0.1  # some 10 ms; ten times that is a missing index


# -- the evidence of a lesson
# ---------------------------------------------------------------------------------------


def test_support_and_links(store: Store):
    with store.write() as s:
        mine, theirs = (
            add(s),
            lessons.add(s, when="sorting a list", do="look twice", author="model"),
        )
        words = {"effect": 0.2, "low": 0.1, "high": 0.3, "n": 50, "kind": "withhold"}
        assert [x.id for x in lesson_evidence.supported(s, "default")] == [mine.id], (
            "a person wrote it"
        )
        s.add(Trial(lesson_id=theirs.id, version=1, verdict="accept", **words))
        s.flush()
        assert [x.id for x in lesson_evidence.supported(s, "default")] == [mine.id, theirs.id]
        lessons.revise(s, theirs.id, author="model", do="look three times")
        assert not lesson_evidence.well_supported(s, theirs) and lesson_evidence.well_supported(
            s, lessons.version(s, theirs.id, 1)
        )
        link(s, mine.id, theirs.id, "supersedes", "said otherwise")
        assert [x.why for x in links(s, theirs.id)] == ["said otherwise"]
    assert doctor.check(store) == []


def test_the_attempts_of_a_group_are_told_apart_by_what_they_saw(store: Store):
    task = Task("one", [{"role": "user", "content": "Sort 3 1 2."}], "exact", "1 2 3")
    with store.write() as s:
        lesson = add(s)
        runs.save_tasks(s, "lists", [task])
        words = {
            "n": 1,
            "k": 3,
            "seed": 1,
            "model": "m",
            "model_fingerprint": "f",
            "adapter_id": None,
            "config": {},
        }
        run = runs.start_run(s, key="a", taskset="lists", profile="default", **words)
        rows = [
            Rollout(run_id=run.id, task_key=task.key, index=i, messages=[], reward=x)
            for i, x in enumerate((1, None, 0.5))
        ]
        shown = [
            Exposure(rollout_id=0, lesson_id=lesson.id, version=1, shown=i < 2, probability=0.9)
            for i in range(3)
        ]
        runs.save_rollouts(s, rows, [[x] for x in shown])
        words = {"pack_hash": "", "pack_tokens": 0, "prompt_version": "", "raw": ""}
        edits = [{"outcome": "defended", "lesson": lesson.id, "version": 1}]
        review = runs.save_reflection(
            s, Reflection(run_id=run.id, task_key=task.key, edits=edits, **words)
        )
        assert lesson_evidence.attempts(s, review.id, lesson) == ([1.0, 0.0], [0.5])
        assert (
            lesson_evidence.attempts(s, None, lesson) == ([], [])
            and lesson_evidence.complaints(s, review.id, lesson) == 0
        )
        assert list(lesson_evidence.other_tasks(s, "lists", "another")) == ["Sort 3 1 2."]
        assert list(lesson_evidence.other_tasks(s, "lists", task.key)) == []
        other = add(s, "sorting a list", "look twice")
        assert lesson_evidence.attempts(s, review.id, other) == ([], [1.0, 0.0, 0.5])


@pytest.mark.parametrize("keep", [True, False])
def test_what_would_lose_too_much_is_taken_back_and_the_transaction_goes_on(
    store: Store, keep: bool
):
    with store.write() as s:
        rows = [add(s, f"sorting {word}", "look twice") for word in ("numbers", "names", "colours")]
        tidy = EditTransaction(s, "default")
        lessons.revise(s, rows[0].id, author="model", status="retired")
        assert tidy.close(keep=keep) == ""
        tidy = EditTransaction(s, "default")
        for row in rows[1:]:
            lessons.revise(s, row.id, author="model", status="retired")
        assert "2 of " in tidy.close()
        add(s, "something else", "go on")
    with store.read() as s:
        assert lessons.count(s) == 4 and lessons.count(s, status="retired") == keep
    assert doctor.check(store) == []


SAME = [
    ("Spell the word, first!", "spell the  word first"),
    ("well-known", "well known"),
    ("use \u201csort\u201d", "use 'sort'"),
    ("`sort` it", "sort it."),
    ("naïve", "NAI\u0308VE"),
    ("the \u2014 word", "the word"),
]
DIFFERENT = [
    ("a + b", "a - b"), ("x > 3", "x < 3"), ("C", "C++"), ("C", "C#"), ("multiply by 1", "multiply by -1"),
    ("a = b", "a != b"), ("50%", "50"), ("$5", "\u20ac5"), ("x \u2264 3", "x \u2265 3"), ("x \u2192 y", "x \u2190 y"),
    ("a & b", "a | b"), ("a/b", "a b"), ("\u0915\u093f", "\u0915\u0940"), ("\u0e01\u0e34\u0e19", "\u0e01\u0e31\u0e19"),
    ("\u0628\u064e", "\u0628\u0650"), ("use \U0001f642", "use \U0001f641"), ("3-2", "3 2"),
]  # fmt: skip


def test_texts_that_differ_in_a_symbol_or_a_vowel_sign_are_two_lessons(tmp_path: Path):
    """Merging, adding and importing must not take one for the other."""
    lessons_of = reflect.open(tmp_path / "lessons.db", model="pocket").lessons
    for one, other in SAME:
        assert lessons.wording(one) == lessons.wording(other)
        assert similarity.identity(one) == similarity.identity(other)
    for i, pair in enumerate(DIFFERENT):
        assert lessons.wording(pair[0]) != lessons.wording(pair[1]), pair
        assert similarity.apart(*pair), pair
        for do in pair:
            lessons_of.add(f"case {i}", do)
    assert not lessons_of.merge().changes and len(lessons_of) == 2 * len(DIFFERENT)
    (tmp_path / "out.jsonl").write_text(lessons_of.export())
    other_db = reflect.open(tmp_path / "other.db", model="pocket").lessons
    assert {row.sign for row in other_db.import_(tmp_path / "out.jsonl")} <= {"+", "?"}
    assert {row.sign for row in other_db.import_(tmp_path / "out.jsonl")} == {"="}
    assert len(other_db) == 2 * len(DIFFERENT)
