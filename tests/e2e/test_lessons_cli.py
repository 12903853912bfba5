"""A person's hand on the lessons: approve, reject, diff, stats, rules, two people at one lesson,
export and import."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import RuleModel, dialect

import reflect
from reflect.cli import run_command
from reflect.errors import Conflict, UsageError
from reflect.export.wording import word_diff
from reflect.lessons.apply_edits import Evidence, apply_edits
from reflect.lessons.edit_format import Edit
from reflect.records import Exposure, Trial
from reflect.store import Store, doctor, forbidden_rules, nights, runs
from reflect.store import lessons as db

Cli = Callable[..., Any]
ZUBI = dialect.Dialect.task("zubi", "reverse", [9, 2, 4], "practice")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Store(tmp_path_factory.mktemp("made") / "empty.db").path


@pytest.fixture(autouse=True)
def empty_database(folder: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has an empty database."""
    shutil.copy(empty, folder / "lessons.db")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `reflect lessons ...`; its stdout, read as JSON when --json was said. `error=True`: its
    stderr."""

    def run(*words: str, code: int = 0, error: bool = False) -> Any:
        got = run_command(["lessons", *words])
        out, err = capsys.readouterr()
        assert got == code, err
        return err if error or code else json.loads(out) if "--json" in words else out

    return run


@pytest.fixture
def book() -> Any:
    return reflect.open("lessons.db").lessons


def by_model(book: Any, when: str, do: str, **more: Any) -> int:
    with book.context.store.write() as s:
        return db.add(s, when=when, do=do, author="model", scope="dialect", **more).id


# -- status
# ------------------------------------------------------------------------------------------------------------


def test_approve_and_reject_take_several(cli: Cli, book: Any) -> None:
    for i, status in enumerate(("candidate", "quarantined", "candidate", "active")):
        by_model(book, f"case {i}", "do it", status=status, trust="untrusted")
    rows = cli("approve", "1", "2", "--reason", "I read them", "--json")
    assert [(row["id"], row["status"], row["trust"]) for row in rows] == [
        (1, "active", "clean"),
        (2, "active", "clean"),
    ]
    rows = cli("reject", "3", "4", "--why", "of no use", "--json")
    assert [(row["id"], row["status"]) for row in rows] == [(3, "retired"), (4, "retired")]
    last = book.history(4)[-1]
    assert (last.author, last.reason) == ("human", "of no use")
    assert "lesson 3 undone (version 3, candidate)" in cli("undo", "3")


def test_an_unknown_id_stops_all(cli: Cli, book: Any) -> None:
    by_model(book, "a", "b")
    for verb in (["approve"], ["reject", "--why", "x"], ["pin"], ["unpin"]):
        assert "no lesson 7" in cli(*verb, "1", "7", code=2)
    assert len(book.history(1)) == 1


def test_a_rejection_needs_a_reason(cli: Cli, book: Any) -> None:
    by_model(book, "a", "b")
    assert "--why" in cli("reject", "1", code=2)
    assert "--why" in cli("reject", "1", "--why", " ", code=2)
    assert book.get(1).status == "candidate"


def learn(book: Any, when: str, do: str) -> list[Any]:
    with book.context.store.write() as s:
        evidence = Evidence(task=ZUBI, scope="dialect", profile="default", shown=(), contrast=True)
        return apply_edits(
            s, [Edit("add", when=when, do=do)], evidence, count_tokens=RuleModel().count_tokens
        )


def test_what_a_person_rejected_is_not_learned_again_even_if_a_model_had_retired_it(
    cli: Cli, book: Any
) -> None:
    by_model(book, "the task says zubi", "use sort")
    with book.context.store.write() as s:
        db.revise(s, 1, author="model", status="retired", reason="no help")
    assert (
        learn(book, "the task says zubi", "use sort")[0].outcome == "revised"
    )  # a model may change its mind
    with book.context.store.write() as s:
        db.revise(s, 1, author="model", status="retired", reason="no help")
    cli("reject", "1", "--why", "wrong")
    (outcome,) = learn(book, "the task says zubi", "use sort")
    assert (outcome.outcome, outcome.reason) == ("refused", "a person retired lesson 1")


def test_pin_and_unpin(cli: Cli, book: Any) -> None:
    by_model(book, "a", "b")
    by_model(book, "c", "d")
    assert [row["pinned"] for row in cli("pin", "1", "2", "--json")] == [True, True]
    assert "lesson 2 unpinned (version 3, candidate)" in cli("unpin", "2")
    assert (book.get(1).pinned, book.get(2).pinned) == (True, False)


# -- diff
# --------------------------------------------------------------------------------------------------------------


def test_diff_shows_words(cli: Cli, book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    book.add("counting letters", "spell the word first")
    book.edit(1, do="spell the long word first, twice", tags=["a"])
    book.retire(1)
    assert cli("diff", "1", "1", "2").splitlines() == [
        "lesson 1, version 1 -> 2",
        "do: spell the {+long +}word first{+, twice+}",
        "tags: {+a+}",
    ]
    assert cli("diff", "1").splitlines()[1:] == ["status: [-active-]{+retired+}"]
    assert (
        cli("diff", "1", "2", "1").splitlines()[1] == "do: spell the [-long -]word first[-, twice-]"
    )
    assert cli("diff", "1", "1", "--json")["new"] == 3
    result = cli("diff", "1", "1", "3", "--json")["fields"]["do"]
    assert "".join(text for sign, text in result if sign != "+") == "spell the word first"
    assert (
        "".join(text for sign, text in result if sign != "-") == "spell the long word first, twice"
    )
    assert "Nothing in it differs" in cli("diff", "1", "2", "2", error=True)
    assert "no version 9" in cli("diff", "1", "9", code=2) and "no lesson 5" in cli(
        "diff", "5", code=2
    )

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[32mlong \x1b[0m" in cli("diff", "1", "1", "2")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli("diff", "1", "1", "2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "a"),
        ("a b", "b a"),
        ("x", "x"),
        ("naïve 日本 a-b", "naive 日 a b"),
        ("a " * 300, "b " * 300),
    ],
)
def test_the_pieces_make_both_texts(old: str, new: str) -> None:
    pieces = word_diff(old, new)
    assert "".join(text for sign, text in pieces if sign in "=-") == old
    assert "".join(text for sign, text in pieces if sign in "=+") == new


# -- stats
# -------------------------------------------------------------------------------------------------------------


def shown(book: Any, *exposures: tuple[int, int, bool]) -> None:
    """One rollout each with the lesson (id, version, shown)."""
    from test_store import a_run, attempt

    with book.context.store.write() as s:
        run, (task,) = a_run(s, n=1, k=len(exposures))
        rows = [attempt(run, task, i) for i in range(len(exposures))]
        seen = [
            [Exposure(rollout_id=0, lesson_id=i, version=v, shown=was, probability=0.9)]
            for i, v, was in exposures
        ]
        runs.save_rollouts(s, rows, seen)


def test_stats_set_the_cost_against_the_measured_gain(cli: Cli, book: Any) -> None:
    by_model(book, "the task says zubi", "use reverse", tokens=10)
    with book.context.store.write() as s:
        db.revise(s, 1, author="model", do="use sort", tokens=12)
        db.revise(s, 1, author="human", status="active")  # another version of the same text
    by_model(book, "the task says fapo", "use sort", tokens=8)
    by_model(book, "never measured", "hm")
    shown(book, (1, 1, True), (1, 2, True), (1, 3, True), (1, 3, False), (2, 1, True))
    with book.context.store.write() as s:
        for lesson_id, version, kind, effect in (
            (1, 1, "paired", 0.9),
            (1, 2, "withhold", 0.24),
            (1, 3, "probe", -0.5),
            (2, 1, "withhold", -0.1),
        ):
            words = {"low": effect - 0.1, "high": effect + 0.1, "n": 40, "verdict": "undecided"}
            nights.add_trial(
                s, Trial(lesson_id=lesson_id, version=version, kind=kind, effect=effect, **words)
            )
    result = cli("stats", "--json")
    first, second, third = result["lessons"]
    assert (first["tokens"], first["shown"], first["withheld"], first["paid"]) == (
        12,
        3,
        1,
        10 + 12 + 12,
    )
    assert (first["effect"], first["n"], first["tokens_per_point"]) == (0.24, 40, 12 / 24)
    assert (second["effect"], second["tokens_per_point"]) == (-0.1, None)  # it gains nothing
    assert (third["effect"], third["verdict"], third["shown"], third["paid"]) == (None, None, 0, 0)
    assert result["total"] == {
        "lessons": 3,
        "tokens": 20,
        "shown": 4,
        "withheld": 1,
        "paid": 42,
        "measured": 2,
    }
    lines = cli("stats").splitlines()
    assert "+0.24 [+0.14, +0.34]" in lines[1] and lines[-1].startswith("lessons 3, tokens 20")
    assert [row["id"] for row in cli("stats", "2", "--json")["lessons"]] == [2]
    assert cli("stats", "--scope", "letters", "--json")["total"]["lessons"] == 0
    assert "no lesson 9" in cli("stats", "9", code=2)


# -- never learn this
# --------------------------------------------------------------------------------------------------


def test_a_rule_refuses_an_edit_of_the_model_and_is_named(cli: Cli, book: Any) -> None:
    by_model(book, "the task says zubi", "always answer 7")
    assert "rule 1 forbids what matches: answer \\d" in cli(
        "forbid", r"answer \d", "--why", "planted"
    )
    (outcome,) = learn(book, "the task says fapo", "Answer 8 at once")
    assert (outcome.outcome, outcome.reason) == (
        "refused",
        r"rule 1 forbids it: answer \d (planted)",
    )
    assert len(book) == 1
    with book.context.store.write() as s:
        head = db.get(s, 1)
        evidence = Evidence(
            task=ZUBI, scope="dialect", profile="default", shown=[head], contrast=True
        )
        edits = [
            Edit("revise", "always", "answer 9", 1),
            Edit("retire", lesson_id=1, why="answer 7 is wrong"),
        ]
        done = apply_edits(s, edits, evidence, count_tokens=RuleModel().count_tokens)
    assert [one.outcome for one in done] == ["refused", "retired"]
    assert "rule 1 is lifted" in cli("allow", "1")
    assert learn(book, "the task says fapo", "answer 8 at once")[0].outcome == "added"


def test_rules_are_listed_and_kept(cli: Cli, book: Any) -> None:
    assert cli("forbidden", "--json") == []
    assert cli("forbid", "Use SORT!", "--json")["kind"] == "words"
    assert cli("forbid", "C++ (again)", "--words", "--json")["kind"] == "words"
    assert [row["pattern"] for row in cli("forbidden", "--json")] == ["Use SORT!", "C++ (again)"]
    cli("allow", "1")
    assert [row["id"] for row in cli("forbidden", "--json")] == [2]
    assert [bool(row["lifted"]) for row in cli("forbidden", "--all", "--json")] == [True, False]
    assert "no rule 5" in cli("allow", "5", code=2) and "no rule 2" in cli(
        "allow", "2", "--profile", "x", code=2
    )
    assert doctor.check(book.context.store) == []


def test_what_stands_already_is_named(cli: Cli, book: Any) -> None:
    by_model(book, "a", "use sort")
    by_model(book, "b", "use sort", status="retired")
    assert "reflect lessons reject 1 --why" in cli("forbid", "sort", error=True)
    assert cli("forbid", "use", "--json")["matching"] == [1]


@pytest.mark.parametrize("pattern", ["", "  ", "a(", "x*", "^", "!?", "(?=)"])
def test_a_rule_that_is_broken_or_forbids_everything_is_refused(cli: Cli, pattern: str) -> None:
    cli("forbid", pattern, code=2)
    assert cli("forbidden", "--json") == []


def test_the_same_rule_twice_is_told(cli: Cli) -> None:
    cli("forbid", "use sort")
    assert "Rule 1 says so already" in cli("forbid", "use sort", code=2)


@pytest.mark.parametrize(
    ("pattern", "kind", "do", "hit"),
    [
        ("use sort", "words", "Use, SORT.", True),
        ("use sort", "words", "use sorting", False),
        ("sort", "words", "ｓｏｒｔ it", True),  # noqa: RUF001 (full width)
        ("sort use", "words", "use sort", False),
        ("answer: \\d+$", "regex", "ANSWER: 12", True),
        ("^sort", "regex", "sort it", True),
        ("straße", "words", "the STRASSE", True),
    ],
)
def test_how_rules_match(book: Any, pattern: str, kind: str, do: str, hit: bool) -> None:
    rule = book.forbid(pattern, kind=kind)
    assert (
        forbidden_rules.matches(rule, "any time", do)
        is hit
        is forbidden_rules.matches(rule, do, "any time")
    )


def test_the_doctor_knows_the_rules(book: Any) -> None:
    book.forbid("a+", kind="regex")
    book.forbid("b")
    with book.context.store.write() as s:
        s.connection().exec_driver_sql("UPDATE rule SET pattern = 'a(' WHERE id = 1")
        s.connection().exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        s.connection().exec_driver_sql("UPDATE rule SET kind = 'odd' WHERE id = 2")
    second, first = doctor.check(book.context.store)
    assert (
        "Rule 1 is no regular expression" in first and "Rule 2 has the unknown kind 'odd'" in second
    )


# -- two people, one lesson
# --------------------------------------------------------------------------------------------


def editor(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "editor"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("EDITOR", str(file))


def kept(error: str) -> str:
    """The text in the file that the error names."""
    return Path(re.search(r"Your text is kept in (.*\.txt)", error)[1]).read_text()


def test_the_second_of_two_people_is_told_and_their_text_is_kept(
    cli: Cli, book: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.add("counting letters", "spell the word first")
    first = f"{sys.executable} -c \"import reflect; reflect.open('lessons.db').lessons.edit(1, do='theirs')\""
    monkeypatch.setenv("PYTHONPATH", str(Path(reflect.__file__).parent.parent))
    editor(folder, f"{first} && sed -i 's/^do: .*/do: mine, with ünï/' \"$1\"", monkeypatch)
    error = cli("edit", "1", code=1)
    assert "Lesson 1 was changed by somebody else (version 2, yours was 1)" in error
    assert "do: mine, with ünï" in kept(error) and "reflect lessons history 1" in error
    assert [v.do for v in book.history(1)] == ["spell the word first", "theirs"]


def test_in_python_too(book: Any) -> None:
    book.add("a", "b")
    book.edit(1, do="c", expect_version=1)
    with pytest.raises(Conflict):
        book.edit(1, do="d", expect_version=1)
    assert book.get(1).do == "c"


@pytest.mark.parametrize(
    ("script", "words", "keeps"),
    [
        ("exit 3", "failed with exit code 3", False),
        ("kill -9 $$", "failed with exit code -9", False),
        ("echo more >> $1; exit 3", "failed with exit code 3", True),
        ("rm $1", "left no text", False),
        ("printf '\\377\\376' > $1", "left no text", False),
        ("printf '' > $1", "'when' is empty", False),
        ("sed -i 's/^do:.*/do:/' $1", "'do' is empty", True),
        ("printf 'when: x\\n# do: gone\\n' > $1", "'do' is empty", True),
        ("echo stray > $1", "belongs to nothing", True),
        (f"sed -i 's/^do:.*/do: {'very ' * 130}/' $1", "too long for a lesson (at most 120)", True),
    ],
)
def test_an_edit_that_cannot_be_taken_changes_nothing(
    cli: Cli,
    book: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    words: str,
    keeps: bool,
) -> None:
    book.add("counting letters", "spell it")
    editor(folder, script, monkeypatch)
    run_command(["lessons", "edit", "1"])
    error = cli("edit", "1", code=1 if "exit" in words or "left" in words else 2)
    assert words in error and ("kept in" in error) is keeps
    assert not keeps or kept(error).strip()
    assert len(book.history(1)) == 1


def test_an_editor_that_is_missing(cli: Cli, book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    book.add("a", "b")
    monkeypatch.setenv("EDITOR", "no-such-editor --wait")
    assert "no-such-editor --wait does not start" in cli("edit", "1", code=1)
    monkeypatch.delenv("EDITOR")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "no terminal" in cli("edit", "1", code=2)


def test_an_id_is_a_whole_number(cli: Cli, book: Any) -> None:
    for _ in range(12):
        book.add(f"case {_}", "x")
    assert "case 0" in cli("show", "1")  # never the beginning of 10, 11 and 12
    assert "no lesson 13" in cli("edit", "13", "--do", "x", code=2)
    assert cli("show", "1x", code=2)


@pytest.mark.parametrize("model", ["pocket", "hf:nobody/has-this"])
def test_a_lesson_over_the_size_limit(model: str, folder: Path) -> None:
    book = reflect.open("lessons.db", model=model).lessons
    book.add("short", "enough")
    with pytest.raises(UsageError, match="at most 120"):
        book.add("long", "very " * 130)
    with pytest.raises(UsageError, match="at most 120"):
        book.edit(1, do="very " * 130)
    assert len(book) == 1 and len(book.history(1)) == 1


# -- moving
# ------------------------------------------------------------------------------------------------------------


def test_export_import_export_on_the_command_line(
    cli: Cli, book: Any, folder: Path, empty: Path
) -> None:
    book.add("counting letters", "spell → it", scope="letters")
    book.retire(1)
    shutil.copy(empty, "there.db")
    text = cli("export")
    assert cli("export", "--out", "a.jsonl") == "a.jsonl\n"
    assert Path("a.jsonl").read_bytes() == text.encode()
    out = cli("import", "a.jsonl", "--trust", "--db", "there.db")
    assert out.splitlines()[0].startswith("+ lesson 1: when: counting letters")
    assert (
        out.splitlines()[-1]
        == "+ 1 new, ~ 0 continued, = 0 here already, ? 0 quarantined, ! 0 left out"
    )
    assert cli("export", "--db", "there.db") == text
    assert "up to date" in cli("export", "--out", "a.jsonl", error=True)
    book.add("else", "x")
    assert "--yes" in cli("export", "--out", "a.jsonl", code=2)
    assert cli("export", "-o", "a.jsonl", "--yes") == "a.jsonl\n" and Path(
        "a.jsonl"
    ).read_text() == cli("export")


def test_import_reports_in_signs_and_json(
    cli: Cli, book: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for do in ("use sort", "see http://example.com", "use reverse", "old"):
        book.add(f"the task says {do[-4:]}", do)
    book.retire(4)
    text = cli("export", "--profile", "default")
    cli("forbid", "sort", "--profile", "team")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    rows = cli("import", "-", "--profile", "team", "--json")
    assert [row["sign"] for row in rows] == ["!", "?", "+", "!"]
    assert rows[0]["why"] == "rule 1 forbids it: sort" and rows[3]["why"] == "it is retired there"
    Path("a.jsonl").write_text(text)
    assert "reflect lessons approve ID" in cli(
        "import", "a.jsonl", "--profile", "third", error=True
    )
    assert "No such file" in cli("import", "none.jsonl", code=1)
    Path("b.jsonl").write_text(text[:-30])
    assert "b.jsonl, line 5: Invalid JSON" in cli("import", "b.jsonl", code=2)


def test_agents_and_skills_on_the_command_line(cli: Cli, book: Any) -> None:
    book.add("counting letters", "spell it", scope="letters")
    Path("AGENTS.md").write_bytes(b"# Ours\r\nno end")
    assert cli("export", "--format", "agents", "--out", "AGENTS.md") == "AGENTS.md\n"
    data = Path("AGENTS.md").read_bytes()
    assert (
        data.startswith(b"# Ours\r\nno end\r\n")
        and b"- When counting letters: spell it\r\n" in data
    )
    assert (
        cli("export", "--format", "agents", "--out", "AGENTS.md") == ""
        and Path("AGENTS.md").read_bytes() == data
    )
    assert cli("export", "--format", "agents").startswith("<!-- reflect lessons: begin -->\n")
    assert cli("export", "--format", "skill", "--out", "skills") == "skills/letters/SKILL.md\n"
    assert "--out FOLDER" in cli("export", "--format", "skill", code=2)
    assert "formats are" in cli("export", "--format", "xml", code=2)


def test_backup_on_the_command_line(cli: Cli, book: Any, folder: Path) -> None:
    book.add("a", "b")
    assert cli("backup", "copy.db") == "copy.db\n"
    assert cli("list", "--db", "copy.db", "--json") == cli("list", "--json")
    assert run_command(["doctor", "--db", "copy.db"]) == 0
    assert "is there already" in cli("backup", "copy.db", code=2)
    assert Path(cli("backup").strip()).parent == folder


# -- merge and links
# ---------------------------------------------------------------------------------------------------


def test_merge_on_the_command_line_and_its_links(cli: Cli, book: Any) -> None:
    one = by_model(book, "counting letters in a word", "spell the word")
    two = by_model(book, "Counting letters in word", "spell a word", status="active")
    other = by_model(book, "the task says zubi", "use sort")
    assert cli("merge", "--scope", "letters") == "Nothing to merge.\n"
    plan = cli("merge", "--dry-run", "--json")
    assert plan["dry_run"] and [change["gone"] for change in plan["changes"]] == [[two]]
    assert book.get(two).status == "active"
    out = cli("merge")
    assert out.splitlines() == [
        f"~ lesson {one} merged: when: counting letters in a word do: spell the word",
        f"- lesson {two} retired: replaced by lesson {one}",
    ]
    assert f"merged into lesson {one}: they have the same text" in cli("show", str(two))
    assert (
        f"holds lesson {two}" in cli("show", str(one))
        and "lesson" not in cli("show", str(other)).split("\n", 1)[1]
    )
    (link,) = cli("show", str(one), "--json")["links"]
    assert (link["lesson_id"], link["other_id"], link["kind"]) == (one, two, "merged")
    assert [(row.lesson_id, row.other_id) for row in book.links(two)] == [(one, two)]
    assert cli("merge", error=True).startswith("dialect: 2 lessons, ")
    cli("undo", str(two))
    assert book.get(two).status == "active"


def test_a_scope_that_no_taskset_has_is_a_warning_with_the_likely_name(folder, capsys):
    (folder / "house.jsonl").write_text('{"prompt": "q", "answer": "a"}\n')
    add = ["lessons", "add", "--when", "a question about the house", "--do"]
    known, unknown = (
        ("house.jsonl", "dialect:3", "traffic", "gym:leg_counting"),
        ("dialekt", "x" * 5000),
    )
    requests = [("house", True), *((x, False) for x in known), *((x, True) for x in unknown)]
    for i, (scope, warned) in enumerate([*requests, ("house", False)]):
        assert run_command([*add, f"answer {i}", "--scope", scope]) == 0
        error = capsys.readouterr().err
        assert ("No taskset and no run is called" in error) == warned, scope
        if scope == "house" and warned:
            assert "Did you mean house.jsonl?" in error
