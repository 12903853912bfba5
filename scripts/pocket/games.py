"""Episodes of several turns for the pocket model's curriculum: calc and shop, played and reviewed.

Taken in by `scripts/pocket/train --games`, as for the shipped model. As everywhere in the curriculum nothing can be
memorised: which way of calculating is rewarded and what a customer pays are drawn anew in each episode. Questions of
calc's practice and holdout never occur.

Episodes: `calc` and `shop` (following lessons, reading what comes back), `calc_review` and `shop_review` (a packed group
-> note and lesson edits). What comes back is made by the tasksets' own environments.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from reflect.day.packing import Attempt
from reflect.rollouts.transcript import Turn
from scripts.pocket.curriculum import (
    COUNTED,
    METHODS,
    OPS,
    Episode,
    episode,
    new_verbs,
    random_lesson,
    review_prompt,
    system,
)
from scripts.pocket.worlds import calc as calc_world
from scripts.pocket.worlds import shop as shop_world

CUSTOMERS = COUNTED  # those of the shipped shops too: a word that never is one is not copied
ARITHMETIC = ["the task is arithmetic", "the task is arithmetic", "asked to calculate", "a calculator is there", "numbers have to be multiplied"]
WAYS = {
    "call": ["call the calculator for each step", "call the calculator for each step", "use the calculator", "call the calculator, one step at a time"],
    "at once": ["answer at once", "answer at once", "give the number directly", "answer without the calculator"],
}
BUYING = ["the customer is a {}", "the customer is a {}", "a {} comes to the shop", "a {} is the customer", "it is a {}"]
ASKING = ["ask price {}", "ask price {}", "ask {}", "price {}", "write price: {}"]
DEFAULT = {"call": 0.03, "at once": 0.97}  # without a lesson


@dataclass
class Rule:
    """A lesson of a game. The first wordings are those that the model is taught to write."""

    whens: list[str]
    dos: list[str]
    id: int = 0

    def when(self, rng: random.Random | None = None) -> str:
        return rng.choice(self.whens) if rng else self.whens[0]

    def do(self, rng: random.Random | None = None) -> str:
        return rng.choice(self.dos) if rng else self.dos[0]


def rule_of_way(way: str) -> Rule:
    return Rule(ARITHMETIC, WAYS[way])


def rule_of_no_way(rng: random.Random) -> Rule:
    """Advice about arithmetic that says nothing about how to calculate; it changes nothing."""
    return Rule(ARITHMETIC, [f"use {rng.choice(OPS)}", METHODS["spell"][0], f"ask price {rng.randint(1, 9)}"])


def rule_of_price(kind: str, price: int) -> Rule:
    return Rule([text.format(kind) for text in BUYING], [text.format(price) for text in ASKING])


def others(rng: random.Random, most: int = 2) -> list:
    """Lessons that have nothing to do with it."""
    return [random_lesson(verb, rng) for verb in new_verbs(rng.randint(0, most), rng)]


def played(env, task, texts: list[str]) -> tuple[list[dict[str, str]], list[Turn], float | None]:
    """The messages after the task's own, the same as turns, and the reward, if the environment gave one."""
    env.reset(task)
    messages, turns, reward = [], [], None
    for number, text in enumerate(texts, 1):
        step = env.step({"role": "assistant", "content": text})
        messages += [{"role": "assistant", "content": text}, *step.messages]
        turns.append(Turn(number, text, "\n".join(m["content"] for m in step.messages), step.feedback))
        reward = reward if step.reward is None else step.reward
        if step.done:
            break
    return messages, turns, reward


# -- calc --------------------------------------------------------------------------------------------------------------


def question(rng: random.Random, level: float):
    """A task of the pretraining's own share; smaller numbers while the level is low."""
    while True:
        a, b, sign, c = calc_world.draw(rng)
        if rng.random() > level:
            a, b, c = rng.randint(2, 40), rng.randint(2, 20), rng.randint(2, 40)
            sign = "+" if a * b < c else sign
        task = calc_world.Calc.task(a, b, sign, c, "practice")
        if calc_world.share(task.id) == "pretraining":
            return task


