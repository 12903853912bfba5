"""What one step of training minimises: for each row the loss of every token of its answer, and the
gradient.

    nll       the negative log likelihood of the answer
    forward   KL(teacher || student), reverse and jsd likewise, over the whole vocabulary
    policy    the clipped policy gradient of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1)

The teacher is the same network without the adapter, with its own prompt.

Suffixes: _BT rows x positions, _NV answer tokens of all rows x vocabulary, _T tokens of one answer.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from reflect.training.memory_fallback import checkpointed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.models.local import LocalModel

LOGITS = 2**26  # logits in memory at once, 256 MB; a longer comparison goes piece by piece
PASS = 512  # cost of one more pass, in padded tokens; measured: 256 to 512 for the pocket model
# of the importance ratio; the upper one is wider (DAPO, arXiv 2503.14476, section 3.1)
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


@dataclass(frozen=True)
class TrainingRow:
    """One answer with the prompt that the student sees and the one that the teacher sees, as token
    ids.

    For a `policy` row: `advantage` of the answer in its group, `old` log probabilities of its
    tokens when sampled (empty: the present ones), `beta` weight of the KL to the teacher,
    `temperature` of sampling.
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
    """The output of a network's body with these states; other fields that a head reads are None."""

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
    """By which adapter and after which prompt rows are evaluated; `frozen`: without gradients."""

    adapter: str | None
    prompt: Literal["student", "teacher"]
    frozen: bool = False


def compare(
    model: LocalModel,
    rows: Sequence[TrainingRow],
    views: Sequence[View],
    figure: Callable[..., torch.Tensor],
    sees: Callable[[TrainingRow, View], bool] = lambda row, view: True,
) -> list[torch.Tensor]:
    """For each row `figure(row, *logits_TV)`, one logits_TV of each view, None unless it `sees` the
    row.

    The figure has one value for each token of the answer in its last dimension, and no value
    depends on another token: so a large vocabulary is processed piece by piece, and the pieces'
    logits are computed again in the backward pass. A piece is a row with a part of its answer.
    """
    vocabulary = model.network.config.get_text_config().vocab_size
    whole = sum(len(row.answer) for row in rows) * vocabulary <= LOGITS
    seen: list[dict[int, torch.Tensor]] = []
    for view in views:
        indices = [i for i, row in enumerate(rows) if sees(row, view)]
        seen.append({})
        if indices:
            prompts = [getattr(rows[i], view.prompt) for i in indices]
            answers = [rows[i].answer for i in indices]
            with model.using(view.adapter), torch.no_grad() if view.frozen else nullcontext():
                outputs = (answer_logits if whole else answer_states)(model, prompts, answers)
            seen[-1] = dict(zip(indices, outputs.split([*map(len, answers)]), strict=True))
    out = []
    for i, row in enumerate(rows):
        mine = [view.get(i) for view in seen]
        if whole:
            out.append(figure(row, *mine))
            continue
        size = max(1, LOGITS // vocabulary)
        parts = [slice(start, start + size) for start in range(0, len(row.answer), size)]
        pieces = [replace(row, answer=row.answer[part], old=row.old[part]) for part in parts]
        states = [[None if x is None else x[part] for x in mine] for part in parts]

        def of_states(piece: TrainingRow, *states: torch.Tensor | None) -> torch.Tensor:
            return figure(piece, *(None if x is None else head(model, x) for x in states))

        pairs = zip(pieces, states, strict=True)
        parts_T = [checkpoint(of_states, piece, *x, use_reentrant=False) for piece, x in pairs]
        out.append(torch.cat(parts_T, -1))
    return out


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, kind: str) -> torch.Tensor:
    """divergence_N in nats over the vocabulary: forward KL(teacher || student), reverse, or jsd."""
    s, t = F.log_softmax(student_NV, -1), F.log_softmax(teacher_NV, -1)
    if kind == "forward":
        return (t.exp() * (t - s)).sum(-1)
    if kind == "reverse":
        return (s.exp() * (s - t)).sum(-1)
    middle = torch.logaddexp(s, t) - math.log(2)
    return 0.5 * ((t.exp() * (t - middle)).sum(-1) + (s.exp() * (s - middle)).sum(-1))


def micro_batches(rows: Sequence[TrainingRow], most: int) -> list[list[TrainingRow]]:
    """The rows in batches of at most `most` padded tokens (a longer row goes alone), with the least
    total work.

    Work is padded tokens, the student's three times for its backward pass, and PASS for every
    batch. Exact, by dynamic programming over the rows by length.
    """
    rows = sorted(rows, key=lambda row: (len(row.student) + len(row.answer), row.width))
    # of the first n rows: the least work, where their last batch begins
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(rows) + 1):
        least, student, teacher, widest = (math.inf, 0), 0, 0, 0
        for start in range(end - 1, -1, -1):
            row, n = rows[start], end - start
            widest = max(widest, row.width)
            if n > 1 and n * widest > most:
                break
            student = max(student, len(row.student) + len(row.answer))
            teacher = max(teacher, len(row.teacher) + len(row.answer) if row.asks_teacher else 0)
            least = min(least, (best[start][0] + n * (3 * student + teacher) + PASS, start))
        best.append(least)
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
    sees = lambda row, view: view is student or row.asks_teacher  # noqa: E731
    return compare(model, rows, [teacher, student], row_loss, sees)


def row_loss(
    row: TrainingRow, teacher_TV: torch.Tensor | None, student_TV: torch.Tensor
) -> torch.Tensor:
    """The loss_T of a row."""
    if row.loss == "policy":
        return policy_loss(row, student_TV, teacher_TV)
    if row.loss == "nll" or teacher_TV is None:
        targets = torch.tensor(row.answer, device=student_TV.device)
        return F.cross_entropy(student_TV, targets, reduction="none")
    return divergence(student_TV, teacher_TV, row.loss)


def policy_loss(
    row: TrainingRow, student_TV: torch.Tensor, reference_TV: torch.Tensor | None = None
) -> torch.Tensor:
    """-min(r A, clip(r) A) per token, r its probability now over that when sampled; with a
    reference plus beta times an unbiased estimate of the KL to it (DeepSeekMath, equation 4)."""
    now_T = chosen(student_TV, row)
    old_T = torch.tensor(row.old, device=now_T.device) if row.old else now_T.detach()
    ratio_T = (now_T - old_T).exp()
    clipped_T = ratio_T.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    loss_T = -torch.minimum(ratio_T * row.advantage, clipped_T * row.advantage)
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
    means: dict[str, list[float]] = {}
    with model.using(name), checkpointed(model):  # so that only the teacher's passes switch
        for batch in split(rows, model.memory_limits.most(most)):
            per_row = losses(model, name, batch)
            sums = [row.weight * x.sum() for row, x in zip(batch, per_row, strict=True)]
            (torch.stack(sums).sum() / total).backward()
            for row, x in zip(batch, per_row, strict=True):
                if row.weight:
                    means.setdefault(row.loss, []).append(float(x.detach().mean()))
    return means
