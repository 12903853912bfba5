"""A night with several processes: the first runs it, the others take part in each training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reflect.errors import NightError
from reflect.models.distributed import from_first, is_first, size
from reflect.models.fsdp import OutOfStep
from reflect.night.sleep import NightReport
from reflect.training.collectives import ProcessesStopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect.models.base import Model


def lead(night: Callable[[], NightReport], model: Callable[[], Model]) -> NightReport:
    """Run the night in the first process; the others help until it ends."""
    if not is_first():
        serve(model)
        return NightReport("helped", "")
    try:
        report = night()
    except OutOfStep:
        raise  # the helpers wait within a pass and cannot receive anything
    except BaseException:
        dismiss()
        raise
    dismiss()
    return report


def dismiss() -> None:
    """Tell the helpers that the night has ended."""
    if size() > 1 and is_first():
        from_first(lambda: None)


def serve(load: Callable[[], Model]) -> None:
    """The loop of a helper: its share of each training of the first process, until dismissed."""
    from reflect.models.local import LocalModel
    from reflect.training.loop import train
    from reflect.training.teacher_data import TrainingData

    model = None
    while (job := from_first(lambda: None)) is not None:
        model = model or load()
        assert isinstance(model, LocalModel)
        name, shape, plan, folder = job
        try:
            train(model, name, TrainingData.of(shape), plan, Path(folder))
        except (NightError, ProcessesStopped):
            continue  # the first process reports the reason
        finally:
            model.drop_adapter(name)