def calculated(task, way: str, rng: random.Random) -> list[str]:
    """What the assistant says: two calls and the answer, or a guess of the right size."""
    if way == "call":
        return calc_world.TASKSET.gold(task)
    return [f"answer: {max(0, round(int(task.answer) * rng.uniform(0.6, 1.4)) + rng.randint(1, 9))}"]


def calc(rng: random.Random, level: float) -> Episode:
    way = rng.choice([*WAYS, "call", "none"]) if rng.random() < 0.8 else None
    about = [] if way is None else [rule_of_way(way) if way in WAYS else rule_of_no_way(rng)]
    lessons = [*about, *others(rng)]
    rng.shuffle(lessons)
    chat = system(lessons, rng)
    used = way if way in WAYS else rng.choices(list(DEFAULT), weights=list(DEFAULT.values()))[0]
    task = question(rng, level)
    chat += task.messages
    chat += played(calc_world.TASKSET.environment(task), task, calculated(task, used, rng))[0]
    return Episode(chat, [message["role"] == "assistant" for message in chat])


def calc_review(rng: random.Random, level: float) -> Episode:
    """2 to 8 attempts, of which one way is rewarded, mostly calling."""
    truth = "call" if rng.random() < 0.7 else "at once"
    about = [rule_of_way(rng.choice(list(WAYS)))] if rng.random() < 0.35 else []
    shown = [*about, *others(rng)]
    for lesson, number in zip(shown, rng.sample(range(1, 100), len(shown)), strict=True):
        lesson.id = number
    rng.shuffle(shown)
    task = question(rng, level)
    tried, attempts = [], []
    mostly = rng.random()
    for _ in range(rng.choice([2, 3, 4, 5, 6, 8, 8, 8])):
        way = "call" if rng.random() < mostly else "at once"
        reward = float(way == truth)
        turns = played(calc_world.TASKSET.environment(task), task, calculated(task, way, rng))[1]
        tried.append((way, reward))
        attempts.append(Attempt("", reward, "", tuple(turns)))
    answer = "\n".join([noted(tried), judged(tried, about)])
    asked = review_prompt(task.text, shown, attempts, rng)
    return Episode([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], [False, True])


def noted(tried: list[tuple[str, float]]) -> str:
    return "NOTE " + ", ".join(f"{i + 1} {way} {reward:.0f}" for i, (way, reward) in enumerate(tried))


def judged(tried: list[tuple[str, float]], about: list[Rule]) -> str:
    """The edit that the rewards support: a way that was rewarded is the lesson, one that was not is no lesson."""
    good = [way for way in WAYS if (way, 1.0) in tried]
    known = next((way for way in WAYS if about and about[0].dos is WAYS[way]), None)
    if good:
        new = rule_of_way(good[0])
        if known == good[0]:
            return "NONE"
        text = f"when: {new.when()} do: {new.do()}"
        return f"REVISE {about[0].id} {text}" if known else f"ADD {text}"
    if known and (known, 0.0) in tried:
        return f"RETIRE {about[0].id} why: {known} failed"
    return "NONE"


# -- shop --------------------------------------------------------------------------------------------------------------


def market(rng: random.Random) -> dict[str, int]:
    """What customers pay at most: 2 to 4 kinds."""
    return {kind: rng.randint(1, 9) for kind in rng.sample(CUSTOMERS, rng.randint(2, 4))}


def opened(limits: dict[str, int], rng: random.Random, days: int = 10):
    """(task, environment) of a game with these customers."""
    kinds = tuple(rng.choice(list(limits)) for _ in range(days))
    return shop_world.Shops.task(rng.randint(1, 999), kinds, "practice"), shop_world.Shop(list(kinds), limits)


def prices(task, known: dict[str, int], rng: random.Random) -> list[str]:
    """As the lessons say. Where they say nothing a low price more often than any other: a habit that the greedy answer
    shows, and a sample leaves."""
    return [f"price: {known.get(kind) or rng.choice([*range(1, 10), 2, 2])}" for kind in task.answer.split()]


