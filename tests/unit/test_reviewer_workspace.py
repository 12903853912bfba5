"""A reviewer in a workspace: trained, refused by its gate, promoted, used by runs, rolled back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlmodel import select

from reflect.adapters import registry
from reflect.cli import main
from reflect.config import Settings
from reflect.errors import UsageError
from reflect.records import Adapter, Lesson, Reflection, Trial
from reflect.reviewer.evidence import measured_reviews, split
from reflect.reviewer.train import ReviewOptions
from reflect.store import lessons, nights, reviewers
from reflect.types import AdapterStatus, TrialVerdict
from reflect.workspace.workspace import Workspace

SMALL = ReviewOptions(steps=2, batch=2, rank=2, grpo=1)


@pytest.fixture
def ws(folder: Path) -> Workspace:
    return Workspace(Settings(db=str(folder / "lessons.db")))


def publish(
    ws: Workspace, name: str, read: tuple[int, ...] = (), profile: str = "default"
) -> Adapter:
    """A promoted reviewer without training."""
    model = ws.model
    model.new_adapter(name, rank=2)
    about = {"kind": "reviewer", "profile": profile, "lessons_read": list(read), "checks": []}
    registry.publish(model, name, ws.settings, about)
    model.drop_adapter(name)
    row = registry.row(model, name, ws.settings)
    row.gate, row.status = about, AdapterStatus.PROMOTED
    with ws.store.write() as s:
        return nights.add_adapter(s, **row.model_dump(exclude={"id"}))


def test_a_training_that_does_not_help_is_not_promoted_and_not_repeated(ws: Workspace) -> None:
    report = ws.reviewers.train(SMALL, gate_groups=1)
    assert not report.promoted
    assert report.adapter.status == AdapterStatus.REJECTED
    assert "reviews whose lesson helps 0.00 -> 0.00 of 2" in report.checks[0]["text"]
    assert not report.checks[0]["ok"]
    assert ws.context.reviewer == ""
    again = ws.reviewers.train(SMALL, gate_groups=1)
    assert again.adapter.id == report.adapter.id
    assert not (ws.settings.home_path / "reviewer-training").exists() or not any(
        (ws.settings.home_path / "reviewer-training").iterdir()
    )
    assert ws.adapters.verify() == {report.adapter.name: ""}
    with pytest.raises(UsageError, match="for reflections"):
        ws.promote(report.adapter.name)  # it is no adapter for answers


def test_a_run_reflects_by_the_promoted_reviewer_and_answers_by_the_base(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(ws, "reviewer-a")
    report = ws.run("letters", n=2, k=2, seed=0)
    assert report.reviewer == "reviewer-a"
    with ws.store.read() as s:
        rows = list(s.exec(select(Reflection)))
        assert rows
        assert {row.model for row in rows} == {"pocket with adapter reviewer-a"}
    assert ws.model.active is None  # type: ignore[attr-defined]
    db = ["--db", ws.settings.db]
    with pytest.raises(SystemExit):
        main(["run", "letters", "-n", "2", "-k", "2", "--seed", "0", *db])
    assert "reviews by reviewer-a" in capsys.readouterr().err


def test_rollback_returns_to_the_reviewer_before_and_then_to_the_base(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(ws, "reviewer-a")
    publish(ws, "reviewer-b")
    publish(ws, "reviewer-c", profile="other")
    assert ws.context.reviewer == "reviewer-b"
    db = ["--db", ws.settings.db]
    with pytest.raises(SystemExit):
        main(["reviewer", "list", "--json", *db])
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["active"]) for row in listed] == [
        ("reviewer-b", True),
        ("reviewer-a", False),
    ]
    left, now = ws.reviewers.rollback()
    assert (left.name, now and now.name) == ("reviewer-b", "reviewer-a")
    assert ws.context.reviewer == "reviewer-a"
    assert ws.reviewers.rollback()[1] is None
    assert ws.context.reviewer == ""
    with pytest.raises(UsageError, match="nothing to undo"):
        ws.reviewers.rollback()


def test_a_reviewer_that_read_a_revoked_lesson_is_not_used(ws: Workspace) -> None:
    with ws.store.write() as s:
        lesson = lessons.add(
            s, when="counting letters", do="spell the word", scope="letters", author="human"
        )
        lesson_id = lesson.id or 0
    publish(ws, "reviewer-a")
    publish(ws, "reviewer-b", read=(lesson_id,))
    assert ws.context.reviewer == "reviewer-b"
    with ws.store.write() as s:
        assert [row.name for row in nights.revoke(s, lesson_id).marked] == ["reviewer-b"]
    assert ws.context.reviewer == "reviewer-a"
    with pytest.raises(UsageError, match="knows what was revoked"):
        ws.adapters.export("reviewer-b")


def test_another_base_has_no_reviewer(ws: Workspace) -> None:
    row = publish(ws, "reviewer-a")
    with ws.store.read() as s:
        assert reviewers.active(s, "default", row.base_fingerprint)
        assert reviewers.active(s, "default", "another") is None


def test_reviews_are_evidence_by_the_verdicts_of_their_lessons(ws: Workspace) -> None:
    ws.run("letters", n=6, k=4, seed=1)
    with ws.store.write() as s:
        written = {
            edit["lesson"]: (edit["when"], edit["do"])
            for row in s.exec(select(Reflection))
            for edit in row.edits
            if edit.get("outcome") == "added"
        }
        assert written
        for trial in s.exec(select(Trial)):
            s.delete(trial)
        s.flush()
        assert measured_reviews(s, "default") == []  # nothing was tried
        for lesson_id in written:
            lesson = s.get(Lesson, lesson_id)
            version = next(
                row for row in lessons.history(s, lesson_id)
                if (row.when, row.do) == written[lesson_id]
            )  # fmt: skip
            nights.add_trial(
                s,
                Trial(lesson_id=lesson_id, version=version.version, kind="withhold", effect=0.5,
                      low=0.2, high=0.8, n=40, verdict=TrialVerdict.ACCEPT),
            )  # fmt: skip
            assert lesson is not None
        found = measured_reviews(s, "default")
        assert found
        assert all(one.accepted and one.effect == 0.5 for one in found)
        assert {(e["when"], e["do"]) for one in found for e in one.edits} <= set(written.values())
        assert measured_reviews(s, "another") == []
        train, held = split(found * 3)
        assert not {x.group.task.key for x in train} & {x.group.task.key for x in held}
        for lesson_id in written:
            nights.revoke(s, lesson_id)
        assert measured_reviews(s, "default") == []  # a person has revoked them


def test_a_model_behind_an_api_has_no_reviewer(folder: Path) -> None:
    settings = Settings(db=str(folder / "x.db"), model="openai:m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match="no weights here"):
        Workspace(settings).reviewers.train(SMALL, gate_groups=1)
