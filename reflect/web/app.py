"""The routes of the page: each view reads rows and renders a template, each form calls `ws`.

Forms write through `ws.lessons`, `ws.grades` and `ws.adapters` only, so that versions, pins,
quarantine and rollbacks are the same as on the command line.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from reflect.errors import Conflict, ReflectError, UnknownName, UsageError
from reflect.records import now
from reflect.stats.bootstrap import bootstrap
from reflect.store import followed, lessons, nights, revoked_adapters, runs, views
from reflect.trials.history import effect_history
from reflect.types import Arm, LessonStatus, RuleKind, by_arm
from reflect.web import charts
from reflect.web.guard import Access, FormRefused, Guard
from reflect.web.render import HERE, render

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from reflect.records import Night, Rollout
    from reflect.workspace.workspace import Workspace

PAGE = 50  # rows of a page
DAY = timedelta(hours=24)
FILTERS = ("", "undecided", "harmful", "waiting", *map(str, LessonStatus))
GROUP_FILTERS = ("", "failures", "differences")

Values: TypeAlias = dict[str, Any]
View: TypeAlias = Callable[["Pages", "Request"], Values]
Action: TypeAlias = Callable[["Workspace", "Request", Mapping[str, str]], str]


@dataclass(frozen=True)
class Paging:
    """Which rows of a list a page shows."""

    number: int
    total: int

    @property
    def offset(self) -> int:
        """Rows before the page."""
        return PAGE * (self.number - 1)

    @property
    def last(self) -> int:
        """Number of the last page."""
        return max(1, -(-self.total // PAGE))


class Pages:
    """The views of one workspace."""

    def __init__(self, ws: Workspace, access: Access) -> None:
        self.ws, self.access = ws, access
        self.profile = ws.settings.profile

    def base(self, http: Request) -> Values:
        """The variables that every template has."""
        root = http.scope.get("root_path", "")
        return {
            "root": root,
            "token": self.access.token,
            "profile": self.profile,
            "database": self.ws.path,
            "here": http.url.path.removeprefix(root) or "/",
            "standalone": False,
        }

    # -- views

    def home(self, http: Request) -> Values:
        """What changed in the last day, what waits for a person, the cost, the last night."""
        return home_values(self.ws)

    def lesson_list(self, http: Request) -> Values:
        """The lessons of a filter, newest first."""
        query = http.query_params
        show = query.get("show", "")
        if show not in FILTERS:
            raise UnknownName(f"There is no filter '{show[:40]}'.", f"Use one of {FILTERS[1:]}.")
        scope, text, page = query.get("scope"), query.get("q", "").strip(), _page(http)
        with self.ws.store.read() as s:
            found = views.lesson_page(
                s,
                self.profile,
                show=show,
                scope=scope,
                text=text,
                limit=PAGE,
                offset=PAGE * (page - 1),
            )
            counts = views.status_counts(s, self.profile)
            scopes = views.scopes(s, self.profile)
        return {
            "rows": found.rows,
            "paging": Paging(page, found.total),
            "counts": counts,
            "every": sum(counts.values()),
            "scopes": scopes,
            "show": show,
            "scope": scope,
            "q": text,
            "filters": FILTERS,
        }

    def lesson(self, http: Request) -> Values:
        """One lesson: versions, trial, provenance, links, the adapters that hold it."""
        lesson_id, version = http.path_params["id"], http.query_params.get("version", "")
        with self.ws.store.read() as s:
            lesson = lessons.get(s, lesson_id)
            (row,) = views.lesson_rows(s, [lesson])
            history = lessons.history(s, lesson_id)
            links, taught = lessons.links(s, lesson_id), views.teaching(s, lesson_id)
            trials, outcomes = views.lesson_trials(s, lesson_id), views.outcomes(s, lesson_id)
            points = effect_history(s, trials[0]) if trials else []
            check = followed.check_of(s, lesson)
            mine = nights.of_profile(s, self.profile)
            held = [x for x in mine if lesson_id in revoked_adapters.held_by(s, x)]
        number = int(version) if version.isdigit() and len(version) < 9 else None
        diff = self.ws.lessons.diff(lesson_id, new=number) if len(history) > 1 else None
        return {
            "row": row,
            "lesson": lesson,
            "history": history[::-1],
            "links": links,
            "taught": taught,
            "trials": trials,
            "outcomes": outcomes,
            "chart": charts.interval_over_time(points),
            "held": held,
            "diff": diff,
            "check": check,
        }

    def run_list(self, http: Request) -> Values:
        """The runs, newest first."""
        page = _page(http)
        with self.ws.store.read() as s:
            rows, total = views.run_page(s, self.profile, PAGE, PAGE * (page - 1))
            figures = views.run_figures(s, [run.id or 0 for run in rows])
        return {"rows": rows, "figures": figures, "paging": Paging(page, total)}

    def run(self, http: Request) -> Values:
        """The groups of a run, worst first."""
        run_id, show, page = http.path_params["id"], http.query_params.get("show", ""), _page(http)
        if show not in GROUP_FILTERS:
            raise UnknownName(f"There is no filter '{show[:40]}'.", f"Use {GROUP_FILTERS[1:]}.")
        with self.ws.store.read() as s:
            run = runs.get_run(s, run_id)
            groups = views.group_page(s, run_id, show=show, limit=PAGE, offset=PAGE * (page - 1))
            figures = runs.figures(s, run_id)
        return {
            "run": run,
            "groups": groups,
            "figures": figures,
            "paging": Paging(page, groups.total),
            "show": show,
            "filters": GROUP_FILTERS,
        }

    def group(self, http: Request) -> Values:
        """The attempts at one task, next to each other, and what the model made of them."""
        run_id, key = http.path_params["id"], http.path_params["key"]
        with self.ws.store.read() as s:
            run, task = runs.get_run(s, run_id), runs.task(s, key)
            rows = runs.rollouts(s, run_id, key)
            if not rows:
                raise UnknownName(f"Run {run_id} has no rollout of this task.", "See the run.")
            chips = views.group_exposures(s, [row.id or 0 for row in rows])
            reflection = runs.get_reflection(s, run_id, key)
        start = common_start([row.messages for row in rows])
        return {
            "run": run,
            "task": task,
            "rows": rows,
            "chips": chips,
            "start": rows[0].messages[:start],
            "turns": turn_rows(rows, start),
            "reflection": reflection,
        }

    def compare(self, http: Request) -> Values:
        """Two runs, task by task, the largest loss first."""
        query, page = http.query_params, _page(http)
        with self.ws.store.read() as s:
            choices, _ = views.run_page(s, self.profile, 100)
            ids = [query.get("a", ""), query.get("b", "")]
            if not all(x.isdigit() and len(x) < 19 for x in ids):
                return {"choices": choices, "pair": None, "a": "", "b": ""}
            pair = [runs.get_run(s, int(x)) for x in ids]
            first, second = (views.task_means(s, run.id or 0) for run in pair)
            shared = sorted(first.keys() & second.keys())
            rows = sorted((second[key][0] - first[key][0], key) for key in shared)
            shown = rows[PAGE * (page - 1) : PAGE * page]
            names = views.task_names(s, [key for _, key in shown])
        differences = [difference for difference, _ in rows]
        low, high = bootstrap(differences)
        return {
            "choices": choices,
            "pair": pair,
            "a": ids[0],
            "b": ids[1],
            "rows": [
                (names.get(key, key), key, first[key], second[key], difference)
                for difference, key in shown
            ],
            "mean": sum(differences) / len(differences) if rows else 0.0,
            "low": low,
            "high": high,
            "only": (len(first) - len(shared), len(second) - len(shared)),
            "paging": Paging(page, len(rows)),
        }

    def night_list(self, http: Request) -> Values:
        """The nights, newest first, and the line of adapters."""
        page = _page(http)
        with self.ws.store.read() as s:
            rows, total = views.night_page(s, self.profile, PAGE, PAGE * (page - 1))
            adapters = nights.of_profile(s, self.profile)
            active = nights.active_adapter(s, self.profile)
        return {
            "rows": rows,
            "paging": Paging(page, total),
            "adapters": adapters[::-1],
            "names": {adapter.id: adapter.name for adapter in adapters},
            "active": active,
        }

    def night(self, http: Request) -> Values:
        """One night: the gate, the arms, its lessons and its plan."""
        with self.ws.store.read() as s:
            night = nights.get_night(s, http.path_params["id"])
            texts = [lessons.version(s, *pair) for pair in night.lessons]
            adapters = views.adapters_of_nights(s, [night.id or 0])[night.id or 0]
            active = nights.active_adapter(s, self.profile)
        return night_values(night) | {"texts": texts, "adapters": adapters, "active": active}

    def prompt(self, http: Request) -> Values:
        """The exact prompt of a task, with its lessons, their tokens and effects."""
        query = http.query_params
        taskset, task = query.get("taskset", ""), query.get("task", "")
        with self.ws.store.read() as s:
            known = sorted({run.taskset for run in runs.list_runs(s, 100, self.profile)})
        if not taskset:
            return {"known": known, "taskset": "", "task": "", "prompt": None, "lessons": []}
        prompt = self.ws.prompt(taskset, task or None)
        with self.ws.store.read() as s:
            rows = views.lesson_rows(s, prompt.lessons)
        return {
            "known": known,
            "taskset": taskset,
            "task": task,
            "prompt": prompt,
            "lessons": rows,
            "budget": self.ws.settings.lesson_budget,
        }


def home_values(ws: Workspace) -> Values:
    """The variables of the page home.html."""
    since, profile = now() - DAY, ws.settings.profile
    with ws.store.read() as s:
        changes, total = views.changes_since(s, profile, since)
        counts = views.status_counts(s, profile)
        waiting = views.lesson_page(s, profile, show="waiting", limit=10)
        ungraded = views.ungraded_runs(s, profile)
        recent = views.runs_since(s, profile, since)
        last, _ = views.night_page(s, profile, 1)
        active = nights.active_adapter(s, profile)
    spent: dict[str, float] = {}
    for run in recent:
        for name, value in (run.spent or {}).items():
            spent[name] = spent.get(name, 0) + value
    return {
        "changes": changes,
        "change_total": total,
        "counts": counts,
        "waiting": waiting,
        "ungraded": ungraded,
        "recent": recent,
        "spent": spent,
        "night": last[0] if last else None,
        "active": active,
    }


def night_values(night: Night) -> Values:
    """The variables of the gate's tables; the checks that failed come first."""
    gate = night.stages.get("gate", {})
    arms = {name: by_arm(row) for name, row in gate.get("arms", {}).items()}
    checks = sorted(gate.get("checks", []), key=lambda check: check["ok"])
    return {"night": night, "gate": gate, "arms": arms, "checks": checks, "arm_names": list(Arm)}


