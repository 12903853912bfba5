"""Train a reviewer adapter: on generated groups, and on what the trials of a profile have shown.

A review whose lessons were accepted is a target, drawn by its weight. One whose lessons were
rejected has a negative weight: each of its tokens is made less probable, down to CLIP_LOW below its
probability by the base, and no further.

Reinforcement learning may follow (GRPO): the model reviews generated groups, and the reward of a
review is `review_reward`.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, NamedTuple

from reflect.day.reflection import Group, reflection_messages
from reflect.lessons import safety
from reflect.lessons.edit_format import parse_edits
from reflect.records import Rollout
from reflect.reviewer.families import PLAIN, all_families
from reflect.reviewer.groups import draw_group, earned
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Score, Task
from reflect.training.distillation import DistillationStep, Student, prompts_of, rows_of
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.grpo import with_old_log_probabilities
from reflect.training.loop import STAGES, train
from reflect.training.losses import TrainingRow
from reflect.training.plan import make_plan
from reflect.training.teacher_data import TrainingData

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect.models.local import LocalModel
    from reflect.reviewer.evidence import MeasuredReview
    from reflect.reviewer.groups import GeneratedGroup
    from reflect.tasksets.task import Split
    from reflect.types import Json, Progress

RANK, RATE, BATCH = 16, 1e-3, 8
SMALLEST_GROUPS = 64  # generated groups of a training, even a very short one
REVIEW_TOKENS = 240  # of an answer
MANY = 64  # measured reviews from which half of the training is about them
MOST_EFFECT = (
    3.0  # weight of a review by the effect of its lessons, at most so many times another's
)
STAGE = "review"


GRPO_SLOWER = 10  # its learning rate: so many times below that of the targets
HARDER = 2
LEGAL, SAFE = 0.1, 0.1  # of a review's reward; the rest is the simulated effect


class ReviewOptions(NamedTuple):
    """What the caller of a training decides. `steps`: optimizer steps of BATCH reviews."""

    steps: int = 400
    rate: float = RATE
    rank: int = RANK
    batch: int = BATCH
    seed: int = 0
    grpo: int = 0
    """Steps of reinforcement learning after the others, each over `batch` reviews."""


def group_of(group: GeneratedGroup) -> Group:
    """A generated group as the reflection reads it."""
    question, name = group.question, f"{group.question.noun} {group.question.subject}"
    task = Task(name, [{"role": "user", "content": question.text}], "exact", question.answer)
    rows = [
        Rollout(run_id=0, task_key="", index=i, reward=reward,
                messages=[*task.messages, {"role": "assistant", "content": text}])
        for i, (text, reward) in enumerate(group.attempts)
    ]  # fmt: skip
    return Group(task, [], [], rows, reviewer="reviewer")


def answer_text(analysis: str, edits: Sequence[Json]) -> str:
    """The answer of a review as a grammar writes it."""
    return json.dumps({"analysis": analysis, "edits": list(edits)}, ensure_ascii=False)


def target(group: GeneratedGroup) -> str:
    """The answer that names the rule of a generated group."""
    when, do = group.rule.lesson
    return answer_text(group.analysis, [{"edit": "add", "when": when, "do": do}])


def example(model: LocalModel, group: Group, answer: str, weight: float = 1.0) -> Example:
    """A review to learn, as token ids."""
    messages, _ = reflection_messages(model, group, REVIEW_TOKENS)
    start = len(model.encode(messages))
    return Example(Question(messages, messages), model.encode(messages, answer)[start:], weight)


def generated(count: int, seed: int) -> list[GeneratedGroup]:
    """Groups of families that are trained on. Methods and ways of writing the answer, which are
    learned last, come HARDER times as often."""
    rng, families = random.Random(f"reviewer {seed}"), all_families()["train"]
    weights = [HARDER if "Y" in x.form or x.way != PLAIN else 1 for x in families]
    return [draw_group(family, rng) for family in rng.choices(families, weights, k=count)]


def measured_examples(
    model: LocalModel, reviews: Sequence[MeasuredReview], generated_weight: float
) -> list[Example]:
    """The reviews with a verdict, weighted by their effect; together they weigh as much as the
    generated ones from MANY on."""
    share = generated_weight / max(MANY, len(reviews))
    examples = []
    for one in reviews:
        size = share * min(MOST_EFFECT, 1 + abs(one.effect))
        text = answer_text(one.analysis, one.edits)
        weight = size if one.accepted else -size
        examples.append(example(model, one.group, text, weight))
    return examples


def review_step(student: Student, step: int, size: int) -> DistillationStep:
    """The rows of one step: targets, and rejected reviews as contrast."""
    rng, harvest = random.Random(f"review {student.plan.seed} {step}"), student.data.harvest
    drawn = rng.choices(harvest, weights=[abs(x.weight) for x in harvest], k=size)
    rows = rows_of(student.model, [x for x in drawn if x.weight > 0], "nll")
    rejected = [
        TrainingRow(*prompts_of(student.model, x.question), x.answer, "policy", advantage=-1.0)
        for x in drawn
        if x.weight < 0
    ]
    base = Student(student.model, None, student.data, student.plan)
    return DistillationStep([*rows, *with_old_log_probabilities(base, rejected)])


STAGES[STAGE] = review_step


class ReviewTasks(Taskset):
    """Generated groups as tasks of GRPO: the answer to be scored is a review."""

    name = "reviewer"

    def __init__(self, model: LocalModel, groups: Sequence[GeneratedGroup]) -> None:
        self.groups = {f"group {i}": group for i, group in enumerate(groups)}
        self.rows = [
            Task(name, reflection_messages(model, group_of(group), REVIEW_TOKENS)[0], "exact", "")
            for name, group in self.groups.items()
        ]

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """All groups."""
        return self.rows[:n]

    def verify(self, task: Task, text: str) -> Score:
        """See `review_reward`."""
        return Score(review_reward(self.groups[task.id], text))


def review_reward(group: GeneratedGroup, text: str) -> float:
    """The reward of a review: LEGAL if every edit can be read, SAFE if no guard objects to their
    texts, and the rest for what the obedient policy earns with its lessons. 0 without an edit."""
    edits, problems = parse_edits(text)
    if not edits or problems:
        return 0.0
    task = group_of(group).task
    texts = [f"{edit.when} {edit.do}" for edit in edits]
    if any(safety.suspicions(x) or safety.leaks(x, task) for x in texts):
        return LEGAL
    effect = earned(group.rule, group.question, [(edit.when, edit.do) for edit in edits])
    return LEGAL + SAFE + (1 - LEGAL - SAFE) * effect


def train_reviewer(
    model: LocalModel,
    name: str,
    measured: Sequence[MeasuredReview],
    options: ReviewOptions,
    folder: Path,
    progress: Progress | None = None,
) -> Json:
    """Train the adapter `name`, or continue from the checkpoint in `folder`; it stays in the model.

    `measured`: reviews whose lessons have a verdict; the others are generated. Returns the figures
    of `reflect.training.loop.train`. NightError.
    """
    count = max(SMALLEST_GROUPS, options.steps * options.batch)
    groups = generated(count, options.seed)
    examples = [example(model, group_of(group), target(group)) for group in groups]
    stages = [(STAGE, options.steps, options.rate)]
    stages += [("grpo", options.grpo, options.rate / GRPO_SLOWER)] if options.grpo else []
    plan = make_plan(
        model.network.num_parameters(),
        method="sft",
        seed=options.seed,
        rank=options.rank,
        stages=tuple(stages),
        group=options.batch,
        batch=options.batch,
        anchor_share=0.0,
    )
    examples += measured_examples(model, measured, len(examples))
    data = TrainingData(examples, [], [], REVIEW_TOKENS)
    if options.grpo:
        reviews = ReviewTasks(model, groups)
        data.tasksets[reviews.name] = reviews
        data.tasks.extend(PracticeTask(reviews.name, task) for task in reviews.rows)
    return train(model, name, data, plan, folder, progress)
