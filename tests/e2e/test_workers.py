"""Several workers share one run: each rollout and each reflection is made once, whatever happens to
a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_server import Server
from fakes import RuleModel, dialect, killed
from sqlmodel import select
from test_remote_run import rule

import reflect
from reflect.cli import run_command
from reflect.config import Settings
from reflect.day.claims import RunWorker
from reflect.day.practice import practice
from reflect.day.report import Report
from reflect.errors import ModelHalted, UsageError
from reflect.models.base import Completion, Request
from reflect.records import Claim, Reflection, Rollout, Run
from reflect.store import Store, claims, doctor, runs
from reflect.workspace.workspace import Workspace

SEED = 5


def work(where: str, model: RuleModel | None = None, **changes: Any) -> Report:
    """One worker, with a connection of its own."""
    words: dict[str, Any] = {"n": 16, "k": 2, "seed": SEED, "join": True} | changes
    settings = Settings(lease=words.pop("lease", 30.0), **words.pop("settings", {}))
    store, model = Store(where), model or RuleModel()
    try:
        return practice(model, store, dialect.TASKSET, settings, **words)
    finally:
        store.close()


def together(where: str, models: Sequence[RuleModel], **changes: Any) -> list[Report]:
    """A worker for each model, at the same time."""
    with ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(lambda model: work(where, model, **changes), models))


class Meeting(RuleModel):
    """Answers its first call when every worker has made one."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier: threading.Barrier | None = barrier

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        if self.barrier:
            self.barrier.wait(20)
            self.barrier = None
        return super().sample(requests)


