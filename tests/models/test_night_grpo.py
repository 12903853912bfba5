"""Reinforcement learning by the verifier's reward, on the tiny random model and on the pocket
model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reflect.config import Settings
from reflect.models.local import LocalModel
from reflect.night.sleep import sleep
from reflect.store import Store, lessons
from reflect.tasksets import load_taskset
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Score, Task
from reflect.training import grpo, loop, losses
from reflect.training.distillation import Student
from reflect.training.losses import TrainingRow
from reflect.training.plan import NightOptions, make_plan
from reflect.training.teacher_data import PracticeTask, TrainingData


class Even(Taskset):
    """The share of even words in the answer (w2, w4 ...): a reward that any model can raise."""

    name = "even"

    def tasks(self, split, n=None, seed=0):
        return [
            Task(f"t{i}", [{"role": "user", "content": f"w{i}"}], "taskset", "") for i in range(8)
        ][:n]

    def verify(self, task, text):
        numbers = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
        return Score(sum(number % 2 == 0 for number in numbers) / max(1, len(numbers)))


def practice(taskset: Taskset, n: int, max_tokens: int) -> TrainingData:
    tasks = [PracticeTask(taskset.name, task) for task in taskset.tasks("practice", n)]
    return TrainingData([], [], [], max_tokens, tasks=tasks, tasksets={taskset.name: taskset})


def plan_of(**changes):
    return replace(make_plan(1, method="grpo"), **({"group": 4, "batch": 16} | changes))


def test_advantages_are_centred_scaled_and_nought_without_variance() -> None:
    found = grpo.advantages([1.0, 0.0, 0.0, 1.0])
    assert sum(found) == pytest.approx(0.0) and found[0] == pytest.approx(1.0, abs=1e-3)
    assert grpo.advantages([0.5] * 4) == [0.0] * 4


def test_the_loss_is_the_clipped_surrogate_of_the_paper() -> None:
    now = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    old = tuple(torch.log(torch.tensor([0.25, 0.9])).tolist())

    def loss(advantage: float) -> list[float]:
        return losses.policy_loss(
            TrainingRow([1], [1], [0, 0], "policy", advantage=advantage, old=old), now
        ).tolist()

    assert loss(1.0) == pytest.approx([-(1 + losses.CLIP_HIGH), -1.0])  # a ratio of 2 is clipped
    assert loss(-1.0) == pytest.approx([2.0, 1.0])  # what got likelier and was bad is not
    first = TrainingRow([1], [1], [0, 0], "policy", advantage=3.0)
    assert losses.policy_loss(first, now).tolist() == pytest.approx([-3.0, -3.0])


def test_the_kl_of_the_loss_is_nought_at_the_reference_and_positive_elsewhere() -> None:
    row = TrainingRow([1], [1], [0, 1], "policy", beta=0.5)
    now = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert losses.policy_loss(row, now, now).abs().max() < 1e-6
    assert (losses.policy_loss(row, now, now.flip(1)) > 0).all()


def test_the_temperature_is_that_of_the_sampling(tiny: LocalModel) -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    row = TrainingRow([1], [1], [2, 3, 4], "policy", temperature=0.5)
    expected = torch.log_softmax(logits / 0.5, -1)[range(3), [2, 3, 4]]
    assert torch.allclose(losses.chosen(logits, row), expected)


def test_groups_without_variance_are_replaced_and_the_same_step_is_the_same(
    tiny: LocalModel,
) -> None:
    tiny.new_adapter("x", rank=1, alpha=32, seed=0)
    data, plan = practice(Even(), 8, 10), plan_of()
    step = grpo.grpo(Student(tiny, "x", data, plan), 3, 16)
    assert step == grpo.grpo(Student(tiny, "x", data, plan), 3, 16)
    assert 0 < len(step.rows) <= 16 and step.rollouts >= 16
    assert any(row.advantage > 0 for row in step.rows) and any(
        row.advantage < 0 for row in step.rows
    )
    assert all(len(row.old) == len(row.answer) for row in step.rows)
    with tiny.using("x"), torch.no_grad():
        logits = losses.answer_logits(tiny, [step.rows[0].student], [step.rows[0].answer])
    assert losses.chosen(logits, step.rows[0]).tolist() == pytest.approx(step.rows[0].old, abs=1e-4)


def test_a_task_that_always_goes_the_same_way_teaches_nothing(tiny: LocalModel) -> None:
    class Never(Even):
        def verify(self, task, text):
            return Score(0.0)

    tiny.new_adapter("x", rank=1, alpha=32, seed=0)
    step = grpo.grpo(Student(tiny, "x", practice(Never(), 8, 4), plan_of()), 0, 16)
    assert step.rows == [] and step.rollouts == grpo.ROUNDS * 16 and step.figures["variance"] == 0.0


def test_a_verifier_that_breaks_is_no_reward_and_no_crash(tiny: LocalModel) -> None:
    class Broken(Even):
        def verify(self, task, text):
            raise RuntimeError("no")

    tiny.new_adapter("x", rank=1, alpha=32, seed=0)
    assert (
        grpo.grpo(Student(tiny, "x", practice(Broken(), 8, 4), plan_of()), 0, 16).figures["reward"]
        == 0.0
    )


def test_rewards_rise_and_a_training_that_was_stopped_ends_the_same(
    tiny: LocalModel, tmp_path: Path
) -> None:
    data = practice(Even(), 8, 10)
    plan = plan_of(stages=(("grpo", 14, 3e-2),), updates=1)
    whole = loop.train(tiny, "whole", data, plan, tmp_path / "a")
    first, last = whole["stages"]["grpo"]["reward"]
    assert last > first + 0.1 and whole["rollouts"] >= 14 * 16

    class Stop(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 13:
            raise Stop

    with pytest.raises(Stop):
        loop.train(tiny, "parts", data, plan, tmp_path / "b", stop)
    assert loop.train(tiny, "parts", data, plan, tmp_path / "b") == whole
    weights = [list(tiny.adapter_parameters(name)) for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_network_itself_can_be_trained_without_an_adapter(tiny: LocalModel) -> None:
    data, plan = practice(Even(), 8, 10), plan_of(stages=(("grpo", 2, 1e-3),), updates=1)
    before = {key: value.clone() for key, value in tiny.network.state_dict().items()}
    parameters = [p.requires_grad_(True) for p in tiny.network.parameters()]
    figures = loop.fit(tiny, None, parameters, data, plan, None)
    assert math.isfinite(figures["stages"]["grpo"]["reward"][0])
    assert any(
        not torch.equal(before[key], value) for key, value in tiny.network.state_dict().items()
    )


def test_the_plan_of_reinforcement_learning_has_rank_one() -> None:
    plan = make_plan(2_400_000, method="grpo", budget=1.0)
    assert plan.rank == 1 and not plan.learns_from_teacher
    assert make_plan(2_400_000, method="grpo").budget == 3 * make_plan(2_400_000).budget
    assert [name for name, _, _ in make_plan(1, method="staged+grpo").stages] == [
        "sft",
        "distill",
        "grpo",
    ]


@pytest.mark.slow  # a minute
def test_the_pocket_model_finds_the_dialect_by_rewards_alone(pocket: LocalModel) -> None:
    plan = replace(make_plan(2_400_000, method="grpo"), stages=(("grpo", 40, 2e-3),))
    pocket.new_adapter("rl", rank=plan.rank, alpha=plan.alpha, seed=0)
    data = practice(load_taskset("dialect"), 200, 96)
    figures = loop.fit(pocket, "rl", list(pocket.adapter_parameters("rl")), data, plan, None)
    assert figures["stages"]["grpo"]["reward"][1] > 0.9


@pytest.mark.slow  # two minutes
def test_a_night_of_rewards_alone_passes_the_gate(pocket: LocalModel, tmp_path: Path) -> None:
    settings = Settings(db=str(tmp_path / "lessons.db"))
    store = Store(settings.db)
    with store.write() as s:
        for verb, op in list(load_taskset("dialect").meanings.items())[:3]:
            words = {"when": f"the task says {verb}", "do": f"use {op}", "scope": "dialect"}
            lessons.add(s, **words, author="human", status="active")
    report = sleep(pocket, store, settings, NightOptions(method="grpo"))
    assert report.status == "promoted", report.reason
    assert report.stages["train"]["stages"]["grpo"]["reward"][1] > 0.9
    assert report.stages["placebo"]["rewards"] == {}, "no teacher, so no placebo of one"
