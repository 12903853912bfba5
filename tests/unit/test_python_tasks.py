"""Tasksets that are Python: a function, a file, a module, a package; and what is wrong with them,
in one sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from fakes import RuleModel

from reflect.cli import run_command
from reflect.config import Settings
from reflect.day.practice import practice
from reflect.errors import BadTaskFile, UnknownName, UsageError
from reflect.store import Store, runs
from reflect.tasksets import Score, Task, available, check, extract_answer, load_taskset, taskset
from reflect.trials.reward_version import reward_version

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"

MODULE = """
from reflect.tasksets import taskset

@taskset
def sums(split):
    '''Adding.

    More.
    '''
    for a in range(4) if split == "practice" else range(4, 7):
        yield f"What is {a} + 1?", a + 1
"""


# -- what the docs show
# ------------------------------------------------------------------------------------------------


def test_the_taskset_of_the_docs_works_as_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCS.read_text().partition("## Python")[2]
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown, *_ = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 30
    (folder / "my_tasks.py").write_text(code)
    commands = [line.removeprefix("$ reflect ").split() for line in shown.splitlines()]
    assert [words[:2] for words in commands] == [["tasks", "check"], ["run", "my_tasks.py"]]
    for words in commands:
        assert run_command(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "my_tasks.py: ok" in out and "2 tasks x 2 = 4 rollouts" in out
    result = load_taskset("my_tasks.py")
    task = result.tasks("practice")[0]
    assert result.verify(task, f"I say. answer: {task.answer}.") == Score(1.0)
    assert result.verify(task, "answer: both of them") == Score(0.0, "3 words instead of one")


# -- a function
# --------------------------------------------------------------------------------------------------------


def test_a_function_yields_tasks_in_three_ways() -> None:
    @taskset(about="three ways")
    def mixed(split):
        yield f"one {split}?", 1
        yield {"prompt": f"two {split}?", "answer": 2, "verifier": "number", "id": f"two-{split}"}
        yield Task(
            f"three-{split}", [{"role": "user", "content": f"three {split}?"}], "exact", "3", split
        )
        yield f"one {split}?", 1  # without an id of its own: it counts once

    assert mixed.about == "three ways" and len(mixed.tasks("practice")) == 3 and check(mixed) == []
    assert mixed.tasks("practice", 2, 5) == mixed.tasks("practice", None, 5)[:2]
    assert {task.id for task in mixed.tasks("holdout")} >= {"two-holdout", "three-holdout"}


def test_a_verifier_may_return_a_reward_with_or_without_words() -> None:
    values = {
        "yes": True,
        "half": 0.5,
        "told": (0.25, "short"),
        "score": Score(1.0, "fine", {"form": 1.0}),
    }

    @taskset(verify=lambda text, answer: values[extract_answer(text)])
    def graded(split):
        yield split, ["any", {"answer": 1}]

    (task,) = graded.tasks("practice")
    scores = [graded.verify(task, f"answer: {word}") for word in values]
    assert scores == [Score(1.0), Score(0.5), Score(0.25, "short"), values["score"]]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (3, "wrong, practice task 1: 3 is no task"),
        (("a?",), "is no task"),
        (("a?", None), "field 'answer': there is none"),
        (("a?", {1}), "cannot be stored as JSON"),
        ({"prompt": "a?", "answer": 1, "verifier": "vibes"}, "there is no verifier 'vibes'"),
        ({"prompt": "a?", "rubric": "{{ x }}"}, "field 'rubric': it names x, which there is not"),
    ],
)
def test_what_is_no_task_says_which_one_and_why(made: object, said: str) -> None:
    @taskset
    def wrong(split):
        yield made

    with pytest.raises(BadTaskFile, match=re.escape(said)):
        wrong.tasks("practice")


def test_the_measure_changes_with_the_verifier_and_not_with_its_words() -> None:
    def rows(split):
        yield split, 1

    def strict(text, answer):
        return text == str(answer)

    def loose(text, answer):
        return str(answer) in text

    first, again = taskset(verify=strict)(rows), taskset(verify=strict, about="other words")(rows)
    assert (
        reward_version(first)
        == reward_version(again)
        != reward_version(taskset(verify=loose)(rows))
        != reward_version(taskset(rows))
    )


def test_a_function_that_yields_other_tasks_each_time_is_found_out() -> None:
    drawn = iter(range(1000))

    @taskset
    def fickle(split):
        yield from ((f"{split} {next(drawn)}?", 1) for _ in range(4))

    assert "practice: the order depends on more than the seed" in check(fickle)


# -- where it is found
# -------------------------------------------------------------------------------------------------


def test_a_file_a_module_and_a_name_in_tasks(folder: Path) -> None:
    (folder / "mine.py").write_text(MODULE + "\nother = sums.again()\n")
    (folder / "kit").mkdir()
    (folder / "kit" / "puzzles.py").write_text(MODULE)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "adding.py").write_text("import beside\n" + MODULE)
    (folder / "tasks" / "beside.py").write_text("")
    for name in ("mine.py:sums", "./mine.py:other", "kit.puzzles:sums", "adding"):
        result = load_taskset(name)
        assert check(result) == [] and len(result.tasks("practice")) == 4
        assert result.name == name.removeprefix("./") and load_taskset(result.name).tasks("holdout")
    assert {t.name: t.about for t in available()}["adding"] == "Adding."
    with pytest.raises(UsageError, match=r"mine.py holds sums, other") as e:
        load_taskset("mine.py")
    assert "mine.py:sums" in e.value.hint


def test_an_installed_package_declares_its_tasksets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one: a folder on the path with the metadata that an installer writes."""
    (folder / "packaged_sums.py").write_text(MODULE)
    info = folder / "packaged_sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[reflect.tasksets]\npsums = packaged_sums:sums\n"
        "broken = packaged_sums:nothing\nnumber = packaged_sums:__doc__\n"
    )
    sys.path.insert(0, str(folder))
    result = load_taskset("psums")
    assert result.name == "psums" and check(result) == []
    for name, output in (
        ("broken", "packaged-sums does not run: AttributeError"),
        ("number", "is no taskset"),
    ):
        with pytest.raises(UsageError, match=output):
            load_taskset(name)
    assert run_command(["tasks", "--json"]) == 0
    rows = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert rows["psums"] == "of packaged_sums:sums"
    with pytest.raises(UnknownName, match="Did you mean psums"):
        load_taskset("psum")


