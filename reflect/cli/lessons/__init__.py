"""reflect lessons: what was learned, to read, to edit and to move. One noun; its verbs stand in
four modules."""

from __future__ import annotations

from reflect.cli.common import noun
from reflect.cli.lessons import dedupe, read, transfer, write

app = noun("Lessons: what was learned, in words.")
app.command("list")(read.list_)
app.command()(read.show)
app.command()(read.search)
app.command()(read.history)
app.command()(read.diff)
app.command()(read.stats)
app.command()(write.add)
app.command()(write.edit)
app.command()(write.approve)
app.command()(write.reject)
app.command()(write.retire)
app.command()(write.revoke)
app.command()(write.pin)
app.command()(write.unpin)
app.command()(write.undo)
app.command()(dedupe.merge)
app.command()(write.forbid)
app.command()(write.forbidden)
app.command()(write.allow)
app.command()(transfer.export)
app.command("import")(transfer.import_)
app.command()(transfer.backup)
app.command()(transfer.path)
