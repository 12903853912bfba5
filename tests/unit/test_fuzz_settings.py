"""Settings from flags, the environment and reflect.toml: an invalid value is one sentence, whatever
it is."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields
from pathlib import Path

import pytest
from hostile import NUMBERS, TEXTS, damaged, scalars, texts, values
from hypothesis import example, given
from hypothesis import strategies as st

from reflect import config
from reflect.config import Settings
from reflect.errors import ReflectError

FIELDS = {setting.name: setting for setting in fields(Settings)}
names = st.sampled_from(sorted(FIELDS))
pytestmark = pytest.mark.usefixtures("folder")


def load(**flags: object) -> Settings | None:
    """The settings, which are within their bounds; None after a refusal in one sentence."""
    refusal = None
    try:
        settings = config.load(**flags)
    except ReflectError as e:
        refusal = e
    if refusal:
        assert len(refusal.message) < 600 and str(refusal).isprintable(), refusal
        return None
    for name, setting in FIELDS.items():
        value, bounds = getattr(settings, name), setting.metadata
        assert type(value) is type(setting.default), name
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert (
                bounds["ge"] <= value <= bounds["le"]
                and value < bounds["lt"]
                and math.isfinite(value)
            )
        elif bounds["choices"]:
            assert value in bounds["choices"]
        value.__repr__().encode(), str(value).encode()
    return settings


def toml(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool) or value is None:
        return "true" if value else "false"
    if isinstance(value, int):
        return hex(value) if value >= 0 else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


@given(names, values)
@example("k", float("inf"))
@example("threads", -4)
@example("max_tokens", -1)
@example("lesson_budget", -5)
@example("verify_seconds", float("nan"))
@example("temperature", 10**400)
def test_a_flag(name: str, value: object) -> None:
    load(**{name: value})


@given(
    names,
    texts.filter(
        lambda text: (
            "\0" not in text
            and all(not 0xD800 <= ord(x) < 0xDC80 and not 0xDCFF < ord(x) < 0xE000 for x in text)
        )
    ),
)
def test_a_variable(name: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"REFLECT_{name.upper()}", text)
        load()


@given(names, scalars)
@example("k", 16**5001)
def test_a_line_of_the_file(name: str, value: object) -> None:
    Path("reflect.toml").write_text(f"{name} = {toml(value)}\n", errors="replace")
    load()


@given(
    st.one_of(
        st.binary(max_size=200),
        damaged(b'k = 8\nmodel = "pocket"\ntemperature = 0.5\n[a]\nb = 1979-05-27\n'),
    )
)
@example(b"k = " + b"9" * 5001)
@example(b"k = " + b"[" * 5001)
@example("k = 1".encode("utf-16"))
@example(b"k = 1979-05-27T07:32:00Z")
@example(b"\xef\xbb\xbfk = 3")
def test_the_bytes_of_the_file(data: bytes) -> None:
    Path("reflect.toml").write_bytes(data)
    load()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_each_setting_with_each_hostile_value(name: str) -> None:
    for value in [*TEXTS, *NUMBERS, None, True, [], {}, [1], {"a": 1}, b"x", object(), 1 + 2j]:
        load(**{name: value})


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    Path("reflect.toml").write_bytes(b"\xef\xbb\xbfk = 3")
    assert config.load().k == 3


@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "loop", "large"])
def test_a_file_that_is_no_text_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reflect.reading.SILENCE", 0.05)
    path = Path("reflect.toml")
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    assert load() is None
