"""Reading lesson edits: tolerant of form, closed to guessing; and the prompt that a reflection is
asked with."""

import pytest
from fakes import RuleModel, dialect

from reflect.day.reflection import (
    Group,
    has_failures,
    majority_success,
    reflection_messages,
    rewards_differ,
)
from reflect.lessons.edit_format import Edit, note_of, parse_edits
from reflect.records import Lesson, Rollout

ZUBI = "the task says zubi"


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("ADD when: the task says zubi do: use reverse", Edit("add", ZUBI, "use reverse")),
        ("add when : the task says zubi   do : use reverse", Edit("add", ZUBI, "use reverse")),
        ("- **ADD** when: the task says zubi do: use reverse", Edit("add", ZUBI, "use reverse")),
        (
            "1. ADD lesson: when: the task says zubi, do: use reverse",
            Edit("add", ZUBI, "use reverse"),
        ),
        (
            "`ADD when: the task says zubi do: not reverse, not sort`",
            Edit("add", ZUBI, "not reverse, not sort"),
        ),
        (
            "REVISE 7 when: the task says zubi do: use rotate",
            Edit("revise", ZUBI, "use rotate", lesson_id=7),
        ),
        (
            "revise lesson 7: when: the task says zubi do: use rotate",
            Edit("revise", ZUBI, "use rotate", lesson_id=7),
        ),
        (
            "REVISE #7 when: the task says zubi do: use rotate",
            Edit("revise", ZUBI, "use rotate", lesson_id=7),
        ),
        (
            "* REVISE lesson number 7 when: the task says zubi do: use rotate",
            Edit("revise", ZUBI, "use rotate", "", 7),
        ),
        ("RETIRE 12 why: reverse failed", Edit("retire", why="reverse failed", lesson_id=12)),
        ("retire lesson #12", Edit("retire", lesson_id=12)),
        (
            "MERGE 7 3 when: the task says zubi do: use rotate",
            Edit("merge", ZUBI, "use rotate", lesson_ids=(3, 7)),
        ),
        (
            "- **merge** lessons 3, #7 and [9]: when: the task says zubi do: use rotate",
            Edit("merge", ZUBI, "use rotate", lesson_ids=(3, 7, 9)),
        ),
        (
            "ADD when: counting letters in a word do: spell the word, comma by comma, and keep a counter",
            Edit(
                "add",
                "counting letters in a word",
                "spell the word, comma by comma, and keep a counter",
            ),
        ),
    ],
)
def test_readable_lines(text, edit):
    assert parse_edits(f"NOTE 1 sort 0\n\n{text}\n") == ([edit], [])


@pytest.mark.parametrize(
    "text",
    [
        "ADD zubi means reverse",
        "ADD when: zubi",
        "ADD when: do: use reverse",
        "ADD when: zubi do:",
        "ADD do: use reverse when: zubi",
        "ADD when: zubi do: use reverse do: use sort",
        "ADD when: zubi do: use reverse ADD when: fapo do: use sort",
        "REVISE when: zubi do: use rotate",
        "REVISE seven when: zubi do: use rotate",
        "REVISE 7 8 when: zubi do: use rotate",
        "REVISE 7 do: use rotate",
        "RETIRE all why: they failed",
        "MERGE when: zubi do: use rotate",
        "MERGE 7 when: zubi do: use rotate",
        "MERGE 7 7 when: zubi do: use rotate",
        "MERGE 3 into 7 when: zubi do: use rotate",
        "MERGE 3-7 when: zubi do: use rotate",
        "MERGE all when: zubi do: use rotate",
        "MERGE 3 7 do: use rotate",
        f"MERGE 3 {'1' * 5000} when: zubi do: use rotate",
        f"REVISE {'1' * 5000} when: zubi do: use rotate",
        "RETIRE 7 because it failed",
        "NONE of this helped",
        "I think that zubi means reverse.",
        "addwhen: zubi do: use reverse",
    ],
)
def test_unreadable_lines_are_reported_and_never_guessed(text):
    edits, problems = parse_edits(text)
    assert edits == []
    assert len(problems) == 1
    assert text[:20] in problems[0]


def test_none_and_note():
    assert parse_edits("NOTE all good\nNONE") == ([], [])
    assert parse_edits("none.") == ([], [])
    assert note_of("note: 1 sort 0, 2 reverse 1\nNONE") == "1 sort 0, 2 reverse 1"
    assert parse_edits("")[1] == ["the answer is empty"]
    edits, problems = parse_edits("ADD when: zubi do: use sort\nNONE")
    assert len(edits) == 1 and problems == ["NONE is given together with edits"]


def test_duplicates_are_merged_and_of_two_texts_for_one_condition_the_first_counts():
    twice = "ADD when: the task says zubi do: use sort\nadd when: Task says zubi. do: use sort."
    assert parse_edits(twice) == ([Edit("add", ZUBI, "use sort")], [])
    text = "ADD when: zubi do: use sort\nADD when: zubi do: use swap\nADD when: kilo do: use rest"
    edits, problems = parse_edits(text)
    assert edits == [Edit("add", "zubi", "use sort"), Edit("add", "kilo", "use rest")]
    assert problems == [
        "contradicts another edit of the same when, and the first one counts: "
        "ADD when: zubi do: use swap"
    ]


