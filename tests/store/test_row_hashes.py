"""The hash of every row: ordinary writes keep it, and `doctor --deep` finds what anything else
changed."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select
from test_store import VERSION_1, attempt, earlier, fill, version_5

from reflect.cli import run_command
from reflect.errors import StoreError
from reflect.records import Alias, Exchange, Exposure, Lesson, Rollout, RowHash, Rule
from reflect.store import (
    Store,
    doctor,
    exchanges,
    forbidden_rules,
    lessons,
    nights,
    row_hashes,
    runs,
)


def deep(store: Store) -> list[str]:
    return doctor.check(store, deep=True)


def by_hand(store: Store, *statements: str) -> None:
    """Change the database as another program would: nothing of reflect sees it."""
    with store._engines["write"].begin() as c:
        for statement in statements:
            c.exec_driver_sql(statement)


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    with store.write() as s:
        s.add(Rule(pattern="a"))
        common = {
            "taskset": "a",
            "asked": [],
            "messages": [],
            "model": "m",
            "model_fingerprint": "f",
        }
        s.add_all(Exchange(name=f"x{i}", **common) for i in range(3))
    return store


def test_ordinary_writes_keep_the_hashes(filled: Store) -> None:
    assert deep(filled) == []
    with filled.write() as s:
        run = runs.get_run(s, 1)
        task = runs.rollouts(s, 1)[0].task_key
        row = attempt(
            run, type("T", (), {"key": task, "shape": lambda self: {"messages": []}})(), 7
        )
        row.parts = {"x": [float("inf"), "日本 🌙", None], "y": 0.1 + 0.2}
        row.feedback = "a\x01b"
        run.k = 9
        run.status = "running"
        runs.save_rollouts(s, [row], [[Exposure(rollout_id=0, lesson_id=1, version=1)]])
        lesson = lessons.add(s, when="naïve", do="c", author="human", tags=["ü"])
        lessons.revise(s, lesson.id, author="human", do="d")
        lessons.undo(s, lesson.id)
        lessons.link(s, 1, 2, "merged", "same")
        forbidden_rules.lift(s, 1, "default")
        exchanges.reward(s, "x0", 0.5)
        nights.rollback(s)
    assert deep(filled) == []
    with filled.write() as s:
        assert exchanges.forget(s, "default", -1) == 2
        runs.note(s, 1, checkpoints={"a": 1})
    assert deep(filled) == []


def test_what_a_failed_transaction_did_leaves_no_hash(filled: Store) -> None:
    with pytest.raises(ZeroDivisionError), filled.write() as s:
        lessons.add(s, when="a", do="b", author="human")
        s.flush()
        _ = 1 / 0
    assert deep(filled) == []


def test_statements_and_deletions_keep_the_hashes(filled: Store) -> None:
    with filled.write() as s:
        s.delete(s.get(Rule, 1))
        runs.delete_runs(s, [9])
        s.exec(text("SELECT 1"))
    assert deep(filled) == []
    by_hand(filled, "UPDATE lesson_version SET reflection_id = NULL")
    doctor.accept(filled)
    with filled.write() as s:
        runs.delete_runs(s, [1])
        assert s.exec(select(Rollout)).all() == s.exec(select(Exposure)).all() == []
    assert deep(filled) == []


CHANGES = [
    ("UPDATE rollout SET reward = 0.5 WHERE id = 2", "Row 2 of rollout was changed"),
    ("UPDATE rollout SET feedback = 'x' WHERE id = 1", "Row 1 of rollout was changed"),
    ("UPDATE rollout SET created = '2020-01-01 00:00:00+00:00' WHERE id = 1", "Row 1 of rollout"),
    ("UPDATE exposure SET probability = 0.5 WHERE id = 3", "Row 3 of exposure was changed"),
    ("DELETE FROM exposure WHERE id = 3", "Row 3 of exposure was deleted"),
    ("INSERT INTO rule (profile, pattern, kind, why, created) VALUES"
     " ('default', 'b', 'words', '', '2020-01-01 00:00:00+00:00')", "Row 2 of rule was added"),
    ("UPDATE trial SET effect = effect + 1e-12 WHERE id = 1", "Row 1 of trial was changed"),
    ("UPDATE adapter SET status = 'candidate'", "Row 1 of adapter was changed"),
    ("UPDATE alias SET profile = 'other'", "Row other of alias was added"),
    ("UPDATE lesson SET \"do\" = 'x' WHERE id = 2", "Row 2 of lesson was changed"),
    ("UPDATE task SET content = '{}' WHERE key = 'key-task0'", "Row key-task0 of task was changed"),
    ("UPDATE night SET reason = 'x'", "Row 1 of night was changed"),
    ("UPDATE run SET seed = 1", "Row 1 of run was changed"),
    ("UPDATE exchange SET reward = 1 WHERE id = 1", "Row 1 of exchange was changed"),
]  # fmt: skip


def test_each_change_by_hand_is_found_and_can_be_accepted(filled: Store) -> None:
    for change, problem in CHANGES:
        by_hand(filled, change)
        assert any(line.startswith(problem) for line in deep(filled)), change
        doctor.accept(filled)
        assert not any("other than reflect" in line for line in deep(filled)), change


def test_rows_that_were_changed_before_a_migration_stay_wrong(tmp_path: Path) -> None:
    """Updating a database must not declare right what was wrong."""
    store = Store(tmp_path / "lessons.db")
    fill(store)
    by_hand(
        store, "UPDATE rollout SET reward = 0.5 WHERE id = 2", "DELETE FROM exposure WHERE id = 3"
    )
    with store._engines["migrate"].begin() as c:
        row_hashes.save_all(c, list(row_hashes.mismatches(c)))
    problems = deep(store)
    assert len(problems) == 2
    assert "Row 2 of rollout" in problems[0] + problems[1]
    assert "Row 3 of exposure was deleted" in problems[0] + problems[1]


def test_a_database_of_an_earlier_version_gets_its_hashes(where: str) -> None:
    if "://" in where:
        before = Store(where)
        fill(before)
        before.close()
        version_5(where).dispose()
    else:
        earlier(where)
    store = Store(where)
    assert deep(store) == []
    by_hand(store, "UPDATE lesson SET tokens = 77 WHERE id = 1")
    assert any("Row 1 of lesson was changed" in line for line in deep(store))
    store.close()


def test_a_database_with_hashes_from_before_a_new_table_is_opened(tmp_path: Path) -> None:
    """Version 7 has hashes, but not the tables of versions 8 and 9."""
    path = tmp_path / "old.db"
    with Store(path).write() as s:
        lessons.add(s, when="always", do="count twice", author="human")
    with sqlite3.connect(path) as raw:
        for table in ("followed", "followed_check", "claim"):
            raw.execute(f"DROP TABLE {table}")
        raw.execute("UPDATE alembic_version SET version_num = '0007'")
        raw.execute("DELETE FROM row_hash WHERE key LIKE '%followed%' OR key LIKE '%claim%'")
    assert doctor.check(Store(path), deep=True) == []
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE lesson SET do = 'count once'")
    assert len(doctor.check(Store(path), deep=True)) >= 1


def test_a_backup_is_as_healthy_as_its_database(tmp_path: Path) -> None:
    from reflect.store.backup import backup

    store = Store(tmp_path / "lessons.db")
    fill(store)
    assert deep(Store(backup(store))) == []


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("INSERT INTO alembic_version VALUES ('0006')", "says that it has the versions 0006 and 0009|"
         "says that it has the versions 0009 and 0006"),
        ("UPDATE alembic_version SET version_num = '0099'", "newer reflect"),
        ("UPDATE alembic_version SET version_num = '0006'", "tables are of a newer one"),
        ("UPDATE alembic_version SET version_num = '0001'", "tables are of a newer one"),
        ("DELETE FROM alembic_version", "does not say its version"),
    ],
)  # fmt: skip
def test_a_wrong_version_is_named(
    where: str, statement: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(where)
    by_hand(store, statement)
    store.close()
    with pytest.raises(StoreError, match=message):
        Store(where)
    assert run_command(["doctor", "--db", where, "--json"]) == 1
    assert '"ok": false' in capsys.readouterr().out


def test_the_schema_of_sqlite_is_compared(tmp_path: Path) -> None:
    store = Store(tmp_path / "lessons.db")
    fill(store)
    by_hand(store, "CREATE VIEW mine AS SELECT 1", "CREATE INDEX mine_too ON rollout (reward)")
    assert deep(store) == [], "what a person adds is no damage"
    by_hand(store, "DROP TRIGGER lesson_fts_update")
    assert deep(store) == [
        "The part lesson_fts_update of the schema was deleted by something other than reflect."
    ]


def test_a_search_index_that_differs_from_the_lessons_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "lessons.db")
    fill(store)
    by_hand(store, "UPDATE lesson_fts_docsize SET sz = x'010101' WHERE id = 1")
    assert doctor.check(store) == []
    assert any("search index" in line for line in deep(store))
    doctor.accept(store)
    assert deep(store) == []


def test_many_changed_rows_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path / "lessons.db")
    with store.write() as s:
        s.add_all(Alias(profile=f"p{i}") for i in range(1200))
    assert deep(store) == []
    by_hand(store, "UPDATE alias SET updated = '2020-01-01 00:00:00.000000'")
    problems = deep(store)
    assert len(problems) == row_hashes.MOST + 1 and "1190 more rows of alias" in problems[-1]


def test_random_bytes_are_found(tmp_path: Path) -> None:
    """20 flips of content in a small database; scripts/proofs/doctor has many more."""
    rng, path = random.Random(7), Path(shutil.copy(VERSION_1, tmp_path / "lessons.db"))
    Store(path)
    with sqlite3.connect(path) as c:
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = list(c.iterdump())
    data, copy = path.read_bytes(), tmp_path / "copy.db"
    places = rng.sample(range(len(data)), len(data))
    changed = 0
    while changed < 20:
        place = places.pop()
        broken = bytearray(data)
        broken[place] ^= rng.randrange(1, 256)
        for name in ("copy.db", "copy.db-wal", "copy.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        copy.write_bytes(broken)
        try:
            with sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True) as c:
                same = list(c.iterdump()) == before
        except (sqlite3.Error, ValueError, IndexError, TypeError):
            same = False
        if not same:
            changed += 1
            try:
                problems = deep(Store(copy))
            except StoreError as e:
                problems = [str(e)]
            assert problems, place


def test_the_command_names_the_rows_and_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REFLECT_")]:
        monkeypatch.delenv(name)
    store = Store("lessons.db")
    with store.write() as s:
        lessons.add(s, when="a", do="b", author="human", status="active")
    by_hand(store, "UPDATE lesson_version SET reason = 'x'")
    assert run_command(["doctor"]) == 0
    capsys.readouterr()
    assert run_command(["doctor", "--deep"]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM Row 1 of lesson_version was changed" in out and "--accept" in out
    assert run_command(["doctor", "--accept"]) == 2
    assert run_command(["doctor", "--deep", "--accept"]) == 0
    assert run_command(["doctor", "--deep"]) == 0
    by_hand(store, "UPDATE lesson SET tags = 'no json'", "UPDATE lesson SET created = x'00ff'")
    for words in (["doctor"], ["doctor", "--deep"]):
        assert run_command(words) in (0, 1)
    with store.read() as s:
        assert s.exec(select(RowHash).where(RowHash.name == Lesson.__tablename__)).all()
