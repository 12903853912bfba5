"""The README is run: its commands in one temporary folder, in their order, and its Python as it
stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reflect.models import POCKET

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# Their own tests run these (minutes long), or they change the whole machine or use the network.
NOT_HERE = ("git ", "cd ", "make ", "pip install ", ".venv/bin/reflect demo", "reflect demo")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines after "$ ", without their comments."""
    lines = [
        line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")
    ]
    return [line[2:].split("  #")[0].strip() for line in lines]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for block in blocks("console") for target in re.findall(r"\bmake ([a-z]+)", block)
    }
    assert "demo" in named and named <= targets


def test_every_file_that_it_links_or_draws_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert not [link for link in links if not (ROOT / link).exists()]
    folders = ("reflect", "prompts", "tasks", "scripts", "docs", "tests")
    known = {path.name for folder in folders for path in (ROOT / folder).rglob("*")}
    known |= {path.name for path in ROOT.iterdir()}
    for block in blocks("text"):  # the tree, with a phrase per file
        drawn = re.findall(r"^[ │├└─]*([\w./-]+(?:/|\.\w+))(?: |$)", block, re.MULTILINE)
        assert not [name for name in drawn if Path(name).name not in known]


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the few files that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    words = [w for w in (ROOT / "tasks" / "words.txt").read_text().split() if len(w) > 5][:12]
    rows = [
        f'{{"prompt": "How many e are in {word}?", "verifier": "number", "answer": {word.count("e")}}}'
        for word in words
    ]
    (folder / "my.jsonl").write_text("\n".join(rows))
    return folder


def run(line: str, folder: Path) -> None:
    tools = Path(sys.executable).parent
    words = [
        f"{tools}/{word[10:]}" if word.startswith(".venv/bin/") else word
        for word in shlex.split(line)
    ]
    env = os.environ | {
        "REFLECT_N": "6",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_every_command_runs(readme_folder: Path) -> None:
    if not (POCKET / "config.json").is_file():
        pytest.skip("the pocket model has not been trained yet")
    for line in commands():
        if not line.startswith(NOT_HERE):
            run(line, readme_folder)


def test_the_python_runs(tmp_path: Path) -> None:
    if not (POCKET / "config.json").is_file():
        pytest.skip("the pocket model has not been trained yet")
    assert blocks("python"), "the README shows the Python interface"
    for block in blocks("python"):
        (tmp_path / "shown.py").write_text(block)
        run(f"{shlex.quote(sys.executable)} shown.py", tmp_path)
