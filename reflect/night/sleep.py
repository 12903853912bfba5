"""The night: pick lessons, check there is something to learn, make the teacher's data, train, gate,
promote.

The same lessons, base and plan make the same night: running it again changes nothing, and a killed
night continues with its first incomplete stage. The result of a stage is a file that is visible
only when complete; promotion, the last step, is one transaction.

Not covered: a night continued on another kind of machine, or with another number of threads, may
round differently.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reflect.adapters import activation, registry
from reflect.errors import AdapterError, ModelHalted, NightError, UsageError
from reflect.night import cost_estimate, disk_space
from reflect.night.workdir import NightDir, night_key, night_lock
from reflect.store import Store, nights
from reflect.store import lessons as lessons_db
from reflect.tasksets import load_taskset
from reflect.training import deadline, lesson_set
from reflect.training import preflight as preflights
from reflect.training.context import NightContext, TasksetLessons
from reflect.training.plan import NightOptions, Plan, make_plan, plan_summary
from reflect.training.teacher_data import TrainingData, harvest
from reflect.types import (
    AdapterStatus,
    Author,
    Json,
    LessonStatus,
    NightStage,
    NightStatus,
    Progress,
    StopReason,
    TrialKind,
    TrialVerdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.config import Settings
    from reflect.models.base import Model
    from reflect.records import Adapter, Night
    from reflect.tasksets.base import Taskset

DEFAULT_OPTIONS = NightOptions()


@dataclass(frozen=True)
class NightReport:
    """What a night did. `status`: promoted, rejected, nothing, failed; planned, for a dry run;
    exported, to be trained elsewhere; paused, at a deadline (the night goes on with the next
    sleep); or "not due"."""

    status: str
    reason: str
    night_id: int | None = None
    adapter: str | None = None
    lessons: list[int] = field(default_factory=list)
    """Ids of the lessons of the night."""
    distilled: list[int] = field(default_factory=list)
    """Ids of the lessons that left the prompt."""
    returned: list[int] = field(default_factory=list)
    """Ids of the lessons that are no longer in the weights: back in the prompt."""
    plan: Json = field(default_factory=dict)
    stages: Json = field(default_factory=dict)
    """Stage -> its figures."""
    seconds: float = 0.0
    again: bool = False
    """The same night had ended before; nothing was done."""
    cost: Json = field(default_factory=dict)
    """Of a dry run: see `cost_estimate.Cost`."""
    sampler: str = ""
    """Why the answers of the night are not by the sampler of the settings."""


@dataclass(frozen=True, kw_only=True)
class RunningNight(NightContext):
    """A night that has begun: its record, and the folder of its results."""

    night: Night
    work: NightDir

    @property
    def adapter_name(self) -> str:
        """The name of the adapter that this night makes."""
        return registry.name_of(self.night.key)

    def stage(self, stage: NightStage, make: Callable[[NightContext], Json]) -> Json:
        """The result of `make`, or the stored one of a stage that was complete before."""

        def report(done: int, total: int, what: str) -> None:
            self.report(done, total, f"{stage}: {what}")

        try:
            result = self.work.once(stage, lambda: make(replace(self, progress=report)))
        except deadline.Paused as e:
            e.stage = stage
            raise
        with self.store.write() as s:
            figures = result.get("figures", result)
            stored = {name: x for name, x in figures.items() if name != preflights.UNSTORED}
            nights.save_stage(s, self.night.id, stage, stored)
        return result


Trainer = Callable[[RunningNight, TrainingData], Json]
"""Trains the adapter of a night, leaves it in the model and returns the figures."""


@dataclass(frozen=True)
class NightOutcome:
    """How a night ended. `preflight`: its figures; `verdict` and `adapter`: of the gate."""

    status: NightStatus
    preflight: Json
    reason: str = ""
    verdict: Json | None = None
    adapter: Adapter | None = None


def sleep(
    model: Model,
    store: Store,
    settings: Settings,
    options: NightOptions = DEFAULT_OPTIONS,
    *,
    tasksets: Sequence[Taskset] = (),
    load: Callable[[str], Taskset] = load_taskset,
    dry_run: bool = False,
    until: float | None = None,
    trainer: Trainer | None = None,
    progress: Progress | None = None,
) -> NightReport:
    """Distill all lessons of the profile into an adapter. `tasksets`: where general lessons are
    practised. `load` loads a taskset by name. Tasksets with judged tasks need a judge: see
    `reflect.rollouts.judge.bind`.

    `trainer` trains in place of `training.loop` (see `reflect.night.job`).
    `until`: the night pauses at this time.monotonic(); the next sleep continues it. The model ends
    with the profile's active adapter on. Raises NightBusy if another sleep runs, UsageError for a
    model without local weights.
    """
    start = time.monotonic()
    from reflect.models.local import LocalModel  # torch
    from reflect.models.server_sampler import sampling_by_server

    if not isinstance(model, LocalModel):
        hint = "Use pocket, hf:ORG/NAME or a path."
        raise UsageError(f"The model {model.name} has no weights here to train.", hint)
    with night_lock(settings):
        lessons = lesson_set.pick(store, settings.profile)
        if not lessons:
            if not dry_run:  # without lessons the view of the database is the bare base
                with store.write() as s:
                    nights.leave_marked(s, settings.profile)
                activation.activate(model, store, settings)
            reason = "There are no lessons yet. Practise first: `reflect run TASKSET`."
            return NightReport(NightStatus.NOTHING, reason)
        items = lesson_set.lessons_by_taskset(store, settings.profile, lessons, tasksets, load)
        weights = (p for name, p in model.network.named_parameters() if ".lora_" not in name)
        adapter = start_adapter(store, settings) if options.continued else ""
        parameters = sum(p.numel() for p in weights)
        plan = make_plan(parameters, len(lessons), start=adapter, **options.choices())
        timed = deadline.with_deadline(progress, until)
        ctx = NightContext(model, store, settings, plan, items, progress=timed, load=load)
        if dry_run:
            cost = cost_estimate.estimate(ctx)
            disk = disk_space.in_mb(disk_space.needed(model.network, plan))
            reason = f"{describe(plan, items)} {cost_estimate.describe(cost, disk)}"
            ids = [lesson.id or 0 for lesson in lessons]
            return NightReport("planned", reason, lessons=ids, plan=plan.shape(), cost=dict(cost))
        disk_space.check(model.network, settings, plan)
        night, stopped = begin(ctx), ""
        again, paused = night.night.status != NightStatus.RUNNING, ""
        sampler = ""
        try:
            if not again:
                candidates = registry.home(settings) / f"{registry.UNFINISHED}candidates"
                with sampling_by_server(model, settings, candidates) as sampler:
                    outcome = run_stages(night, trainer or train_here)
                end(night, outcome)
        except deadline.Paused as e:
            number = night.night.id
            paused = (
                f"The deadline came in stage {e.stage}: `reflect sleep` continues night {number}."
                if e.reason == StopReason.DEADLINE
                else f"Night {number} waits for its training: reflect night work, then import."
            )
            stopped = "paused" if e.reason == StopReason.DEADLINE else "exported"
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            problem = f"The disk is full, so the night could not go on ({settings.home_path})."
            hint = (
                "Free some space, then run the same command again: it continues where it stopped."
            )
            raise NightError(problem, hint) from e
        finally:
            activation.activate(model, store, settings)
        report = make_report(store, night.night.id, time.monotonic() - start, again)
        report = replace(report, sampler=sampler)
        return replace(report, status=stopped, reason=paused) if paused else report


def run_stages(night: RunningNight, trainer: Trainer) -> NightOutcome:
    """The stages of a night, from the first incomplete one to the gate."""
    from reflect.gate import gate  # torch

    night.model.use(None)

    # Check that there is something to learn.
    preflight = night.stage(NightStage.PREFLIGHT, preflights.preflight)
    night = replace(night, tasksets=with_effect(night, preflight))
    if not night.tasksets:
        reason = "On fresh practice tasks no lesson makes the model better."
        return NightOutcome(NightStatus.NOTHING, preflight, reason)

    # Make the teacher's data.
    data = make_data(night, preflight)
    if not data.harvest and night.plan.learns_from_teacher:
        reason = "Even with the lessons no attempt passes the verifier."
        return NightOutcome(NightStatus.NOTHING, preflight, reason)

    # Train.
    previous = load_previous(night)
    try:
        adapter = train(night, data, trainer)
    except NightError as e:
        return NightOutcome(NightStatus.FAILED, preflight, e.message)

    # Gate. If it fails with an error, or takes too long, nothing is promoted.
    run = gate.GateRun(night, adapter.name, data, previous)
    try:
        placebo = night.stage(NightStage.PLACEBO, lambda ctx: run.placebo(ctx, night.work.folder))
        night = gate.limited(night)  # the training of the placebo does not count
        verdict = night.stage(NightStage.GATE, lambda ctx: run.judge(ctx, placebo["rewards"]))
        scaled = run.at_scale(verdict, night.night.id)
    except (OSError, ModelHalted):
        raise  # a full disk, a server that does not answer: the night continues later
    except Exception as e:
        why = e.message if isinstance(e, NightError) else f"{type(e).__name__}: {e}"
        reason = f"The gate broke down, so nothing is promoted. {why}"
        return NightOutcome(NightStatus.FAILED, preflight, reason)
    status = NightStatus.PROMOTED if verdict["ok"] else NightStatus.REJECTED
    return NightOutcome(status, preflight, "", verdict, scaled or adapter)


def with_effect(night: RunningNight, preflight: Json) -> list[TasksetLessons]:
    """The tasksets with the lessons that preflight has proven to help."""
    items = [
        TasksetLessons(item.taskset, tuple(x for x in item.lessons if x.id in preflight["worth"]))
        for item in night.tasksets
    ]
    return [item for item in items if item.lessons]


def make_data(night: RunningNight, preflight: Json) -> TrainingData:
    """The stage harvest: the teacher's attempts and the anchors."""
    tasksets = preflight["tasksets"]
    failed = {key for figures in tasksets.values() for key in figures["failed"]}
    means = {name: figures["lessons"] for name, figures in tasksets.items()}
    attempts = preflight.get(preflights.UNSTORED)
    shape = night.stage(
        NightStage.HARVEST, lambda ctx: harvest(ctx, failed, means, attempts).shape()
    )
    return TrainingData.of(shape, [item.taskset for item in night.tasksets])


