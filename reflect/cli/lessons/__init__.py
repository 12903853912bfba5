"""reflect lessons: read, edit, export and import lessons. Its verbs are in three modules."""

from __future__ import annotations

from reflect.cli.common import noun
from reflect.cli.lessons import read, transfer, write

app = noun("Lessons: what was learned, in words.")
VERBS = (
    *(read.list_, read.show, read.search, read.history, read.diff),
    *(read.stats, read.followed),
    *(write.add, write.edit, write.approve, write.reject, write.retire, write.revoke),
    *(write.pin, write.unpin, write.undo, write.merge, write.check),
    *(write.forbid, write.forbidden, write.allow),
    *(transfer.export, transfer.import_, transfer.backup, transfer.path),
)
for verb in VERBS:
    app.command(verb.__name__.rstrip("_"))(verb)
