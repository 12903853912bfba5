"""Rows of other formats as rows of a task file. One rule per format; a row that fits none, or two,
is refused with the line that converts it.

    question, answer       {"question": Q, "answer": A}; also problem, query, instruction (+ input),
                           and output, response, completion, target, ground_truth
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
    if isinstance(fields.get("split"), str):
        fields["split"] = SPLITS.get(fields["split"].lower(), fields["split"])
    if "chosen" in fields and "rejected" in fields:
        step = line_that_converts(row, answer="chosen")
        row.fail("chosen", "preferences are not answers", step)
    own = "prompt" in fields or "messages" in fields
    _verl(row, fields)
    _question(row, fields, own)
    _conversation(row, fields)
    _answer(row, fields)
    _choices(row, fields)
    return row._replace(fields=fields)


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
    names = [
        name for name in ANSWERS if name in fields and isinstance(fields[name], str | int | float)
    ]
    if "answer" not in fields and names:
        if len(names) > 1 and "solution" in names:  # the derivation of the other
            names.remove("solution")
        if names[1:]:
            row.fail(names[0], f"there is '{names[1]}' too", line_that_converts(row))
        answer = fields[names[0]]
        if names[0] == "solution":
            answer = final_answer(str(answer)) if BOXED.search(str(answer)) else answer
            fields["answer"] = answer
            if answer != fields["solution"]:
                _derived(fields)
            return
        fields["answer"] = answer
    answer = fields.get("answer")
    if isinstance(answer, str) and "verifier" not in fields and (end := GSM8K.search(answer)):
        fields["answer"] = end[1]
        _derived(fields)


def _derived(fields: Json) -> None:
    """The verifier of an answer that stood at the end of a derivation."""
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
    if isinstance(answer, int) and not isinstance(answer, bool):
        matches = [answer] if 0 <= answer < len(texts) else []
    else:
        wanted = str(answer).strip().strip("().")
        matches = [i for i, label in enumerate(labels) if label == wanted]
        matches = matches or [i for i, text in enumerate(texts) if text == str(answer).strip()]
        if not matches and wanted.isdecimal() and int(wanted) < len(texts):
            matches = [int(wanted)]  # the index as a text, as CSV has it
    if len(matches) != 1:
        problem = f"{json.dumps(answer, ensure_ascii=False)} is not one of the {name}"
        row.fail("answer", problem, f"Give one of {', '.join(labels)}, or its index from 0.")
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    if not all(text in prompt for text in texts):
        fields["prompt"] = "\n".join([prompt, *lines])
        fields["answer"] = LETTERS[matches[0]]
    else:  # the question lists them itself
        fields["answer"] = labels[matches[0]]
