"""Curating: MERGE, tidying up near duplicates, contradictions, proven lessons, the shrink alarm."""

import pytest
from day_model import RuleModel, dialect

from reflect.config import Settings
from reflect.day.edits import Evidence, apply_edits
from reflect.day.election import Ballot, elect
from reflect.day.keeping import Consolidation
from reflect.day.likeness import alike, apart, families, keeps, stems, telling
from reflect.day.merge import merge
from reflect.day.reflection import Edit
from reflect.day.review import Group, Review, edit_lessons
from reflect.records import Exposure, Lesson, Reflection, Rollout, Trial
from reflect.store import Store, runs
from reflect.store import lessons as db
from reflect.store.links import link, links, successor
from reflect.workspace import Workspace

COUNT = RuleModel().count_tokens
ZUBI = dialect.Dialect.task("zubi", "reverse", [9, 2, 4], "practice")
SAYS = "the task says zubi"
SPELL = ("counting the letters of a word", "spell the word out and keep a counter")
SPELT = ("you count letters of a word", "spell the word out, keep a counter for it")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "lessons.db"))


@pytest.fixture
def s(store):
    with store.write() as session:
        yield session


def add(s, when, do, **more):
    return db.add(s, **{"author": "model", "scope": "dialect", **more}, when=when, do=do)


def apply(s, edit, shown=(), task=ZUBI, contrast=True, **more):
    words = {"scope": "dialect", "profile": "default", "shown": [x.model_copy() for x in shown], **more}
    return apply_edits(s, [edit], Evidence(task=task, contrast=contrast, **words), count_tokens=COUNT)[0]


def merging(*lessons, when=SPELL[0], do=SPELL[1]):
    return Edit("merge", when, do, lesson_ids=tuple(x.id for x in lessons))


def prove(s, lesson, verdict="accept"):
    words = {"effect": 0.3, "low": 0.1, "high": 0.5, "n": 80}
    s.add(Trial(lesson_id=lesson.id, version=lesson.version, kind="withhold", verdict=verdict, **words))
    s.flush()


# -- likeness ----------------------------------------------------------------------------------------------------------


def lesson(when, do="use sort"):
    return Lesson(when=when, do=do)


def test_one_telling_word_makes_two_things_of_one_sentence():
    conditions = [SAYS, "the task says fapo", "the task says the word fapo"]
    told = telling(conditions)
    assert {"zubi", "fapo"} <= told and "says" not in told
    assert apart(SAYS, conditions[1]) and apart(SAYS, conditions[2], told)
    assert not apart("counting letters in a word", "you count the letters of a word")
    assert apart("at most 3 words", "at most 4 words in a line") and apart("use sort", "do not use sort")
    assert not alike(lesson(SAYS), lesson(conditions[2]), told)
    assert alike(lesson(*SPELL), lesson(*SPELT)) and not alike(lesson(*SPELL), lesson(SAYS))
    assert alike(lesson(SAYS, "use sort"), lesson(SAYS, "sort it, then give the list")) is True
    assert not alike(lesson(SAYS, "use sort"), lesson(SAYS, "use swap")), "other advice is a contradiction"


def test_a_condition_is_kept_by_one_that_names_all_of_it():
    assert keeps("counting letters or vowels in a word", "counting letters in a word")
    assert keeps("You count the letters of a word!", "counting letters of a word")
    assert not keeps("the task says fapo", SAYS) and not keeps("a task", SAYS)
    assert stems("zubis") != stems("zubi"), "made-up words are short: nothing is cut from them"


def test_all_of_a_family_are_alike():
    rows = [lesson("a b c d e f", "x"), lesson("a b c d e f g h", "x"), lesson("a b c d e f g h i j k", "x")]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert alike(rows[1], rows[2]) and not alike(rows[0], rows[2])
    assert families(rows, pairs) == [[0, 1]]
    assert families(rows, []) == []


# -- MERGE -------------------------------------------------------------------------------------------------------------