class Slow(RuleModel):
    """Needs some seconds for its first call."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        time.sleep(self.seconds)
        self.seconds = 0.0
        return super().sample(requests)


def rows_of(where: str, run_id: int = 1) -> list[tuple[Any, ...]]:
    """The rollouts of a run by key."""
    with Store(where).read() as s:
        rows = runs.rollouts(s, run_id)
    return sorted((r.task_key, r.index, r.seed, str(r.messages), r.reward, r.finish) for r in rows)


def check_complete(where: str, rollouts: int = 32) -> None:
    """One finished run; each of its rollouts once; at most one reflection of a task; no claims."""
    store = Store(where)
    with store.read() as s:
        (run,) = s.exec(select(Run)).all()
        keys = Counter((r.task_key, r.index) for r in s.exec(select(Rollout)))
        reflections = Counter(r.task_key for r in s.exec(select(Reflection)))
        assert run.status == "done" and s.exec(select(Claim)).all() == []
        assert all(not any(e["outcome"] == "waiting" for e in r.edits) for r in s.exec(select(Reflection)))  # fmt: skip
    assert len(keys) == rollouts and set(keys.values()) == {1}
    assert set(reflections.values()) <= {1}
    assert doctor.check(store, deep=True) == []
    store.close()


def test_workers_share_the_tasks_and_each_wave_is_reviewed_once(where: str) -> None:
    barrier = threading.Barrier(2)
    models = [Meeting(barrier) for _ in range(2)]
    reports = together(where, models)
    check_complete(where)
    assert [(r.run_id, r.rollouts) for r in reports] == [(1, 32)] * 2
    assert all(model.prompts for model in models)
    reviews = [p for model in models for p in model.prompts if "You review attempts" in p]
    assert len(reviews) == reports[0].reflections > 0


def test_what_is_seeded_is_the_same_with_one_worker_and_with_several(tmp_path: Path) -> None:
    alone, shared = str(tmp_path / "alone.db"), str(tmp_path / "shared.db")
    work(alone, join=False, learn=False)
    barrier = threading.Barrier(2)
    together(shared, [Meeting(barrier) for _ in range(2)], learn=False)
    check_complete(shared)
    assert rows_of(alone) == rows_of(shared)


def test_one_worker_ends_with_the_rows_of_a_run_without_workers(tmp_path: Path) -> None:
    alone, joined = str(tmp_path / "alone.db"), str(tmp_path / "joined.db")
    first, second = work(alone, join=False), work(joined)
    assert rows_of(alone) == rows_of(joined)
    assert (first.rewards, first.changes) == (second.rewards, second.changes)


# -- workers that end


def child(act: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    return process


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def claimed(where: str) -> list[str]:
    """The workers that have claims."""
    store = Store(where)
    with store.claim() as s:
        names = claims.workers(s, 1)
    store.close()
    return names


def test_the_claims_of_a_killed_worker_are_taken_over(where: str) -> None:
    Store(where).close()
    process = child(lambda: work(where, Slow(600), lease=1))
    wait_until(lambda: claimed(where))
    process.kill()
    process.join()
    work(where, lease=1)
    check_complete(where)


def test_a_worker_that_was_stopped_for_longer_than_its_lease_saves_nothing_twice(
    where: str, tmp_path: Path
) -> None:
    Store(where).close()
    asked = tmp_path / "asked"

    class Asked(Slow):
        def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
            asked.touch()
            return super().sample(requests)

    process = child(lambda: work(where, Asked(0.5), lease=1))
    wait_until(asked.exists)  # in no transaction
    os.kill(process.pid, signal.SIGSTOP)
    work(where, lease=1)
    os.kill(process.pid, signal.SIGCONT)
    process.join(20)
    assert process.exitcode == 0
    check_complete(where)


def test_a_worker_that_is_slower_than_its_lease_keeps_its_claims(sqlite_store: Store) -> None:
    where, slow = sqlite_store.url, Slow(2.2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(work, where, slow, lease=1, learn=False, n=12)
        wait_until(lambda: claimed(where))
        other = RuleModel()
        work(where, other, lease=1, learn=False, n=12)
        first.result()
    check_complete(where, 24)
    assert len(slow.prompts) == 16 and len(other.prompts) == 8


def test_ctrl_c_releases_the_claims(sqlite_store: Store) -> None:
    where = sqlite_store.url
    with pytest.raises(KeyboardInterrupt):
        work(where, killed(RuleModel(), 1), lease=600)
    with Store(where).read() as s:
        left = s.exec(select(Claim)).all()
    assert left and {(x.worker, x.expires) for x in left} == {("", None)}
    work(where)
    check_complete(where)


class Exhausted(RuleModel):
    """Answers some requests, then none."""

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        if len(self.prompts) + len(requests) > 20:
            raise ModelHalted("The server is gone.", "Start it.")
        return super().sample(requests)


def test_a_worker_whose_model_stops_leaves_its_work_to_the_others(sqlite_store: Store) -> None:
    where = sqlite_store.url
    with pytest.raises(ModelHalted, match=r"Run 1 stopped after 16 of 32 rollouts.*gone"):
        work(where, Exhausted(), lease=600)
    assert len(rows_of(where)) == 16 and claimed(where) == []
    work(where)
    check_complete(where)


@pytest.mark.parametrize("how", ["run", "resume"])
def test_an_interrupted_shared_run_goes_on_by_its_claims(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"rule": killed(RuleModel(), 1)}
    monkeypatch.setattr("reflect.models.load_model", lambda name, *_: models[name])
    ws = reflect.open("lessons.db", model="rule")
    with pytest.raises(KeyboardInterrupt):
        ws.run("dialect", n=16, k=2, seed=SEED, join=True)
    models["rule"] = RuleModel()
    ws = reflect.open("lessons.db", model="rule")
    ws.run("dialect", n=16, k=2, seed=SEED) if how == "run" else ws.resume()
    check_complete("lessons.db")


def test_abandoning_a_shared_run_ends_its_workers(sqlite_store: Store) -> None:
    class Abandons(RuleModel):
        def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
            with sqlite_store.write() as s:
                runs.abandon(s, 1)
            return super().sample(requests)

    with pytest.raises(UsageError, match="Run 1 was abandoned"):
        work(sqlite_store.url, Abandons())
    with sqlite_store.read() as s:
        assert runs.get_run(s, 1).status == "abandoned" and s.exec(select(Claim)).all() == []
    work(sqlite_store.url)  # the same command opens it again
    check_complete(sqlite_store.url)


# -- joining

OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "n": ({"n": 17}, "n was 16"),
    "k": ({"k": 3}, "k was 2"),
    "seed": ({"seed": 6}, "seed was 5"),
    "learn": ({"learn": False}, "the setting learn was True"),
    "use_lessons": ({"use_lessons": False}, "the setting use_lessons was True"),
    "temperature": ({"settings": {"temperature": 0.5}}, "the setting temperature was 1.0"),
    "max_tokens": ({"settings": {"max_tokens": 50}}, "the setting max_tokens was 96"),
    "trials": ({"settings": {"trials": False}}, "the setting trials was True"),
    "approval": ({"settings": {"require_approval": True}}, "the setting review was False"),
    "proposals": ({"settings": {"proposals": 2}}, "the setting proposals was None"),
    "reflector": ({"reflector": RuleModel()}, "the setting reflector was None"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with run 1, which workers share and which is not finished."""
    where = str(tmp_path_factory.mktemp("begun") / "lessons.db")
    with pytest.raises(KeyboardInterrupt):
        work(where, killed(RuleModel(), 1))
    return where


