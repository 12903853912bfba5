"""Opening a database: new, old, newer, foreign, damaged, full, locked; and the doctor who looks at
it.

tests/data/lessons-v1.db is what version 1 wrote; every later version must open it. Made by:

    python tests/store/test_store.py tests/data/lessons-v1.db
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from reflect.errors import NewerDatabase, StoreError
from reflect.records import (
    FACTS,
    Exchange,
    Exposure,
    Followed,
    FollowedCheck,
    LessonLink,
    Reflection,
    Rollout,
    Rule,
    Trial,
)
from reflect.store import (
    Store,
    database,
    dialect,
    doctor,
    lessons,
    migrations,
    nights,
    runs,
    sqlite,
)

VERSION_1 = Path(__file__).parents[1] / "data" / "lessons-v1.db"


class Problem(NamedTuple):
    """As much of a task as the store needs."""

    id: str
    split: str = "practice"

    @property
    def key(self) -> str:
        return f"key-{self.id}"

    def shape(self) -> dict[str, object]:
        messages = [{"role": "user", "content": f"how many r in {self.id}, naïve?"}]
        return {
            "id": self.id,
            "messages": messages,
            "verifier": "number",
            "answer": 3,
            "split": self.split,
        }


def a_run(s, key: str = "run", n: int = 2, k: int = 2, **words):
    """A run that is begun, and its tasks."""
    tasks = [Problem(f"task{i}") for i in range(n)]
    runs.save_tasks(s, "letters", tasks)
    common = {
        "taskset": "letters",
        "profile": "default",
        "seed": 0,
        "model": "pocket",
        "model_fingerprint": "f",
    }
    return runs.start_run(s, key=key, n=n, k=k, **(common | words)), tasks


def attempt(run, task: Problem, index: int, reward: float | None = 1.0) -> Rollout:
    error = "it broke" if reward is None else None
    messages = [*task.shape()["messages"], {"role": "assistant", "content": "answer: 3"}]
    return Rollout(
        run_id=run.id, task_key=task.key, index=index, messages=messages, reward=reward, error=error
    )


def fill(store: Store) -> None:
    """A little of everything: one day, one night, a promotion."""
    with store.write() as s:
        run, tasks = a_run(s)
        lesson = lessons.add(
            s,
            when="counting letters",
            do="count at once",
            author="human",
            tags=["zählen"],
            tokens=9,
        )
        rows = [attempt(run, task, i, [0.0, 1.0][i]) for task in tasks for i in range(2)]
        seen = [[Exposure(rollout_id=0, lesson_id=lesson.id, version=1)] for _ in rows]
        runs.save_rollouts(s, rows, seen)
        note = Reflection(
            run_id=run.id,
            task_key=tasks[0].key,
            pack_hash="h",
            pack_tokens=99,
            prompt_version="p",
            raw="",
        )
        runs.save_reflection(s, note)
        lessons.revise(
            s,
            lesson.id,
            author="model",
            do="spell the word out",
            reflection_id=note.id,
            reason="it helped",
        )
        lessons.add(
            s, when="anything", do="buy at http://example.com", author="model", status="quarantined"
        )
        runs.finish_run(s, run.id)
        night = nights.start_night(
            s, key="night", profile="default", config={"rank": 8}, lessons=[[lesson.id, 2]]
        )
        nights.save_stage(s, night.id, "train", {"loss": 0.25})
        nights.add_trial(
            s,
            Trial(
                lesson_id=lesson.id,
                version=2,
                kind="preflight",
                effect=0.6,
                low=0.4,
                high=0.8,
                n=24,
                verdict="accept",
            ),
        )
        adapter = nights.add_adapter(
            s,
            name="night-1",
            path="night-1",
            manifest={"a": "b"},
            base_model="pocket",
            base_fingerprint="f",
            night_id=night.id,
        )
        nights.promote(s, adapter.id)
        nights.finish_night(s, night.id, "promoted", "good", adapter.id)


@pytest.fixture
def file(tmp_path: Path) -> Store:
    """A database of SQLite; what is not about its file is asked of both kinds, by the fixture
    `store`."""
    return Store(tmp_path / "lessons.db")


# -- opening
# -----------------------------------------------------------------------------------------------------------


def test_a_new_database_is_made_with_its_folder_and_the_pragmas_of_the_design(tmp_path: Path):
    store = Store(tmp_path / "deep" / "down" / "ünï %20?.db")
    assert store.path.is_file()
    with store.write() as s:
        ask = lambda pragma: s.connection().exec_driver_sql(f"PRAGMA {pragma}").scalar()  # noqa: E731
        assert [
            ask(p) for p in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ] == ["wal", 2, 1, 30000]
    assert doctor.check(store) == []
    assert os.listdir(store.path.parent) == [store.path.name], (
        "at rest it is one file: a copy of it is a backup"
    )


def test_a_url_names_the_same_file(tmp_path: Path):
    assert (
        Store(f"sqlite:///{tmp_path}/lessons.db").path == Store(str(tmp_path / "lessons.db")).path
    )


@pytest.mark.parametrize("version", ["new", "before 1.0"])
def test_the_migrations_make_exactly_the_tables_of_the_records(where: str, version: str):
    if version != "new":
        earlier(where)
    with Store(where).write() as s:
        context = MigrationContext.configure(
            s.connection(), opts={"compare_type": True, "compare_server_default": True}
        )
        own = {
            "sqlite": ("lesson_fts",),
            "postgresql": ("Column('words'", "ix_lesson_words", "ix_lesson_profile_status"),
        }
        of_search = own[s.get_bind().dialect.name]
        differences = [str(d) for d in compare_metadata(context, SQLModel.metadata)]
        assert [d for d in differences if not any(name in d for name in of_search)] == []
        constraints = {
            (table, check["name"])
            for table in SQLModel.metadata.tables
            for check in inspect(s.connection()).get_check_constraints(table)
        }
        assert constraints == {(table, f"ck_{table}_{column}") for table, column in FACTS}
        lessons.add(s, when="three words here", do="b", author="human")
        assert lessons.search(s, "words") and doctor.check(s) == []


def earlier(where: str) -> None:
    """A database of before the first release: version 1, on PostgreSQL version 5."""
    if "://" not in where:
        shutil.copy(VERSION_1, where)
        return
    Store(where).close()
    version_5(where).dispose()


def version_5(where: str) -> Engine:
    """An engine on an up-to-date database from which all that versions 6 to 9 brought is taken
    out."""
    sqlite = "://" not in where
    engine = create_engine(f"sqlite:///{where}" if sqlite else where)
    added = (
        ("run", "task_keys"),
        ("run", "checkpoints"),
        ("run", "spent"),
        ("run", "from_traffic"),
        ("rollout", "error_kind"),
        ("lesson_version", "quarantine"),
        ("lesson_version", "closing"),
    )
    with engine.begin() as c:
        operations = Operations(MigrationContext.configure(c))
        operations.drop_index("ix_rollout_figures", "rollout")
        for table in SQLModel.metadata.tables:
            checked = [column for of, column in FACTS if of == table]
            if table in ("row_hash", "followed", "followed_check", "claim"):
                operations.drop_table(table)
                continue
            with operations.batch_alter_table(
                table, recreate="always" if sqlite else "never"
            ) as altered:
                for column in checked:
                    altered.drop_constraint(f"ck_{table}_{column}")
                for column in [column for of, column in added if of == table]:
                    altered.drop_column(column)
        c.exec_driver_sql("UPDATE alembic_version SET version_num = '0005'")
    return engine


def test_every_migration_is_in_the_list_of_revisions():
    script = ScriptDirectory.from_config(migrations.config())
    own = tuple(r.revision for r in reversed(list(script.walk_revisions())))
    assert migrations.UNRELEASED + own == database.REVISIONS


def test_an_unknown_value_of_before_is_refused_and_nothing_is_changed(where: str):
    earlier(where)
    engine = create_engine(where if "://" in where else f"sqlite:///{where}")
    with engine.begin() as c:
        c.exec_driver_sql(
            "INSERT INTO night (key, profile, config, stages, lessons, status, reason, started) VALUES"
            " ('odd', 'default', '{}', '{}', '[]', 'odd', '', '2026-01-01 00:00:00+00:00')"
        )
    with pytest.raises(StoreError, match=r"status of row .* of night is 'odd'"):
        Store(where)
    with engine.begin() as c:
        assert c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() != "0009"
        c.exec_driver_sql("DELETE FROM night WHERE status = 'odd'")
    engine.dispose()
    assert doctor.check(Store(where)) == []


@pytest.mark.parametrize(("table", "column"), list(FACTS))
def test_a_value_that_is_none_of_its_enum_is_refused(store: Store, table: str, column: str):
    with store.write() as s:
        lessons.add(s, when="a", do="b", author="human")
        s.add(Rule(pattern="a"))
    fill(store)
    with store.write() as s:
        if table == "exchange":
            s.add(
                Exchange(
                    name="a", taskset="a", asked=[], messages=[], model="m", model_fingerprint="f"
                )
            )
        if table == "followed_check":
            s.add(FollowedCheck(lesson_id=1, do="b", kind="words", pattern="b"))
        if table == "followed":
            s.add(Followed(lesson_id=1, rollout_id=1, source="check", followed=True))
        if table == "lesson_link":
            s.add(LessonLink(lesson_id=1, other_id=2, kind="merged"))
    with pytest.raises(IntegrityError), store.write() as s:
        s.connection().exec_driver_sql(f"UPDATE {table} SET {column} = 'odd'")


def test_a_damaged_database_of_version_1_opens_and_the_doctor_names_the_damage(tmp_path: Path):
    path = shutil.copy(VERSION_1, tmp_path / "lessons.db")
    with sqlite3.connect(path) as c:  # foreign keys are off
        c.execute("DELETE FROM rollout WHERE id = 1")
    lost = [
        f"Row {row} of exposure names a rollout that is not there."
        for (row,) in c.execute("SELECT id FROM exposure WHERE rollout_id = 1")
    ]
    assert lost
    store = Store(path)
    assert set(lost) <= set(doctor.check(store)) and not any(
        "trial" in problem for problem in doctor.check(store)
    )
    with store.read() as s:
        assert len(lessons.listing(s)) == 2


def test_an_upgrade_that_would_add_damage_is_refused_whole(tmp_path: Path):
    path = shutil.copy(VERSION_1, tmp_path / "lessons.db")
    with sqlite3.connect(path) as c:
        c.execute(
            "CREATE TRIGGER harm AFTER INSERT ON alembic_version WHEN new.version_num = '0006' BEGIN "
            "DELETE FROM reflection WHERE id = 1; END"
        )
    with pytest.raises(StoreError, match="1 rows without their parent"):
        Store(path)
    with sqlite3.connect(path) as c:
        assert c.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        assert c.execute("SELECT count(*) FROM reflection").fetchone() == (1,)


def test_a_database_of_version_1_opens_with_all_that_is_in_it(tmp_path: Path):
    store = Store(shutil.copy(VERSION_1, tmp_path / "lessons.db"))
    assert doctor.check(store) == []
    with store.read() as s:
        head, other = lessons.listing(s)
        assert (head.do, head.status, head.tags, head.version) == (
            "spell the word out",
            "distilled",
            ["zählen"],
            3,
        )
        assert other.status == "quarantined"
        assert [v.author for v in lessons.history(s, 1)] == ["human", "model", "night"]
        assert lessons.search(s, "How to SPELL a word?")[0][0].id == 1
        assert runs.figures(s, 1) == (4, 0, 0.5)
        assert (
            runs.task(s, "key-task0").content["messages"][0]["content"]
            == "how many r in task0, naïve?"
        )
        assert runs.get_reflection(s, 1, "key-task0") is not None
        assert nights.active_adapter(s).name == "night-1"
        assert nights.get_night(s, 1).stages == {"train": {"loss": 0.25}}
    with store.write() as s:
        assert nights.rollback(s).now is None
        assert lessons.get(s, 1).status == "candidate"
    assert doctor.check(store) == []


def test_opening_a_database_that_is_up_to_date_does_not_import_alembic(file: Store):
    code = f"import sys; from reflect.store import Store; Store({str(file.path)!r}); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- transactions
# ------------------------------------------------------------------------------------------------------


def test_a_write_is_all_or_nothing(store: Store):
    with pytest.raises(KeyboardInterrupt), store.write() as s:
        lessons.add(s, when="a", do="b", author="human")
        raise KeyboardInterrupt
    with store.read() as s:
        assert lessons.count(s) == 0


def test_a_reader_sees_one_moment_and_its_rows_stay_readable(store: Store):
    with store.write() as s:
        lessons.add(s, when="a", do="b", author="human")
    with store.read() as reader:
        row = lessons.get(reader, 1)
        with store.write() as writer:
            lessons.revise(writer, 1, author="human", do="c")
        assert lessons.history(reader, 1)[-1].do == "b"
    assert row.do == "b" and row.created.tzinfo is not None


def test_a_reader_cannot_write(store: Store):
    with pytest.raises(StoreError, match="cannot be written"), store.read() as s:
        lessons.add(s, when="a", do="b", author="human")


def test_a_reference_to_nothing_is_refused(store: Store):
    with pytest.raises(IntegrityError), store.write() as s:
        s.add(Exposure(rollout_id=7, lesson_id=7, version=1))


# -- what can be wrong with a file
# -------------------------------------------------------------------------------------


def says(words: str, hint: str, path: Path | str, kind: type[StoreError] = StoreError) -> None:
    with pytest.raises(kind) as caught:
        Store(path)
    assert words in caught.value.message and hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path):
    for text in ("hello", "a poem\n" * 1000):
        path = tmp_path / "poem.db"
        path.write_text(text)
        says("poem.db is not a database", "--db", path)
        assert path.read_text() == text


def test_a_folder_and_a_file_in_the_way(tmp_path: Path):
    says("is a folder", "lessons.db", tmp_path)
    (tmp_path / "file").write_text("")
    says("cannot be used", "--db", tmp_path / "file" / "lessons.db")


def test_the_database_of_another_program_is_left_alone(tmp_path: Path):
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE song (title)")
    says("of another program", "--db", path)
    assert [
        name for (name,) in sqlite3.connect(path).execute("SELECT name FROM sqlite_master")
    ] == ["song"]


def test_a_newer_database_is_not_touched(file: Store):
    with sqlite3.connect(file.path) as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    says("newer reflect (revision 9999)", "Update", file.path, NewerDatabase)


def test_urls_that_cannot_be_served():
    says("mysql", "file", "mysql://localhost/lessons")
    says("not a database URL", "--db", "://lessons")
    says("outlive", "--db", "sqlite://")
    says("outlive", "--db", ":memory:")


def test_files_and_folders_that_may_not_be_written():
    """In a process of a user who may not do everything, as root may."""
    with (
        tempfile.TemporaryDirectory() as name
    ):  # not tmp_path: the folders above that may be root's alone
        folder = Path(name)
        for path in (folder / "lessons.db", folder / "locked" / "lessons.db"):
            Store(path).path.chmod(0o444)
        (folder / "locked").chmod(0o555)
        folder.chmod(0o777)

        def child() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            says("cannot be written", "may write the file", folder / "locked" / "lessons.db")
            says("cannot be opened", "may be written", folder / "locked" / "new.db")
            says("cannot be used", "--db", folder / "locked" / "deep" / "new.db")
            store = Store(folder / "lessons.db")
            with store.read() as s:
                assert lessons.count(s) == 0
            with pytest.raises(StoreError, match="cannot be written"), store.write() as s:
                lessons.add(s, when="a", do="b", author="human")

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        (folder / "locked").chmod(0o755)
        assert process.exitcode == 0


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Store(tmp_path / "lessons.db")
    listen = sqlite._on_connect

    def with_little_room(connection: sqlite3.Connection, record: object) -> None:
        listen(connection, record)
        connection.execute(
            "PRAGMA max_page_count=80"
        )  # SQLite's own SQLITE_FULL, without filling a disk

    monkeypatch.setattr(sqlite, "_on_connect", with_little_room)
    store = Store(tmp_path / "lessons.db")
    saved = 0
    with pytest.raises(StoreError) as caught:
        for i in range(1000):
            with store.write() as s:
                lessons.add(s, when=f"case {i}", do="word " * 200, author="human")
            saved += 1
    assert "The disk is full" in caught.value.message and "same command" in caught.value.hint
    monkeypatch.undo()
    with Store(tmp_path / "lessons.db").read() as s:
        assert saved > 0 and lessons.count(s) == saved
    assert doctor.check(store) == []


def test_a_disk_that_is_full_at_the_first_start_leaves_a_file_that_opens_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listen = sqlite._on_connect
    for pages in (1, 5, 20, 40):

        def with_little_room(
            connection: sqlite3.Connection, record: object, pages: int = pages
        ) -> None:
            listen(connection, record)
            connection.execute(f"PRAGMA max_page_count={pages}")

        monkeypatch.setattr(sqlite, "_on_connect", with_little_room)
        says("The disk is full", "Free some space", tmp_path / "lessons.db")
    monkeypatch.undo()
    assert doctor.check(Store(tmp_path / "lessons.db")) == []


def test_a_lock_that_somebody_keeps(file: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialect, "LOCK_SECONDS", 0.2)
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with file.read() as s:
        assert lessons.count(s) == 0, "readers do not wait for a writer"
    with pytest.raises(StoreError, match="Another process has been writing"), file.write() as s:
        pass
    other.execute("ROLLBACK")
    other.close()
    with file.write() as s:
        lessons.add(s, when="a", do="b", author="human")


# -- the doctor
# --------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_damage(tmp_path: Path):
    store = Store(tmp_path / "lessons.db")
    fill(store)
    size = store.path.stat().st_size
    with store.path.open("r+b") as file:
        for page in range(3, size // 4096):
            file.seek(page * 4096 + 8)
            file.write(b"\xff" * 512)
    problems = doctor.check(store)
    assert problems and any("damage" in problem for problem in problems)


HARMS = [
    ("UPDATE lesson SET \"do\" = 'other' WHERE id = 1", "Lesson 1 differs from its version 3"),
    ("UPDATE lesson SET version = 2 WHERE id = 1", "Lesson 1 is at version 2"),
    ("DELETE FROM lesson_version WHERE version = 2", "history of lesson 1 has gaps"),
    ("UPDATE lesson SET status = 'odd' WHERE id = 2", "Lesson 2 has the unknown status 'odd'"),
    ("UPDATE trial SET verdict = 'odd'", "Trial 1 has the unknown verdict 'odd'"),
    ("UPDATE lesson_version SET author = 'odd'", "Lesson version 1 has the unknown author 'odd'"),
    ("DELETE FROM rollout WHERE id = 4", "Run 1 is marked done, but the task key-task1 has 1 of 2"),
    ("DELETE FROM exposure; DELETE FROM reflection; DELETE FROM rollout", "has no rollouts"),
    ("DELETE FROM task", "names a task that is not there"),
    ("UPDATE rollout SET reward = NULL WHERE id = 1", "Rollout 1 has neither"),
    ("UPDATE exposure SET version = 9 WHERE id = 1", "Exposure 1 is of lesson 1, version 9"),
    ("DELETE FROM adapter", "names a adapter that is not there"),
    ("UPDATE adapter SET status = 'rejected'", "profile default answers with adapter 1"),
    ("DELETE FROM alias", "Lesson 1 counts as distilled"),
]


@pytest.mark.parametrize(
    ("harm", "found"),
    [*HARMS, ("DELETE FROM lesson_fts_docsize WHERE id = 1", "search index holds 1 of 2")],
)
def test_the_doctor_names_what_is_wrong(tmp_path: Path, harm: str, found: str):
    path = Path(shutil.copy(VERSION_1, tmp_path / "lessons.db"))
    Store(path)  # brings it up to date, which a damaged one is not
    with sqlite3.connect(path) as c:
        c.executescript(f"PRAGMA ignore_check_constraints = ON; {harm}")
    problems = doctor.check(Store(path))
    assert any(found in problem for problem in problems), problems


def test_the_doctor_tells_of_two_rollouts_with_one_name(tmp_path: Path):
    """Only a table that lost its constraint can hold them."""
    path = Path(shutil.copy(VERSION_1, tmp_path / "lessons.db"))
    Store(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as c:
        c.exec_driver_sql("CREATE TABLE loose AS SELECT * FROM rollout")
        c.exec_driver_sql("INSERT INTO loose SELECT * FROM loose WHERE id = 1")
        c.exec_driver_sql("UPDATE loose SET id = 5 WHERE rowid = 5")
        c.exec_driver_sql("CREATE UNIQUE INDEX only ON loose (id)")
        c.exec_driver_sql("DROP TABLE rollout")
        c.exec_driver_sql("ALTER TABLE loose RENAME TO rollout")
    engine.dispose()
    assert "Run 1 has rollout 0 of the task key-task0 2 times." in doctor.check(Store(path))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.unlink(missing_ok=True)
    fill(Store(target))
