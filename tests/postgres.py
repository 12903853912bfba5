"""A private PostgreSQL server for the tests and the proofs: a temporary folder, a Unix socket in
it, no network.

    with server() as postgres:
        store = Store(postgres.fresh())

What is written need not survive a power cut here, so fsync is off: not for anything that should
last.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/pgsql/bin",
)
INSTALL = "install PostgreSQL's server (Debian: apt-get install postgresql) and `pip install 'second-nature[postgres]'`"
LODGER = "lodger"  # a role that must say its password, which is `secret`
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_connections": "60",
}


class Missing(Exception):
    """There is no PostgreSQL on this machine; the message says what to install."""


def binaries() -> Path:
    """The folder of the newest PostgreSQL server's programs. Raises Missing."""
    try:
        import psycopg  # noqa: F401
    except ImportError as e:
        raise Missing(f"psycopg is missing: {INSTALL}") from e
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [folder for place in PLACES for folder in Path("/").glob(place)]
    complete = [f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()]
    if not complete:
        raise Missing(f"initdb was not found: {INSTALL}")
    return max(complete, key=lambda folder: [int(n) for n in re.findall(r"\d+", str(folder))])


class Server:
    """A server that runs. `fresh` makes databases in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        # a database with reflect's tables, copied for every test: faster than its migrations
        self.template = ""

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run one statement as the superuser, outside of a transaction; its rows, if it has any."""
        import psycopg

        with psycopg.connect(
            host=str(self.folder), user="postgres", dbname=database, autocommit=True
        ) as c:
            cursor = c.execute(statement)  # type: ignore[arg-type]  # not a literal
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> str:
        """The URL of a new database without a table."""
        return self.url(self._make(""))

    def fresh(self) -> str:
        """The URL of a new database with reflect's tables and nothing in them."""
        if not self.template:
            from reflect.store import Store

            name = self._make("")
            Store(self.url(name)).close()
            self.template = name
        return self.url(self._make(f"TEMPLATE {self.template}"))

    def drop(self, url: str) -> None:
        """Away with a database, and with everybody who is connected to it."""
        self.sql(f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")

    def _make(self, how: str) -> str:
        self.made += 1
        name = f"lessons{self.made}"
        self.sql(f"CREATE DATABASE {name} {how}")
        return name


def name_of(url: str) -> str:
    return url.split("?")[0].rsplit("/", 1)[1]


@contextmanager
def server() -> Iterator[Server]:
    """Make a server, start it, and stop it at the end. Raises Missing where there is none to
    start."""
    programs = binaries()
    who = {"user": user, "group": pwd.getpwnam(user).pw_gid} if (user := _unprivileged()) else {}
    folder = Path(
        tempfile.mkdtemp(prefix="reflect-pg-")
    )  # not pytest's: a socket's path must be short
    try:
        if user:
            shutil.chown(folder, user, who["group"])
        words = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        initdb = [programs / "initdb", f"--pgdata={folder / 'data'}", *words]
        item = subprocess.run(initdb, cwd=folder, capture_output=True, text=True, **who)
        if item.returncode:
            raise RuntimeError(f"initdb failed: {item.stderr}")
        doors = folder / "data" / "pg_hba.conf"
        doors.write_text(f"local all {LODGER} scram-sha-256\nlocal all all trust\n")
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-k", folder, *settings],
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_us,
                **who,
            )
        try:
            result = Server(folder)
            _wait_for(result, process)
            result.sql(f"CREATE ROLE {LODGER} LOGIN PASSWORD 'secret'")
            yield result
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    """Somebody else to run it as: PostgreSQL refuses root. None where we are nobody special."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


def _die_with_us() -> None:
    """On Linux: the server stops even when we are killed. (1 is PR_SET_PDEATHSIG.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _wait_for(found: Server, process: subprocess.Popen, seconds: float = 60) -> None:
    import psycopg

    deadline = time.monotonic() + seconds
    while True:
        try:
            found.sql("SELECT 1")
            return
        except psycopg.OperationalError as e:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"PostgreSQL did not start: {(found.folder / 'log').read_text()}"
                ) from e
            time.sleep(0.05)


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(
        signal.SIGQUIT
    )  # "immediate": nothing here is kept. Its children end with it.
    process.wait(30)