def test_the_oldest_takes_the_text_and_the_others_retire_with_a_link_and_all_has_an_undo(s):
    old, new = add(s, *SPELL, status="active", tags=["words"]), add(s, *SPELT, tags=["count"])
    edit = merging(new, old, when="counting letters of a word", do="spell it out, with a counter")
    outcome = apply(s, edit, shown=[old, new])
    assert (outcome.outcome, outcome.lesson_id, outcome.gone) == ("merged", old.id, (new.id,))
    assert (old.do, old.status, old.version, old.tags) == (edit.do, "candidate", 2, ["count", "words"])
    assert (new.status, db.history(s, new.id)[-1].reason) == ("retired", f"merged into lesson {old.id}")
    (found,) = links(s, new.id)
    assert (found.lesson_id, found.other_id, found.kind) == (old.id, new.id, "merged")
    assert links(s, old.id) == [found] and successor(s, new.id) == old.id and successor(s, old.id) is None
    assert outcome.row()["ids"] == [new.id, old.id] and outcome.row()["gone"] == [new.id]
    again = apply(s, Edit("add", *SPELT))
    assert (again.outcome, again.lesson_id) == ("known", old.id), "what was merged does not come back by itself"
    db.undo(s, new.id)
    db.undo(s, old.id)
    assert (old.do, old.status, new.do, new.status) == (SPELL[1], "active", SPELT[1], "candidate")


def test_the_same_text_needs_no_new_trial(s):
    old, new = add(s, *SPELL, status="active"), add(s, *SPELT)
    apply(s, merging(old, new), shown=[old, new])
    assert (old.status, old.version, new.status) == ("active", 1, "retired")


@pytest.mark.parametrize("why", ["pinned", "proven", "in the weights"])
def test_words_that_are_pinned_proven_or_slept_stay_and_the_others_go_into_them(s, why):
    loose = add(s, *SPELL)
    held = add(s, *SPELT, status="distilled" if why == "in the weights" else "active", pinned=why == "pinned")
    if why == "proven":
        prove(s, held)
    outcome = apply(s, merging(loose, held, do="say it letter by letter"), shown=[loose, held])
    assert (outcome.outcome, outcome.lesson_id, outcome.edit.do) == ("merged", held.id, SPELT[1])
    assert (held.version, held.do, loose.status) == (1, SPELT[1], "retired")


def test_what_no_merge_may_do(s):
    a, b = add(s, *SPELL, pinned=True), add(s, *SPELT, pinned=True)
    c, far = add(s, "letters of a word are counted", "spell it"), add(s, "the task says fapo", "use sort")
    zubi = add(s, SAYS, "use sort")
    general = add(s, *SPELT, scope="")
    one = add(s, *SPELT, tags=["task:abc"])
    gone = add(s, *SPELT, status="retired")
    every = [a, b, c, far, zubi, general, one, gone]

    def refused(*lessons, shown=every, **more):
        outcome = apply(s, merging(*lessons, **more), shown=shown)
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
    d = add(s, "the letters of a word are to be counted", "spell it")
    assert "grader" in refused(c, d, shown=[c, d], do="ask the grader")
    assert "answer of the task" in refused(c, d, shown=[c, d], do="answer 4 2 9")
    assert f"lesson {zubi.id} already" in refused(c, d, shown=[c, d], when=SAYS, do="spell it")
    assert all(x.version == 1 for x in (*every, d)) and not links(s, c.id)


def test_where_a_person_reviews_a_merge_waits_once_and_changes_nothing(s):
    old, new = add(s, *SPELL), add(s, *SPELT)
    edit = merging(old, new, do="spell it out, with a counter")
    first, second = (apply(s, edit, shown=[old, new], review=True) for _ in range(2))
    assert (first.outcome, second.outcome) == ("quarantined", "known") and "person" in first.reason
    assert "person" in apply(s, merging(old, new), shown=[old, new], review=True).reason
    assert (old.version, new.version) == (1, 1) and {x.kind for x in links(s, old.id)} == {"proposed"}


def test_approving_what_was_proposed_retires_what_it_replaces(tmp_path):
    ws = Workspace(Settings(db=str(tmp_path / "lessons.db")))
    with ws.store.write() as s:
        old, new = add(s, *SPELL), add(s, *SPELT)
        outcome = apply(s, merging(old, new, do="spell it out, with a counter"), shown=[old, new], review=True)
        ids = [old.id, new.id]
    assert ws.lessons.approve(outcome.lesson_id).status == "active"
    assert [ws.lessons.get(i).status for i in ids] == ["retired", "retired"]
    assert {(x.other_id, x.kind) for x in ws.lessons.links(outcome.lesson_id)} >= {(i, "supersedes") for i in ids}
    assert ws.lessons.undo(ids[0]).status == "candidate", "a person may have both"


