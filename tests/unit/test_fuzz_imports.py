"""Files of lessons that are damaged or hostile: imported whole, or one sentence and nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile import damaged, places, replaced, to_json, values
from hypothesis import given
from hypothesis import strategies as st

import reflect
from reflect.errors import UsageError
from reflect.records import Trial
from reflect.store import lessons as db
from reflect.store import nights
from reflect.workspace.workspace import Workspace


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An export of two lessons, with versions, a link and a trial."""
    ws = reflect.open(str(tmp_path_factory.mktemp("export") / "lessons.db"))
    first = ws.lessons.add("it rains 😀", "take an umbrella", scope="letters", tags=["weather"])
    ws.lessons.edit(first.id or 0, do="stay inside")
    second = ws.lessons.add("it snows", "wear boots")
    figures = {"effect": 0.1, "low": -0.1, "high": 0.3, "n": 20}
    with ws.store.write() as s:
        nights.add_trial(
            s, Trial(lesson_id=1, version=2, kind="withhold", verdict="accept", **figures)
        )
        db.link(s, first.id, second.id, "supersedes", "same")
    return ws.lessons.export().encode()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that each import finds empty."""
    folder = tmp_path_factory.mktemp("import")
    ws = reflect.open(str(folder / "lessons.db"))
    assert not ws.lessons.list()
    shutil.copy(folder / "lessons.db", folder / "empty.db")
    return ws


def check_import(ws: Workspace, data: bytes, trust: bool) -> None:
    folder = Path(ws.path).parent
    for name in ("lessons.db-wal", "lessons.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(folder / "empty.db", folder / "lessons.db")
    file = folder / "file.jsonl"
    file.write_bytes(data)
    refusal = None
    try:
        rows = ws.lessons.import_(file, trust=trust)
    except UsageError as e:
        refusal = e
    if refusal:
        assert "file.jsonl" in refusal.message and len(refusal.message) < 600, refusal
        assert str(refusal).isprintable() and not ws.lessons.list()
        return
    assert {row.sign for row in rows} <= set("+=?!~")
    again = ws.lessons.import_(file, trust=trust)
    assert all(row.sign in "=!" for row in again), again
    ws.lessons.export()
    assert ws.doctor() == []
    if ws.lessons.list():
        ws.lessons.add("a new lesson", "gets an id")


@given(st.data(), st.booleans())
def test_damaged_bytes(
    workspace: Workspace, export: bytes, data: st.DataObject, trust: bool
) -> None:
    check_import(workspace, data.draw(damaged(export)), trust)


@given(st.data(), st.booleans())
def test_a_hostile_value(
    workspace: Workspace, export: bytes, data: st.DataObject, trust: bool
) -> None:
    head, *lines = export.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    line: Any = json.loads(lines[at])
    line = replaced(line, data.draw(st.sampled_from(list(places(line)))), data.draw(values))
    lines[at] = to_json(line)
    check_import(workspace, b"\n".join([head, *lines]), trust)


@given(st.one_of(st.binary(max_size=100), values.map(to_json)))
def test_any_file(workspace: Workspace, data: bytes) -> None:
    check_import(workspace, data, trust=False)


TIMES = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T00:00:00Z"]


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((r'"created":"[^"]*"', f'"created":"{time}"') for time in TIMES),
        (r'"id":1,', f'"id":{2**63 - 1},'),
        (r'"id":1,', f'"id":{2**63},'),
        (r'"effect":0.1', '"effect":NaN'),
        (r'"high":0.3', '"high":1e999'),
        (r'"tokens":\d+', f'"tokens":{2**63 - 1}'),
        (r'"version":1,', '"version":1e0,'),
        (r'"it rains [^"]*"', r'"it rains \\u0000"'),
        (r'"it rains [^"]*"', r'"it rains \\ud800"'),
        (r'"it rains [^"]*"', json.dumps("rain " * 100_000)),
        (r'"weather"', r'"\\u0000"'),
        (r'\["weather"\]', "[" * 700 + "]" * 700),
        (r'"n":20', '"n":9223372036854775807'),
        (r'\{"format"', "[" * 100_000 + '{"format"'),
    ],
)
def test_a_value_that_no_export_has(
    workspace: Workspace, export: bytes, old: str, new: str, trust: bool
) -> None:
    data, count = re.subn(old, new, export.decode(), count=1)
    assert count
    check_import(workspace, data.encode(), trust)
