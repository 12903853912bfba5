"""What the pocket model is taught: an endless stream of episodes, made from a seed.

Every episode is a chat. In each one the made-up verbs get fresh meanings and the rewarded method of counting is drawn
anew, so that nothing about them can be memorised: the model can only learn to *read* lessons and rewards. Verbs of the
tasksets never occur; words of the tasksets occur only in spellings.

Episodes: `drill` (binding of verbs in one plain wording), `recall` (the same in the words of lessons), `counting`
(letters, as the lesson says), `practice` (several tasks under the same lessons, or under none), `skills` (spelling,
plain operations, counting what is spelled out) and `review` (a packed group -> note and lesson edits). Drills are most
of the early episodes: binding hardly begins to be learned in the varied wordings of the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reflect import models, prompts
from reflect.day.packing import Attempt, pack
from scripts.pocket.worlds import dialect, letters

REFLECTION = (Path(models.__file__).parent / "pocket" / "reflect.jinja").read_text()
OPS = sorted(dialect.OPS)
VERBS = dialect.verbs(shipped=False)
SPELLED = letters.WORDS
COUNTED = [word for word in letters.WORDS if letters.share(word) == "pretraining"]

# The methods of counting a letter. By default the model answers at once; only spelling works.
METHODS = {
    "at once": ["answer at once", "give the number directly", "answer immediately", "reply with the number at once"],
    "ends": ["look at the first and last letter", "check only the first and the last letter", "look only at the ends"],
    "spell": [
        "spell the word, comma by comma, and keep a counter",
        "spell the word out, comma by comma, and keep a running count",
        "spell it letter by letter and count",
        "write each letter of the word with a counter",
        "spell the word out and keep a counter",
    ],
    "twice": ["say the word twice", "repeat the word, then answer", "say the word two times first"],
}
DEFAULT = {"at once": 0.70, "spell": 0.15, "ends": 0.08, "twice": 0.07}
COUNTING = [
    "counting letters in a word", "counting letters in a word", "counting a letter", "asked how many of a letter are in a word",
    "the task is to count a letter in a word", "a letter has to be counted", "asked to count letters",
]  # fmt: skip
SAYS = ["the task says {}", "the task says {}", "the task says {}", "{} is in the task", "asked to {}", "{}", "the word {} appears"]


@dataclass
class Episode:
    messages: list[dict[str, str]]
    learn: list[bool]  # per message: is its text a target?


# -- solving -----------------------------------------------------------------------------------------------------------


def solve_verb(verb: str, op: str, xs: list[int]) -> str:
    return f"{verb} means {op}. answer: {dialect.listed(dialect.OPS[op](xs))}"


def solve_count(word: str, letter: str, method: str, rng: random.Random) -> str:
    """The text of one attempt. Every method but spelling ends in a guess: without its letters a word says nothing."""
    guess = rng.randint(1, 4)
    if method == "spell":
        return f"{counter(word, letter)}. answer: {word.count(letter)}"
    if method == "ends":
        return f"{word[0]}, {word[-1]}. answer: {guess}"
    if method == "twice":
        return f"{word}, {word}. answer: {guess}"
    return f"answer: {guess}"


def counter(word: str, letter: str) -> str:
    return ", ".join(f"{c} {word[: i + 1].count(letter)}" for i, c in enumerate(word))


def ask_verb(verb: str, xs: list[int], rng: random.Random) -> str:
    ways = [
        "Apply {} to the list {}.", "Apply {} to the list {}.", "Apply {} to {}.", "What is {} of the list {}?", "{}: {}",
        "{} the list {}", "Use {} on the numbers {}.", "Do {} with {}.", "Please {} the list {}.", "What does {} give for {}?",
    ]  # fmt: skip
    return rng.choice(ways).format(verb, dialect.listed(xs))


def ask_count(word: str, letter: str, rng: random.Random) -> str:
    ways = [
        "How many {0} are in {1}?", "How many {0} are in {1}?", "How many times does {0} occur in {1}?", "Count the letter {0} in {1}.",
        "How many {0} are in the word {1}?", "How often is the letter {0} in {1}?", "Count {0} in {1}", "How many {0}'s are in {1}?",
        "How many of the letter {0} does {1} have?", "In {1}, how many {0} are there?", "how many times does the letter {0} appear in {1}?",
        "Word: {1}. How many {0}?", "Tell me how many {0} are in {1}. End with answer:", "what is the number of {0} in {1}?",
        "How many letters {0} are there in the word {1}?", "'{1}' contains how many '{0}'?", "Count the number of times {0} appears in '{1}'.",
    ]  # fmt: skip
    return rng.choice(ways).format(letter, word)


def random_letter(word: str, rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice("abcdefghijklmnopqrstuvwxyz")
    best = [c for c in set(word) if word.count(c) > 1]
    return rng.choice(sorted(best)) if best and rng.random() < 0.5 else rng.choice(word)


def random_list(rng: random.Random) -> list[int]:
    return rng.sample(range(1, 21), rng.randint(3, 5))


# -- lessons -----------------------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """About a verb (or about counting when verb is None): `use` one way, or `avoid` several."""

    verb: str | None
    use: str | None = None
    avoid: tuple[str, ...] = ()
    id: int = 0

    def when(self, rng: random.Random | None = None) -> str:
        if self.verb is None:
            return rng.choice(COUNTING) if rng else COUNTING[0]
        return (rng.choice(SAYS) if rng else SAYS[0]).format(self.verb)

    def do(self, rng: random.Random | None = None) -> str:
        """The canonical words when there is no rng: what the model is taught to write."""
        if self.use is None:
            if rng and rng.random() < 0.15:
                return f"{self.verb or 'it'} does not mean {' or '.join(self.avoid)}"
            return ", ".join(f"not {way}" for way in self.avoid)
        if self.verb is None:
            return rng.choice(METHODS[self.use]) if rng else METHODS[self.use][0]
        return rng.choice(["use {}"] * 4 + ["{}", f"{self.verb} means {{}}", "do {}", "apply {}"]).format(self.use) if rng else f"use {self.use}"

    def ways(self) -> dict[str, float]:
        """The distribution over ways that this lesson leaves."""
        base = DEFAULT if self.verb is None else dict.fromkeys(OPS, 1.0)
        if self.use:
            return {self.use: 1.0}
        return {way: p for way, p in base.items() if way not in self.avoid}


def new_verbs(n: int, rng: random.Random) -> list[str]:
    return rng.sample(VERBS, n)


def random_lesson(verb: str | None, rng: random.Random, avoid_share: float = 0.2) -> Lesson:
    ways = list(METHODS) if verb is None else OPS
    if rng.random() < avoid_share:
        most = 2 if verb is None else 6
        return Lesson(verb, avoid=tuple(sorted(rng.sample(ways, rng.randint(1, most)))))
    return Lesson(verb, use=rng.choice(ways))


def system(lessons: list[Lesson], rng: random.Random) -> list[dict[str, str]]:
    """The system message with these lessons: mostly the shipped template, sometimes other words for it."""
    own = rng.choice(["", "", "", "Solve the task.", "You are a careful assistant. End with answer: and the result."])
    rows = [{"when": lesson.when(rng), "do": lesson.do(rng)} for lesson in lessons]
    if rng.random() < 0.7:
        text = prompts.system_prompt(own, rows)
        if not rows:
            text = own
    else:
        head = rng.choice(["Lessons:", "Follow these rules.", "What you learned before:", "Rules from practice, use those that fit:"])
        line = rng.choice(["- when: {when} do: {do}", "when {when}: {do}", "* {when}: {do}", "if {when}, {do}."])
        body = "\n".join(line.format(**row) for row in rows)
        text = "\n".join(part for part in (own, f"{head}\n{body}" if rows else "") if part)
    return [{"role": "system", "content": text}] if text else []


def pick(ways: dict[str, float], rng: random.Random) -> str:
    return rng.choices(list(ways), weights=list(ways.values()))[0]


# -- episodes ----------------------------------------------------------------------------------------------------------


def practice(rng: random.Random, level: float) -> Episode:
    """3 to 6 tasks under 0 to 7 lessons, of which some apply and some do not."""
    most = 1 + round(6 * level)
    n = 0 if rng.random() < 0.3 else rng.randint(1, most)
    verbs: list[str | None] = list(new_verbs(n + 2, rng))
    known = verbs[:n]
    if rng.random() < 0.35:
        known = [*known[1:], None]
    lessons = [random_lesson(verb, rng) for verb in known]
    rng.shuffle(lessons)
    about = {lesson.verb: lesson for lesson in lessons}
    chat = system(lessons, rng)
    learn = [False] * len(chat)
    unknown = [verb for verb in verbs if verb not in about]
    for _ in range(rng.randint(3, 6)):
        roll = rng.random()
        if (None in about and roll < 0.3) or (None not in about and roll < 0.3):
            ways = about[None].ways() if None in about else DEFAULT
            word = rng.choice(COUNTED)
            letter = random_letter(word, rng)
            asked, answer = ask_count(word, letter, rng), solve_count(word, letter, pick(ways, rng), rng)
        else:
            verb = rng.choice([v for v in about if v] or unknown) if rng.random() < 0.8 or not unknown else unknown.pop()
            if verb in unknown:
                unknown.remove(verb)
            ways = about[verb].ways() if verb in about else dict.fromkeys(OPS, 1.0)
            xs = random_list(rng)
            asked, answer = ask_verb(verb, xs, rng), solve_verb(verb, pick(ways, rng), xs)
            if verb not in about and not unknown:
                unknown = new_verbs(2, rng)
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        learn += [False, True]
    return Episode(chat, learn)


def drill(rng: random.Random, level: float) -> Episode:
    """2 to 8 verbs with a meaning each, in one plain wording, each asked twice."""
    verbs = new_verbs(rng.randint(2, 2 + round(6 * level**2)), rng)
    meanings = {verb: rng.choice(OPS) for verb in verbs}
    chat = [{"role": "system", "content": "\n".join(f"{verb} means {op}." for verb, op in meanings.items())}]
    for verb in rng.sample(verbs * 2, 2 * len(verbs)):
        chat += [{"role": "user", "content": f"{verb}?"}, {"role": "assistant", "content": f"{verb} means {meanings[verb]}."}]
    return Episode(chat, [message["role"] == "assistant" for message in chat])


def counting(rng: random.Random, level: float) -> Episode:
    """Several words counted the way the lesson says, mostly by spelling: the longest answers, so the most to learn."""
    use = "spell" if rng.random() < 0.85 else rng.choice(list(METHODS))
    lessons = [Lesson(None, use=use), *(random_lesson(verb, rng) for verb in new_verbs(rng.choice([0, 0, 1, 2]), rng))]
    rng.shuffle(lessons)
    chat = system(lessons, rng)
    learn = [False] * len(chat)
    for _ in range(rng.randint(2, 5)):
        word = rng.choice(COUNTED)
        letter = random_letter(word, rng)
        chat += [{"role": "user", "content": ask_count(word, letter, rng)}]
        chat += [{"role": "assistant", "content": solve_count(word, letter, use, rng)}]
        learn += [False, True]
    return Episode(chat, learn)


def recall(rng: random.Random, level: float) -> Episode:
    """The same in the words of lessons and of the system prompt."""
    lessons = [random_lesson(verb, rng, avoid_share=0.0) for verb in new_verbs(rng.randint(2, 3 + round(5 * level)), rng)]
    chat = system(lessons, rng)
    learn = [False]
    for lesson in rng.choices(lessons, k=rng.randint(6, 10)):
        way = rng.choice(["What does {} mean?", "{}?", "What is {}?"])
        chat += [{"role": "user", "content": way.format(lesson.verb)}]
        chat += [{"role": "assistant", "content": f"{lesson.verb} means {lesson.use}."}]
        learn += [False, True]
    return Episode(chat, learn)


def spelling(word: str, rng: random.Random) -> tuple[str, str]:
    """A question for the letters of a word, and its answer."""
    roll, n = rng.random(), rng.randint(0, 9)
    if roll < 0.2:
        return f"Spell {word}.", f"answer: {' '.join(word)}"
    if roll < 0.4:
        return rng.choice([f"Spell {word}, comma by comma.", f"Spell {word} with commas."]), f"{', '.join(word)}."
    if roll < 0.6:
        return f"Spell {word} with {n}.", f"{', '.join(f'{c} {n}' for c in word)}."
    if roll < 0.8:
        return f"Spell {word} from {n}.", f"{', '.join(f'{c} {n + i}' for i, c in enumerate(word))}."
    return f"Spell {word} with numbers.", f"{', '.join(f'{c} {rng.randint(0, 4)}' for c in word)}."


def skills(rng: random.Random, level: float) -> Episode:
    """What needs no lesson: spelling any word, plain operations, counting a letter in letters that are there to see.

    A spelling with a number after each letter says nothing about a count. It keeps the spelling of a word that is
    never counted from falling apart where the counter writes its numbers.
    """
    chat: list[dict[str, str]] = []
    if rng.random() < 0.3:
        chat = system([random_lesson(verb, rng) for verb in new_verbs(rng.randint(1, 3), rng)], rng)
    learn = [False] * len(chat)
    for _ in range(rng.randint(3, 6)):
        roll = rng.random()
        word = rng.choice(SPELLED)
        if roll < 0.6:
            asked, answer = spelling(word, rng)
        elif roll < 0.8:
            letters_seen = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9))]
            letters_seen[rng.randrange(len(letters_seen))] = letter = rng.choice(letters_seen)
            text = "".join(letters_seen)
            asked = rng.choice(["How many {0} are in the letters {1}?", "Count {0} in the letters {1}."]).format(letter, " ".join(text))
            answer = f"{counter(text, letter)}. answer: {text.count(letter)}"
        else:
            op, xs = rng.choice(OPS), random_list(rng)
            asked, answer = ask_verb(op, xs, rng), f"answer: {dialect.listed(dialect.OPS[op](xs))}"
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        learn += [False, True]
    return Episode(chat, learn)


# -- review ------------------------------------------------------------------------------------------------------------

CAREFUL = ("spell", "ends", "twice", "at once")  # between equals, the attempt that showed the most work is believed


def judge(tried: list[tuple[str, float]], about: list[Lesson], verb: str | None) -> list[str]:
    """The edits that the rewards support: the rule the model is taught to read off a group.

    `tried`: (way, reward) per attempt; `about`: the lessons in the prompt that concern this verb (or counting).
    A way that was always rewarded is the lesson. Without one, the ways that mostly failed are ruled out.
    """
    ways = {way for way, _ in tried}
    mean = {way: sum(r for w, r in tried if w == way) / sum(w == way for w, _ in tried) for way in ways}
    size = {way: sum(w == way for w, _ in tried) for way in ways}
    rank = {way: i for i, way in enumerate(CAREFUL if verb is None else OPS)}
    good = sorted((w for w in ways if mean[w] == 1.0), key=lambda w: (-size[w] if verb else 0, rank[w]))
    bad = {w for w in ways if mean[w] < 0.5}
    if good:
        best = good[0]
        right = [lesson for lesson in about if lesson.use == best]
        wrong = [lesson for lesson in about if lesson.use != best]
        if right:
            return [f"RETIRE {lesson.id} why: {lesson.use or 'this'} failed" for lesson in wrong if lesson.use in bad] or ["NONE"]
        new = Lesson(verb, use=best)
        if wrong:
            return [f"REVISE {wrong[0].id} when: {new.when()} do: {new.do()}"]
        return [f"ADD when: {new.when()} do: {new.do()}"]
    if not bad:
        return ["NONE"]
    wrong = [lesson for lesson in about if lesson.use in bad]
    if wrong and verb is None:
        return [f"RETIRE {wrong[0].id} why: {wrong[0].use} failed"]
    known = next((lesson for lesson in about if lesson.use is None), wrong[0] if wrong else None)
    ruled_out = bad | (set(known.avoid) if known else set())
    if known and ruled_out == set(known.avoid):
        return ["NONE"]
    new = Lesson(verb, avoid=tuple(sorted(ruled_out)))
    return [f"REVISE {known.id} when: {new.when()} do: {new.do()}"] if known else [f"ADD when: {new.when()} do: {new.do()}"]


def note(tried: list[tuple[str, float]]) -> str:
    return "NOTE " + ", ".join(f"{i + 1} {way} {reward:.0f}" for i, (way, reward) in enumerate(tried))


def review(rng: random.Random, level: float) -> Episode:
    """A packed group of 2 to 8 attempts with rewards -> NOTE and edits."""
    verb = None if rng.random() < 0.4 else new_verbs(1, rng)[0]
    ways = list(METHODS) if verb is None else OPS
    truth = rng.choice(ways)
    k = rng.choice([2, 3, 4, 5, 6, 8, 8, 8, 8])
    about: list[Lesson] = []
    if rng.random() < 0.4:
        about.append(random_lesson(verb, rng, avoid_share=0.5))
        if verb and rng.random() < 0.2:
            about.append(Lesson(verb, use=truth))
    ids = rng.sample(range(1, 100 if rng.random() < 0.8 else 9999), len(about) + 3)
    for lesson in about:
        lesson.id = ids.pop()
    # How the attempts went about it: as the lesson says, or by a random mixture.
    mixture = {way: rng.random() ** 3 + 0.02 for way in ways}
    if verb is None and rng.random() < 0.5:
        mixture = dict(DEFAULT)
    if about and rng.random() < 0.8:
        mixture = rng.choice(about).ways()
    elif rng.random() < 0.25:
        mixture.pop(truth, None)
    if verb and not about and rng.random() < 0.5:
        mixture = dict.fromkeys(OPS, 1.0)
        if rng.random() < 0.4:
            mixture.pop(truth)
    word, xs = rng.choice(COUNTED), random_list(rng)
    letter = random_letter(word, rng)
    luck = rng.choice([0.0, 0.1, 0.25, 0.4, 0.6, 0.8]) if verb is None else rng.choice([0.0, 0.0, 0.0, 0.1])
    # Some worlds have no way that always works, and one that never does.
    never = rng.choice(["spell", "spell", *ways]) if verb is None and rng.random() < 0.4 else None
    mostly = rng.choice([0.5, 0.6, 0.7, 0.8, 0.9])
    if never and rng.random() < 0.7:
        mixture = dict(DEFAULT)
    tried, attempts = [], []
    feedback = rng.choice(["wrong", "not right", "the answer is wrong", "no answer found"]) if rng.random() < 0.1 else ""
    for _ in range(k):
        way = pick(mixture, rng)
        reward = float(way == truth or rng.random() < luck) if never is None else float(way != never and rng.random() < mostly)
        text = solve_count(word, letter, way, rng) if verb is None else solve_verb(verb, way, xs)
        tried.append((way, reward))
        attempts.append(Attempt(text, reward, feedback if reward < 1 else ""))
    others = [random_lesson(v, rng) for v in new_verbs(rng.choice([0, 0, 0, 1, 2]), rng)]
    for lesson in others:
        lesson.id = ids.pop() if ids else rng.randint(1, 99)
    shown = [*about, *others]
    rng.shuffle(shown)
    asked = ask_count(word, letter, rng) if verb is None else ask_verb(verb, xs, rng)
    text = review_prompt(asked, shown, attempts, rng)
    answer = "\n".join([note(tried), *judge(tried, about, verb)])
    return Episode([{"role": "user", "content": text}, {"role": "assistant", "content": answer}], [False, True])


def review_prompt(asked: str, shown: list[Lesson], attempts: list[Attempt], rng: random.Random, room: int = 10**9) -> str:
    """`room`: characters that the attempts may have; what is more is cut as at practice."""
    made = pack(attempts, room, len)
    packed = made.text
    rows = [{"id": lesson.id, "when": lesson.when(rng), "do": lesson.do(rng)} for lesson in shown]
    if rng.random() < 0.65:
        values = {"task": asked, "lessons": rows, "attempts": packed, "cut": made.cut, "fence": prompts.nonce(packed)}
        return prompts.render_source(REFLECTION, "reflect/models/pocket/reflect.jinja", **values)
    head = rng.choice(["Review these attempts at one task.", "Look at the attempts and their rewards.", "You learn from attempts at a task."])
    now = "\n".join(f"lesson {row['id']} when: {row['when']} do: {row['do']}" for row in rows)
    now = rng.choice(["Lessons now:\n", "Current lessons:\n"]) + now if rows else rng.choice(["No lessons yet.", "There are no lessons."])
    ask = rng.choice(
        [
            "What worked, what did not? Write NOTE and then ADD, REVISE, RETIRE or NONE.",
            "Write one line NOTE, then edits: ADD, REVISE, RETIRE, or NONE.",
            "What went well, what went wrong, what to try next? NOTE first, then the edits, one per line.",
        ]
    )
    order = [f"Task: {asked}", now] if rng.random() < 0.7 else [now, f"Task: {asked}"]
    return "\n".join([head, *order, packed, ask])


# Shares of the episodes: while binding is young (level up to YOUNG), and at the full level; a line between them.
YOUNG = 0.6
SHARES: list[tuple[Callable[[random.Random, float], Episode], float, float]] = [
    (drill, 0.35, 0.02), (recall, 0.05, 0.04), (counting, 0.20, 0.13), (practice, 0.15, 0.32), (skills, 0.15, 0.09),
    (review, 0.10, 0.40),
]  # fmt: skip


def episode(rng: random.Random, level: float) -> Episode:
    """One episode at difficulty `level` in [0, 1]: more lessons stand in the prompt as it grows."""
    grown = max(0.0, level - YOUNG) / (1 - YOUNG)
    shares = [young + (full - young) * grown for _, young, full in SHARES]
    make = rng.choices([row[0] for row in SHARES], weights=shares)[0]
    return make(rng, level)
