"""Runs with models behind an API: nothing answered is lost or asked twice, a run that stops says
why and goes on."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Handler, Server, cut, error, garbage, reply, say, status
from fakes import RuleModel

import reflect
from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import ModelHalted, UsageError
from reflect.lessons.selection import lessons_for, room_for_lessons
from reflect.models.base import Request
from reflect.models.remote import RemoteModel
from reflect.store import lessons, runs
from reflect.tasksets import load_taskset
from reflect.workspace.workspace import Workspace

RULES = RuleModel(context=8000)
Refused = Callable[..., str]


def rule(handler: Handler, body: dict[str, Any]) -> None:
    """The rule model of the day's tests, behind an API. The reflector is of the same kind."""
    seed = body["seed"]
    done = RULES.complete(
        Request(body["messages"], (seed,), body["max_tokens"], body["temperature"]), seed
    )
    handler.send_json(200, reply(body, done.text, finish=done.finish))


@pytest.fixture(autouse=True)
def key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLECT_API_KEY", "sk-sentinel-0123456789")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(
        default=rule, models={"m": {"max_model_len": 8000}, "wise": {"max_model_len": 8000}}
    ) as server:
        yield server


def workspace(server: Server, db: str = "lessons.db", **settings: Any) -> Workspace:
    return reflect.open(db, model="openai:m", base_url=server.url, **{"timeout": 5.0, **settings})


def attempts(ws: Workspace, run_id: int = 1) -> list[tuple[Any, ...]]:
    with ws.store.read() as s:
        rows = runs.rollouts(s, run_id)
    return sorted(
        (r.task_key, r.index, r.seed, r.reward, r.finish, json.dumps(r.messages), r.model)
        for r in rows
    )


def learned(ws: Workspace) -> list[tuple[str, str, str]]:
    return [(x.when, x.do, x.status) for x in ws.lessons]


def charged(server: Server) -> Counter[str]:
    """How often each attempt was asked for: (prompt, seed)."""
    return Counter(
        json.dumps([body["messages"], body["seed"], body["model"]]) for body in server.asked
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*words: str, code: int = 1) -> str:
        got = run_command(words)
        out, err = capsys.readouterr()
        assert (got, out) == (code, ""), err
        assert (
            len(re.findall("^Error: ", err, re.MULTILINE)) == 1
            and "Traceback" not in err
            and "sk-sent" not in err
        )
        return str(err)

    return run


# -- the whole loop
# ----------------------------------------------------------------------------------------------------


def test_a_model_behind_an_api_learns_what_the_same_model_learns_here(server: Server) -> None:
    ws = workspace(server)
    report = ws.run("dialect", n=12, k=4, seed=1)
    from reflect.day.practice import practice

    here = reflect.open("here.db")
    practice(RULES, here.store, load_taskset("dialect"), here.settings, n=12, k=4, seed=1)
    assert learned(ws) == learned(here) != []
    assert [row[:6] for row in attempts(ws)] == [row[:6] for row in attempts(here)]
    assert {row[6] for row in attempts(ws)} == {"m-2026"}, (
        "the model that answered, by its own word"
    )
    assert set(charged(server).values()) == {1} and len(server.asked) == 48 + report.reflections
    assert report.spent["requests"] == len(server.asked)


def test_a_run_that_stops_again_and_again_ends_as_one_that_does_not(server: Server) -> None:
    whole = workspace(server, "whole.db")
    whole.run("dialect", n=12, k=4, seed=1)
    expected = len(server.asked)

    server.asked.clear()
    rng, answered, stops = random.Random(0), Counter[str](), 0

    def moody(handler: Handler, body: dict[str, Any]) -> None:
        if rng.random() < 0.1:
            return status(429, body=error("slow down"))(handler, body)
        answered[json.dumps([body["messages"], body["seed"]])] += 1
        rule(handler, body)

    server.default = moody
    while True:
        ws = workspace(server, "broken.db", retries=0, concurrency=2)
        try:
            ws.run("dialect", n=12, k=4, seed=1)
            break
        except ModelHalted as e:
            stops += 1
            assert re.match(  # noqa: PT017
                r"Run 1 stopped after \d+ of 48 rollouts\. .* takes no more requests \(429\)",
                str(e),
            )
            assert "it goes on where it stopped" in e.hint  # noqa: PT017
        assert stops < 60
    assert stops > 2
    assert set(answered.values()) == {1} and sum(answered.values()) == expected, (
        "nothing is charged twice"
    )
    assert attempts(ws) == attempts(whole) and learned(ws) == learned(whole) and ws.doctor() == []


