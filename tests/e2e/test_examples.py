"""Each example runs as examples/README.md prints it, in a copy of its folder, and prints what the
README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reflect.models import POCKET

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+):(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
NUMBER = r"(\d\.\d\d)"


def commands(name: str) -> list[str]:
    """The commands of an example, in order."""
    (block,) = re.findall(r"^```console\n(.*?)^```", SECTIONS[name], re.MULTILINE | re.DOTALL)
    assert all(line.startswith("$ ") for line in block.splitlines())
    return [line[2:] for line in block.splitlines()]


def run(name: str, tmp_path: Path) -> list[str]:
    """What each command of an example prints on stdout, without the `cd` before them."""
    if not (POCKET / "config.json").is_file():
        pytest.skip("the pocket model has not been trained yet")
    enter, *lines = commands(name)
    assert enter == f"cd {name}", "an example begins in a copy of its folder"
    ignored = shutil.ignore_patterns("lessons.db*", ".reflect", "__pycache__")
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored)
    env = {key: value for key, value in os.environ.items() if not key.startswith("REFLECT_")}
    env |= {"OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    printed = []
    for line in lines:
        done = subprocess.run(
            shlex.split(line), cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        printed.append(done.stdout)
    return printed


def arms(text: str) -> dict[str, float]:
    """The reward of each arm that `reflect eval` prints."""
    rows = re.findall(rf"^(\w+) +{NUMBER} ", text, re.MULTILINE)
    return {name: float(reward) for name, reward in rows}


def test_each_folder_has_a_section_and_each_program_a_header() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(SECTIONS)
    for path in EXAMPLES.glob("*/*.py"):
        header = path.read_text().split('"""')[1]
        assert re.search(r"^Run: +\S", header, re.MULTILINE), f"{path.name}: what to run"
        assert re.search(r"^Prints?: +\S", header, re.MULTILINE), f"{path.name}: what it prints"
        assert f"({path.parent.name}/{path.name})" in README


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links and not [link for link in links if not (EXAMPLES / link).exists()]


def test_examples_use_the_public_interface() -> None:
    """The package itself and `reflect.tasksets`, which docs/tasks.md documents."""
    for path in EXAMPLES.rglob("*.py"):
        modules = set(re.findall(r"^\s*(?:from|import) (reflect[\w.]*)", path.read_text(), re.M))
        assert modules <= {"reflect", "reflect.tasksets"}, path


def test_taskset(tmp_path: Path) -> None:
    check, practice, measured = run("taskset", tmp_path)
    assert ": ok, " in check
    assert re.search(r"^\+ lesson 1 added: when: .*count.* do: spell the word", practice, re.M)
    rewards = arms(measured)
    assert rewards["base"] < 0.5 and rewards["lessons"] > 0.9


def test_judge(tmp_path: Path) -> None:
    agreement, practice, measured = run("judge", tmp_path)
    assert "6 answers graded, 0 not readable" in agreement
    assert "agreement with people 1.00" in agreement and "6 pairs" in agreement
    assert "+ lesson 1 added: when: declining an invitation" in practice
    assert "4 tasks x 4 = 16 rollouts" in practice and "error" not in practice
    rewards = arms(measured)
    assert rewards["base"] < 1 and rewards["lessons"] == 1


def test_serve(tmp_path: Path) -> None:
    (printed,) = run("serve", tmp_path)
    before = re.search(rf"^before: {NUMBER} \(48 requests\)$", printed, re.M)
    without = re.search(rf"^after, without the lesson: {NUMBER} ", printed, re.M)
    shown = re.search(rf"^after, with the lesson: {NUMBER} ", printed, re.M)
    assert before and without and shown, printed
    assert re.search(r"^\+ lesson 1 added: when: counting letters", printed, re.M)
    assert float(shown[1]) > 0.9 > 0.7 > max(float(before[1]), float(without[1]))


def test_sleep(tmp_path: Path) -> None:
    (printed,) = run("sleep", tmp_path)
    steps = dict(re.findall(r"^([a-z ]+): (\d lessons in the prompt, reward \S+)$", printed, re.M))
    prompts = {step: int(text[0]) for step, text in steps.items()}
    rewards = {step: float(text.split()[-1]) for step, text in steps.items()}
    assert re.search(r"^lesson 1: when .*: spell the word", printed, re.M)
    night = re.search(r"^night: promoted, (night-\w+) ", printed, re.M)
    assert night and f"rolled back: {night[1]}" in printed
    assert prompts == {"before": 0, "after practice": 1, "after the night": 0} | {
        "after the rollback": 1
    }
    assert rewards["before"] < 0.5
    assert all(rewards[step] > 0.8 for step in steps if step != "before")
