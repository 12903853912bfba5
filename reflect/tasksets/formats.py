"""Rows of other formats as rows of a task file. One rule per format; a row that fits none, or two,
is refused with the line that converts it.

    question, answer       {"question": Q, "answer": A}; also problem, query, instruction (+ input),
                           and output, response, completion, target, ground_truth; `context` is
                           before the question, `system` is the system message
    GSM8K                  an answer that ends in "#### 72": the number 72
    MATH                   {"problem": Q, "solution": "... \\boxed{A} ..."}
    choices                {"question": Q, "choices": [...], "answer": 1 | "B" | text}: the letter
    OpenAI fine-tuning     {"messages": [..., {"role": "assistant", "content": A}]}
    ShareGPT               {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", ...}]}
    verl                   {"prompt": [messages], "reward_model": {"ground_truth": A}}

A thought before the assistant's answer is left out. `split`: train is practice; test, validation
and dev are holdout. An answer that was cut out of a derivation and is one number has the verifier
`number`. Fields of our own (`verifier`, `id`, `rubric`, ...) are used as they are.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.tasksets.numbers import only_number
from reflect.tasksets.thoughts import split_thought
from reflect.tasksets.verifiers import BOXED, final_answer

if TYPE_CHECKING:
    from reflect.tasksets.rows import FileRow
    from reflect.types import Json

QUESTIONS = (
    "question",
    "problem",
    "query",
    "instruction",
    "input",
    "conversations",
    "conversation",
)
ANSWERS = (
    "ground_truth", "final_answer", "expected_answer", "correct_answer", "answerKey", "target",
    "output", "response", "completion", "expected", "label", "solution",
)  # fmt: skip
CHOICES = ("choices", "options")
CONTEXTS = ("context", "passage")
SYSTEMS = ("system", "system_prompt")
NAMES = ("prompt", "messages", "answer", "split", "answers", *QUESTIONS, *ANSWERS, *CHOICES)
LONGEST_SOLUTION = 100  # characters of a solution that is an answer and not a derivation
SPLITS = {
    "train": "practice", "training": "practice",
    **dict.fromkeys(("test", "validation", "valid", "val", "dev", "eval"), "holdout"),
}  # fmt: skip
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"), "system": "system",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
}  # fmt: skip
GSM8K = re.compile(r"(?:\A|\n)\s*####\s*(\S[^\n]*?)\s*\Z")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def converted(row: FileRow) -> FileRow:
    """The row in the fields of a task file. BadTaskFile where it is ambiguous."""
    fields = dict(row.fields)
    for name in row.fields:
        if name.lower() in NAMES and name.lower() not in fields:  # Question, ANSWER
            fields[name.lower()] = fields.pop(name)
    if isinstance(fields.get("split"), str):
        fields["split"] = SPLITS.get(fields["split"].lower(), fields["split"])
    if _is_ours(fields):  # the rest is ignored
        _answer(row, fields)
        return row._replace(fields=fields)
    if "chosen" in fields and "rejected" in fields:
        step = line_that_converts(row, answer="chosen")
        row.fail("chosen", "preferences are not answers", step)
    own = "prompt" in fields or "messages" in fields
    _verl(row, fields)
    _question(row, fields, own)
    _conversation(row, fields)
    _columns(fields)
    _answer(row, fields)
    _choices(row, fields)
    _system(fields)
    return row._replace(fields=fields)


def _is_ours(fields: Json) -> bool:
    """Has the row the question and the answer of a task file?"""
    talk = fields.get("messages")
    asked = isinstance(fields.get("prompt"), str) or (
        isinstance(talk, list)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in talk)
        and [m.get("role") for m in talk][-1:] in (["user"], ["tool"])
    )
    return asked and bool({"answer", "rubric", "cases", "verifier"} & set(fields))


def line_that_converts(row: FileRow, question: str = "", answer: str = "") -> str:
    """The command, or the change of the first row, that gives a task file of prompts and
    answers."""
    names = [name for name in row.fields if name not in ("id", "split")]
    question = question or next((name for name in ("prompt", *QUESTIONS) if name in names), "")
    question = question or next(iter(names), "QUESTION")
    others = [name for name in names if name != question]
    answer = answer or next((name for name in ("answer", *ANSWERS) if name in others), "")
    answer = answer or next(reversed(others), "ANSWER")
    path = Path(re.sub(r", (?:\w+ )?(?:line|task) \d+\Z", "", row.where))
    if path.suffix.lower() in (".csv", ".tsv", ".yaml", ".yml"):
        return f"Rename the field {question} to prompt, and {answer} to answer."
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        return "Give the fields prompt and answer."
    rows = ".[] | " if path.suffix.lower() == ".json" else ""
    filters = f"{rows}{{prompt: .{question}, answer: .{answer}}}"
    return f"Convert it: jq -c {shlex.quote(filters)} {shlex.quote(str(path))} > tasks.jsonl"


def _verl(row: FileRow, fields: Json) -> None:
    if isinstance(fields.get("prompt"), list):
        if "messages" in fields:
            row.fail("prompt", "there is 'messages' too", "Give one of the two.")
        fields["messages"] = fields.pop("prompt")
    reward = fields.get("reward_model")
    if not isinstance(reward, dict) or "answer" in fields:
        return
    truth = reward.get("ground_truth")
    if not isinstance(truth, str | int | float) or isinstance(truth, bool):
        problem = "its ground_truth is not a text or a number"
        step = line_that_converts(row, "prompt", "reward_model.ground_truth[0]")
        row.fail("reward_model", problem, step)
    fields["answer"] = truth
    _derived(fields)
    extra = fields.get("extra_info")
    part = extra.get("split") if isinstance(extra, dict) else None
    if part in SPLITS:
        fields.setdefault("split", SPLITS[part])


def _question(row: FileRow, fields: Json, own: bool) -> None:
    names = [name for name in QUESTIONS if name in fields]
    if own or not names:
        return
    text = fields.get("input")
    if names[:1] == ["instruction"] and isinstance(text, str):  # Alpaca
        names.remove("input")
        if text.strip():
            fields["instruction"] = f"{fields['instruction']}\n\n{text}"
    if names[1:]:
        row.fail(names[0], f"there is '{names[1]}' too", line_that_converts(row))
    name = names[0]
    is_talk = isinstance(fields[name], list)
    context = next((fields[key] for key in CONTEXTS if isinstance(fields.get(key), str)), "")
    if context and isinstance(fields[name], str):
        fields[name] = f"{context}\n\n{fields[name]}"
    fields["messages" if is_talk else "prompt"] = fields.pop(name)


def _conversation(row: FileRow, fields: Json) -> None:
    """Messages of ShareGPT, content in parts, and a last turn that is the answer."""
    talk = fields.get("messages")
    if not isinstance(talk, list) or not all(isinstance(turn, dict) for turn in talk):
        return
    turns = [_turn(row, turn) for turn in talk]
    fields["messages"] = turns
    if not turns or turns[-1].get("role") != "assistant":
        return
    if "answer" in fields:
        problem = "the last one is an answer, and there is 'answer' too"
        row.fail("messages", problem, "Leave one of them out.")
    last = turns.pop()
    if last.get("tool_calls") or last.get("function_call"):
        step = "Write an environment in Python: see docs/environments.md."
        row.fail("messages", "the last one calls a tool, which is no text to compare", step)
    fields["answer"] = split_thought(str(last.get("content") or ""))[1].strip()


def _turn(row: FileRow, turn: Json) -> Json:
    if "from" in turn and "role" not in turn:
        role = SPEAKERS.get(str(turn["from"]).lower())
        if role is None:
            problem = f"{turn['from']!r} is no speaker that is known ({', '.join(SPEAKERS)})"
            row.fail("conversations", problem, "Rename it, or write the row as 'messages'.")
        return {"role": role, "content": turn.get("value", turn.get("content"))}
    content = turn.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    role = "system" if turn.get("role") == "developer" else turn.get("role")
    rest = {key: value for key, value in turn.items() if value is not None and key != "weight"}
    return {**rest, "role": role, "content": content}


def _answer(row: FileRow, fields: Json) -> None:
    """An answer by another name, or at the end of a derivation."""
    if {"rubric", "cases"} & set(fields) or fields.get("verifier") in ("judge", "human", "code"):
        return
    if "answer" not in fields and "answers" in fields:
        answers = fields.pop("answers")
        if not isinstance(answers, list) or len(answers) != 1:
            step = line_that_converts(row, answer="answers[0]")
            row.fail("answers", "it is not one text", step)
        fields["answer"] = answers[0]
    names = []
    for name in ANSWERS:
        value = fields.get(name)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            value = split_thought(str(value[0].get("content") or ""))[1].strip()  # a turn
            fields[name] = value
        if isinstance(value, str | int | float):
            names.append(name)
    if "answer" not in fields and names:
        if len(names) > 1 and "solution" in names:  # the derivation of the other
            names.remove("solution")
        if names[1:]:
            row.fail(names[0], f"there is '{names[1]}' too", line_that_converts(row))
        answer = fields[names[0]]
        if names[0] == "solution":
            boxed = BOXED.search(str(answer))
            if not boxed and len(str(answer)) > LONGEST_SOLUTION:
                problem = "it is a derivation without \\boxed{...}"
                row.fail("solution", problem, "Give the final answer as 'answer'.")
            answer = final_answer(str(answer)) if boxed else answer
            fields["answer"] = answer
            if answer != fields["solution"]:
                _derived(fields)
            return
        fields["answer"] = answer
    answer = fields.get("answer")
    if isinstance(answer, str) and "verifier" not in fields and (end := GSM8K.search(answer)):
        fields["answer"] = end[1]
        _derived(fields)


def _columns(fields: Json) -> None:
    """Choices in columns A, B, ... or option_a, option_b, ...: a list."""
    keys = [next((k for k in (c, f"option_{c.lower()}") if k in fields), "") for c in LETTERS]
    keys = keys[: keys.index("")] if "" in keys else keys
    if keys[1:] and not set(CHOICES) & set(fields):
        fields["choices"] = [fields[key] for key in keys]


def _system(fields: Json) -> None:
    """A system text in a field of its own: the first message."""
    text = next((fields[name] for name in SYSTEMS if isinstance(fields.get(name), str)), "").strip()
    if not text:
        return
    if isinstance(fields.get("prompt"), str) and "messages" not in fields:
        fields["messages"] = [{"role": "user", "content": fields.pop("prompt")}]
    talk = fields.get("messages")
    if (
        isinstance(talk, list)
        and talk
        and isinstance(talk[0], dict)
        and talk[0].get("role") != "system"
    ):
        fields["messages"] = [{"role": "system", "content": text}, *talk]


def _derived(fields: Json) -> None:
    """The verifier of an answer at the end of a derivation."""
    if only_number(str(fields["answer"])):
        fields.setdefault("verifier", "number")


def _choices(row: FileRow, fields: Json) -> None:
    """A question with its choices in lines A) ..., answered by the letter."""
    name = next((name for name in CHOICES if name in fields), None)
    prompt, answer = fields.get("prompt"), fields.get("answer")
    if name is None or not isinstance(prompt, str) or answer is None or "verifier" in fields:
        return
    given = fields[name]
    labels: list[str] = []
    if isinstance(given, dict) and isinstance(given.get("text"), list):  # ARC
        given, labels = given["text"], [str(label) for label in given.get("label", [])]
    elif isinstance(given, dict):
        given, labels = list(given.values()), list(given)
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        return
    texts = [str(text).strip() for text in given]
    labels = labels if len(labels) == len(texts) else list(LETTERS[: len(texts)])
    wanted = str(answer).strip()
    readings = {i for i, text in enumerate(texts) if text == wanted}
    readings |= {i for i, label in enumerate(labels) if label == wanted.strip("().")}
    if wanted.isdecimal() and int(wanted) < len(texts) and labels[0] in "Aa":  # the index
        readings |= {int(wanted)}
    matches = sorted(readings)
    if len(matches) != 1:
        which = "more than one" if matches else "none"
        problem = f"{json.dumps(answer, ensure_ascii=False)} is {which} of the {name}"
        row.fail("answer", problem, f"Give one of {', '.join(labels)}, or its index from 0.")
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    if not all(text in prompt for text in texts):
        fields["prompt"] = "\n".join([prompt, *lines])
        fields["answer"] = LETTERS[matches[0]]
    else:  # the question lists them itself
        fields["answer"] = labels[matches[0]]
