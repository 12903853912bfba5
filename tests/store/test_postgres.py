"""PostgreSQL, the team's database: what is said when it cannot be opened, and what is PostgreSQL's
alone.

What both databases must do is in test_store*.py, whose fixtures `store` and `where` give one of
each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from postgres import Server, name_of
from test_bad_input import run_command
from test_store import HARMS, a_run, attempt, fill, says
from test_store_stress import die_at

from reflect.errors import NewerDatabase, StoreError
from reflect.records import FACTS, Lesson
from reflect.store import Store, dialect, doctor, lessons, nights, runs
from reflect.store.dialect import without_password
from reflect.store.postgres import WRITER


@pytest.fixture
def url(postgres: Server):
    """Of a new database with reflect's tables."""
    item = postgres.fresh()
    yield item
    postgres.drop(item)


# -- opening
# -----------------------------------------------------------------------------------------------------------


def test_any_spelling_of_the_url_is_served_by_psycopg(url: str):
    for scheme in ("postgresql+psycopg", "postgresql", "postgres", "postgresql+psycopg2"):
        with Store(url.replace("postgresql+psycopg", scheme, 1)).read() as s:
            assert s.get_bind().dialect.driver == "psycopg"


def test_what_cannot_be_opened_is_said_in_one_sentence_with_the_next_step(
    postgres: Server, url: str, tmp_path: Path
):
    name = name_of(url)
    says(
        "No server answers",
        "host and port",
        f"postgresql://{tmp_path.name}.invalid/lessons?connect_timeout=2",
    )
    says("No server answers", "Start it", f"postgresql:///lessons?host={tmp_path}")
    says("no database", "createdb nix", postgres.url("nix"))
    says('"nobody-here" does not exist', "Check the user", postgres.url(name, user="nobody-here"))
    says("colour", "Leave it out", f"{url}&colour=red")
    says("not a database URL", "--db", "postgresql://host:port/lessons")


def test_a_password_is_asked_for_and_never_printed(
    postgres: Server, url: str, capsys: pytest.CaptureFixture
):
    lodger = postgres.url(name_of(url), user="lodger")
    says("no password supplied", "pgpass", lodger)
    for wrong in ("hunter2", "hunter2%40x"):
        for bad in (lodger.replace("lodger@", f"lodger:{wrong}@"), f"{lodger}&password={wrong}"):
            says("password authentication failed", "PGPASSWORD", bad)
            assert run_command(["doctor", "--db", bad]) == 1
            assert run_command(["lessons", "path", "--db", bad]) == 0
    for broken in (
        "postgresql://lodger:hunter2@x@host/db",
        "postgresql://lodger:hunter2@host:x/db",
        "no://a:hunter2@b",
    ):
        assert run_command(["lessons", "--db", broken]) == 1
    says(
        "permission denied", "owner", lodger.replace("lodger@", "lodger:secret@")
    )  # let in, but these are not its own
    output = capsys.readouterr()
    assert (
        "hunter2" not in output.out + output.err
        and "lodger:***@" in output.out
        and "password=***" in output.out
    )
    postgres.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO lodger", name_of(url))
    assert "secret" not in Store(lodger.replace("lodger@", "lodger:secret@")).url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:pw@db/x", "postgresql://ann:***@db/x"),
        ("postgresql://ann:p@w:/1@db:5432/x?a=b", "postgresql://ann:***@db:5432/x?a=b"),
        ("postgresql://ann@db/x?Password=pw&a=b", "postgresql://ann@db/x?Password=***&a=b"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("sqlite:///a:b.db", "sqlite:///a:b.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str):
    assert without_password(url) == shown


def test_without_the_driver_the_next_step_is_its_installation(tmp_path: Path):
    (tmp_path / "psycopg.py").write_text("raise ImportError('not here')")
    code = "from reflect.store import Store; Store('postgresql://ann:pw@db/lessons')"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "needs the driver psycopg" in last
        and "pip install 'second-nature[postgres]'" in last
        and ":pw@" not in last
    )


def test_the_database_of_another_program_and_a_newer_one_are_left_alone(postgres: Server):
    theirs = postgres.empty()
    postgres.sql("CREATE TABLE song (title text)", name_of(theirs))
    says("of another program", "--db", theirs)
    postgres.sql("CREATE TABLE alembic_version (version_num text)", name_of(theirs))
    says("of another program", "--db", theirs)
    assert postgres.sql(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name_of(theirs)
    ) == [(2,)]
    newer = postgres.fresh()
    postgres.sql("UPDATE alembic_version SET version_num = '9999'", name_of(newer))
    says("newer reflect (revision 9999)", "Update", newer, NewerDatabase)
    postgres.drop(theirs)
    postgres.drop(newer)


def test_a_user_who_may_not_make_tables_is_told(postgres: Server):
    item = postgres.empty()
    lodger = postgres.url(name_of(item), user="lodger").replace("lodger@", "lodger:secret@")
    says("permission denied", "owner", lodger)
    postgres.drop(item)


def test_a_database_that_is_not_utf8_is_refused(postgres: Server):
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    says("LATIN1", "UTF8", postgres.url("latin"))
    postgres.drop(postgres.url("latin"))


# -- transactions
# ------------------------------------------------------------------------------------------------------


def test_a_lock_that_somebody_keeps(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialect, "LOCK_SECONDS", 0.2)
    store, other = Store(url), Store(url)
    with other.write() as kept:
        lessons.add(kept, when="a", do="b", author="human")
        with store.read() as s:
            assert lessons.count(s) == 0, "readers do not wait for a writer"
        with (
            pytest.raises(StoreError, match="Another process has been writing"),
            store.write() as s,
        ):
            pass
    with store.write() as s:
        lessons.add(s, when="a", do="c", author="human")
        assert lessons.count(s) == 2


def test_a_server_that_was_started_again_is_no_error_and_one_that_goes_away_is_told(
    postgres: Server, url: str
):
    away = (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(url)}'"
    )
    store = Store(url)
    with store.read() as s:
        assert lessons.count(s) == 0
    postgres.sql(away)
    with store.read() as s:
        assert lessons.count(s) == 0
    with pytest.raises(StoreError, match=r"going down|broke"), store.write() as s:
        postgres.sql(away)
        lessons.add(s, when="a", do="b", author="human")
    with store.read() as s:
        assert lessons.count(s) == 0


