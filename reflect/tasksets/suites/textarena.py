"""Games for one player of textarena (Guertler et al. 2025, arXiv 2504.11442).

    textarena:GuessTheNumber-v0  textarena:Mastermind-v0  textarena:FrozenLake-v0 ...

A message is one move in the game's own form; the reward is the game's. Practice and holdout have
different seeds. Games whose start is always the same, that need data from the network (nltk's word
lists) or of which no solution is known here are not listed: docs/suites.md says which and why.

Not covered: games for several players, which need a second model.
"""

from __future__ import annotations

import random
import re
from collections import deque
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.suites import SuiteTaskset, known_name, require, user_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect.tasksets.task import Message, Split, Task

State = dict[str, Any]  # a game's state, as the package keeps it


def secret_number(state: State) -> list[str]:
    """GuessTheNumber."""
    return [f"[{state['game_number']}]"]


def secret_code(state: State) -> list[str]:
    """Mastermind."""
    return [f"[{' '.join(map(str, state['secret_code']))}]"]


def path_to_goal(state: State) -> list[str]:
    """FrozenLake: a shortest path around the holes."""
    grid, start, goal = state["grid"], tuple(state["player_pos"]), tuple(state["goal_pos"])
    paths: dict[tuple[int, ...], list[str]] = {start: []}
    queue = deque([start])
    while queue:
        row, column = place = queue.popleft()
        steps = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
        for move, (down, right) in steps.items():
            to = (row + down, column + right)
            free = 0 <= to[0] < len(grid) and 0 <= to[1] < len(grid) and grid[to[0]][to[1]] != "H"
            if free and to not in paths:
                paths[to] = [*paths[place], f"[{move}]"]
                queue.append(to)
    return paths[goal]


def lights_off(state: State) -> list[str]:
    """LightsOut: the presses, by elimination over the field of two elements."""
    grid = state["grid"]
    size = len(grid)
    cells = [(row, column) for row in range(size) for column in range(size)]
    rows = [
        sum(_near(cell, press) << i for i, press in enumerate(cells))
        | (int(grid[cell[0]][cell[1]]) << len(cells))
        for cell in cells
    ]
    pivots: list[int] = []
    for i in range(len(cells)):
        at = next((r for r in range(len(pivots), len(rows)) if rows[r] >> i & 1), None)
        if at is None:
            continue
        here = len(pivots)
        rows[here], rows[at] = rows[at], rows[here]
        rows = [
            row ^ rows[here] if r != here and row >> i & 1 else row for r, row in enumerate(rows)
        ]
        pivots.append(i)
    pressed = [cells[i] for r, i in enumerate(pivots) if rows[r] >> len(cells) & 1]
    return [f"[{row} {column}]" for row, column in pressed]


def _near(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1


Solution = tuple[str, "Callable[[State], list[str]]"]
GAMES: dict[str, Solution] = {
    "GuessTheNumber-v0": ("find a number by higher and lower", secret_number),
    "GuessTheNumber-v0-hardcore": ("the same, from 1 to 50", secret_number),
    "Mastermind-v0": ("find a code of four digits", secret_code),
    "Mastermind-v0-hard": ("the same, with eight digits to choose from", secret_code),
    "FrozenLake-v0": ("walk to a goal around holes", path_to_goal),
    "FrozenLake-v0-random": ("the same, from any corner", path_to_goal),
    "FrozenLake-v0-hardcore": ("the same on a larger lake", path_to_goal),
    "LightsOut-v0": ("switch all lights off", lights_off),
}


def load(name: str) -> Arena:
    """The game of that name."""
    return Arena(known_name("textarena", name, GAMES), GAMES[name])


def listing() -> list[tuple[str, str]]:
    """See `suites.listing`."""
    return [(f"textarena:{name}", about) for name, (about, _) in GAMES.items()]


class Arena(SuiteTaskset):
    """One game."""

    suite = "textarena"

    def __init__(self, game: str, solution: Solution) -> None:
        about, self.solve = solution
        super().__init__(game, about)
        self.game = game
        require("textarena", "textarena")

    def make(self, split: Split, key: int) -> Task:
        """See `SuiteTaskset.make`."""
        text = f"Game {key}.\n{ArenaEpisode(self.game, key).first}"
        return user_task(f"game-{key}", text, split)

    def environment(self, task: Task) -> Environment:
        """See `Taskset.environment`."""
        return ArenaEpisode(self.game, self.key_of(task))

    def gold(self, task: Task) -> list[str]:
        """See `Taskset.gold`."""
        episode = ArenaEpisode(self.game, self.key_of(task))
        return self.solve(vars(episode.game) | episode.game.state.game_state)

    def version(self) -> str:
        """See `SuiteTaskset.version`."""
        return f"textarena {version('textarena')}"


class ArenaEpisode(Environment):
    """One game while it is played. The package draws from the global generator, so each episode
    keeps a state of it."""

    def __init__(self, name: str, seed: int) -> None:
        ours = random.getstate()
        random.seed(seed)
        try:
            self.game = require("textarena", "textarena").make(f"{name}-raw")
            self.game.reset(num_players=1, seed=seed)
            self.draws = random.getstate()
        finally:
            random.setstate(ours)
        self.first = self._news()

    def step(self, message: Message) -> EnvironmentStep:
        """Make the move of a message."""
        ours = random.getstate()
        random.setstate(self.draws)
        try:
            done, _ = self.game.step(message.get("content") or "")
            self.draws = random.getstate()
        finally:
            random.setstate(ours)
        text = self._news()
        rewards = self.game.state.rewards or {}
        reward = min(max(float(rewards.get(0, 0.0)), 0.0), 1.0) if done else None
        invalid = "the move was not possible" if "invalid move" in text.lower() else ""
        return EnvironmentStep([{"role": "user", "content": text}], bool(done), reward, invalid)

    def _news(self) -> str:
        """What the game has said since the last call, without the player's own moves."""
        _, rows = self.game.get_observation()
        texts = [text for _, text, kind in rows if getattr(kind, "name", "") != "PLAYER_ACTION"]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(texts)).strip() or "The game goes on."
