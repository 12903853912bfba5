"""Code tasks: the sandbox, what its limits hold, what a forged result is worth, and that nothing
runs without it."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from reflect.cli import run_command
from reflect.errors import BadTaskFile, SandboxError
from reflect.lessons import safety
from reflect.sandbox import bubblewrap, seccomp
from reflect.tasksets import check, load_taskset
from reflect.tasksets.code import answer_of, code, program_of, same
from reflect.tasksets.task import TWIN, Task
from scripts.attacks import bombs, escapes
from scripts.attacks.forgeries import FORGERIES, HONEST

DOUBLE = {"entry": "double", "cases": [{"args": [2], "returns": 4}, {"args": [-3], "returns": -6}]}
GOOD = "def double(n): return 2 * n"


def runs(program: str, stdin: bytes = b"", **limits) -> bubblewrap.Ended:
    return bubblewrap.run(
        [bubblewrap.python(), *bubblewrap.ISOLATED, "-c", program],
        stdin,
        bubblewrap.SandboxLimits(**limits),
    )


# -- without bubblewrap: always tested
# ---------------------------------------------------------------------------------


def test_without_bubblewrap_a_run_is_refused_and_nothing_was_run(folder, monkeypatch, capsys):
    row = {"verifier": "code", "gold": GOOD, **DOUBLE}
    (folder / "t.jsonl").write_text(
        "\n".join(json.dumps(row | {"prompt": p}) for p in ("Write double.", "Double it."))
    )
    monkeypatch.setenv("PATH", str(folder))
    assert run_command(["run", "t.jsonl", "-n", "1", "-k", "2", "--db", "lessons.db"]) == 1
    output = capsys.readouterr().err
    assert (
        "no bwrap on the PATH: nothing was run" in output and "apt-get install bubblewrap" in output
    )
    with sqlite3.connect(folder / "lessons.db") as s:
        assert s.execute("select count(*) from rollout").fetchone() == (0,)
    assert (
        run_command(["tasks", "check", "t.jsonl"]) == 1 and "bubblewrap" in capsys.readouterr().out
    )
    for call in (lambda: runs("print(1)"), lambda: code(GOOD, answer_of(DOUBLE))):
        with pytest.raises(SandboxError, match="nothing was run"):
            call()


def test_a_bubblewrap_that_cannot_isolate_is_refused(folder, monkeypatch):
    fake = folder / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    folder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    with pytest.raises(SandboxError, match=r"cannot isolate|does not start"):
        runs("print(1)")
    fake.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )  # runs it bare
    with pytest.raises(SandboxError, match=r"cannot isolate|does not start"):
        runs("print(1)")


def test_a_machine_whose_system_calls_nobody_knows_is_refused(monkeypatch, bwrap):
    assert seccomp.program("riscv64") is None and len(seccomp.program("aarch64")) % 8 == 0
    monkeypatch.setattr(seccomp, "program", lambda: None)
    bubblewrap._probe.cache_clear()
    with pytest.raises(SandboxError, match="only x86_64 and aarch64"):
        runs("print(1)")
    monkeypatch.undo()
    assert runs("print(1)").stdout == b"1\n"


# -- the sandbox
# -------------------------------------------------------------------------------------------------------


def test_what_a_program_gets(bwrap):
    ended = runs(
        "import os, sys; print(os.getcwd(), os.getuid(), sorted(os.environ), sys.stdin.read())",
        b"given",
    )
    assert (ended.code, ended.limit, ended.stderr) == (0, "", b"")
    assert ended.stdout.decode().split(" ", 2) == [
        "/scratch",
        "65534",
        "['HOME', 'LANG', 'PATH', 'PWD', 'PYTHONHASHSEED'] given\n",
    ]
    assert runs("open('a', 'w').write('x'); import os; print(os.listdir())").stdout == b"['a']\n"
    assert runs("import os; print(os.listdir())").stdout == b"[]\n", (
        "every program has a scratch folder of its own"
    )
    assert runs("raise SystemExit(7)").code == 7
    assert runs("import os, signal; os.abort()").code > 0


@pytest.mark.parametrize(
    "name", ["a server on loopback", "an abstract socket", "the host of a virtual machine"]
)
def test_there_is_no_way_out_by_the_network(bwrap, name):
    with socket.create_server(("", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0reflect-test")
        local.listen()
        server.setblocking(False)
        host = {"port": server.getsockname()[1], "abstract": "reflect-test", "bare": False}
        answer = answer_of({"entry": "probe", "cases": [{"args": [host], "returns": False}]})
        assert code(escapes.program(name), answer).reward == 1.0
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "name",
    [
        "read a secret",
        "write beside the secret",
        "a link to the secret",
        "a signal to a process outside",
    ],
)
def test_there_is_no_way_to_files_and_processes(bwrap, tmp_path, name):
    (tmp_path / "secret").write_text("word")
    host = {"secret": str(tmp_path / "secret"), "word": "word", "pid": 2**22, "bare": False}
    answer = answer_of({"entry": "probe", "cases": [{"args": [host], "returns": False}]})
    assert code(escapes.program(name), answer).reward == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("fork", "time"),
        ("memory of many", "memory"),
        ("disk, many files", "files"),
        ("output", "output"),
        ("deaf to signals", "time"),
        ("daemons", ""),
    ],
)
def test_a_bomb_ends_within_its_limit_and_leaves_nobody(bwrap, name, limit):
    began = time.monotonic()
    ended = bubblewrap.run(
        [
            bubblewrap.python(),
            *bubblewrap.ISOLATED,
            "-c",
            bombs.BOMBS[name],
            mark := f"test-bomb-{time.time_ns()}",
        ],
        limits=bubblewrap.SandboxLimits(seconds=1.0),
    )
    assert time.monotonic() - began < 60  # proofs/sandbox measures: within the limit of 1 s
    assert ended.limit in (limit, "time"), "whichever a busy machine meets first"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert mark not in path.read_text(errors="replace")
        except OSError:
            continue


def test_limits_that_the_program_itself_meets(bwrap):
    assert b"MemoryError" in runs("x = bytearray(1 << 30)", memory=256).stderr
    assert b"File too large" in runs("open('a', 'wb').write(bytes(3 << 20))", file=2).stderr
    assert (
        b"No space left"
        in runs("for i in range(9): open(str(i), 'wb').write(bytes(1 << 20))", scratch=4).stderr
    )
    assert b"Too many open files" in runs("import os; [os.dup(0) for _ in range(99)]").stderr
    raised = runs("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))")
    assert b"ValueError" in raised.stderr and raised.code == 1
    assert runs("import sys; print(len(sys.stdin.read()))", b"x" * 3_000_000).stdout == b"3000000\n"
    assert runs("pass", b"x" * 3_000_000).code == 0, "input that nobody reads hangs nothing"


# -- code tasks
# --------------------------------------------------------------------------------------------------------


def test_a_program_is_graded_by_what_it_gives_back(bwrap):
    answer = answer_of(DOUBLE)
    assert code(f"Doubling:\n```python\n{GOOD}\n```\nThat is it.", answer).reward == 1.0
    feedback = {
        "def double(n): return n * n": "case 2 of 2: it returned 9",
        "def double(n): return str(2 * n)": "case 1 of 2: it returned '4'",
        "def double(n) return": "case 1 of 2: SyntaxError: expected ':'",
        "def triple(n): return 3 * n": "case 1 of 2: AttributeError: module 'solution' has no attribute 'double'",
        "def double(n): print(2 * n)": "case 1 of 2: it returned None",
        "": "there is no program",
        "x" * 300_000: "the program is too long",
    }
    assert {text: code(text, answer).feedback for text in feedback} == feedback
    slow = answer_of(DOUBLE | {"seconds": 0.5})
    assert (
        code("def double(n):\n    while True: pass", slow).feedback
        == "case 1 of 2: it did not end within 0.5 s"
    )


def test_a_program_that_reads_and_prints(bwrap):
    answer = answer_of(
        {"cases": [{"stdin": "2\n", "stdout": "4"}, {"stdin": "a", "stdout": "no number\n"}]}
    )
    program = "import sys\ntext = sys.stdin.read()\ntry: print(2 * int(text), ' ')\nexcept ValueError: print('no number')"
    assert code(program, answer).reward == 1.0
    assert (
        code(program + "\nprint('more')", answer).feedback == "case 1 of 2: it printed '4\\nmore'"
    )
    assert code(program + "\nraise SystemExit(1)", answer).reward == 0.0, (
        "a wrong exit status is a failure"
    )
    assert (
        code(
            "if __name__ == '__main__': print(2 * int(input()))",
            answer_of({"cases": answer["cases"][:1]}),
        ).reward
        == 1
    )


# One of each kind; scripts/proofs/sandbox has them all.
@pytest.mark.parametrize(
    "name",
    [
        "_exit 0",
        "equal to all",
        "a mark on every file",
        "two documents",
        "conftest.py",
        "json",
        "the answer in the frames",
    ],
)
def test_a_forgery_is_worth_nothing(bwrap, name):
    answer = answer_of({"entry": "secret", "cases": [{"args": [7], "returns": 4242871}]})
    assert code(FORGERIES[name], answer).reward == 0.0


@pytest.mark.parametrize(
    ("program", "entry", "cases"), HONEST[::8], ids=[row[1] for row in HONEST[::8]]
)
def test_honest_work_is_paid(bwrap, program, entry, cases):
    rows = [{"args": values, "returns": back} for values, back in cases]
    assert code(program, answer_of({"entry": entry, "cases": rows})).reward == 1.0


def test_what_is_expected_never_goes_in(bwrap, monkeypatch):
    values = []
    real = bubblewrap.run
    monkeypatch.setattr(
        bubblewrap,
        "run",
        lambda argv, stdin, limits: values.append((argv, stdin)) or real(argv, stdin, limits),
    )
    cases = [{"args": ["in"], "returns": "gold-4242"}]
    assert (
        code("def f(x): return 1", answer_of({"entry": "f", "cases": cases, "twin": cases})).reward
        == 0.0
    )
    assert (
        len(values) == 2
        and "gold-4242" not in str(values)
        and all(b'"in"' in stdin for _, stdin in values)
    )


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (True, 1, False),
        (1, True, False),
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, True),
        ("1", 1, False),
        (None, 0, False),
        ([1, [2]], [1, [2]], True),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"b": 1}, False),
        (float("nan"), 1, False),
        (10**400, 1.5, False),
        (10**400, 10**400, True),
        (10**400, 10**400 + 1, False),
    ],
)
def test_values_are_compared_by_type(got, want, equal):
    assert same(got, want) is equal


def test_the_last_block_is_the_program():
    assert program_of("```\nold\n```\nbetter:\n```python\nnew\n```") == "new\n"
    assert (
        program_of("```json\n{}\n```\n") == "```json\n{}\n```\n"
        and program_of("plain = 1") == "plain = 1"
    )


# -- impossible twins
# --------------------------------------------------------------------------------------------------

TWINNED = DOUBLE | {"twin": [{"args": [5], "returns": 11}]}


def test_a_pass_on_the_twin_is_marked_and_worth_nothing(bwrap):
    answer = answer_of(TWINNED)
    assert code(GOOD, answer).reward == 1.0 and TWIN not in code(GOOD, answer).parts
    fitted = code("def double(n): return {2: 4, -3: -6, 5: 11}.get(n)", answer)
    assert (fitted.reward, fitted.parts) == (0.0, {TWIN: 1.0})
    only = code("def double(n): return 11", answer)
    assert (only.reward, only.parts) == (0.0, {TWIN: 1.0}), "also where it fails the task itself"
    assert code("def double(n): return 0", answer).parts == {}


# -- task files
# --------------------------------------------------------------------------------------------------------


def test_code_tasks_of_a_file(bwrap, tmp_path, monkeypatch):
    (tmp_path / "t.yaml").write_text(
        "- prompt: Write double(n).\n  verifier: code\n  entry: double\n  gold: 'def double(n): return n + n'\n"
        "  seconds: 20\n  memory: 300\n  cases:\n  - {args: [2], returns: 4}\n  - {args: ['2'], returns: '22'}\n"
        "- prompt: Print it twice.\n  verifier: code\n  seconds: 20\n  gold: 'print(2 * input())'\n"
        "  cases:\n  - {stdin: 2, stdout: 22}\n"
    )
    taskset = load_taskset(tmp_path / "t.yaml")
    assert check(taskset) == []
    tasks = [*taskset.tasks("practice"), *taskset.tasks("holdout")]
    (first,) = [task for task in tasks if task.answer["entry"]]
    assert first.answer["cases"] == [{"args": [2], "returns": 4}, {"args": ["2"], "returns": "22"}]
    assert (first.answer["seconds"], first.answer["memory"]) == (20.0, 300)
    assert {task.split for task in tasks} == {"practice", "holdout"}


def test_a_code_task_without_a_good_program_is_reported_by_the_check(bwrap, tmp_path):
    rows = [{"prompt": p, "verifier": "code", **DOUBLE} for p in "ab"]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert all(
        "scores 0, not 1" in problem for problem in check(load_taskset(tmp_path / "t.jsonl"))
    )


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"cases": []}, "cases", "not a list of cases"),
        ({"cases": None}, "cases", "not a list of cases"),
        ({"cases": [{"args": 2, "returns": 4}]}, "cases", "is no case"),
        ({"cases": [{"args": [2]}]}, "cases", "is no case"),
        ({"cases": [{"stdin": "2", "stdout": "4"}]}, "cases", "is no case"),
        ({"entry": None}, "cases", "is no case"),
        ({"entry": "two words"}, "entry", "no name of a function"),
        ({"twin": {}}, "twin", "not a list of cases"),
        ({"seconds": 0}, "seconds", "no limit"),
        ({"seconds": "soon"}, "seconds", "no limit"),
        ({"memory": True}, "memory", "no limit"),
        ({"answer": "4"}, "answer", "a code task has none"),
        ({"case": [1]}, "case", "Rename it to 'cases'"),
    ],
)
def test_a_code_task_that_cannot_be_graded_is_refused(tmp_path, change, field, says):
    row = {"prompt": "Write double.", "verifier": "code", **DOUBLE} | change
    if field == "case":
        row.pop("cases")
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadTaskFile, match=f"field '{field}': .*") as caught:
        load_taskset(tmp_path / "t.jsonl")
    assert says in str(caught.value)


def test_a_lesson_that_names_a_case_leaks_and_one_with_a_number_does_not():
    task = Task("t", [{"role": "user", "content": "Write double."}], "code", answer_of(DOUBLE))
    assert safety.leaks("when: doubling do: for 2 give back 4", task)
    assert not safety.leaks("when: doubling do: multiply by 2", task)
    assert not safety.leaks("when: a list is empty do: give back 0 at once", task)


def test_the_tasks_of_the_docs_work_as_printed(bwrap, tmp_path):
    docs = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
    rows, decoder = [], json.JSONDecoder()
    for block in re.findall(r"^```json\n(.*?)^```", docs, re.DOTALL | re.MULTILINE):
        while block := block.strip():
            row, end = decoder.raw_decode(block)
            rows.append(json.dumps(row | {"seconds": 20}))
            block = block[end:]
    (tmp_path / "docs.jsonl").write_text("\n".join(rows))
    assert len(rows) == 3 and check(load_taskset(tmp_path / "docs.jsonl")) == []
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", docs, re.DOTALL | re.MULTILINE)
    (tmp_path / "docs.yaml").write_text(yaml)
    (task,) = load_taskset(tmp_path / "docs.yaml").tasks("practice")
    assert code("def double(n): return n + n", task.answer).reward == 1.0
