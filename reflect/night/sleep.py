"""The night: pick lessons, check there is something to learn, make the teacher's data, train, gate,
promote.

The same lessons on the same base with the same plan are the same night: running it again changes
nothing, and a night that was killed anywhere continues with its first unfinished stage. What a
stage made lies in files that are visible only when complete; the last step, promotion, is one
transaction.

Not covered: a night continued on another kind of machine, or with another number of threads, may
round differently.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from reflect.adapters import activation, registry
from reflect.config import Settings
from reflect.errors import AdapterError, NightError, UsageError
from reflect.models.base import Model
from reflect.night import cost_estimate, disk_space
from reflect.night.workdir import NightDir, night_key, night_lock
from reflect.records import Adapter, Lesson, Night
from reflect.rollouts import judge
from reflect.store import Store, nights
from reflect.store import lessons as lessons_db
from reflect.tasksets.base import Taskset
from reflect.training import deadline, lesson_set
from reflect.training.lesson_set import TasksetLessons
from reflect.training.plan import Plan, make_plan
from reflect.training.teacher_data import TrainingData, harvest
from reflect.types import NightStage, Progress


@dataclass(frozen=True)
class NightReport:
    """What a night did. `status`: promoted, rejected, nothing, failed; planned, for a dry run;
    paused, at a deadline (the night goes on with the next sleep); or "not due"."""

    status: str
    reason: str
    night_id: int | None = None
    adapter: str | None = None
    lessons: list[int] = field(default_factory=list)  # ids of the lessons that it was about
    distilled: list[int] = field(default_factory=list)  # ids of those that left the prompt
    returned: list[int] = field(
        default_factory=list
    )  # ids of those that are not in the weights any more: text again
    plan: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)  # stage -> its figures
    seconds: float = 0.0
    again: bool = False  # this very night had been slept before; nothing was done
    cost: dict[str, Any] = field(
        default_factory=dict
    )  # of a dry run: see reflect.night.cost_estimate


def sleep(
    model: Model,
    store: Store,
    settings: Settings,
    *,
    tasksets: Sequence[Taskset] = (),
    dry_run: bool = False,
    until: float | None = None,
    continued: bool = False,
    progress: Progress | None = None,
    **dials: Any,
) -> NightReport:
    """Sleep over all lessons of the profile. `tasksets`: where they are practised, when their scope
    does not say it.

    `until`: when time.monotonic() says so, the night pauses; the next sleep goes on with it.
    `continued`: the training begins with the weights of the active adapter, where there is one, in
    the place of none; the teacher has all lessons in its prompt all the same. `dials` are those of
    `make_plan`: method, divergence, budget (minutes), seed ... The model ends with the profile's
    active adapter on. Raises NightBusy when another sleep runs, UsageError for a model that has no
    weights here.
    """
    began = time.monotonic()
    from reflect.models.local import LocalModel  # torch

    if not isinstance(model, LocalModel):
        raise UsageError(
            f"The model {model.name} has no weights here to train.",
            "Use pocket, hf:ORG/NAME or a path.",
        )
    with night_lock(settings):
        lessons = lesson_set.pick(store, settings.profile)
        if not lessons:
            if not dry_run:  # without lessons the view of the database is the bare base
                with store.write() as s:
                    nights.leave_marked(s, settings.profile)
                activation.activate(model, store, settings)
            return NightReport(
                "nothing", "There are no lessons yet. Practise first: `reflect run TASKSET`."
            )
        subjects = lesson_set.subjects(store, settings.profile, lessons, tasksets)
        for subject in subjects:
            judge.bind(subject.taskset, settings, model)
        base_parameters = sum(
            p.numel() for name, p in model.network.named_parameters() if ".lora_" not in name
        )
        plan = make_plan(
            base_parameters, len(lessons), start=start_of(store, settings, continued), **dials
        )
        if dry_run:
            costs = cost_estimate.estimate(store, settings, subjects, plan, model.fingerprint)
            words = f"{in_words(plan, subjects)} {cost_estimate.in_words(costs, disk_space.in_mb(disk_space.needed(model.network, plan)))}"
            return NightReport(
                "planned", words, lessons=_ids(lessons), plan=plan.shape(), cost=costs
            )
        disk_space.check(model.network, settings, plan)
        night = begin(model, store, settings, subjects, plan)
        again = night.status != "running"
        try:
            if not again:
                live(model, store, settings, subjects, plan, night, deadline.heed(progress, until))
        except deadline.Paused as e:
            words = f"The time is over in its stage {e.stage}: night {night.id} goes on with the next `reflect sleep`."
            return replace(
                report(store, night.id or 0, time.monotonic() - began, False),
                status="paused",
                reason=words,
            )
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            hint = (
                "Free some space, then run the same command again: it continues where it stopped."
            )
            raise NightError(
                f"The disk is full, so the night could not go on ({settings.home_path}).", hint
            ) from e
        finally:
            activation.activate(model, store, settings)
        return report(store, night.id or 0, time.monotonic() - began, again)


def live(
    model: Any,
    store: Store,
    settings: Settings,
    subjects: Sequence[TasksetLessons],
    plan: Plan,
    night: Night,
    progress: Progress | None = None,
) -> None:
    """The stages of a night, from the first that is not done to its end."""
    from reflect.gate import gate  # torch
    from reflect.training import loop

    work = NightDir(settings, night.key)
    name = registry.name_of(night.key)
    model.use(None)

    def stage(what: NightStage, make: Callable[[Progress], dict[str, Any]]) -> dict[str, Any]:
        def tell(done: int, total: int, detail: str) -> None:
            if progress:
                progress(done, total, f"{what}: {detail}")

        try:
            made = work.once(what, lambda: make(tell))
        except deadline.Paused as e:
            e.stage = what
            raise
        with store.write() as s:
            nights.save_stage(s, night.id, what, made.get("figures", made))
        return made

    # Is there something to learn?
    found = stage(
        NightStage.PREFLIGHT,
        lambda tell: lesson_set.preflight(model, store, subjects, settings, plan, tell),
    )
    held = [
        TasksetLessons(x.taskset, tuple(y for y in x.lessons if y.id in found["worth"]))
        for x in subjects
    ]
    held = [subject for subject in held if subject.lessons]
    if not held:
        return end(
            store,
            night,
            work,
            "nothing",
            found,
            "On fresh practice tasks no lesson makes the model better.",
        )

    # Make the teacher's data.
    failed = {key for figures in found["tasksets"].values() for key in figures["failed"]}
    means = {name: figures["lessons"] for name, figures in found["tasksets"].items()}
    teacher = partial(harvest, model, store, held, settings, plan, failed)
    made = stage(NightStage.HARVEST, lambda tell: teacher(tell, means).shape())
    data = TrainingData.of(made, [subject.taskset for subject in held])
    if not data.harvest and plan.learns_from_teacher:
        return end(
            store,
            night,
            work,
            "nothing",
            found,
            "Even with the lessons no attempt passes the verifier.",
        )

    # Train. What is judged afterwards is the adapter as it lies on the disk.
    def trained(tell: Progress) -> dict[str, Any]:
        if not registry.exists(name, settings):
            figures = loop.train(model, name, data, plan, work.folder, tell)
            about = {"lessons": lesson_texts(held), "plan": plan.shape(), "training": figures}
            registry.publish(model, name, settings, about)
        return registry.card(name, settings)["training"]

    previous = load_previous(model, store, settings, name)
    try:
        stage(NightStage.TRAIN, trained)
    except NightError as e:
        return end(store, night, work, "failed", found, e.message)
    adapter = registry.row(model, name, settings, night_id=night.id)
    activation.load(model, adapter, settings)

    # Gate. One that breaks down, or takes too long, promotes nothing.
    case = gate.GateRun(model, name, store, held, data, settings, plan, previous)
    try:
        with gate.time_limit(plan) as limited:
            pill = stage(NightStage.PLACEBO, lambda tell: case.placebo(work.folder, limited(tell)))
            judged = stage(NightStage.GATE, lambda tell: case.judge(pill["rewards"], limited(tell)))
        scaled = case.at_scale(judged, night.id)
    except OSError:
        raise  # a full disk: the night goes on when there is room
    except Exception as e:
        why = e.message if isinstance(e, NightError) else f"{type(e).__name__}: {e}"
        return end(
            store,
            night,
            work,
            "failed",
            found,
            f"The gate broke down, so nothing is promoted. {why}",
        )
    end(
        store,
        night,
        work,
        "promoted" if judged["ok"] else "rejected",
        found,
        "",
        judged,
        scaled or adapter,
    )
    if scaled is not None:
        registry.discard(name, settings)


def start_of(store: Store, settings: Settings, continued: bool) -> str:
    """The name of the active adapter, "" where there is none, it is not to be continued, or it must
    forget a lesson."""
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile) if continued else None
    return active.name if active and not active.revoked else ""


def begin(
    model: Model, store: Store, settings: Settings, subjects: Sequence[TasksetLessons], plan: Plan
) -> Night:
    """The night of these lessons, base and plan, continued or begun. An unfinished one of other
    words is given up."""
    key = night_key(model, settings, subjects, plan)
    lessons = {lesson.id: lesson for subject in subjects for lesson in subject.lessons}
    with store.write() as s:
        earlier = nights.list_nights(s, profile=settings.profile)
        stale = [other for other in earlier if other.status == "running" and other.key != key]
        for other in stale:
            nights.finish_night(
                s, other.id, "failed", "it was interrupted, and the lessons have changed since"
            )
        night = nights.start_night(
            s,
            key=key,
            profile=settings.profile,
            config=plan.shape(),
            lessons=[[lesson.id or 0, lesson.version] for lesson in lessons.values()],
        )
    for other in stale:
        NightDir(settings, other.key).clear()
    registry.remove_leftovers(settings)
    return night


def load_previous(model: Any, store: Store, settings: Settings, name: str) -> str | None:
    """Load the adapter that would be replaced, for comparison. None where there is none that can be
    used."""
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
    if active is None or active.name == name:
        return None
    try:
        activation.load(model, active, settings)
    except AdapterError:
        return None  # damaged or of another base: nothing that this night could make worse
    return active.name


def end(
    store: Store,
    night: Night,
    work: NightDir,
    status: str,
    found: dict[str, Any],
    reason: str,
    verdict: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Write down how the night ended, and with a good adapter promote it: one transaction."""
    common = {"model_fingerprint": found["model_fingerprint"], "night_id": night.id}
    with store.write() as s:
        for trial in lesson_set.trials(found["lessons"], night.lessons, "preflight", **common):
            nights.add_trial(s, trial)
        if adapter is not None and verdict is not None:
            columns = adapter.model_dump(exclude={"id"})
            adapter = nights.add_adapter(s, **columns | {"gate": verdict})
            if adapter.revoked:  # by a person, while the night was on
                taken = f"it knows lesson {', '.join(map(str, adapter.revoked))}, revoked or retired in the night"
                verdict, status = (
                    verdict | {"ok": False, "reasons": [*verdict["reasons"], taken]},
                    "rejected",
                )
            good = status == "promoted"
            nights.set_adapter(
                s, adapter.id, status=adapter.status if good else "rejected", gate=verdict
            )
            for trial in lesson_set.trials(
                verdict["lessons"], night.lessons, "probe", adapter_id=adapter.id, **common
            ):
                nights.add_trial(s, trial)
            kept = sorted(
                int(i)
                for i, figures in verdict["lessons"].items()
                if figures["verdict"] == "accept"
            )
            if good:
                row = nights.get_night(s, night.id)
                row.lessons = [pair for pair in night.lessons if pair[0] in kept]
                nights.promote(s, adapter.id, night.profile, kept, night.id)
            reason = (
                f"{adapter.name} holds {len(kept)} lessons."
                if good
                else "; ".join(verdict["reasons"])
            )
        nights.finish_night(s, night.id, status, reason, adapter.id if adapter else None)
    work.clear()


