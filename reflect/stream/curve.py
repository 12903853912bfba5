"""The exams of a stream as an SVG picture: one line for each taskset, from the base on."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect.stream.protocols import StreamReport

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 44, 190, 34, 54  # pixels
COLOURS = ("#1b6ca8", "#c2571a", "#2f7d3b", "#8a3ffc", "#b3261e", "#5f6b76")  # on white


def draw(report: StreamReport) -> str:
    """The SVG text. x: the base, then the stages; y: holdout reward from 0 to 1. A dot marks a
    stage that practised the taskset."""
    stages = report.stages
    step = (WIDTH - LEFT - RIGHT) / max(1, len(stages))

    def x(stage: int) -> float:
        return round(LEFT + step * stage, 1)

    def y(reward: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - reward), 1)

    title = f"{report.protocol} stream, seed {report.options.seed}: holdout reward"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for value in (0.0, 0.5, 1.0):
        level, edge = y(value), WIDTH - RIGHT
        parts += [
            f'<line x1="{LEFT}" x2="{edge}" y1="{level}" y2="{level}" stroke="#d5d9de"/>',
            f'<text x="{LEFT - 8}" y="{level + 4}" text-anchor="end">{value:.1f}</text>',
        ]
    labels = ["base", *(str(number) for number in range(1, len(stages) + 1))]
    parts += [
        f'<text x="{x(i)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>'
        for i, label in enumerate(labels)
    ]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">stage</text>')
    for i, name in enumerate(report.tasksets):
        colour = COLOURS[i % len(COLOURS)]
        values = [report.base[i].reward, *(stage.exam[i].reward for stage in stages)]
        path = " ".join(f"{x(at)},{y(value)}" for at, value in enumerate(values))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(at)}" cy="{y(values[at])}" r="4" fill="{colour}"/>'
            for at, stage in enumerate(stages, 1)
            if i in stage.practised
        ]
        at, end = TOP + 18 * i + 8, WIDTH - RIGHT + 16
        parts.append(f'<text x="{end}" y="{at}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
