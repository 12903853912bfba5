"""Pack the k complete rollouts of one task, with rewards and feedback, into one context.

The common prefix (the task) is printed once, by the template. When the budget does not hold the
whole group, what tools gave back is trimmed before the model's own words; the best, the worst and
the median attempt stay whole longest; and what is cut goes from the middle, before the ends. What
was cut is said in the text and in the record.

A group that overflows the budget many times over is not packed as it is: see
`reflect.day.long_groups`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reflect.rollouts.transcript import Turn

LEAST = 80  # characters of a tool's output that stay in any case


@dataclass(frozen=True)
class Attempt:
    """One rollout as the reflector sees it. `reward` is None for a rollout that broke. `turns` are
    those of a rollout that has several; its `text` is empty."""

    text: str
    reward: float | None
    feedback: str = ""
    turns: tuple[Turn, ...] = ()

    def words(self, keep: float = 1.0, tools: float = 1.0) -> str:
        """Its text, `keep` of it and `tools` of what came back to the model."""
        if not self.turns:
            return _trim(self.text, keep)
        blocks = [turn.text(_short(turn.back, tools)) for turn in self.turns]
        n = max(2, int(len(blocks) * keep))
        if n >= len(blocks):
            return "\n".join(
                blocks if keep == 1.0 else [_trim(block, max(keep, 0.25)) for block in blocks]
            )
        head = (n + 1) // 2
        cut = f"[{len(blocks) - n} turns cut]"
        return "\n".join([*blocks[:head], cut, *blocks[len(blocks) - (n - head) :]])


@dataclass(frozen=True)
class Packed:
    text: str
    tokens: int
    cut: str  # in words; "" when nothing was cut

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def reward_text(reward: float | None) -> str:
    """0, 1, 0.5 or 0.33; "none" for a broken rollout."""
    if reward is None:
        return "none"
    return f"{reward:.2f}".rstrip("0").rstrip(".")


def _block(number: int, attempt: Attempt, text: str) -> str:
    lines = [f"attempt {number}, reward {reward_text(attempt.reward)}:", text.strip() or "(empty)"]
    if attempt.feedback:
        lines.append(f"feedback: {attempt.feedback}")
    return "\n".join(lines)


def _trim(text: str, keep: float) -> str:
    """Keep the first and last words, `keep` of all of them, and say how many went from the
    middle."""
    words = text.split(" ")
    n = max(8, int(len(words) * keep))
    if n >= len(words):
        return text
    head = n // 2
    return " ".join(
        [*words[:head], f"[{len(words) - n} words cut]", *words[len(words) - (n - head) :]]
    )


def _short(text: str, keep: float) -> str:
    """Both ends of what a tool gave back, `keep` of its characters; a short one stays."""
    n = max(LEAST, int(len(text) * keep))
    if n >= len(text):
        return text
    return f"{text[: n // 2]} [{len(text) - n} characters cut] {text[len(text) - (n - n // 2) :]}"


def pack(attempts: Sequence[Attempt], budget: int, count: Callable[[str], int]) -> Packed:
    """Pack a group into at most `budget` tokens as `count` counts them.

    What tools gave back is trimmed first. Then the attempts that are neither best, worst nor median
    are trimmed harder and harder, then dropped; only then are those three trimmed. Where trimming
    words is not enough (a word without end, endless feedback) the middle of the whole text goes.
    """
    order = sorted(
        range(len(attempts)),
        key=lambda i: (attempts[i].reward is None, -(attempts[i].reward or 0.0), i),
    )
    key = {order[0], order[-1], order[len(order) // 2]} if order else set()
    keep = dict.fromkeys(range(len(attempts)), 1.0)
    tools = dict(keep)

    def build() -> Packed:
        kept = [(i, a) for i, a in enumerate(attempts) if keep[i] > 0]
        text = "\n".join(_block(i + 1, a, a.words(keep[i], tools[i])) for i, a in kept)
        dropped = [str(i + 1) for i in keep if keep[i] == 0]
        shorter = [str(i + 1) for i, a in kept if a.turns and a.words(1.0, tools[i]) != a.words()]
        trimmed = [str(i + 1) for i, a in kept if a.words(keep[i]) != a.words()]
        said = []
        if shorter:
            said.append(f"tool output of attempts {', '.join(shorter)}")
        if trimmed:
            said.append(f"the middle of attempts {', '.join(trimmed)}")
        if dropped:
            said.append(f"attempts {', '.join(dropped)}")
        return Packed(text, count(text), "; ".join(said))

    packed = build()
    for members in ([i for i in range(len(attempts)) if i not in key], sorted(key)):
        for share in (0.5, 0.25, 0.1):
            turned = [i for i in members if attempts[i].turns]
            if packed.tokens <= budget or not turned:
                break
            tools |= dict.fromkeys(turned, share)
            packed = build()
    for members in ([i for i in range(len(attempts)) if i not in key], sorted(key)):
        for share in (
            (0.5, 0.25, 0.1, 0.0)
            if members and members[0] not in key
            else (0.5, 0.25, 0.1, 0.03, 0.01)
        ):
            if packed.tokens <= budget:
                return packed
            for i in members:
                keep[i] = share
            packed = build()
    return packed if packed.tokens <= budget else _squeeze(packed, budget, count)


def _squeeze(packed: Packed, budget: int, count: Callable[[str], int]) -> Packed:
    """The last resort: cut characters from the middle, half of what is left at a time, until it
    fits."""
    text, half = packed.text, len(packed.text) // 2
    while half and count(text) > budget:
        half //= 2
        text = f"{packed.text[:half]}\n[cut]\n{packed.text[len(packed.text) - half :]}"
    said = "; ".join(filter(None, [packed.cut, "the middle of what remained"]))
    return Packed(text, count(text), said)
