"""The curriculum of calc and shop: what a later training of the pocket model would be shown."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

from reflect.models import POCKET
from reflect.prompts import with_lessons

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.pocket import curriculum, games

CALC, SHOP = games.calc_world.TASKSET, games.shop_world.TASKSET
SAMPLE = 150


def sample(kind, n: int = SAMPLE) -> list[curriculum.Episode]:
    return [kind(random.Random(seed), 1.0) for seed in range(n)]


def text(episode: curriculum.Episode) -> str:
    return "\n".join(m["content"] for m in episode.messages)


@pytest.mark.parametrize("kind", games.GAMES, ids=lambda kind: kind.__name__)
def test_episodes_are_learned_where_the_assistant_speaks_and_hold_nothing_of_the_shipped_tasks(
    kind,
) -> None:
    questions = {task.id for split in ("practice", "holdout") for task in CALC.tasks(split)}
    kept = {
        word for word in curriculum.letters.WORDS if curriculum.letters.share(word) != "pretraining"
    }
    for episode in sample(kind):
        assert any(episode.learn) and len(episode.learn) == len(episode.messages)
        assert all(
            m["role"] == "assistant"
            for m, learn in zip(episode.messages, episode.learn, strict=True)
            if learn
        )
        output = text(episode)
        assert not set(re.findall(r"What is (.*)\?", output)) & questions
        customers = set(re.findall(r"Day \d+, a (\w+)", output))
        assert customers.isdisjoint(kept)
    assert sample(kind, 5) == sample(kind, 5)


@pytest.mark.parametrize("kind", games.GAMES, ids=lambda kind: kind.__name__)
def test_episodes_fit_the_context_of_the_pocket_model(kind) -> None:
    from tokenizers import Tokenizer

    if not (POCKET / "tokenizer.json").is_file():
        pytest.skip("the pocket model is not in this installation")
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    sizes = [len(tokenizer.encode(text(e)).ids) + 2 * len(e.messages) for e in sample(kind)]
    assert sum(size <= 1000 for size in sizes) >= 0.9 * SAMPLE, max(sizes)
    unknown = tokenizer.token_to_id("<unk>")
    assert all(unknown not in tokenizer.encode(text(e)).ids for e in sample(kind, 20))


def test_calc_follows_its_lesson_and_reads_what_the_calculator_says() -> None:
    called = 0
    for episode in sample(games.calc):
        output = [m["content"] for m in episode.messages if m["role"] == "assistant"]
        (requests,) = re.findall(r"What is (\d+) \* (\d+) ([+-]) (\d+)\?", text(episode))
        right = int(requests[0]) * int(requests[1]) + int(f"{requests[2]}{requests[3]}")
        system = episode.messages[0]["content"] if episode.messages[0]["role"] == "system" else ""
        calls = len(output) == 3
        called += calls
        assert (output[-1] == f"answer: {right}") == calls or not calls
        if calls:
            assert re.findall(r"result: (\d+)", text(episode))[-1] == str(right)
        for way, words in games.WAYS.items():
            if any(
                re.search(rf": {re.escape(word)}(?:\.|$)", system, re.MULTILINE) for word in words
            ):
                assert calls == (way == "call"), text(episode)
    assert 0.3 < called / SAMPLE < 0.8


def test_shop_asks_what_its_lessons_say() -> None:
    count = 0
    for episode in sample(games.shop):
        system = episode.messages[0]["content"] if episode.messages[0]["role"] == "system" else ""
        for i, message in enumerate(episode.messages):
            if episode.learn[i]:
                kind = re.findall(r"Day \d+, a (\w+)\.", episode.messages[i - 1]["content"])[-1]
                lesson = [line for line in system.splitlines() if re.search(rf"\b{kind}\b", line)]
                if lesson:
                    count += 1
                    assert message["content"] == f"price: {re.findall(r'[0-9]', lesson[-1])[-1]}", (
                        lesson,
                        message,
                    )
    assert count > 100


def test_reviews_are_packed_as_those_of_real_rollouts_and_say_what_the_rewards_say() -> None:
    ways = {"ADD": 0, "REVISE": 0, "RETIRE": 0, "NONE": 0}
    for episode in sample(games.calc_review):
        prompt, answer = (m["content"] for m in episode.messages)
        rewards = dict(re.findall(r"attempt (\d+), reward (\d):", prompt))
        note = re.findall(r"(\d+) (call|at once) (\d)", answer.splitlines()[0])
        assert {number: reward for number, _, reward in note} == rewards
        good = {way for _, way, reward in note if reward == "1"}
        ways[answer.splitlines()[1].split()[0]] += 1
        for way, words in games.WAYS.items():
            if words[0] in answer:
                assert way in good, "the lesson is what was rewarded"
    assert all(n > 3 for n in ways.values()), ways
    cut = 0
    for episode in sample(games.shop_review):
        prompt, answer = (m["content"] for m in episode.messages)
        cut += "turns cut]" in prompt
        books = re.findall(r"The book: (.*?)\.", prompt)
        assert len(books) == len(re.findall(r"^attempt \d, reward", prompt, re.MULTILINE)), (
            "each with its last turn"
        )
        best: dict[str, int] = {}
        for kind, price in re.findall(r"(\w+) (\d)", " ".join(books)):
            best[kind] = max(best.get(kind, 0), int(price))
        assert answer.splitlines()[0] == "NOTE " + ", ".join(
            f"{kind} {price}" for kind, price in best.items()
        )
        for kind, price in re.findall(r"the customer is a (\w+) do: ask price (\d)", answer):
            assert best[kind] == int(price)
    assert 0.1 * SAMPLE < cut < 0.5 * SAMPLE


def test_the_games_are_off_by_default_and_a_prompt_is_that_of_run_time() -> None:
    seen = {kind.__name__ for kind, _, _ in curriculum.SHARES}
    assert seen.isdisjoint(kind.__name__ for kind in games.GAMES)
    before = [curriculum.episode(random.Random(seed), 1.0) for seed in range(20)]
    assert not any("Calculator" in text(e) or "shop for" in text(e) for e in before)
    mixed = [games.any_episode(random.Random(seed), 1.0) for seed in range(200)]
    share = sum("Calculator" in text(e) or "shop for" in text(e) for e in mixed) / 200
    assert 0.15 < share < 0.45  # three in ten; 200 draws miss this range once in 100 000
    task = SHOP.tasks("practice", 1)[0]
    rule = games.rule_of_price("sailor", 4)
    (system, _) = with_lessons(task.messages, [{"when": rule.when(), "do": rule.do()}])
    assert "- when: the customer is a sailor do: ask price 4" in system["content"]
