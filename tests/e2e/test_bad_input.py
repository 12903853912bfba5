"""Bad input, as a user meets it: one clear sentence with the next step on stderr, exit 1 or 2,
nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import save_tiny

import reflect
from reflect.adapters import registry
from reflect.cli import run_command
from reflect.store import lessons, nights, runs

REFLECT = Path(sys.executable).with_name("reflect")
Refused = Callable[..., str]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused with that exit code; what it said on stderr."""

    def run(*words: str, code: int) -> str:
        got = run_command(words)
        out, err = capsys.readouterr()
        assert (got, out) == (code, ""), err
        assert len(re.findall("^Error: ", err, re.MULTILINE)) == 1 and "Traceback" not in err
        assert len(err.splitlines()) <= 6, "one sentence and the next step"
        return str(err)

    return run


def test_the_process_says_what_the_function_says() -> None:
    done = subprocess.run([REFLECT, "run", "leters"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "Error: There is no taskset 'leters'. Did you mean letters?\nThere are business, calc, dialect,"
    )


# -- names
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks", "show", "leters"], "Did you mean letters?"),
        (["run", "leters"], "There is no taskset 'leters'"),
        (["run", "missing.jsonl"], "There is no file missing.jsonl"),
        (["eval", "letters", "--arms", "base,sideways"], "There is no arm 'sideways'"),
        (["eval", "letters", "--split", "exam"], "There is no split 'exam'"),
        (["prompt", "letters", "nonsense-x"], "has no task 'nonsense-x'"),
        (["run", "letters", "-m", "nowhere"], "There is no model 'nowhere'"),
        (["run", "letters", "-m", "openai:x"], "needs a key"),
        (["lessons", "--status", "sleepy"], "There is no lesson status 'sleepy'"),
        (["lessons", "show", "7"], "There is no lesson 7"),
        (["lessons", "history", "7"], "There is no lesson 7"),
        (["lessons", "edit", "7", "--do", "x"], "There is no lesson 7"),
        (["lessons", "retire", "7"], "There is no lesson 7"),
        (["lessons", "undo", "7"], "There is no lesson 7"),
        (["runs", "show", "7"], "There is no run 7"),
        (["runs", "resume", "7"], "There is no run 7"),
        (["runs", "resume"], "No run is unfinished"),
        (["nights", "show", "7"], "There is no night 7"),
        (["adapters", "show", "night-x"], "There is no adapter night-x"),
        (["adapters", "promote", "night-x"], "There is no adapter night-x"),
        (["adapters", "verify", "night-x"], "There is no adapter night-x"),
        (["adapters", "rollback"], "there is nothing to roll back"),
        (["sleep", "--budget", "soon"], "no length of time"),
        (["lessons", "add"], "no terminal to edit in"),
        (["lessons", "add", "--when", "it rains", "--do", " "], "'do' is empty"),
        (["lessons", "show", "seven"], "valid integer"),
        (["snore"], "No such command 'snore'"),
        (["run", "letters", "-k", "0"], "'-k'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_names_nothing(refused: Refused, words: list[str], said: str) -> None:
    assert said in refused(*words, code=2)


def test_a_setting_that_is_none(refused: Refused, folder: Path) -> None:
    for text, output in (
        ("kk = 3", "reflect.toml: unknown setting 'kk'"),
        ('k = "many"', "k = 'many' is not int"),
        ("k = = 3", "reflect.toml is not TOML"),
    ):
        (folder / "reflect.toml").write_text(text)
        assert output in refused("lessons", code=2)


# -- files of tasks
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a?", "answer": ', "my.jsonl, line 2: this is no JSON"),
        ('{"prompt": "a?"}', "my.jsonl, line 2, field 'answer': there is none"),
        ('{"prompt": "a?", "answer": ""}', "my.jsonl, line 2, field 'answer': there is none"),
        ('{"answer": "a"}', "my.jsonl, line 2, field 'prompt': there is none"),
        (
            '{"prompt": "a?", "answer": "a", "verifier": "vibes"}',
            "my.jsonl, line 2, field 'verifier'",
        ),
        ('{"prompt": "a?", "answer": "a", "split": "exam"}', "my.jsonl, line 2, field 'split'"),
        (
            '{"prompt": "b?", "answer": "a", "id": "one"}',
            "my.jsonl, line 2, field 'id': 'one' is already the id",
        ),
        ("[1, 2]", "my.jsonl, line 2: it is not a task"),
    ],
)
def test_a_malformed_line_says_file_line_and_field(
    refused: Refused, folder: Path, line: str, said: str
) -> None:
    (folder / "my.jsonl").write_text(f'{{"id": "one", "prompt": "a!", "answer": "a"}}\n{line}\n')
    assert said in refused("run", "my.jsonl", code=2)
    assert not (folder / "lessons.db").exists()


def test_a_taskset_of_ones_own_that_does_not_run(refused: Refused, folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "mine.py").write_text("TASKSET = 1 / 0\n")
    assert "mine.py does not run: ZeroDivisionError" in refused("run", "mine", code=2)


def test_a_prompt_template_that_does_not_render(refused: Refused, folder: Path) -> None:
    (folder / "prompts").mkdir()
    (folder / "prompts" / "system.jinja").write_text("{{ nothing }}")
    output = refused("prompt", "letters", code=2)
    assert "prompts/system.jinja does not render" in output and "nothing" in output


# -- databases
# ---------------------------------------------------------------------------------------------------------


