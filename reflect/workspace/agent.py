"""What an agent may do with the lessons of a profile: read them, propose one, report how a task
went.

An agent is a program with text from outside in its context, so it is not trusted. What it proposes
waits in quarantine, it sees the text of lessons in use only, and its rewards are evidence kept
apart, as those of untrusted traffic. It cannot approve, change or delete a lesson.

The lessons for a task are an experiment, as those of `reflect serve`: some are withheld at random,
with a stored probability, and the reward of the task measures the others.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import ModelError, UnknownName, UsageError
from reflect.lessons.safety import suspicions
from reflect.lessons.selection import select_lessons
from reflect.records import HELD_STATUSES, Exchange, Exposure
from reflect.rollouts.episode import messages_for
from reflect.store import exchanges, forbidden_rules, lessons, nights, views
from reflect.tasksets import available
from reflect.tasksets.task import Task
from reflect.trials.assignment import draw, withhold
from reflect.types import Author, Json, LessonStatus, QuarantineReason, Trust

if TYPE_CHECKING:
    from reflect.records import Lesson, Night, Trial
    from reflect.workspace.workspace import Workspace

MOST_PROPOSALS = 100  # lessons in quarantine, above which no proposal is taken
SEARCHED = 2**16  # last characters of a task that lessons are searched for
AGENT = "agent"  # the model of its exchanges: which one it is, is unknown
ID = "task-"  # the first letters of the id that `lessons_for` gives
EXPOSURE_FIELDS = ("lesson_id", "version", "shown", "probability")


class AgentAccess:
    """The lessons of one workspace for agents. `taskset`: the scope of the lessons by default."""

    def __init__(self, ws: Workspace, taskset: str) -> None:
        self.ws, self.taskset, self.profile = ws, taskset, ws.settings.profile
        self.store = ws.store

    def lessons_for(self, task: str, scope: str = "", session: str = "") -> Json:
        """The lessons for a task, without those that are withheld at random, and an id for
        `feedback`. One session gets the same draw for all its tasks."""
        settings, name = self.ws.settings, f"{ID}{secrets.token_hex(12)}"
        taskset, key = scope or self.taskset, session or name
        messages = [{"role": "user", "content": task}]
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        asked = Task(id=f"asked-{digest[:12]}", messages=messages, verifier="traffic", answer="")
        with self.store.read() as s:
            chosen = select_lessons(
                s,
                taskset,
                asked,
                profile=self.profile,
                limit=settings.lesson_limit,
                budget=settings.lesson_budget,
                count_tokens=self._count_tokens,
                state=task[-SEARCHED:] if len(task) > SEARCHED else "",
            )
        assignment = draw(chosen, settings, 0, key, 0)
        exposures = assignment.applied(withhold(chosen, settings, 0, key, 0))
        shown = [lesson for lesson, row in zip(chosen, exposures, strict=True) if row.shown]
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        exchange = Exchange(
            name=name,
            profile=self.profile,
            taskset=taskset,
            asked=messages,
            messages=[*messages_for(asked, shown), {"role": "assistant", "content": ""}],
            exposures=[_fields(row) for row in exposures],
            bundle_shown=assignment.shown,
            bundle_probability=assignment.probability,
            seed=seed,
            model=AGENT,
            model_fingerprint=hashlib.sha256(AGENT.encode()).hexdigest(),
            measure=hashlib.sha256(f"agent/{prompts.version('system')}".encode()).hexdigest()[:12],
            trust=Trust.UNTRUSTED,
        )
        with self.store.write() as s:
            exchanges.save(s, [exchange])
        return {"id": name, "lessons": [_advice(lesson) for lesson in shown]}

    def feedback(self, name: str, reward: float, feedback: str = "", answer: str = "") -> Json:
        """Reward a task of `lessons_for`, or an answer of `reflect serve`. `answer`: what the agent
        did, for the reflection. Errors as in `store.exchanges.reward`."""
        if answer and not name.startswith(ID):
            problem = f"{name} is an answer of reflect serve, which is stored already."
            raise UsageError(problem, "Send the reward without an answer.")
        with self.store.write() as s:
            row = exchanges.reward(s, name, reward, feedback, None)
            if answer:
                row.messages = [*row.messages[:-1], {"role": "assistant", "content": answer}]
        return {"id": name, "reward": reward}

    def search(self, text: str, limit: int) -> list[Json]:
        """Lessons in use that share words with the text, best first."""
        with self.store.read() as s:
            rows = lessons.search(
                s, text, profile=self.profile, statuses=HELD_STATUSES, limit=limit
            )
            return [_summary(lesson) for lesson, _ in rows]

    def show(self, lesson_id: int) -> Json:
        """One lesson with its measured effect and its versions; of a lesson that is not in use only
        its status. UnknownName for an unknown id."""
        with self.store.read() as s:
            lesson = lessons.get(s, lesson_id)
            if lesson.profile != self.profile:
                raise UnknownName(f"There is no lesson {lesson_id} in this profile.")
            if lesson.status not in HELD_STATUSES:
                note = f"Only a person sees its text: reflect lessons show {lesson.id}"
                return {"id": lesson.id, "status": lesson.status, "note": note}
            (row,) = views.lesson_rows(s, [lesson])
            history = lessons.history(s, lesson_id)
            return _summary(lesson) | {
                "pinned": lesson.pinned,
                "tokens": lesson.tokens,
                "shown": row.shown,
                "withheld": row.withheld,
                "effect": _effect(row.trial),
                "versions": [
                    {"version": one.version, "author": one.author, "status": one.status}
                    for one in history
                ],
            }

    def propose(self, when: str, do: str, scope: str = "", why: str = "") -> Json:
        """A new lesson in quarantine. UsageError if it exists already, if a rule forbids it, or if
        too many wait."""
        when, do = prompts.sanitize_line(when), prompts.sanitize_line(do)
        tokens = self.ws.lessons.tokens(when, do)
        names = suspicions(f"{when} {do}")
        reason = "; ".join(["proposed by an agent", *(f"it names {name}" for name in names)])
        reason = f"{reason}: {prompts.sanitize_line(why)}" if why else reason
        with self.store.write() as s:
            if same := lessons.find_exact(s, when, do, self.profile):
                raise UsageError(f"Lesson {same.id} ({same.status}) says so already.")
            rules = forbidden_rules.listing(s, self.profile)
            if forbidden_rules.forbidding(rules, when, do):
                raise UsageError("A rule of this profile forbids such a lesson.")
            waiting = views.status_counts(s, self.profile)[LessonStatus.QUARANTINED]
            if waiting >= MOST_PROPOSALS:
                problem = f"{waiting} lessons wait for a person already, so no more are taken."
                raise UsageError(problem, "Ask the person to approve or reject some of them.")
            lesson = lessons.add(
                s,
                when=when,
                do=do,
                author=Author.MODEL,
                reason=reason,
                scope=scope or self.taskset,
                status=LessonStatus.QUARANTINED,
                trust=Trust.UNTRUSTED,
                profile=self.profile,
                tokens=tokens,
                quarantine=QuarantineReason.TEXT if names else QuarantineReason.APPROVAL,
            )
        note = f"It waits in quarantine for a person: reflect lessons approve {lesson.id}"
        return {"id": lesson.id, "status": lesson.status, "note": note}

    def status(self) -> Json:
        """What there is, and what waits for a person."""
        with self.store.read() as s:
            counts = views.status_counts(s, self.profile)
            active = nights.active_adapter(s, self.profile)
            last, count = views.night_page(s, self.profile, 1)
            waiting = len(exchanges.waiting(s, self.profile))
        return {
            "profile": self.profile,
            "model": self.ws.settings.model,
            "adapter": active.name if active else None,
            "scope": self.taskset,
            "lessons": counts,
            "waiting_for_a_person": counts[LessonStatus.QUARANTINED],
            "rewarded_tasks_to_reflect_on": waiting,
            "nights": count,
            "last_night": _night(last[0]) if last else None,
        }

    def prompt(self, taskset: str) -> str:
        """The messages that the model receives for the first holdout task of an installed taskset.
        UnknownName for another one: no file that a client names is loaded."""
        names = [one.name for one in available()]
        if taskset not in names:
            raise UnknownName(f"There is no taskset '{taskset[:80]}'.", f"There are {names}.")
        return str(self.ws.prompt(taskset))

    def night(self, night_id: int) -> Json:
        """One night with its gate. UnknownName for an unknown id."""
        with self.store.read() as s:
            night = nights.get_night(s, night_id)
            if night.profile != self.profile:
                raise UnknownName(f"There is no night {night_id} in this profile.")
            gate = night.stages.get("gate", {})
            return _night(night) | {
                "lessons": [lesson_id for lesson_id, _ in night.lessons],
                "arms": gate.get("arms", {}),
                "checks": gate.get("checks", []),
            }

    def _count_tokens(self, text: str) -> int:
        """Tokens; words if the model is not available."""
        try:
            return self.ws.count_tokens(text)
        except ModelError:
            return len(text.split())


def _fields(row: Exposure) -> Json:
    return {field: getattr(row, field) for field in EXPOSURE_FIELDS}


def _advice(lesson: Lesson) -> Json:
    """A lesson for the context of an agent, each part on one line."""
    when, do = prompts.sanitize_line(lesson.when), prompts.sanitize_line(lesson.do)
    return {"id": lesson.id, "version": lesson.version, "when": when, "do": do}


def _summary(lesson: Lesson) -> Json:
    return _advice(lesson) | {"scope": lesson.scope, "status": lesson.status}


def _effect(trial: Trial | None) -> Json | None:
    """Mean reward with the lesson minus without it."""
    if trial is None:
        return None
    return {name: getattr(trial, name) for name in ("effect", "low", "high", "n", "verdict")}


def _night(night: Night) -> Json:
    started = night.started.isoformat(timespec="seconds")
    return {"id": night.id, "status": night.status, "reason": night.reason, "started": started}
