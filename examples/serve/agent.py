"""An agent that learns through `reflect serve`: only its base URL is different.

Run:     python agent.py
It does: 1. start `reflect serve` on a free port of this machine,
         2. ask questions with the official `openai` client, check each answer, and send the
            reward to /v1/feedback,
         3. run `reflect run --from-traffic`: the model reviews the rewarded answers and writes a
            lesson,
         4. ask new questions. The server puts the lesson into some requests, chosen at random,
            so that rewards measure it. A header of each reply names the lessons of the request.
Prints:  the mean reward before; the lesson; the mean reward after, of requests without the lesson
         and with it.

The database is lessons.db in this folder. `--trusted` means that all clients are your own programs.
"""

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from openai import OpenAI

REFLECT = [sys.executable, "-m", "reflect"]
MORNING = "badger beaver falcon giraffe kangaroo parrot".split()
AFTERNOON = "banana blueberry coconut papaya pineapple strawberry".split()


@contextmanager
def server() -> Iterator[str]:
    """Run `reflect serve` on a free port; yields its base URL, the first line that it prints."""
    command = [*REFLECT, "serve", "--trusted", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def ask(client: OpenAI, word: str, letter: str, attempts: int) -> dict[str, list[float]]:
    """Ask one question several times and send a reward for each answer.

    Returns the rewards of the requests "with" and "without" a lesson in the prompt.
    """
    rewards = defaultdict(list)
    for seed in range(attempts):
        reply = client.chat.completions.with_raw_response.create(
            model="pocket",
            messages=[{"role": "user", "content": f"How many {letter} are in {word}?"}],
            seed=seed,
        )
        completion = reply.parse()
        numbers = re.findall(r"\d+", completion.choices[0].message.content)
        reward = float(bool(numbers) and int(numbers[-1]) == word.count(letter))
        client.post("/feedback", cast_to=object, body={"id": completion.id, "reward": reward})
        rewards["with" if reply.headers.get("x-reflect-lessons") else "without"].append(reward)
    return rewards


def work(client: OpenAI, words: list[str], attempts: int) -> dict[str, list[float]]:
    """Ask for the most frequent letter of each word."""
    rewards = defaultdict(list)
    for word in words:
        for group, values in ask(client, word, max(word, key=word.count), attempts).items():
            rewards[group] += values
    return rewards


def mean(rewards: list[float]) -> str:
    return f"{sum(rewards) / len(rewards):.2f} ({len(rewards)} requests)"


if __name__ == "__main__":
    with server() as url:
        client = OpenAI(base_url=url, api_key="none")
        before = work(client, MORNING, attempts=8)
        print(f"before: {mean(before['without'])}", flush=True)
        subprocess.run([*REFLECT, "run", "--from-traffic"], check=True)
        after = work(client, AFTERNOON, attempts=4)
    for group in ("without", "with"):
        print(f"after, {group} the lesson: {mean(after[group])}")