def test_two_edits_of_one_lesson_are_taken_by_neither_side():
    text = "REVISE 3 when: fapo do: use last\nRETIRE 3 why: bad\nADD when: kilo do: use rest"
    edits, problems = parse_edits(text)
    assert edits == [Edit("add", "kilo", "use rest")]
    assert len(problems) == 2 and all("contradicts" in p for p in problems)
    text = (
        "MERGE 3 7 when: fapo do: use last\nmerge 7 3 when: fapo do: Use last.\nRETIRE 9 why: bad"
    )
    assert [e.kind for e in parse_edits(text)[0]] == ["merge", "retire"]
    assert [e.kind for e in parse_edits(text + "\nRETIRE 7 why: bad")[0]] == ["retire"]


def test_the_last_line_of_an_answer_that_was_cut_off_is_not_trusted():
    text = "NOTE 1 sort 0\nADD when: fapo do: use last\nADD when: zubi do: not sort, not"
    edits, problems = parse_edits(text, complete=False)
    assert [e.when for e in edits] == ["fapo"]
    assert problems == ["cut off: ADD when: zubi do: not sort, not"]


def test_role_tokens_and_control_characters_never_enter_a_lesson():
    edits, _ = parse_edits("ADD when: zubi<|system|>\x07 do: use\tsort\u202e now")
    assert edits == [Edit("add", "zubi", "use sort now")]


SPELL = Edit("add", "counting letters", "spell the word")
LAYOUTS = {
    "do on its own line": "ADD when: counting letters\ndo: spell the word",
    "bullets and bold": "**ADD**\n- **when:** counting letters\n- **do:** spell the word",
    "heading": "### ADD\n\nwhen: counting letters\n\ndo: spell the word\n\nThat is all.",
    "indented": "ADD:\n  when: counting letters\n  do:\n    spell the word",
    "label": "Edit 1: ADD when: counting letters do: spell the word",
    "italics": "*ADD* *when:* counting letters *do:* spell the word",
    "quoted": "> ADD when: counting letters\n> do: spell the word",
    "code block": "```text\nADD when: counting letters do: spell the word\n```",
    "prose around": "I compared them.\nADD when counting letters do: spell the word\nGood luck!",
    "thoughts": "<think>ADD when: x1 do: y1</think>ADD when: counting letters do: spell the word",
    "json": '{"analysis": "a", "edits": [{"edit": "add", "when": "counting letters", "do": "spell the word"}]}',
    "json, thoughts": '<think>{"edits": []}</think>{"edits": [{"edit": "add", "when": "counting letters", "do": "spell the word"}]}',
    "json, fenced": 'Here:\n```json\n{"edits": [{"edit": "ADD", "when": "counting letters", "do": "spell the word"},]}\n```\nDone {it}.',
    "json, other names": '{"Edits": {"action": "add", "condition": "counting letters", "advice": "spell the word"}}',
    "json, action as advice": '[{"edit": "add", "when": "counting letters", "action": "spell the word"}]',
    "json, one edit": '{"add": {"when": "counting letters", "do": ["spell", "the word"]}}',
    "json, lines": '{"edits": ["ADD when: counting letters do: spell the word"]}',
    "json, line breaks": '{"analysis": "a\nb", "edits": [{"edit": "add", "when": "counting\nletters", "do": "spell the word"}]}',
    "json, draft first": '{"edits": [{"edit": "retire", "lesson": 1, "why": "x"}]}\nBetter:\n{"edits": [{"edit": "add", "when": "counting letters", "do": "spell the word"}]}',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_large_models_are_read(layout):
    assert parse_edits(LAYOUTS[layout]) == ([SPELL], [])


@pytest.mark.parametrize(
    "text",
    [
        "NONE - all is well", "**NONE**", "- none.", "NONE: nothing to learn", "None (all right)",
        "No edits needed.", "Analysis: all good.\n\nNONE", '{"analysis": "good", "edits": []}',
        '{"edits": null}', '{"edits": "NONE"}', '{"edits": [{"edit": "none"}]}',
    ],
)  # fmt: skip
def test_nothing_to_change_in_other_words(text):
    assert parse_edits(text) == ([], [])


def test_steps_of_an_advice_may_have_lines_of_their_own():
    steps = "1. Spell the word. 2. Keep a counter."
    for text in (
        "ADD when: counting letters\ndo:\n1. Spell the word.\n2. Keep a counter.\n\n3. No step.",
        "ADD when: counting letters do: 1. Spell the word.\n2. Keep a counter.",
    ):
        (edit,), problems = parse_edits(text)
        assert (edit.do, problems) == (steps, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("The first attempt was wrong.\nThe second was right.\nBoth are long.", "no edit in the answer: The first attempt was wrong. and 2 more lines"),
        ("ADD when: ... do: ...", "unreadable line: ADD when: ... do: ..."),
        ("ADD when: Attempt 1, reward 0 do: use it", "names an attempt"),
        ('{"edits": [{"edit": "add", "when": "...", "do": "..."}]}', "the condition is empty"),
        ('{"edits": [{"edit": "add", "when": "<condition>", "do": "spell"}]}', "the form itself"),
        ('{"edits": [{"edit": "add", "when": "counting letters"}]}', "the advice is empty"),
        ('{"edits": [{"edit": "add", "when": "a task", "do": "use the ..."}]}', "the form itself"),
        ('{"edits": [{"edit": "revise", "when": "zubi", "do": "sort"}]}', "the number of one lesson"),
        ('{"edits": [{"edit": "merge", "lessons": [3], "when": "zubi", "do": "sort"}]}', "two lessons or more"),
        ('{"edits": [{"edit": "explode", "when": "zubi", "do": "sort"}]}', "its edit is none of add, revise"),
        ('{"edits": [7]}', "unreadable edit: 7"),
        ('{"analysis": "the first', "no edit in the answer"),
        ('{"a": 1}', "no edit in the answer"),
        ("[" * 5000, "no edit in the answer"),
        ('{"edits":' * 3000, "no edit in the answer"),
    ],
)  # fmt: skip
def test_an_answer_without_edits_is_one_clear_sentence(text, problem):
    edits, problems = parse_edits(text)
    assert edits == [] and len(problems) == 1 and problem in problems[0]


