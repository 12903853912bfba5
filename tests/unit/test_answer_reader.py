"""The reader of an upstream's answer: any bytes in, the answer or nothing out, never an error."""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect.models.base import Completion
from reflect.serve import answer_reader
from reflect.serve.answer_reader import AnswerReader

DONE = b"data: [DONE]\n\n"


def chunk(*choices: object, **fields: object) -> dict[str, object]:
    return {"id": "c-1", "model": "m", "choices": list(choices), **fields}


def row(delta: object, index: object = 0, finish: object = None) -> dict[str, object]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def events(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)


def read(data: bytes, encoding: str = "", sizes: object = None) -> list[Completion]:
    reader = AnswerReader(encoding)
    at = 0
    for size in sizes or [len(data)]:
        reader.feed(data[at : at + size])
        at += size
    reader.feed(data[at:])
    return reader.completions()


def texts(data: bytes, **words: object) -> list[str]:
    return [one.text for one in read(data, **words)]


HELLO = events(chunk(row({"content": "hel"})), chunk(row({"content": "lo"}, finish="stop")))

ODD = [
    chunk(row({"content": "x"}, index=None)),
    chunk(row({"content": [{"type": "text", "text": "x"}]})),
    chunk(row({"content": ["x"]})),
    chunk(row({"content": {"text": "x"}})),
    chunk(row([{"type": "text", "text": "x"}, {"type": "image"}])),
    chunk(row("x")),
    chunk(row({"content": "x"}, index=0.0)),
    chunk(row({"content": "x"}, index="0")),
    chunk({"message": {"content": "x"}}),
    chunk("a", None, 5, row({"content": "x"})),
    chunk(row({"content": "x", "tool_calls": None, "function_call": None})),
    chunk(row({"content": "x", "tool_calls": 5})),
    chunk(row({"content": "x", "tool_calls": [None, "y", []]})),
    chunk(row({"content": "x"}), usage=5),
    chunk(row({"content": "x"}), usage={"prompt_tokens": "many", "completion_tokens": -1}),
    chunk(row({"content": "x"}), usage={"prompt_tokens": 10**400, "completion_tokens": None}),
    chunk(row({"content": "x"}), id=None, model=[]),
    chunk(row({"content": "x"}, finish=["stop"])),
    chunk(row({"content": "x"}, finish=7)),
]


@pytest.mark.parametrize("one", ODD, ids=lambda one: json.dumps(one["choices"])[:50])
def test_unusual_fields_are_read(one: object) -> None:
    assert texts(events(one) + DONE) == ["x"]


UNREADABLE = [
    chunk(),
    chunk("x"),
    {"choices": 5},
    {"choices": {"index": 0}},
    {"choices": None},
    chunk({}),
    chunk({"index": 0, "delta": 5}),
    chunk(row({"content": "x"}, index=None), row({"content": "y"}, index=0)),
    chunk(row({"content": "x"}), error={"message": "overloaded"}),
    None,
    [],
    [chunk(row({"content": "x"}))],
    "x",
    5,
    True,
]


@pytest.mark.parametrize("one", UNREADABLE, ids=lambda one: json.dumps(one)[:50])
def test_what_has_no_answer_is_not_recorded(one: object) -> None:
    assert read(events(one) + DONE) == []
    assert read(json.dumps(one).encode()) == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("cut", range(1, 12))
