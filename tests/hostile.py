"""Values that clients, files and shells send by mistake or on purpose, as hypothesis strategies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

TEXTS = [
    "", " ", "\0", "\n", "\t", "\x1b[31m", "\x7f", "\ud83d", "half \udc00", "😀", "é", "e\u0301", "\u202e", "\u200d",
    "\ufeff", "a" * 5001, "9" * 5001, "-1", "0", "nan", "inf", "-inf", "1e400", "0x10", "1_0", "٣", "²", "true", "null",
    "../..", "/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem", ".", "~", "~nouser/x", "a/b", "x" * 300, "{{ 7*7 }}",
    "%s%n", "$(id)", "';--", "<|im_end|>", "[", "{", "[" * 700, "://", "sqlite://", "http://[", "postgresql://@/", "openai:",
    "hf:", "gym:", "pocket", "letters", "-", "--", "=", "base,base", "03:00",
]  # fmt: skip
NUMBERS: list[int | float] = [
    0, -0.0, 1, -1, 2, 0.5, 1.5, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**22, 10**400,
    -(10**400), 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip


def nested(depth: int, kind: str = "list") -> object:
    """A value in `depth` lists or objects."""
    value: object = "x"
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


texts = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=20))  # with surrogates
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values: st.SearchStrategy[Any] = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    st.builds(nested, st.sampled_from([5, 200, 601, 1500]), st.sampled_from(["list", "dict"])),
)


def to_json(value: object) -> bytes:
    """JSON as a careless client writes it: NaN, Infinity and integers of any size; surrogates are
    escapes."""
    depth, inner = 0, value
    while isinstance(inner, list | dict) and len(inner) == 1:
        depth, inner = depth + 1, next(iter(inner.values() if isinstance(inner, dict) else inner))
    if depth < 500:
        return json.dumps(value).encode()
    return (
        b'{"a":' * depth + b"1" + b"}" * depth
        if isinstance(value, dict)
        else b"[" * depth + b"1" + b"]" * depth
    )


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some of them cut, replaced, doubled or inserted."""

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        copy = data
        for at, length, new in edits:
            at %= len(copy) + 1
            copy = copy[:at] + new + copy[at + length :]
        return copy

    edit = st.tuples(
        st.integers(0, 10**6),
        st.integers(0, 8),
        st.one_of(
            st.binary(max_size=4),
            st.sampled_from(
                [
                    b'"',
                    b"null",
                    b"[",
                    b"}",
                    b"-1",
                    b"\n",
                    b"\\ud800",
                    b"\\u0000",
                    b"9" * 30,
                    b"1e999",
                ]
            ),
        ),
    )
    return st.lists(edit, min_size=1, max_size=3).map(change)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a body."""
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The body with another value at one place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy
