"""The documents agree with the tree: links, file names, class names, layers, pages of the site."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The ids that the site and GitHub give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r" +", "-", text) for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", FENCE.sub("", page.read_text())):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_path_of_a_rollout_names_at_most_twelve_files_and_all_exist() -> None:
    text = (DOCS / "architecture.md").read_text()
    path = re.search(r"^## One rollout.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert path
    files = set(re.findall(r"`(reflect/[\w/]+\.py)`", path[0]))
    assert 8 <= len(files) <= 12
    named = re.findall(r"`((?:reflect|prompts|tasks|scripts|docs)/[\w/.]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_layers_of_the_architecture_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    contract = [
        sorted(name.strip() for name in row.split("|") if "(" not in name) for row in layers
    ]
    table = (DOCS / "architecture.md").read_text().partition("## The layers")[2]
    rows: dict[int, list[str]] = {}
    for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.MULTILINE):
        rows.setdefault(int(number), []).append(name)
    shown = [sorted(rows[number]) for number in sorted(rows, reverse=True)]
    assert [["__main__"], *shown] == contract


def test_the_readme_shows_every_package() -> None:
    tree = re.search(
        r"^```text\nreflect/.*?^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert tree
    packages = {path.parent.name for path in (ROOT / "reflect").glob("*/__init__.py")}
    assert packages == set(re.findall(r"^  (\w+)/", tree[0], re.MULTILINE))


def test_every_class_of_the_glossary_exists() -> None:
    classes = (DOCS / "glossary.md").read_text().partition("## Classes")[2]
    named = {
        name
        for row in re.findall(r"^\| (`.*?`) \|", classes, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    source = "\n".join(path.read_text() for path in (ROOT / "reflect").rglob("*.py"))
    assert len(named) > 40
    assert not {name for name in named if not re.search(rf"^class {name}\b", source, re.MULTILINE)}


def test_the_site_has_every_page() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [page for one in entries for page in pages(one)]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages(site["nav"])) == sorted(
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    )
    assert site["theme"]["font"] is False, "the site loads nothing from the network"


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    assert (tmp_path / "site" / "api" / "index.html").is_file()
