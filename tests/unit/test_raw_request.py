"""Lessons go into the bytes of a request; every other byte stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect.serve.raw_request import rewrite

BLOCK = 'Lessons "1"\nend \u00e9'


def extended(body: str, system: str = "", text: str | None = None) -> str:
    new = (f"{system}\n{BLOCK}" if system else BLOCK) if text is None else text
    return rewrite(body.encode(), system, new).decode()


LITERAL = json.dumps(BLOCK)[1:-1]
PART = json.dumps({"type": "text", "text": BLOCK})
FIRST = json.dumps({"role": "system", "content": BLOCK})

EDITS = [
    # a text: inside the string, whose escapes stay
    ('{"messages": [{"role":"system","content":"S\\u00e9\\/ 1"}]}', "Sé/ 1",
     '{"messages": [{"role":"system","content":"S\\u00e9\\/ 1\\n@"}]}'),
    ('{"messages":[{"content":"S","role":"developer","name":"n"},{"role":"system","content":"T"}],"t":1.50}', "S",
     '{"messages":[{"content":"S\\n@","role":"developer","name":"n"},{"role":"system","content":"T"}],"t":1.50}'),
    ('{"messages":[{"role":"user","content":"u"}, {"role":"system","content":""}]}', "",
     '{"messages":[{"role":"user","content":"u"}, {"role":"system","content":"@"}]}'),
    # parts: one more
    ('{"messages":[{"role":"system","content":[{"type":"text","text":"S","cache_control":{"type":"ephemeral"}} ]}]}', "S",
     '{"messages":[{"role":"system","content":[{"type":"text","text":"S","cache_control":{"type":"ephemeral"}}, # ]}]}'),
    ('{"messages":[{"role":"system","content":[ ]}]}', "", '{"messages":[{"role":"system","content":[# ]}]}'),
    # no text
    ('{"messages":[{"role":"system","content":null}]}', "", '{"messages":[{"role":"system","content":"@"}]}'),
    ('{"messages":[{"role":"system" }]}', "", '{"messages":[{"role":"system", "content": "@" }]}'),
    # no system message
    ('{"messages": [ {"role":"user","content":"u"}]}', "", '{"messages": [$,  {"role":"user","content":"u"}]}'),
    # the last of two equal names counts, as for a JSON parser
    ('{"messages":[],"messages":[{"role":"user","role":"system","content":"x","content":"S"}]}', "S",
     '{"messages":[],"messages":[{"role":"user","role":"system","content":"x","content":"S\\n@"}]}'),
]  # fmt: skip


@pytest.mark.parametrize(("body", "system", "want"), EDITS, ids=range(len(EDITS)))
def test_lessons_extend_the_first_system_message(body: str, system: str, want: str) -> None:
    want = want.replace("@", LITERAL).replace("#", PART).replace("$", FIRST)
    assert extended(body, system) == want
    assert rewrite(body.encode(), "", "") == body.encode(), "no lessons, no change"


def test_a_template_may_put_lessons_around_the_text_or_change_it() -> None:
    text = '{"messages":[{"role":"system","content":"S"}]}'
    parts = '{"messages":[{"role":"system","content":[{"type":"text","text":"S"}]}]}'

    def contents(body: str, new: str) -> object:
        return json.loads(extended(body, "S", new))["messages"][0]["content"]

    assert contents(text, "before S after") == "before S after"
    assert [part["text"] for part in contents(parts, "before S after")] == [
        "before ",
        "S",
        " after",
    ]
    assert contents(text, "changed") == "S\nchanged"
    assert [part["text"] for part in contents(parts, "changed")] == ["S", "changed"]


REMOVED = [
    ('{"a":1.0, "reflect": {"lessons": false}, "b": 2}', '{"a":1.0, "b": 2}'),
    ('{"reflect":{} , "a":1}', '{"a":1}'),
    ('{ "a" : 1 , "reflect":null }', '{ "a" : 1 }'),
    ('{"reflect":1,"a":{"reflect":2},"reflect":[3],"reflect":4}', '{"a":{"reflect":2}}'),
    ('{"\\u0072eflect":1,"a":"reflect"}', '{"a":"reflect"}'),
    ('{"a":1}', '{"a":1}'),
]


@pytest.mark.parametrize(("body", "want"), REMOVED)
def test_the_reflect_object_is_left_out(body: str, want: str) -> None:
    assert rewrite(body.encode(), "", "").decode() == want


SAME = [
    '\n {"messages" :[ ], "n": 1E400, "m":-0.0, "o": 1e5, "big": 123456789012345678901234567890 }\t',
    '{"a":NaN,"a":Infinity,"b":"\\ud83d","c":"é\\u00e9"}',
    '{"messages":[{"role":"user","content":"\\/"}],"unknown":{"z":1,"a":[1.10]}}',
]


@pytest.mark.parametrize("body", SAME)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_other_byte_stays(body: str, encoding: str) -> None:
    data = body.encode(encoding)
    assert rewrite(data, "", "") == data
    with_reflect = body.rstrip().removesuffix("}") + ',"reflect":{}}' + body[len(body.rstrip()) :]
    changed = rewrite(with_reflect.encode(encoding), "", "")
    assert "".join(changed.decode(encoding).split()) == "".join(body.split())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=3),
    max_leaves=6,
)
CONTENT = (
    st.text(max_size=8)
    | st.none()
    | st.lists(
        st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=4)), max_size=3
    )
)
MESSAGE = st.builds(
    lambda role, content, extra: {"role": role, "content": content, "extra": extra},
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    CONTENT,
    VALUES,
)


def flat(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


@given(
    st.lists(MESSAGE, min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.booleans(),
)
def test_only_the_first_system_message_changes(
    messages: list[dict[str, object]],
    fields: dict[str, object],
    indent: int | None,
    plain: bool,
    with_reflect: bool,
) -> None:
    request = {**fields, "messages": messages} | ({"reflect": {"a": []}} if with_reflect else {})
    body = json.dumps(request, indent=indent, ensure_ascii=plain)
    roles = [message["role"] in ("system", "developer") for message in messages]
    at = roles.index(True) if True in roles else None
    system = "" if at is None else flat(messages[at]["content"])
    changed = json.loads(extended(body, system))
    new = changed.pop("messages")
    assert changed == {
        name: value for name, value in fields.items() if name not in ("messages", "reflect")
    }
    if at is None:
        assert new == [{"role": "system", "content": BLOCK}, *messages]
    else:
        assert new[:at] + new[at + 1 :] == messages[:at] + messages[at + 1 :]
        assert {**new[at], "content": 0} == {**messages[at], "content": 0}
        old = messages[at]["content"]
        if isinstance(old, list):
            assert new[at]["content"] == [*old, {"type": "text", "text": BLOCK}]
        else:
            assert new[at]["content"] == (f"{old}\n{BLOCK}" if old else BLOCK)
