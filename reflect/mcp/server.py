"""The tools, resources and the prompt that an agent gets: a thin layer over `AgentAccess`.

Six tools, of which two write: `propose_lesson` into quarantine, `give_feedback` a reward. No tool
approves, changes or deletes a lesson, or starts a night.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

import reflect
from reflect import prompts
from reflect.errors import ReflectError, UnknownName
from reflect.workspace.agent import AgentAccess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect.workspace.workspace import Workspace

INSTRUCTIONS = (
    "Lessons from practice, with measured effects. Call lessons_for at the start of a task and use "
    "each lesson whose condition fits; call give_feedback with its id when the outcome is known. "
    "A lesson that you propose waits for a person."
)
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
NO_NUL = r"^[^\x00]*$"

Short = Annotated[str, Field(max_length=200, pattern=NO_NUL)]
Line = Annotated[str, Field(min_length=1, max_length=2_000, pattern=NO_NUL)]
Text = Annotated[str, Field(max_length=100_000, pattern=NO_NUL)]
Reward = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LessonId = Annotated[int, Field(ge=1, lt=2**63)]


def build(ws: Workspace, taskset: str) -> MCPServer[Any]:
    """The server of a workspace. `taskset`: the scope of lessons and tasks by default."""
    access = AgentAccess(ws, taskset)
    server: MCPServer[Any] = MCPServer(
        "reflect", version=reflect.__version__, instructions=INSTRUCTIONS, log_level="ERROR"
    )
    add_tools(server, access)
    add_resources(server, access)

    @server.prompt()
    def review_session() -> str:
        """Review this session: report outcomes, then propose at most three lessons."""
        return prompts.render("review_session", scope=access.taskset)

    return server


def add_tools(server: MCPServer[Any], access: AgentAccess) -> None:
    """Add the six tools."""

    @server.tool(annotations=WRITES)
    def lessons_for(
        task: Annotated[Text, Field(min_length=1, description="The task, as the user gave it.")],
        scope: Annotated[Short, Field(description="Whose lessons. Default: the server's.")] = "",
        session: Annotated[Short, Field(description="A name of this session, if any.")] = "",
    ) -> dict[str, Any]:
        """Lessons for a task, and an id for give_feedback. Call it once at the start of a task.

        Some lessons are withheld at random, so that their effect can be measured.
        """
        with refusals(ToolError):
            return access.lessons_for(task, scope, session)

    @server.tool(annotations=READS)
    def search_lessons(
        text: Annotated[Line, Field(description="Words to search for.")],
        limit: Annotated[int, Field(ge=1, le=50)] = 10,
    ) -> list[dict[str, Any]]:
        """Lessons that share words with a text, best first."""
        with refusals(ToolError):
            return access.search(text, limit)

    @server.tool(annotations=READS)
    def show_lesson(lesson_id: LessonId) -> dict[str, Any]:
        """One lesson: text, measured effect with its interval, versions."""
        with refusals(ToolError):
            return access.show(lesson_id)

    @server.tool(annotations=WRITES)
    def propose_lesson(
        when: Annotated[Line, Field(description="The condition: for which tasks it holds.")],
        do: Annotated[Line, Field(description="The advice: what to do then.")],
        why: Annotated[Line | None, Field(description="What happened that teaches it.")] = None,
        scope: Annotated[Short, Field(description="Default: the server's.")] = "",
    ) -> dict[str, Any]:
        """Propose a lesson. It waits in quarantine until a person approves it.

        A principle that helps on other tasks too, no fact about this one; no names, paths or keys.
        """
        with refusals(ToolError):
            return access.propose(when, do, scope, why or "")

    @server.tool(annotations=WRITES)
    def give_feedback(
        id: Annotated[Line, Field(description="Of lessons_for, or of an answer.")],
        reward: Annotated[Reward, Field(description="0 = failed, 1 = solved.")],
        feedback: Annotated[Text, Field(max_length=10_000, description="What was wrong.")] = "",
        answer: Annotated[Text, Field(description="What you did, in a few lines.")] = "",
    ) -> dict[str, Any]:
        """Report the outcome of a task, from a test, a build or the user's words."""
        with refusals(ToolError):
            return access.feedback(id, reward, feedback, answer)

    @server.tool(annotations=READS)
    def status() -> dict[str, Any]:
        """Numbers of lessons by status, what waits for a person, the adapter, the last night."""
        with refusals(ToolError):
            return access.status()


def add_resources(server: MCPServer[Any], access: AgentAccess) -> None:
    """Add the resources."""

    @server.resource("lesson://{lesson_id}", mime_type="application/json")
    def lesson(lesson_id: str) -> str:
        """A lesson by its id."""
        with refusals(ResourceError):
            return as_json(access.show(number(lesson_id, "lesson")))

    @server.resource("prompt://{taskset}", mime_type="text/plain")
    def prompt(taskset: str) -> str:
        """The exact prompt of an installed taskset's first holdout task, with its lessons."""
        with refusals(ResourceError):
            return access.prompt(taskset)

    @server.resource("night://{night_id}", mime_type="application/json")
    def night(night_id: str) -> str:
        """A night with its gate, by its id."""
        with refusals(ResourceError):
            return as_json(access.night(number(night_id, "night")))


def number(text: str, noun: str) -> int:
    """An id. UnknownName for another text."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UnknownName(f"There is no {noun} '{text[:80]}'.")
    return int(text)


def as_json(value: object) -> str:
    """The text of a resource."""
    return json.dumps(value, ensure_ascii=False, indent=1)


@contextmanager
def refusals(kind: type[ToolError | ResourceError]) -> Iterator[None]:
    """An error of reflect as one that the client gets to read."""
    try:
        yield
    except UnknownName as e:
        raise (ResourceNotFoundError if kind is ResourceError else kind)(str(e)) from None
    except ReflectError as e:
        raise kind(str(e)) from None
