"""Settings. Precedence: flag, then the environment variable REFLECT_NAME, then reflect.toml, then
the default."""

from __future__ import annotations

import math
import os
import sys
import tomllib
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from reflect.errors import UsageError
from reflect.reading import clipped, plain_text, read_text, shortened
from reflect.types import Limits

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

T = TypeVar("T", str, bool, int, float)
MOST: dict[type, float] = {int: 2**31 - 1, float: 1e6}
"""Largest value of a number: a 32-bit column, and the longest timeout of poll() (24 days)."""
MOST_BYTES = 2**20  # of reflect.toml


def shipped(folder: str) -> Path:
    """The packaged folder `prompts` or `tasks`: inside the wheel, or in the checkout of an editable
    install."""
    inside = Path(__file__).parent / "_shipped" / folder
    return inside if inside.is_dir() else Path(__file__).parent.parent / folder


def setting(
    default: T,
    description: str,
    *,
    ge: float = 0,
    le: float | None = None,
    lt: float = math.inf,
    choices: tuple[str, ...] = (),
) -> T:
    """A field of `Settings`. Numbers are finite, at least `ge`, at most `le` (default: MOST), less
    than `lt`; texts are one of `choices`, if any."""
    most = MOST.get(type(default)) if le is None else le
    metadata = {"description": description, "ge": ge, "le": most, "lt": lt, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings. Tokens are those of the model's own tokenizer."""

    db: str = setting("lessons.db", "lessons database: a path, or a SQLAlchemy URL")
    model: str = setting("pocket", "model: pocket, hf:ORG/NAME, a path, gguf:PATH, or openai:NAME")
    judge: str = setting(
        "", "model that grades tasks with a rubric; empty = the model without lessons and adapter"
    )
    profile: str = setting(
        "default", "profile: a namespace with its own lessons and active adapter"
    )
    k: int = setting(8, "rollouts per task", ge=1, le=10_000)
    n: int = setting(40, "tasks per run", ge=1, le=1_000_000)
    temperature: float = setting(1.0, "sampling temperature", le=100)
    max_tokens: int = setting(
        96, "maximum tokens of one answer; with another model than pocket, 512 by default", ge=1
    )
    max_turns: int = setting(32, "maximum turns of one multi-turn rollout", ge=1, le=10_000)
    episode_tokens: int = setting(
        0, "maximum tokens of one rollout's conversation; 0 = the model's context length"
    )
    episode_seconds: float = setting(
        3600.0, "time limit of one rollout in seconds, checked between turns", ge=0.001
    )
    reflect_tokens: int = setting(
        160,
        "maximum tokens of one reflection; with another reflector than pocket, 1024 by default",
        ge=1,
    )
    lesson_budget: int = setting(400, "maximum tokens of lessons in one prompt")
    lesson_limit: int = setting(6, "maximum number of lessons in one prompt")
    require_approval: bool = setting(
        False, "a person must approve new lessons: reflect lessons approve"
    )
    trials: bool = setting(
        True, "withhold lessons from some rollouts of a run, to measure their effect"
    )
    withhold_candidate: float = setting(
        0.5, "share of rollouts from which a candidate lesson is withheld", lt=1
    )
    withhold_active: float = setting(
        0.1, "share of rollouts from which an active or pinned lesson is withheld", lt=1
    )
    withhold_bundle: float = setting(
        0.05, "share of rollouts from which all lessons are withheld together", lt=1
    )
    proposals: int = setting(
        1,
        "reviews of one group, and candidates that compete for one condition; 1 = a new lesson "
        "replaces the old one",
        ge=1,
        le=16,
    )
    reflector: str = setting(
        "", "model that reflects on the rollouts; empty = the model that made them"
    )
    lease: float = setting(
        60.0, "run --join: seconds after which others take over the work of a silent worker", ge=1
    )
    base_url: str = setting(
        "", "URL of the server of openai:NAME, with /v1; keys: OPENAI_API_KEY or REFLECT_API_KEY"
    )
    serve_url: str = setting("", "server (vLLM, reflect serve) that loads each promoted adapter")
    serve_adapters: str = setting(
        "",
        "folder in which that server looks for adapters by name (vLLM's resolver); empty = it sees "
        "this machine's files",
    )
    sampler: str = setting(
        "", "server that answers in a night: openai:NAME at base_url; empty = the model itself"
    )
    context: int = setting(
        8192, "context length of openai:NAME in tokens, if its server does not report it", ge=1
    )
    concurrency: int = setting(8, "concurrent requests to a server", ge=1, le=1024)
    samples: int = setting(
        1,
        "samples per request; above 1 is cheaper, but samples have no seed of their own",
        ge=1,
        le=1024,
    )
    rate: int = setting(0, "maximum requests started per minute; 0 = unlimited")
    timeout: float = setting(120.0, "request timeout in seconds", ge=0.001)
    retries: int = setting(
        2,
        "retries of a request after a rate limit (429), server error (5xx), timeout or disconnect",
        le=100,
    )
    prices: str = setting(
        "", 'price per million tokens in and out, by model: "gpt-x 0.15 0.60, qwen3 0 0"'
    )
    budget_seconds: float = setting(
        0.0, "time limit of one run with remote models, in seconds; 0 = unlimited"
    )
    budget_tokens: int = setting(
        0, "token limit (input plus output) of one run with remote models; 0 = unlimited"
    )
    budget_cost: float = setting(
        0.0,
        "cost limit of one run with remote models, in the unit of prices; 0 = unlimited",
        le=1e12,
    )
    sleep_lessons: int = setting(1, "sleep --if-due: minimum number of new lessons")
    sleep_hours: float = setting(20.0, "sleep --if-due: minimum hours since the last night ended")
    verify_seconds: float = setting(
        10.0, "time limit for scoring one rollout, in seconds", ge=0.001
    )
    verify_memory: int = setting(4096, "memory limit for scoring one rollout, in MiB", ge=1)
    device: str = setting("auto", "device of a local model: auto, cpu, cuda or mps")
    dtype: str = setting(
        "auto", "weight type of a local model", choices=("auto", "float32", "bfloat16", "float16")
    )
    device_map: str = setting(
        "",
        "placement of a local model: auto, balanced or sequential = over all GPUs; "
        "fsdp = over a night's processes",
        choices=("", "auto", "balanced", "sequential", "fsdp"),
    )
    quantize: str = setting(
        "", "4bit = quantize with bitsandbytes; needs a GPU", choices=("", "4bit")
    )
    memory: float = setting(
        0.0, "memory limit of a local model with one batch, in GB; 0 = the free memory"
    )
    max_context: int = setting(0, "context limit of a local model in tokens; 0 = the model's own")
    thinking: str = setting(
        "auto", "thinking mode; auto = the chat template's default", choices=("auto", "on", "off")
    )
    checkpointing: str = setting(
        "auto",
        "activation checkpointing in training; auto = when memory is short",
        choices=("auto", "on", "off"),
    )
    threads: int = setting(0, "torch threads; 0 = torch's default", le=1024)
    home: str = setting(
        "", "folder of adapters and locks; empty = .reflect in the database's folder"
    )

    @property
    def limits(self) -> Limits:
        """The limits of one rollout with several turns."""
        return Limits(self.max_turns, self.episode_tokens, self.episode_seconds)

    @property
    def home_path(self) -> Path:
        """The folder of adapters and locks."""
        if self.home:
            return Path(self.home)
        folder = Path.cwd() if "://" in self.db else Path(self.db).resolve().parent
        return folder / ".reflect"

    def stored(self, names: Collection[str]) -> dict[str, object]:
        """These settings as a run stores and hashes them: renamed ones by their first name, so that
        old runs resume."""
        return {FIRST_NAMES.get(name, name): getattr(self, name) for name in names}

    def restored(self, config: Mapping[str, object], **changes: object) -> Settings:
        """A copy with the settings that a run stored in its config, and with `changes`."""
        known = {setting.name for setting in fields(self)}
        renamed = {RENAMED.get(name, name): value for name, value in config.items()}
        kept = {name: value for name, value in renamed.items() if name in known}
        return replace(self, **kept | changes)  # type: ignore[arg-type]


LARGER = {"max_tokens": 512, "reflect_tokens": 1024}
"""Defaults with another model than the pocket model, whose answers are short."""
RENAMED = {"review": "require_approval"}  # first name -> name. `load` reads both until version 0.2.
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")  # texts of a bool
FIRST_NAMES = {name: first for first, name in RENAMED.items()}


def load(path: Path | None = None, /, **flags: object) -> Settings:
    """Read the settings; `path` is by default ./reflect.toml, if it exists. A flag that is None is
    not set. Numbers of tokens that are not set follow the model (see LARGER). Raises UsageError for
    an unknown setting or an invalid value, ReflectError for a file that cannot be read."""
    settings, given = Settings(), set[str]()
    file = path or Path("reflect.toml")
    if path and not os.path.lexists(path):
        raise UsageError(f"There is no settings file {path}.")
    if os.path.lexists(file):
        text = read_text(file, MOST_BYTES)
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as e:  # also an integer of thousands of digits
            message = f"{file} is not TOML: {clipped(str(e))}."
            raise UsageError(message, "Fix the syntax and try again.") from e
        settings = _update(settings, table, str(file))
        given |= table.keys()
    names = {setting.name for setting in fields(Settings)} | RENAMED.keys()
    env = {k[8:].lower(): v for k, v in os.environ.items() if k.startswith("REFLECT_")}
    env = {k: v for k, v in env.items() if k in names}
    settings = _update(settings, env, "environment REFLECT_*")
    flags = {k: v for k, v in flags.items() if v is not None}
    settings = _update(settings, flags, "flags")
    models = {"max_tokens": settings.model, "reflect_tokens": settings.reflector or settings.model}
    given |= env.keys() | flags.keys()
    for name, model in models.items():
        if model != "pocket" and name not in given:
            settings = _update(settings, {name: LARGER[name]}, "size of the model")
    return settings


def _update(settings: Settings, table: Mapping[str, object], source: str) -> Settings:
    known = {setting.name: setting for setting in fields(Settings)}
    values: dict[str, object] = {}
    for given, value in table.items():
        name = RENAMED.get(given, given)
        if name not in known:
            raise UsageError(
                f"{source}: unknown setting {shortened(name)}.",
                f"Known settings: {', '.join(known)}.",
            )
        if name != given:
            print(
                f"Warning: {source}: the setting '{given}' is now called '{name}'.", file=sys.stderr
            )
        values[name] = _validate(known[name], value, source)
    return replace(settings, **values)  # type: ignore[arg-type]


def _validate(setting: Field[object], value: object, source: str) -> object:
    """The value in the setting's type. UsageError where it has another type, or is out of
    bounds."""
    kind, bounds = type(setting.default), setting.metadata

    def refusal(problem: str) -> UsageError:
        where = f"{source}: {setting.name} = {shortened(value)}"
        return UsageError(f"{where} is {problem}.", f"Allowed: {allowed(setting)}.")

    try:
        clean = _convert(kind, value)
    except (TypeError, ValueError, OverflowError) as e:
        raise refusal(f"not {kind.__name__}") from e
    if isinstance(clean, str):
        if bounds["choices"] and clean not in bounds["choices"]:
            raise refusal("not known")
        if not plain_text(clean):
            raise refusal("no text: it has a control character or bytes that are not UTF-8")
        return clean
    assert isinstance(clean, int | float)
    if isinstance(clean, float) and not math.isfinite(clean):
        raise refusal("not a finite number")
    if clean < bounds["ge"]:
        raise refusal("too small")
    if clean >= bounds["lt"] or (bounds["le"] is not None and clean > bounds["le"]):
        raise refusal("too large")
    return clean


def allowed(setting: Field[object]) -> str:
    """The values of a setting, for a message and for the docs."""
    bounds, default = setting.metadata, setting.default
    if choices := bounds["choices"]:
        return ", ".join(choice or "empty" for choice in choices)
    if isinstance(default, bool | str):
        return "true or false" if isinstance(default, bool) else "text"
    kind = "integer" if isinstance(default, int) else "number"
    below = bounds["lt"] < math.inf
    end = f"below {bounds['lt']:g}" if below else f"at most {_number(bounds['le'])}"
    return f"{kind}, at least {bounds['ge']:g}, {end}"


def _number(value: float) -> str:
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def _convert(kind: type, value: object) -> object:
    """A TOML value, or the text of an environment variable, as `kind`. Raises TypeError, ValueError
    or OverflowError for a lossy conversion."""
    if kind is str:
        return os.fsdecode(value) if isinstance(value, os.PathLike) else _text(value)
    if kind is bool:
        text = value.lower() if isinstance(value, str) else None
        value = text in TRUE if text in TRUE + FALSE else value
        if not isinstance(value, bool):
            raise ValueError(value)
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(value)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return kind(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
