"""Text of runs, changes of lessons and gates, for several commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reflect.cli.output import duration, print_json, print_status, print_table
from reflect.types import Arm, by_arm

if TYPE_CHECKING:
    from reflect.day.report import Report

SIGNS = dict.fromkeys(("added", "accepted"), "+") | dict.fromkeys(("retired", "rejected"), "-")
SIGNS |= dict.fromkeys(("superseded", "revised", "merged"), "~")
SIGNS |= {"quarantined": "?", "alarm": "!"}  # alarm: too much would be lost, nothing was changed


FEW = 0.25  # share of the teacher's attempts below which a harvest is worth a notice
CUT = 0.1  # share of cut off answers that is worth a notice


def print_report(report: Report, json: bool) -> None:
    """The report of a run on stdout, changes of lessons first."""
    if json:
        return print_json(report)
    from reflect.trials import bundle

    size = f"{report.n} tasks x {report.k} =" if report.k else f"{report.n} groups from traffic,"
    print_changes(report.changes)
    waves = " ".join(f"{reward:.2f}" for reward in report.rewards)
    print(
        f"run {report.run_id}, {report.taskset}: {size} {report.rollouts} rollouts, "
        f"reward {report.reward:.2f} (wave by wave {waves}), "
        f"{report.reflections} reflections, {duration(report.seconds)}"
    )
    if report.reviewer:
        print_status(f"reviews by {report.reviewer}; to undo: reflect reviewer rollback")
    if text := bundle.describe(report.bundle):
        print(f"bundle {report.taskset}: {text}")
    if report.spent:
        print_status(spending_line(report.spent))
    if report.ungraded:
        hint = f"reflect grade list --run {report.run_id}"
        print_status(f"{report.ungraded} rollouts wait for a person's grade: {hint}")
    for text in notices(report):
        print_status(text)
    for run_id in report.superseded:
        print_status(
            f"Run {run_id} stays unfinished: its tasks have changed since it began. "
            f"Close it: reflect runs abandon {run_id}"
        )
    if report.errors:
        print_status(f"{report.errors} rollouts failed: reflect runs show {report.run_id}")


def notices(report: Report) -> list[str]:
    """What made the run learn less than it could, and what to do, one text each."""
    texts = []
    if report.unreadable:
        texts.append(
            f"{report.unreadable} of {report.reflections} reflections gave no edit that could be "
            f"read. The first answer: {report.unreadable_answer!r}. A stronger model reviews "
            "better: --reflector NAME."
        )
    if report.reflections_cut > CUT * report.reflections:
        texts.append(
            f"{report.reflections_cut} of {report.reflections} reflections were cut off at "
            "reflect_tokens. Raise it in reflect.toml, or with REFLECT_REFLECT_TOKENS=N."
        )
    if report.equal == report.n > 0 and report.k > 1:
        texts.append(
            "All attempts at each task earned the same reward, so no reflection could compare a "
            "good attempt with a bad one. Raise --temperature, or let the tasks give feedback."
        )
    if report.cut > CUT * report.rollouts:
        texts.append(
            f"{report.cut} of {report.rollouts} answers were cut off at max_tokens. "
            "Raise it: --max-tokens N, or max_tokens in reflect.toml."
        )
    return texts


def harvest_notices(stages: Mapping[str, Any]) -> list[str]:
    """For each taskset of which a night kept few attempts of the teacher: how many, and what to
    do."""
    tasksets = stages.get("harvest", {}).get("tasksets", {})
    return [
        f"Of {figures['attempts']} attempts at {name} with the lessons in the prompt, "
        f"{figures['kept']} were kept as training data: the others earned less than "
        f"{figures['enough']:.2f}, or were cut off at max_tokens. Raise max_tokens, or improve the "
        "lessons first: reflect trial"
        for name, figures in tasksets.items()
        if figures["kept"] < FEW * figures["attempts"]
    ]


def spending_line(spent: Mapping[str, float]) -> str:
    """`Run.spent` as a line."""
    cost = f", cost {spent['cost']:.4f}" if spent["cost"] else ""
    tokens = f"{spent['tokens_in']} tokens in, {spent['tokens_out']} out"
    return f"spent: {spent['requests']} requests, {tokens}{cost}"


def print_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """The changes that had an effect, each as one line or more."""
    for change in changes:
        if text := change_line(change):
            print(text)


def change_line(change: Mapping[str, Any]) -> str:
    """`+ lesson 3 added: when ... do ...`, with a line for each lesson that it retired; "" for an
    edit without effect."""
    sign = SIGNS.get(change["outcome"])
    if not sign:
        return ""
    if change["outcome"] == "alarm":
        return f"{sign} {change['reason']}"
    text = f"when: {change['when']} do: {change['do']}" if change["do"] else change["why"]
    if change["kind"] == "trial":
        text = f"{change['why']} ({text})"
    lines = [f"{sign} lesson {change['lesson']} {change['outcome']}: {text}"]
    for lesson_id in change.get("gone", ()):
        lines.append(f"- lesson {lesson_id} retired: replaced by lesson {change['lesson']}")
    return "\n".join(lines)


def print_gate(gate: Mapping[str, Any]) -> None:
    """The gate's report on stdout: the four arms, then each check."""
    if tasksets := gate.get("arms"):
        results = {name: by_arm(arms) for name, arms in tasksets.items()}
        rows = [[name, *(arms[arm]["reward"] for arm in Arm)] for name, arms in results.items()]
        print_table(rows, ", ".join(("taskset", *Arm)))
    for check in gate.get("checks", []):
        print(check_line(check))


def check_line(check: Mapping[str, Any]) -> str:
    """One check of the gate."""
    return f"{result_of(check)} {check['text']}"


def result_of(check: Mapping[str, Any]) -> str:
    """The result: ok, FAIL or, with too little to measure, not measured."""
    if not check.get("measured", True):
        return "not measured:"
    return "ok  " if check["ok"] else "FAIL"
