"""reflect sessions: import the sessions of coding agents, and export them."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import DryRun, Json, Yes, noun, with_workspace
from reflect.cli.output import print_json, print_status, print_table, print_utf8
from reflect.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from collections import Counter

    from reflect.sessions.importer import ImportReport
    from reflect.workspace.workspace import Workspace

KINDS = 8  # of records that are printed by name
app = noun("Sessions of Claude Code, Codex and other agents, as evidence to learn from.")


@app.command("list")
@with_workspace("profile")
def list_(ws: Workspace, json: Json = False) -> None:
    """List the imported sessions, newest last."""
    rows = ws.sessions.listing()
    if json:
        return print_json(
            [row.model_dump(mode="json", exclude={"asked", "messages"}) for row in rows]
        )
    if not rows:
        return print_status("No session is imported: reflect sessions import --dry-run")
    print_table(
        (
            (row.name, row.choice, row.taskset, row.reward, row.feedback.partition(":")[0] or None,
             len(row.exposures), row.trust, row.run_id)
            for row in rows
        ),
        "session, part, scope, reward, signal, lessons, trust, run",
    )  # fmt: skip


@app.command("import")
@with_workspace("profile model reflector")
def import_(
    ws: Workspace,
    source: Annotated[
        str,
        Argument(help="claude, codex, a transcript or a folder. [default: both agents]"),
    ] = "",
    since: str | None = Option(
        None, metavar="TIME", help="Only transcripts changed in the last 90m, 12h, 7d or 2w."
    ),
    trusted: bool = Option(
        False, "--trusted", help="The texts and rewards are your own: lessons need no approval."
    ),
    headless: bool = Option(
        False, "--headless", help="Also sessions that programs started (claude -p, codex exec)."
    ),
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Import transcripts. `reflect run --from-traffic` then reflects on those with a reward.

    Keys and home folders are removed before anything is stored. No model is called.
    """
    report = ws.sessions.load(
        source, since=since, trusted=trusted, headless=headless, dry_run=dry_run
    )
    if json:
        return print_json(vars(report))
    print_import(report, dry_run)


def print_import(report: ImportReport, dry_run: bool) -> None:
    """The figures of an import, one subject a line."""
    new = report.statuses["new"] + report.statuses["grown"]
    print(f"{'Would import' if dry_run else 'Imported'} {new} sessions ({_of(report.statuses)}).")
    counts = {name: report.counts[name] for name in ("prompts", "answers", "calls", "results")}
    print(f"In them: {_of(counts)}.")
    print(f"Tokens that they used: {report.tokens_in} in, {report.tokens_out} out.")
    print(f"Signals: {_of(report.signals) if report.signals else 'none'}.")
    price = "no price is set" if report.price is None else f"price {report.price:.4f}"
    print(f"To reflect on those with a reward: about {report.review_tokens} tokens, {price}.")
    if report.skipped:
        print(f"Records outside the conversations: {_of(report.skipped, KINDS)}.")
    if report.settled:
        print(f"{report.settled} earlier sessions have a reward now, from their commits.")
    if not dry_run and new:
        print_status("Then: reflect run --from-traffic")


def _of(counts: Counter[str] | dict[str, int], most: int = 100) -> str:
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    texts = [f"{number} {name}" for name, number in rows[:most]]
    texts += [f"{sum(n for _, n in rows[most:])} of {len(rows) - most} more kinds"] * (
        len(rows) > most
    )
    return ", ".join(texts) or "none"


@app.command()
@with_workspace("profile")
def export(
    ws: Workspace,
    name: Annotated[str, Argument(help="A session's name. [default: all]")] = "",
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Write this file. [default: stdout]")
    ] = None,
    overwrite: Yes = False,
) -> None:
    """Export imported sessions as ATIF trajectories: one as a JSON file, all as JSON Lines."""
    rows = ws.sessions.export(name)
    if name and not rows:
        raise UnknownName(f"There is no session {name}.", "See: reflect sessions list")
    one = len(rows) == 1 and bool(name)
    lines = (json_module.dumps(row, ensure_ascii=False, indent=2 if one else None) for row in rows)
    text = "".join(f"{line}\n" for line in lines)
    if out is None:
        return print_utf8(text)
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already.", "Give another name, or add --yes.")
    out.write_text(text, encoding="utf-8")
    print_status(f"{out}: {len(rows)} sessions")
