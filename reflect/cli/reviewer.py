"""reflect reviewer: the adapter that a local model uses in its reflections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer import Option

from reflect.cli.common import Json, Seed, noun, with_workspace
from reflect.cli.output import print_json, print_status, print_table, progress, to_dict
from reflect.cli.report import print_gate

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

app = noun("Reviewers: adapters for reflections only, trained on what trials have shown.")
COLUMNS = ", id, name, status, base, measured lessons, created (UTC)"


@app.command()
@with_workspace("model reflector profile")
def train(
    ws: Workspace,
    steps: int = Option(400, min=1, help="Optimizer steps."),
    batch: int = Option(8, min=1, help="Reviews in one step."),
    rate: float = Option(1e-3, min=1e-6, max=1.0, help="Learning rate at the start."),
    rank: int = Option(16, min=1, max=256, help="Rank of the adapter."),
    grpo: int = Option(0, min=0, help="Steps of reinforcement learning after these."),
    groups: int = Option(24, min=1, help="Held-out groups of each kind in the gate."),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a reviewer for a local model, and promote it if more of its lessons help.

    It learns from generated groups with hidden rules, and from the reviews of this database whose
    lessons have a verdict. An interrupted training continues; a finished one is only reported.
    """
    from reflect.reviewer.train import ReviewOptions

    options = ReviewOptions(steps, rate, rank, batch, seed, grpo)
    with progress() as bar:
        report = ws.reviewers.train(options, gate_groups=groups, progress=bar)
    if json:
        return print_json(report)
    print_gate({"checks": report.checks})
    done = "promoted" if report.promoted else "not promoted"
    print(
        f"{report.adapter.name}: {done}, {report.measured} reviews with a verdict in its training"
    )
    if report.promoted:
        print_status("`reflect run` uses it from now on. To undo: reflect reviewer rollback")


@app.command("list")
@with_workspace("profile")
def list_(ws: Workspace, json: Json = False) -> None:
    """List the reviewers of the profile, newest first; a star marks the one in use of each base."""
    from reflect.store import reviewers

    rows = ws.reviewers.listing()
    with ws.store.read() as s:
        active = [reviewers.active(s, ws.settings.profile, row.base_fingerprint) for row in rows]
    used = {row.id for row in active if row}
    if json:
        return print_json([to_dict(row) | {"active": row.id in used} for row in rows])
    cells = [
        [
            "*" if row.id in used else "",
            row.id,
            row.name,
            row.status,
            row.base_model,
            len(row.gate["lessons_read"]),
            f"{row.created:%F %R}",
        ]
        for row in rows
    ]
    print_table(cells, COLUMNS)


@app.command()
@with_workspace("model reflector profile")
def rollback(ws: Workspace, json: Json = False) -> None:
    """Undo the last promotion: the previous reviewer, or the bare base."""
    left, now = ws.reviewers.rollback()
    if json:
        return print_json({"left": left.name, "active": now.name if now else None})
    print_status(f"Left {left.name}. Reviews by: {now.name if now else 'the bare base'}.")
