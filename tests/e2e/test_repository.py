"""The files that tools and contributors read agree with the package: layers, versions, CI, hooks."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import reflect

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

if not (ROOT / ".github").is_dir():
    pytest.skip("a source distribution has no such files", allow_module_level=True)


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def test_agents_md_has_the_layers_of_the_import_contract() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    present = [re.sub(r" \| \(\w+\)|\(\w+\) \| ", "", layer) for layer in layers]
    (block,) = re.findall(r"^```text\n(.*?)^```", (ROOT / "AGENTS.md").read_text(), re.M | re.S)
    assert block.splitlines() == present


def test_the_version_has_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{reflect.__version__}"' in path.read_text()
    assert "version" not in load("CITATION.cff")


def test_citation() -> None:
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["project"]["license"]


def test_ci_runs_what_a_developer_runs_on_each_supported_python() -> None:
    job = load(".github/workflows/ci.yml")["jobs"]["test"]
    classifiers = PROJECT["project"]["classifiers"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert job["strategy"]["matrix"]["python"] == supported
    assert job["steps"][-1]["run"] == ".ci/run"


def test_hooks_run_without_a_network() -> None:
    """Local hooks that run the tools of .venv, which `make lint` runs too."""
    repos = load(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    lint = (ROOT / "Makefile").read_text()
    for hook in repos[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        assert f"$(BIN)/{hook['entry'].split()[0].removeprefix('.venv/bin/')}" in lint


def test_issue_forms_have_unique_fields() -> None:
    forms = [p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        fields = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert fields and len(set(fields)) == len(fields)


def test_devcontainer() -> None:
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text())
    packages = (folder / settings["build"]["dockerfile"]).read_text()
    assert "bubblewrap" in packages and "postgresql" in packages


@pytest.mark.parametrize("name", ["AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_and_make_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert not [link for link in links if not (ROOT / link).exists()]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\$ make ([a-z]+)", text, re.M)) <= targets
