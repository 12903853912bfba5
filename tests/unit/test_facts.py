"""The program decides by enums, columns and types of errors: other words in any message or reason
change nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import select
from test_night_sleep import SMALL, statuses, teach
from test_store import version_5
from test_trial import HERE, lesson_of, practised
from test_trust import SAYS, group

from reflect.config import Settings
from reflect.errors import AdapterError, ContextTooLong, ModelError, ReflectError, UnknownName
from reflect.export import lines
from reflect.gate.checks import Check
from reflect.gate.exam import judge
from reflect.lessons import outcome
from reflect.lessons.edit_format import Edit
from reflect.models.local import LocalModel
from reflect.night.sleep import sleep
from reflect.records import LessonVersion, Rollout, Run
from reflect.serve.local_chat import api_error
from reflect.store import Store, database, legacy, migrations, nights, runs, trials
from reflect.store import lessons as db
from reflect.tasksets.base import Taskset
from reflect.training import deadline
from reflect.training.context import NightContext
from reflect.training.guards import OwnTasksets
from reflect.trials.lesson_trial import LessonTrials
from reflect.types import CheckKind, QuarantineReason, RolloutErrorKind, StopReason

OTHER = "Ein ganz anderer Satz"


@pytest.fixture
def scrambled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error says something else, and so does every reason that is stored."""
    begin, record = ReflectError.__init__, db._record

    def other_words(self: ReflectError, message: str, hint: str = "") -> None:
        begin(self, OTHER, OTHER)

    def other_reason(s: Any, lesson: Any, parent: Any, source: db.Source) -> None:
        reason = f"{OTHER} {len(source.reason)}" if source.reason else ""
        record(s, lesson, parent, source._replace(reason=reason))

    monkeypatch.setattr(ReflectError, "__init__", other_words)
    monkeypatch.setattr(db, "_record", other_reason)
    monkeypatch.setattr(outcome, "OF_NO_USE", dict.fromkeys(outcome.OF_NO_USE, (OTHER, OTHER)))
    monkeypatch.setattr(outcome, "WAITS", OTHER)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextTooLong, 400, "context_length_exceeded"),
        (ModelError, 500, "internal_error"),
        (UnknownName, 404, "model_not_found"),
        (AdapterError, 400, "adapter_error"),
    ],
)
def test_the_http_status_does_not_depend_on_the_words(
    scrambled: None, error: type[ReflectError], status: int, code: str
) -> None:
    reply = api_error(error("The prompt has 9 tokens, the model m reads 8 with its answer."))
    assert (reply.status, reply.body["error"]["code"]) == (status, code)


def test_two_clean_tasks_release_a_lesson_whatever_its_reason_says(
    scrambled: None, store: Store
) -> None:
    edit = Edit("add", SAYS, "use reverse")
    named = Edit("add", f"{SAYS} here", "look at www.example.com")
    with store.write() as s:
        first, second = group(s, edit, 3, "untrusted"), group(s, named, 4, "untrusted")
        rows = {row.lesson_id: row for row in s.exec(select(LessonVersion))}
        assert rows[first.lesson_id].quarantine == QuarantineReason.OUTSIDE
        assert group(s, edit, 6).outcome == "known"
        released = group(s, edit, 7)
        assert (released.outcome, db.get(s, first.lesson_id).status) == ("added", "candidate")
        assert db.history(s, first.lesson_id)[-1].quarantine is None
        if second.lesson_id:  # a text that names an address waits for a person
            assert rows[second.lesson_id].quarantine == QuarantineReason.TEXT
            assert [group(s, named, number).outcome for number in (8, 9)] == ["known", "known"]


def test_what_no_judge_could_grade_is_no_evidence_whatever_the_error_says(store: Store) -> None:
    lesson = lesson_of(store)
    practised(store, lesson.id, 0.0, tasks=1)
    for kind, counted in ((RolloutErrorKind.JUDGE, 0), (RolloutErrorKind.MODEL, 8), (None, 8)):
        with store.write() as s:
            for row in s.exec(select(Rollout)):
                row.reward, row.error, row.error_kind = None, OTHER, kind
        with store.read() as s:
            assert len(trials.observations(s, lesson.id, 1, "rule-1", None)) == counted
            assert LessonTrials(HERE).update(s, db.get(s, lesson.id))[1].n == counted


