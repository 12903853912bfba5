"""task."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from reflect.types import Json


Message = dict[
    str, Any
]  # {"role": "system" | "user" | "assistant" | "tool", "content": str, ...}, the OpenAI shape


Split = Literal["practice", "holdout"]


JUDGE, HUMAN = (
    "judge",
    "human",
)  # who scores where no program can: a model by a rubric, a person by `reflect grade`


# in `Score.parts`, above 0: it passes tests that contradict the task, so it was fitted to tests
TWIN = "twin"


@dataclass(frozen=True)
class Task:
    """One problem. `verifier` and `answer` are for the verifier alone: the policy and the reflector
    never see them.

    `lessons` is for tasks that bring their own lesson (see `Taskset.following`): pairs (when, do)
    shown in the prompt. `untrusted`: it carries bytes from outside (a web page, a mail), so what is
    learned from it is quarantined. `rubric`: by what a judge grades it, a template that may name {{
    task }} and {{ reference }}, its answer. `hint`: public advice on the answer, such as its form,
    which a reflection reads as feedback on attempts that failed.
    """

    id: str
    messages: list[Message]
    # in reflect.tasksets.verifiers.VERIFIERS, JUDGE, HUMAN, or "taskset" if Taskset.verify is
    # overridden
    verifier: str
    answer: Any
    split: Split = "practice"
    lessons: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    untrusted: bool = False
    rubric: str = ""
    hint: str = ""

    def shape(self) -> Json:
        """The public JSON shape: {id, messages, verifier, answer, split}, and `untrusted`,
        `rubric` and `hint` where it has them."""
        row = asdict(self)
        row.pop("lessons")
        for name in ("untrusted", "rubric", "hint"):
            if not row[name]:
                row.pop(name)
        return row

    @functools.cached_property  # a run asks for it some six times a rollout
    def key(self) -> str:
        """Content hash, 16 hex digits: the same task text and answer is the same task in every
        file."""
        text = json.dumps(self.shape(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The task as the reflector reads it: the user's words, without a system message."""
        return "\n".join(m["content"] for m in self.messages if m["role"] != "system")

    @property
    def texts(self) -> tuple[str, ...]:
        """`text`, or the texts of all tasks that this one replaces in a reflection."""
        return (self.text,)


@dataclass(frozen=True)
class Score:
    """reward in [0, 1]; feedback never holds the answer; parts are named sub-scores."""

    reward: float
    feedback: str = ""
    parts: dict[str, float] = field(default_factory=dict)
