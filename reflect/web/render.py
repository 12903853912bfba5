"""Templates: autoescaped Jinja, with the filters that the pages share."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from reflect.web import charts

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
LONGEST = 20_000  # characters of one text on a page
SIGNS = {"active": "+", "candidate": "+", "distilled": "+", "retired": "-", "quarantined": "?"}


@cache
def environment() -> Environment:
    """The templates of this package; every value is escaped."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=ChainableUndefined,  # stored JSON may miss a key
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"clip": clip, "utc": utc, "reward": reward, "path": path}
    env.globals |= {
        "effect_bar": charts.effect_bar,
        "interval_bar": charts.interval_bar,
        "effect_text": charts.effect_text,
        "SIGNS": SIGNS,
    }
    return env


def render(template: str, values: Mapping[str, object]) -> str:
    """The page; `values` are the variables of the template."""
    return environment().get_template(template).render(values)


def clip(value: object, longest: int = LONGEST) -> str:
    """The text, cut to `longest` characters with a note of how many are missing."""
    text = str(value)
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def utc(value: datetime | None) -> str:
    """`2026-11-28 09:15`, in UTC; "-" if it is None."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}" if value else "-"


def reward(value: object) -> str:
    """Two digits, "-" if it is no number."""
    return f"{value:.2f}" if isinstance(value, int | float) else "-"


def path(value: object) -> str:
    """The text as one segment of a URL."""
    return quote(str(value), safe="")
