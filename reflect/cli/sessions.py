"""reflect sessions: import the sessions of coding agents, and export them."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import DryRun, Json, Yes, noun, with_workspace
from reflect.cli.output import print_json, print_status, print_table, print_utf8
from reflect.errors import UnknownName, UsageError
from reflect.sessions.signals import TOKEN_CAP

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
    if report.signals["none"]:
        print_status("A model can look for corrections: reflect sessions judge --dry-run")
    if not dry_run and new:
        print_status("Then: reflect run --from-traffic")


@app.command()
@with_workspace("profile model judge")
def judge(
    ws: Workspace,
    token_cap: int = Option(
        TOKEN_CAP, "--token-cap", min=1, help="Maximum tokens, in and out; the rest waits."
    ),
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let the judge say whether the person's later messages correct the agent's work.

    For sessions without a grade, a test, a build or a settled commit, the newest first: 1 without a
    correction, 0 with one. Sessions in which the person wrote nothing more have no signal.
    """
    report = ws.sessions.judge(token_cap, dry_run=dry_run)
    if json:
        return print_json(vars(report))
    price = "no price is set" if report.price is None else f"price {report.price:.4f}"
    print(
        f"{'Would judge' if dry_run else 'Judged'} {report.judged} sessions: at most "
        f"{report.tokens} tokens, {price}."
    )
    if report.silent:
        print_status(f"{report.silent} sessions have no later message, so they have no signal.")
    if report.left:
        print_status(f"{report.left} sessions wait for the next time: --token-cap {token_cap}")
    for problem in report.problems[:5]:
        print_status(problem)


def learn_from_sessions(ws: Workspace, token_cap: int, dry_run: bool) -> None:
    """`reflect sleep --sessions`: import, judge and reflect within the cap, with the bill on
    stderr."""
    from reflect.day.traffic import learn, tokens_of, within
    from reflect.store import exchanges

    report = ws.sessions.load(dry_run=dry_run)
    new = report.statuses["new"] + report.statuses["grown"]
    judged = ws.sessions.judge(token_cap, dry_run=dry_run)
    rows = ws.context.read(exchanges.waiting, ws.settings.profile)
    chosen = within(rows, token_cap - judged.tokens, ws.settings.reflect_tokens)
    tokens = sum(map(tokens_of, chosen)) + len(chosen) * ws.settings.reflect_tokens
    would = "would be " if dry_run else ""
    print_status(
        f"Sessions: {new} {would}imported; {judged.judged} {would}judged, at most {judged.tokens} "
        f"tokens; {len(chosen)} exchanges {would}reflected on, at most {tokens} tokens, of "
        f"{token_cap}; {judged.left + len(rows) - len(chosen)} wait for the next time."
    )
    if dry_run and report.review_tokens:
        print_status(f"Reflections on the new sessions: about {report.review_tokens} tokens.")
    if chosen and not dry_run:
        cap = token_cap - judged.tokens
        for run in learn(ws.reflector or ws.model, ws.store, ws.settings, token_cap=cap):
            print_status(f"run {run.run_id}: {run.reflections} reflections on sessions and traffic")


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
