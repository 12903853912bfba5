"""What one step of training minimises: for each row the loss of every token of its answer, and the
gradient.

    nll       the negative log likelihood of the answer
    forward   KL(teacher || student), reverse and jsd likewise, over the whole vocabulary
    policy    the clipped policy gradient of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1)

The teacher is the same network with the adapter off, and what the student's prompt does not say in
its own.

Suffixes: _BT rows x positions, _NV answer tokens of all rows x vocabulary, _T tokens of one answer.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from reflect.training.memory_fallback import checkpointed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.models.local import LocalModel

LOGITS = (
    2**26
)  # numbers that are held as logits at once, 256 MB; a longer comparison goes piece by piece
# what one more pass through the network costs, in padded tokens; measured: 256 to 512 for the
# pocket model
PASS = 512
CLIP_LOW, CLIP_HIGH = (
    0.2,
    0.28,
)  # of the importance ratio; the upper one is wider (DAPO, arXiv 2503.14476, section 3.1)


@dataclass(frozen=True)
class TrainingRow:
    """One answer with the prompt that the student sees and the one that the teacher sees, as token
    ids.

    Of a `policy` row: `advantage` of the answer in its group, `old` the log probabilities with
    which its tokens were drawn (empty: as they are now), `beta` the weight of the KL to the
    teacher, `temperature` at which it was drawn.
    """

    student: Sequence[int]
    teacher: Sequence[int]
    answer: Sequence[int]
    loss: str  # nll | forward | reverse | jsd | policy
    weight: float = 1.0
    advantage: float = 0.0
    old: Sequence[float] = ()
    beta: float = 0.0
    temperature: float = 1.0

    @property
    def width(self) -> int:
        """Tokens of the longer prompt and the answer."""
        return max(len(self.student), len(self.teacher)) + len(self.answer)

    @property
    def asks_teacher(self) -> bool:
        """Whether the loss needs the teacher's logits."""
        return self.beta > 0 if self.loss == "policy" else self.loss != "nll"


def answer_logits(
    model: LocalModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Logits_NV that predict each answer token, row after row; float32.

    Rows are padded on the right without an attention mask: causal attention never looks at the
    padding.
    """
    ids_BT, at = _padded(model, prompts, answers)
    wanted = sorted({t for span in at for t in span})  # logits elsewhere are never computed
    place = {t: i for i, t in enumerate(wanted)}
    keep = torch.tensor(wanted, device=model.device)
    logits = model.network(input_ids=ids_BT, use_cache=False, logits_to_keep=keep).logits
    rows_N = torch.tensor([b for b, span in enumerate(at) for _ in span], device=model.device)
    places_N = torch.tensor([place[t] for span in at for t in span], device=model.device)
    return logits[rows_N, places_N].float()


def answer_states(
    model: LocalModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """States_ND from which the network's head makes the logits of `answer_logits`."""
    ids_BT, at = _padded(model, prompts, answers)
    states = model.network.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    rows_N = torch.tensor([b for b, span in enumerate(at) for _ in span], device=states.device)
    places_N = torch.tensor([t for span in at for t in span], device=states.device)
    return states[rows_N, places_N]


def _padded(
    model: LocalModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, list[range]]:
    """ids_BT, and of each row the positions that predict its answer."""
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    return ids_BT, [
        range(len(p) - 1, len(p) - 1 + len(a)) for p, a in zip(prompts, answers, strict=True)
    ]


class States:
    """What the body of a network would give back if these were its states; whatever else a head
    asks for is None."""

    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, key: int | slice) -> Any:
        return (self.last_hidden_state,)[key]


def head(model: LocalModel, states_TD: torch.Tensor) -> torch.Tensor:
    """Logits_TV of these states, by the network's own head and all that it does after it (scales,
    soft caps).

    No adapter of ours changes the head, so it does not matter which one is on.
    """
    body = model.network.base_model
    before = body.__dict__.get("forward")
    body.forward = lambda *args, **kwargs: States(states_TD[None])
    try:
        nothing = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        logits: torch.Tensor = model.network(input_ids=nothing, use_cache=False).logits
    finally:
        del body.forward
        if before is not None:  # a hook of accelerate
            body.forward = before
    return logits[0].to(states_TD.device).float()


