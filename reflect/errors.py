"""Every error a user can meet, written for the reader: what happened, then the next command to run.

    ReflectError                 exit 1
    ├── UsageError               exit 2: the command's words are off
    │   ├── UnknownName          no such taskset, model, id, arm, status ...
    │   └── BadTaskFile          a task file with a malformed line (says file, line, field)
    ├── StoreError               the database cannot be read or written
    │   ├── NewerDatabase        written by a newer reflect
    │   └── Conflict             somebody else changed the same lesson first
    ├── ModelError               a model that cannot be loaded or cannot answer
    │   ├── ContextTooLong       a prompt that does not fit the model's context
    │   └── ModelHalted          and that will not answer the next request either: wrong key, server gone, budget spent
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
    exit_code = 2


class UnknownName(UsageError):
    pass


class BadTaskFile(UsageError):
    pass


class StoreError(ReflectError):
    pass


class NewerDatabase(StoreError):
    pass


class Conflict(StoreError):
    pass


class ModelError(ReflectError):
    pass


class ContextTooLong(ModelError):
    pass


class ModelHalted(ModelError):
    pass


class AdapterError(ReflectError):
    pass


class AdapterCorrupt(AdapterError):
    pass


class AdapterMismatch(AdapterError):
    pass


class ServeError(ReflectError):
    pass


class SandboxError(ReflectError):
    pass


class NightError(ReflectError):
    pass


class NightBusy(NightError):
    pass
