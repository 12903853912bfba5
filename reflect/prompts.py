"""Render prompts/*.jinja: the prompts, in files that a user can edit.

A user's own `./prompts/` wins over the packaged folder. Rendering is strict (an unknown variable is
an error) and sandboxed; lesson text is only ever a *value* in a template, never a template.

What a model, a tool, a task or a client wrote enters a prompt through `quote`, so that no line of
it can pass for a line of the prompt.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.config import shipped
from reflect.errors import UsageError
from reflect.invisible import remove_invisible
from reflect.markup import skeleton, strip_role_tokens

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# The variables of a rubric: the text of the task, and its reference answer if it has one.
RUBRIC = ("task", "reference")

SHORTEST_HEAD = 12  # characters before the first lesson by which a prompt with lessons is known
QUOTED = "| "  # begins each line that is not the prompt's own; no line of a template begins so
LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# A text that cannot pass for a line of a prompt: one line of plain ASCII without its words.
_PLAIN = re.compile(
    r"(?!(?:turn|lessons?|measured|no lessons|task|end|note|left out|add|revise|retire|merge|rubric"
    r"|why|better|you|what|a good answer|reply)\b)(?!.*(?:attempt|reward|feedback))[a-z0-9][ -~]*",
    re.IGNORECASE,
)
LEFT_OUT = "[the rest is left out, because it imitates a heading of this prompt]"
_APART = r"[^a-z0-9\n]{0,2}"  # between two letters of a word
_ATTEMPT, _REWARD = _APART.join("attempt"), _APART.join("reward")
_DIGITS = r"\d+(?:\.\d+)?"
_HEADING = re.compile(
    rf"{_ATTEMPT}\W{{0,8}}{_DIGITS}\W{{0,8}}{_REWARD}\W{{0,8}}{_DIGITS}\W{{0,4}}:"
)
_COUNTED = re.compile(rf"(?:{_ATTEMPT}|{_REWARD})(?:[^\S\n]*\S){{0,40}}")
_SHAPE = re.compile(  # "word 4, word 1:" or, at the begin of a line, "4, 1:"
    rf"\b[^\W\d_]+\W{{0,3}}\d+\W{{1,3}}[^\W\d_]+\W{{0,3}}{_DIGITS}\W{{0,3}}:"
    rf"|^\W{{0,4}}\d+\s*[,;|]\s*{_DIGITS}\W{{0,3}}:",
    re.MULTILINE,
)
_NUMBER = re.compile(rf"(?<![\[\d.]){_DIGITS}(?!\d)")

_LESSON_FRAME = re.compile(r"lesson\W{0,3}(\d+)|\((keep these words)\)")
REMOVED = "[a line that imitates a lesson was removed]"
# The parts of a lesson, and the first and last lines of its fence: see system.jinja.
_WHEN = re.compile(rf"(?:[-*]\s*)?\b{_APART.join('when')}\s*:")
_DO = re.compile(rf"\b{_APART.join('do')}\s*:")
_FENCE = re.compile(
    r"\blessons from practice\b.*?(?:use each|\[\W*[0-9a-f]{4,8}\W*\]).*"
    r"|\[\W*end\s+[0-9a-f]{4,8}\W*\].*"
)


def sanitize_line(text: str) -> str:
    """The text on one line, without control characters, invisible characters (see
    `reflect.invisible`) and role tokens; white space is folded."""
    return " ".join(strip_role_tokens(remove_invisible(text)).split())


def sanitize_block(text: str) -> str:
    """The text without role tokens, control characters and invisible characters, for another
    prompt; it keeps its lines, each of which ends with a newline."""
    return strip_role_tokens(remove_invisible(LINE_ENDS.sub("\n", text), keep="\n\t"))


def quote(text: str, *, own_line: bool = False) -> str:
    """The text, sanitized, so that no line of it can pass for a line of the prompt.

    Every line after the first begins with `| `, whatever it holds. The first continues a line of
    the prompt, such as "feedback: "; if it has a line of its own (`own_line`), it gets the mark
    when other lines follow or when it is not plain.
    """
    first, *rest = sanitize_block(text).split("\n")
    plain = _PLAIN.fullmatch(first) and not _SHAPE.search(first)
    if own_line and first and (rest or not plain):
        first = QUOTED + first
    return f"\n{QUOTED}".join([first, *rest])


def inert(text: str) -> str:
    """The text, sanitized, without headings of a review. A small model reads `attempt 4, reward 1:`
    as one wherever it is in a line, so marked lines are not enough.

    From such a heading on, the text is left out (LEFT_OUT says so). In what only resembles one, the
    numbers get brackets: `trial [4], score [1]:`, `a reward of [1]`. Spelling, case, look-alike
    letters and invisible characters make no difference.
    """
    text = sanitize_block(text)
    shape, places = skeleton(text)
    if heading := _HEADING.search(shape):
        start = places[heading.start()]
        text, shape = text[:start] + LEFT_OUT, shape[: heading.start()]
    regions = [m.span() for pattern in (_COUNTED, _SHAPE) for m in pattern.finditer(shape)]
    numbers = {m.span() for start, end in regions for m in _NUMBER.finditer(shape, start, end)}
    parts, done = [], 0
    for start, end in sorted(numbers):
        parts += [text[done : places[start]], f"[{shape[start:end]}]"]
        done = places[end - 1] + 1
    return "".join([*parts, text[done:]])


def lesson_text(text: str) -> str:
    """The condition or advice of a lesson, sanitized, for a prompt about lessons: without headings,
    numbers of lessons (`lesson [3]`) and the mark of merge.jinja for kept words."""
    text = inert(sanitize_line(text))
    shape, places = skeleton(text)
    for match in reversed([*_LESSON_FRAME.finditer(shape)]):
        start, end = match.span(match.lastindex or 0)
        at, to = places[start], places[end - 1] + 1
        text = f"{text[:at]}[{text[at:to]}]{text[to:]}"
    return text


def nonce(*texts: str, digits: int = 4, avoid: str = "") -> str:
    """A hash of `texts` that occurs in none of them nor in `avoid`, in `digits` hexadecimal digits,
    or more where a long text has all short ones.

    The author of only a part of the texts cannot guess it. It is not random: the same prompt always
    has the same bytes, so that rollback restores it and caches hit.
    """
    for salt in range(100):
        mark = hashlib.sha256("\x00".join((str(salt), *texts)).encode()).hexdigest()[:digits]
        if not any(mark in text for text in (*texts, avoid)):
            return mark
    return nonce(*texts, digits=digits + 4, avoid=avoid)


def _folders() -> tuple[str, ...]:
    own = os.path.join(os.getcwd(), "prompts")
    return (own, *_shipped()) if os.path.isdir(own) else _shipped()


@functools.cache
def _shipped() -> tuple[str, ...]:
    return (str(shipped("prompts")),)


@functools.lru_cache(maxsize=8)
def _environment(folders: tuple[str, ...]) -> ImmutableSandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(list(folders)), undefined=StrictUndefined
    )


def render(name: str, **values: Any) -> str:
    """prompts/NAME.jinja with `values` filled in. UsageError, with the name of the file, if the
    template is broken or a value is missing."""
    from jinja2 import TemplateError

    env = _environment(_folders())
    try:
        return env.get_template(f"{name}.jinja").render(**values).strip()
    except TemplateError as e:
        raise _broken(getattr(e, "filename", None) or f"prompts/{name}.jinja", e) from e


def render_source(source: str, path: str, **values: Any) -> str:
    """The template text `source` with `values` filled in. UsageError, with `path`, as in
    `render`."""
    from jinja2 import TemplateError

    try:
        return _environment(_folders()).from_string(source).render(**values).strip()
    except TemplateError as e:
        raise _broken(path, e) from e


def _broken(path: str, e: Exception) -> UsageError:
    return UsageError(
        f"The prompt template {path} does not render: {e}.", "Fix or remove that file."
    )


def is_customized(name: str) -> bool:
    """Does the user's own folder `./prompts/` have this template, with another text?"""
    own = Path.cwd() / "prompts" / f"{name}.jinja"
    return own.is_file() and own.read_bytes() != (shipped("prompts") / own.name).read_bytes()