def test_what_was_read_outside_merges_nothing(s):
    old, new = add(s, *SPELL), add(s, *SPELT)
    assert apply(s, merging(old, new), shown=[old, new], trust="untrusted").outcome == "refused"
    assert (old.version, new.version) == (1, 1)


def test_a_merge_must_win_for_each_of_its_lessons():
    three, seven = Lesson(id=3, when="a", do="b"), Lesson(id=7, when="c", do="d")
    edit = Edit("merge", "a", "b", lesson_ids=(3, 7))
    assert elect([Ballot([edit], [three, seven])]) == [[True]]
    assert elect([Ballot([edit], [three, seven]), Ballot([], [seven], content=True)]) == [[False], []]
    retire = Edit("retire", why="x", lesson_id=7)
    assert elect([Ballot([edit]), Ballot([retire]), Ballot([retire])]) == [[False], [True], [True]]


# -- contradiction -----------------------------------------------------------------------------------------------------


def test_a_general_lesson_that_is_contradicted_is_not_reworded_but_superseded(s):
    general = add(s, SAYS, "use sort", scope="")
    outcome = apply(s, Edit("add", SAYS, "use reverse"), shown=[general])
    new = db.get(s, outcome.lesson_id)
    assert (outcome.outcome, outcome.gone, new.scope, new.status) == (
        "superseded", (general.id,), "dialect", "candidate",
    )  # fmt: skip
    assert (general.do, general.status) == ("use sort", "retired")
    (found,) = links(s, general.id)
    assert (found.lesson_id, found.kind, found.why) == (
        new.id,
        "supersedes",
        "a comparison of lessons says: use reverse",
    )
    back = apply(s, Edit("add", SAYS, "use sort"), shown=[new])
    assert (back.outcome, back.lesson_id, back.gone) == ("superseded", general.id, (new.id,)), "and the other way round"


def test_of_two_lessons_of_one_condition_the_newer_evidence_leaves_one(s):
    mine, general = add(s, SAYS, "use sort"), add(s, SAYS, "use swap", scope="")
    outcome = apply(s, Edit("add", SAYS, "use reverse"), shown=[mine, general])
    assert (outcome.outcome, outcome.lesson_id, outcome.gone) == ("superseded", mine.id, (general.id,))
    assert mine.do == "use reverse" and general.status == "retired"
    assert "says otherwise than version 1 (model): use sort" in db.history(s, mine.id)[-1].reason


def test_a_pinned_lesson_of_the_same_condition_stops_it_all(s):
    mine, general = add(s, SAYS, "use sort"), add(s, SAYS, "use swap", scope="", pinned=True, author="human")
    outcome = apply(s, Edit("add", SAYS, "use reverse"), shown=[mine, general])
    assert outcome.outcome == "refused" and mine.version == general.version == 1


def test_a_revision_that_makes_two_conditions_equal_supersedes_the_other(s):
    near, other = add(s, "the task says the word zubi", "use sort"), add(s, SAYS, "use swap")
    edit = Edit("revise", SAYS, "use reverse", lesson_id=near.id)
    assert apply(s, edit, shown=[near], contrast=False).outcome == "kept", "the other one was not tried"
    outcome = apply(s, edit, shown=[near, other], contrast=False)
    assert (outcome.lesson_id, outcome.gone) == (near.id, (other.id,))
    assert (near.when, near.do, other.status) == (SAYS, "use reverse", "retired")
    assert [x.kind for x in links(s, other.id)] == ["supersedes"]


def test_a_link_said_again_is_one_link(s):
    a, b = add(s, SAYS, "use sort"), add(s, SAYS, "use swap")
    link(s, a.id, b.id, "merged", "first")
    link(s, a.id, b.id, "merged", "then")
    link(s, b.id, a.id, "merged")
    assert [x.why for x in links(s, a.id)] == ["then", ""]
    assert successor(s, a.id) == b.id, "a ring of undone merges ends somewhere"
    for kind, other in (("other", b.id), ("merged", a.id)):
        with pytest.raises(ValueError):
            link(s, a.id, other, kind)


# -- a proven lesson ---------------------------------------------------------------------------------------------------


