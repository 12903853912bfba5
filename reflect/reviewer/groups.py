"""Generated groups to train and to examine a reviewer on: a question, attempts with rewards by a
hidden rule (see `reflect.reviewer.families`), and the lesson that names the rule.

`ObedientPolicy` simulates a model that obeys a lesson to the letter and has no other way to know
the rule. A lesson is right if this policy, shown nothing but the lesson, earns the reward on other
questions of the kind: `earned`. It reads one sentence only, and a lesson in other words has no
effect on it:

    when: asked for the NOUN
    do:   reply with FORM where X is one of WAYS
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reflect.reviewer.families import (
    OPEN_SENTENCE,
    PLAIN,
    SLOT,
    WAYS,
    WORD,
    RuleFamily,
    all_families,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# noun -> subject -> answer, in small letters. The last ones are never trained on.
DOMAINS: dict[str, dict[str, str]] = {
    "capital": {"france": "paris", "italy": "rome", "spain": "madrid", "japan": "tokyo",
                "egypt": "cairo", "peru": "lima", "norway": "oslo", "cuba": "havana"},
    "opposite": {"hot": "cold", "big": "small", "fast": "slow", "wet": "dry", "old": "young",
                 "rich": "poor", "hard": "soft", "dark": "light"},
    "plural": {"mouse": "mice", "child": "children", "tooth": "teeth", "goose": "geese",
               "foot": "feet", "man": "men", "wolf": "wolves", "leaf": "leaves"},
    "past": {"go": "went", "see": "saw", "take": "took", "run": "ran", "eat": "ate",
             "sing": "sang", "give": "gave", "make": "made"},
    "color": {"grass": "green", "snow": "white", "blood": "red", "coal": "black",
              "sky": "blue", "lemon": "yellow", "carrot": "orange", "mud": "brown"},
    "baby": {"cow": "calf", "dog": "puppy", "cat": "kitten", "sheep": "lamb", "horse": "foal",
             "bear": "cub", "duck": "duckling", "goat": "kid"},
    "home": {"bee": "hive", "bird": "nest", "spider": "web", "fox": "den", "horse": "stable",
             "pig": "sty", "king": "castle", "monk": "abbey"},
    "double": {"two": "four", "three": "six", "four": "eight", "five": "ten", "six": "twelve",
               "one": "two", "ten": "twenty", "eight": "sixteen"},
    "currency": {"japan": "yen", "india": "rupee", "mexico": "peso", "russia": "ruble",
                 "sweden": "krona", "china": "yuan", "poland": "zloty", "brazil": "real"},
    "sound": {"dog": "bark", "cow": "moo", "cat": "meow", "lion": "roar", "duck": "quack",
              "snake": "hiss", "pig": "oink", "bee": "buzz"},
    "symbol": {"gold": "au", "iron": "fe", "silver": "ag", "tin": "sn", "lead": "pb",
               "copper": "cu", "zinc": "zn", "neon": "ne"},
    "language": {"france": "french", "spain": "spanish", "brazil": "portuguese", "iran": "persian",
                 "greece": "greek", "japan": "japanese", "italy": "italian", "israel": "hebrew"},
}  # fmt: skip
NEW_DOMAINS = 3  # the last ones
WORDS = (
    "sure fine hello done yes reply result note okay right answer final well good ready true clear "
    "maple river stone tiger cloud apple table seven north green lemon piano rocket"
).split()
NEW_WORDS = "candle banana violet window garden monday planet silver copper thunder".split()
QUESTIONS = ("What is the {} of {}?", "Name the {} of {}.", "Say the {} of {}.")
LESSON = re.compile(rf"reply with (.+) where X is ({'|'.join(map(re.escape, WAYS))})")
CONDITION = re.compile(r"asked for the (\w+)")
SOME_WRONG = 0.15  # of the attempts that have the form
UNAIDED = 0.15  # of the attempts without the work of a method that are right
ASKED = 3  # questions on which a lesson is examined
SIZES = (4, 4, 5)  # attempts of a group


class FactQuestion(NamedTuple):
    """A question for the `noun` of `subject`. Texts are in small letters, but for the question."""

    noun: str
    subject: str
    text: str

    @property
    def answer(self) -> str:
        """The right answer."""
        return DOMAINS[self.noun][self.subject]


@dataclass(frozen=True)
class HiddenRule:
    """A family with its word, for one kind of question."""

    family: RuleFamily
    noun: str
    word: str

    @property
    def lesson(self) -> tuple[str, str]:
        """(when, do) of the lesson that names the rule."""
        return f"asked for the {self.noun}", self.family.lesson(self.noun, self.word)

    def reply(self, question: FactQuestion, answer: str, free: str = "") -> str:
        """A reply that has the form; `free`: the form of the part that the rule leaves open."""
        fill = (answer, question.subject, question.noun, self.word)
        if not free:
            return self.family.reply(*fill)
        inner = RuleFamily("", free).reply(*fill)
        return RuleFamily("", self.family.form).reply(
            inner, question.subject, question.noun, self.word
        )

    def reward(self, question: FactQuestion, reply: str) -> float:
        """1.0 for a reply that the rule accepts."""
        form = self.family.form.replace(WORD, self.word)
        if self.family.kind == "begins":
            return float(reply.startswith(form.split(SLOT)[0]))
        if self.family.kind == "ends":
            return float(reply.endswith(form.split(SLOT)[-1]))
        if self.family.kind == "method":
            return float(question.answer in reply.lower() or self._written(question) in reply)
        answers = DOMAINS[question.noun].values()
        return float(any(reply == self.reply(question, answer) for answer in answers))

    def _written(self, question: FactQuestion) -> str:
        return WAYS[self.family.way](question.answer)


class GeneratedGroup(NamedTuple):
    """Attempts at a question as (text, reward), and the rule that they hide."""

    question: FactQuestion
    attempts: list[tuple[str, float]]
    rule: HiddenRule

    @property
    def analysis(self) -> str:
        """What a rewarded attempt has and a failed one lacks: one of each, then the slots."""
        family, rewarded = self.rule.family, [text for text, reward in self.attempts if reward]
        bad = next(text for text, reward in self.attempts if not reward)
        good, core = next(
            ((text, x) for text in rewarded if (x := self._core(text))),
            (rewarded[0], self.question.answer),
        )
        about = f"X is {core}"
        if family.way != PLAIN:
            about += f", as {WAYS[family.way](core)}"
        if "Y" in family.form:
            about += f", Y is {self.question.subject}"
        return f"Good: {good} Bad: {bad} Here {about}"

    def _core(self, text: str) -> str:
        """The answer in an attempt that has the form of the rule; "" without one."""
        answers = [self.question.answer, *DOMAINS[self.question.noun].values()]
        if self.rule.family.kind in ("begins", "ends"):
            return next((x for x in answers if x in text), "")
        return next((x for x in answers if self.rule.reply(self.question, x) == text), "")


class ObedientPolicy:
    """Answers by the first lesson that fits the question and that it can read; else by habit."""

    def __init__(self, rule: HiddenRule) -> None:
        self.rule = rule

    def reply(
        self, question: FactQuestion, lessons: Sequence[tuple[str, str]], rng: random.Random
    ) -> str:
        """One reply. Where the rule is a method, its answer is right if the reply has the work,
        that is the subject before the answer, and mostly wrong if not."""
        form, way = next(filter(None, (read_lesson(x, question.noun) for x in lessons)), ("", ""))
        if not form:
            return habit(self.rule, question, rng)
        answer = question.answer
        if self.rule.family.kind == "method" and not works(form, self.rule.family.form):
            answer = wrong(question, rng)
        return fill(form, way, question, answer)


def read_lesson(lesson: tuple[str, str], noun: str) -> tuple[str, str] | None:
    """(form, way) of a lesson for questions for this noun; None for any other text."""
    condition, advice = CONDITION.fullmatch(lesson[0]), LESSON.fullmatch(lesson[1])
    if not condition or not advice or condition[1] != noun or "X" not in advice[1]:
        return None
    return advice[1], advice[2]


def fill(form: str, way: str, question: FactQuestion, answer: str) -> str:
    """A form of a lesson with the answer in the place of X and the subject in that of Y."""
    return form.replace("Y", question.subject).replace("X", WAYS[way](answer))


def works(form: str, method: str) -> bool:
    """Does a form of a lesson have the work of a method: the words up to the answer?"""
    return method.replace(SLOT, "X").split("X")[0] in form.split("X")[0]


def wrong(question: FactQuestion, rng: random.Random) -> str:
    """Another answer of the kind."""
    return rng.choice([x for x in DOMAINS[question.noun].values() if x != question.answer])


def habit(rule: HiddenRule, question: FactQuestion, rng: random.Random) -> str:
    """A reply without a lesson: some form that is not the rule's, and of a method a guess."""
    method = rule.family.kind == "method"
    for _ in range(20):
        family = rng.choice(_pool())
        if method and "Y" in family.form:
            continue
        right = rng.random() < UNAIDED if method else rng.random() > SOME_WRONG
        answer = question.answer if right else wrong(question, rng)
        text = HiddenRule(family, question.noun, rng.choice(WORDS)).reply(question, answer)
        if method or not rule.reward(question, text):
            return text
    return wrong(question, rng) if method else "i do not know"


