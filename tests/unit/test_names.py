"""Names: the field's terms for modules, classes and public functions; each class name once."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import reflect

PACKAGE = Path(reflect.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Names that an engineer of this field cannot guess. `bundle` is not among them: docs/glossary.md has it.
MODULES = set(
    "purse heard election keeping joining asking room carry leftovers thrift marks slept desk book "
    "shelf workshop measure support episodes curriculum verdict wire running chat".split()
)
CLASSES = set(
    "Court Heard Holds Bets Contrast Drawn Draw Ballot Consolidation Purse Begun Noted Said Likes "
    "Twice Exam Case Gone Subject Data Workshop Thrift Running Door Shown Ask Words Shelf Loras Desk "
    "Wire".split()
)
FUNCTIONS = MODULES | set(
    "elect firm keeps choose line worth settle hear remember teaches went_well contrast safe clean "
    "fence plays checked the_lock go_on spare spend_less emit say sweep judged refuse_mixed twice".split()
)


def test_modules_classes_and_public_functions_have_the_names_of_the_field() -> None:
    private = {f"{path.relative_to(PACKAGE)}" for path in FILES if path.stem in MODULES}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            functions = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if functions and node.name in FUNCTIONS:
                private.add(f"{path.relative_to(PACKAGE)}: {node.name}")
            if isinstance(node, ast.ClassDef) and node.name in CLASSES:
                private.add(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert not private


def test_each_class_name_stands_for_one_class() -> None:
    classes = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(str(path))
    assert not {name: paths for name, paths in classes.items() if len(paths) > 1}
