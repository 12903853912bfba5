"""Files that people have: rows of other formats are read as documented, or refused with the line
that converts them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from reflect.errors import BadTaskFile
from reflect.tasksets import check, load_taskset
from reflect.tasksets.task import Task


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tasks(name: str, content: str | bytes) -> list[Task]:
    data = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(data)
    taskset = load_taskset(name)
    return [*taskset.tasks("practice"), *taskset.tasks("holdout")]


def only(row: dict[str, Any]) -> Task:
    (task,) = tasks("t.jsonl", lines(row))
    return task


def turn(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


ANSWERED = [turn("user", "2+2?"), turn("assistant", "4")]
Q = "Natalia sold 48 clips in April and half as many in May. How many in total?"


@pytest.mark.parametrize(
    ("row", "text", "verifier", "answer"),
    [
        ({"question": "2+2?", "answer": 4}, "2+2?", "exact", 4),
        ({"question": "2+2?", "answer": "four"}, "2+2?", "exact", "four"),
        ({"query": "2+2?", "response": "4"}, "2+2?", "exact", "4"),
        ({"input": "2+2?", "output": "4"}, "2+2?", "exact", "4"),
        ({"input": "2+2?", "target": "4", "verifier": "number"}, "2+2?", "number", "4"),
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "exact", "4"),
        ({"prompt": "2+2?", "ground_truth": 4}, "2+2?", "exact", 4),
        ({"instruction": "Add.", "input": "2+2", "output": "4"}, "Add.\n\n2+2", "exact", "4"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.", "exact", "hi"),
        ({"question": Q, "answer": "48/2 = <<48/2=24>>24\n48+24 = 72\n#### 72"}, Q, "number", "72"),
        ({"question": Q, "answer": "So\n#### 1,200"}, Q, "number", "1,200"),
        ({"question": Q, "answer": "So\n#### -$3"}, Q, "number", "-$3"),
        ({"question": Q, "answer": "So\n#### Paris"}, Q, "exact", "Paris"),
        ({"problem": Q, "solution": "So it is $\\boxed{\\frac{1}{2}}$."}, Q, "number", "\\frac{1}{2}"),
        ({"problem": Q, "solution": "So $\\boxed{x+1}$."}, Q, "exact", "x+1"),
        ({"problem": Q, "solution": "long", "answer": "7"}, Q, "exact", "7"),
        ({"messages": ANSWERED}, "2+2?", "exact", "4"),
        ({"messages": [turn("system", "Be short."), *ANSWERED]}, "2+2?", "exact", "4"),
        ({"messages": [turn("user", "2+2?"), turn("assistant", "<think>2, 4</think>\n\n4")]}, "2+2?", "exact", "4"),
        ({"messages": [turn("user", [{"type": "text", "text": "2+2?"}]), {**turn("assistant", "4"), "weight": 1}]}, "2+2?", "exact", "4"),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, "2+2?", "exact", "4"),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, "2+2?", "exact", "4"),
        ({"conversations": ANSWERED}, "2+2?", "exact", "4"),
        ({"prompt": [turn("user", "2+2?")], "answer": "4"}, "2+2?", "exact", "4"),
        ({"data_source": "openai/gsm8k", "prompt": [turn("user", "2+2?")], "ability": "math", "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"split": "train", "index": 0}}, "2+2?", "number", "4"),
        ({"data_source": "x", "prompt": [turn("user", "2+2?")], "reward_model": {"ground_truth": "four"}}, "2+2?", "exact", "four"),
        ({"Question": "2+2?", "ANSWER": "4"}, "2+2?", "exact", "4"),
        ({"question": "2+2?", "answers": ["4"]}, "2+2?", "exact", "4"),
        ({"context": "Two twos.", "question": "Sum?", "answer": "4"}, "Two twos.\n\nSum?", "exact", "4"),
        ({"system": "Be short.", "question": "2+2?", "answer": "4"}, "2+2?", "exact", "4"),
        ({"prompt": [turn("user", "2+2?")], "completion": [turn("assistant", "4")]}, "2+2?", "exact", "4"),
        ({"question": "Hot?", "A": "no", "B": "yes", "answer": "B"}, "Hot?\nA) no\nB) yes", "exact", "B"),
        ({"question": "Hot?", "option_a": "no", "option_b": "yes", "answer": "A"}, "Hot?\nA) no\nB) yes", "exact", "A"),
        ({"question": "Hot?", "choices": ["no", "yes"], "answer": 1}, "Hot?\nA) no\nB) yes", "exact", "B"),
        ({"question": "Hot?", "choices": ["no", "yes"], "answer": "A"}, "Hot?\nA) no\nB) yes", "exact", "A"),
        ({"question": "Hot?", "choices": ["no", "yes"], "answer": "yes"}, "Hot?\nA) no\nB) yes", "exact", "B"),
        ({"question": "Hot?", "choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answerKey": "2"}, "Hot?\nA) no\nB) yes", "exact", "B"),
        ({"question": "Hot?", "options": {"A": "no", "B": "yes"}, "answer": "B"}, "Hot?\nA) no\nB) yes", "exact", "B"),
        ({"question": "Hot? A) no B) yes", "choices": ["no", "yes"], "answer": "B"}, "Hot? A) no B) yes", "exact", "B"),
    ],
)  # fmt: skip
def test_a_row_of_another_format_is_read(
    row: Any, text: str, verifier: str, answer: object
) -> None:
    task = only(row)
    assert (task.text, task.verifier, task.answer) == (text, verifier, answer)
    taskset = load_taskset("t.jsonl")
    assert [problem for problem in check(taskset) if problem.startswith("task ")] == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "answer": "4"},
        {"messages": [{"role": "user", "content": "2+2?", "name": None}], "answer": "4"},
    ],
)
def test_other_fields_of_a_task_file_are_ignored(row: dict[str, Any]) -> None:
    """So that the tasks of files that were used before keep their keys, and their evidence."""
    extra = {"system": "s", "context": "c", "choices": ["3", "4"], "A": "3", "B": "4", "label": "x"}
    alone, more = only(row), only({**row, **extra, "question": "q", "output": "o"})
    assert (alone.key, alone.messages) == (more.key, more.messages)
    assert alone.messages == row.get("messages", [turn("user", "2+2?")])


def test_a_system_text_is_the_first_message() -> None:
    row = {"system": "Be short.", "question": "2+2?", "answer": "4"}
    assert only(row).messages == [turn("system", "Be short."), turn("user", "2+2?")]


def test_earlier_turns_stay_in_the_question() -> None:
    first = [turn("user", "1+1?"), turn("assistant", "2")]
    assert only({"messages": [*first, *ANSWERED]}).messages == [*first, ANSWERED[0]]


@pytest.mark.parametrize(
    ("row", "says", "step"),
    [
        ({"question": "a", "problem": "b", "answer": "c"}, "'question': there is 'problem' too", "jq -c"),
        ({"question": "a", "output": "b", "response": "c"}, "'output': there is 'response' too", "jq -c"),
        ({"messages": ANSWERED, "answer": "4"}, "'messages': the last one is an answer", "Leave one"),
        ({"text": "a", "gold_text": "b"}, "'prompt': there is none", "jq -c '{prompt: .text, answer: .gold_text}' t.jsonl > tasks.jsonl"),
        ({"question": "a", "reply": "c"}, "'answer': there is none", ".reply}"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "'chosen': preferences", "answer: .chosen"),
        ({"prompt": [turn("user", "a")], "reward_model": {"ground_truth": ["b", "c"]}}, "'reward_model'", "reward_model.ground_truth[0]"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "'answer': \"d\" is none of the choices", "Give one of A, B"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "'answer': 2 is none of the choices", "Give one of A, B"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]}, "'observation' is no speaker", "Rename"),
        ({"messages": [turn("user", "a"), {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "calls a tool", "environment"),
        ({"messages": [turn("user", "a"), turn("assistant", "<think>b")]}, "'answer': there is none", "Give"),
        ({"messages": [turn("assistant", "a")]}, "'messages'", "Write"),
        ({"question": "a", "choices": ["1", "2", "3"], "answer": "2"}, "is more than one of the choices", "Give one of A, B, C"),
        ({"question": "a", "choices": ["1", "2", "3"], "answer": 2}, "is more than one of the choices", "Give one of A, B, C"),
        ({"question": "a", "answers": ["b", "c"]}, "'answers': it is not one text", ".answers[0]"),
        ({"question": "a", "answers": {"text": ["b"]}}, "'answers': it is not one text", ".answers[0]"),
        ({"problem": "a", "solution": "long " * 40}, "'solution': it is a derivation", "final answer"),
        ({"question": "a", "answer": ["b"]}, "'answer': it is not a text or a number", "one text"),
        ({"prompt": "a", "answer": "\u200b"}, "'answer': nothing is left of it", "Give"),
        ({"prompt": "a", "answer": "three", "verifier": "number"}, "'three' is not one number", "alone"),
        ({"prompt": "a", "answer": "3-5", "verifier": "number"}, "'3-5' is not one number", "alone"),
        ({"prompt": "a", "answer": "3 or 4", "verifier": "number"}, "'3 or 4' is not one number", "alone"),
    ],
)  # fmt: skip
def test_an_ambiguous_row_is_refused_with_the_line_that_converts(
    row: Any, says: str, step: str
) -> None:
    with pytest.raises(BadTaskFile) as e:
        only(row)
    assert "t.jsonl, line 1" in str(e.value) and says in str(e.value)
    assert step in e.value.hint and "\n" not in e.value.hint


ROWS = [{"question": f"{n}+1?", "answer": n + 1} for n in range(12)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.ndjson", lines(*ROWS)),
        ("t.json", json.dumps({"data": ROWS})),
        ("t.json", json.dumps({"version": 1, "examples": ROWS})),
        ("t.json", json.dumps({"train": ROWS[:8], "test": ROWS[8:]})),
        ("t.json", lines(*ROWS)),
        ("t.jsonl", "\ufeff" + lines(*ROWS).replace("\n", "\r\n")),
        ("t.jsonl", "\n\n" + lines(*ROWS).replace("\n", "\n\n")),
        ("t.csv", "question,answer\n" + "".join(f"{n}+1?,{n + 1}\n" for n in range(12))),
        ("t.csv", "\ufeffquestion;answer\r\n" + "".join(f"{n}+1?;{n + 1}\r\n" for n in range(12))),
        ("t.tsv", "answer\tquestion\n\n" + "".join(f"{n + 1}\t{n}+1?\n" for n in range(12))),
        ("T.CSV", 'question,answer,note\n' + "".join(f'"{n}+1?",{n + 1},"a ""b"", c"\n' for n in range(12))),
        ("t.yaml", "".join(f"- question: {n}+1?\n  answer: {n + 1}\n" for n in range(12))),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_read(name: str, content: str) -> None:
    rows = tasks(name, content)
    assert sorted(task.text for task in rows) == sorted(row["question"] for row in ROWS)
    assert {str(task.answer) for task in rows} == {str(row["answer"]) for row in ROWS}


def test_splits_of_a_column_of_an_object_and_of_a_folder(folder: Path) -> None:
    parts = ["train", "test", "validation", "dev", "practice", "holdout"]
    rows = [{**ROWS[i], "split": part} for i, part in enumerate(parts)]
    sides = {task.text: task.split for task in tasks("t.jsonl", lines(*rows))}
    wanted = ["practice", "holdout", "holdout", "holdout", "practice", "holdout"]
    assert [sides[row["question"]] for row in rows] == wanted
    sides = {
        task.text: task.split
        for task in tasks("t.json", json.dumps({"train": ROWS[:2], "test": ROWS[2:3]}))
    }
    assert list(map(sides.get, ["0+1?", "1+1?", "2+1?"])) == ["practice", "practice", "holdout"]
    (folder / "gsm").mkdir()
    (folder / "gsm" / "train-00000-of-00001.jsonl").write_text(lines(*ROWS[:8]))
    (folder / "gsm" / "test.csv").write_text("question,answer\n20+1?,21\n")
    (folder / "gsm" / "README.md").write_text("about")
    taskset = load_taskset("gsm")
    assert (len(taskset.tasks("practice")), len(taskset.tasks("holdout"))) == (8, 1)
    assert taskset.name == "gsm" and check(load_taskset("gsm/")) == []
    (folder / "gsm" / "test.csv").write_text("question,answer\n0+1?,1\n")
    with pytest.raises(BadTaskFile, match="the same question is practice"):
        load_taskset("gsm")


@pytest.mark.parametrize(
    ("name", "content", "says", "step"),
    [
        ("t.jsonl", lines(*ROWS).encode("utf-16"), "it is UTF-16 text, not UTF-8", "iconv"),
        ("t.csv", "question,answer\na,b".encode("utf-16-le"), "it is UTF-16 text", "iconv"),
        ("t.parquet", b"PAR1", "parquet files are not read", "read_parquet('t.parquet')"),
        ("t.jsonl.gz", b"\x1f\x8b", "gz files are not read", "gunzip -k t.jsonl.gz"),
        ("t.csv", b"question,answer\na,b,c\n", "line 2: it has not the 2 cells", "Quote"),
        ("t.csv", b"question,answer\na\n", "line 2: it has not the 2 cells", "Quote"),
        ("t.csv", b'question,answer\n"a,b\n', "t.csv, line", "Double"),
        ("t.csv", b"a,b\nc,d\n", "field 'prompt': there is none", "Rename the field a to prompt"),
        ("t.csv", b"question,answer\n", "holds no task", "Give one"),
        ("t.json", b'{"data": [], "rows": []}', "is not a list of tasks", "train"),
        ("t.json", b'{"data": "x"}', "is not a list of tasks", "train"),
        ("t.json", b'{"prompt": "a", "answer": "b"}\n{', "line 2: this is no JSON", "line"),
    ],
)
def test_a_file_that_is_not_read_says_how_to_convert_it(
    name: str, content: bytes, says: str, step: str
) -> None:
    with pytest.raises(BadTaskFile) as e:
        tasks(name, content)
    assert says in str(e.value) and step in e.value.hint


def test_a_folder_without_task_files_says_what_to_name_them(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(BadTaskFile, match="folder without files of tasks"):
        load_taskset("empty")
    (folder / "empty" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadTaskFile, match="parquet files are not read"):
        load_taskset("empty")


def test_check_reports_a_gold_that_no_model_can_give() -> None:
    rows = [
        {"prompt": "a", "answer": "<think>b</think>c", "split": "practice"},
        {"prompt": "b", "answer": "word " * 50, "split": "holdout"},
        {"prompt": "c", "answer": "b", "split": "holdout"},
    ]
    Path("t.jsonl").write_text(lines(*rows))
    problems = check(load_taskset("t.jsonl"), max_tokens=20)
    assert len(problems) == 2
    assert "begins with a thought" in problems[0] and "has 51 words" in problems[1]


def test_the_cost_of_rows_is_linear() -> None:
    def seconds(n: int) -> float:
        Path("t.jsonl").write_text(
            lines(*({"question": f"{i}+1?", "answer": i, "source": "x"} for i in range(n)))
        )
        began = time.process_time()
        load_taskset("t.jsonl")
        return time.process_time() - began

    assert seconds(8000) < 10 * max(seconds(2000), 0.05)
