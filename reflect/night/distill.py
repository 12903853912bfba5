"""The torch part of a night: make the student, without lessons, say what the teacher says with them.

The teacher is the same network with the adapter off and the lessons in its prompt. A stage of training is a function
that writes the rows of one step: `sft` takes the teacher's good attempts, `distill` lets the student attempt the tasks
itself and compares, token by token, over the whole vocabulary. Every step also holds anchors: prompts outside the
night, on which the student is held to the bare base's own distribution.

All randomness follows from (seed, step), so a training that was killed ends with the same weights as one that was not.

Suffixes: _BT rows x positions, _NV answer tokens of all rows x vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from reflect.day.rollout import Progress
from reflect.errors import NightError
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.night.harvest import Data, Question
from reflect.night.pause import Paused
from reflect.night.plan import Plan

CHECKPOINT_STEPS = 10
WARM_UP_STEPS = 5
CLIP = 1.0


@dataclass(frozen=True)
class Row:
    """One answer with the prompt that the student sees and the one that the teacher sees, as token ids."""

    student: Sequence[int]
    teacher: Sequence[int]
    answer: Sequence[int]
    loss: str  # nll | forward | reverse | jsd
    weight: float = 1.0

    @property
    def width(self) -> int:
        return max(len(self.student), len(self.teacher)) + len(self.answer)


# -- losses ------------------------------------------------------------------------------------------------------------


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
    """The rows, by length, in batches of at most `most` padded tokens (a longer row goes alone), little padded."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.width):
        if batches and row.width * (len(batches[-1]) + 1) <= most and row.width <= 2 * batches[-1][0].width:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def losses(model: LocalModel, name: str, rows: Sequence[Row]) -> list[torch.Tensor]:
    """For each row, in order, the loss_T of its answer tokens, in nats; gradients reach the adapter `name`."""
    compared = [row for row in rows if row.loss != "nll"]
    teacher = torch.empty(0)
    if compared:
        with model.using(None), torch.no_grad():
            teacher = answer_logits(model, [row.teacher for row in compared], [row.answer for row in compared])
    with model.using(name):
        student = answer_logits(model, [row.student for row in rows], [row.answer for row in rows])
    out, at, at_teacher = [], 0, 0
    for row in rows:
        n = len(row.answer)
        mine_TV = student[at : at + n]
        if row.loss == "nll":
            targets = torch.tensor(row.answer, device=mine_TV.device)
            out.append(F.cross_entropy(mine_TV, targets, reduction="none"))
        else:
            out.append(divergence(mine_TV, teacher[at_teacher : at_teacher + n], row.loss))
            at_teacher += n
        at += n
    return out


def backward(model: LocalModel, name: str, rows: Sequence[Row], most: int) -> dict[str, float]:
    """Accumulate the gradient of the weighted mean loss per token. Returns the mean loss per kind, in nats."""
    total = sum(row.weight * len(row.answer) for row in rows)
    sums: dict[str, list[float]] = {}
    for batch in micro_batches(rows, most):
        per_row = losses(model, name, batch)
        loss = torch.stack([row.weight * x.sum() for row, x in zip(batch, per_row, strict=True)]).sum() / total
        loss.backward()
        for row, x in zip(batch, per_row, strict=True):
            sums.setdefault(row.loss, []).append(float(x.detach().mean()))
    return {kind: sum(values) / len(values) for kind, values in sums.items()}


# -- stages: the rows of one step --------------------------------------------------------------------------------------


def sft(model: LocalModel, name: str, data: Data, plan: Plan, step: int, size: int) -> list[Row]:
    """The teacher's good attempts, the lessons stripped from the prompt; what the bare model fails comes more often."""
    rng = random.Random(f"sft {plan.seed} {step}")
    drawn = rng.choices(data.harvest, weights=[example.weight for example in data.harvest], k=size)
    return [Row(*_prompts(model, example.question), example.answer, "nll") for example in drawn]


def distill(model: LocalModel, name: str, data: Data, plan: Plan, step: int, size: int) -> list[Row]:
    """On-policy: the student attempts tasks without lessons; the teacher judges every token that it wrote."""
    rng = random.Random(f"distill {plan.seed} {step}")
    questions = [rng.choice(data.questions) for _ in range(size)]
    answers = answers_of(model, name, questions, plan, f"{plan.seed}/{step}", data.max_tokens)
    return [
        Row(*_prompts(model, question), answer, plan.divergence)
        for question, answer in zip(questions, answers, strict=True)
        if answer
    ]


STAGES: dict[str, Callable[[LocalModel, str, Data, Plan, int, int], list[Row]]] = {"sft": sft, "distill": distill}


def anchors(model: LocalModel, data: Data, plan: Plan, step: int, size: int) -> list[Row]:
    """What the base says to prompts outside the night; the student must go on saying it."""
    rng = random.Random(f"anchors {plan.seed} {step}")
    drawn = rng.choices(data.anchors, k=size) if data.anchors else []
    return [Row(*_prompts(model, example.question), example.answer, "forward") for example in drawn]


