"""The Agent Trajectory Interchange Format (ATIF) 1.0 to 1.8: sessions of other agents as JSON.

Source: Harbor's RFC 0001 and the package atif 1.8. Fields that are unknown here are not read.
Embedded trajectories of sub-agents are not read: their answer is in the observation of their call.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from reflect.sessions.claude import number
from reflect.sessions.session import AgentSession, as_dict, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect.records import Exchange
    from reflect.types import Json

SCHEMA = "ATIF-v1.8"
NAME = "reflect"  # in `extra`: what only this program knows


def is_trajectory(document: object) -> bool:
    """Whether a JSON value is a trajectory."""
    return str(as_dict(document).get("schema_version", "")).startswith("ATIF-")


def read_trajectory(session: AgentSession, document: Json) -> None:
    """Fill a session from a trajectory."""
    agent = as_dict(document.get("agent"))
    session.agent = str(agent.get("name") or "agent")
    session.id = str(document.get("session_id") or document.get("trajectory_id") or session.id)
    session.model = str(agent.get("model_name") or "")
    extra = as_dict(as_dict(document.get("extra")).get(NAME))
    session.cwd = str(extra.get("cwd") or as_dict(agent.get("extra")).get("cwd") or "")
    steps = document.get("steps")
    for step in steps if isinstance(steps, list) else ():
        session.counts["records"] += 1
        _step(session, as_dict(step))
    if document.get("subagent_trajectories"):
        session.skip("subagent_trajectories")


def _step(session: AgentSession, step: Json) -> None:
    session.seen(step.get("timestamp"))
    source, text = step.get("source"), text_of(step.get("message"))
    if step.get("is_copied_context"):
        return session.skip("repeated")
    metrics = as_dict(step.get("metrics"))
    session.tokens_in += number(metrics.get("prompt_tokens"))
    session.tokens_out += number(metrics.get("completion_tokens"))
    if source == "user":
        session.prompt(f"{session.id}/{step.get('step_id')}", text)
    elif source == "agent":
        session.model = str(step.get("model_name") or session.model)
        session.answer(text, _calls(step.get("tool_calls")))
    else:
        session.skip(f"step/{source}")
    results = as_dict(step.get("observation")).get("results")
    for result in results if isinstance(results, list) and source == "agent" else ():
        row = as_dict(result)
        code = as_dict(row.get("extra")).get("exit_code")
        exit_code = code if isinstance(code, int) else None
        session.result(str(row.get("source_call_id") or ""), text_of(row.get("content")), exit_code)
    return None


def _calls(calls: object) -> Iterator[tuple[str, str, object]]:
    for call in calls if isinstance(calls, list) else ():
        row = as_dict(call)
        name, arguments = str(row.get("function_name")), row.get("arguments")
        yield str(row.get("tool_call_id")), name, arguments


def trajectory_of(row: Exchange) -> Json:
    """An exchange as a trajectory."""
    agent, _, session_id = row.name.partition(":")
    steps: list[Json] = []
    for message in row.messages:
        role = str(message.get("role"))
        text = text_of(message.get("content"))
        if role == "tool" and steps and steps[-1]["source"] == "agent":
            result: Json = {"content": text}
            known = {call["tool_call_id"] for call in steps[-1].get("tool_calls", ())}
            if message.get("tool_call_id") in known:
                result["source_call_id"] = message["tool_call_id"]
            steps[-1].setdefault("observation", {"results": []})["results"].append(result)
            continue
        source = {"assistant": "agent", "user": "user"}.get(role, "system")
        step: Json = {"step_id": len(steps) + 1, "source": source, "message": text}
        if calls := message.get("tool_calls"):
            step["tool_calls"] = [_call_of(call) for call in calls]
        steps.append(step)
    metrics = {
        "total_prompt_tokens": row.prompt_tokens,
        "total_completion_tokens": row.completion_tokens,
        "total_steps": len(steps),
    }
    own = {"scope": row.taskset, "reward": row.reward, "feedback": row.feedback, "trust": row.trust}
    return {
        "schema_version": SCHEMA,
        "session_id": session_id or row.name,
        "agent": {"name": agent, "version": "unknown", "model_name": row.model},
        "steps": steps,
        "final_metrics": metrics,
        "extra": {NAME: own | {"exposures": row.exposures, "part": row.choice}},
    }


def _call_of(call: Json) -> Json:
    function = as_dict(call.get("function"))
    try:
        arguments = json.loads(str(function.get("arguments") or "{}"))
    except (ValueError, RecursionError):  # a text, or JSON that was shortened
        arguments = {"text": function.get("arguments")}
    if not isinstance(arguments, dict):
        arguments = {"value": arguments}
    name = str(function.get("name"))
    return {"tool_call_id": str(call.get("id")), "function_name": name, "arguments": arguments}