def common_start(talks: list[list[dict[str, Any]]]) -> int:
    """How many messages at their start all conversations share; at least one is left of each."""
    first = talks[0]
    most = min(map(len, talks)) - 1
    same = (all(talk[i] == first[i] for talk in talks) for i in range(max(most, 0)))
    return next((i for i, equal in enumerate(same) if not equal), max(most, 0))


def turn_rows(rows: list[Rollout], start: int) -> list[list[dict[str, Any] | None]]:
    """Turn by turn, the message of each rollout after the common start; None where it has ended."""
    longest = max(len(row.messages) for row in rows)
    return [
        [row.messages[i] if i < len(row.messages) else None for row in rows]
        for i in range(start, longest)
    ]


def _page(http: Request) -> int:
    number = http.query_params.get("page", "1")
    return max(1, int(number)) if number.isdigit() and len(number) < 9 else 1


# -- forms


def _lesson_action(ws: Workspace, http: Request, form: Mapping[str, str]) -> str:
    """Change a lesson. Returns the path to go to."""
    lesson_id, action, why = http.path_params["id"], http.path_params["action"], form.get("why", "")
    change: Mapping[str, Callable[[], object]] = {
        "approve": lambda: ws.lessons.approve(lesson_id, reason=why),
        "reject": lambda: ws.lessons.reject(lesson_id, reason=why),
        "retire": lambda: ws.lessons.retire(lesson_id, reason=why),
        "pin": lambda: ws.lessons.pin(lesson_id),
        "unpin": lambda: ws.lessons.unpin(lesson_id),
        "undo": lambda: ws.lessons.undo(lesson_id),
        "revoke": lambda: ws.lessons.revoke(lesson_id, reason=why),
        "edit": lambda: _edit(ws, lesson_id, form),
        "check": lambda: _check(ws, lesson_id, form.get("pattern", "")),
    }
    if action not in change:
        raise UnknownName(f"There is no action '{action[:40]}'.", "Go back and reload the page.")
    change[action]()
    return _back(form, f"/lessons/{lesson_id}")