# -- what is wrong
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import nonumbers\n",
            r"bad.py does not run: ModuleNotFoundError: .*nonumbers.* \(bad.py, line 1\)",
        ),
        ("\n\nx = 1 / 0\n", r"ZeroDivisionError: division by zero \(bad.py, line 3\)"),
        ("def f(:\n", r"SyntaxError: .* \(bad.py, line 1\)"),
        ("import helper_that_breaks\n", r"KeyError: 'gone' \(helper_that_breaks.py, line 2\)"),
        ("raise SystemExit('no')\n", r"SystemExit: no \(bad.py, line 1\)"),
        ("x = 3\n", r"There is no taskset in bad.py"),
        ("TASKSET = 3\n", r"TASKSET in bad.py is not a Taskset"),
    ],
)
def test_a_module_that_does_not_run_says_file_line_and_what(
    folder: Path, code: str, said: str
) -> None:
    (folder / "bad.py").write_text(code)
    (folder / "helper_that_breaks.py").write_text("\n{}['gone']\n")
    with pytest.raises(UsageError, match=said) as e:
        load_taskset("bad.py")
    assert e.value.exit_code == 2 and e.value.hint
    if "line" in said:
        with pytest.raises(UsageError, match=said.replace("bad.py does", "bad does")):
            load_taskset("bad:sums")


def test_names_that_lead_nowhere(folder: Path) -> None:
    (folder / "mine.py").write_text(MODULE)
    for name, output in (
        ("missing.py", "There is no file missing.py"),
        ("mine.py:sms", "There is no taskset 'sms' in mine.py"),
        ("mine:sms", "There is no taskset 'sms' in mine"),
        ("no.such.module:sums", "There is no taskset 'no.such.module:sums'"),
        ("letter:x", "Did you mean letters"),
    ):
        with pytest.raises(UnknownName, match=output):
            load_taskset(name)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            '{"prompt": f"{split} a?", "answer": 1, "id": "a"}, {"prompt": f"{split} b?", "answer": 1, "id": "a"}',
            "practice: the id a occurs more than once",
        ),
        (
            '{"prompt": f"{split} a?", "answer": 1, "id": "a"}',
            "the id a is in practice and in holdout",
        ),
        (
            '{"prompt": "same?", "answer": 1, "id": split}',
            "the question .*same.* is in practice and in holdout",
        ),
    ],
)
def test_tasks_that_stand_twice_or_on_both_sides_never_run(
    folder: Path, rows: str, said: str
) -> None:
    code = f"from reflect.tasksets import taskset\n\n@taskset\ndef t(split):\n    yield from [{rows}]\n"
    (folder / "twice.py").write_text(code)
    with pytest.raises(UsageError, match=said) as e:
        load_taskset("twice.py")
    assert "reflect tasks check twice.py" in e.value.hint
    assert run_command(["run", "twice.py"]) == 2 and not (folder / "lessons.db").exists()


def test_a_verifier_that_raises_or_returns_nonsense_is_the_error_of_that_attempt(
    tmp_path: Path,
) -> None:
    def moody(text: str, answer: object) -> object:
        return {0: "good", 1: 7.0, 2: None}.get(int(str(answer)), 1.0) if answer != 3 else 1 / 0

    @taskset(verify=moody)
    def odd(split):
        verbs = ["zubi", "nonu", "fima", "volo", "tode"]
        for number, verb in enumerate(verbs):
            yield f"Apply {verb} to the list {number + 1} 2 9. ({split})", number

    output = check(odd)
    assert any("broke: ZeroDivisionError" in problem for problem in output)
    assert any("broke: TypeError: moody returned 'good'" in problem for problem in output)
    store = Store(tmp_path / "lessons.db")
    report = practice(RuleModel(), store, odd, Settings(), n=5, k=2, seed=0)
    assert (report.rollouts, report.errors) == (10, 8)
    with store.read() as s:
        errors = {row.error for row in runs.rollouts(s, report.run_id) if row.error}
    assert all(error.startswith("verifier: ") for error in errors) and len(errors) == 4


def test_a_broken_import_reads_well_at_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.py").write_text("import nonumbers\n")
    assert run_command(["run", "bad.py"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[0] == (
        "Error: bad.py does not run: ModuleNotFoundError: No module named 'nonumbers' (bad.py, line 1)."
    )
