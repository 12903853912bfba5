"""The reviewer: generated groups and their strict policy, evidence, gate, promotion and rollback."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from reflect.lessons.edit_format import parse_edits
from reflect.reviewer.families import all_families, has_new_part
from reflect.reviewer.groups import (
    DOMAINS,
    NEW_DOMAINS,
    NEW_WORDS,
    WORDS,
    HiddenRule,
    ObedientPolicy,
    ask,
    draw_group,
    earned,
    read_lesson,
)
from reflect.reviewer.train import LEGAL, answer_text, review_reward, target

FAMILIES = all_families()


def test_a_quarter_of_at_least_sixty_families_is_never_trained_on() -> None:
    sizes = {split: len(families) for split, families in FAMILIES.items()}
    assert sizes["train"] >= 60
    assert sizes["test"] >= sum(sizes.values()) / 4
    names = [family.name for families in FAMILIES.values() for family in families]
    assert len(names) == len(set(names))
    composed = [name for name in names if " in " in name]
    assert len(composed) > len(names) / 3
    assert all_families() == FAMILIES  # the same at every call


def test_a_part_of_the_tests_is_in_no_trained_family() -> None:
    trained = {part for family in FAMILIES["train"] for part in family.parts}
    for split in ("dev", "test"):
        new = [family for family in FAMILIES[split] if has_new_part(family, FAMILIES["train"])]
        assert len(new) >= len(FAMILIES[split]) / 2
        assert all(set(family.parts) - trained for family in new)
    assert not set(WORDS) & set(NEW_WORDS)
    assert len(DOMAINS) > 2 * NEW_DOMAINS


@pytest.mark.parametrize("split", FAMILIES)
def test_the_lesson_of_each_family_earns_its_reward_and_no_lesson_does_not(split: str) -> None:
    rng = random.Random(1)
    for family in FAMILIES[split]:
        group = draw_group(family, rng, new_words=rng.random() < 0.5)
        rewards = [reward for _, reward in group.attempts]
        assert min(rewards) == 0.0
        assert max(rewards) == 1.0
        assert earned(group.rule, group.question, [group.rule.lesson]) == 1.0, family.name
        assert earned(group.rule, group.question, []) < 1.0, family.name
        edits, problems = parse_edits(target(group))  # what the reviewer learns to write is legal
        assert not problems
        assert [(edit.when, edit.do) for edit in edits] == [group.rule.lesson]
        assert group.question.answer not in group.rule.lesson[1].split()


def test_the_lesson_of_another_family_earns_nothing() -> None:
    rng, right = random.Random(2), Counter()
    families = [family for family in FAMILIES["train"] if family.kind == "form"]
    for family in families:
        group, other = draw_group(family, rng), rng.choice(families)
        if other.form != family.form:
            lesson = group.rule.lesson[0], other.lesson(group.rule.noun, "zebra")
            right[earned(group.rule, group.question, [lesson])] += 1
    assert set(right) == {0.0}


@pytest.mark.parametrize(
    ("when", "do"),
    [
        ("asked for the capital", "reply with (X)"),
        ("asked for the capital", "Reply with (X) where X is the answer"),
        ("asked for the capital", "reply with (X) where X is the answer in brackets"),
        ("asked for the capital", "put the answer in parentheses"),
        ("asked for the capital", "reply with (paris) where X is the answer"),
        ("asked for the plural", "reply with (X) where X is the answer"),
        ("a question for the capital", "reply with (X) where X is the answer"),
        ("always", "reply with (X) where X is the answer"),
    ],
)
def test_the_policy_reads_the_words_of_a_lesson_strictly(when: str, do: str) -> None:
    assert read_lesson((when, do), "capital") is None


def test_the_policy_obeys_a_lesson_that_it_reads() -> None:
    rule = HiddenRule(FAMILIES["train"][0], "capital", "sure")
    question = ask("capital", random.Random(0))
    lesson = "asked for the capital", "reply with Y: <X>! where X is the answer in capitals"
    reply = ObedientPolicy(rule).reply(question, [lesson], random.Random(0))
    assert reply == f"{question.subject}: <{question.answer.upper()}>!"


def test_a_method_earns_by_its_work_and_not_by_its_form() -> None:
    family = next(family for family in FAMILIES["train"] if family.name == "y =")
    rng = random.Random(3)
    group = draw_group(family, rng)
    with_work = group.rule.lesson[0], "reply with ok Y = (X) where X is the answer"
    without = group.rule.lesson[0], "reply with X where X is the answer"
    assert earned(group.rule, group.question, [with_work]) == 1.0
    assert earned(group.rule, group.question, [without]) == 0.0


def test_the_reward_of_a_review_is_its_form_its_guards_and_what_its_lesson_does() -> None:
    group = draw_group(FAMILIES["train"][0], random.Random(4))
    when, _ = group.rule.lesson
    answer = group.question.answer

    def reward(when: str, do: str) -> float:
        return review_reward(group, answer_text("", [{"edit": "add", "when": when, "do": do}]))

    assert review_reward(group, target(group)) == pytest.approx(1.0)
    assert reward(when, "reply with %%X%% where X is the answer") == pytest.approx(0.2)
    assert reward(when, f"reply with {answer}") == LEGAL  # it gives the answer away
    assert reward(when, "curl the answer key of the grader") == LEGAL
    assert review_reward(group, "The attempts were good.") == 0.0
    assert review_reward(group, answer_text("nothing new", [])) == 0.0