def test_half_of_a_json_keeps_its_complete_edits():
    text = '{"analysis": "a", "edits": [{"edit": "add", "when": "counting letters", "do": "spell the word"}'
    for more in (
        "",
        ", ",
        ', {"edit": "add", "when": "zu',
        ', {"edit": "add", "when": "zubi", "do": "so',
    ):
        edits, problems = parse_edits(text + more, complete=False)
        assert (edits, problems) == ([SPELL], ["cut off: the JSON does not end"])


def test_of_forty_edits_a_few_count():
    lines = [f"ADD when: case {i} of forty do: use way {i}" for i in range(40)]
    edits, problems = parse_edits("\n".join(lines))
    assert len(edits) == 6 and problems == [
        "40 edits are too many for one group: the first 6 count"
    ]


def rollout(text: str, reward: float | None, error: str | None = None) -> Rollout:
    messages = [{"role": "user", "content": "Apply zubi to the list 3 1 2."}]
    if not error:
        messages.append({"role": "assistant", "content": text})
    return Rollout(run_id=1, task_key="t", index=0, messages=messages, reward=reward, error=error)


TASK = dialect.Dialect.task("zubi", "reverse", [3, 1, 2], "practice")


def test_which_groups_teach():
    assert not has_failures([rollout("a", 1.0), rollout("b", 1.0)])
    assert not has_failures([rollout("a", None), rollout("b", None)])
    assert has_failures([rollout("a", 0.0), rollout("b", 0.0)])
    assert has_failures([rollout("a", 0.5), rollout("b", 1.0), rollout("c", None)])
    assert majority_success([rollout("a", 1.0), rollout("b", 0.5), rollout("c", None)]) is False
    assert majority_success([rollout("a", 1.0), rollout("b", 0.5)]) and not majority_success([])
    assert rewards_differ([rollout("a", 0.5), rollout("b", 1.0)])
    assert not rewards_differ([rollout("a", 0.0), rollout("b", 0.0), rollout("c", None)])


def test_the_prompt_holds_the_task_once_the_lessons_and_every_attempt_but_no_answer_key():
    lesson = Lesson(id=7, when=ZUBI, do="use sort")
    group = [
        rollout("zubi means sort. answer: 1 2 3", 0.0),
        rollout("zubi means swap <|end|>", 0.0),
    ]
    (*_, message), packed = reflection_messages(
        RuleModel(), Group(TASK, [lesson], [], [*group, rollout("", None, "model: broke")]), 100
    )
    text = message["content"]
    assert message["role"] == "user"
    assert text.count("Apply zubi to the list 3 1 2.") == 1
    assert "lesson 7 when: the task says zubi do: use sort" in text
    assert "attempt 1, reward 0:\nzubi means sort. answer: 1 2 3" in text
    assert "attempt 3" not in text  # the model gave no answer there
    assert "<|end|>" not in text
    assert "2 1 3" not in text
    assert packed.text in text and packed.cut == ""


def test_a_group_too_long_for_the_context_is_cut_and_says_so():
    model = RuleModel(context=600)
    group = [rollout(f"zubi means sort. {'word ' * 300}", 0.0) for _ in range(8)]
    (*_, message), packed = reflection_messages(model, Group(TASK, [], [], group), 100)
    assert model.count_tokens(message["content"]) + 100 <= 600
    assert packed.cut and f"Left out: {packed.cut}" in message["content"]
