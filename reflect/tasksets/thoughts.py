"""Separate what a model thought from what it answered, for local models and for models behind an
API.

A thought is at the head of the text: `<think>...</think>` or one of the other spellings. One that
never ends leaves an empty answer. Where a chat template opens the thought, the text has its end
only.
"""

from __future__ import annotations

import re

TAGS = "think thinking thought thoughts reasoning seed:think".split()
THOUGHTS = (
    *((f"<{tag}>", f"</{tag}>") for tag in TAGS),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<unused94>", "<unused95>"),
)
# gpt-oss: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
CHANNELS = ("<|channel|>", "<|start|>assistant")
FINAL = "<|channel|>final<|message|>"
MOST = 16  # thoughts of one answer
ENDS = ("<|end|>", "<|return|>", "<|end_of_solution|>", "<|END_RESPONSE|>")
BEGINS = ("<|begin_of_solution|>", "<|START_RESPONSE|>")


def split_thought(text: str, opened: str = "") -> tuple[str, str]:
    """(thought, answer) of what a model wrote. `opened`: the mark with which the chat template
    itself began the thought."""
    thoughts: list[str] = []
    rest = opened + text if opened and not _opening(text) else text
    for _ in range(MOST):
        head = rest.lstrip()
        if head.startswith(CHANNELS):
            thought, closed, rest = head.rpartition(FINAL)
            thoughts.append(thought if closed else head)
            rest = rest if closed else ""
        elif pair := _opening(head):
            begin, end = pair
            thought, _, rest = _cut(head[len(begin) :], end)
            thoughts.append(thought)
        elif orphan := next((end for begin, end in THOUGHTS if _orphan(rest, begin, end)), ""):
            thought, _, rest = _cut(rest, orphan)
            thoughts.append(thought)
        else:
            break
    if thoughts:
        rest = rest.lstrip()
        for mark in BEGINS:
            rest = rest.removeprefix(mark).lstrip()
        for mark in ENDS:
            rest = rest.removesuffix(mark)
    return "\n".join(thought.strip() for thought in thoughts).strip(), rest


def _opening(text: str) -> tuple[str, str] | None:
    """The pair of marks whose first one begins the text."""
    head = text.lstrip()[:32].lower()
    return next((pair for pair in THOUGHTS if head.startswith(pair[0].lower())), None)


def _orphan(text: str, begin: str, end: str) -> bool:
    """Does the text hold the end of a thought that it does not begin?"""
    before, closed, _ = text.partition(end)
    return bool(closed) and begin not in before


def _cut(text: str, end: str) -> tuple[str, bool, str]:
    match = re.search(re.escape(end), text, re.IGNORECASE)
    return (text[: match.start()], True, text[match.end() :]) if match else (text, False, "")
