"""The reviewers of a workspace: train, list, roll back."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, NamedTuple

from reflect import prompts
from reflect.adapters import registry
from reflect.errors import UsageError
from reflect.store import nights, reviewers
from reflect.types import AdapterStatus

if TYPE_CHECKING:
    from reflect.models.base import Model
    from reflect.models.local import LocalModel
    from reflect.records import Adapter
    from reflect.reviewer.train import ReviewOptions
    from reflect.types import Json, Progress
    from reflect.workspace.context import WorkspaceContext


class TrainedReviewerReport(NamedTuple):
    """A training of a reviewer: its adapter, the gate's checks, the figures."""

    adapter: Adapter
    promoted: bool
    checks: list[Json]
    measured: int
    """Reviews with a verdict that it was trained on."""
    figures: Json


class Reviewers:
    """The reviewers of one profile."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context
        self.settings = context.settings

    @property
    def model(self) -> Model:
        """The model that reflects."""
        return self.context.reflector or self.context.model

    def listing(self) -> list[Adapter]:
        """The reviewers of the profile, newest first."""
        return self.context.read(reviewers.listing, self.settings.profile)

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """Undo the last promotion of a reviewer: (the former one, the one now)."""
        profile, print_of = self.settings.profile, self.model.fingerprint
        return self.context.write(reviewers.rollback, profile, print_of)

    def train(
        self,
        options: ReviewOptions,
        *,
        gate_groups: int,
        progress: Progress | None = None,
    ) -> TrainedReviewerReport:
        """Train a reviewer for the model that reflects, examine it, and promote it if it passes.

        The same arguments and the same evidence give the same reviewer: an interrupted training
        continues, and a finished one is only reported. UsageError for a model without weights here.
        """
        from reflect.models.local import LocalModel
        from reflect.night.workdir import night_lock

        model = self.model
        if not isinstance(model, LocalModel):
            raise UsageError(
                f"A reviewer is an adapter, and {model.name} has no weights here.",
                "Name local weights: -m hf:ORG/NAME, a path, or --reflector with one of these.",
            )
        with night_lock(self.settings):
            return self._train(model, options, gate_groups, progress)

    def _train(
        self, model: LocalModel, options: ReviewOptions, count: int, progress: Progress | None
    ) -> TrainedReviewerReport:
        from reflect.reviewer import evidence, gate
        from reflect.reviewer.active import load_reviewer
        from reflect.reviewer.train import train_reviewer

        profile = self.settings.profile
        measured, held = evidence.split(self.context.read(evidence.measured_reviews, profile))
        lessons = sorted({i for one in measured for i in one.lessons})
        prompt = prompts.version("reviewer")
        content = [profile, model.fingerprint, options, lessons, len(measured), prompt]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        name = f"{reviewers.KIND}-{key}"
        about = {"kind": reviewers.KIND, "profile": profile, "lessons_read": lessons,
                 "prompt": prompt, "options": options._asdict()}  # fmt: skip
        known = next((row for row in self.listing() if row.name == name), None)
        if known:
            promoted = known.status == AdapterStatus.PROMOTED
            return TrainedReviewerReport(
                known, promoted, known.gate["checks"], len(measured), known.gate["figures"]
            )
        before = load_reviewer(model, self.context.store, self.settings)
        folder = self.settings.home_path / "reviewer-training" / key
        figures = train_reviewer(model, name, measured, options, folder, progress)
        passed, checks = gate.examine(
            model, name, held, before=before, count=count, seed=options.seed, progress=progress
        )
        about |= {"checks": checks, "figures": figures}
        registry.publish(model, name, self.settings, about)
        row = registry.row(model, name, self.settings)
        row.gate = about
        row.status = AdapterStatus.PROMOTED if passed else AdapterStatus.REJECTED
        with self.context.store.write() as s:
            saved = nights.add_adapter(s, **row.model_dump(exclude={"id"}))
        shutil.rmtree(folder, ignore_errors=True)
        return TrainedReviewerReport(saved, passed, checks, len(measured), figures)
