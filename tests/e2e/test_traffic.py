"""An agent that knows nothing of reflect learns from its own traffic, by its base URL alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import openai
import pytest
from fakes import RuleModel
from serving import ask, post, serving

from reflect.adapters import registry
from reflect.cli import run_command
from reflect.config import Settings
from reflect.day.traffic import form, groups, learn
from reflect.errors import UnknownName, UsageError
from reflect.models.local import LocalModel
from reflect.records import Exchange, Lesson, now
from reflect.serve.lesson_session import LessonSession
from reflect.serve.schema import parse
from reflect.store import Store, doctor, exchanges, lessons, nights, runs
from reflect.tasksets import load_taskset
from reflect.tasksets.task import Task
from reflect.trials.assignment import withhold

DIALECT = load_taskset("dialect")
SEEDS = itertools.count()


class Agent:
    """It applies verbs to lists, and tells what its answers were worth. Nothing in it speaks of
    lessons."""

    def __init__(self, base: str) -> None:
        self.client = openai.OpenAI(base_url=base, api_key="any", max_retries=0)

    def work(self, tasks: list[Task]) -> float:
        """The mean reward of these tasks, several at a time."""
        with ThreadPoolExecutor(8) as pool:
            rewards = list(pool.map(self.one, tasks))
        return sum(rewards) / len(rewards)

    def one(self, task: Task) -> float:
        reply = self.client.chat.completions.create(
            model="pocket", messages=task.messages, max_tokens=48
        )  # type: ignore[arg-type]
        reward = DIALECT.verify(task, reply.choices[0].message.content or "").reward
        self.client.post("/feedback", cast_to=object, body={"id": reply.id, "reward": reward})
        return reward


def tasks(n: int, skip: int = 0) -> list[Task]:
    """Of one verb, each with another list."""
    verb = next(v for v, op in DIALECT.meanings.items() if op == "largest")
    every = [
        task
        for split in ("practice", "holdout")
        for task in DIALECT.tasks(split)
        if task.id.startswith(verb)
    ]
    return every[skip : skip + n]


@pytest.mark.parametrize("front", ["the model itself", "another server"])
def test_an_agent_gets_better_by_its_traffic_and_is_not_changed(
    front: str, pocket: LocalModel, folder: Path
) -> None:
    """40 rewarded exchanges, one run; then more of both, until the lesson is proven. The pocket
    model reviews the traffic of another server too: behind an API it would not know the form.

    Before, the reward is near 0.12; a candidate is shown to half of the requests, so afterwards it
    is near 0.53. The server draws by chance. Over 80 exchanges the gain has a standard deviation of
    0.08, so it is below 0.15 in fewer than one of 1,000 runs; four rounds do not prove such a
    lesson in fewer than one of 1,000 simulated campaigns.
    """
    learn = ["run", "--from-traffic"]
    with ExitStack() as stack:
        if front == "another server":
            upstream = stack.enter_context(serving("upstream.db", pocket))
            base = stack.enter_context(serving("lessons.db", upstream=upstream, trusted=True))
            learn += ["-m", "openai:pocket", "--base-url", upstream, "--reflector", "pocket"]
        else:
            base = stack.enter_context(serving("lessons.db", pocket, trusted=True))
        agent = Agent(base)
        before = agent.work(tasks(40))
        assert run_command(learn) == 0
        after: list[float] = []
        while len(after) < 2 or (len(after) < 4 and not proven()):
            after.append(agent.work(tasks(40, skip=40)))
            assert run_command(learn) == 0
    gained = sum(after[:2]) / 2 - before
    assert before < 0.35 and gained > 0.15, (before, after)
    store = Store("lessons.db")
    with store.read() as s:
        (lesson,) = proven()
        first, second = runs.list_runs(s)[::-1][:2]
        assert (lesson.do, lesson.scope, lesson.trust) == ("use largest", "traffic", "clean")
        assert len(runs.rollouts(s, first.id)) == len(runs.rollouts(s, second.id)) == 40
        assert exchanges.waiting(s, "default") == []
        mine = {row.id for row in runs.rollouts(s, second.id)}
        shown = [one.shown for one in runs.exposures(s, lesson.id) if one.rollout_id in mine]
        assert len(shown) == 40 and 6 < sum(shown) < 34, (
            "withheld from half: the trial that made it active"
        )
    assert doctor.check(store) == []


def proven() -> list[Lesson]:
    with Store("lessons.db").read() as s:
        return lessons.listing(s, status="active")


def test_what_nobody_rewards_is_forgotten_after_a_while(store: Store) -> None:
    one = tasks(1)[0]
    old = {"created": now() - timedelta(days=31)}
    given = [
        ("old", None, old),
        ("rewarded", 1.0, old),
        ("new", None, {}),
        ("of another", None, old | {"profile": "b"}),
    ]
    with store.write() as s:
        exchanges.save(
            s, [answered(one, "sort", reward, name=name, **words) for name, reward, words in given]
        )
        assert (
            exchanges.unrewarded(s, "default", 30) == 1
            and exchanges.unrewarded(s, "default", 32) == 0
        )
        assert exchanges.forget(s, "default", 30) == 1
        assert exchanges.count(s, "default") == 2 and exchanges.count(s, "b") == 1
        with pytest.raises(UnknownName, match="There is no answer old"):
            exchanges.reward(s, "old", 1.0)


# -- what is trusted
# ---------------------------------------------------------------------------------------------------


def answered(task: Task, op: str, reward: float | None, **words: object) -> Exchange:
    """As a server writes down an answer that RuleModel could have given."""
    verb = task.id.split("-")[0]
    text = f"{verb} means {op}. answer: 1"
    common = {
        "name": f"chatcmpl-{task.id}-{op}",
        "taskset": "traffic",
        "model": "rule",
        "model_fingerprint": "rule-1",
    }
    messages = [*task.messages, {"role": "assistant", "content": text}]
    return Exchange(
        asked=task.messages,
        messages=messages,
        reward=reward,
        seed=next(SEEDS),
        measure="m",
        **(common | words),
    )


def test_what_strangers_say_waits_in_quarantine_and_moves_nothing(store: Store) -> None:
    model, settings = RuleModel(), Settings()
    verb = tasks(1)[0].id.split("-")[0]
    with store.write() as s:
        own = lessons.add(
            s, when="the task says nothing of the kind", do="wait", author="model", scope="traffic"
        )

    def rewarded(trust: str) -> list[Exchange]:
        """Whoever saw the lesson failed, whoever did not succeeded."""
        seen = {"lesson_id": own.id, "version": 1, "shown": True, "probability": 0.5}
        return [
            answered(task, op, float(not shown), exposures=[{**seen, "shown": shown}], trust=trust)
            for task in tasks(8)
            for op, shown in [("largest", False), ("sort", True)] * 4
        ]

    with store.write() as s:
        exchanges.save(s, [*rewarded("untrusted"), answered(tasks(1)[0], "first", None)])
    (report,) = learn(model, store, settings)
    assert report.outcomes["quarantined"] == 1 and report.rollouts == 64
    with store.read() as s:
        (waits,) = lessons.listing(s, status="quarantined")
        assert (waits.when, waits.do, waits.trust) == (
            f"the task says {verb}",
            "use largest",
            "untrusted",
        )
        assert lessons.get(s, own.id).status == "candidate", (
            "64 rewards of strangers against it, and it stays"
        )
    with store.write() as s:
        exchanges.save(s, rewarded("clean"))
    learn(model, store, settings)
    with store.read() as s:
        assert lessons.get(s, own.id).status == "retired", (
            "the same from those who are trusted moves it"
        )
        waits = lessons.get(s, waits.id)
        assert (waits.status, waits.trust) == ("candidate", "clean"), (
            "and two of their tasks corroborate the other"
        )
    assert doctor.check(store) == []


def test_a_client_cannot_make_itself_trusted_but_may_say_that_it_is_not(
    tiny: LocalModel, tmp_path: Path
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    for trusted, marked, trust in (
        (False, False, "untrusted"),
        (True, True, "untrusted"),
        (True, False, "clean"),
    ):
        db = tmp_path / f"{trusted}{marked}.db"
        with serving(db, tiny, trusted=trusted) as base:
            name = post(
                base,
                "chat/completions",
                {**body, "reflect": {"untrusted": marked, "trusted": True}},
            ).json()["id"]
            post(base, "feedback", {"id": name, "reward": 0.5})
        with Store(db).read() as s:
            assert [row.trust for row in exchanges.waiting(s, "default")] == [trust]


# -- feedback
# ----------------------------------------------------------------------------------------------------------


def test_feedback_by_id_and_what_is_wrong_with_it(tiny: LocalModel, tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    with serving(tmp_path / "lessons.db", tiny) as base:
        one = post(base, "chat/completions", body).json()["id"]
        two = post(base, "chat/completions", {**body, "n": 2}).json()["id"]
        bad = [
            ({"id": one}, 400),
            ({"id": one, "reward": 1.5}, 400),
            ({"id": one, "reward": True}, 400),
            ({"id": one, "reward": "1"}, 400),
            ({"id": "chatcmpl-none", "reward": 1}, 404),
            ({"id": two, "reward": 1}, 400),
            ({"id": two, "reward": 1, "choice": 7}, 404),
            ({"id": one, "reward": 1, "feedback": "x" * 10_001}, 400),
            ([], 400),
        ]
        for words, status in bad:
            reply = post(base, "feedback", words)
            assert reply.status_code == status and reply.json()["error"]["message"], words
        for words in ({"id": one, "reward": 0}, {"id": one, "reward": 1, "feedback": "good"}):
            assert post(base, "feedback", words).json() == {
                "id": one,
                "object": "feedback",
                "reward": words["reward"],
            }
        assert post(base, "feedback", {"id": two, "reward": 0.5, "choice": 1}).status_code == 200
        store = Store(tmp_path / "lessons.db")
        with store.read() as s:
            rows = exchanges.waiting(s, "default")
            assert [(row.name, row.choice, row.reward, row.feedback) for row in rows] == [
                (one, 0, 1.0, "good"),
                (two, 1, 0.5, ""),
            ]
        learn(tiny, store, Settings())
        late = post(base, "feedback", {"id": one, "reward": 0})
        assert late.status_code == 409 and "has reflected" in late.json()["error"]["message"]


def test_the_newest_of_two_answers_of_one_name_is_meant(store: Store) -> None:
    """Some servers count their answers anew."""
    (task,) = tasks(1)
    with store.write() as s:
        exchanges.save(s, [answered(task, "sort", None, name="chatcmpl-1") for _ in range(2)])
        assert exchanges.reward(s, "chatcmpl-1", 1.0).id == 2
        with pytest.raises(UnknownName):
            exchanges.reward(s, "chatcmpl-2", 1.0)
        s.add(answered(task, "sort", None, name="chatcmpl-1", choice=1))
        s.flush()
        with pytest.raises(UsageError, match="several answers"):
            exchanges.reward(s, "chatcmpl-1", 1.0)


# -- lessons and adapters of a request
# ---------------------------------------------------------------------------------


@contextmanager
def teaching(model: LocalModel, folder: Path, **words: object) -> Iterator[tuple[str, Store]]:
    """A server whose database has one pinned lesson of dialect and one of traffic."""
    store = Store(folder / "lessons.db")
    with store.write() as s:
        for scope in ("dialect", "traffic"):
            lessons.add(
                s,
                when="always",
                do=scope,
                author="human",
                status="active",
                pinned=True,
                scope=scope,
            )
    with serving(
        folder / "lessons.db", model, Settings(db=str(folder / "lessons.db"), trials=False), **words
    ) as base:
        yield base, store


def test_which_lessons_a_request_gets(pocket: LocalModel, folder: Path) -> None:
    with teaching(pocket, folder) as (base, store):

        def shown(headers: dict[str, str] | None = None, **ours: object) -> str:
            body = ask("hello", max_tokens=1) | ({"reflect": ours} if ours else {})
            return post(base, "chat/completions", body, headers=headers or {}).headers[
                "x-reflect-lessons"
            ]

        assert shown() == "2:1"
        assert shown(taskset="dialect") == shown({"x-reflect-taskset": "dialect"}) == "1:1"
        assert shown(lessons=False) == shown({"x-reflect-lessons": "off"}) == ""
        full = post(base, "chat/completions", ask("strawberry " * 980, max_tokens=1))
        assert full.status_code == 200 and full.headers["x-reflect-lessons"] == "", (
            "lessons go before the task does"
        )
        with store.read() as s:
            assert exchanges.count(s, "default") == 4, (
                "who brings lessons along keeps the books alone"
            )


def test_a_conversation_sees_the_same_lessons(store: Store) -> None:
    with store.write() as s:
        lessons.add(
            s,
            when="always",
            do="wait",
            author="human",
            status="active",
            pinned=True,
            scope="traffic",
        )
    desk = LessonSession(
        store, Settings(withhold_active=0.5, withhold_bundle=0.2), count_tokens=len
    )

    def shown(conversation: str = "") -> str:
        body = ask("hello") | ({"reflect": {"conversation": conversation}} if conversation else {})
        return desk.open(parse(body, {})).lessons

    named = {name: {shown(name) for _ in range(2)} for name in "abcdefgh"}
    assert all(len(found) == 1 for found in named.values()) and len(set.union(*named.values())) == 2
    assert {shown() for _ in range(40)} == {"", "1:1"}, (
        "each by itself: 40 are alike in one of 10**8"
    )
    desk.stop()


def test_the_server_follows_the_promotion_pointer(tiny: LocalModel, tmp_path: Path) -> None:
    settings = Settings(db=str(tmp_path / "lessons.db"), trials=False)
    store = Store(settings.db)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "w1 w2"}],
        "max_tokens": 9,
        "temperature": 0,
    }
    names = [f"night-{i}" for i in range(3)]
    for i, name in enumerate(names):
        tiny.new_adapter(name, seed=i)
        for parameter in tiny.adapter_parameters(name):
            parameter.data.normal_(std=0.3)
        registry.publish(tiny, name, settings, {})
        tiny.drop_adapter(name)
    with serving(settings.db, tiny, settings) as base:

        def said(**words: object) -> tuple[str, str]:
            reply = post(base, "chat/completions", {**body, **words})
            return reply.headers["x-reflect-adapter"], reply.json()["choices"][0]["message"][
                "content"
            ]

        found = [said()]
        for name in names:
            with store.write() as s:
                night = nights.start_night(s, key=name, profile="default", config={}, lessons=[])
                nights.finish_night(s, night.id, "rejected")
                row = registry.row(tiny, name, settings, night.id)
                fields = {"name", "path", "manifest", "base_model", "base_fingerprint", "night_id"}
                made = nights.add_adapter(s, **row.model_dump(include=fields))
                nights.promote(s, made.id)
            found.append(said())
        assert [name for name, _ in found] == ["", *names] and len({text for _, text in found}) == 4
        assert said(reflect={"lessons": False}) == found[0], "unchanged: the bare base"
        assert tiny.adapters == names[1:], "the one before stays for those who began with it"
        with store.write() as s:
            nights.rollback(s)
        assert said() == found[2]
        path = str(registry.home(settings) / names[0])
        assert (
            post(base, "load_lora_adapter", {"lora_name": "mine", "lora_path": path}).status_code
            == 200
        )
        assert said(model="mine") == ("mine", found[1][1])
        again = post(base, "load_lora_adapter", {"lora_name": "mine", "lora_path": path})
        nowhere = post(base, "load_lora_adapter", {"lora_name": "other", "lora_path": "/nowhere"})
        assert (again.status_code, nowhere.status_code) == (400, 404)
        assert post(base, "unload_lora_adapter", {"lora_name": "mine"}).status_code == 200
        assert post(base, "unload_lora_adapter", {"lora_name": "mine"}).status_code == 404
        assert post(base, "chat/completions", {**body, "model": "mine"}).status_code == 404


# -- groups
# ------------------------------------------------------------------------------------------------------------


def test_like_tasks_make_a_group() -> None:
    def asked(text: str, i: int) -> Exchange:
        talk = [
            {"role": "system", "content": f"it is {i} o'clock"},
            {"role": "user", "content": text},
        ]
        return Exchange(
            id=i, name="x", taskset="t", asked=talk, messages=talk, model="m", model_fingerprint="f"
        )

    texts = [
        "Apply zubi to the list 3 1 2.",
        "apply zubi to the list 17",
        "Apply fapo to the list 1 2.",
        "How many r are in pear?",
        "How many e are in apple?",
        "Write a poem about the sea",
    ]
    rows = [asked(text, i) for i, text in enumerate(texts)]
    assert form(rows[0].asked) == form(rows[1].asked) == "apply zubi to the list #"
    assert [[row.id for row in group] for group in groups(rows, 8)] == [[0, 1], [2], [3, 4], [5]]
    many = [asked(f"Apply zubi to the list {i}", i) for i in range(20)]
    assert [len(group) for group in groups(many, 8)] == [6, 7, 7]
    same = [Exchange(**(many[0].model_dump() | {"id": i})) for i in range(40)]
    assert [len(group) for group in groups(same, 8)] == [32]


def test_a_run_that_was_interrupted_is_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reflect.day import traffic as day

    with store.write() as s:
        rows = [
            answered(task, op, float(op == "largest"), trust="clean")
            for task in tasks(6)
            for op in ("largest", "sort")
        ]
        exchanges.save(s, rows)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(day, "edit_lessons", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        learn(RuleModel(), store, Settings())
    with store.read() as s:
        assert [run.status for run in runs.list_runs(s)] == ["running"] and lessons.count(s) == 0
    (report,) = learn(RuleModel(), store, Settings())
    assert report.rollouts == 12 and report.outcomes["added"] == 1
    assert learn(RuleModel(), store, Settings()) == []
    assert doctor.check(store) == []


def test_the_command_line_says_what_it_would_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", "--from-traffic", "--dry-run"]) == 0
    assert "Would reflect on 0 rewarded exchanges of 0" in capsys.readouterr().out
    assert run_command(["run"]) == 2 and run_command(["run", "letters", "--from-traffic"]) == 2


def test_withholding_by_a_name_is_as_in_practice() -> None:
    lesson = Lesson(id=1, when="a", do="b", status="candidate")
    drawn = [withhold([lesson], Settings(), 0, f"chatcmpl-{i}", 0)[0] for i in range(400)]
    assert 150 < sum(one.shown for one in drawn) < 250 and {one.probability for one in drawn} == {
        0.5
    }
