"""The gate of a reviewer: on held-out groups, the share of reviews whose lesson helps must rise.

    simulated   generated groups: new ones of the trained families, and ones of families that no
                training saw. A lesson helps if a policy that obeys it earns the reward.
    measured    groups of the profile that the training left out, with an accepted and a rejected
                review among them: the reviewer must not prefer the rejected ones more than before.

Not covered: the effect of the lessons on a real model, which the trials of the next runs measure.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from reflect.day.review import review
from reflect.models.base import ACTIVE
from reflect.reviewer.families import all_families, has_new_part
from reflect.reviewer.groups import draw_group, earned
from reflect.reviewer.train import REVIEW_TOKENS, answer_text, example, group_of
from reflect.stats.bootstrap import bootstrap
from reflect.stats.proportion import wilson
from reflect.training.distillation import rows_of
from reflect.training.losses import losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.reviewer.evidence import MeasuredReview
    from reflect.reviewer.groups import GeneratedGroup
    from reflect.types import Json, Progress

GATE_GROUPS = 24  # generated groups of each kind
FEWEST = 4  # held-out measured reviews of each verdict, below which nothing is measured
TOLERANCE = 0.05  # nats per token
PART = 12  # groups that are reviewed together


class ReviewedGroup(NamedTuple):
    """A generated group with the lesson that a review wrote, and what the lesson earned."""

    group: GeneratedGroup
    lessons: list[tuple[str, str]]
    reward: float
    raw: str

    @property
    def right(self) -> bool:
        """Does the lesson earn the reward on every question?"""
        return self.reward == 1.0


def share(right: Sequence[bool]) -> Json:
    """The share of reviews whose lesson helps, with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    figures = {"share": sum(right) / max(1, len(right)), "low": low, "high": high}
    return {name: round(x, 3) for name, x in figures.items()} | {"n": len(right)}


def held_out(
    count: int, seed: int, splits: Sequence[str] = ("test",)
) -> dict[str, list[GeneratedGroup]]:
    """Kind -> `count` groups: `groups` new ones of trained families, `words` with words and kinds
    of questions that no training saw, `parts` of families with a part that no training saw, and
    `compositions` of trained parts that were never composed."""
    rng, families = random.Random(f"held out {seed}"), all_families()
    trained, unseen = families["train"], [x for name in splits for x in families[name]]
    new = [x for x in unseen if has_new_part(x, trained)]
    old = [x for x in unseen if not has_new_part(x, trained)]

    kinds = {"groups": trained, "words": trained, "parts": new, "compositions": old}
    drawn: dict[str, list[GeneratedGroup]] = {}
    for kind, some in kinds.items():
        order = rng.sample(some, len(some))
        turns = [order[i % len(order)] for i in range(count)] if order else []
        drawn[kind] = [draw_group(x, rng, new_words=kind == "words") for x in turns]
    return drawn


def reviewed(
    model: LocalModel,
    groups: Sequence[GeneratedGroup],
    name: str,
    progress: Progress | None = None,
) -> list[ReviewedGroup]:
    """The reviews of groups by the adapter `name` (ACTIVE: by the base, with its own prompt)."""
    out: list[ReviewedGroup] = []
    for i in range(0, len(groups), PART):
        if progress:
            progress(i, len(groups), f"reviews by {name or 'the base'}")
        part = groups[i : i + PART]
        packed = [replace(group_of(group), reviewer=name) for group in part]
        for group, answer in zip(part, review(model, packed, REVIEW_TOKENS), strict=True):
            lessons = [(edit.when, edit.do) for edit in answer.edits]
            reward = earned(group.rule, group.question, lessons)
            out.append(ReviewedGroup(group, lessons, reward, answer.raw))
    return out


def preference(model: LocalModel, name: str | None, reviews: Sequence[MeasuredReview]) -> float:
    """Mean log probability per token of the accepted reviews minus that of the rejected ones."""
    sums: dict[bool, list[float]] = {True: [], False: []}
    for one in reviews:
        row = rows_of(
            model, [example(model, one.group, answer_text(one.analysis, one.edits))], "nll"
        )
        with torch.no_grad(), model.using(name):
            sums[one.accepted].append(-float(losses(model, name, row)[0].mean()))
    means = {kind: sum(values) / max(1, len(values)) for kind, values in sums.items()}
    return means[True] - means[False]


def examine(
    model: LocalModel,
    name: str,
    held: Sequence[MeasuredReview],
    *,
    before: str = ACTIVE,
    count: int = GATE_GROUPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[bool, list[Json]]:
    """(passed, checks) of the adapter `name` against the reviewer `before`: by default the base."""
    drawn = held_out(count, seed)
    groups = [*drawn["groups"], *drawn["parts"]]
    old, new = (reviewed(model, groups, one, progress) for one in (before, name))
    changes = [float(b.right) - float(a.right) for a, b in zip(old, new, strict=True)]
    low, _ = bootstrap(changes, seed)
    shares = [share([x.right for x in rows])["share"] for rows in (old, new)]
    text = (
        f"reviews whose lesson helps {shares[0]:.2f} -> {shares[1]:.2f} "
        f"of {len(groups)} held-out groups, the change at least {low:+.2f}"
    )
    checks: list[Json] = [{"kind": "simulated", "ok": low > 0, "text": text}]
    verdicts = [one.accepted for one in held]
    if min(verdicts.count(True), verdicts.count(False)) < FEWEST:
        return low > 0, checks  # too few to measure anything
    margins = [preference(model, one or None, held) for one in (before, name)]
    ok = margins[1] >= margins[0] - TOLERANCE
    text = f"preference for accepted reviews {margins[0]:+.3f} -> {margins[1]:+.3f} nats a token"
    return low > 0 and ok, [*checks, {"kind": "measured", "ok": ok, "text": text}]
