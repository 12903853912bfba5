"""What a night on a pretrained model is guarded by, and where a lesson's condition fires."""

from __future__ import annotations

import pytest

from reflect.lessons.selection import fires
from reflect.tasksets.task import Task
from reflect.training import general

INN = [
    "asked when breakfast starts at the inn",
    "asked for the wifi password of the inn",
    "asked where the pool of the inn is",
    "asked what parking costs at the inn",
]


@pytest.mark.parametrize(
    ("text", "which"),
    [
        ("When does the inn begin to serve breakfast?", 0),
        ("I need the inn's WIFI password!", 1),
        ("Which floor is the pool on?", 2),
        ("How much do you charge for a car park at the inn?", 3),
        ("BREAKFAST, please: from when on?", 0),
        ("password?", 1),
    ],
)
def test_an_effect_belongs_to_the_lesson_whose_condition_fires(text: str, which: int) -> None:
    assert fires(INN, text) == [i == which for i in range(len(INN))]


def test_a_lesson_alone_fires_and_a_text_about_nothing_fires_all() -> None:
    assert fires(["counting letters in a word"], "How many r are in strawberry?") == [True]
    assert fires(INN, "Hi!") == [True] * 4
    assert fires([], "Hi!") == []


def question(text: str) -> Task:
    return Task("t", [{"role": "user", "content": text}], "contains", "16:30")


@pytest.mark.parametrize(
    ("text", "condition", "same"),
    [
        ("When does the office close?", "asked when the office closes", "When does the {} close?"),
        ("Is parking at the inn free?", "asked what parking costs at the inn", "Is parking at the {} free?"),
        ("Tell me the inn's code.", "asked for the code of the inn", "Tell me the {}'s code."),
        ("Where can my OFFICE mail go? The office knows.", "asked about the office", None),
        ("How do I reset my password?", "asked for the password", "How do I reset my {}?"),
    ],
)  # fmt: skip
def test_a_neighbour_is_the_same_question_about_something_else(
    text: str, condition: str, same: str | None
) -> None:
    other = general.neighbour(question(text), [condition], condition, "practice", 0)
    assert other is not None and other.text != text and not other.lessons
    assert same is None or any(other.text == same.format(x) for x in general.OTHERS["practice"])
    assert (other.verifier, other.answer) == ("contains", "16:30")


def test_a_neighbour_is_never_one_of_the_lessons_own_things() -> None:
    task, taken = question("When does the school close?"), "school hospital bakery airport castle"
    texts = {
        general.neighbour(task, ["asked about the school"], taken, "practice", seed).text
        for seed in range(20)
    }
    assert texts == {"When does the theatre close?"}
    assert general.neighbour(question("2 + 2"), ["asked to add"], "", "practice", 0) is None


def test_the_instructions_are_hundreds_and_no_two_are_alike() -> None:
    practice, holdout = map(general.instructions, ("practice", "holdout"))
    assert len(practice) + len(holdout) >= 250 and not set(practice) & set(holdout)
    assert len({*practice, *holdout}) == len(practice) + len(holdout)
    assert all(10 <= len(line) <= 100 for line in practice + holdout)
    assert not any(word in general.page() for word in ("office", "inn ", "lesson"))


def test_invented_lessons_answer_their_questions() -> None:
    taskset = general.NewLessons(["phone", "day"])
    tasks = taskset.following(20, seed=3)
    assert {general.kind_of(task) for task in tasks} == {"phone", "day"}
    for task in tasks:
        ((when, do),) = task.lessons
        assert str(task.answer) in do and when.startswith("asked")
        assert taskset.verify(task, do).reward == 1.0
    assert [t.text for t in tasks] == [t.text for t in taskset.following(20, seed=3)]
    assert all(mark in do.casefold() for rules in general.RULES.values() for do, mark in rules)
