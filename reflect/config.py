"""Settings: flag > REFLECT_* > reflect.toml > default."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from reflect.errors import UsageError


def shipped(folder: str) -> Path:
    """The folder `prompts` or `tasks` that came with reflect: inside the wheel, or beside it in an editable install."""
    inside = Path(__file__).parent / "_shipped" / folder
    return inside if inside.is_dir() else Path(__file__).parent.parent / folder


class Limits(NamedTuple):
    """Of one rollout that has several turns: see the settings of like names."""

    turns: int = 32
    tokens: int = 0
    seconds: float = 3600.0


@dataclass(frozen=True)
class Settings:
    """Everything that can be set in reflect.toml or by REFLECT_NAME. Tokens are the model's own."""

    db: str = "lessons.db"  # a path, or a SQLAlchemy URL
    model: str = "pocket"
    judge: str = ""  # another model that grades tasks with a rubric; default: the model itself, bare
    profile: str = "default"
    k: int = 8  # rollouts per task
    n: int = 40  # tasks per run
    temperature: float = 1.0
    max_tokens: int = 96  # of one answer
    max_turns: int = 32  # of one rollout, in tasks of several turns
    episode_tokens: int = 0  # of one rollout's whole conversation; 0: as many as the model's context holds
    episode_seconds: float = 3600.0  # of one rollout; looked at between its turns
    reflect_tokens: int = 160  # of one reflection
    lesson_budget: int = 400  # tokens of lessons in one prompt
    lesson_limit: int = 6  # lessons in one prompt
    review: bool = False  # a person approves what the model learns before it is shown: reflect lessons approve
    trials: bool = True  # withhold lessons from some rollouts of a run, to measure what they are worth
    withhold_candidate: float = 0.5  # from this share of the rollouts
    withhold_active: float = 0.1  # the same of lessons that are proven, or pinned
    withhold_bundle: float = 0.05  # all lessons together, from this share: is the prompt better with them at all?
    reflector: str = ""  # the model that reviews the attempts; default: the one that makes them
    base_url: str = ""  # of the server of openai:NAME, with /v1; keys are in OPENAI_API_KEY or REFLECT_API_KEY alone
    serve_url: str = ""  # a server (vLLM, reflect serve) that is given each adapter that is promoted
    context: int = 8192  # tokens that openai:NAME reads with its answer, where its server does not say
    concurrency: int = 8  # requests to a server at the same time
    samples: int = 1  # attempts asked for in one request; more are cheaper, but have no seed of their own
    rate: int = 0  # requests that are begun in a minute, 0 = as many as go
    timeout: float = 120.0  # seconds that a server is waited for
    retries: int = 2  # of a request that was limited (429), failed (5xx), timed out or was cut off
    prices: str = ""  # of a million tokens in and out, by model: "gpt-x 0.15 0.60, qwen3 0 0"
    budget_seconds: float = 0.0  # of one run with models behind an API; 0 = no limit
    budget_tokens: int = 0  # the same, tokens in and out
    budget_cost: float = 0.0  # the same, in the money of `prices`
    sleep_lessons: int = 1  # `reflect sleep --if-due`: a night is due when so many lessons are new
    sleep_hours: float = 20.0  # and the last one ended so long ago
    verify_seconds: float = 10.0  # to score one rollout; a verifier that needs longer is ended
    verify_memory: int = 4096  # MiB that this may take
    device: str = "auto"  # auto | cpu | cuda | mps
    dtype: str = "auto"  # of a local model's weights: auto | float32 | bfloat16 | float16
    device_map: str = ""  # "auto": a local model is spread over all GPUs; "fsdp": over the processes of a night
    quantize: str = ""  # "4bit": with bitsandbytes, on a GPU
    memory: float = 0.0  # GB that a local model may take, its weights and a batch; 0 = what is free
    max_context: int = 0  # tokens that a local model reads with its answer at most; 0 = as many as it says it can
    thinking: str = "auto"  # on | off, where the chat template has a switch for it; auto = as the template has it
    checkpointing: str = "auto"  # on | off: training keeps fewer values and computes them again; auto = when it must
    threads: int = 0  # torch threads, 0 = torch's own choice
    home: str = ""  # where adapters and locks live; default: .reflect beside the database

    @property
    def limits(self) -> Limits:
        return Limits(self.max_turns, self.episode_tokens, self.episode_seconds)

    @property
    def home_path(self) -> Path:
        if self.home:
            return Path(self.home)
        beside = Path.cwd() if "://" in self.db else Path(self.db).resolve().parent
        return beside / ".reflect"


AT_LEAST = {"context": 1, "concurrency": 1, "samples": 1, "rate": 0, "timeout": 0.001, "retries": 0}
AT_LEAST |= {"budget_seconds": 0, "budget_tokens": 0, "budget_cost": 0, "memory": 0, "max_context": 0}
CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device_map": ("", "auto", "balanced", "sequential", "fsdp"),
    "quantize": ("", "4bit"),
    "thinking": ("auto", "on", "off"),
    "checkpointing": ("auto", "on", "off"),
}


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
        if name in AT_LEAST and clean[name] < AT_LEAST[name]:
            raise UsageError(f"{source}: {name} = {value!r} is too small.", f"Give at least {AT_LEAST[name]}.")
        if name in CHOICES and clean[name] not in CHOICES[name]:
            known = ", ".join(word or '""' for word in CHOICES[name])
            raise UsageError(f"{source}: {name} = {value!r} is not known.", f"Known are: {known}.")
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