def _pool() -> list[RuleFamily]:
    """Forms of distractors: those that are trained on, and no others."""
    if not _POOL:
        _POOL.extend(x for x in all_families()["train"] if x.kind == "form")
        _POOL.extend([RuleFamily("bare", SLOT), RuleFamily("sentence", OPEN_SENTENCE)] * 6)
    return _POOL


_POOL: list[RuleFamily] = []


def ask(noun: str, rng: random.Random, but: str = "") -> FactQuestion:
    """A question for this noun, about another subject than `but`."""
    subject = rng.choice([x for x in DOMAINS[noun] if x != but])
    return FactQuestion(noun, subject, rng.choice(QUESTIONS).format(noun, subject))


def draw_group(
    family: RuleFamily, rng: random.Random, *, new_words: bool = False
) -> GeneratedGroup:
    """A group of four to six attempts with a reward or more, and a failure or more. `new_words`:
    the word of the rule and the kind of question are ones that no training has seen."""
    nouns = list(DOMAINS)
    noun = rng.choice(nouns[-NEW_DOMAINS:] if new_words else nouns[:-NEW_DOMAINS])
    rule = HiddenRule(family, noun, rng.choice(NEW_WORDS if new_words else WORDS))
    question, size = ask(noun, rng), rng.choice(SIZES)
    texts = [_good(rule, question, rng) for _ in range(rng.randint(1, size // 2))]
    texts += [_near(rule, question, rng)]
    while len(texts) < size or all(rule.reward(question, text) for text in texts):
        texts.append(habit(rule, question, rng))
    rng.shuffle(texts)
    return GeneratedGroup(question, [(text, rule.reward(question, text)) for text in texts], rule)


def _good(rule: HiddenRule, question: FactQuestion, rng: random.Random) -> str:
    """An attempt that the rule accepts. Its answer may be wrong, but not where it is a method."""
    method = rule.family.kind == "method"
    right = method or rng.random() > SOME_WRONG
    answer = question.answer if right else wrong(question, rng)
    free = rng.choice(("", SLOT, OPEN_SENTENCE, "({})", "It is {}"))
    return rule.reply(question, answer, free if rule.family.kind in ("begins", "ends") else "")


def _near(rule: HiddenRule, question: FactQuestion, rng: random.Random) -> str:
    """An attempt that has one part of the rule, or its form with another word."""
    method = rule.family.kind == "method"
    answer = wrong(question, rng) if method else question.answer
    near = [RuleFamily("", SLOT, rule.family.way), RuleFamily("", SLOT)]
    if not method:
        near.append(RuleFamily("", rule.family.form))
    word = rng.choice([x for x in WORDS if x != rule.word])
    texts = [HiddenRule(x, question.noun, word).reply(question, answer) for x in near]
    missed = [text for text in texts if not rule.reward(question, text)]
    return rng.choice(missed) if missed else habit(rule, question, rng)


def earned(rule: HiddenRule, question: FactQuestion, lessons: Sequence[tuple[str, str]]) -> float:
    """The mean reward of the obedient policy with these lessons on ASKED other questions."""
    rng, policy = random.Random(f"{rule} {question}"), ObedientPolicy(rule)
    others = [ask(rule.noun, rng, but=question.subject) for _ in range(ASKED)]
    return sum(rule.reward(q, policy.reply(q, lessons, rng)) for q in others) / ASKED
