"""What a person never wants learned. A rule forbids every edit of a model, and every stranger's
lesson, that matches.

Words match as whole words in that order, case, punctuation and spacing aside; a regular expression
matches anywhere in the condition or in the advice, case aside. Rules are lifted, not deleted.

Not covered: the same advice in other words, and a regular expression that never ends.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select

from reflect.errors import UnknownName, UsageError
from reflect.records import Rule, now
from reflect.types import RuleKind, values

if TYPE_CHECKING:
    from collections.abc import Sequence


def add(s: Session, pattern: str, *, kind: str, why: str = "", profile: str = "default") -> Rule:
    """A new rule. UsageError for one that is broken, would forbid everything, or is there
    already."""
    if kind not in values(RuleKind):
        raise UnknownName(
            f"There is no rule of the kind '{kind}'.", f"The kinds are: {', '.join(RuleKind)}."
        )
    rule = Rule(pattern=pattern.strip(), kind=kind, why=" ".join(why.split()), profile=profile)
    if kind == RuleKind.REGEX and (wrong := broken(rule.pattern)):
        raise UsageError(
            f"'{rule.pattern}' is no regular expression: {wrong}.", "Correct it, or add --words."
        )
    if (
        matches(rule, "", "")
        or not rule.pattern
        or (kind == RuleKind.WORDS and not _plain(rule.pattern))
    ):
        raise UsageError(
            f"'{rule.pattern}' would forbid every lesson or none.", "Name the words, or a pattern."
        )
    for other in listing(s, profile):
        if (other.pattern, other.kind) == (rule.pattern, rule.kind):
            raise UsageError(f"Rule {other.id} says so already.", "See: reflect lessons forbidden")
    s.add(rule)
    s.flush()
    return rule


def listing(s: Session, profile: str = "default", *, lifted: bool = False) -> Sequence[Rule]:
    """The rules that hold, by id; with `lifted` also those that did."""
    rules = select(Rule).where(Rule.profile == profile).order_by(col(Rule.id))
    return s.exec(rules if lifted else rules.where(col(Rule.lifted).is_(None))).all()


def lift(s: Session, rule_id: int, profile: str = "default") -> Rule:
    """The rule holds no more. UnknownName when there is no such rule."""
    rule = s.get(Rule, rule_id)
    if rule is None or rule.profile != profile:
        raise UnknownName(f"There is no rule {rule_id}.", "See: reflect lessons forbidden")
    rule.lifted = rule.lifted or now()
    s.add(rule)
    return rule


def forbidding(rules: Sequence[Rule], when: str, do: str) -> str:
    """Which of the rules forbids the lesson, as a sentence; "" when none does."""
    for rule in rules:
        if matches(rule, when, do):
            return (
                f"rule {rule.id} forbids it: {rule.pattern}{f' ({rule.why})' if rule.why else ''}"
            )
    return ""


def problems(s: Session) -> list[str]:
    """For the doctor: rules that can match nothing."""
    return [
        f"Rule {rule.id} is no regular expression ({wrong}): {rule.pattern}."
        for rule in s.exec(select(Rule).where(Rule.kind == RuleKind.REGEX).order_by(col(Rule.id)))
        if (wrong := broken(rule.pattern))
    ]


def matches(rule: Rule, when: str, do: str) -> bool:
    """Whether a rule forbids this condition and advice."""
    texts = (f"{when}\n{do}",) if rule.kind == RuleKind.REGEX else (when, do)
    return any(found(rule.kind, rule.pattern, text) for text in texts)


def found(kind: str, pattern: str, text: str) -> bool:
    """Whether the words, or the regular expression, are in the text. A broken one is in none."""
    if kind == RuleKind.REGEX:
        flags = re.IGNORECASE | re.MULTILINE
        return not broken(pattern) and bool(re.search(pattern, text, flags))
    return f" {_plain(pattern)} " in f" {_plain(text)} "


def broken(pattern: str) -> str:
    """What is wrong with a regular expression, or ""."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        return str(e)
    return ""


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
