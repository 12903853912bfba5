"""A night whose training runs elsewhere: the same adapter as at home, and nothing that a job says
is believed without a check."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny
from safetensors.torch import load_file, save_file
from test_night_sleep import state, teach

import reflect
from reflect.cli import run_command
from reflect.errors import ReflectError
from reflect.night import job
from reflect.night.sleep import RunningNight, train_here
from reflect.store import Store
from reflect.training.deadline import Paused
from reflect.training.teacher_data import TrainingData
from reflect.types import Json
from reflect.workspace.workspace import Workspace

PLAN = {
    "budget": 0.05,
    "batch": 8,
    "anchors": 8,
    "tasks_per_lesson": 4,
    "fewest_tasks": 8,
    "gate_tasks": 8,
    "placebo": False,
}
MATES = (job.JOB, job.DATA, job.PINS)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `home`, whose night is exported, and `job`, which another folder has worked
    on."""
    folder = tmp_path_factory.mktemp("night")
    ws = home(folder)
    teach(ws.store)
    report = ws.export_night(folder / "job", "dialect", **PLAN)
    assert report.status == "exported", report.reason
    assert sorted(os.listdir(folder / "job")) == sorted(MATES)
    ws.store.close()
    shutil.copytree(folder / "job", folder / "away" / "job")
    elsewhere = reflect.open(str(folder / "away" / "no.db"))
    elsewhere.work_on_night(folder / "away" / "job")
    assert not (folder / "away" / "no.db").exists()
    return folder


def home(folder: Path) -> Workspace:
    return reflect.open(str(folder / "home" / "lessons.db"))


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """The same in the test's own folder."""
    shutil.copytree(done / "home", tmp_path / "home")
    shutil.copytree(done / "away" / "job", tmp_path / "job")
    return tmp_path


def test_the_work_makes_the_same_adapter_as_the_night_at_home(copy: Path) -> None:
    def here(night: RunningNight, data: TrainingData) -> Json:
        train_here(night, data)
        night.model.save_adapter(night.adapter_name, copy / "made")
        raise Paused

    assert home(copy).sleep("dialect", trainer=here, **PLAN).status == "paused"
    for name in job.WEIGHTS:
        assert (copy / "made" / name).read_bytes() == (copy / "job" / name).read_bytes()


@pytest.mark.slow
def test_an_imported_night_ends_as_one_at_home(copy: Path, done: Path) -> None:
    shutil.copytree(done / "home", copy / "alone" / "home")
    ws = home(copy / "alone")
    report = ws.sleep("dialect", **PLAN)  # continues the exported night at home
    imported = home(copy)
    away = imported.import_night(copy / "job")
    assert (away.status, away.adapter, away.reason) == (
        report.status,
        report.adapter,
        report.reason,
    )
    assert state(imported.store) == state(ws.store)  # with the sha256 of all files of the adapter
    with pytest.raises(ReflectError, match="No exported night of this database waits"):
        imported.import_night(copy / "job")


def test_work_is_repeatable_and_says_when_it_is_done(done: Path, copy: Path) -> None:
    before = (copy / "job" / job.WEIGHTS[1]).read_bytes()
    ws = reflect.open(str(copy / "other.db"))
    ws.work_on_night(copy / "job")  # only checks
    for name in (job.RESULT, *job.WEIGHTS):
        (copy / "job" / name).unlink()
    with pytest.raises(ReflectError, match="it has no result yet"):
        home(copy).import_night(copy / "job")
    result = ws.work_on_night(copy / "job")
    assert (copy / "job" / job.WEIGHTS[1]).read_bytes() == before
    assert result["differs"] == [] and result["steps"] == 6


# -- refusals


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON file."""

    def act(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return act


def plan(**values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = json.loads((folder / job.JOB).read_text())
        content["plan"] |= values
        (folder / job.JOB).write_text(json.dumps(content))

    return act


def text(name: str, words: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(words) and None


def link(name: str, target: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return act


def pickled(folder: Path) -> None:
    (folder / "training.pt").write_bytes(pickle.dumps({"step": 1}))


def pickled_weights(folder: Path) -> None:
    (folder / job.WEIGHTS[1]).write_bytes(pickle.dumps({"step": 1}))


def pipe(folder: Path) -> None:
    (folder / job.DATA).unlink()
    os.mkfifo(folder / job.DATA)


def inner(folder: Path) -> None:
    (folder / "adapters").mkdir()


def truncated(folder: Path) -> None:
    content = (folder / job.DATA).read_bytes()
    (folder / job.DATA).write_bytes(content[:-10])


def data_and_hash(folder: Path) -> None:
    """Other data, with its hash."""
    import hashlib

    content = json.loads((folder / job.DATA).read_text())
    content["harvest"] = content["harvest"][::-1]
    data = json.dumps(content, sort_keys=True).encode()
    (folder / job.DATA).write_bytes(data)
    change(job.JOB, data=hashlib.sha256(data).hexdigest())(folder)


def weights(act: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Other tensors, with their hash in the result."""

    def changed(folder: Path) -> None:
        path = folder / job.WEIGHTS[1]
        save_file(act(load_file(path)), path, metadata={"format": "pt"})
        result = json.loads((folder / job.RESULT).read_text())
        result["files"][path.name] = job._digest(folder, path.name)
        (folder / job.RESULT).write_text(json.dumps(result))

    return changed


