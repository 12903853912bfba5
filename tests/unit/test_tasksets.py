"""Verifiers, task files, tasksets by name: no model anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from reflect.day.reflection import attempts_of
from reflect.errors import BadTaskFile, UnknownName, UsageError
from reflect.records import Rollout
from reflect.tasksets import available, check, load_taskset
from reflect.tasksets.base import Taskset
from reflect.tasksets.files import FileTaskset
from reflect.tasksets.task import Score, Task
from reflect.tasksets.verifiers import VERIFIERS

NAMES = ["letters", "dialect", "dialect:2", "skills", "calc", "shop", "shop:2", "business"]


@pytest.mark.parametrize("name", NAMES)
def test_every_known_good_answer_scores_one(name: str) -> None:
    taskset = load_taskset(name)
    assert check(taskset) == []
    assert taskset.name == name
    assert len(taskset.tasks("practice", 5)) == len(taskset.tasks("holdout", 5)) == 5
    assert taskset.tasks("practice", seed=1) != taskset.tasks("practice", seed=2)


def test_available_lists_the_shipped_tasksets() -> None:
    assert {"letters", "dialect"} <= {t.name for t in available() if t.about}


def test_an_unknown_taskset_says_what_there_is() -> None:
    with pytest.raises(UnknownName, match="Did you mean letters") as e:
        load_taskset("leters")
    assert "dialect" in e.value.hint and e.value.exit_code == 2
    with pytest.raises(UnknownName, match="no variants"):
        load_taskset("letters:2")
    with pytest.raises(UnknownName):
        load_taskset("dialect:x")


# -- verifiers


@pytest.mark.parametrize(
    ("verifier", "text", "answer", "reward"),
    [
        ("exact", "2 1 3", "2 1 3", 1),
        ("exact", "first 3 1 2\nAnswer:  2  1\n3 ", "2 1 3", 1),
        ("exact", "**Answer:** Paris", "paris", 1),
        ("exact", "answer: 1. no, answer: 2", 1, 0),
        ("exact", "answer: 4", "the answer: 4", 1),
        ("exact", "", "x", 0),
        ("number", "s t a r, 1, 2", 2, 1),
        ("number", "answer: there are 1,000 of them", 1000, 1),
        ("number", "answer: 0.3333333333", "0.33333333", 1),
        ("number", "answer: 100000000000000000001", 100000000000000000000, 0),
        ("number", "3 answer: none", 3, 0),
        ("number", "answer: -3", 3, 0),
        ("contains", "answer: it is  the\nEiffel tower!", "eiffel Tower", 1),
        ("contains", "the Eiffel tower. answer: Big Ben", "Eiffel", 0),
        ("regex", "answer: 3 apples", r"^3 apples?$", 1),
        ("regex", "so\nAnswer: 3", r"answer: 3$", 1),
        ("regex", "4", r"^3", 0),
    ],
)
def test_verifiers(verifier: str, text: str, answer: object, reward: float) -> None:
    assert VERIFIERS[verifier](text, answer).reward == reward


@pytest.mark.parametrize("verifier", sorted(set(VERIFIERS) - {"code"}))
@pytest.mark.parametrize(
    "text", ["", "answer:", "no idea", "answer: zebra!", "answer: 17", "\x00\ud800 answer: \u202e"]
)
def test_no_text_breaks_a_verifier_and_no_feedback_holds_the_answer(
    verifier: str, text: str
) -> None:
    for answer in ("zebra", "417"):
        score = VERIFIERS[verifier](text, answer)
        assert 0 <= score.reward <= 1 and answer not in score.feedback


def test_a_pattern_that_is_not_found_says_what_was_searched() -> None:
    assert VERIFIERS["regex"]("answer: 4", "^3").feedback == (
        "the answer does not have the form that is asked for"
    )
    text = VERIFIERS["regex"]("4 it is", "^3").feedback
    assert "whole text" in text and 'no "answer:"' in text
    assert VERIFIERS["regex"]("answer:", "^3").feedback == "there is no answer"


def test_a_hint_is_public_feedback_on_failed_attempts(tmp_path: Path) -> None:
    file = tmp_path / "hinted.jsonl"
    row = {"prompt": "The capital of France?", "verifier": "regex", "answer": "^[*]{2}Paris[*]{2}$"}
    row |= {"gold": "**Paris**", "split": "practice"}
    file.write_text(json.dumps(row | {"hint": "bold, and nothing else"}) + "\n")
    (task,) = FileTaskset(file).tasks("practice")
    assert task.hint == "bold, and nothing else" and Task(**task.shape()).hint == task.hint
    file.write_text(json.dumps(row) + "\n")
    (plain,) = FileTaskset(file).tasks("practice")
    assert "hint" not in plain.shape() and plain.key != task.key
    rows = [
        Rollout(
            run_id=1, task_key="t", index=i, reward=float(i), feedback="" if i else "wrong form",
            messages=[*task.messages, {"role": "assistant", "content": text}],
        )
        for i, text in enumerate(["Paris", "**Paris**"])
    ]  # fmt: skip
    failed, right = attempts_of(rows, task.hint)
    assert failed.feedback == "wrong form\nbold, and nothing else" and right.feedback == ""
    file.write_text(json.dumps(row | {"hint": 7}) + "\n")
    with pytest.raises(BadTaskFile, match="hint"):
        FileTaskset(file)


def test_feedback_speaks_of_the_form() -> None:
    assert VERIFIERS["number"]("answer: many", 3) == Score(0.0, "there is no number in the answer")
    assert VERIFIERS["exact"]("answer: 2, 1, 3.", "2 1 3") == Score(
        0.0, "only the punctuation is off"
    )
    assert VERIFIERS["exact"]("answer: 3 1 2", "2 1 3") == Score(0.0)


# -- task files


def write(path: Path, *rows: object) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    )
    return path


def test_thirty_questions_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"{a}{b}{a}" for a in "abcdef" for b in "rstuv"]
    rows = [
        {"prompt": f"How many a are in {w}?", "verifier": "number", "answer": w.count("a")}
        for w in words
    ]
    taskset = load_taskset(write(tmp_path / "my.jsonl", *rows))
    assert check(taskset) == []
    assert taskset.name == load_taskset("./my.jsonl").name == "my.jsonl"
    practice, holdout = taskset.tasks("practice"), taskset.tasks("holdout")
    assert len(practice) + len(holdout) == 30 and 15 <= len(practice) <= 27
    assert practice[0].shape().keys() == {"id", "messages", "verifier", "answer", "split"}
    assert taskset.tasks("practice", 4, seed=3) == taskset.tasks("practice", seed=3)[:4]

    # A line more at the top changes neither the ids nor the sides of the others.
    more = load_taskset(write(tmp_path / "more.jsonl", {"prompt": "new?", "answer": "yes"}, *rows))
    assert {(t.id, t.split) for t in practice} <= {(t.id, t.split) for t in more.tasks("practice")}


def test_every_field_and_every_verifier(tmp_path: Path) -> None:
    path = write(
        tmp_path / "all.jsonl",
        "",
        {
            "id": 7,
            "prompt": "Say hi.",
            "answer": "hi",
            "split": "practice",
            "source": "other fields are ignored",
        },
        {
            "id": "b",
            "messages": [
                {"role": "system", "content": "Short."},
                {"role": "user", "content": "2+2?"},
            ],
        }
        | {"verifier": "number", "answer": 4, "split": "holdout", "gold": None},
        {
            "id": "c",
            "prompt": "Name a city.",
            "verifier": "contains",
            "answer": "Rome",
            "split": "holdout",
        },
        {
            "id": "d",
            "prompt": "How many?",
            "verifier": "regex",
            "answer": r"^(3|three) \w+$",
            "split": "practice",
        }
        | {"gold": "answer: three apples"},
        {
            "id": "e",
            "prompt": "And y?",
            "verifier": "regex",
            "answer": "(?<=x)y",
            "gold": "xy",
            "split": "practice",
        },
        {"id": "f", "prompt": "Is it so?", "answer": True, "split": "holdout"},
    )
    taskset = load_taskset(path)
    assert check(taskset) == []
    assert sorted(t.id for t in taskset.tasks("practice")) == ["7", "d", "e"]
    assert {t.id: t.answer for t in taskset.tasks("holdout")} == {"b": 4, "c": "Rome", "f": "true"}


def test_a_known_good_text_that_the_pattern_does_not_match_is_reported(tmp_path: Path) -> None:
    patterns = (("x?", "(?<=x)y"), ("y?", ".*"))
    rows = [{"prompt": p, "verifier": "regex", "answer": a, "gold": "a y"} for p, a in patterns]
    problems = check(load_taskset(write(tmp_path / "t.jsonl", *rows)))
    assert any("known-good" in p for p in problems) and any(
        "an empty answer scores 1" in p for p in problems
    )


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    yaml = write(
        tmp_path / "t.yaml",
        "- prompt: Is it?\n  answer: no",
        "- id: b\n  prompt: |\n    Count\n    this.\n  verifier: number\n  answer: 010\n  split: holdout",
    )
    rows = [{"prompt": "Is it?", "answer": "no"}]
    rows += [
        {
            "id": "b",
            "prompt": "Count\nthis.\n",
            "verifier": "number",
            "answer": "010",
            "split": "holdout",
        }
    ]
    files = [yaml, tmp_path / "t.json"]
    files[1].write_text(json.dumps(rows, indent=2))
    left, right = (load_taskset(file) for file in files)
    assert check(left) == []
    assert left.tasks("practice") == right.tasks("practice") and left.tasks(
        "holdout"
    ) == right.tasks("holdout")
    assert left.tasks("practice")[0].answer == "no"


def test_the_same_question_without_ids_counts_once_and_stays_on_one_side(tmp_path: Path) -> None:
    row = {"prompt": "Twice?", "answer": "yes"}
    taskset = load_taskset(
        write(tmp_path / "t.jsonl", row, {"prompt": "Once?", "answer": "yes"}, row)
    )
    assert len(taskset.tasks("practice")) == len(taskset.tasks("holdout")) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "answer": "b"', "line 2: this is no JSON"),
        ("[1, 2]", "line 2: it is not a task"),
        ('{"prompt": "a"}', "line 2, field 'answer': there is none"),
        ('{"prompt": "a", "answer": " "}', "line 2, field 'answer': there is none"),
        (
            '{"prompt": "a", "anwser": "b"}',
            "line 2, field 'anwser': it is not known. Rename it to 'answer'",
        ),
        (
            '{"prompt": "a", "answer": ["b"]}',
            "line 2, field 'answer': it is not a text or a number",
        ),
        ('{"prompt": "a", "answer": NaN, "verifier": "number"}', "line 2, field 'answer'"),
        (
            '{"prompt": "a", "answer": "many", "verifier": "number"}',
            "line 2, field 'answer': 'many' is not one number",
        ),
        (
            '{"prompt": "a", "answer": "(", "verifier": "regex"}',
            "line 2, field 'answer': '(' is no regular",
        ),
        (
            '{"prompt": "a", "answer": "b+", "verifier": "regex"}',
            "line 2, field 'gold': a regex task needs a text",
        ),
        (
            '{"prompt": "a", "answer": "b", "verifier": "exakt"}',
            "line 2, field 'verifier': there is no verifier",
        ),
        (
            '{"prompt": "a", "answer": "b", "verifier": ["exact"]}',
            "line 2, field 'verifier': there is no verifier",
        ),
        (
            '{"prompt": "a", "answer": "b", "split": "tset"}',
            "line 2, field 'split': there is no split 'tset'",
        ),
        ('{"prompt": "a", "answer": "b", "id": [1]}', "line 2, field 'id'"),
        (
            '{"id": "one", "prompt": "a", "answer": "b"}',
            "line 2, field 'id': 'one' is already the id of",
        ),
        (
            '{"prompt": "First?", "answer": "b", "split": "holdout"}',
            "line 2, field 'split': the same question is practice",
        ),
        ('{"answer": "b"}', "line 2, field 'prompt': there is none"),
        ('{"prompt": 3, "answer": "b"}', "line 2, field 'prompt': it is not a text"),
        (
            '{"prompt": "a", "messages": [], "answer": "b"}',
            "line 2, field 'prompt': there is 'messages' too",
        ),
        ('{"messages": [{"role": "user"}], "answer": "b"}', "line 2, field 'messages'"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "answer": "b"}',
            "line 2, field 'messages': the last",
        ),
        ('{"prompt": "\\ud800", "answer": "b"}', "line 2: it holds half a character"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "line 2: this is no JSON"),
        ("[" * 100_000, "line 2: this is no JSON"),
    ],
)
def test_a_bad_line_says_file_line_and_field(tmp_path: Path, line: str, says: str) -> None:
    path = write(
        tmp_path / "bad.jsonl",
        {"id": "one", "prompt": "First?", "answer": "a", "split": "practice"},
        line,
    )
    with pytest.raises(BadTaskFile) as e:
        load_taskset(path)
    assert f"{path}, {says}" in str(e.value) and e.value.hint


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="There is no file"):
        load_taskset(tmp_path / "absent.jsonl")
    for name, content, says in [
        ("empty.jsonl", b"\n\n", "holds no task"),
        ("empty.yaml", b"# nothing\n", "holds no task"),
        ("latin.jsonl", b'{"prompt": "caf\xe9"}', "line 1: it is not UTF-8"),
        ("list.json", b'{"prompt": "a"}', "is not a list of tasks"),
        ("broken.json", b'[\n{"prompt": }]', "line 2: this is no JSON"),
        ("broken.yaml", b"- prompt: a\n  answer: [b\n", "line 3"),
        ("map.yaml", b"prompt: a\n", "is not a list of tasks"),
        (
            "no-answer.yaml",
            b"- prompt: a\n  answer: b\n- prompt: c\n",
            "line 3, field 'answer': there is none",
        ),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadTaskFile, match=says):
            load_taskset(tmp_path / name)
    with pytest.raises(BadTaskFile, match="cannot be read"):
        (tmp_path / "folder.jsonl").mkdir()
        load_taskset(tmp_path / "folder.jsonl")


# -- a user's own ./tasks


def test_a_users_own_taskset_wins_and_a_broken_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "letters.py").write_text(
        "from reflect.tasksets import Task, Taskset\n"
        "class Mine(Taskset):\n"
        "    name, about = 'letters', 'mine'\n"
        "    def tasks(self, split, n=None, seed=0):\n"
        "        message = {'role': 'user', 'content': split}\n"
        "        return [Task(split, [message], 'exact', 'yes', split)][:n]\n"
        "TASKSET = Mine()\n"
    )
    (tmp_path / "tasks" / "broken.py").write_text("TASKSET = 1 / 0\n")
    (tmp_path / "tasks" / "other.py").write_text("raise SystemExit('not a taskset, never run')\n")
    (tmp_path / "tasks" / "wrong.py").write_text("TASKSET = 3\n")
    assert load_taskset("letters").about == "mine" and check(load_taskset("letters")) == []
    about = {t.name: t.about for t in available()}
    assert (
        "ZeroDivisionError" in about["broken"]
        and "not a Taskset" in about["wrong"]
        and "other" not in about
    )
    with pytest.raises(UsageError, match="does not run"):
        load_taskset("broken")


def test_the_taskset_that_the_docs_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    shown = dict(re.findall(r"```(\w+)\n(.*?)```", docs, re.DOTALL))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.py").write_text(shown["python"])
    assert check(load_taskset("sums")) == []
    for name, language in (("my.jsonl", "json"), ("my.yaml", "yaml")):
        (tmp_path / name).write_text(shown[language])
        assert load_taskset(name).tasks("practice")


def test_check_finds_what_is_wrong() -> None:
    class Wrong(Taskset):
        def tasks(self, split: str, n: int | None = None, seed: int = 0) -> list[Task]:
            message = {"role": "user", "content": "the same"}
            return (
                [Task("a", [message], "taskset", "x", split)] * 2
                if split == "practice"
                else [Task("a", [message], "nobody", "x", "practice")]
            )

        def verify(self, task: Task, text: str) -> Score:
            return Score(0.5) if text else Score(1.0)

    problems = "\n".join(check(Wrong()))
    for says in [
        "more than once",
        "says that it is practice",
        "the id a is in",
        "the question",
        "scores 0.5",
        "empty",
    ]:
        assert says in problems
    assert "no verifier 'nobody'" in problems


@pytest.mark.parametrize(
    ("old", "new"), [("judged", "extract_answer"), ("Step", "EnvironmentStep")]
)
def test_the_first_names_still_import_with_a_warning(old: str, new: str) -> None:
    import reflect.tasksets

    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(reflect.tasksets, old) is getattr(reflect.tasksets, new)
    with pytest.raises(AttributeError, match="no attribute 'Nap'"):
        _ = reflect.tasksets.Nap