def group(s, lesson, seen, missed=(), name="t", held=False):
    """The reflection of one group: the rewards of the rollouts that saw the lesson, and of those that missed it."""
    run = runs.list_runs(s)[0] if runs.list_runs(s) else None
    if run is None:
        words = {"n": 1, "k": 8, "seed": 1, "model": "rule", "model_fingerprint": "rule-1"}
        run = runs.start_run(s, key="run", taskset="dialect", profile="default", adapter_id=None, config={}, **words)
    task = dialect.Dialect.task("zubi", "reverse", [9, 2, len(name)], "practice")
    runs.save_tasks(s, "dialect", [task])
    rows, exposed = [], []
    for i, reward in enumerate((*seen, *missed)):
        rows.append(Rollout(run_id=run.id, task_key=task.key, index=i, messages=[], reward=reward))
        shown = [] if held else [(i < len(seen), 0.9)]
        exposed.append(
            [
                Exposure(rollout_id=0, lesson_id=lesson.id, version=lesson.version, shown=x, probability=p)
                for x, p in shown
            ]
        )
    runs.save_rollouts(s, rows, exposed)
    row = Reflection(run_id=run.id, task_key=task.key, pack_hash="", pack_tokens=0, prompt_version="", raw="", edits=[])
    return runs.save_reflection(s, row)


def ask(s, lesson, review, edit=None, **more):
    outcome = apply(
        s, edit or Edit("revise", SAYS, "use swap", lesson_id=lesson.id), [lesson], reflection_id=review.id, **more
    )
    review.edits = [outcome.row()]
    s.add(review)
    s.flush()
    return outcome.outcome


@pytest.fixture
def good(s):
    lesson = add(s, SAYS, "use sort", status="active")
    prove(s, lesson)
    return lesson


def test_one_group_that_went_well_with_a_proven_lesson_changes_nothing(s, good):
    review = group(s, good, [1, 1, 1, 0, 1, 1, 1], [0])
    edits = [
        Edit("revise", SAYS, "use swap", lesson_id=good.id),
        Edit("retire", why="it failed once", lesson_id=good.id),
        Edit("add", SAYS, "use swap"),
    ]
    assert [ask(s, good, review, edit) for edit in edits] == ["kept"] * 3
    assert good.version == 1
    bare = add(s, "the task says fapo", "use sort", status="active")
    edit = Edit("revise", "the task says fapo", "use swap", lesson_id=bare.id)
    assert apply(s, edit, [bare]).outcome == "revised", "one that was never proven has no such shield"


def test_a_group_that_did_worse_without_it_does_not_speak_against_it(s, good):
    assert ask(s, good, group(s, good, [1, 0, 1, 0, 0, 1, 0], [0])) == "kept"


def test_where_all_attempts_with_it_fail_and_one_without_finds_the_way_it_goes_at_once(s, good):
    assert ask(s, good, group(s, good, [0] * 7, [1])) == "revised"
    assert good.do == "use swap"


def test_else_a_second_group_of_the_run_must_want_it_too(s, good):
    assert ask(s, good, group(s, good, [0] * 8, name="a")) == "defended"
    assert good.version == 1
    assert ask(s, good, group(s, good, [1] * 8, name="ab")) == "kept", "one that went well is no second voice"
    assert ask(s, good, group(s, good, [0] * 8, name="abc")) == "revised"
    assert (
        ask(s, good, group(s, good, [0] * 8, name="abcd"), Edit("retire", why="x", lesson_id=good.id)) == "retired"
    ), "its new text has proven nothing"


def test_a_lesson_that_helps_is_bettered_when_three_groups_ask_for_the_same_words(s, good):
    rewards = [1, 1, 1, 0, 1, 1, 1]
    assert [ask(s, good, group(s, good, rewards, name=name)) for name in ("a", "ab")] == ["kept", "kept"]
    other = Edit("revise", SAYS, "use rotate", lesson_id=good.id)
    assert ask(s, good, group(s, good, rewards, name="abc"), other) == "kept", "other words are another wish"
    assert ask(s, good, group(s, good, [1] * 7, name="abcd")) == "kept", "where it always works nothing is to better"
    assert ask(s, good, group(s, good, rewards, name="abcde")) == "revised"


def test_what_the_weights_hold_all_attempts_have(s):
    slept = add(s, SAYS, "use sort", status="distilled")
    prove(s, slept)
    more = {"edit": Edit("add", SAYS, "use swap"), "held": [slept]}
    assert ask(s, slept, group(s, slept, [0] * 7 + [1], held=True, name="a"), **more) == "defended"
    assert ask(s, slept, group(s, slept, [0] * 8, held=True, name="ab"), **more) == "superseded"


