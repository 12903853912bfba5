"""What one step of training minimises: for each row the loss of every token of its answer, and the gradient.

    nll       the negative log likelihood of the answer
    forward   KL(teacher || student), reverse and jsd likewise, over the whole vocabulary
    policy    the clipped policy gradient of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1)

The teacher is the same network with the adapter off, and what the student's prompt does not say in its own.

Suffixes: _BT rows x positions, _NV answer tokens of all rows x vocabulary, _T tokens of one answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reflect.models.local import LocalModel

PASS = 512  # what one more pass through the network costs, in padded tokens; measured: 256 to 512 for the pocket model
CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # of the importance ratio; the upper one is wider (DAPO, arXiv 2503.14476, section 3.1)


@dataclass(frozen=True)
class Row:
    """One answer with the prompt that the student sees and the one that the teacher sees, as token ids.

    Of a `policy` row: `advantage` of the answer in its group, `old` the log probabilities with which its tokens were
    drawn (empty: as they are now), `beta` the weight of the KL to the teacher, `temperature` at which it was drawn.
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
        return max(len(self.student), len(self.teacher)) + len(self.answer)

    @property
    def asks_teacher(self) -> bool:
        return self.beta > 0 if self.loss == "policy" else self.loss != "nll"


def answer_logits(
    model: LocalModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Logits_NV that predict each answer token, row after row; float32.

    Rows are padded on the right without an attention mask: causal attention never looks at the padding.
    """
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    at = [range(len(p) - 1, len(p) - 1 + len(a)) for p, a in zip(prompts, answers, strict=True)]
    wanted = sorted({t for span in at for t in span})  # logits elsewhere are never computed
    place = {t: i for i, t in enumerate(wanted)}
    keep = torch.tensor(wanted, device=model.device)
    logits = model.network(input_ids=ids_BT, use_cache=False, logits_to_keep=keep).logits
    rows_N = torch.tensor([b for b, span in enumerate(at) for _ in span], device=model.device)
    places_N = torch.tensor([place[t] for span in at for t in span], device=model.device)
    return logits[rows_N, places_N].float()


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, kind: str) -> torch.Tensor:
    """Per-token divergence_N in nats over the whole vocabulary: forward KL(teacher || student), reverse, or jsd."""
    s, t = F.log_softmax(student_NV, -1), F.log_softmax(teacher_NV, -1)
    if kind == "forward":
        return (t.exp() * (t - s)).sum(-1)
    if kind == "reverse":
        return (s.exp() * (s - t)).sum(-1)
    middle = torch.logaddexp(s, t) - math.log(2)
    return 0.5 * ((t.exp() * (t - middle)).sum(-1) + (s.exp() * (s - middle)).sum(-1))


def micro_batches(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """The rows in batches of at most `most` padded tokens (a longer row goes alone), with the least work in all.

    Work is padded tokens, the student's three times for its backward pass, and PASS for every batch: so short rows are
    not padded to long ones, and few rows not torn apart. Exact, by dynamic programming over the rows by length.
    """
    rows = sorted(rows, key=lambda row: (len(row.student) + len(row.answer), row.width))
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first n rows: the least work, where their last batch begins
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
    batches: list[list[Row]] = []
    end = len(rows)
    while end:
        start = best[end][1]
        batches.insert(0, rows[start:end])
        end = start
    return batches


def losses(model: LocalModel, name: str | None, rows: Sequence[Row]) -> list[torch.Tensor]:
    """For each row, in order, the loss_T of its answer tokens, in nats; gradients reach the adapter `name`, or the
    network itself where it is None."""
    compared = [row for row in rows if row.asks_teacher]
    teacher = torch.empty(0)
    if compared:
        with model.using(None), torch.no_grad():
            teacher = answer_logits(model, [row.teacher for row in compared], [row.answer for row in compared])
    with model.using(name):
        student = answer_logits(model, [row.student for row in rows], [row.answer for row in rows])
    out, at, at_teacher = [], 0, 0
    for row in rows:
        n = len(row.answer)
        mine_TV, theirs_TV = student[at : at + n], teacher[at_teacher : at_teacher + n]
        at, at_teacher = at + n, at_teacher + n * row.asks_teacher
        if row.loss == "nll":
            targets = torch.tensor(row.answer, device=mine_TV.device)
            out.append(F.cross_entropy(mine_TV, targets, reduction="none"))
        elif row.loss == "policy":
            out.append(policy_loss(row, mine_TV, theirs_TV if row.asks_teacher else None))
        else:
            out.append(divergence(mine_TV, theirs_TV, row.loss))
    return out


def policy_loss(row: Row, student_TV: torch.Tensor, reference_TV: torch.Tensor | None = None) -> torch.Tensor:
    """-min(r A, clip(r) A) of each token, r its probability now over that with which it was drawn; with a reference
    also beta times an unbiased estimate of the KL to it (DeepSeekMath, equation 4)."""
    now_T = chosen(student_TV, row)
    old_T = torch.tensor(row.old, device=now_T.device) if row.old else now_T.detach()
    ratio_T = (now_T - old_T).exp()
    loss_T = -torch.minimum(ratio_T * row.advantage, ratio_T.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * row.advantage)
    if reference_TV is not None:
        further_T = chosen(reference_TV, row) - now_T
        loss_T = loss_T + row.beta * (further_T.exp() - further_T - 1)
    return loss_T


def chosen(logits_TV: torch.Tensor, row: Row) -> torch.Tensor:
    """The log probability_T of the row's answer at its temperature."""
    targets = torch.tensor(row.answer, device=logits_TV.device)
    return -F.cross_entropy(logits_TV / row.temperature, targets, reduction="none")


def backward(
    model: LocalModel, name: str | None, rows: Sequence[Row], most: int, total: float | None = None
) -> dict[str, list[float]]:
    """Accumulate the gradient of the weighted mean loss per token; `total` is the weight of all tokens, where these
    rows are a part of them. Returns for each kind the mean loss of every row, in nats per token."""
    total = total or sum(row.weight * len(row.answer) for row in rows)
    told: dict[str, list[float]] = {}
    with model.using(name):  # so that only the teacher's passes switch
        for batch in micro_batches(rows, most):
            per_row = losses(model, name, batch)
            loss = torch.stack([row.weight * x.sum() for row, x in zip(batch, per_row, strict=True)]).sum() / total
            loss.backward()
            for row, x in zip(batch, per_row, strict=True):
                told.setdefault(row.loss, []).append(float(x.detach().mean()))
    return told
