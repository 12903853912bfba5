"""TextWorldExpress (Jansen and Côté 2022, arXiv 2208.01174): text games in a Java program.

    world:coin  world:cookingworld  world:twc  world:mapreader  world:arithmetic
    world:sorting  world:simonsays  world:peckingorder

Practice has the package's training seeds, holdout its test seeds. A message is one action; the
reward is the game's score. One Java process serves all episodes: each step plays the actions of its
episode again from the start, which is exact, because a game depends on its seed and actions only.

Not covered: the parameters of a game, and Java itself, which the package needs.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, TypedDict

from reflect.errors import UsageError
from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.suites import SIZE, SuiteTaskset, known_name, require, user_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.tasksets.task import Message, Split, Task

GAMES = {
    "coin": "find the coin in a house",
    "cookingworld": "cook a meal by its recipe",
    "twc": "put things where they belong",
    "mapreader": "fetch a coin with the help of a map",
    "arithmetic": "take the amount that solves a problem",
    "sorting": "put things in a box, in the order of their amount",
    "simonsays": "follow the commands, one action at a time",
    "peckingorder": "do what the instructions in a book say",
}
FOLDS: dict[Split, str] = {"practice": "train", "holdout": "test"}
FIRST: dict[Split, int] = {"practice": 0, "holdout": 20_000}  # seeds of the folds, 1000 in each
STEPS = 100
CHOICES = 40  # actions that a message lists
HOW = "Answer with one action, on one line."


class GameView(TypedDict):
    """What a game shows, with its score in [-1, 1]."""

    observation: str
    validActions: list[str]
    score: float
    tasksuccess: bool
    taskfailure: bool


def load(name: str) -> World:
    """The game of that name."""
    return World(known_name("world", name, GAMES), GAMES[name])


def listing() -> list[tuple[str, str]]:
    """See `suites.listing`."""
    return [(f"world:{name}", about) for name, about in GAMES.items()]


class Games:
    """The Java process, started at the first game."""

    def __init__(self) -> None:
        module = require("textworld_express", "world")
        if shutil.which("java") is None:
            hint = "Install a Java runtime, for example: apt-get install default-jre-headless"
            raise UsageError("world:NAME needs Java, and there is no program 'java'.", hint)
        self.env = module.TextWorldExpressEnv(envStepLimit=STEPS)
        self.lock = threading.Lock()
        self.at: tuple[str, Split, int, tuple[str, ...]] | None = None
        self.view: GameView | None = None
        atexit.register(self.close)

    def play(
        self, game: str, split: Split, seed: int, actions: Sequence[str]
    ) -> tuple[str, GameView]:
        """The description of the task, and what the game shows after these actions."""
        with self.lock:
            *here, past = self.at or ("", "practice", -1, ())
            known = len(past) if here == [game, split, seed] else len(actions) + 1
            if tuple(actions[:known]) != past or known > len(actions) or self.view is None:
                self.view, known = self._reset(game, split, seed), 0
            for action in actions[known:]:
                *_, self.view = self.env.step(action)
            self.at = (game, split, seed, tuple(actions))
            return str(self.env.getTaskDescription()), self.view

    def gold(self, game: str, split: Split, seed: int) -> list[str]:
        """The actions of the game's own solution."""
        with self.lock:
            self.at = None
            self._reset(game, split, seed, gold=True)
            return [str(action) for action in self.env.getGoldActionSequence()]

    def _reset(self, game: str, split: Split, seed: int, gold: bool = False) -> GameView:
        name = None if game == self.env.gameName else game  # naming it loads its data again
        _, view = self.env.reset(
            seed=seed, gameFold=FOLDS[split], gameName=name, generateGoldPath=gold
        )
        found: GameView = view
        return found

    def close(self) -> None:
        """End the process, once: the package does it again when the object is collected."""
        self.env.close()
        vars(self.env)["close"] = lambda: None


@functools.cache
def games() -> Games:
    """The one process."""
    return Games()


class World(SuiteTaskset):
    """One game."""

    suite = "world"

    def __init__(self, game: str, about: str) -> None:
        super().__init__(game, about)
        self.game = game
        require("textworld_express", "world")

    def keys(self, split: Split) -> list[int]:
        """Seeds of the package's fold."""
        return [FIRST[split] + i for i in range(SIZE[split])]

    def make(self, split: Split, key: int) -> Task:
        """See `SuiteTaskset.make`."""
        about, view = games().play(self.game, split, key, ())
        text = f"Game {key}. {about}\n{HOW}\n\n{shown(view)}"
        return user_task(f"{self.game}-{key}", text, split)

    def environment(self, task: Task) -> Environment:
        """See `Taskset.environment`."""
        return WorldEpisode(self.game, task.split, self.key_of(task))

    def gold(self, task: Task) -> list[str]:
        """See `Taskset.gold`."""
        return games().gold(self.game, task.split, self.key_of(task))

    def version(self) -> str:
        """See `SuiteTaskset.version`."""
        return f"textworld-express {version('textworld-express')}"


class WorldEpisode(Environment):
    """One episode: its actions so far."""

    turns = STEPS

    def __init__(self, game: str, split: Split, seed: int) -> None:
        self.game, self.split, self.seed = game, split, seed
        self.actions: list[str] = []
        self.look = ""

    def step(self, message: Message) -> EnvironmentStep:
        """Carry out the action in the last line of the message."""
        lines = [line.strip() for line in (message.get("content") or "").splitlines()]
        self.actions.append(next((line for line in reversed(lines) if line), "look around"))
        _, view = games().play(self.game, self.split, self.seed, self.actions)
        done = view["score"] >= 1 or view["tasksuccess"] or view["taskfailure"]
        self.look = view["observation"]
        reply: list[Message] = [{"role": "user", "content": shown(view)}]
        reward = min(max(view["score"], 0.0), 1.0)
        return EnvironmentStep(reply, done or len(self.actions) >= STEPS, reward)

    def state(self) -> str:
        """What the game showed last."""
        return self.look


def shown(view: GameView) -> str:
    """The observation, and the actions that are possible."""
    choices = ", ".join(sorted(view["validActions"])[:CHOICES])
    return f"{view['observation'].strip()}\nPossible actions: {choices}"
