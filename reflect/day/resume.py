"""Going on with a run in the words in which it was begun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reflect.config import Settings
from reflect.errors import ModelError, UsageError
from reflect.models.base import Model
from reflect.records import Run
from reflect.store import Store, nights, runs


@dataclass(frozen=True)
class ResumedRun:
    """A run that is to be finished: `settings` are those of now, but for what the run was begun
    with."""

    run: Run
    settings: Settings
    flags: dict[str, Any]  # of `practice`


def begun(store: Store, settings: Settings, run_id: int | None = None) -> ResumedRun:
    """The run of that id, by default the newest unfinished one of the profile. UsageError where
    there is none, or where the profile answers with another adapter by now."""
    with store.read() as s:
        rows = [runs.get_run(s, run_id)] if run_id else runs.unfinished(s, profile=settings.profile)
        if not rows:
            raise UsageError("No run is unfinished.", "Begin one: reflect run TASKSET")
        run = rows[0]
        active = nights.active_adapter(s, run.profile)
    traffic = run.from_traffic  # what was answered is answered, by whatever adapter
    if not traffic and (active.id if active else None) != run.adapter_id:
        was = f"adapter {run.adapter_id}" if run.adapter_id else "no adapter"
        raise UsageError(
            f"Run {run.id} was begun with {was} on.", "Switch back to it, or begin a new run."
        )
    words: dict[str, object] = {
        "model": run.model,
        "profile": run.profile,
        "reflector": run.config.get("reflector", ""),
    }
    if settings.base_url:  # its server has moved
        words["base_url"] = settings.base_url
    flags: dict[str, Any] = {
        name: run.config[name] for name in ("learn", "use_lessons") if name in run.config
    }
    return ResumedRun(run, settings.restored(run.config, **words), flags)


def unchanged(run: Run, model: Model, reflector: Model | None, meaning: str) -> None:
    """ModelError or UsageError where a model, the verifier or the system prompt is not what the run
    was begun with."""
    before = {run.model: (model, run.model_fingerprint)}
    if reflector is not None:
        before[reflector.name] = (reflector, str(run.config.get("reflector_fingerprint")))
    for name, (now, fingerprint) in before.items():
        if now.fingerprint != fingerprint:
            raise ModelError(
                f"The model {name} has changed since run {run.id}.", "Begin a new run: reflect run."
            )
    if meaning != run.measure:
        told = (
            f"The verifier of {run.taskset}, or the system prompt, has changed since run {run.id}."
        )
        raise UsageError(told, "Begin a new run: reflect run.")
