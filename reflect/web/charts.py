"""Charts as inline SVG. Only numbers enter the markup; the style sheet has the colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.records import Trial
    from reflect.trials.history import Look

BAR, HEIGHT = 150, 18  # pixels of an effect bar
WIDE, TALL, MARGIN = 640, 220, 34  # pixels of the interval over time


def effect_text(effect: float, low: float, high: float) -> str:
    """`+0.21 [+0.05, +0.40]`."""
    return f"{effect:+.2f} [{low:+.2f}, {high:+.2f}]"


def _tone(low: float, high: float) -> str:
    if low > 0:
        return "good"
    return "bad" if high < 0 else "open"


def effect_bar(trial: Trial | None) -> Markup:
    """The effect and its interval on a line from -1 to 1 with the zero in the middle; a text where
    nothing was measured."""
    if trial is None:
        return Markup('<span class="quiet">not measured</span>')
    return interval_bar(trial.effect, trial.low, trial.high)


def interval_bar(effect: float, low: float, high: float) -> Markup:
    """A bar for an effect in [-1, 1] and its interval."""

    def x(value: float) -> float:
        return round((min(max(value, -1.0), 1.0) + 1) / 2 * BAR, 1)

    width = max(x(high) - x(low), 1.0)
    return Markup(
        '<svg class="bar {tone}" role="img" aria-label="effect {text}" width="{w}" height="{h}" '
        'viewBox="0 0 {w} {h}"><line class="axis" x1="0" x2="{w}" y1="9" y2="9"/>'
        '<rect class="span" x="{low}" y="5" width="{width}" height="8" rx="2"/>'
        '<line class="zero" x1="{zero}" x2="{zero}" y1="1" y2="17"/>'
        '<circle class="dot" cx="{dot}" cy="9" r="3.5"/></svg>'
    ).format(
        tone=_tone(low, high),
        text=effect_text(effect, low, high),
        w=BAR,
        h=HEIGHT,
        low=x(low),
        width=round(width, 1),
        zero=x(0.0),
        dot=x(effect),
    )


def interval_over_time(looks: Sequence[Look]) -> Markup:
    """The effect and its interval after each number of rollouts, on axes from -1 to 1."""
    if not looks:
        return Markup('<p class="quiet">No rollout has tried it yet.</p>')
    last = max(point.n for point in looks)
    inner_w, inner_h = WIDE - MARGIN - 10, TALL - 40

    def x(n: int) -> float:
        return round(MARGIN + inner_w * n / last, 1)

    def y(value: float) -> float:
        return round(10 + inner_h * (1 - min(max(value, -1.0), 1.0)) / 2, 1)

    upper = [f"{x(p.n)},{y(p.high)}" for p in looks]
    lower = [f"{x(p.n)},{y(p.low)}" for p in reversed(looks)]
    line = " ".join(f"{x(p.n)},{y(p.effect)}" for p in looks)
    ticks = Markup("").join(
        Markup('<text class="tick" x="{x}" y="{y}" text-anchor="end">{label}</text>').format(
            x=MARGIN - 6, y=y(value) + 4, label=f"{value:+.1f}"
        )
        for value in (1.0, 0.5, 0.0, -0.5, -1.0)
    )
    end = looks[-1]
    return Markup(
        '<svg class="chart {tone}" role="img" viewBox="0 0 {w} {h}" aria-label="effect after {n} '
        'rollouts: {text}">{ticks}<polygon class="span" points="{area}"/>'
        '<line class="zero" x1="{left}" x2="{right}" y1="{zero}" y2="{zero}"/>'
        '<polyline class="path" points="{line}"/>'
        '<text class="tick" x="{right}" y="{bottom}" text-anchor="end">{n} rollouts</text></svg>'
    ).format(
        tone=_tone(end.low, end.high),
        w=WIDE,
        h=TALL,
        n=end.n,
        text=effect_text(end.effect, end.low, end.high),
        ticks=ticks,
        area=" ".join([*upper, *lower]),
        left=MARGIN,
        right=WIDE - 10,
        zero=y(0.0),
        line=line,
        bottom=TALL - 8,
    )
