"""What a run spends on models behind an API, and how it ends when they answer nothing more."""

from __future__ import annotations

from collections.abc import Sequence

from reflect.errors import ModelHalted
from reflect.models.base import MeteredModel, Model
from reflect.records import Run
from reflect.rollouts.runner import HALTED
from reflect.store import Store, runs

AGAIN = "Then run the same command again, or `reflect runs resume`: it goes on where it stopped."


class RunBudget:
    """The budget of a run, one for the model and the reflector. It counts on from where the run was
    interrupted, and stands in `Run.spent`."""

    def __init__(self, run: Run, *models: Model | None) -> None:
        self.run_id = run.id
        remote = _metered(models)
        self.budget = remote[0].new_budget(run.spent) if remote else None
        if self.budget:
            for model in remote:
                model.budget = self.budget

    def note(self, store: Store) -> None:
        """Write down what is spent so far."""
        if self.budget:
            with store.write() as s:
                runs.note(s, self.run_id, spent=self.budget.shape())


def _metered(models: Sequence[object]) -> list[MeteredModel]:
    return [model for model in models if isinstance(model, MeteredModel)]


def server_of(*models: Model | None) -> dict[str, str]:
    """Where a run is to be finished. It is not among the words of the run: a server may move."""
    urls = [model.url for model in _metered(models)]
    return {"base_url": urls[0]} if urls else {}


def stopped(store: Store, run: Run, why: ModelHalted) -> BaseException:
    """The error of a run that stopped where it is: one sentence, and how to go on. A person's ^C
    stays one."""
    if isinstance(why.__cause__, KeyboardInterrupt):
        return why.__cause__
    with store.read() as s:
        made = runs.made(s, run.id, HALTED)
    told = f"Run {run.id} stopped after {made} of {run.n * run.k} rollouts. {why.message}"
    return ModelHalted(told, f"{why.hint} {AGAIN}".strip())
