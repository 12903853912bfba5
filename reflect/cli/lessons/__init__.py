"""reflect lessons: what was learned, to read, to edit and to move. One noun; its verbs stand in four modules."""

from __future__ import annotations

from reflect.cli.common import noun
from reflect.cli.lessons import hand, move, reading, tidy

app = noun("Lessons: what was learned, in words.")
app.command("list")(reading.list_)
app.command()(reading.show)
app.command()(reading.search)
app.command()(reading.history)
app.command()(reading.diff)
app.command()(reading.stats)
app.command()(hand.add)
app.command()(hand.edit)
app.command()(hand.approve)
app.command()(hand.reject)
app.command()(hand.retire)
app.command()(hand.revoke)
app.command()(hand.pin)
app.command()(hand.unpin)
app.command()(hand.undo)
app.command()(tidy.merge)
app.command()(hand.forbid)
app.command()(hand.forbidden)
app.command()(hand.allow)
app.command()(move.export)
app.command("import")(move.import_)
app.command()(move.backup)
app.command()(move.path)
