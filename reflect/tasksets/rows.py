"""Read the rows of a file of tasks: JSON Lines, JSON, CSV, TSV and YAML."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from reflect.errors import BadTaskFile, ReflectError, UnknownName
from reflect.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from yaml import Node

    from reflect.types import Json

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".yaml", ".yml")
TO_JSONL = (
    "python -c \"import pandas as p; p.{}('{}').to_json('{}', orient='records', lines=True)\""
)
# Files that are not read -> the line that converts one.
CONVERT = {
    ".parquet": TO_JSONL.format("read_parquet", "{path}", "{stem}.jsonl"),
    ".feather": TO_JSONL.format("read_feather", "{path}", "{stem}.jsonl"),
    ".xlsx": TO_JSONL.format("read_excel", "{path}", "{stem}.jsonl"),
    ".arrow": 'python -c "import datasets; '
    "datasets.Dataset.from_file('{path}').to_json('{stem}.jsonl')\"",
    ".gz": "gunzip -k {path}",
    ".zst": "unzstd {path}",
    ".zip": "unzip {path}",
}
LISTS = ("data", "tasks", "rows", "examples", "instances")  # of a JSON object: its list of tasks
PARTS = ("train", "training", "test", "validation", "valid", "dev", "eval", "practice", "holdout")
NESTED = ("prompt", "messages", "conversations", "choices", "options", "reward_model", "cases")
MOST_BYTES = 2**29  # of a file of tasks
NEWLINE = b"\n"
LARGEST = 100_000  # values in one task of a YAML file, its aliases written out


class FileRow(NamedTuple):
    """The fields of one task in a file; `where` is its file and line."""

    where: str
    fields: Json

    def fail(self, field: str, problem: str, step: str) -> NoReturn:
        """Raise BadTaskFile for a field of this row."""
        raise BadTaskFile(f"{self.where}, field '{field}': {problem}.", step)


def rows_of(path: Path) -> Iterator[FileRow]:
    """The rows of a file of tasks, or of the files train.*, test.*, ... of a folder, one at a time.
    UnknownName, BadTaskFile."""
    for file, part in _files(path):
        read = READERS.get(file.suffix.lower(), _yaml)
        for where, fields in read(file, _text(file)):
            if not isinstance(fields, dict):
                step = 'A task looks like {"prompt": "...", "answer": "..."}.'
                raise BadTaskFile(f"{where}: it is not a task.", step)
            try:
                json.dumps(fields, ensure_ascii=False).encode()
            except UnicodeEncodeError as e:
                problem = f"{where}: it holds half a character (\\ud...)."
                raise BadTaskFile(problem, "Write that character whole.") from e
            except RecursionError as e:
                raise BadTaskFile(f"{where}: it is nested too deeply.", "Write it flat.") from e
            given = {str(name): value for name, value in fields.items() if value is not None}
            yield FileRow(where, {"split": part, **given} if part else given)


def ensure_readable(path: Path) -> None:
    """BadTaskFile with the line that converts it, for a kind of file that is not read."""
    if line := CONVERT.get(path.suffix.lower()):
        line = line.format(path=path, stem=path.with_suffix(""))
        raise BadTaskFile(f"{path}: {path.suffix} files are not read.", f"Convert it: {line}")


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, its split) of a folder; (path, "") of a file."""
    if not path.is_dir() or path.suffix.lower() in SUFFIXES:
        return [(path, "")]
    parts = [(file, re.split(r"[-_.]", file.name.lower())[0]) for file in sorted(path.iterdir())]
    parts = [(file, part) for file, part in parts if part in PARTS]
    parts.sort(key=lambda part: PARTS.index(part[1]))
    for file, _ in parts:
        ensure_readable(file)
    files = [(file, part) for file, part in parts if file.suffix.lower() in SUFFIXES]
    if not files:
        step = f"Name them train{SUFFIXES[0]} and test{SUFFIXES[0]}, or give one file."
        raise BadTaskFile(f"{path} is a folder without files of tasks.", step)
    return files


def _text(path: Path) -> str:
    try:
        data = read_bytes(path, MOST_BYTES)
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2]:
            step = f"Convert it: iconv -f UTF-16 -t UTF-8 {path} > {path.stem}-utf8{path.suffix}"
            raise BadTaskFile(f"{path}: it is UTF-16 text, not UTF-8.", step)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        where = f"{path}, line {e.object[: e.start].count(NEWLINE) + 1}"
        raise BadTaskFile(f"{where}: it is not UTF-8 text.", "Save the file as UTF-8.") from e
    except BadTaskFile:
        raise
    except ReflectError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            step = "Check the path, or run: reflect tasks list"
            raise UnknownName(f"There is no file {path}.", step) from e
        raise BadTaskFile(e.message, e.hint or "Give a file that you may read.") from e


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold U+2028
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as e:
                problem = f"{where}: this is no JSON: {_message(e)}."
                raise BadTaskFile(problem, "Write one whole task per line.") from e


