"""Nights for proofs and benchmarks: lessons by hand that the pocket model and SmolLM2 follow, and small plans."""

from __future__ import annotations

import json
from pathlib import Path

from reflect.store import Store, lessons
from reflect.tasksets import load_taskset
from scripts._common import smollm2

PLANS = {
    "pocket": {"budget": 0.25, "batch": 20, "anchors": 40, "tasks_per_lesson": 8, "fewest_tasks": 16, "gate_tasks": 16},
    "smollm2": {"budget": 0.5, "batch": 8, "anchors": 10, "tasks_per_lesson": 4, "fewest_tasks": 8, "gate_tasks": 8, "samples": 3},
}  # fmt: skip
FACTS = {  # SmolLM2 follows lessons about facts
    "the question is about the door code of the house": "answer 4711",
    "the question is about the name of the cat": "answer Miko",
    "the question is about the day of the garbage": "answer Tuesday",
}
ASKED = {
    "4711": ["What is the door code of the house?", "Tell me the code of the door.", "Which code opens the door?"],
    "Miko": ["What is the name of the cat?", "How is the cat called?", "Tell me the cat's name."],
    "Tuesday": ["On which day is the garbage collected?", "When is the garbage day?", "Which day is the garbage?"],
}
BEGIN = ["", "Please: ", "Quick question. ", "I forgot it. ", "Hello! ", "For the guest: ", "Sorry, again: ", "Hi. "]


def teach(folder: Path, model: str) -> str:
    """Lessons by hand in a new database of the folder; returns the taskset's name."""
    folder.mkdir(parents=True, exist_ok=True)
    if model == "pocket":
        meanings = load_taskset("dialect").meanings
        texts = [(f"the task says {verb}", f"use {op}") for verb, op in list(meanings.items())[:3]]
        scope = "dialect"
    else:
        rows = [
            {"prompt": begin + ask, "answer": answer, "verifier": "contains", "split": "practice" if i < 5 else "holdout"}
            for answer, questions in ASKED.items()
            for i, begin in enumerate(BEGIN)
            for ask in questions
        ]
        (folder / "house.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts, scope = list(FACTS.items()), "house.jsonl"
    store = Store(folder / "lessons.db")
    with store.write() as s:
        for when, do in texts:
            lessons.add(s, when=when, do=do, author="human", scope=scope, trust="clean")
    store.close()
    return scope


def weights_of(model: str) -> str:
    """The name of the model for `-m`; SmolLM2 is fetched at the first call."""
    return str(smollm2()) if model == "smollm2" else model
