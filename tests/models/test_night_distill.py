"""The torch part of a night, on a tiny random model: its machinery is that of any model."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reflect.errors import NightError, UnknownName, UsageError
from reflect.gate import drift
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.training import distillation, loop, losses
from reflect.training.distillation import Student
from reflect.training.losses import TrainingRow
from reflect.training.plan import NightOptions, make_plan
from reflect.training.teacher_data import Example, Question, TrainingData

SECRET = "w50 w51 w52"  # what the teacher's prompt says and the student's does not


def question(asked: str, system: str = "") -> Question:
    plain = [{"role": "user", "content": asked}]
    return Question(plain, [{"role": "system", "content": system}, *plain] if system else plain)


def data(model: LocalModel, n: int = 6) -> TrainingData:
    """The teacher answers SECRET; the anchors are the model's own answers to other questions."""
    answer = [*model.tokenizer(SECRET, add_special_tokens=False)["input_ids"], model.end]
    harvest = [Example(question(f"w{i}", "w90 w91"), answer) for i in range(n)]
    asked = [question(f"w{i} w{i}") for i in range(20, 28)]
    base = Student(model, None, TrainingData([], [], [], max_tokens=6), make_plan(1))
    answers = distillation.answers_of(base, asked, "anchors")
    anchors = [Example(q, a) for q, a in zip(asked, answers, strict=True) if a]
    return TrainingData(harvest, anchors[1:], anchors[:1], max_tokens=6)


def short(**changes):
    return make_plan(1, **({"budget": 0.1, "batch": 8} | changes))


def weights(model: LocalModel, name: str) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.adapter_parameters(name)]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_divergence_is_zero_only_for_the_same_distribution(kind: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 11), torch.randn(5, 11)
    assert (
        losses.divergence(a, a + 3.0, kind).abs().max() < 1e-6
    )  # logits are the same up to a constant
    assert (losses.divergence(a, b, kind) > 0).all()


def test_divergence_is_the_one_in_the_book() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    student, teacher = q.log()[None], p.log()[None]
    assert losses.divergence(student, teacher, "forward").item() == pytest.approx(
        (p * (p / q).log()).sum().item()
    )
    assert losses.divergence(student, teacher, "reverse").item() == pytest.approx(
        (q * (q / p).log()).sum().item()
    )
    m = (p + q) / 2
    jsd = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
    assert losses.divergence(student, teacher, "jsd").item() == pytest.approx(jsd.item(), abs=1e-6)


def test_padding_changes_nothing(tiny: LocalModel) -> None:
    prompts, answers = [[5, 7, 8], [5, 9, 10, 11, 12, 13]], [[20, 21], [22]]
    together = losses.answer_logits(tiny, prompts, answers)
    alone = [losses.answer_logits(tiny, [p], [a]) for p, a in zip(prompts, answers, strict=True)]
    assert together.shape == (3, 128)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_answer_logits_are_those_that_predict_the_answer(tiny: LocalModel) -> None:
    ask = [{"role": "user", "content": "w3 w4"}]
    (done,) = tiny.sample([Request(ask, temperature=0.0, max_tokens=5)])[0]
    logits = losses.answer_logits(tiny, [tiny.encode(ask)], [done.tokens])
    assert logits.argmax(-1).tolist() == list(done.tokens)


def test_a_row_is_the_same_alone_and_in_any_batch(tiny: LocalModel) -> None:
    tiny.new_adapter("x", rank=4, alpha=32, seed=0)
    rows = [
        TrainingRow([5, i], [5, 90, i], [30 + i, 2], kind)
        for i, kind in enumerate(("nll", "reverse", "forward", "jsd"), 10)
    ]
    together = losses.losses(tiny, "x", rows)
    alone = [losses.losses(tiny, "x", [row])[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert [len(x) for x in together] == [2, 2, 2, 2]


def test_micro_batches_hold_every_row_once_and_little_padding() -> None:
    rows = [TrainingRow([1] * n, [1] * n, [2], "nll") for n in (3, 50, 4, 2, 60, 5)]
    batches = losses.micro_batches(rows, 64)
    assert sorted(row.width for batch in batches for row in batch) == sorted(
        row.width for row in rows
    )
    assert all(len(batch) == 1 or batch[-1].width * len(batch) <= 64 for batch in batches)


def test_micro_batches_are_the_cheapest_of_all() -> None:
    rows = [
        TrainingRow([1] * n, [1] * (n + t), [2], kind)
        for n, t, kind in [(3, 9, "reverse"), (200, 0, "nll"), (9, 9, "jsd")]
    ]
    rows += [
        TrainingRow([1] * 210, [1] * 420, [2], "forward"),
        TrainingRow([1] * 190, [1] * 190, [2], "nll"),
    ]

    def work(batch: list[TrainingRow]) -> int:
        teacher = max((len(row.teacher) + 1 for row in batch if row.loss != "nll"), default=0)
        return losses.PASS + len(batch) * (3 * max(len(row.student) + 1 for row in batch) + teacher)

    rows.sort(key=lambda row: len(row.student))
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, 5), n) for n in range(5))
    every = [[rows[a:b] for a, b in itertools.pairwise((0, *cut, 5))] for cut in cuts]
    assert sum(map(work, losses.micro_batches(rows, 10_000))) == min(
        sum(map(work, way)) for way in every
    )
    assert 1 < len(losses.micro_batches(rows, 10_000)) < 5


