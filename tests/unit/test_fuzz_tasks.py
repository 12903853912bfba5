"""Files of tasks that are damaged or hostile: loaded, or one sentence that names the file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import damaged, places, replaced, to_json, values
from hypothesis import given
from hypothesis import strategies as st

from reflect.errors import UsageError
from reflect.tasksets import load_taskset

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "How many?", "answer": "3", "verifier": "number", "split": "practice"},
    {"prompt": "A letter?", "answer": "b", "verifier": "regex", "gold": "b", "tags": ["x"], "untrusted": True},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "answer": "x", "feedback": "f"},
    {"prompt": "Write f.", "verifier": "code", "cases": [{"stdin": "2", "stdout": "4"}], "gold": "print(4)"},
    {"prompt": "Polite?", "rubric": "Is it polite?", "text": "Dear", "reward": 1},
    {"question": "How many?", "answer": "rationale #### 3"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    {"prompt": [{"role": "user", "content": "hi"}], "data_source": "d", "reward_model": {"ground_truth": "3", "style": "rule"}},
    {"prompt": "Call f.", "answer": "x", "tools": [TOOL]},
]  # fmt: skip
SUFFIXES = [".jsonl", ".json", ".yaml", ".yml", ".ndjson", ".csv", ".tsv", ".txt", ""]
pytestmark = pytest.mark.usefixtures("folder")


def load(data: bytes, suffix: str) -> None:
    """The file loads and can be checked, or is refused in one sentence; both quickly."""
    file = Path(f"my{suffix}")
    file.write_bytes(data)
    begin, refusal = time.process_time(), None
    try:
        taskset = load_taskset(f"./{file}")
        for split in ("practice", "holdout"):
            json.dumps([task.shape() for task in taskset.tasks(split)], ensure_ascii=False).encode()  # type: ignore[arg-type]
    except UsageError as e:
        refusal = e
    if refusal:
        assert "my" in refusal.message and len(str(refusal)) < 12_000, refusal
    assert time.process_time() - begin < 10


def written(rows: list[Any], suffix: str) -> bytes:
    """The rows in a format."""
    if suffix in (".yaml", ".yml"):
        return yaml.safe_dump(rows).encode(errors="replace")
    if suffix == ".json":
        return to_json(rows)
    return b"\n".join(map(to_json, rows))


@given(st.data(), st.sampled_from(SUFFIXES), st.integers(0, len(ROWS) - 1))
def test_damaged_bytes(data: st.DataObject, suffix: str, at: int) -> None:
    load(data.draw(damaged(written([ROWS[at], *ROWS[:2]], suffix))), suffix)


@given(st.data(), st.sampled_from(SUFFIXES[:5]), st.integers(0, len(ROWS) - 1))
def test_a_hostile_value(data: st.DataObject, suffix: str, at: int) -> None:
    row = ROWS[at]
    if data.draw(st.booleans()):
        row = replaced(row, data.draw(st.sampled_from(list(places(row)))), data.draw(values))
    else:
        names = [*{name for one in ROWS for name in one}, "lessons", "environment", "key"]
        row = row | {data.draw(st.sampled_from(sorted(names))): data.draw(values)}
    try:
        content = written([ROWS[0] | {"id": "z"}, row], suffix)
    except (yaml.YAMLError, RecursionError):
        content = to_json(row)
    load(content, suffix)


@given(st.one_of(st.binary(max_size=100), values.map(to_json)), st.sampled_from(SUFFIXES))
def test_any_file(data: bytes, suffix: str) -> None:
    load(data, suffix)


@given(
    st.lists(
        st.lists(
            st.one_of(
                st.sampled_from(["prompt", "answer", "question", "id", "split", '"', "\0"]),
                st.text(max_size=5),
            ),
            max_size=4,
        ),
        max_size=4,
    ),
    st.sampled_from([",", "\t", ";"]),
)
def test_any_table(rows: list[list[str]], separator: str) -> None:
    load("\n".join(separator.join(row) for row in rows).encode(errors="replace"), ".csv")


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
@pytest.mark.parametrize(
    "text",
    ["[" * 10_000, "- " * 20_000, "a: " * 5_000, "&a [*a]", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
     "!!python/object/apply:os.system ['true']", "9" * 5001, '{"prompt": "a", "answer": ' + "9" * 5001 + "}", '{"prompt": "a", "answer": NaN}',
     '{"prompt": "a", "answer": 1e999}', '{"prompt": "\\ud800", "answer": "a"}', '{"prompt": "a", "answer": "\\u0000"}', "\ufeff", "\x00",
     "2001-12-14t21:59:43.10-05:00: 3", "? [a]\n: b", "<<: 3", "<<: [*x]", "[" + "[]," * 3_000 + "[]]"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_a_text_that_is_no_file_of_tasks(text: str, suffix: str) -> None:
    load(text.encode(), suffix)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large"])
def test_a_path_that_is_no_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reflect.reading.SILENCE", 0.05)
    monkeypatch.setattr("reflect.tasksets.rows.MOST_BYTES", 2**20)
    path = Path("my.jsonl")
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(UsageError, match=r"my\.jsonl"):
        load_taskset("./my.jsonl").tasks("practice")