def answers_of(
    model: LocalModel, name: str | None, questions: Sequence[Question], plan: Plan, salt: str, max_tokens: int
) -> list[list[int]]:
    """One sampled answer to each question as the student sees it, as token ids with the end token where it ended."""
    requests = [
        Request(
            messages=question.student,
            seeds=(int(hashlib.sha256(f"{salt}/{i}".encode()).hexdigest()[:15], 16),),
            max_tokens=max_tokens,
            temperature=plan.temperature,
        )
        for i, question in enumerate(questions)
    ]
    with model.using(name):
        done = [completions[0] for completions in model.sample(requests)]
    return [[*c.tokens, model.end] if c.finish == "stop" else list(c.tokens) for c in done]


def _prompts(model: LocalModel, question: Question) -> tuple[list[int], list[int]]:
    student = model.encode(question.student)
    return student, student if question.teacher == question.student else model.encode(question.teacher)


# -- training ----------------------------------------------------------------------------------------------------------


def train(
    model: LocalModel, name: str, data: Data, plan: Plan, folder: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Train a new adapter `name` by the plan, or continue from the checkpoint in `folder`. Returns figures per stage.

    Leaves the adapter in the model. Raises NightError when a loss or gradient is not a finite number.
    """
    if name in model.adapters:
        model.drop_adapter(name)
    model.new_adapter(name, rank=plan.rank, alpha=plan.alpha, seed=plan.seed)
    parameters = list(model.adapter_parameters(name))
    optimizer = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.95))
    figures = _restore(folder, parameters, optimizer)
    schedule = [(stage, rate) for stage, steps, rate in plan.stages for _ in range(steps)]
    for step in range(figures["step"], len(schedule)):
        stage, rate = schedule[step]
        try:
            if progress:
                progress(step, len(schedule), stage)
        except Paused:
            _save(folder, parameters, optimizer, figures)
            raise
        held = round(plan.anchor_share * plan.batch) if data.anchors else 0
        rows = STAGES[stage](model, name, data, plan, step, plan.batch - held) + anchors(model, data, plan, step, held)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / len(schedule)) * min(1.0, (step + 1) / WARM_UP_STEPS)
        told = backward(model, name, rows, plan.micro_tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
        if not all(map(math.isfinite, (norm, *told.values()))):
            raise NightError(f"Training broke down at step {step}: the loss or its gradient is not a finite number.")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        figures["stages"].setdefault(stage, []).append({kind: round(value, 5) for kind, value in told.items()})
        figures["tokens"] += sum(len(row.student) + len(row.answer) for row in rows)
        figures["step"] = step + 1
        if (step + 1) % CHECKPOINT_STEPS == 0:
            _save(folder, parameters, optimizer, figures)
    if progress:
        progress(len(schedule), len(schedule), "trained")
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise NightError("Training broke down: the adapter holds a number that is not finite.")
    return figures | {"stages": {stage: _ends(told) for stage, told in figures["stages"].items()}}


def _ends(told: list[dict[str, float]]) -> dict[str, list[float]]:
    """loss -> its mean over the first and over the last five steps of a stage, in nats per token."""

    def mean(kind: str, rows: list[dict[str, float]]) -> float:
        values = [row[kind] for row in rows if kind in row]
        return round(sum(values) / max(1, len(values)), 5)

    return {kind: [mean(kind, told[:5]), mean(kind, told[-5:])] for kind in told[0]}


def drift(model: LocalModel, name: str, data: Data, plan: Plan) -> float:
    """Forward KL of the adapter from the bare base on what the base says to the probes, in bits per token."""
    rows = [Row(*_prompts(model, example.question), example.answer, "forward") for example in data.probes]
    total = tokens = 0.0
    with torch.no_grad():
        for batch in micro_batches(rows, plan.micro_tokens):
            total += sum(float(x.sum()) for x in losses(model, name, batch))
            tokens += sum(len(row.answer) for row in batch)
    return total / max(1.0, tokens) / math.log(2)


def _save(folder: Path, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, figures: dict) -> None:
    """Visible only when complete: written under another name, flushed, renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "training.tmp"
    state = {"weights": [p.detach() for p in parameters], "optimizer": optimizer.state_dict(), "figures": figures}
    whole = io.BytesIO()  # so that a full disk is an OSError
    torch.save(state, whole)
    with temporary.open("wb") as f:
        f.write(whole.getbuffer())
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, folder / "training.pt")


def _restore(folder: Path, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    path = folder / "training.pt"
    if not path.exists():
        return {"step": 0, "tokens": 0, "stages": {}}
    saved = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for p, weights in zip(parameters, saved["weights"], strict=True):
            p.copy_(weights)
    optimizer.load_state_dict(saved["optimizer"])
    return saved["figures"]
