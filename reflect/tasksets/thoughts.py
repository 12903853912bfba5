"""Separate what a model thought from what it answered, for local models and for models behind an
API.

A thought is at the head of the text: `<think>...</think>` or one of the other spellings, in which
any end closes any beginning. One that never ends leaves an empty answer. Where a chat template
opens the thought, the text has its end only.
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
_NAME = r"(?:seed:think|think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OTHERS = [tuple(map(re.escape, pair)) for pair in THOUGHTS[len(TAGS) + 1 :]]
BEGIN = re.compile(
    rf"<\|?\s?{_NAME}\s?\|?>|\[{_NAME}\]|" + "|".join(begin for begin, _ in _OTHERS), re.IGNORECASE
)
END = re.compile(
    rf"<\|?\s?/\s?{_NAME}\s?\|?>|\[/{_NAME}\]|" + "|".join(end for _, end in _OTHERS), re.IGNORECASE
)
ENDS = ("<|end|>", "<|return|>", "<|end_of_solution|>", "<|END_RESPONSE|>")
BEGINS = ("<|begin_of_solution|>", "<|START_RESPONSE|>")


def split_thought(text: str, opened: str = "") -> tuple[str, str]:
    """(thought, answer) of what a model wrote. `opened`: the mark with which the chat template
    itself began the thought."""
    thoughts: list[str] = []
    rest = opened + text if opened and not BEGIN.match(text.lstrip()) else text
    for _ in range(MOST):
        head = rest.lstrip()
        if head.startswith(CHANNELS):
            thought, closed, answer = head.rpartition(FINAL)
            thoughts.append(thought if closed else head)
            rest = answer if closed else ""
            continue
        begin, end = BEGIN.match(head), END.search(head)
        if begin is None and (end is None or BEGIN.search(head, 0, end.start())):
            break
        thoughts.append(head[begin.end() if begin else 0 : end.start() if end else None])
        rest = head[end.end() :] if end else ""
    if thoughts:
        rest = rest.lstrip()
        for mark in BEGINS:
            rest = rest.removeprefix(mark).lstrip()
        for mark in ENDS:
            rest = rest.removesuffix(mark)
    return "\n".join(thought.strip() for thought in thoughts).strip(), rest