def result(**values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = json.loads((folder / job.RESULT).read_text())
        content["training"] |= values
        (folder / job.RESULT).write_text(json.dumps(content))

    return act


BOTH: dict[str, tuple[Callable[[Path], None], str]] = {  # refused by the work and by the import
    "pickle": (pickled, "training.pt"),
    "extra file": (text("notes.txt", "hello"), "notes.txt"),
    "hidden file": (text(".hidden", "hello"), ".hidden"),
    "code": (text("setup.py", "print(1)"), "setup.py"),
    "folder": (inner, "adapters"),
    "link": (link(job.DATA, "/etc/passwd"), "data.json is not a plain file"),
    "link of weights": (link(job.WEIGHTS[1], "/etc/passwd"), "is not a plain file"),
    "pipe": (pipe, "data.json is not a plain file"),
    "changed data": (text(job.DATA, "{}"), "data.json has changed"),
    "truncated data": (truncated, "data.json has changed"),
    "no data": (lambda folder: (folder / job.DATA).unlink(), "data.json is missing"),
    "no job": (lambda folder: (folder / job.JOB).unlink(), "job.json is missing"),
    "no JSON": (text(job.JOB, "{"), "invalid value"),
    "list": (text(job.JOB, "[]"), "invalid value"),
    "deep": (text(job.JOB, "[" * 100_000), "invalid value"),
    "other format": (change(job.JOB, format=2), "invalid value at format"),
    "unknown field": (change(job.JOB, run="rm -rf"), "invalid value at run"),
    "a path as adapter": (change(job.JOB, adapter="../../x"), "invalid value at adapter"),
    "a path as key": (change(job.JOB, key="../../x"), "invalid value at key"),
    "other pins": (text(job.PINS, "evil==1\n"), "requirements.txt has changed"),
    "plan without batch": (plan(batch="many"), "plan"),
    "plan with a start": (plan(start="night-1"), "plan"),
    "unknown field of the plan": (plan(run="x"), "plan"),
    "grpo": (plan(stages=[["grpo", 6, 0.1]], steps=6), "plan"),
}
IMPORT: dict[str, tuple[Callable[[Path], None], str]] = {  # refused by the import
    "other plan": (plan(seed=7), "its plan differs"),
    "other rate": (plan(stages=[["sft", 2, 0.1], ["distill", 4, 0.002]]), "its plan differs"),
    "other base": (change(job.JOB, base="0" * 64), "its base differs"),
    "other lessons": (change(job.JOB, lessons=[["", "a", "b"]]), "its lessons differs"),
    "data with its hash": (data_and_hash, "its data differs"),
    "other night": (change(job.JOB, key="0" * 32), "No exported night"),
    "spaces": (
        lambda folder: (folder / job.JOB).write_text((folder / job.JOB).read_text() + " ") and None,
        "its text differs",
    ),
    "no result": (lambda folder: (folder / job.RESULT).unlink(), "no result yet"),
    "result of another job": (change(job.RESULT, job="0" * 64), "another job"),
    "changed adapter": (
        lambda folder: change(job.RESULT, files=dict.fromkeys(job.WEIGHTS, "0" * 64))(folder),
        "not the one",
    ),
    "pickle as weights": (pickled_weights, "adapter"),
    "not finite": (
        weights(lambda x: {k: v * float("nan") for k, v in x.items()}),
        "no finite numbers",
    ),
    "other rank": (
        weights(
            lambda x: {
                k: (v[:4] if ".lora_A" in k else v[:, :4].contiguous()) for k, v in x.items()
            }
        ),
        "adapter",
    ),
    "fewer tensors": (weights(lambda x: dict(list(x.items())[2:])), "adapter"),
    "figures": (result(step=3), "not of the whole training"),
    "text as figures": (result(tokens="many"), "invalid value at training.tokens"),
    "more figures": (result(html="<script>"), "invalid value at training.html"),
}


@pytest.mark.parametrize("name", [*BOTH, *IMPORT])
def test_a_changed_job_is_refused_in_one_sentence(name: str, copy: Path) -> None:
    act, problem = (BOTH | IMPORT)[name]
    act(copy / "job")
    ws = home(copy)
    with pytest.raises(ReflectError) as e:
        ws.import_night(copy / "job")
    assert problem in e.value.message and "\n" not in e.value.message and e.value.hint
    with Store(copy / "home" / "lessons.db").read() as s:
        assert state(ws.store)["adapters"] == [] and s
    if name in BOTH:
        with pytest.raises(ReflectError) as e:
            reflect.open(str(copy / "no.db")).work_on_night(copy / "job")
        assert problem in e.value.message


def test_work_refuses_another_base(copy: Path) -> None:
    other = reflect.open(str(copy / "no.db"), model=str(save_tiny(copy / "tiny")))
    with pytest.raises(ReflectError, match="is for the base pocket") as e:
        other.work_on_night(copy / "job")
    assert "--model" in e.value.hint


def test_import_refuses_a_job_whose_lessons_have_changed_since(copy: Path) -> None:
    ws = home(copy)
    ws.lessons.edit(1, do="use sort")
    with pytest.raises(ReflectError, match="have changed since the export"):
        ws.import_night(copy / "job")


def test_export_refuses_rewards_and_full_folders(copy: Path) -> None:
    ws = home(copy)
    with pytest.raises(ReflectError, match="not an empty folder"):
        ws.export_night(copy / "job", "dialect", **PLAN)
    with pytest.raises(ReflectError, match="needs verifiers"):
        ws.export_night(copy / "new", "dialect", method="grpo", **PLAN)


def test_the_commands(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = str(copy / "home" / "lessons.db")
    assert run_command(["night", "work", str(copy / "job"), "--db", str(copy / "no.db")]) == 0
    assert "trained, 6 steps" in capsys.readouterr().out
    assert run_command(["night", "import", str(copy / "nothing"), "--db", db]) == 2
    assert "There is no folder" in capsys.readouterr().err