def test_a_proven_lesson_that_no_attempt_of_the_group_saw_stays(s, good):
    other = add(s, "else", "use swap")
    assert ask(s, good, group(s, other, [0] * 7, [1]), Edit("add", SAYS, "use swap")) == "kept"


def test_a_later_verdict_or_another_text_ends_the_proof(s, good):
    prove(s, good, "undecided")
    assert ask(s, good, group(s, good, [1] * 8, name="a")) == "kept"
    prove(s, good, "reject")
    assert ask(s, good, group(s, good, [1] * 8, name="ab")) == "revised"


# -- the shrink alarm --------------------------------------------------------------------------------------------------


VERBS = "zubi fapo kimo ruda nelo tive gosu bima".split()


def wellknown(s, n):
    return [add(s, f"the task says {verb}", "use sort", pinned=True, author="human") for verb in VERBS[:n]]


@pytest.mark.parametrize(
    ("n", "lost", "alarm"), [(6, 2, False), (6, 3, True), (2, 1, False), (2, 2, True), (8, 0, False)]
)
def test_a_consolidation_that_loses_more_than_a_third_is_taken_back_whole(s, n, lost, alarm):
    rows = wellknown(s, n)
    add(s, "unproven", "use sort")
    tidy = Consolidation(s, "default")
    for row in rows[:lost]:
        db.revise(s, row.id, author="model", status="retired")
    reason = tidy.close()
    assert bool(reason) == alarm
    assert db.count(s, status="retired") == (0 if alarm else lost)
    if alarm:
        assert f"{lost} of {n} well-supported" in reason


def test_what_a_successor_keeps_and_what_was_never_supported_is_not_lost(s):
    rows = wellknown(s, 4)
    doubtful = [add(s, f"on {word}", "use swap", status="active") for word in ("monday", "tuesday", "sunday")]
    tidy = Consolidation(s, "default")
    for row in [*rows, *doubtful]:
        db.revise(s, row.id, author="model", status="retired")
    for row in rows:
        add(s, f"{row.when} at last", "use sort")
    assert tidy.close() == "" and db.count(s, status="retired") == 7
    tidy = Consolidation(s, "default")
    add(s, "for a rehearsal", "use sort")
    assert tidy.close(keep=False) == "" and db.find_exact(s, "for a rehearsal", "use sort") is None


def test_a_wave_that_loses_too_much_is_one_outcome_and_changes_nothing(store):
    with store.write() as s:
        rows = [add(s, f"the task says {verb}", "use sort", status="active") for verb in VERBS[:3]]
        for row in rows:
            db.revise(s, row.id, author="human", status="candidate")  # a person put it there: it is well supported
        reviews = []
        for i, row in enumerate(rows):
            found = group(s, row, [0] * 4, name="x" * i)
            task = dialect.Dialect.task("zubi", "reverse", [9, 2, i], "practice")
            attempts = runs.rollouts(s, found.run_id, found.task_key)
            run = runs.get_run(s, found.run_id)
            fresh = Reflection(**found.model_dump(exclude={"id", "created"}))
            s.delete(found)
            edit = Edit("retire", why="it failed", lesson_id=row.id)
            reviews.append(Review(Group(task, [row.model_copy()], [], attempts), fresh, [edit], []))
    edit_lessons(RuleModel(), store, Settings(), run, reviews, [review.group for review in reviews])
    with store.read() as s:
        saved = [row.edits for row in runs.reflections(s, run.id)]
        assert db.count(s, status="candidate") == 3
    assert [[edit["outcome"] for edit in edits] for edits in saved] == [["alarm", "refused"], ["refused"], ["refused"]]
    assert "3 of 3" in saved[0][0]["reason"]


# -- tidying up --------------------------------------------------------------------------------------------------------