def test_line_ends_and_borders(end: bytes, cut: int) -> None:
    data = b"\xef\xbb\xbf: hi\n\nevent: x\nid\nretry: 1\ndata\n\n" + HELLO + b"data:[DONE]\n\n"
    data = data.replace(b"\n", end)
    assert texts(data, sizes=[cut] * (len(data) // cut)) == ["hello"]


def test_data_in_several_lines() -> None:
    lines = json.dumps(chunk(row({"content": "x"})), indent=1).encode().splitlines()
    for end in (b"\n", b"\r\n", b"\r"):
        data = b"".join(b"data: " + line + end for line in lines) + end + b"data: [DONE]" + end * 2
        for cut in range(1, 8):
            assert texts(data, sizes=[cut] * (len(data) // cut)) == ["x"]


def test_a_stream_ends_by_done_or_by_a_clean_end_after_its_reason() -> None:
    assert texts(HELLO) == texts(HELLO + DONE) == texts(HELLO.rstrip()) == ["hello"]
    assert texts(HELLO.replace(b"\n\n", b"\n")) == ["hello"], "no empty lines between the events"
    open_end = events(chunk(row({"content": "hel"})))
    assert texts(open_end) == [] and texts(open_end + DONE.rstrip()) == ["hel"]
    two = events(chunk(row({"content": "a"}, 1, "stop")), chunk(row({"content": "b"}, 0)))
    assert texts(two) == [] and texts(two + DONE) == ["b", "a"]
    assert texts(HELLO + DONE + events(chunk(row({"content": "!"})))) == ["hello"]


def test_invalid_bytes_are_replaced() -> None:
    data = events(chunk(row({"content": "@"}))).replace(b"@", b"\xff\xfe@") + DONE
    assert texts(data) == ["\ufffd\ufffd@"]


def test_calls_in_pieces() -> None:
    def calls(*pieces: object) -> list[tuple[str, str, str]]:
        data = events(*(chunk(row({"tool_calls": [piece]})) for piece in pieces)) + DONE
        (one,) = read(data)
        return [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in one.calls]

    def piece(index: object, id: object, name: object, arguments: object) -> dict[str, object]:
        return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}

    add = ("i", "add", '{"a": 1}')
    assert calls(
        piece(0, "i", "add", ""), piece(0, None, None, '{"a":'), piece(0, "", "", " 1}")
    ) == [add]
    assert calls(piece(0, "i", "add", {"a": 1})) == [add]
    assert calls(piece(None, "i", "add", '{"a": 1}')) == [add]
    assert calls(piece(None, "i", "add", '{"a":'), piece(None, None, None, " 1}")) == [add]
    assert calls(piece(None, "i", "add", '{"a":'), piece(None, "i", "add", " 1}")) == [add]
    two = [add, ("j", "sub", "{}")]
    assert calls(piece(None, "i", "add", {"a": 1}), piece(0, "j", "sub", {})) == two
    assert calls(piece(0, "i", "add", {"a": 1}), piece(0, "j", "sub", {})) == two, "Gemini's index"
    assert calls(piece(0, "i", "add", {"a": 1}), piece(1, "j", "sub", {})) == two
    assert (
        calls({"function": {"name": "add"}}, {"function": {"name": "add"}}) == [("", "add", "")] * 2
    )
    assert calls({"id": "i", "name": "add", "arguments": {"a": 1}}) == [add]
    assert calls({"index": 0, "id": 5, "function": "add"}) == [("", "", "")]


def test_a_whole_answer() -> None:
    call = {"id": "i", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "x"}],
        "tool_calls": [call],
    }
    answer = {
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    for data in (
        json.dumps(answer).encode(),
        b" \n\n" + json.dumps(answer, indent=2).encode() + b"\n",
    ):
        (one,) = read(data, sizes=[1] * len(data))
        assert (one.text, one.finish, one.prompt_tokens, one.completion_tokens) == (
            "x",
            "tool_calls",
            5,
            2,
        )
        assert one.calls[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
        assert read(data[:-3]) == []


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw", "GZIP "])
def test_packed_answers_are_read(encoding: str) -> None:
    raw = zlib.compressobj(wbits=-15)
    pack = {
        "deflate": zlib.compress,
        "raw": lambda data: raw.compress(data) + raw.flush(),
    }.get(encoding, gzip.compress)
    data = pack(HELLO + DONE)
    for cut in (1, 7, len(data)):
        sizes = [cut] * (len(data) // cut)
        assert texts(data, encoding=encoding.replace("raw", "deflate"), sizes=sizes) == ["hello"]
    assert texts(HELLO, encoding="br") == texts(HELLO, encoding="gzip") == []
    assert texts(gzip.compress(HELLO), encoding="gzip, gzip") == []


def test_ids_that_are_no_key_are_left_out() -> None:
    for name in ("", "a\x00b", "\ud83d", "x" * 257, 5, None, "a\nb"):
        reader = AnswerReader()
        reader.feed(events(chunk(row({"content": "x"}), id=name, model=name)) + DONE)
        assert reader.completions() and (reader.id, reader.model) == ("", "")


BOMBS = {
    "newlines": (gzip.compress(b"\n" * 2**26), "gzip"),
    "comments": (gzip.compress(b":\n" * 2**24), "gzip"),
    "fields": (gzip.compress(b"data:\n" * 2**22), "gzip"),
    "a line": (gzip.compress(b"data: " + b"x" * 2**26), "gzip"),
    "JSON": (gzip.compress(b'{"a": "' + b"x" * 2**26), "gzip"),
    "nesting": (b'data: {"a": ' + b"[" * 2**20 + b"\n\n" + HELLO + DONE, ""),
    "objects": (b'{"a":' * 2**20, ""),
    "digits": (b'{"choices": ' + b"9" * 2**20 + b"}", ""),
    "open data": (b"data: {\n" + b"data: 1,\n" * 2**18, ""),
    "calls": (
        events(chunk(row({"tool_calls": [{"id": str(i), "name": "f"} for i in range(50_000)]}))),
        "",
    ),
    "drops": (b" " * 2**19, "drops"),
    "deltas": (events(chunk(row({"content": "x" * 20}))) * 40_000, ""),
}


@pytest.mark.parametrize("name", BOMBS)
def test_cost_is_bounded_and_linear(name: str) -> None:
    data, encoding = BOMBS[name]
    start = time.process_time()
    size = 16 if encoding == "drops" else 2**16
    reader = AnswerReader(encoding.replace("drops", ""))
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    reader.completions()
    assert time.process_time() - start < 3


JSON = st.recursive(
    st.sampled_from([None, True, 0, 1, -1, 0.5, 2**70, "", "x", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "id model choices index delta message content text type finish_reason usage "
                "tool_calls function name arguments error prompt_tokens completion_tokens".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.integers(1, 9), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_no_event_raises(chunks: list[object], cut: int, end: bytes) -> None:
    data = (events(*chunks) + events(*(chunk(one) for one in chunks)) + DONE).replace(b"\n", end)
    reader = AnswerReader()
    for at in range(0, len(data), cut):
        reader.feed(data[at : at + cut])
    for one in reader.completions():
        assert isinstance(one.text, str) and 0 <= one.prompt_tokens < 2**31
        json.dumps(one.calls)


def test_no_bytes_raise() -> None:
    draw = random.Random(7)
    whole = json.dumps(chunk({"message": {"content": "x"}})).encode()
    for _ in range(2000):
        data = bytearray(draw.choice([HELLO + DONE, whole, gzip.compress(HELLO)]))
        for _ in range(draw.randrange(1, 6)):
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        cut = draw.randrange(1, 40)
        encoding = draw.choice(["", "gzip", "deflate", "br"])
        read(bytes(data), encoding=encoding, sizes=[cut] * (len(data) // cut))


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_reader, "MOST_EVENT", 200)
    assert texts(HELLO * 9 + DONE) == ["hello" * 9]
    assert texts(events(chunk(row({"content": "x" * 200}))) + DONE, sizes=[50] * 9) == []
    monkeypatch.setattr(answer_reader, "MOST_BYTES", 500)
    assert texts(HELLO * 9 + DONE) == []