def test_a_writer_that_falls_silent_loses_the_lock_and_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reflect.store.postgres.SILENT_SECONDS", 0.2)
    silent, other = Store(url), Store(url)
    with pytest.raises(StoreError, match=r"kept .* waiting|broke"), silent.write() as s:
        lessons.add(s, when="a", do="b", author="human")
        with other.write() as o:  # waits until the server has lost its patience with the first
            lessons.add(o, when="a", do="c", author="human")
        lessons.add(s, when="a", do="d", author="human")
    with other.read() as s:
        assert [x.do for x in lessons.listing(s)] == ["c"]


# -- what is written
# ---------------------------------------------------------------------------------------------------


def test_what_sqlite_takes_is_taken(store: Store):
    """On both: a seed of 63 bits, a NaN of a bad training, the character 0 of a bad model, time
    with its zone."""
    with store.write() as s:
        run, tasks = a_run(s, seed=2**62 + 1)
        row = attempt(run, tasks[0], 0)
        row.seed, row.feedback, row.parts = (
            2**63 - 1,
            "a\0b",
            {"x": [float("inf"), {"y": float("-inf")}, "\0ü"]},
        )
        runs.save_rollouts(s, [row], [[]])
        night = nights.start_night(s, key="n", profile="default", config={}, lessons=[])
        nights.save_stage(s, night.id, "train", {"loss": float("nan")})
    with store.read() as s:
        (row,) = runs.rollouts(s, 1)
        assert (row.seed, runs.get_run(s, 1).seed) == (2**63 - 1, 2**62 + 1)
        assert row.parts == {"x": [float("inf"), {"y": float("-inf")}, "\0ü"]} and row.feedback in (
            "a\0b",
            "a\ufffdb",
        )
        assert str(nights.get_night(s, 1).stages["train"]["loss"]) == "nan"
        assert row.created.utcoffset().total_seconds() == 0


def test_ids_that_were_given_by_hand_are_not_given_again(store: Store):
    with store.write() as s:
        s.add(Lesson(id=1, when="a", do="b"))
        s.flush()
        s.add_all([Lesson(id=40, when="a", do="b"), Lesson(id=7, when="a", do="b")])
        s.flush()
        assert lessons.add(s, when="a", do="b", author="human").id == 41
    with store.write() as s:
        assert lessons.add(s, when="a", do="b", author="human").id == 42


@pytest.mark.parametrize(
    ("harm", "found"), [*HARMS, ("DROP INDEX ix_lesson_words", "search index is not there")]
)
def test_the_doctor_names_what_is_wrong(postgres: Server, url: str, harm: str, found: str):
    store = Store(url)
    fill(store)
    assert doctor.check(store) == []
    free = "".join(f"ALTER TABLE {t} DROP CONSTRAINT ck_{t}_{c};" for t, c in FACTS)
    postgres.sql(  # no foreign keys in this session
        f"{free} SET session_replication_role = replica; {harm}", name_of(url)
    )
    problems = doctor.check(store)
    store.close()
    assert any(found in problem for problem in problems), problems


# -- migrations
# --------------------------------------------------------------------------------------------------------


def test_a_migration_killed_at_any_statement_is_done_by_the_next_start(postgres: Server):
    item, killed = postgres.empty(), 0
    for statement in range(1, 200, 13):
        process = multiprocessing.get_context("fork").Process(target=die_at, args=(item, statement))
        process.start()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        postgres.sql(
            f"SELECT pg_advisory_xact_lock({WRITER})", name_of(item)
        )  # now the dead has let go of everything
        tables = postgres.sql(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name_of(item)
        )
        names = {name for (name,) in tables}
        assert not names or {"alembic_version", "lesson", "alias"} <= names, (
            "all of a migration or nothing"
        )
        if process.exitcode == 0:
            break
    assert killed > 4 and process.exitcode == 0
    assert doctor.check(Store(item)) == []
    postgres.drop(item)
