"""Render prompts/*.jinja: the product's words, in files that a user can edit.

A user's own `./prompts/` wins over the packaged folder. Rendering is strict (an unknown variable is
an error) and sandboxed; lesson text is only ever a *value* in a template, never a template.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from typing import Any

from reflect import prompts
from reflect.config import shipped
from reflect.errors import UsageError

ROLE_TOKEN = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]")

RUBRIC = (
    "task",
    "reference",
)  # what a rubric may name: the question, and the answer that the task gives, if any


def sanitize_line(text: str) -> str:
    """One line of harmless text: control characters and role tokens stripped, white space
    folded."""
    text = ROLE_TOKEN.sub(" ", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def nonce(*texts: str, digits: int = 4) -> str:
    """A short nonce that depends on what it fences and cannot be guessed by who wrote only a part
    of it.

    Derived, not drawn: the same prompt is the same bytes every time, so that rollback restores it
    and caches hit.
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
def _environment(folders: tuple[str, ...]) -> Any:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(list(folders)), undefined=StrictUndefined
    )


def render(name: str, **values: Any) -> str:
    """Render prompts/NAME.jinja. A broken or incomplete template is a UsageError that names the
    file."""
    from jinja2 import TemplateError

    env = _environment(_folders())
    try:
        return env.get_template(f"{name}.jinja").render(**values).strip()
    except TemplateError as e:
        where = getattr(e, "filename", None) or f"prompts/{name}.jinja"
        raise UsageError(
            f"The prompt template {where} does not render: {e}.", "Mend or remove that file."
        ) from e


def rubric(text: str, task: str, reference: str) -> str:
    """A judge's rubric with its variables {{ task }} and {{ reference }} filled in. UsageError when
    it names another, or is no template: see `unknown_variables`."""
    from jinja2 import TemplateError

    try:
        return (
            _environment(tuple(_folders()))
            .from_string(text)
            .render(task=task, reference=reference)
            .strip()
        )
    except TemplateError as e:
        raise UsageError(
            f"The rubric does not render: {e}.", f"It may name {', '.join(RUBRIC)}."
        ) from e


def rubric_problem(text: str) -> str:
    """What is wrong with a rubric before any task is graded by it, "" when nothing is."""
    from jinja2 import TemplateError, meta

    try:
        parsed = _environment(tuple(_folders())).parse(text)
    except TemplateError as e:
        return f"it is no template: {e}"
    unknown = sorted(meta.find_undeclared_variables(parsed) - set(RUBRIC))
    return f"it names {', '.join(unknown)}, which there is not" if unknown else ""


def version(name: str) -> str:
    """Hash of the template's text, stored with what it produced."""
    env = _environment(_folders())
    source, _, _ = env.loader.get_source(env, f"{name}.jinja")
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def system_prompt(system: str, lessons: list[dict[str, str]]) -> str:
    """The system message of a rollout: `lessons` are {when, do}; "" when there is nothing to
    say."""
    rows = [{"when": sanitize_line(row["when"]), "do": sanitize_line(row["do"])} for row in lessons]
    mark = nonce(*(row["when"] + row["do"] for row in rows))
    return render("system", system=system, lessons=rows, fence=mark)


def with_lessons(
    messages: list[dict[str, Any]], lessons: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """`messages` with the lessons in its system message (made if there is none)."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    text = system_prompt(system, lessons)
    return [{"role": "system", "content": text}, *rest] if text else rest


def sanitize_block(text: str) -> str:
    """Text of a rollout for another prompt: no role tokens, no control characters; its lines
    stay."""
    text = prompts.ROLE_TOKEN.sub(" ", text)
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