def test_a_taskset_that_does_not_load_is_left_out_whatever_its_line_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, other = Taskset(), Taskset()
    broken.name, broken.about, broken.load_error = "a", OTHER, ReflectError("x")
    other.name, other.about, asked = "b", "broken: in name only", []
    monkeypatch.setattr(Taskset, "tasks", lambda self, *words: asked.append(self.name) or [])
    guards = OwnTasksets()
    monkeypatch.setattr(guards, "tasksets", lambda ctx, items: [broken, other])

    ctx = NightContext(None, None, None, None, [])  # type: ignore[arg-type]
    assert guards.outside(ctx, 4) == [] and asked == ["b"]


def test_a_pause_names_the_stage_and_not_the_progress_text() -> None:
    tell = deadline.with_deadline(None, time.monotonic() - 1)
    assert tell is not None
    with pytest.raises(deadline.Paused) as raised:
        tell(0, 1, OTHER)
    assert (raised.value.reason, raised.value.stage) == (StopReason.DEADLINE, None)


@pytest.mark.parametrize(("harm_above", "ok"), [(0.9, True), (0.0, False)])
def test_the_gate_decides_by_kinds_whatever_its_lines_say(harm_above: float, ok: bool) -> None:
    def examine(scale: float) -> dict[str, Any]:
        harm = Check(OTHER, scale <= harm_above, scale, 0.0, OTHER)
        gain = Check(OTHER, scale >= 0.5, scale, 0.0, OTHER, CheckKind.GAIN)
        return {"ok": harm.ok and gain.ok, "reasons": [OTHER], "checks": [vars(harm), vars(gain)]}

    assert judge(examine)["ok"] is ok


@pytest.mark.slow  # two nights of half a minute
@pytest.mark.parametrize(("wrong", "status"), [(False, "promoted"), (True, "nothing")])
def test_a_night_decides_the_same_whatever_errors_reasons_and_checks_say(
    scrambled: None,
    monkeypatch: pytest.MonkeyPatch,
    pocket: LocalModel,
    tmp_path: Path,
    wrong: bool,
    status: str,
) -> None:
    begin = Check.__init__

    def other_text(
        self: Check, name: str, ok: bool, value: float, limit: float, text: str, *kind: Any
    ) -> None:
        begin(self, name, ok, value, limit, OTHER, *kind)

    monkeypatch.setattr(Check, "__init__", other_text)
    settings = Settings(db=str(tmp_path / "lessons.db"))
    store = Store(settings.db)
    ids = teach(store, wrong=wrong)
    report = sleep(pocket, store, settings, **SMALL)
    assert report.status == status
    assert set(statuses(store)) == ({"candidate"} if wrong else {"distilled"})
    if not wrong:
        with store.write() as s:
            assert nights.rollback(s).now is None
            assert {t.kind for t in nights.trials(s, ids[0])} == {"preflight", "probe"}
        assert set(statuses(store)) == {"candidate"}


# -- databases and files of before
# -------------------------------------------------------------------------------------


OUTSIDE = "it was learned from attempts that read bytes from outside"
VERSIONS = (  # author, status, sentence -> quarantine, closing
    ("model", "quarantined", OUTSIDE, (QuarantineReason.OUTSIDE, False)),
    ("human", "quarantined", OUTSIDE, (QuarantineReason.PERSON, False)),
    ("human", "candidate", OUTSIDE, (None, False)),
    ("night", "distilled", "in the weights of one", (None, False)),
    ("rollback", "active", "exported without the weights that held it", (None, True)),
)


