"""The page, in a real browser: every view, every change, hostile text, foreign pages.

With REFLECT_PICTURES=FOLDER the views are also saved as pictures, for the docs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reflect
from reflect.records import Run
from reflect.store import lessons, nights, runs
from reflect.tasksets.task import Task
from reflect.workspace.workspace import Workspace

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

DATA = Path(__file__).parents[1] / "data" / "before" / "workspaces.tar.xz"
VIEWS = {
    "home": "/",
    "lessons": "/lessons",
    "undecided": "/lessons?show=undecided",
    "lesson": "/lessons/1",
    "runs": "/runs",
    "run": "/runs/1",
    "compare": "/compare?a=1&b=2",
    "nights": "/nights",
    "night": "/nights/1",
    "prompt": "/prompt?taskset=dialect",
    "missing": "/lessons/999999",
}
AXE = "serious", "critical"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a workspace with runs, lessons, a promoted night and its adapter."""
    top = tmp_path_factory.mktemp("ui")
    with tarfile.open(DATA) as archive:
        archive.extractall(top, filter="data")
    return top / "day" / "lessons.db"


def start(db: Path, *more: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "reflect", "ui", "--port", "0", "--db", str(db), *more]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=db.parent,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip().rstrip("/")


def stop(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    return process.returncode


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    process, url = start(workspace)
    yield url
    assert stop(process) == 130, "Ctrl-C ends it"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose scripts' errors, dialogs and requests elsewhere fail the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("dialog", lambda d: (problems.append(f"dialog {d.message}"), d.dismiss()))
    page.on(
        "request",
        lambda r: None if r.url.startswith("http://127.0.0.1") else problems.append(r.url),
    )
    yield page
    context.close()
    assert not problems


def ws(db: Path, profile: str = "default") -> Workspace:
    return reflect.open(db, profile=profile)


def group_path(db: Path) -> str:
    with ws(db).store.read() as s:
        return f"/runs/1/tasks/{runs.rollouts(s, 1)[0].task_key}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_and_is_accessible(
    browser: Any, address: str, workspace: Path, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    pictures = os.environ.get("REFLECT_PICTURES")
    for width in (390, 1440, 1920):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        page = context.new_page()
        for name, path in (VIEWS | {"group": group_path(workspace)}).items():
            answer = page.goto(address + path)
            assert answer.status == (404 if name == "missing" else 200), name
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{name} is {wide} pixels wider than {width}"
            if width == 1440:
                faults = [x for x in axe.run(page).response["violations"] if x["impact"] in AXE]
                assert not faults, (name, [(x["id"], x["nodes"][0]["html"]) for x in faults])
            if pictures and width < 1920 and name != "missing":
                file = Path(pictures) / f"{name}-{scheme}-{width}.jpg"
                page.screenshot(path=file, type="jpeg", quality=60)
        context.close()


def status(db: Path, lesson_id: int, profile: str = "team") -> str:
    return ws(db, profile).lessons.get(lesson_id).status


@pytest.fixture(scope="module")
def team(workspace: Path) -> Iterator[str]:
    process, url = start(workspace, "--profile", "team")
    yield url
    stop(process)


def test_changes_by_mouse(page: Any, team: str, workspace: Path) -> None:
    mine = ws(workspace, "team").lessons
    waiting = [x.id for x in mine.list(status="quarantined")]
    page.goto(f"{team}/lessons?show=waiting")
    row = page.locator(f"tr[data-row='/lessons/{waiting[0]}']")
    row.get_by_role("button", name="Approve").click()
    row.wait_for(state="detached")
    assert mine.get(waiting[0]).status == "active"
    assert mine.history(waiting[0])[-1].author == "human"

    page.goto(f"{team}/lessons/{waiting[0]}")
    page.get_by_text("Edit", exact=True).click()
    page.locator("form[action$='/edit'] [name=do]").fill("use reverse, then check")
    page.get_by_label("Reason").first.fill("clearer")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("use reverse, then check").first.wait_for()
    edited = mine.get(waiting[0])
    assert (edited.do, edited.pinned) == ("use reverse, then check", True)
    for button, wanted in (
        ("Unpin", lambda x: not x.pinned),
        ("Pin", lambda x: x.pinned),
        ("Retire", lambda x: x.status == "retired"),
        ("Undo", lambda x: x.status == "active"),
    ):
        before = mine.get(waiting[0]).version
        page.get_by_role("button", name=re.compile(f"^{button} lesson")).click()
        page.get_by_text(f"version {before + 1}").first.wait_for()
        assert wanted(mine.get(waiting[0])), button
    page.get_by_text("Reject or revoke").click()
    page.locator("form[action$='/reject'] input[name=why]").fill("not ours")
    page.get_by_role("button", name="Reject", exact=True).click()
    page.locator(".status.retired").first.wait_for()
    assert mine.get(waiting[0]).status == "retired"
    assert mine.history(waiting[0])[-1].reason == "not ours"
    page.goto(f"{team}/lessons")
    page.get_by_text("Write a lesson").click()
    page.get_by_label("When").fill("the task names a city")
    page.locator("form[action$='/add'] [name=do]").fill("answer in one word")
    page.get_by_role("button", name="Add").click()
    page.wait_for_url(re.compile(r"/lessons/\d+$"))
    assert any(x.do == "answer in one word" for x in mine.list())


def test_a_check_reads_the_rollouts_of_a_lesson(page: Any, address: str, workspace: Path) -> None:
    page.goto(f"{address}/lessons/48")
    assert page.get_by_text("Nothing has read its rollouts.").count() == 1
    page.get_by_text("Set a check").click()
    page.get_by_label("Pattern").fill("means")
    page.get_by_role("button", name="Set check").click()
    page.get_by_text("Answers that followed it, read by its check").wait_for()
    shares = ws(workspace).lessons.followed_shares([48])[48]
    assert shares.shown.n > 0
    page.get_by_text("Check: words means").click()
    page.get_by_label("Pattern").fill("")
    page.get_by_role("button", name="Set check").click()
    page.get_by_text("Nothing has read its rollouts.").wait_for()


def test_changes_by_keyboard(page: Any, team: str, workspace: Path) -> None:
    mine = ws(workspace, "team").lessons
    page.goto(f"{team}/lessons?show=candidate")
    first = page.locator("tr[data-row]").first.get_attribute("data-row")
    lesson_id = int(first.rsplit("/", 1)[1])
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.locator(f"tr[data-row='{first}']").wait_for(state="detached")
    assert mine.get(lesson_id).status == "active"
    page.goto(f"{team}{first}")
    for key, wanted in (
        ("p", lambda x: x.pinned),
        ("r", lambda x: x.status == "retired"),
        ("u", lambda x: x.status == "active"),
    ):
        version = mine.get(lesson_id).version
        page.keyboard.press(key)
        page.get_by_text(f"version {version + 1}").first.wait_for()
        assert wanted(mine.get(lesson_id)), key
    page.keyboard.press("e")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("the task is long")
    page.keyboard.press("Enter")
    page.get_by_text("the task is long").first.wait_for()
    assert mine.get(lesson_id).when == "the task is long"
    page.keyboard.press("/")
    page.keyboard.type("the task is long")
    page.keyboard.press("Enter")
    page.get_by_role("link", name=str(lesson_id), exact=True).click()
    page.wait_for_url(f"**/lessons/{lesson_id}")


def test_a_stale_edit_is_a_conflict_and_changes_nothing(
    page: Any, team: str, workspace: Path
) -> None:
    mine = ws(workspace, "team").lessons
    lesson = mine.add("a form is stale", "do nothing")
    page.goto(f"{team}/lessons/{lesson.id}")
    mine.edit(lesson.id, do="do something")
    page.get_by_text("Edit", exact=True).click()
    page.locator("form[action$='/edit'] [name=do]").fill("do else")
    with page.expect_response(re.compile("/edit$")) as answer:
        page.get_by_role("button", name="Save").click()
    assert answer.value.status == 409
    assert mine.get(lesson.id).do == "do something"


def test_a_grade_a_revoke_and_a_rollback(page: Any, workspace: Path) -> None:
    copy = workspace.parents[1] / "changed"
    shutil.copytree(workspace.parent, copy)
    db = copy / "lessons.db"
    process, url = start(db)
    try:
        page.goto(url + group_path(db))
        page.get_by_text("Grade attempt 1").click()
        page.get_by_label("Reward, 0 to 1").first.fill("0.75")
        page.get_by_label("Words").first.fill("nearly")
        page.get_by_role("button", name="Save grade").first.click()
        page.get_by_text("0.75").first.wait_for()
        with ws(db).store.read() as s:
            row = runs.rollouts(s, 1)[0]
        assert (row.reward, row.feedback) == (0.75, "nearly")
        page.goto(f"{url}/nights")
        page.get_by_role("button", name="Roll back").click()
        page.get_by_text("Active adapter: none").wait_for()
        with ws(db).store.read() as s:
            assert nights.active_adapter(s) is None
            name = nights.list_adapters(s)[0].name
        page.get_by_role("button", name=f"Promote {name}").click()
        page.get_by_text(f"Active adapter: {name}").wait_for(timeout=60_000)
        page.goto(f"{url}/lessons/1")
        page.get_by_text("Reject or revoke").click()
        page.locator("form[action$='/revoke'] input[name=why]").fill("wrong")
        page.get_by_role("button", name="Revoke").click()
        page.locator(".status.retired").first.wait_for()
        with ws(db).store.read() as s:
            assert nights.active_adapter(s) is None, "the adapter held it"
            assert lessons.get(s, 1).status == "retired"
    finally:
        stop(process)


def test_it_reads_and_writes_without_javascript(browser: Any, team: str, workspace: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{team}/lessons?show=candidate")
    path = page.locator("tr[data-row]").first.get_attribute("data-row")
    page.locator(f"tr[data-row='{path}'] button", has_text="Pin").click()
    page.wait_for_load_state()
    assert ws(workspace, "team").lessons.get(int(path.rsplit("/", 1)[1])).pinned
    context.close()


# -- hostile text

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "<svg onload='window.pwned=1'><animate onbegin='window.pwned=1' attributeName=x dur=1s>",
    "<a href='javascript:window.pwned=1'>click</a>",
    "javascript:window.pwned=1",
    "'\" onfocus='window.pwned=1' autofocus='",
    "</textarea><script>window.pwned=1</script>",
    "</title></style></script><script>window.pwned=1</script>",
    "{{ 7*7 }}{% for x in y %}{{ cycler.__init__.__globals__ }}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "\u202egnp.exe\u202c \u2066\u2067\u2068 \u061c",
    "\u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 " * 20,
    "x" * 300,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301" + "\u0301" * 200,
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<form action='https://example.com'><button>Approve</button></form>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "<base href='https://example.com/'>",
    "<link rel=stylesheet href='https://example.com/x.css'>",
    "<style>*{display:none}</style>",
    "<div hx-get='https://example.com' hx-trigger='load'>",
    "<div hx-on:htmx:load='window.pwned=1' data-hx-post='/rollback' hx-trigger='load'>",
    "-->]]><!--<script>window.pwned=1</script>",
    "&#60;script&#62;window.pwned=1&#60;/script&#62;",
    "\\u003cscript\\u003ewindow.pwned=1",
    "%3Cscript%3Ewindow.pwned=1%3C/script%3E",
    "../../../etc/passwd?x=1#y",
    "a/b?c=d&e=f#g",
    "\\\\host\\share\\x",
    "DROP TABLE lesson; --' OR 1=1",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 hostile lessons, and a run whose tasks, rollouts, feedback and reflections are hostile."""
    db = tmp_path_factory.mktemp("hostile") / "lessons.db"
    store = ws(db).store
    with store.write() as s:
        for text in HOSTILE:
            for scope in ("", text[:60]):
                lessons.add(s, when=text, do=text[::-1] + text, author="model", scope=scope,
                            reason=text, tags=(text[:50],), status="quarantined")  # fmt: skip
        s.add(Run(key="k", taskset=HOSTILE[0], n=60, k=2, seed=1, model=HOSTILE[1],
                  model_fingerprint="f", config={}))  # fmt: skip
    with store.write() as s:
        for i, text in enumerate([*HOSTILE, "y" * 1_000_000]):
            task = Task(
                id=text[:2000],
                messages=[{"role": "user", "content": text}],
                verifier="exact",
                answer=text[:100],
                split="practice",
            )
            runs.save_tasks(s, HOSTILE[0], [task])
            rows = [
                runs.Rollout(run_id=1, task_key=task.key, index=j, reward=j, feedback=text[:5000],
                             messages=[*task.messages, {"role": text[:30], "content": text,
                                       "tool_calls": [{"function": {"name": text[:90]}}]}])
                for j in (0, 1)
            ]  # fmt: skip
            runs.save_rollouts(s, rows, [[], []])
            edit = {"kind": text[:40], "outcome": text[:40], "when": text, "do": text, "lesson": 1}
            s.add(runs.Reflection(run_id=1, task_key=task.key, pack_hash="", pack_tokens=i,
                                  prompt_version="", raw=text, cut=text, edits=[edit]))  # fmt: skip
    return db


def test_nothing_hostile_runs_or_breaks_the_layout(page: Any, hostile: Path) -> None:
    process, url = start(hostile)
    try:
        with ws(hostile).store.read() as s:
            keys = sorted({row.task_key for row in runs.rollouts(s, 1)})
        paths = ["/", "/lessons", "/lessons?page=2", "/runs", "/runs/1", "/compare?a=1&b=1"]
        paths += [f"/lessons/{i}" for i in range(1, 61, 3)]
        paths += [f"/runs/1/tasks/{key}" for key in keys]
        paths += [f"/lessons?q={urllib.parse.quote(text)}" for text in HOSTILE[:8]]
        paths += [f"/prompt?taskset={urllib.parse.quote(text)}" for text in HOSTILE[:3]]
        for path in paths:
            answer = page.goto(url + path)
            assert answer.status < 500, path
            found = page.evaluate(
                "[window.pwned, document.querySelectorAll('iframe, base, meta[http-equiv],"
                " main script, main style, main img, main svg [onload], a[href^=javascript]').length,"
                " document.documentElement.scrollWidth - innerWidth, getComputedStyle(document.body).display]"
            )
            assert found[:2] == [None, 0], path
            assert found[2] <= 0 and found[3] == "block", path
            assert len(answer.body()) < 1_500_000, "long texts are cut"
    finally:
        stop(process)


def test_the_report_is_one_file_that_runs_nothing(page: Any, hostile: Path) -> None:
    file = hostile.parent / "report.html"
    command = [sys.executable, "-m", "reflect", "report", "--html", str(file), "--db", str(hostile)]
    subprocess.run(command, check=True, cwd=hostile.parent)
    assert subprocess.run(command, cwd=hostile.parent, capture_output=True).returncode == 2
    text = file.read_text()
    assert "<script" not in text and "src=" not in text.split("<main")[0]
    page.set_content(text)
    assert page.evaluate("window.pwned") is None
    assert page.locator("tbody tr").count() == 60


# -- foreign pages


def ask(url: str, data: dict[str, str] | None = None, **headers: str) -> int:
    body = urllib.parse.urlencode(data).encode() if data is not None else None
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    opener = urllib.request.build_opener(NoRedirect())
    try:
        with opener.open(urllib.request.Request(url, body, names)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def token_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/lessons") as answer:
        match = re.search(r'name="token" value="([^"]+)"', answer.read().decode())
        assert match
        return match[1]


def test_a_foreign_page_can_change_and_read_nothing(team: str, workspace: Path) -> None:
    mine = ws(workspace, "team").lessons
    lesson = mine.add("a foreign page asks", "change nothing")
    url, port = f"{team}/lessons/{lesson.id}/retire", team.rsplit(":", 1)[1]
    form = {"token": token_of(team)}
    assert ask(url, {}) == 403, "no token"
    assert ask(url, {"token": "x" * 43}) == 403
    assert ask(url, form, Origin="https://example.com") == 403
    assert ask(url, form, Origin="http://127.0.0.1:1") == 403, "another port is another page"
    assert ask(url, form, Origin="null") == 403
    assert ask(url, form, Sec_Fetch_Site="cross-site") == 403
    assert ask(url, form, Sec_Fetch_Site="same-site") == 403
    assert ask(f"{team}/lessons", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    for host in (
        f"example.com:{port}",
        f"127.0.0.1.example.com:{port}",
        f"x.localhost:{port}",
        "[",
    ):
        assert ask(f"{team}/lessons", Host=host) == 403, host
    assert ask(url) == 405, "a GET changes nothing"
    assert mine.get(lesson.id).version == 1
    assert ask(url, form, Origin=team) == 303
    assert mine.get(lesson.id).status == "retired"


def test_the_way_back_stays_on_the_page(team: str, workspace: Path) -> None:
    lesson = ws(workspace, "team").lessons.add("a form names another page", "stay here")
    for back in ("//example.com", "/\\example.com", "https://example.com", "javascript:1"):
        body = urllib.parse.urlencode({"token": token_of(team), "back": back}).encode()
        opener = urllib.request.build_opener(NoRedirect())
        with pytest.raises(urllib.error.HTTPError) as answer:
            opener.open(urllib.request.Request(f"{team}/lessons/{lesson.id}/pin", body))
        assert answer.value.headers["location"] == f"/lessons/{lesson.id}", back


def test_with_a_key_a_browser_logs_in_once(page: Any, workspace: Path) -> None:
    process, url = start(workspace, REFLECT_SERVE_KEY="the-key")
    try:
        assert ask(f"{url}/lessons") == 303
        assert ask(f"{url}/lessons/1/retire", {"token": "x"}) == 303, "to the login"
        page.goto(f"{url}/lessons")
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("not the server's key").wait_for()
        page.get_by_label("Key").fill("the-key")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="The last 24 hours").wait_for()
        page.goto(f"{url}/lessons")
        assert page.locator("tr[data-row]").count() > 0
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    finally:
        stop(process)


def test_reflect_serve_has_the_page_too(workspace: Path) -> None:
    command = [sys.executable, "-m", "reflect", "serve", "--port", "0", "--db", str(workspace)]
    command += ["--upstream", "http://127.0.0.1:9/v1"]
    environment = os.environ | {"REFLECT_SERVE_KEY": "the-key"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip().removesuffix("/v1")
    try:
        assert ask(f"{url}/v1/models") == 401 and ask(f"{url}/ui/lessons") == 303, "to the login"
        with urllib.request.urlopen(f"{url}/ui/login") as answer:
            token = re.search(r'name="token" value="([^"]+)"', answer.read().decode())
        assert token
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        body = urllib.parse.urlencode({"token": token[1], "key": "the-key"}).encode()
        with opener.open(f"{url}/ui/login", body) as answer:
            assert answer.url == f"{url}/ui/" and answer.status == 200
        with opener.open(f"{url}/ui/lessons/1") as answer:
            assert 'href="/ui/nights"' in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{url}/ui/../v1/models")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