def train_here(night: RunningNight, data: TrainingData) -> Json:
    """Train the adapter of the night in this process: its figures."""
    from reflect.training import loop  # torch

    plan, folder = night.plan, night.work.folder
    return loop.train(night.model, night.adapter_name, data, plan, folder, night.progress)


def train(night: RunningNight, data: TrainingData, trainer: Trainer) -> Adapter:
    """The stage train. The adapter is loaded from disk, so the gate evaluates what was saved."""
    model, settings, name = night.model, night.settings, night.adapter_name

    def make(ctx: NightContext) -> Json:
        if not registry.exists(name, settings):
            trained = trainer(replace(night, progress=ctx.progress), data)
            texts = sorted({(x.scope, x.when, x.do) for item in ctx.tasksets for x in item.lessons})
            lessons = [list(text) for text in texts]
            about = {"lessons": lessons, "plan": ctx.plan.shape(), "training": trained}
            registry.publish(model, name, settings, about)
        figures: Json = registry.card(name, settings)["training"]
        return figures

    night.stage(NightStage.TRAIN, make)
    adapter = registry.row(model, name, settings, night_id=night.night.id)
    activation.load(model, adapter, settings)
    return adapter


def start_adapter(store: Store, settings: Settings) -> str:
    """The name of the active adapter; "" if there is none, or if it must forget a lesson."""
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
    return active.name if active and not active.revoked else ""


