"""A model behind an API against a server that misbehaves by script: exact request counts, and what
each error means."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Server, Step, cut, error, garbage, hang, reply, say, status, think

from reflect.config import Settings
from reflect.errors import ModelError, ModelHalted, UsageError
from reflect.models import load_model
from reflect.models.base import Completion, Request
from reflect.models.budget import Budget
from reflect.models.credentials import hide
from reflect.models.remote import RemoteModel

KEY = "sk-sentinel-0123456789-abcdefgh"
TOO_LONG = error(
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, "
    "100 in the completion). Please reduce the length of the messages or completion.",
    "context_length_exceeded",
)


@pytest.fixture(autouse=True)
def key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REFLECT_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return KEY


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def model(server: Server, **settings: Any) -> RemoteModel:
    loaded = load_model("openai:m", Settings(base_url=server.url, **{"timeout": 5.0, **settings}))
    assert isinstance(loaded, RemoteModel)
    return loaded


def ask(n: int = 1, text: str = "How many r are in berry?", **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], tuple(range(7, 7 + n)), **more)


def one(rows: list[list[Any]]) -> Any:
    ((answer,),) = rows
    return answer


# -- the request, and the answer
# -----------------------------------------------------------------------------------


def test_an_attempt_is_a_request_with_its_own_seed(server: Server) -> None:
    rows = model(server).sample([ask(3, max_tokens=9, temperature=0.5, stop=("\n",)), ask(1)])
    assert [[c.seed for c in row] for row in rows] == [[7, 8, 9], [7]]
    assert {c.model for row in rows for c in row} == {"m-2026"}
    first = next(body for body in server.asked if body["seed"] == 8)
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "How many r are in berry?"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 8,
        "stop": ["\n"],
    }
    assert {head["authorization"] for head in server.headers} == {f"Bearer {KEY}"}


def test_several_samples_in_a_request_and_one_by_one_where_the_server_gives_one(
    server: Server,
) -> None:
    rows = model(server, samples=4).sample([ask(6)])
    assert len(rows[0]) == 6 and [body.get("n", 1) for body in server.asked] == [4, 2]
    assert sum(c.completion_tokens for c in rows[0]) == 12, "what the request took is shared out"

    server.asked.clear()
    server.default = lambda h, body: h.send_json(
        200, reply(body, "answer: 3")
    )  # one choice, whatever n
    again = model(server, samples=4, concurrency=1)
    assert len(again.sample([ask(6)])[0]) == 6
    assert [body.get("n", 1) for body in server.asked] == [4, 1, 1, 1, 1, 1], (
        "no answer is asked for twice"
    )

    server.asked.clear()
    server.default = lambda h, body: (
        h.send_json(400, error("n must be 1", param="n"))
        if body.get("n", 1) > 1
        else say("answer: 3")(h, body)
    )
    assert len(model(server, samples=4, concurrency=1).sample([ask(6)])[0]) == 6
    assert [body.get("n", 1) for body in server.asked] == [4, 1, 1, 1, 1, 1, 1]


def test_a_server_that_declines_a_word_is_asked_without_it(server: Server) -> None:
    server.script = [
        status(
            400,
            body=error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        ),
        status(
            400,
            body=error("Unsupported value: 'temperature' does not support 0.", param="temperature"),
        ),
    ]
    remote = model(server, concurrency=1)
    assert remote.sample([ask(2, temperature=0.0)]) and remote.declined == {
        "max_tokens",
        "temperature",
    }
    assert [sorted(body) for body in server.asked][2:] == [
        ["max_completion_tokens", "messages", "model", "seed"]
    ] * 2


FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    "body",
    [
        error("Unsupported value", param="response_format"),
        error("This response_format type is unavailable now"),
        error("'json_schema' is not supported by this model."),
        error("Guided decoding is not enabled on this server"),
    ],
)
def test_a_server_without_forms_of_answers_is_asked_for_text(
    server: Server, body: dict[str, Any]
) -> None:
    server.script = [status(400, body=body)]
    remote = model(server)
    assert one(remote.sample([ask(response_format=FORM)])).text == "answer: 3"
    assert one(remote.sample([ask(response_format=FORM)])).text == "answer: 3"
    assert ["response_format" in sent for sent in server.asked] == [True, False, False]


def test_a_form_is_sent_and_an_error_that_does_not_name_it_stays(server: Server) -> None:
    server.script = [say("{}"), status(400, body=error("The prompt is empty."))]
    remote = model(server, retries=0)
    remote.sample([ask(response_format=FORM)])
    assert server.asked[0]["response_format"] == FORM
    with pytest.raises(ModelError, match="prompt is empty"):
        remote.sample([ask(response_format=FORM)])
    assert len(server.asked) == 2 and not remote.declined


def test_tool_calls_and_the_texts_end(server: Server) -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    server.script = [
        say(
            "",
            finish="tool_calls",
            tool_calls=[{"id": "x1", "type": "function", "function": function}],
        )
    ]
    server.script += [
        say("one\ntwo"),
        say("and so", finish="length"),
        say("", finish="content_filter"),
    ]
    remote, tool = (
        model(server, concurrency=1),
        {"type": "function", "function": {"name": "add", "parameters": {}}},
    )
    called = one(remote.answer_each([ask(tools=(tool,))]))
    assert called.finish == "tool_calls" and server.asked[0]["tools"] == [tool]
    assert called.calls == ({"id": "x1", "type": "function", "function": function},)
    assert one(remote.answer_each([ask(stop=("\n", "a", "b", "c", "d"))])).text == "one"
    assert len(server.asked[1]["stop"]) == 4, "the API takes four"
    assert one(remote.answer_each([ask()])).finish == "length"
    assert "content filter" in one(remote.answer_each([ask()])).message


def test_no_more_at_a_time_than_the_settings_say(server: Server) -> None:
    server.default = say("answer: 3", after=0.05)
    model(server, concurrency=3).sample([ask(12)])
    assert 1 < server.most <= 3 and len(server.asked) == 12


def test_the_rate_is_kept(server: Server) -> None:
    began = time.monotonic()
    model(server, rate=1200).sample([ask(7)])
    assert time.monotonic() - began >= 6 * 60 / 1200


def test_what_the_server_says_of_itself(server: Server) -> None:
    server.models = {"m": {"max_model_len": 2048}}
    first = model(server)
    assert first.context == 2048 and first.fingerprint == model(server).fingerprint
    server.models = {"m": {"max_model_len": 4096}}
    assert model(server).fingerprint != first.fingerprint
    server.models = {"other": {}}
    assert model(server, context=999).context == 999
    server.models = None  # a server without a list
    assert model(server).context == Settings().context and len(model(server).fingerprint) == 64


def test_a_long_answer_is_cut_by_the_context_and_lessons_are_counted_as_too_many_rather_than_too_few(
    server: Server,
) -> None:
    server.models = {"m": {"max_model_len": 200}}
    remote = model(server)
    remote.sample([ask(text="word " * 100, max_tokens=500)])
    assert 50 <= server.asked[0]["max_tokens"] <= 100
    assert remote.count_tokens("Spell the word first: s t r a w b e r r y.") >= 14
    assert remote.count_tokens("") == 0


def test_an_adapter_is_the_name_of_a_model(server: Server) -> None:
    remote = model(server, concurrency=1)
    with remote.using("night-1"):
        remote.sample([ask(), ask(adapter=None), ask(adapter="night-2")])
    assert [body["model"] for body in server.asked] == ["night-1", "m", "night-2"]
    assert remote.active is None


# -- what goes wrong
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "requests", "ending", "says"),
    [
        ([status(429)] * 2, 3, Completion, ""),
        ([status(500), status(503)], 3, Completion, ""),
        (
            [status(429)] * 9,
            3,
            ModelHalted,
            "takes no more requests (429) after 3 tries: scripted 429.",
        ),
        ([status(500)] * 9, 3, ModelError, "failed (500) after 3 tries: scripted 500."),
        ([status(401)] * 9, 1, ModelHalted, "refuses the key (401)"),
        ([status(403)] * 9, 1, ModelHalted, "forbids this (403): scripted 403"),
        ([status(404)] * 9, 1, ModelHalted, "has no model m (404). It has m."),
        ([status(400)] * 9, 1, ModelError, "refuses the request (400): scripted 400"),
        (
            [status(400, body=TOO_LONG)],
            1,
            ModelError,
            "has 4900 tokens, the model m reads 4096 with its answer",
        ),
        ([status(413)] * 9, 1, ModelError, "The prompt has about "),
        ([status(422)] * 9, 1, ModelError, "refuses the request (422)"),
        ([garbage("{nonsense")], 1, ModelError, "something that is no completion"),
        (
            [garbage("<html>hello</html>", "text/html")],
            1,
            ModelError,
            "something that is no completion",
        ),
        ([garbage("null")], 1, ModelError, "something that is no completion"),
        ([garbage('{"choices": []}')], 1, ModelError, "something that is no completion"),
        (
            [garbage('{"choices": [{"message": {"content": 7}}]}')],
            1,
            ModelError,
            "something that is no completion",
        ),
        (
            [garbage('{"choices": [{"index": 0}]}')],
            1,
            ModelError,
            "something that is no completion",
        ),
    ],
    ids=lambda value: value[:24].replace(" ", "-") if isinstance(value, str) else None,
)
def test_each_error_costs_what_it_must_and_no_more(
    server: Server, script: list[Step], requests: int, ending: type, says: str
) -> None:
    server.script = script
    error = one(model(server).answer_each([ask()]))
    assert type(error) is ending or (ending is ModelError and type(error).__mro__[1] is ModelError)
    assert len(server.asked) == requests
    assert says in str(error)
    assert len({head["idempotency-key"] for head in server.headers}) == 1, (
        "a retry is the same request"
    )


@pytest.mark.parametrize(
    ("step", "says"), [(cut, "cut the connection"), (hang(0.5), "did not answer within 0.2")]
)
def test_what_breaks_on_the_way_is_tried_again_and_then_counts_in_full(
    server: Server, step: Step, says: str
) -> None:
    server.script = [step]
    remote = model(server, timeout=0.2, retries=1)
    assert one(remote.answer_each([ask()])).text == "answer: 3" and len(server.asked) == 2
    server.script = [step]
    remote = model(server, timeout=0.2, retries=0)
    assert says in one(remote.answer_each([ask(max_tokens=50)])).message and len(server.asked) == 3
    spent = remote.budget.shape()
    assert spent["tokens_out"] == 50 and spent["tokens_in"] > 0, "the server may have charged it"


def test_a_server_asks_for_patience_and_gets_it(server: Server) -> None:
    server.script = [status(429, {"Retry-After": "0.4"})]
    began = time.monotonic()
    assert one(model(server).answer_each([ask()])).text == "answer: 3"
    assert time.monotonic() - began >= 0.4 and len(server.asked) == 2


def test_one_bad_request_takes_no_other_with_it(server: Server) -> None:
    bad = status(400, body=TOO_LONG)
    server.default = lambda h, body: (bad if body["seed"] == 9 else say("answer: 3"))(h, body)
    (row,) = model(server).answer_each([ask(5)])
    assert [isinstance(x, Completion) for x in row] == [True, True, False, True, True]
    assert len(server.asked) == 5
    with pytest.raises(ModelError, match="4900 tokens"):
        model(server).sample([ask(5)])


def test_after_a_halt_nothing_new_is_asked(server: Server) -> None:
    server.default = status(401)
    (row,) = model(server, concurrency=2).answer_each([ask(20)])
    assert all(isinstance(x, ModelHalted) for x in row) and len(server.asked) <= 2
    with pytest.raises(ModelHalted, match=r"No server answers at http://127.0.0.1:9/v1"):
        load_model("openai:m", Settings(base_url="http://127.0.0.1:9/v1", retries=0)).sample(
            [ask()]
        )


def test_a_server_that_only_fails_is_given_up(server: Server) -> None:
    server.default = status(500)
    (row,) = model(server, retries=0, concurrency=2).answer_each([ask(40)])
    assert len(server.asked) <= 9 and "8 requests in a row failed" in row[-1].message
    assert sum(type(x) is ModelError for x in row) >= 8, (
        "those that were asked for have their own error"
    )
    server.default = think(lambda body: "answer: 3")
    server.script = [status(500), say("answer: 3")] * 20
    (row,) = model(server, retries=0, concurrency=1).answer_each([ask(40)])
    assert not any(isinstance(x, ModelHalted) for x in row)


# -- budgets
# -----------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_is_never_exceeded_and_not_left_unused(server: Server) -> None:
    remote = model(server, budget_tokens=400)
    (row,) = remote.answer_each([ask(200, max_tokens=20)])
    spent = remote.budget.shape()
    done = [x for x in row if isinstance(x, Completion)]
    assert 360 - 8 <= spent["tokens_in"] + spent["tokens_out"] <= 400, (
        spent
    )  # a request may take 37, and takes 8
    assert len(done) == len(server.asked) == spent["requests"]
    error = row[-1]
    assert isinstance(error, ModelHalted) and "of 400 tokens are spent" in error.message
    assert error.hint == "Raise budget_tokens."


def test_a_budget_of_money_needs_prices(server: Server) -> None:
    with pytest.raises(UsageError, match="budget_cost is set, and m has no price"):
        model(server, budget_cost=1.0).sample([ask()])
    remote = model(server, budget_cost=0.0005, prices="openai:m 1 10, other 2 2")
    (row,) = remote.answer_each([ask(50, max_tokens=20)])
    spent = remote.budget.shape()
    assert spent["cost"] == pytest.approx((spent["tokens_in"] + 10 * spent["tokens_out"]) / 1e6)
    assert 0 < spent["cost"] <= 0.0005 and "of 0.0005 are spent" in row[-1].message
    for text in ("m", "m 1", "m one 2", "m -1 2"):
        with pytest.raises(UsageError, match="prices: "):
            model(server, prices=text)


def test_a_budget_of_time(server: Server) -> None:
    server.default = say("answer: 3", after=0.4)
    remote = model(server, concurrency=1)
    remote.sample([ask()])  # the client is loaded, and the machine may be slow
    server.asked.clear()
    remote.budget = Budget(Settings(budget_seconds=0.6))
    (row,) = remote.answer_each([ask(9)])
    assert 1 <= len(server.asked) <= 2 and "of 0.6 seconds are over" in row[-1].message
    assert isinstance(row[len(server.asked) - 1], Completion), "what was under way is waited for"


# -- words that are off, and keys
# --------------------------------------------------------------------------------------


def test_words_that_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "nowhere",
        "ftp://x/v1",
        "http://",
        "http://me:secret@host/v1",
        "http://host/v1?api_key=secret",
    ):
        with pytest.raises(UsageError, match="base_url") as e:
            load_model("openai:m", Settings(base_url=url))
        assert "secret" not in str(e.value)
    with pytest.raises(UsageError, match="model is missing"):
        load_model("openai:", Settings())
    monkeypatch.delenv("REFLECT_API_KEY")
    with pytest.raises(UsageError, match="needs a key"):
        load_model("openai:m", Settings())
    assert load_model("openai:m", Settings(base_url="http://127.0.0.1:9/v1")), (
        "a server of one's own needs none"
    )


def test_a_key_that_a_server_repeats_is_hidden(server: Server) -> None:
    server.keys = ["another"]
    with pytest.raises(ModelHalted, match="refuses the key") as e:
        model(server).answer_each([ask()])
    assert KEY[:8] not in str(e.value) and not server.asked
    server.keys = None
    server.script = [
        say(f"your key is {KEY}, that is {KEY[:14]}"),
        status(400, body=error(f"bad {KEY[4:]}")),
    ]
    remote = model(server, concurrency=1)
    assert one(remote.answer_each([ask()])).text == "your key is [key], that is [key]"
    assert "bad [key]" in str(one(remote.answer_each([ask()])))
    assert (
        hide("nothing to hide", KEY) == "nothing to hide" and hide("anything", "none") == "anything"
    )