def test_micro_batches_do_not_change_the_gradient(tiny: LocalModel) -> None:
    found = []
    for most in (10_000, 12):
        tiny.new_adapter(f"m{most}", rank=4, alpha=32, seed=3)
        rows = [
            TrainingRow([5, i], [5, i], [30 + i, 31, 2], "nll", weight=float(i))
            for i in range(1, 6)
        ]
        losses.backward(tiny, f"m{most}", rows, most)
        found.append([p.grad for p in tiny.adapter_parameters(f"m{most}")])
    assert any(g.abs().max() > 0 for g in found[0])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_base_gets_no_gradient_and_does_not_move(tiny: LocalModel, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in tiny.network.state_dict().items()}
    loop.train(tiny, "x", data(tiny), short(), tmp_path)
    tiny.drop_adapter("x")
    after = tiny.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_sft_learns_the_answer_and_anchors_hold_the_rest(tiny: LocalModel, tmp_path: Path) -> None:
    d, plan = data(tiny), short(method="sft", budget=0.4, batch=16)
    figures = loop.train(tiny, "x", d, plan, tmp_path)
    first, last = figures["stages"]["sft"]["nll"]
    assert last < 0.2 * first
    with tiny.using("x"):
        (done,) = tiny.sample(
            [Request(d.harvest[0].question.student, temperature=0.0, max_tokens=6)]
        )[0]
    assert done.text.strip() == SECRET
    free = replace(plan, anchor_share=0.0)
    loop.train(tiny, "free", d, free, tmp_path / "free")
    held, loose = ([row[1] for row in drift.probe(tiny, name, d, plan)] for name in ("x", "free"))
    assert sum(held) < sum(loose)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_the_student_comes_to_say_what_the_teacher_says_in_context(
    tiny: LocalModel, tmp_path: Path, divergence: str
) -> None:
    """Without lessons in the prompt, the student's distribution moves to the teacher's with
    lessons."""
    d = data(tiny, n=2)
    plan = short(method="distill", divergence=divergence, budget=0.5, batch=8, anchor_share=0.0)
    loop.train(tiny, "x", d, plan, tmp_path)
    asked = [Question(e.question.teacher, e.question.teacher) for e in d.harvest]
    said = distillation.answers_of(Student(tiny, None, d, plan), asked, "t")
    rows = [
        TrainingRow(
            tiny.encode(e.question.student), tiny.encode(e.question.teacher), answer, "forward"
        )
        for e, answer in zip(d.harvest, said, strict=True)
    ]
    after = sum(x.mean().item() for x in losses.losses(tiny, "x", rows))
    tiny.new_adapter("fresh", rank=4, alpha=32, seed=0)
    before = sum(x.mean().item() for x in losses.losses(tiny, "fresh", rows))
    assert after < 0.7 * before


def test_a_training_that_was_stopped_ends_with_the_same_weights(
    tiny: LocalModel, tmp_path: Path
) -> None:
    d, plan = data(tiny), short(budget=0.2)
    assert plan.steps == 24
    whole = loop.train(tiny, "whole", d, plan, tmp_path / "a")

    class Stop(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 13:  # three steps after a checkpoint: they are lost
            raise Stop

    with pytest.raises(Stop):
        loop.train(tiny, "parts", d, plan, tmp_path / "b", stop)
    assert (tmp_path / "b" / "training.pt").exists()
    assert not (tmp_path / "b" / "training.tmp").exists()
    assert loop.train(tiny, "parts", d, plan, tmp_path / "b") == whole
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tiny, "whole"), weights(tiny, "parts"), strict=True)
    )


def test_numbers_that_are_not_finite_refuse_the_adapter(tiny: LocalModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.network.model.norm.weight[0] = math.nan
    d = TrainingData([Example(question("w1", "w2"), [30, 2])], [], [], 4)
    with pytest.raises(NightError, match="not a finite number"):
        loop.train(tiny, "x", d, short(method="sft"), tmp_path)


def test_the_plan_follows_from_the_budget_and_the_size() -> None:
    small, large = make_plan(2_400_000, budget=1.0), make_plan(4_000_000_000, budget=1.0)
    assert small.rank == 8 and large.rank == 32
    assert small.stages[0][2] >= 10 * large.stages[0][2]
    assert make_plan(1, budget=2.0).steps == 2 * make_plan(1, budget=1.0).steps
    assert make_plan(1, method="distill").divergence == "forward"
    assert make_plan(1).divergence == "reverse"
    with pytest.raises(UnknownName, match="staged, sft, distill, grpo"):
        make_plan(1, method="hypnosis")
    with pytest.raises(UnknownName, match="forward, reverse, jsd"):
        make_plan(1, divergence="sideways")
    with pytest.raises(UsageError):
        make_plan(1, budget=-1)


def test_options_of_a_night_by_name() -> None:
    options = NightOptions(seed=3, plan={"batch": 9}).changed({"budget": 1.0, "anchors": 5})
    assert options == NightOptions(seed=3, budget=1.0, plan={"batch": 9, "anchors": 5})
    plan = make_plan(1, **options.choices())
    assert (plan.seed, plan.budget, plan.batch, plan.anchors) == (3, 1.0, 9, 5)
    assert make_plan(1, **NightOptions().choices()) == make_plan(1)
    with pytest.raises(UnknownName, match="no option of a night"):
        options.changed({"budgett": 1.0})


def test_data_survives_json(tiny: LocalModel) -> None:
    import json

    d = data(tiny)
    assert TrainingData.of(json.loads(json.dumps(d.shape()))) == d