class Scribe(RuleModel):
    """Answers what it was told to, and remembers that it was the bare base that was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked_with = answer, []

    def solve(self, prompt, rng):
        self.asked_with.append(self.active)
        return self.answer


def tidy(store, answer=None, **more):
    scribe = Scribe(answer)
    scribe.active = "an adapter"

    def model():
        assert answer is not None, "the model is not needed"
        return scribe

    found = merge(model, store, Settings(), **more)
    return found, scribe


def test_exact_duplicates_are_merged_without_a_model_and_verbs_are_no_duplicates(store):
    with store.write() as s:
        for verb in ("zubi", "fapo", "kimo"):
            add(s, f"the task says {verb}", "use sort")
        one, two = add(s, "The task says: zubi", "use the sort"), add(s, SAYS, "use sort", scope="letters")
    for dry_run in (True, False):
        found, _ = tidy(store, dry_run=dry_run)
        assert [(x["outcome"], x["lesson"], x["gone"]) for x in found.changes] == [("merged", 1, [one.id])]
        assert found.standing["dialect"]["lessons"] == 3 + dry_run and not found.asked
    with store.read() as s:
        assert (db.get(s, one.id).status, db.get(s, two.id).status) == ("retired", "candidate")
    assert not tidy(store)[0].changes


def test_near_duplicates_are_for_the_bare_model_and_its_answer_is_kept(store):
    with store.write() as s:
        a, b = add(s, *SPELL), add(s, *SPELT)
        add(s, SAYS, "use sort")
    answer = f"MERGE {a.id} {b.id} when: counting letters of a word do: spell it, with a counter\nRETIRE 3 why: no"
    found, scribe = tidy(store, answer, dry_run=True)
    assert [x["outcome"] for x in found.changes] == ["merged", "refused"] and found.asked[0].lessons == [a.id, b.id]
    found, scribe = tidy(store, answer, scope="dialect")
    assert scribe.asked_with == [None] and scribe.active == "an adapter"
    prompt = scribe.prompts[0]
    assert f"lesson {a.id} when: {SPELL[0]} do: {SPELL[1]}" in prompt and "zubi" not in prompt
    with store.read() as s:
        assert (db.get(s, a.id).do, db.get(s, b.id).status) == ("spell it, with a counter", "retired")
        assert db.get(s, 3).status == "candidate"
        assert answer.split("\n")[0] in links(s, b.id)[0].why
    assert not tidy(store)[0].asked


def test_an_answer_that_says_none_or_adds_or_rambles_changes_nothing(store):
    with store.write() as s:
        add(s, *SPELL), add(s, *SPELT)
    assert not tidy(store, "NONE")[0].changes
    (change,) = tidy(store, "ADD when: always do: use sort")[0].changes
    assert change["outcome"] == "refused" and "only merges and retires" in change["reason"]
    assert "unreadable line" in tidy(store, "They are all fine.")[0].asked[0].problems[0]
    with store.read() as s:
        assert all(x.version == 1 for x in db.listing(s)) and db.count(s) == 2


def test_the_model_is_told_which_words_stay_and_not_asked_where_all_do(store):
    with store.write() as s:
        a, _ = add(s, *SPELL, pinned=True), add(s, *SPELT)
    _, scribe = tidy(store, "NONE")
    assert f"lesson {a.id} when: {SPELL[0]} do: {SPELL[1]} (keep these words)" in scribe.prompts[0]
    with store.write() as s:
        db.revise(s, 2, author="human", pinned=True)
    assert not tidy(store)[0].asked


def test_a_tidy_up_that_loses_too_much_is_refused_whole(store):
    with store.write() as s:
        for word in ("paper", "river"):
            for when in (f"counting letters of the word {word}", f"you count letters of the word {word}"):
                row = add(s, when, "spell it out and keep a counter", author="human", status="active")
    assert row.id == 4
    found, _ = tidy(store, "RETIRE 1 why: no\nRETIRE 2 why: no\nRETIRE 3 why: no\nRETIRE 4 why: no")
    assert "4 of 4" in found.alarm and [x["outcome"] for x in found.changes][-1] == "alarm"
    with store.read() as s:
        assert all((x.version, x.status) == (1, "active") for x in db.listing(s))


def test_a_lesson_that_changed_while_the_model_was_asked_is_left_alone(store):
    with store.write() as s:
        a, _ = add(s, *SPELL), add(s, *SPELT)

    class Slow(Scribe):
        def solve(self, prompt, rng):
            with store.write() as s:
                db.revise(s, a.id, author="human", do="spell the word out and keep a counter in mind")
            return super().solve(prompt, rng)

    found = merge(lambda: Slow("MERGE 1 2 when: counting letters of a word do: spell it"), store, Settings())
    assert "has changed since" in found.changes[0]["reason"]