@pytest.mark.parametrize("name", OTHER)
def test_a_worker_with_other_settings_is_refused(name: str, begun: str) -> None:
    changes, problem = OTHER[name]
    with pytest.raises(UsageError, match=f"Workers share run 1 of dialect.*{problem}") as e:
        work(begun, **changes)
    assert "reflect runs abandon 1" in e.value.hint and "\n" not in e.value.message
    with Store(begun).read() as s:
        assert len(s.exec(select(Run)).all()) == 1


def test_another_model_is_refused(begun: str) -> None:
    model = RuleModel()
    model.fingerprint = "rule-2"
    with pytest.raises(UsageError, match="its model has changed"):
        work(begun, model)
    model.name = "ruler"
    with pytest.raises(UsageError, match="model was 'rule' when it began"):
        work(begun, model)


def test_without_a_seed_a_worker_joins_the_run_and_after_it_begins_another(
    sqlite_store: Store,
) -> None:
    where = sqlite_store.url
    with pytest.raises(KeyboardInterrupt):
        work(where, killed(RuleModel(), 1))
    assert work(where, seed=None).run_id == 1
    assert work(where).run_id == 1  # finished: only reported
    with Store(where).read() as s:
        assert len(s.exec(select(Run)).all()) == 1
    assert work(where, seed=None, n=1, k=1).run_id == 2


def test_a_run_that_was_begun_alone_can_be_shared_later(sqlite_store: Store) -> None:
    where = sqlite_store.url
    with pytest.raises(KeyboardInterrupt):
        work(where, killed(RuleModel(), 1), join=False)
    saved = len(rows_of(where))
    model = RuleModel()
    work(where, model)
    check_complete(where)
    assert saved == 16 and sum("You review" not in p for p in model.prompts) == 16


def test_the_budget_counts_what_all_workers_spend(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLECT_API_KEY", "sk-sentinel-0123456789")
    with Server(default=rule, models={"m": {"max_model_len": 8000}}) as server:

        def one(_: int) -> Report:
            settings: dict[str, Any] = {"timeout": 5.0, "prices": "m 1 1"}
            ws: Workspace = reflect.open("a.db", model="openai:m", base_url=server.url, **settings)
            try:
                return ws.run("dialect", n=16, k=2, seed=SEED, join=True)
            finally:
                ws.store.close()

        reflect.open("a.db").store.close()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, range(2)))
        spent = one(0).spent
        assert spent["requests"] == len(server.asked)
    with Store("a.db").read() as s:
        rows = s.exec(select(Rollout)).all()
    assert spent["tokens_out"] >= sum(row.completion_tokens for row in rows)
    assert spent["cost"] == pytest.approx((spent["tokens_in"] + spent["tokens_out"]) / 1e6, abs=2e-6)  # fmt: skip


def test_join_is_for_tasksets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "--from-traffic", "--join"]) == 2
    assert "--join shares the run of a taskset" in capsys.readouterr().err


# -- claims


def test_many_workers_claim_each_piece_of_work_once(where: str) -> None:
    store = Store(where)
    with pytest.raises(KeyboardInterrupt):
        work(where, killed(RuleModel(), 0), n=80, k=1)
    taken: list[tuple[int, str]] = []

    def one(number: int) -> None:
        worker = RunWorker(store, 1, 30.0, 8)
        for wave, keys in worker.work():
            taken.extend((wave, key) for key in keys or [""])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert len(taken) == len(set(taken)) == 90
    for wave in range(10):  # the reflections of a wave come after its tasks
        order = [key for number, key in taken if number == wave]
        assert order[-1] == "" and "" not in order[:-1]
