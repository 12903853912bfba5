"""Sokoban rooms by the generator of gym-sokoban (Schrader 2018): push every box onto a target.

    sokoban:6x6-1   a room of 6 by 6 fields with one box
    sokoban:7x7-2   with two boxes, as in Sokoban-small-v0

A message holds moves: up, down, left, right. The reward is the share of boxes on targets when the
room is solved or the turns are used up. A solution is found by breadth-first search. Of the package
only the room generator is run: its environments need the abandoned package gym.

Not covered: rooms with so many boxes that a search takes minutes.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import re
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reflect.errors import UnknownName, UsageError
from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.suites import SuiteTaskset, user_task

if TYPE_CHECKING:
    from types import ModuleType

    from reflect.tasksets.task import Message, Split, Task

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
TURNS, MOVES_PER_TURN = 20, 10
ROOM = re.compile(r"([5-9]|10)x([5-9]|10)-([1-3])")
Field = tuple[int, int]
ABOUT = """Room {}. You are @ in a room of walls (#). Push every box ($) onto a target (.).
A box on a target is *, you on a target are +. You push a box by walking into it; you cannot pull.
Answer with moves, separated by spaces: up, down, left, right. At most {} in one answer.

{}"""


class Room(NamedTuple):
    """What does not move: `floor` are the fields without a wall."""

    rows: int
    columns: int
    floor: frozenset[Field]
    targets: frozenset[Field]


class Position(NamedTuple):
    """What moves."""

    player: Field
    boxes: frozenset[Field]


def load(argument: str) -> Sokoban:
    """`ROWSxCOLUMNS-BOXES`."""
    match = ROOM.fullmatch(argument)
    if not match:
        problem = f"There is no taskset 'sokoban:{argument}'."
        raise UnknownName(problem, "As in: sokoban:7x7-2 (5 to 10 fields, 1 to 3 boxes).")
    return Sokoban(argument, *(int(part) for part in match.groups()))


def listing() -> list[tuple[str, str]]:
    """See `suites.listing`."""
    rows = [("6x6-1", "one box"), ("7x7-2", "two boxes")]
    return [(f"sokoban:{name}", f"a room with {about}") for name, about in rows]


class Sokoban(SuiteTaskset):
    """Rooms of one size."""

    suite = "sokoban"

    def __init__(self, name: str, rows: int, columns: int, boxes: int) -> None:
        super().__init__(name, f"push {boxes} boxes onto targets in a room of {rows} by {columns}")
        self.size, self.boxes = (rows, columns), boxes
        generator()

    def make(self, split: Split, key: int) -> Task:
        """See `SuiteTaskset.make`."""
        text = ABOUT.format(key, MOVES_PER_TURN, drawn(*self.room(key)))
        return user_task(f"room-{key}", text, split)

    @functools.lru_cache(maxsize=1024)  # noqa: B019 (a taskset lives as long as its process)
    def room(self, key: int) -> tuple[Room, Position]:
        """The room of a seed: the first that has as many boxes as asked, and is not yet solved."""
        for attempt in range(100):
            found = generated(self.size, self.boxes, key + 10_000_000 * attempt)
            if found:
                return found
        raise UsageError(f"{self.name} makes no room of the seed {key}.", "Use a larger room.")

    def environment(self, task: Task) -> Environment:
        """See `Taskset.environment`."""
        return SokobanEpisode(*self.room(self.key_of(task)))

    def gold(self, task: Task) -> list[str]:
        """See `Taskset.gold`."""
        moves = solve(*self.room(self.key_of(task)))
        return [
            " ".join(moves[i : i + MOVES_PER_TURN]) for i in range(0, len(moves), MOVES_PER_TURN)
        ]

    def version(self) -> str:
        """See `SuiteTaskset.version`."""
        return f"gym-sokoban {version('gym-sokoban')}"


class SokobanEpisode(Environment):
    """One room while it is played."""

    turns = TURNS

    def __init__(self, room: Room, position: Position) -> None:
        self.room, self.position, self.count = room, position, 0

    def step(self, message: Message) -> EnvironmentStep:
        """Make the moves of a message, up to the first that is not possible."""
        words = re.findall(r"[a-z]+", (message.get("content") or "").lower())
        moves = [word for word in words if word in MOVES][:MOVES_PER_TURN]
        feedback = "" if moves else "there is no move: up, down, left or right"
        for move in moves:
            after = moved(self.room, self.position, move)
            if after is None:
                feedback = f"{move} is not possible there"
                break
            self.position = after
        self.count += 1
        on_target = len(self.position.boxes & self.room.targets) / len(self.position.boxes)
        text = "\n".join(filter(None, [feedback, drawn(self.room, self.position)]))
        done = on_target == 1 or self.count >= TURNS
        return EnvironmentStep([{"role": "user", "content": text}], done, on_target, feedback)


def moved(room: Room, position: Position, move: str) -> Position | None:
    """The position after a move; None where it is not possible."""
    (row, column), (down, right) = position.player, MOVES[move]
    ahead, beyond = (row + down, column + right), (row + 2 * down, column + 2 * right)
    if ahead not in room.floor:
        return None
    if ahead not in position.boxes:
        return Position(ahead, position.boxes)
    if beyond not in room.floor or beyond in position.boxes:
        return None
    return Position(ahead, position.boxes - {ahead} | {beyond})


def solve(room: Room, start: Position) -> list[str]:
    """A shortest list of moves that puts every box onto a target; [] where there is none."""
    came: dict[Position, tuple[Position, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        position = queue.popleft()
        if position.boxes <= room.targets:
            moves: list[str] = []
            while step := came[position]:
                position, move = step
                moves.append(move)
            return moves[::-1]
        for move in MOVES:
            after = moved(room, position, move)
            if after and after not in came:
                came[after] = (position, move)
                queue.append(after)
    return []


def drawn(room: Room, position: Position) -> str:
    """The room as text."""
    signs = {
        False: {"": " ", "box": "$", "player": "@"},
        True: {"": ".", "box": "*", "player": "+"},
    }

    def sign(field: Field) -> str:
        if field not in room.floor:
            return "#"
        what = "player" if field == position.player else "box" if field in position.boxes else ""
        return signs[field in room.targets][what]

    rows = (
        "".join(sign((row, column)) for column in range(room.columns)) for row in range(room.rows)
    )
    return "\n".join(rows)


def generated(size: tuple[int, int], boxes: int, seed: int) -> tuple[Room, Position] | None:
    """The room of a seed; None where the package makes none, or one that is solved already."""
    import numpy as np

    ours, theirs = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:  # the package draws from the global generators
        structure, state, _ = generator().generate_room(dim=size, num_boxes=boxes)
    except (RuntimeError, RuntimeWarning):
        return None
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)

    def fields(grid: np.ndarray, *values: int) -> frozenset[Field]:
        return frozenset(
            (int(row), int(column)) for row, column in np.argwhere(np.isin(grid, values))
        )

    room = Room(*size, fields(structure, 1, 2), fields(structure, 2))
    players, crates = fields(state, 5), fields(state, 3, 4)
    if len(players) != 1 or len(crates) != boxes or crates <= room.targets:
        return None
    (player,) = players
    return room, Position(player, crates)


@functools.cache
def generator() -> ModuleType:
    """The package's room generator, loaded without the package, whose start needs gym."""
    spec = importlib.util.find_spec("gym_sokoban")
    if spec is None or not spec.submodule_search_locations:
        problem = "sokoban:ROOM needs the package gym-sokoban, which is not installed."
        raise UsageError(problem, "Install it: pip install 'second-nature[sokoban]'")
    path = Path(spec.submodule_search_locations[0]) / "envs" / "room_utils.py"
    made = importlib.util.spec_from_file_location("reflect_sokoban_rooms", path)
    assert made and made.loader
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module