class View(NamedTuple):
    """How the rows are looked at: by which adapter, after which of the two prompts; `frozen`:
    without gradients."""

    adapter: str | None
    prompt: Literal["student", "teacher"]
    frozen: bool = False


def compare(
    model: LocalModel,
    rows: Sequence[TrainingRow],
    views: Sequence[View],
    told: Callable[..., torch.Tensor],
    sees: Callable[[TrainingRow, View], bool] = lambda row, view: True,
) -> list[torch.Tensor]:
    """For each row `told(row, *logits_TV)`, one logits_TV of each view, None where it `sees` the
    row not.

    What is told has one value for each token of the answer in its last dimension, and no value
    depends on another token: so a large vocabulary is gone through piece by piece, and the pieces'
    logits are made again in the backward pass. A piece is a row with a part of its answer.
    """
    words = model.network.config.get_text_config().vocab_size
    whole = sum(len(row.answer) for row in rows) * words <= LOGITS
    seen: list[dict[int, torch.Tensor]] = []
    for view in views:
        held = [(i, row) for i, row in enumerate(rows) if sees(row, view)]
        seen.append({})
        if held:
            prompts, answers = (
                [getattr(row, view.prompt) for _, row in held],
                [row.answer for _, row in held],
            )
            with model.using(view.adapter), torch.no_grad() if view.frozen else nullcontext():
                found = (answer_logits if whole else answer_states)(model, prompts, answers)
            seen[-1] = dict(
                zip([i for i, _ in held], found.split([len(a) for a in answers]), strict=True)
            )
    out = []
    for i, row in enumerate(rows):
        mine = [view.get(i) for view in seen]
        if whole:
            out.append(told(row, *mine))
            continue
        size = max(1, LOGITS // words)
        parts = [slice(start, start + size) for start in range(0, len(row.answer), size)]
        pieces = [replace(row, answer=row.answer[part], old=row.old[part]) for part in parts]
        states = [[None if x is None else x[part] for x in mine] for part in parts]
        ask = partial(_told_of_states, model, told)
        out.append(
            torch.cat(
                [
                    checkpoint(ask, p, *s, use_reentrant=False)
                    for p, s in zip(pieces, states, strict=True)
                ],
                -1,
            )
        )
    return out


def _told_of_states(
    model: LocalModel,
    told: Callable[..., torch.Tensor],
    row: TrainingRow,
    *states: torch.Tensor | None,
) -> torch.Tensor:
    return told(row, *(None if x is None else head(model, x) for x in states))


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, kind: str) -> torch.Tensor:
    """Per-token divergence_N in nats over the whole vocabulary: forward KL(teacher || student),
    reverse, or jsd."""
    s, t = F.log_softmax(student_NV, -1), F.log_softmax(teacher_NV, -1)
    if kind == "forward":
        return (t.exp() * (t - s)).sum(-1)
    if kind == "reverse":
        return (s.exp() * (s - t)).sum(-1)
    middle = torch.logaddexp(s, t) - math.log(2)
    return 0.5 * ((t.exp() * (t - middle)).sum(-1) + (s.exp() * (s - middle)).sum(-1))