def shop(rng: random.Random, level: float) -> Episode:
    """A game, with all lessons in the prompt; or one of its turns with the lesson for its customer, as they are chosen
    where lessons are chosen at each turn."""
    limits = market(rng)
    task, env = opened(limits, rng, rng.randint(2, 10))
    known = {kind: limit for kind, limit in limits.items() if rng.random() < 0.75}
    rules = {kind: rule_of_price(kind, limit) for kind, limit in known.items()}
    back = played(env, task, prices(task, known, rng))[0]
    if rng.random() < 0.4:
        shown = [*rules.values(), *others(rng, 1)]
        rng.shuffle(shown)
        chat = [*system(shown, rng), *task.messages, *back[:-1]]
        return Episode(chat, [message["role"] == "assistant" for message in chat])
    turn = rng.randrange(len(task.answer.split()))
    kind = task.answer.split()[turn]
    chat = [*system([rules[kind]] if kind in rules else [], rng), *task.messages, *back[: 2 * turn + 1]]
    return Episode(chat, [i == len(chat) - 1 for i in range(len(chat))])


def shop_review(rng: random.Random, level: float) -> Episode:
    """Up to 3 games of one shop, more do not fit: for each customer the highest price in the books is the lesson. One
    that asks more, and was seen to get nothing, is put right; where nothing was paid at all it goes. Half of the games
    are short: what has to be found in them is the same, and costs a third of the tokens. Of others turns are cut, as
    they are at practice; the books stand at their ends."""
    limits = market(rng)
    task, _ = opened(limits, rng, 10 if rng.random() < 0.5 else rng.randint(1, 5))
    cut = len(task.answer.split()) == 10 and rng.random() < 0.6
    known = {kind: rng.randint(1, 9) for kind in limits if not cut and rng.random() < 0.35}
    rules = {kind: rule_of_price(kind, price) for kind, price in known.items()}
    for lesson, number in zip(rules.values(), rng.sample(range(1, 100), len(rules)), strict=True):
        lesson.id = number
    best: dict[str, int] = {}
    asked_for: set[tuple[str, int]] = set()
    attempts = []
    for _ in range(rng.choice([1, 2, 3, 3])):
        env = shop_world.Shop(task.answer.split(), limits)
        said = prices(task, {kind: price for kind, price in known.items() if rng.random() < 0.7}, rng)
        _, turns, reward = played(env, task, said)
        attempts.append(Attempt("", reward, "", tuple(turns)))
        asked_for |= {(kind, int(text.split()[-1])) for kind, text in zip(env.days, said, strict=True)}
        best = {kind: max(most, best.get(kind, 0)) for kind, most in env.book.items()}
    order = list(dict.fromkeys(task.answer.split()))
    edits = []
    for kind in order:
        price, told = best[kind], known.get(kind, 0)
        failed = told > price and (kind, told) in asked_for
        if failed and not price:
            edits.append(f"RETIRE {rules[kind].id} why: nothing was paid")
        elif price > told or failed:
            new = rule_of_price(kind, price)
            text = f"when: {new.when()} do: {new.do()}"
            edits.append(f"REVISE {rules[kind].id} {text}" if kind in rules else f"ADD {text}")
    note = "NOTE " + ", ".join(f"{kind} {best[kind]}" for kind in order)
    whole = sum(len(attempt.words()) for attempt in attempts)
    room = int(whole * rng.uniform(0.45, 0.95)) if cut else 10**9
    asked = review_prompt(task.text, list(rules.values()), attempts, rng, room)
    answer = "\n".join([note, *(edits or ["NONE"])])
    return Episode([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], [False, True])


GAMES = (calc, shop, calc_review, shop_review)
SHARES = (0.2, 0.2, 0.2, 0.4)
SHARE = 0.3  # of the episodes, where games are asked for


def any_episode(rng: random.Random, level: float) -> Episode:
    """One of the curriculum with the games in it."""
    return rng.choices(GAMES, SHARES)[0](rng, level) if rng.random() < SHARE else episode(rng, level)
