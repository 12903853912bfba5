"""The distribution is `second-nature`, import and command are `reflect`. Another distribution is
called `reflect`."""

from __future__ import annotations

import re
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent

EXTRAS = tuple(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)
# `pip install reflect`, also with options, quotes, a version or an extra, and an extra without a
# command before it.
OLD_FORM = re.compile(
    r"(?:pip3?|pipx|uv|uvx|poetry)\s+(?:pip\s+|tool\s+)?(?:install|add|show|run)\s+"
    r"(?:-{1,2}\S+\s+)*['\"]?reflect(?![\w./-])"
    rf"|(?<![\w/-])reflect\[(?:{'|'.join(EXTRAS)})\b"
    r"|metadata\.(?:version|distribution|metadata)\(['\"]reflect['\"]\)"
)
TEXT = {
    "",
    ".cfg",
    ".cff",
    ".ipynb",
    ".jinja",
    ".json",
    ".md",
    ".mdc",
    ".py",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}
# The code of an earlier version, word for word: hashes of rewards are made of it. Nobody reads it.
FROZEN = "verifiers-v1.json"
SKIPPED = {".git", ".venv", "build", "dist", "out", "runs", "site", "__pycache__", ".reflect"}


def tree_files() -> list[Path]:
    paths = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in TEXT
        and path.name != FROZEN
        and not SKIPPED & set(path.relative_to(ROOT).parts)
    ]
    return [
        path
        for path in paths
        if path.is_file() and not any(part.endswith("_cache") for part in path.parts)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'reflect[serve]'",
        "pip install -U reflect",
        "pipx install reflect",
        "needs reflect[gym].",
        "uv add reflect==0.1",
        "version('reflect')".join(["metadata.", ""]),
    ],
)
def test_the_search_finds_the_old_form(text: str) -> None:
    assert OLD_FORM.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'second-nature[serve]'",
        "import reflect",
        "reflect[0]",
        "pip install ./reflect",
        "reflect run",
    ],
)
def test_the_search_ignores_what_is_right(text: str) -> None:
    assert not OLD_FORM.search(text)


def test_no_file_names_the_other_distribution() -> None:
    found = []
    for path in tree_files():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if OLD_FORM.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "write second-nature instead of reflect:\n" + "\n".join(found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    assert Path(path).name.startswith("second_nature-")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_name_and_the_version(wheel: zipfile.ZipFile) -> None:
    import reflect

    head = metadata(wheel)
    assert (head["Name"], head["Version"]) == ("second-nature", reflect.__version__)
    assert set(EXTRAS) == set(head.get_all("Provides-Extra", []))
    (scripts,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "reflect = reflect.cli:main" in wheel.read(scripts).decode()


@pytest.mark.parametrize("folder", ["prompts", "tasks"])
def test_the_wheel_holds_prompts_and_tasks(wheel: zipfile.ZipFile, folder: str) -> None:
    sources = [
        path
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert len(sources) > 2
    for source in sources:
        assert (
            wheel.read(f"reflect/_shipped/{source.relative_to(ROOT).as_posix()}")
            == source.read_bytes()
        )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"reflect"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".db")]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "reflect").rglob("*.py")}
    assert modules <= set(names)
    assert any(
        name.startswith("reflect/models/pocket/") and name.endswith(".safetensors")
        for name in names
    )
