"""The OpenAPI document of the server, generated from the models of `reflect.serve.schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.json_schema import models_json_schema

from reflect.serve.api_errors import is_messages
from reflect.serve.messages import CountedMessages, LocalMessages, RelayedMessages
from reflect.serve.responses import LocalResponse, RelayedResponse
from reflect.serve.schema import (
    AdapterFolder,
    AdapterName,
    Feedback,
    LocalBody,
    RelayedBody,
    TokensBody,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from reflect.types import Json

STREAMS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the invalid field"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR: Json = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def document(version: str, *, local: bool, key: bool) -> Json:
    """The OpenAPI 3.1 document. `local`: the model of this process, not a proxy; `key`: requests
    need one."""
    chat: type[BaseModel] = LocalBody if local else RelayedBody
    message: type[BaseModel] = LocalMessages if local else RelayedMessages
    response: type[BaseModel] = LocalResponse if local else RelayedResponse
    bodies: dict[str, tuple[str, type[BaseModel]]] = {
        "/v1/chat/completions": ("Answer a conversation, whole or as server-sent events.", chat),
        "/v1/messages": ("Answer a conversation, as Anthropic's API does.", message),
        "/v1/responses": ("Answer a conversation, as OpenAI's responses API does.", response),
        "/v1/feedback": ("Reward an answer.", Feedback),
    }
    if local:
        count = ("Count the tokens of a conversation.", CountedMessages)
        bodies["/v1/messages/count_tokens"] = count
        bodies["/v1/completions"] = ("Continue a prompt in token ids, without lessons.", TokensBody)
        bodies["/v1/load_lora_adapter"] = ("Load an adapter under a new name.", AdapterFolder)
        bodies["/v1/unload_lora_adapter"] = ("Unload an adapter.", AdapterName)
    models = [model for _, model in bodies.values()]
    references, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: Json = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": references[model, "validation"]}},
                },
                "responses": _responses(path),
            }
        }
        for path, (summary, model) in bodies.items()
    }
    for path, summary in (
        ("/v1/models", "List the models."),
        ("/v1/models/{model}", "Show one model."),
        ("/health", "200 when the server is ready."),
    ):
        paths[path] = {"get": {"summary": summary, "responses": _responses(path)}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model}"]["parameters"] = [name]
    errors = {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR}
    components: Json = {"schemas": schemas["$defs"] | errors}
    secured: Json = {"security": [{"key": []}]} if key else {}
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        paths["/health"]["get"]["security"] = []
    info = {"title": "reflect serve", "version": version}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components} | secured


def _responses(path: str) -> Json:
    """Success, and every error as the API writes it."""
    if path == "/health":
        return {"200": {"description": "Ready."}, "503": {"description": "Not able to answer."}}
    kinds = ["text/plain"] if "lora" in path else ["application/json"]
    kinds += ["text/event-stream"] if path in STREAMS else []
    name = "AnthropicError" if is_messages(path) else "Error"
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    statuses = ["400", "401", "403", "404", "409", "413", "415", "422", "429", "499", "502", "503"]
    success = {"description": "Success.", "content": {kind: {} for kind in kinds}}
    refused = {"description": "An error, as the API of the path writes it.", "content": error}
    return {"200": success} | dict.fromkeys(statuses, refused)