def report(store: Store, night_id: int, seconds: float, again: bool) -> NightReport:
    with store.read() as s:
        night = nights.get_night(s, night_id)
        adapter = nights.get_adapter(s, night.adapter_id) if night.adapter_id else None
        active = nights.active_adapter(s, night.profile)
        touched = lessons_db.versions_of_night(s, night_id)
        distilled = {
            row.lesson_id for row in touched if row.author == "night" and row.status == "distilled"
        }
        returned = {
            row.lesson_id for row in touched if row.author == "night" and row.status == "active"
        }
    reason = night.reason
    if (
        again
        and adapter
        and night.status == "promoted"
        and (active is None or active.id != adapter.id)
    ):
        reason += (
            f" It is not active now: `reflect adapters promote {adapter.name}` brings it back."
        )
    return NightReport(
        status=night.status,
        reason=reason,
        night_id=night.id,
        adapter=adapter.name if adapter else None,
        lessons=[lesson_id for lesson_id, _ in night.lessons],
        distilled=sorted(distilled),
        returned=sorted(returned),
        plan=night.config,
        stages=night.stages,
        seconds=seconds,
        again=again,
    )


def in_words(plan: Plan, subjects: Sequence[TasksetLessons]) -> str:
    what = ", ".join(
        f"{len(subject.lessons)} lessons of {subject.taskset.name}" for subject in subjects
    )
    stages = ", ".join(f"{steps} steps of {name} at {rate:g}" for name, steps, rate in plan.stages)
    return f"Would sleep over {what}: {stages}, batch {plan.batch}, rank {plan.rank}."


def lesson_texts(subjects: Sequence[TasksetLessons]) -> list[list[str]]:
    return [
        list(x)
        for x in sorted({(x.scope, x.when, x.do) for subject in subjects for x in subject.lessons})
    ]


def _ids(lessons: Sequence[Lesson]) -> list[int]:
    return [lesson.id or 0 for lesson in lessons]