def micro_batches(rows: Sequence[TrainingRow], most: int) -> list[list[TrainingRow]]:
    """The rows in batches of at most `most` padded tokens (a longer row goes alone), with the least
    work in all.

    Work is padded tokens, the student's three times for its backward pass, and PASS for every
    batch: so short rows are not padded to long ones, and few rows not torn apart. Exact, by dynamic
    programming over the rows by length.
    """
    rows = sorted(rows, key=lambda row: (len(row.student) + len(row.answer), row.width))
    best: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # of the first n rows: the least work, where their last batch begins
    for end in range(1, len(rows) + 1):
        found, student, teacher, widest = (math.inf, 0), 0, 0, 0
        for start in range(end - 1, -1, -1):
            row, n = rows[start], end - start
            widest = max(widest, row.width)
            if n > 1 and n * widest > most:
                break
            student = max(student, len(row.student) + len(row.answer))
            teacher = max(teacher, len(row.teacher) + len(row.answer) if row.asks_teacher else 0)
            found = min(found, (best[start][0] + n * (3 * student + teacher) + PASS, start))
        best.append(found)
    batches: list[list[TrainingRow]] = []
    end = len(rows)
    while end:
        start = best[end][1]
        batches.insert(0, rows[start:end])
        end = start
    return batches


def losses(model: LocalModel, name: str | None, rows: Sequence[TrainingRow]) -> list[torch.Tensor]:
    """For each row, in order, the loss_T of its answer tokens, in nats; gradients reach the adapter
    `name`, or the network itself where it is None."""
    teacher, student = View(None, "teacher", frozen=True), View(name, "student")
    return compare(
        model,
        rows,
        [teacher, student],
        row_loss,
        lambda row, view: view is student or row.asks_teacher,
    )


def row_loss(
    row: TrainingRow, teacher_TV: torch.Tensor | None, student_TV: torch.Tensor
) -> torch.Tensor:
    """The loss_T of a row."""
    if row.loss == "policy":
        return policy_loss(row, student_TV, teacher_TV)
    if row.loss == "nll" or teacher_TV is None:
        return F.cross_entropy(
            student_TV, torch.tensor(row.answer, device=student_TV.device), reduction="none"
        )
    return divergence(student_TV, teacher_TV, row.loss)


def policy_loss(
    row: TrainingRow, student_TV: torch.Tensor, reference_TV: torch.Tensor | None = None
) -> torch.Tensor:
    """-min(r A, clip(r) A) of each token, r its probability now over that with which it was drawn;
    with a reference also beta times an unbiased estimate of the KL to it (DeepSeekMath, equation
    4)."""
    now_T = chosen(student_TV, row)
    old_T = torch.tensor(row.old, device=now_T.device) if row.old else now_T.detach()
    ratio_T = (now_T - old_T).exp()
    loss_T = -torch.minimum(
        ratio_T * row.advantage, ratio_T.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * row.advantage
    )
    if reference_TV is not None:
        further_T = chosen(reference_TV, row) - now_T
        loss_T = loss_T + row.beta * (further_T.exp() - further_T - 1)
    return loss_T


def chosen(logits_TV: torch.Tensor, row: TrainingRow) -> torch.Tensor:
    """The log probability_T of the row's answer at its temperature."""
    targets = torch.tensor(row.answer, device=logits_TV.device)
    return -F.cross_entropy(logits_TV / row.temperature, targets, reduction="none")


def backward(
    model: LocalModel,
    name: str | None,
    rows: Sequence[TrainingRow],
    most: int,
    split: Callable[[Sequence[TrainingRow], int], list[list[TrainingRow]]] = micro_batches,
) -> dict[str, list[float]]:
    """Accumulate the gradient of the weighted mean loss per token over all rows. `split(rows,
    most)` gives the micro-batches of this process. Returns for each kind the mean loss of every row
    of them that has a weight, in nats per token."""
    total = sum(row.weight * len(row.answer) for row in rows)
    told: dict[str, list[float]] = {}
    with model.using(name), checkpointed(model):  # so that only the teacher's passes switch
        for batch in split(rows, model.memory_limits.most(most)):
            per_row = losses(model, name, batch)
            loss = (
                torch.stack(
                    [row.weight * x.sum() for row, x in zip(batch, per_row, strict=True)]
                ).sum()
                / total
            )
            loss.backward()
            for row, x in ((row, x) for row, x in zip(batch, per_row, strict=True) if row.weight):
                told.setdefault(row.loss, []).append(float(x.detach().mean()))
    return told