def _check(ws: Workspace, lesson_id: int, pattern: str) -> object:
    if pattern.strip():
        return ws.lessons.set_check(lesson_id, pattern, kind=RuleKind.of(pattern))
    return ws.lessons.remove_check(lesson_id)


def _edit(ws: Workspace, lesson_id: int, form: Mapping[str, str]) -> object:
    version = form.get("version", "")
    return ws.lessons.edit(
        lesson_id,
        expect_version=int(version) if version.isdigit() and len(version) < 9 else None,
        reason=form.get("why", ""),
        when=form.get("when", ""),
        do=form.get("do", ""),
        scope=form.get("scope", ""),
    )


def _add_lesson(ws: Workspace, http: Request, form: Mapping[str, str]) -> str:
    lesson = ws.lessons.add(form.get("when", ""), form.get("do", ""), scope=form.get("scope", ""))
    return f"/lessons/{lesson.id}"


def _grade(ws: Workspace, http: Request, form: Mapping[str, str]) -> str:
    try:
        reward = float(form.get("reward", ""))
    except ValueError as e:
        raise UsageError("A reward is a number from 0 to 1.", "Go back and correct it.") from e
    ws.grades.give(http.path_params["id"], reward, form.get("feedback", ""))
    return _back(form, "/runs")


def _promote(ws: Workspace, http: Request, form: Mapping[str, str]) -> str:
    ws.adapters.promote(http.path_params["name"])
    return "/nights"