def begin(ctx: NightContext) -> RunningNight:
    """The night of these lessons, base and plan, continued or new. Other unfinished nights fail."""
    key, profile = night_key(ctx), ctx.settings.profile
    lessons = [[lesson.id or 0, lesson.version] for lesson in ctx.lessons]
    with ctx.store.write() as s:
        running = (x for x in nights.list_nights(s, profile=profile) if x.status == "running")
        stale = [other for other in running if other.key != key]
        reason = "it was interrupted, and the lessons have changed since"
        for other in stale:
            nights.finish_night(s, other.id, NightStatus.FAILED, reason)
        config = ctx.plan.shape()
        night = nights.start_night(s, key=key, profile=profile, config=config, lessons=lessons)
    for other in stale:
        NightDir(ctx.settings, other.key).clear()
    registry.remove_leftovers(ctx.settings)
    return RunningNight(**vars(ctx), night=night, work=NightDir(ctx.settings, key))


def load_previous(night: RunningNight) -> str | None:
    """Load the adapter that would be replaced, for comparison. None if no usable one is active."""
    with night.store.read() as s:
        active = nights.active_adapter(s, night.settings.profile)
    if active is None or active.name == night.adapter_name:
        return None
    try:
        activation.load(night.model, active, night.settings)
    except AdapterError:
        return None  # damaged or of another base: there is nothing to lose
    return active.name


