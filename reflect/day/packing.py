"""Pack the k complete rollouts of one task, with rewards and feedback, into one context.

The template prints the common prefix (the task) once. If the budget does not hold the whole group,
tool output is trimmed before the model's own words; the best, the worst and the median attempt stay
whole longest; and cuts are made in the middle, before the ends. The text and the record say what
was cut. No line of an attempt or of its feedback can pass for a heading: see `quote` and `inert` in
`reflect.prompts`.

A group that is several times longer than the budget is not packed as it is: see
`reflect.day.long_groups`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.prompts import inert, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.rollouts.transcript import Turn

LEAST = 80  # characters of one tool output that are always kept
TOOL_SHARES = (0.5, 0.25, 0.1)  # of tool output, tried in order
OTHER_SHARES = (0.5, 0.25, 0.1, 0.0)  # of an attempt that is not best, worst or median
KEY_SHARES = (0.5, 0.25, 0.1, 0.03, 0.01)  # of the best, the worst and the median attempt


@dataclass(frozen=True)
class Attempt:
    """One rollout as the reflector sees it: its text, or its turns if it has several.

    `reward` is None for a rollout that failed.
    """

    text: str
    reward: float | None
    feedback: str = ""
    turns: tuple[Turn, ...] = ()

    def words(self, keep: float = 1.0, tools: float = 1.0) -> str:
        """The share `keep` of its text, with the share `tools` of the tool output."""
        if not self.turns:
            return _trim(self._quoted[0], keep)
        blocks = [turn.text(lambda text: _shorten(text, tools)) for turn in self.turns]
        n = max(2, int(len(blocks) * keep))
        if n >= len(blocks):
            share = max(keep, 0.25)
            return "\n".join(blocks if keep == 1.0 else [_trim(b, share) for b in blocks])
        head = (n + 1) // 2
        cut = f"[{len(blocks) - n} turns cut]"
        return "\n".join([*blocks[:head], cut, *blocks[len(blocks) - (n - head) :]])

    @property
    def quoted_feedback(self) -> str:
        """The feedback, so that no line of it looks like a heading."""
        return self._quoted[1]

    @functools.cached_property  # a long group is packed many times
    def _quoted(self) -> tuple[str, str]:
        return quote(inert(self.text.strip()), own_line=True), quote(inert(self.feedback))


@dataclass(frozen=True)
class Packed:
    """A packed group. `cut` says in words what was cut; "" if nothing was."""

    text: str
    tokens: int
    cut: str

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def reward_text(reward: float | None) -> str:
    """0, 1, 0.5 or 0.33; "none" for a failed rollout."""
    return "none" if reward is None else f"{reward:.2f}".rstrip("0").rstrip(".")


def _block(number: int, attempt: Attempt, text: str) -> str:
    lines = [f"attempt {number}, reward {reward_text(attempt.reward)}:", text or "(empty)"]
    if attempt.feedback:
        lines.append(f"feedback: {attempt.quoted_feedback}")
    return "\n".join(lines)


def _trim(text: str, keep: float) -> str:
    """The first and last words, a share `keep` of all, and how many are missing between them."""
    words = text.split(" ")
    n = max(8, int(len(words) * keep))
    if n >= len(words):
        return text
    head, cut = n // 2, f"[{len(words) - n} words cut]"
    return " ".join([*words[:head], cut, *words[len(words) - (n - head) :]])


def _shorten(text: str, keep: float) -> str:
    """Both ends of a tool output, a share `keep` of its characters; a short one stays."""
    n = max(LEAST, int(len(text) * keep))
    if n >= len(text):
        return text
    return f"{text[: n // 2]} [{len(text) - n} characters cut] {text[len(text) - (n - n // 2) :]}"


def pack(attempts: Sequence[Attempt], budget: int, count: Callable[[str], int]) -> Packed:
    """Pack a group into at most `budget` tokens, as `count` counts them.

    Tool output is trimmed first. Then the attempts that are neither best, worst nor median are
    trimmed harder and harder, then dropped; only then are those three trimmed. If that is not
    enough (a word without end, endless feedback) the middle of the whole text is cut.
    """
    numbers = range(len(attempts))
    order = sorted(
        numbers, key=lambda i: (attempts[i].reward is None, -(attempts[i].reward or 0.0), i)
    )
    key = sorted({order[0], order[-1], order[len(order) // 2]}) if order else []
    others = [i for i in numbers if i not in key]
    keep = dict.fromkeys(numbers, 1.0)
    tools = dict(keep)

    def build() -> Packed:
        kept = [(i, a) for i, a in enumerate(attempts) if keep[i] > 0]
        text = "\n".join(_block(i + 1, a, a.words(keep[i], tools[i])) for i, a in kept)
        shorter = [i for i, a in kept if a.turns and a.words(1.0, tools[i]) != a.words()]
        trimmed = [i for i, a in kept if a.words(keep[i]) != a.words()]
        cuts = {
            "tool output of attempts": shorter,
            "the middle of attempts": trimmed,
            "attempts": [i for i in numbers if keep[i] == 0],
        }
        cut = [f"{what} {', '.join(str(i + 1) for i in ids)}" for what, ids in cuts.items() if ids]
        return Packed(text, count(text), "; ".join(cut))

    packed = build()
    for members in (others, key):
        with_turns = [i for i in members if attempts[i].turns]
        for share in TOOL_SHARES if with_turns else ():
            if packed.tokens > budget:
                tools |= dict.fromkeys(with_turns, share)
                packed = build()
    for members, shares in ((others, OTHER_SHARES), (key, KEY_SHARES)):
        for share in shares:
            if packed.tokens <= budget:
                return packed
            keep |= dict.fromkeys(members, share)
            packed = build()
    return packed if packed.tokens <= budget else _squeeze(packed, budget, count)


def _squeeze(packed: Packed, budget: int, count: Callable[[str], int]) -> Packed:
    """The last resort: cut from the middle of the text, half of the rest at a time, until it
    fits."""
    text, half = packed.text, len(packed.text) // 2
    while half and count(text) > budget:
        half //= 2
        text = f"{packed.text[:half]}\n[cut] {packed.text[len(packed.text) - half :]}"
    cut = "; ".join(filter(None, [packed.cut, "the middle of what remained"]))
    return Packed(text, count(text), cut)
