"""Errors that a user can meet. Each says what happened, then the next command to run.

    ReflectError                 exit 1
    ├── UsageError               exit 2: invalid arguments
    │   ├── UnknownName          no such taskset, model, id, arm, status ...
    │   └── BadTaskFile          a task file with a malformed line (says file, line, field)
    ├── StoreError               the database cannot be read or written
    │   ├── NewerDatabase        written by a newer reflect
    │   └── Conflict             somebody else changed the same lesson first
    ├── ModelError               a model that cannot be loaded or cannot answer
    │   ├── ContextTooLong       a prompt that does not fit the model's context
    │   ├── SchemaRefused        a form of answers (response_format) that cannot be compiled
    │   ├── MessagesRefused      messages that the model's chat template cannot take
    │   └── ModelHalted          it answers no further request either
    ├── AdapterError             an adapter that must not be used
    │   ├── AdapterCorrupt       a file differs from its sha256 manifest
    │   └── AdapterMismatch      it was trained for another base model
    ├── ServeError               a server that cannot start
    ├── SandboxError             code cannot be run apart from everything else, so it is not run
    └── NightError               a night that could not be finished
        └── NightBusy            another sleep holds the lock

One place catches them: `reflect.cli.main`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ReflectError(Exception):
    """What happened (`message`) and what to do next (`hint`, may be empty)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(ReflectError):
    """Invalid arguments. The command exits with 2."""

    exit_code = 2


class UnknownName(UsageError):
    """A taskset, model, id, arm or status that does not exist."""


class BadTaskFile(UsageError):
    """A task file with a malformed line; the message says file, line and field."""


class StoreError(ReflectError):
    """The database cannot be read or written."""


class NewerDatabase(StoreError):
    """The database was written by a newer version of reflect."""


class Conflict(StoreError):
    """Somebody else changed the same lesson first."""


class ModelError(ReflectError):
    """A model cannot be loaded or cannot answer."""


class ContextTooLong(ModelError):
    """A prompt does not fit the context of the model."""


class MessagesRefused(ModelError):
    """The chat template of the model cannot take the messages."""


class SchemaRefused(ModelError):
    """A form of answers cannot be compiled, or not for this model."""


class ModelHalted(ModelError):
    """The model answers no further request: wrong key, unreachable server, spent budget."""


class AdapterError(ReflectError):
    """An adapter must not be used."""


class AdapterCorrupt(AdapterError):
    """A file of the adapter differs from its sha256 manifest."""


class AdapterMismatch(AdapterError):
    """The adapter was trained for another base model."""


class ServeError(ReflectError):
    """A server cannot start."""


class SandboxError(ReflectError):
    """Code cannot be isolated, so it is not run."""


class NightError(ReflectError):
    """A night could not be finished."""


class NightBusy(NightError):
    """Another sleep holds the lock."""


def ensure_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UnknownName unless the name of that kind is among the known ones."""
    names = [*known]
    if name not in names:
        raise UnknownName(f"There is no {kind} '{name}'.", f"Known: {', '.join(names)}.")
