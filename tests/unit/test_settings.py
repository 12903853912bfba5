"""Settings: one declaration per field gives the type, the bounds, the description, reflect.toml and
the docs page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from reflect import config
from reflect.cli import settings_text
from reflect.config import Settings
from reflect.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_has_a_description_and_a_default_within_its_bounds() -> None:
    for setting in fields(Settings):
        assert setting.metadata["description"], setting.name
    assert (
        config.load(**{setting.name: setting.default for setting in fields(Settings)}) == Settings()
    )


def test_the_docs_page_is_current() -> None:
    assert PAGE.read_text() == settings_text.page(), (
        "python -m reflect.cli.settings_text > docs/settings.md"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", float("nan"), "not a finite number"),
        ("temperature", "inf", "not a finite number"),
        ("temperature", -0.1, "too small"),
        ("max_tokens", 0, "too small"),
        ("lesson_budget", -1, "too small"),
        ("verify_seconds", 0.0, "too small"),
        ("verify_seconds", float("inf"), "not a finite number"),
        ("threads", -1, "too small"),
        ("budget_cost", float("nan"), "not a finite number"),
        ("k", 0, "too small"),
        ("n", 2.5, "not int"),
        ("k", True, "not int"),
        ("k", float("inf"), "not int"),
        ("withhold_active", 1.0, "too large"),
        ("model", ["pocket"], "not str"),
        ("trials", 2, "not bool"),
        ("dtype", "float8", "not known"),
    ],
)
def test_an_invalid_value_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"flags: {name} = .* is {message}"):
        config.load(**{name: value})


def test_an_old_name_is_read_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reflect.toml"
    file.write_text("review = true\n")
    assert config.load(file).require_approval
    assert "'review' is now called 'require_approval'" in capsys.readouterr().err
    monkeypatch.setenv("REFLECT_REVIEW", "no")
    assert not config.load(file).require_approval


def test_a_run_stores_a_renamed_setting_by_its_first_name() -> None:
    settings = Settings(require_approval=True, lesson_limit=3)
    config = settings.stored(["require_approval", "lesson_limit"])
    assert config == {"review": True, "lesson_limit": 3}, (
        "part of the key of a run: another name restarts it"
    )
    assert Settings().restored(config | {"learn": True}, model="other") == Settings(
        require_approval=True, lesson_limit=3, model="other"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature = nan", "reflect.toml: temperature = nan is not a finite number. Allowed: number, at least 0, at most 100."),
        ("temperature = -1", "temperature = -1 is too small. Allowed: number, at least 0, at most 100."),
        ("threads = -4", "threads = -4 is too small. Allowed: integer, at least 0, at most 1024."),
        ("k = inf", "k = inf is not int. Allowed: integer, at least 1, at most 10000."),
        ("model = 5", "model = 5 is not str. Allowed: text."),
        ('trials = "maybe"', "trials = 'maybe' is not bool. Allowed: true or false."),
        (f"k = {'9' * 5001}", "reflect.toml is not TOML: Exceeds the limit"),
        (f"k = {'[' * 5001}", "reflect.toml is not TOML: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_a_refusal_says_file_key_value_and_what_is_allowed(
    folder: Path, text: str, message: str
) -> None:
    (folder / "reflect.toml").write_text(f"{text}\n")
    with pytest.raises(UsageError) as refusal:
        config.load()
    assert message in str(refusal.value)
