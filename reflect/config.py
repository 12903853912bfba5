"""Settings: flag > REFLECT_* > reflect.toml > default."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from reflect.errors import UsageError


def shipped(folder: str) -> Path:
    """The folder `prompts` or `tasks` that came with reflect: inside the wheel, or beside it in an editable install."""
    inside = Path(__file__).parent / "_shipped" / folder
    return inside if inside.is_dir() else Path(__file__).parent.parent / folder


@dataclass(frozen=True)
class Settings:
    """Everything that can be set in reflect.toml or by REFLECT_NAME. Tokens are the model's own."""

    db: str = "lessons.db"  # a path, or a SQLAlchemy URL
    model: str = "pocket"
    profile: str = "default"
    k: int = 8  # rollouts per task
    n: int = 40  # tasks per run
    temperature: float = 1.0
    max_tokens: int = 96  # of one rollout
    reflect_tokens: int = 160  # of one reflection
    lesson_budget: int = 400  # tokens of lessons in one prompt
    lesson_limit: int = 6  # lessons in one prompt
    review: bool = False  # a person approves what the model learns before it is shown: reflect lessons approve
    trials: bool = True  # withhold lessons from some rollouts of a run, to measure what they are worth
    withhold_candidate: float = 0.5  # from this share of the rollouts
    withhold_active: float = 0.1  # the same of lessons that are proven, or pinned
    withhold_bundle: float = 0.05  # all lessons together, from this share: is the prompt better with them at all?
    sleep_lessons: int = 1  # `reflect sleep --if-due`: a night is due when so many lessons are new
    sleep_hours: float = 20.0  # and the last one ended so long ago
    verify_seconds: float = 10.0  # to score one rollout; a verifier that needs longer is ended
    verify_memory: int = 4096  # MiB that this may take
    device: str = "auto"  # auto | cpu | cuda | mps
    threads: int = 0  # torch threads, 0 = torch's own choice
    home: str = ""  # where adapters and locks live; default: .reflect beside the database

    @property
    def home_path(self) -> Path:
        if self.home:
            return Path(self.home)
        beside = Path.cwd() if "://" in self.db else Path(self.db).resolve().parent
        return beside / ".reflect"


def load(path: Path | None = None, **flags: Any) -> Settings:
    """Read the settings. `flags` that are None are not given. An unknown or ill-typed key is a UsageError."""
    settings = Settings()
    file = path or Path("reflect.toml")
    if file.is_file():
        try:
            table = tomllib.loads(file.read_text())
        except tomllib.TOMLDecodeError as e:
            raise UsageError(f"{file} is not TOML: {e}.", "Mend that line.") from e
        settings = _update(settings, table, str(file))
    elif path:
        raise UsageError(f"There is no settings file {path}.")
    names = {f.name for f in fields(Settings)}
    env = {k[8:].lower(): v for k, v in os.environ.items() if k.startswith("REFLECT_")}
    settings = _update(settings, {k: v for k, v in env.items() if k in names}, "environment REFLECT_*")
    return _update(settings, {k: v for k, v in flags.items() if v is not None}, "flags")


def _update(settings: Settings, table: dict[str, Any], source: str) -> Settings:
    types: dict[str, Any] = {f.name: type(f.default) for f in fields(Settings)}
    clean: dict[str, Any] = {}
    for name, value in table.items():
        if name not in types:
            raise UsageError(f"{source}: unknown setting '{name}'.", f"Known are: {', '.join(types)}.")
        try:
            clean[name] = _truth(value) if types[name] is bool else types[name](value)
        except (TypeError, ValueError) as e:
            raise UsageError(f"{source}: {name} = {value!r} is not {types[name].__name__}.") from e
        if name.startswith("withhold_") and not 0.0 <= clean[name] < 1.0:
            raise UsageError(f"{source}: {name} = {value!r} is not a share of the rollouts.", "Give 0 to 0.9.")
    return replace(settings, **clean)


def _truth(value: Any) -> bool:
    """true and false as TOML has them, or as words of the environment."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(value)
    return value
