"""Render prompts/*.jinja: the prompts, in files that a user can edit.

A user's own `./prompts/` wins over the packaged folder. Rendering is strict (an unknown variable is
an error) and sandboxed; lesson text is only ever a *value* in a template, never a template.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

from reflect.config import shipped
from reflect.errors import UsageError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLE_TOKEN = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]")

# The variables of a rubric: the text of the task, and its reference answer if it has one.
RUBRIC = ("task", "reference")


def sanitize_line(text: str) -> str:
    """The text on one line, without control characters and role tokens; white space is folded."""
    text = ROLE_TOKEN.sub(" ", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def nonce(*texts: str, digits: int = 4) -> str:
    """A hash of `texts` that occurs in none of them, in `digits` hexadecimal digits.

    The author of only a part of the texts cannot guess it. It is not random: the same prompt always
    has the same bytes, so that rollback restores it and caches hit.
    """
    for salt in range(100):
        nonce = hashlib.sha256("\x00".join((str(salt), *texts)).encode()).hexdigest()[:digits]
        if not any(nonce in text for text in texts):
            return nonce
    return nonce


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
        where = getattr(e, "filename", None) or f"prompts/{name}.jinja"
        raise UsageError(
            f"The prompt template {where} does not render: {e}.", "Fix or remove that file."
        ) from e


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
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def system_prompt(system: str, lessons: list[dict[str, str]]) -> str:
    """The system message of a rollout; "" if it is empty. `lessons`: {when, do}."""
    rows = [{"when": sanitize_line(row["when"]), "do": sanitize_line(row["do"])} for row in lessons]
    mark = nonce(*(row["when"] + row["do"] for row in rows))
    return render("system", system=system, lessons=rows, fence=mark)


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


def sanitize_block(text: str) -> str:
    """The text without role tokens and control characters, for another prompt; it keeps its
    lines."""
    text = ROLE_TOKEN.sub(" ", text)
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
