"""The plan of a night: the budget in minutes decides steps, rates and rank. All values are stored.

The steps follow from the budget by a table, not by a clock, so that the same night gives the same
adapter on any day.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from reflect.errors import UsageError, ensure_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reflect.types import Json


class Size(NamedTuple):
    """What suits models up to a size. LoRA's rates: ten times full fine-tuning's ("LoRA Without
    Regret"), but of the smallest size as tried here, where the factor was 2.5 (docs/lab)."""

    parameters: float  # up to this many
    rank: int
    sft: float  # learning rate of the warm start
    distill: float  # learning rate of distillation
    grpo: float  # learning rate of reinforcement learning
    steps: int  # per minute of the budget; of reinforcement learning a third
    fewest: int = 0  # steps of a night without a budget
    per_lesson: int = 0  # steps for each lesson of a night without a budget
    warm: float = 0.4  # share of the warm start in the method "staged"
    other: Mapping[str, Any] = MappingProxyType({})  # other fields of Plan


# What suits a pretrained model: short answers, few of them, from what was scored before.
PRETRAINED: Json = {
    "batch": 16,
    "fewest_tasks": 16,
    "tasks_per_lesson": 5,
    "anchors": 96,
    "anchor_share": 0.5,
    "gate_tasks": 40,
    "temperature": 0.7,
    "reuse": True,
    "sample_batch": 16,
}
SIZES = (
    Size(2e7, rank=8, sft=4e-3, distill=2e-3, grpo=4e-3, steps=120),
    Size(
        1e9,
        rank=16,
        sft=1e-3,
        distill=2e-4,
        grpo=4e-5,
        steps=20,
        fewest=60,
        per_lesson=8,
        warm=0.9,
        other=PRETRAINED | {"answer_tokens": 64},
    ),
    Size(
        float("inf"),
        rank=32,
        sft=3e-4,
        distill=1e-4,
        grpo=2e-5,
        steps=10,
        fewest=60,
        per_lesson=6,
        warm=0.7,
        other=PRETRAINED | {"answer_tokens": 256, "anchors": 160},
    ),
)

# method -> its stages and the share of the steps that each takes
METHODS: dict[str, tuple[tuple[str, float], ...]] = {
    "staged": (("sft", 0.4), ("distill", 0.6)),
    "sft": (("sft", 1.0),),
    "distill": (("distill", 1.0),),
    "grpo": (("grpo", 1.0),),
    "staged+grpo": (("sft", 0.25), ("distill", 0.4), ("grpo", 0.35)),
}
LONGEST_GATE = 20.0  # minutes, for a small budget
RL_RANK = 1  # with rewards alone as good as any other ("LoRA Without Regret")
RL_SLOWER = 3  # one of its steps takes about as long as three others
FEWEST_MINUTES, MINUTES_PER_LESSON = 0.5, 1 / 15  # of the budget, where none is given
DIVERGENCES = ("forward", "reverse", "jsd")


ADDED = frozenset(("answer_tokens", "reuse", "sample_batch"))  # to Plan, since its first version


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a night does, except its lessons and its base."""

    method: str
    divergence: str  # of the student from the teacher on what the student wrote
    budget: float  # minutes
    seed: int
    rank: int
    alpha: int
    stages: tuple[tuple[str, int, float], ...]  # (name, steps, learning rate)
    batch: int = 32  # rows of one step, anchors included
    anchor_share: float = 0.4
    tasks_per_lesson: int = 16  # practice tasks that preflight and harvest use
    fewest_tasks: int = 32  # of one taskset
    samples: int = 2  # the teacher's attempts at each task
    anchors: int = 160
    gate_tasks: int = 48  # holdout tasks of each taskset, more where there are many lessons
    temperature: float = 1.0
    group: int = 8  # GRPO: attempts at one task
    updates: int = 2  # of GRPO: optimizer steps on all the rollouts of one step
    kl: float = 0.0  # weight of the KL to the base in its loss
    start: str = ""  # the adapter that training continues; "": a new one
    placebo: bool = True  # also train on shuffled lessons, to see that the gain is the lessons'
    micro_tokens: int = 8192  # padded tokens that go through the network at once
    answer_tokens: int = 0  # most tokens of an answer; 0: max_tokens of the settings
    reuse: bool = False  # use what the day and preflight have scored, before more is sampled
    sample_batch: int = 128  # prompts of the night that are sampled together

    @property
    def learns_from_teacher(self) -> bool:
        """Whether any stage needs the teacher's good attempts."""
        return any(name != "grpo" for name, _, _ in self.stages)

    @property
    def gate_minutes(self) -> float:
        """A gate that takes longer than this promotes nothing."""
        return max(LONGEST_GATE, 20 * self.budget)

    @property
    def steps(self) -> int:
        """Training steps of all stages."""
        return sum(steps for _, steps, _ in self.stages)

    def shape(self) -> dict[str, Any]:
        """As stored and printed."""
        stages = [list(stage) for stage in self.stages]
        values = asdict(self) | {"steps": self.steps, "stages": stages}
        # Later fields at their defaults are left out, so that the keys of nights do not change.
        added = (x for x in fields(self) if x.name in ADDED and values[x.name] == x.default)
        for x in added:
            del values[x.name]
        return values


def plan_summary(plan: Mapping[str, Any]) -> str:
    """The values of a plan (`Plan.shape`) that follow from the model's size and the number of
    lessons, each with the flag that sets it; "" without a plan."""
    if not plan:
        return ""
    stages = ", ".join(f"{n} steps of {name} at {rate:g}" for name, n, rate in plan["stages"])
    most = plan.get("answer_tokens") or "max_tokens"
    return (
        f"{stages} (--steps, --learning-rate), rank {plan['rank']} (--rank), batch {plan['batch']} "
        f"(--batch), {plan['samples']} attempts of the teacher at each task (--samples) at "
        f"temperature {plan['temperature']:g} (--temperature), answers of at most {most} tokens "
        f"(--answer-tokens), {plan['anchors']} anchors (--anchors)"
    )


@dataclass(frozen=True, kw_only=True)
class NightOptions:
    """What the caller of a night decides; the rest of the plan follows from the model and the
    lessons (`make_plan`)."""

    method: str = "staged"
    """One of METHODS."""
    divergence: str | None = None
    """One of DIVERGENCES; None: as suits the method."""
    budget: float | None = None
    """Minutes of training; None: by the number of lessons."""
    seed: int = 0
    steps: int | None = None
    """Training steps of all stages; None: by the budget, or by the number of lessons."""
    learning_rate: float | None = None
    """Of the first stage; the others keep their ratio to it. None: by the model's size."""
    continued: bool = False
    """Start from the active adapter's weights; the teacher has all lessons in its prompt in any
    case."""
    plan: Json = field(default_factory=dict)
    """Other fields of `Plan`, by name."""

    def changed(self, values: Mapping[str, object]) -> NightOptions:
        """These options with new values of their fields, or of fields of the plan. UnknownName."""
        own, plan = ({x.name for x in fields(kind)} for kind in (NightOptions, Plan))
        for name in values:
            ensure_known("option of a night", name, own | plan)
        mine: Json = {name: value for name, value in values.items() if name in own}
        more = {name: value for name, value in values.items() if name not in own}
        return replace(self, **{"plan": self.plan | more, **mine})

    def choices(self) -> Json:
        """The arguments of `make_plan`."""
        own = {name: x for name, x in vars(self).items() if name not in ("continued", "plan")}
        return own | self.plan


def make_plan(
    parameters: int,
    lessons: int = 1,
    *,
    method: str = "staged",
    divergence: str | None = None,
    budget: float | None = None,
    seed: int = 0,
    steps: int | None = None,
    learning_rate: float | None = None,
    **changes: Any,
) -> Plan:
    """The plan for a model of so many parameters and lessons, from which a budget of None follows.

    `changes` are other fields of Plan. Default divergence: `reverse` after a warm start, else
    `forward`, because reverse needs a student that already succeeds. UnknownName, UsageError.
    """
    ensure_known("sleep method", method, METHODS)
    ensure_known("divergence", divergence or "jsd", DIVERGENCES)
    if budget is not None and not 0 < budget <= 24 * 60:
        problem = f"A budget of {budget:g} minutes is not between 0 and a day."
        raise UsageError(problem, "Try --budget 1m.")
    alone = METHODS[method] == METHODS["grpo"]
    size = next(size for size in SIZES if parameters <= size.parameters)
    if budget is None and size.fewest:
        needed = steps or max(size.fewest, size.per_lesson * lessons)
        budget = round(needed / size.steps * (RL_SLOWER if alone else 1), 2)
    elif budget is None:
        budget = max(FEWEST_MINUTES, MINUTES_PER_LESSON * lessons) * (RL_SLOWER if alone else 1)
    total = steps or max(4, round(budget * size.steps))
    rates = {"sft": size.sft, "distill": size.distill, "grpo": size.grpo}
    if learning_rate is not None:
        first = rates[METHODS[method][0][0]]
        rates = {name: rate * learning_rate / first for name, rate in rates.items()}
    slower = {"grpo": RL_SLOWER}
    shares = dict(METHODS[method])
    if method == "staged":
        shares = {"sft": size.warm, "distill": 1 - size.warm}
    stages = tuple(
        (name, max(1, round(share * total / slower.get(name, 1))), rates[name])
        for name, share in shares.items()
    )
    plan = Plan(
        method=method,
        divergence=divergence or ("forward" if METHODS[method][0][0] == "distill" else "reverse"),
        budget=budget,
        seed=seed,
        rank=RL_RANK if alone else size.rank,
        alpha=32,
        stages=stages,
        batch=64 if alone else 32,
    )
    return replace(plan, **(dict(size.other) | changes))


PER_LESSON = 8  # holdout tasks, where a taskset has many lessons