def _json(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        tasks = json.loads(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data" and text.lstrip().startswith("{"):  # JSON Lines by another name
            yield from _jsonl(path, text)
            return
        step = "Write a list of tasks, or name the file .jsonl."
        problem = f"{path}, line {e.lineno}: this is no JSON: {_message(e)}."
        raise BadTaskFile(problem, step) from e
    except (ValueError, RecursionError) as e:
        step = "Write a list of tasks, or name the file .jsonl."
        raise BadTaskFile(f"{path}: this is no JSON: {e}.", step) from e
    for part, rows in _lists(path, tasks):
        for number, fields in enumerate(rows, 1):
            where = f"{path}, {part} task {number}" if part else f"{path}, task {number}"
            if part and isinstance(fields, dict):
                fields = {"split": part, **fields}
            yield where, fields


def _lists(path: Path, content: object) -> list[tuple[str, list[object]]]:
    """(split, tasks) of a list, of {"data": [...]}, or of {"train": [...], "test": [...]}."""
    if isinstance(content, list):
        return [("", content)]
    lists = {
        name: rows
        for name, rows in (content.items() if isinstance(content, dict) else ())
        if name in (*LISTS, *PARTS) and isinstance(rows, list)
    }
    parts = [(name, rows) for name, rows in lists.items() if name in PARTS]
    if parts and len(parts) == len(lists):
        return parts
    if len(lists) == 1:
        return [("", rows) for rows in lists.values()]
    step = 'Write [task, task, ...], {"data": [task, ...]}, or {"train": [...], "test": [...]}.'
    raise BadTaskFile(f"{path} is not a list of tasks.", step)


def _csv(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """The first row names the fields. A cell that is empty is a missing field; lists and objects
    are JSON texts."""
    head = text.lstrip("\r\n").split("\n", 1)[0]
    tab = path.suffix.lower() == ".tsv"
    comma = "\t" if tab else max(",;\t", key=head.count)
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                step = 'Quote a cell that holds the separator: "a, b".'
                size = len(reader.fieldnames or ())
                raise BadTaskFile(f"{where}: it has not the {size} cells of the first row.", step)
            texts = {str(name).strip(): cell for name, cell in cells.items() if cell.strip()}
            yield where, {name: _cell(name, cell) for name, cell in texts.items()}
    except csv.Error as e:
        step = 'Double a quote inside a quoted cell: "say ""hi""".'
        raise BadTaskFile(f"{path}, line {reader.line_num}: {e}.", step) from e


def _cell(name: str, cell: str) -> object:
    if name in NESTED and cell.lstrip().startswith(("[{", '["', '{"')):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(cell)
    return {"TRUE": "true", "FALSE": "false"}.get(cell.upper(), cell)


def _message(e: Exception) -> str:
    return f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)


def _yaml(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Scalars are texts (BaseLoader): `answer: no` is the word no, `answer: 010` is 010. Only
    `args` and `returns` of code cases are JSON values: 2 is a number there, and "2" a text."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"{path}{line}: {getattr(e, 'problem', None) or e}."
        raise BadTaskFile(problem, "Correct the YAML there.") from e
    except RecursionError as e:
        raise BadTaskFile(f"{path}: it is nested too deeply.", "Write it flat.") from e
    if root is None:
        return
    if not isinstance(root, yaml.SequenceNode):
        step = "Begin each task with '- prompt: ...'."
        raise BadTaskFile(f"{path} is not a list of tasks.", step)
    sizes: dict[int, float] = {}
    for node in root.value:
        where = f"{path}, line {node.start_mark.line + 1}"
        if _size(node, sizes) > LARGEST:
            problem = f"{where}: its aliases (*name) make it endless."
            raise BadTaskFile(problem, "Write their values in full.")
        yield where, _plain(node)


def _size(node: Node, sizes: dict[int, float]) -> float:
    """Number of nodes with aliases expanded: few lines can be billions, or contain themselves."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # while it is counted: a node that contains itself
        parts = node.value if isinstance(node.value, list) else []
        flat = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in flat)
    return sizes[id(node)]


def _plain(node: Node, typed: bool = False) -> object:
    """The value of a YAML node: texts, lists and dicts; with `typed`, unquoted scalars are JSON."""
    if isinstance(node.value, str):
        if typed and node.style is None:
            with contextlib.suppress(ValueError):
                return json.loads(node.value)
        return node.value
    if node.value and not isinstance(node.value[0], tuple):
        return [_plain(item, typed) for item in node.value]
    if node.id == "sequence":
        return []
    typing = ("args", "returns")
    return {str(_plain(k)): _plain(v, typed or k.value in typing) for k, v in node.value}


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv,
}  # fmt: skip