def _rollback(ws: Workspace, http: Request, form: Mapping[str, str]) -> str:
    ws.adapters.rollback()
    return "/nights"


def _back(form: Mapping[str, str], default: str) -> str:
    """The page that the form came from, if it is one of ours."""
    back = form.get("back", "")
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else default


# -- the application


def build(ws: Workspace, key: str = "") -> Starlette:
    """The application. An empty `key` means that only this machine may use it."""
    access = Access(key)
    pages = Pages(ws, access)

    def answer(http: Request, template: str, values: Values, status: int = 200) -> Response:
        return HTMLResponse(render(template, pages.base(http) | values), status)

    def view(name: str, template: str) -> Callable[[Request], Awaitable[Response]]:
        method = getattr(pages, name)

        async def handler(http: Request) -> Response:
            values = await anyio.to_thread.run_sync(functools.partial(method, http))
            return answer(http, template, values)

        return handler

    def form(action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def handler(http: Request) -> Response:
            fields = await access.form(http)
            where = await anyio.to_thread.run_sync(action, ws, http, fields)
            await anyio.to_thread.run_sync(ws.refresh_hooks)
            return RedirectResponse(http.scope.get("root_path", "") + where, 303)

        return handler

    async def login(http: Request) -> Response:
        if http.method == "GET":
            return answer(http, "login.html", {"wrong": False})
        fields = await access.form(http)
        cookie = access.log_in(fields.get("key", ""), http.url.scheme == "https")
        if cookie is None:
            return answer(http, "login.html", {"wrong": True}, 403)
        root = http.scope.get("root_path", "")
        return RedirectResponse(f"{root}/", 303, {"set-cookie": cookie})

    async def failed(http: Request, e: Exception) -> Response:
        status, problem, hint = _explain(e)
        return answer(http, "error.html", {"problem": problem, "hint": hint}, status)

    routes = [
        Route("/", view("home", "home.html")),
        Route("/login", login, methods=["GET", "POST"]),
        Route("/lessons", view("lesson_list", "lessons.html")),
        Route("/lessons/add", form(_add_lesson), methods=["POST"]),
        Route("/lessons/{id:int}", view("lesson", "lesson.html")),
        Route("/lessons/{id:int}/{action}", form(_lesson_action), methods=["POST"]),
        Route("/runs", view("run_list", "runs.html")),
        Route("/runs/{id:int}", view("run", "run.html")),
        Route("/runs/{id:int}/tasks/{key}", view("group", "group.html")),
        Route("/rollouts/{id:int}/grade", form(_grade), methods=["POST"]),
        Route("/compare", view("compare", "compare.html")),
        Route("/nights", view("night_list", "nights.html")),
        Route("/nights/{id:int}", view("night", "night.html")),
        Route("/adapters/{name}/promote", form(_promote), methods=["POST"]),
        Route("/rollback", form(_rollback), methods=["POST"]),
        Route("/prompt", view("prompt", "prompt.html")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    handled = (ReflectError, FormRefused, HTTPException, OverflowError, Exception)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=access)],
        exception_handlers=dict.fromkeys(handled, failed),
    )


def _explain(e: Exception) -> tuple[int, str, str]:
    """(status, sentence, what to do next) of an error."""
    if isinstance(e, FormRefused):
        return e.args[0], e.args[1], ""
    if isinstance(e, HTTPException):
        return e.status_code, "There is no such page.", "Start at the first page."
    if isinstance(e, ReflectError):
        status = 404 if isinstance(e, UnknownName) else 409 if isinstance(e, Conflict) else 400
        return status, e.message, e.hint or ""
    if isinstance(e, OverflowError):
        return 404, "There is no such page.", "Start at the first page."
    return 500, f"The page failed: {type(e).__name__}.", "Please report it, with what you did."


def report(ws: Workspace, limit: int = 200) -> str:
    """One page without links to other files: the last day, the lessons, the last night."""
    style = (HERE / "static" / "style.css").read_text()
    with ws.store.read() as s:
        found = views.lesson_page(s, ws.settings.profile, limit=limit)
    home = home_values(ws)
    night = night_values(home["night"]) if home["night"] else None
    values: Values = {
        "root": "",
        "profile": ws.settings.profile,
        "database": ws.path,
        "standalone": True,
        "style": style,
        "rows": found.rows,
        "total": found.total,
        "last": night,
        "written": now(),
        "here": "",
        "token": "",
    }
    return render("report.html", home | values)