def test_a_database_from_a_newer_version(refused: Refused) -> None:
    reflect.open().lessons.add("a", "b")
    with closing(sqlite3.connect("lessons.db", isolation_level=None)) as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    before = Path("lessons.db").read_bytes()
    assert "written by a newer reflect (revision 9999)" in refused("lessons", code=1)
    refused("lessons", "add", "--when", "c", "--do", "d", code=1)
    assert Path("lessons.db").read_bytes() == before


def test_a_file_that_is_no_database_or_cannot_be_one(refused: Refused, folder: Path) -> None:
    Path("lessons.db").write_text(
        "these are not the bytes of a database, but there are enough of them\n" * 20
    )
    assert "lessons.db is not a database" in refused("lessons", code=1)
    assert "is a folder" in refused("lessons", "--db", str(folder), code=1)
    assert "/dev/null cannot be" in refused("lessons", "--db", "/dev/null/x.db", code=1)
    assert "not served yet" in refused("lessons", "--db", "mysql://host/x", code=1)
    with closing(sqlite3.connect("other.db")) as c:
        c.execute("CREATE TABLE mine (x)")
    assert "a database of another program" in refused("lessons", "--db", "other.db", code=1)


# -- models and adapters
# -----------------------------------------------------------------------------------------------


def test_a_model_folder_without_a_model_or_a_chat_template(refused: Refused, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "holds no model" in refused("run", "letters", "-m", "empty", code=1)
    save_tiny(folder / "bare", template=None)
    assert "has no chat template" in refused("run", "letters", "-m", "bare", code=1)
    (folder / "bare" / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded" in refused("run", "letters", "-m", "bare", code=1)


def test_an_adapter_with_a_flipped_byte_or_for_another_base(refused: Refused, folder: Path) -> None:
    ws = reflect.open("lessons.db", model=str(save_tiny(folder / "tiny")))
    ws.model.new_adapter("one", rank=4, alpha=8, seed=1)  # type: ignore[attr-defined]
    registry.publish(ws.model, "one", ws.settings, {})
    lesson = ws.lessons.add("w1", "w2")
    with ws.store.write() as s:
        night = nights.start_night(
            s, key="k", profile="default", config={}, lessons=[[lesson.id, 1]]
        )
        row = registry.row(ws.model, "one", ws.settings, night_id=night.id)
        adapter = nights.add_adapter(s, **row.model_dump(exclude={"id", "created"}))
        nights.finish_night(s, night.id, "promoted", adapter_id=adapter.id)
        nights.promote(s, adapter.id)

    save_tiny(folder / "other", seed=7)
    for words in (["run", "letters"], ["adapters", "promote", "one"]):
        output = refused(*words, "-m", "other", code=1)
        assert "made for another base" in output and "--model" in output

    weights = registry.folder_of(row, ws.settings) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    for words in (
        ["run", "letters"],
        ["eval", "letters"],
        ["sleep"],
        ["adapters", "promote", "one"],
    ):
        output = refused(*words, "-m", "tiny", code=1)
        assert (
            "adapter_model.safetensors differs from its manifest" in output and "rollback" in output
        )
    assert run_command(["adapters", "verify", "-m", "tiny"]) == 1
    assert run_command(["adapters", "rollback"]) == 0
    with ws.store.read() as s:  # nothing was lost on the way
        assert lessons.get(s, lesson.id).status == "active" and not runs.list_runs(s)


# -- full disks and sudden ends
# ----------------------------------------------------------------------------------------


def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [REFLECT, "tasks", "show", "letters"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (
        done.returncode == 1
        and "The disk is full" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_full_disk_behind_the_database(folder: Path) -> None:
    """A real one: a small file system of its own, where the system allows to mount it."""
    unshare = ["unshare", "-m", "sh", "-c"] if os.geteuid() == 0 else ["unshare", "-rm", "sh", "-c"]
    (folder / "small").mkdir()
    mount = "mount -t tmpfs -o size=700k tmpfs small"
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, mount], capture_output=True).returncode
    ):
        pytest.skip("this system lets us mount nothing")
    script = f"""{mount} || exit 99
        export REFLECT_DB=small/lessons.db
        {REFLECT} lessons add --when first --do "stay" || exit 98
        head -c 10M /dev/zero > small/filler 2>/dev/null
        {REFLECT} lessons add --when "$(head -c 60000 /dev/zero | tr '\\0' x)" --do y; echo "code $?"
        rm small/filler
        {REFLECT} lessons add --when second --do "stay too" || exit 97
        {REFLECT} doctor >/dev/null || exit 96
        {REFLECT} lessons --json"""
    done = subprocess.run([*unshare, script], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert (
        "code 1" in done.stdout
        and "The disk is full" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert "then run the same command again" in done.stderr
    listed = json.loads(done.stdout[done.stdout.index("[") :])
    assert [row["when"] for row in listed] == ["first", "second"]


def test_an_interrupted_run_says_so_and_is_continued(folder: Path) -> None:
    words = [REFLECT, "run", "dialect", "-n", "24", "-k", "8", "--seed", "1"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    # What a shell starts in the background ignores SIGINT, and so do its children, unless they are
    # set otherwise.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, preexec_fn=heed
    )
    ws = reflect.open("lessons.db")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with ws.store.read() as s:
            if runs.figures(s, 1).rollouts:
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    )
    with ws.store.read() as s:
        before = runs.figures(s, 1).rollouts
    assert 0 < before < 192
    subprocess.run(words, check=True, capture_output=True, env=env)
    with ws.store.read() as s:
        assert runs.figures(s, 1).rollouts == 192 and len(runs.list_runs(s)) == 1
    assert ws.doctor() == []