def rubric(text: str, task: str, reference: str) -> str:
    """A judge's rubric with its variables {{ task }} and {{ reference }} filled in. UsageError if
    it names another variable, or is no template: see `rubric_problem`."""
    from jinja2 import TemplateError

    try:
        template = _environment(_folders()).from_string(text)
        return template.render(task=task, reference=reference).strip()
    except TemplateError as e:
        raise UsageError(
            f"The rubric does not render: {e}.", f"It may name {', '.join(RUBRIC)}."
        ) from e


def rubric_problem(text: str) -> str:
    """The error in a rubric, found before it grades a task; "" if there is none."""
    from jinja2 import TemplateError, meta

    try:
        parsed = _environment(_folders()).parse(text)
    except TemplateError as e:
        return f"it is no template: {e}"
    unknown = sorted(meta.find_undeclared_variables(parsed) - set(RUBRIC))
    return f"it names {', '.join(unknown)}, which there is not" if unknown else ""


def version(name: str) -> str:
    """The hash of the template's text, 12 hexadecimal digits. Stored with what it produced."""
    env = _environment(_folders())
    assert env.loader is not None  # see `_environment`
    source, _, _ = env.loader.get_source(env, f"{name}.jinja")
    return source_version(source)


def source_version(source: str) -> str:
    """The hash of a template's text, 12 hexadecimal digits."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def system_prompt(system: str, lessons: list[dict[str, str]]) -> str:
    """The system message of a rollout; "" if it is empty. `lessons`: {when, do}. What imitates
    lessons or their fence in `system` is removed, because a model would follow it as a lesson."""
    rows = [{"when": sanitize_line(row["when"]), "do": sanitize_line(row["do"])} for row in lessons]
    system = _without_imitated_lessons(system)
    mark = nonce(*(row["when"] + row["do"] for row in rows), avoid=system)
    return render("system", system=system, lessons=rows, fence=mark)


@functools.lru_cache(maxsize=8)
def _lessons_head(folders: tuple[str, ...]) -> str:
    texts = [system_prompt("", [{"when": when, "do": "it"}]) for when in ("a", "b", "c")]
    return os.path.commonprefix(texts)


def begins_with_lessons(system: str) -> bool:
    """Was this system message made for lessons, for a task without a system message?"""
    head = _lessons_head(_folders())
    return len(head) >= SHORTEST_HEAD and system.startswith(head)


def _without_imitated_lessons(text: str) -> str:
    """The text with REMOVED from each place on where a line imitates the lessons of system.jinja;
    a condition and its advice may be on two lines."""
    lines = text.splitlines(keepends=True)
    when: tuple[int, int] | None = None  # a condition without advice: its line, and where it begins
    for i, line in enumerate(lines):
        shape, places = skeleton(line)
        if fence := _FENCE.search(shape):
            lines[i], when = _removed(line, places[fence.start()]), None
            continue
        condition = _WHEN.search(shape)
        advice = _DO.search(shape, condition.end() if condition else 0)
        if advice and condition:
            lines[i], when = _removed(line, places[condition.start()]), None
        elif advice and when and when[0] == i - 1:
            lines[i - 1], lines[i] = _removed(lines[i - 1], when[1]), _removed(line, 0)
            when = None
        else:
            when = (i, places[condition.start()]) if condition else None
    return "".join(lines)


def _removed(line: str, start: int) -> str:
    return line[:start] + REMOVED + line[len(line.rstrip("\r\n")) :]


def with_lessons(
    messages: list[dict[str, Any]], lessons: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """`messages` with the lessons in the first system message, which is added if it is missing. All
    other messages are the same objects in the same order."""
    at = next((i for i, m in enumerate(messages) if m["role"] == "system"), None)
    if at is None:
        text = system_prompt("", lessons)
        return [{"role": "system", "content": text}, *messages] if text else list(messages)
    text = system_prompt(messages[at]["content"], lessons)
    first = [{**messages[at], "content": text}] if text else []
    return [*messages[:at], *first, *messages[at + 1 :]]