def test_a_database_of_before_gets_its_facts_from_its_sentences(where: str) -> None:
    """Revision 0005 with the old sentences; then the newest."""
    heard, spent = (
        {"1:1": {"last": 3}},
        {"requests": 2, "tokens_in": 1, "tokens_out": 1, "cost": 0.0},
    )
    new = Store(where)
    with new.write() as s:
        s.connection().execute(text("SELECT 1"))
    new.close()
    older = version_5(where)
    with older.begin() as c:
        for number, config in enumerate(
            ({"heard": heard, "learn": True}, {"spent": spent}, {"from_traffic": True}), 1
        ):
            words = {
                "key": f"k{number}",
                "seed": number,
                "config": json.dumps(config),
                "bundle": "{}",
            }
            c.execute(
                text(
                    "INSERT INTO run (key, taskset, profile, n, k, seed, model, model_fingerprint, config, measure,"
                    " bundle, status, started) VALUES (:key, 's', 'default', 1, 1, :seed, 'm', 'f', :config, '',"
                    " :bundle, 'done', '2026-01-01 00:00:00+00:00')"
                ),
                words,
            )
        c.execute(text("INSERT INTO task VALUES ('t', 's', 't', 'practice', '{}')"))
        for index, error in enumerate(("judge: no number", "model: gone", "gone", None)):
            c.execute(
                text(
                    'INSERT INTO rollout (run_id, task_key, "index", messages, feedback, parts, prompt_tokens,'
                    " completion_tokens, finish, seed, model, error, trust, bundle_shown, bundle_probability, created)"
                    " VALUES (1, 't', :i, '[]', '', '{}', 0, 0, 'stop', 0, 'm', :error, 'clean', true, 1.0,"
                    " '2026-01-01 00:00:00+00:00')"
                ),
                {"i": index, "error": error},
            )
        same = {"tags": "[]", "trust": "clean", "at": "2026-01-01 00:00:00+00:00"}
        c.execute(
            text(
                'INSERT INTO lesson (profile, version, "when", "do", scope, tags, status, pinned, trust, tokens,'
                " created, updated) VALUES ('default', 5, 'a', 'b', '', :tags, 'active', false, :trust, 0, :at, :at)"
            ),
            same,
        )
        for number, (author, status, reason, *_) in enumerate(VERSIONS, 1):
            c.execute(
                text(
                    'INSERT INTO lesson_version (lesson_id, version, author, reason, "when", "do", scope, tags, status,'
                    " pinned, trust, tokens, created) VALUES (1, :number, :author, :reason, 'a', 'b', '', :tags,"
                    " :status, false, :trust, 0, :at)"
                ),
                same | {"number": number, "author": author, "status": status, "reason": reason},
            )
    older.dispose()
    with Store(where).read() as s:
        kinds = [row.error_kind for row in s.exec(select(Rollout).order_by("id"))]
        assert kinds == [RolloutErrorKind.JUDGE, RolloutErrorKind.MODEL, None, None]
        versions = [(row.quarantine, row.closing) for row in db.history(s, 1)]
        assert versions == [facts for *_, facts in VERSIONS]
        first, second, third = s.exec(select(Run).order_by("id"))
        assert (first.checkpoints, first.config, first.from_traffic) == (
            heard,
            {"learn": True},
            False,
        )
        assert (second.spent, second.config, second.checkpoints) == (spent, {}, None)
        assert third.from_traffic and third.config == {}
        assert [run.id for run in trials.holders(s, {"profile": "default"})] == [1]
        assert [run.key for run in runs.list_runs(s)] == ["k3", "k2", "k1"], "keys do not change"


def test_the_sentences_of_before_are_read_as_they_were_written() -> None:
    assert legacy.error_kind("judge: its reply was cut off") == RolloutErrorKind.JUDGE
    assert (
        legacy.error_kind("model: gone") == RolloutErrorKind.MODEL
        and legacy.error_kind("gone") is None
    )
    outside = "it was learned from attempts that read bytes from outside"
    assert legacy.quarantine("model", "quarantined", outside) == QuarantineReason.OUTSIDE
    assert (
        legacy.quarantine("model", "quarantined", f"it names a key; {outside}")
        == QuarantineReason.TEXT
    )
    assert legacy.quarantine("human", "quarantined", outside) == QuarantineReason.PERSON
    assert (
        legacy.quarantine("human", "quarantined", "imported from a: it names a key")
        == QuarantineReason.IMPORTED
    )
    assert legacy.quarantine("model", "candidate", outside) is None
    assert (
        migrations.upgrade and database.REVISIONS[-1] == "0009" and lines.AS_TEXT == legacy.AS_TEXT
    )