def end(night: RunningNight, outcome: NightOutcome) -> None:
    """Record the outcome, and promote an adapter that has passed: one transaction."""
    row, status, reason, adapter = night.night, outcome.status, outcome.reason, outcome.adapter
    fingerprint = outcome.preflight["model_fingerprint"]
    common = {"model_fingerprint": fingerprint, "night_id": row.id}
    with night.store.write() as s:
        effects = outcome.preflight["lessons"]
        for trial in lesson_set.trials(effects, row.lessons, TrialKind.PREFLIGHT, **common):
            nights.add_trial(s, trial)
        if adapter is not None and (verdict := outcome.verdict) is not None:
            columns = adapter.model_dump(exclude={"id"})
            adapter = nights.add_adapter(s, **columns | {"gate": verdict})
            if adapter.revoked:  # by a person, during the night
                ids = ", ".join(map(str, adapter.revoked))
                why = f"it contains lesson {ids}, which was revoked or retired during the night"
                verdict = verdict | {"ok": False, "reasons": [*verdict["reasons"], why]}
                status = NightStatus.REJECTED
            good = status == NightStatus.PROMOTED
            state = adapter.status if good else AdapterStatus.REJECTED
            nights.set_adapter(s, adapter.id, status=state, gate=verdict)
            effects, common["adapter_id"] = verdict["lessons"], adapter.id
            for trial in lesson_set.trials(effects, row.lessons, TrialKind.PROBE, **common):
                nights.add_trial(s, trial)
            kept = sorted(int(i) for i, e in effects.items() if e["verdict"] == TrialVerdict.ACCEPT)
            if good:
                record = nights.get_night(s, row.id)
                record.lessons = [pair for pair in row.lessons if pair[0] in kept]
                nights.promote(s, adapter.id, row.profile, kept, row.id)
                reason = f"{adapter.name} holds {len(kept)} lessons."
            else:
                reason = "; ".join(verdict["reasons"])
        nights.finish_night(s, row.id, status, reason, adapter.id if adapter else None)
    night.work.clear()
    if adapter is not None and adapter.name != night.adapter_name:
        registry.discard(night.adapter_name, night.settings)  # another scale was published


def make_report(store: Store, night_id: int | None, seconds: float, again: bool) -> NightReport:
    """The report of a stored night."""
    with store.read() as s:
        night = nights.get_night(s, night_id)
        adapter = nights.get_adapter(s, night.adapter_id) if night.adapter_id else None
        active = nights.active_adapter(s, night.profile)
        versions = lessons_db.versions_of_night(s, night_id or 0)
    ours = [x for x in versions if x.author == Author.NIGHT]
    distilled, returned = (
        sorted({x.lesson_id for x in ours if x.status == status})
        for status in (LessonStatus.DISTILLED, LessonStatus.ACTIVE)
    )
    reason = night.reason
    promoted = adapter is not None and night.status == NightStatus.PROMOTED
    if again and adapter and promoted and (active is None or active.id != adapter.id):
        command = f"`reflect adapters promote {adapter.name}`"
        reason += f" It is not active now: {command} brings it back."
    return NightReport(
        status=night.status,
        reason=reason,
        night_id=night.id,
        adapter=adapter.name if adapter else None,
        lessons=[lesson_id for lesson_id, _ in night.lessons],
        distilled=distilled,
        returned=returned,
        plan=night.config,
        stages=night.stages,
        seconds=seconds,
        again=again,
    )


def describe(plan: Plan, items: Sequence[TasksetLessons]) -> str:
    """The plan as a sentence, for a dry run."""
    lessons = ", ".join(f"{len(item.lessons)} lessons of {item.taskset.name}" for item in items)
    return f"Would sleep over {lessons}. Plan: {plan_summary(plan.shape())}."