def test_a_bad_answer_is_data_and_the_run_completes(server: Server) -> None:
    server.script = [garbage("{nonsense"), cut, cut, status(500), status(500), status(400)]
    server.script += [say("", finish="content_filter")]
    report = workspace(server, retries=1, concurrency=1).run("dialect", n=4, k=4, seed=1)
    assert (report.rollouts, report.errors) == (16, 5)
    with workspace(server).store.read() as s:
        broken = [row.error or "" for row in runs.rollouts(s, 1) if row.reward is None]
    assert [re.sub(r"http://\S+ ", "", text).split(" (")[0] for text in broken] == [
        "model: answered with something that is no completion",
        "model: cut the connection, after 2 tries.",
        "model: failed",
        "model: refuses the request",
        "model: The server withheld the answer",
    ]
    assert len(server.asked) == 16 + 2 + report.reflections, "two retries, by the client"


# -- budgets
# -----------------------------------------------------------------------------------------------------------


def test_a_budget_stops_the_run_and_more_of_it_goes_on(
    server: Server,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "run",
        "dialect",
        "-n",
        "8",
        "-k",
        "4",
        "--seed",
        "1",
        "-m",
        "openai:m",
        "--base-url",
        server.url,
    ]
    monkeypatch.setenv("REFLECT_BUDGET_TOKENS", "600")
    said = refused(*words)
    assert re.search(
        r"Run 1 stopped after \d+ of 32 rollouts\. The budget of the run is used up: \d+ of 600",
        said,
    )
    assert "Raise budget_tokens. Then run the same command again, or `reflect runs resume`" in said
    made = len(server.asked)
    assert 0 < made < 32

    assert run_command(["runs", "show", "1", "--rollouts", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    halted = [row for row in shown["attempts"] if row["finish"] == "halted"]
    assert shown["status"] == "running" and len(halted) == 32 - made, (
        "a limit is an outcome of the rollout"
    )
    assert all(
        "budget of the run is used up" in row["error"] and row["reward"] is None for row in halted
    )
    spent = shown["config"]["spent"]
    assert spent["requests"] == made and 0 < spent["tokens_in"] + spent["tokens_out"] <= 600

    refused(*words)  # no more of it: not one request
    assert len(server.asked) == made
    monkeypatch.setenv("REFLECT_BUDGET_TOKENS", "100000")
    assert run_command(["runs", "resume", "--json"]) == 0, "the server's address is in the run"
    report = json.loads(capsys.readouterr().out)
    assert (report["rollouts"], report["errors"]) == (32, 0) and set(charged(server).values()) == {
        1
    }
    assert report["spent"]["requests"] == len(server.asked)
    assert run_command(["runs", "show", "1"]) == 0 and "spent: " in capsys.readouterr().out


def test_a_run_counts_the_rollouts_of_the_tasks_that_there_are(server: Server) -> None:
    """21 tasks are asked for, the file has 3."""
    rows = [
        {"prompt": f"Apply zubi to the list {i} 1 2.", "answer": "2 1", "split": "practice"}
        for i in range(3)
    ]
    Path("three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.default = status(429)
    with pytest.raises(ModelHalted, match="Run 1 stopped after 0 of 12 rollouts"):
        workspace(server, retries=0, concurrency=1).run("three.jsonl", n=21, k=4, seed=1)


def test_a_budget_says_nothing_of_a_lesson(server: Server) -> None:
    ws = workspace(server, budget_tokens=800)
    ws.lessons.add("the task says anything", "use sort", scope="dialect")
    with pytest.raises(ModelHalted):
        ws.run("dialect", n=8, k=4, seed=1)
    with ws.store.read() as s:
        rows = runs.rollouts(s, 1)
        seen = {e.rollout_id for e in runs.exposures(s, 1)}
    halted = {row.id for row in rows if row.finish == "halted"}
    assert halted and seen == {row.id for row in rows} - halted


def test_reviews_that_were_answered_are_kept(server: Server) -> None:
    reviews = 0

    def two_reviews(handler: Handler, body: dict[str, Any]) -> None:
        nonlocal reviews
        if "You review attempts" in body["messages"][-1]["content"]:
            reviews += 1
            if reviews == 3:
                return status(429)(handler, body)
        rule(handler, body)

    server.default = two_reviews
    ws = workspace(server, retries=0, concurrency=1)
    with pytest.raises(ModelHalted, match="Run 1 stopped after 32 of 32 rollouts"):
        ws.run("dialect", n=8, k=4, seed=1)
    with ws.store.read() as s:
        assert len(runs.reflections(s, 1)) == 2
    made = len(server.asked)
    report = workspace(server).run("dialect", n=8, k=4, seed=1)
    assert report.run_id == 1 and len(server.asked) - made == report.reflections - 2


def test_an_interrupted_run_keeps_what_was_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reflect.models import remote

    real = remote.wait_for

    def interrupted(work: Any) -> Any:
        """Ctrl-C, as soon as the first twelve are answered: four more are under way then."""
        if "_answer_all" not in repr(work):
            return real(work)
        future = asyncio.run_coroutine_threadsafe(work, remote._loop())
        while len(server.asked) < 16:
            time.sleep(0.01)
        future.cancel()
        raise KeyboardInterrupt

    server.script = [rule] * 12 + [say("late", after=30.0)] * 20
    ws = workspace(server, concurrency=4, timeout=60.0)
    _ = ws.model.context
    monkeypatch.setattr(remote, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ws.run("dialect", n=8, k=4, seed=1)
    with ws.store.read() as s:
        rows = runs.rollouts(s, 1)
    assert sum(row.finish == "halted" for row in rows) == 32 - 12


# -- another reflector, adapters, evaluation
# ---------------------------------------------------------------------------


def test_another_model_reviews(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        "dialect",
        "-n",
        "8",
        "-k",
        "4",
        "--seed",
        "1",
        "-m",
        "openai:m",
        "--base-url",
        server.url,
    ]
    assert run_command([*words, "--reflector", "openai:wise", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    asked = Counter(body["model"] for body in server.asked)
    assert asked == {"m": 32, "wise": report["reflections"]}
    ws = workspace(server)
    with ws.store.read() as s:
        run = runs.get_run(s, 1)
        assert {row.model for row in runs.reflections(s, 1)} == {"wise-2026"}
    assert run.config["reflector"] == "openai:wise" and (run.spent or {})["requests"] == len(
        server.asked
    )
    assert [x.tokens for x in ws.lessons] == [
        ws.count_tokens(f"- when: {x.when} do: {x.do}") for x in ws.lessons
    ]
    with ws.store.write() as s:
        runs.get_run(s, 1).status = "running"  # as if killed just before its end
    assert workspace(server).resume().run_id == 1, "with the reflector that it was begun with"
    assert run_command([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == 2, "another reflector is another run"


def test_eval_and_trial_work_and_stop_in_a_sentence(
    server: Server, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = workspace(server)
    verb, op = next(iter(ws.taskset("dialect").meanings.items()))
    lesson = ws.lessons.add(f"the task says {verb}", f"use {op}", scope="dialect", pinned=False)
    arms = ws.evaluate("dialect", arms=["base", "lessons"], n=12)
    assert arms["lessons"].reward > arms["base"].reward
    words = ["-m", "openai:m", "--base-url", server.url]
    assert run_command(["trial", str(lesson.id), "--tasks", "8", "-k", "4", *words]) == 0
    capsys.readouterr()
    server.default = status(429, body=error("no more today"))
    assert "takes no more requests" in refused("eval", "dialect", "-n", "4", *words)
    assert "takes no more requests" in refused("trial", "--aa", "dialect", "-n", "4", *words)


def test_a_night_needs_weights(server: Server, refused: Refused) -> None:
    workspace(server).run("dialect", n=8, k=4, seed=1)
    said = refused("sleep", "-m", "openai:m", code=2)
    assert (
        "A night trains weights, and openai:m has none here." in said
        and "reflect sleep -m hf:ORG/NAME" in said
    )
    with pytest.raises(UsageError, match="trains weights"):
        workspace(server).sleep(if_due=True)


# -- words that are off
# ------------------------------------------------------------------------------------------------


def test_what_a_user_meets(
    server: Server, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLECT_RETRIES", "0")

    def words(model: str = "openai:m", url: str = server.url) -> list[str]:
        return ["run", "dialect", "-n", "2", "-k", "2", "-m", model, "--base-url", url]

    server.keys = ["sk-another"]
    assert "refuses the key (401). " not in refused(*words()) and not server.asked
    assert "Set REFLECT_API_KEY or OPENAI_API_KEY to one of its keys." in refused(*words())
    server.keys = None
    server.default = status(404, body=error("The model `n` does not exist."))
    assert "has no model n (404). It has m, wise." in refused(*words("openai:n"))
    assert "No server answers at http://127.0.0.1:9/v1." in refused(
        *words(url="http://127.0.0.1:9/v1")
    )
    assert "base_url is no address of a server." in refused(*words(url="127.0.0.1:9"), code=2)
    too_long = (
        "This model's maximum context length is 100 tokens. However, your prompt has 150 tokens."
    )
    server.default = status(400, body=error(too_long, "context_length_exceeded"))
    assert run_command(words()) == 0
    with workspace(server).store.read() as s:
        last = runs.list_runs(s, limit=1)[0]
        errors = {row.error for row in runs.rollouts(s, last.id)}
    assert errors == {"model: The prompt has 150 tokens, the model m reads 100 with its answer."}


# -- lessons and a short context
# ---------------------------------------------------------------------------------------


def test_lessons_go_by_rank_before_the_task_is_touched(server: Server) -> None:
    ws = workspace(server)
    task = ws.taskset("dialect").tasks("practice", 1)[0]
    verb = task.text.split()[1]
    for when in (
        "a list is long",
        "numbers repeat",
        "in a hurry",
        "unsure",
        "it rains outside",
        "nothing else fits",
    ):
        ws.lessons.add(when, f"think of {when} before you write the answer down", scope="dialect")
    best = ws.lessons.add(f"the task says {verb}", "use sort", scope="dialect")

    def shown(context: int) -> list[int | None]:
        model = RuleModel(context=context)
        with ws.store.read() as s:
            return [x.id for x in lessons_for(model, s, ws.taskset("dialect"), task, ws.settings)]

    sizes = [len(shown(context)) for context in range(60, 400, 20)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[-1] == ws.settings.lesson_limit
    first = next(context for context in range(60, 400, 5) if shown(context))
    assert shown(first) == [best.id], "the most relevant one stays longest"
    room = room_for_lessons(task, ws.settings, 200, RULES.count_tokens)
    with ws.store.read() as s:
        kept = [lessons.get(s, i) for i in shown(200)]
    assert sum(RULES.count_tokens(f"- when: {x.when} do: {x.do}") for x in kept) <= room
    assert room_for_lessons(task, Settings(), 10**6, RULES.count_tokens) == Settings().lesson_budget
    assert isinstance(ws.model, RemoteModel) and str(ws.prompt("dialect", task.id))
