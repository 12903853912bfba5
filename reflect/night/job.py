"""A night whose training runs on another machine: `reflect night export`, `work`, `import`.

The export runs the stages before the training and writes a job: a folder of plain files. The work
trains the adapter from it, without the database. The import puts the adapter into the night, which
continues with its gate. A job has no code: data and weights are read as from an untrusted source.
At home the folder is compared with a copy that the export kept, so a changed plan, base or data is
refused; another machine decides nothing but the weights, which the gate examines.

    job.json           the night's key, base, plan, lessons, versions, sha256 of data.json
    data.json          the teacher's data
    requirements.txt   the versions, for pip
    adapter_config.json, adapter_model.safetensors, result.json    of the work

Not covered: reinforcement learning, whose verifiers are code, and a night that continues an
adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reflect.errors import AdapterMismatch, UsageError
from reflect.export.files import write
from reflect.models import adapter_files
from reflect.night.workdir import NightDir
from reflect.reading import clipped, read_bytes
from reflect.store import Store, nights
from reflect.training.deadline import Paused
from reflect.training.plan import NightOptions, Plan
from reflect.training.teacher_data import TrainingData
from reflect.types import Json, NightStatus, StopReason

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.local import LocalModel
    from reflect.night.sleep import RunningNight
    from reflect.types import Progress

JOB, DATA, PINS, RESULT = "job.json", "data.json", "requirements.txt", "result.json"
WEIGHTS = (adapter_files.CONFIG, adapter_files.WEIGHTS)
MOST_BYTES = 2**30  # of one JSON file
PACKAGES = ("second-nature", "torch", "transformers", "tokenizers", "safetensors", "numpy")
AGAIN = "Export the night again: reflect night export DIR"
Text = Annotated[str, Field(max_length=100_000)]
Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]


PLAN = TypeAdapter(Plan)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NightJob(_Strict):
    """job.json."""

    format: Literal[1]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Of the night."""
    adapter: Annotated[str, Field(pattern=r"^night-[0-9a-f]{12}$")]
    base: Text
    """Fingerprint of the base model."""
    model: Text
    """The base model's name at home."""
    plan: Json
    lessons: list[list[Text]]
    """[scope, when, do]."""
    data: Sha
    versions: dict[Text, Text]


class TrainingFigures(_Strict):
    """What `training.loop` returns."""

    step: int
    tokens: int
    rollouts: int
    stages: dict[Text, dict[Text, Annotated[list[Number], Field(max_length=2)]]]


class JobResult(_Strict):
    """result.json."""

    job: Sha
    """Of job.json."""
    files: dict[Text, Sha]
    """Of the adapter."""
    training: TrainingFigures
    versions: dict[Text, Text]


Model = TypeVar("Model", NightJob, JobResult)


# -- at home


def export(folder: Path, options: NightOptions, tasksets: list[str], night: RunningNight,
           data: TrainingData) -> Json:  # fmt: skip
    """Write the job of a night that is to be trained, and end this part of it: raises Paused."""
    plan = night.plan
    if any(name == "grpo" for name, _, _ in plan.stages):
        raise UsageError(
            f"The method {plan.method} needs verifiers, which are code and not part of a job.",
            "Use --method staged, sft or distill, or sleep at home.",
        )
    content = json.dumps(data.shape(), sort_keys=True).encode()
    texts = sorted({(x.scope, x.when, x.do) for item in night.tasksets for x in item.lessons})
    versions = installed()
    job = NightJob(
        format=1,
        key=night.night.key,
        adapter=night.adapter_name,
        base=night.model.fingerprint,
        model=night.model.name,
        plan=plan.shape(),
        lessons=[list(text) for text in texts],
        data=hashlib.sha256(content).hexdigest(),
        versions=versions,
    )
    text = job.model_dump_json(indent=1).encode()
    mine = {"job": text.decode(), "options": asdict(options), "tasksets": tasksets}
    write(night.work.folder / "export.json", json.dumps(mine).encode(), overwrite=True)
    for name, part in ((DATA, content), (PINS, pins(versions)), (JOB, text)):
        write(folder / name, part)
    raise Paused(StopReason.EXPORTED)


def exported(store: Store, settings: Settings, folder: Path) -> tuple[NightOptions, list[str]]:
    """The options and tasksets with which the night of this finished job was exported. UsageError
    for a folder that is not the job which this database has exported, with its result."""
    job, text = read_job(folder, finished=True)
    with store.read() as s:
        rows = nights.list_nights(s, profile=settings.profile)
    waiting = [night for night in rows if night.key == job.key]
    copy = NightDir(settings, job.key).folder / "export.json"
    if not waiting or waiting[0].status != NightStatus.RUNNING or not copy.exists():
        raise UsageError(
            f"No exported night of this database waits for {folder}: it has ended, its lessons "
            "have changed, or it belongs to another database or profile.",
            AGAIN,
        )
    mine = json.loads(copy.read_text())
    if mine["job"].encode() != text:
        ours, theirs = json.loads(mine["job"]), json.loads(text)
        names = [name for name in ours if ours[name] != theirs.get(name)] or ["text"]
        raise _refused(folder, f"{JOB} is not the one that was exported: its {names[0]} differs")
    return NightOptions(**mine["options"]), mine["tasksets"]


def take_result(folder: Path, night: RunningNight, data: TrainingData) -> Json:
    """Load the adapter that the work has made into the model; the figures of its training."""
    job, text = read_job(folder, finished=True)
    content = json.dumps(data.shape(), sort_keys=True).encode()
    if (job.key, job.plan) != (night.night.key, night.plan.shape()):
        raise UsageError("The lessons, tasks or settings have changed since the export.", AGAIN)
    if job.data != hashlib.sha256(content).hexdigest():
        raise _refused(folder, f"{DATA} is not the data of this night")
    result = _read(folder, RESULT, JobResult)
    if result.job != hashlib.sha256(text).hexdigest():
        raise _refused(folder, f"{RESULT} is of another job")
    model, name = night.model, night.adapter_name
    files = model.read_adapter(folder)
    if files.digests != result.files:
        raise _refused(folder, f"the adapter is not the one that {RESULT} describes")
    if (files.rank, files.alpha, set(files.weights)) != (
        night.plan.rank,
        night.plan.alpha,
        set(model.lora_layers),
    ):
        raise _refused(folder, "the rank, alpha or layers of the adapter are not those of the plan")
    if name in model.adapters:
        model.drop_adapter(name)
    model.load_adapter(name, files)
    return _figures(folder, result.training, night.plan)


# -- elsewhere


def work(model: LocalModel, folder: Path, settings: Settings, progress: Progress | None) -> Json:
    """Train the job in the folder and put the result there: {adapter, steps, files, differs}.
    `differs`: packages whose version is not that of the export. A result that is there already is
    only checked. An interrupted training continues."""
    from reflect.training import loop  # torch

    job, text = read_job(folder)
    plan = _plan(folder, job.plan)
    ours = installed()
    differs = sorted(name for name in job.versions if ours.get(name) != job.versions[name])
    if model.fingerprint != job.base:
        raise AdapterMismatch(
            f"The job in {folder} is for the base {job.model} ({job.base[:12]}), and {model.name} "
            f"is another one ({model.fingerprint[:12]}).",
            "Name the model of the job with --model.",
        )
    if not (folder / RESULT).exists():
        data = _data(folder)
        checkpoints = settings.home_path / "jobs" / hashlib.sha256(text).hexdigest()[:32]
        training = loop.train(model, job.adapter, data, plan, checkpoints, progress)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            model.save_adapter(job.adapter, made)
            for name in WEIGHTS:
                write(folder / name, (Path(made) / name).read_bytes(), overwrite=True, exact=True)
        result = JobResult(
            job=hashlib.sha256(text).hexdigest(),
            files={name: _digest(folder, name) for name in WEIGHTS},
            training=TrainingFigures.model_validate(training),
            versions=ours,
        )
        write(folder / RESULT, result.model_dump_json(indent=1).encode())
        for path in checkpoints.glob("training.*"):
            path.unlink()
    result = _read(folder, RESULT, JobResult)
    read_job(folder, finished=True)
    steps = _figures(folder, result.training, plan)["step"]
    return {"adapter": job.adapter, "steps": steps, "files": result.files, "differs": differs}


# -- the folder


def read_job(folder: Path, *, finished: bool = False) -> tuple[NightJob, bytes]:
    """The job in a folder and the bytes of job.json; `finished`: with a result. UsageError for a
    folder that is no job, has anything else in it, or has a changed file."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "See: reflect night export --help")
    allowed = {JOB, DATA, PINS, RESULT, *WEIGHTS}
    names = set()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name not in allowed:
            raise _refused(folder, f"{clipped(entry.name)!r} is not part of a job")
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise _refused(folder, f"{entry.name} is not a plain file")
        names.add(entry.name)
    missing = [name for name in (JOB, DATA, PINS) if name not in names]
    if missing or (finished and names != allowed):
        what = f"{missing[0]} is missing" if missing else "it has no result yet"
        raise UsageError(f"The job in {folder} is not complete: {what}.", "See: reflect night work")
    job = _read(folder, JOB, NightJob)
    if _digest(folder, DATA) != job.data:
        raise _refused(folder, f"{DATA} has changed since the export")
    if read_bytes(folder / PINS, MOST_BYTES) != pins(job.versions):
        raise _refused(folder, f"{PINS} has changed since the export")
    _plan(folder, job.plan)
    return job, read_bytes(folder / JOB, MOST_BYTES)


def installed() -> dict[str, str]:
    """The versions of PACKAGES here, without those that are not installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def pins(versions: dict[str, str]) -> bytes:
    """The versions as lines for pip, without the local part of a build ("+cpu")."""
    return "".join(f"{name}=={text.split('+')[0]}\n" for name, text in versions.items()).encode()


def _refused(folder: Path, why: str) -> UsageError:  # a NightError would end the night
    return UsageError(f"The job in {folder} is refused: {why}.", AGAIN)


def _digest(folder: Path, name: str) -> str:
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, name: str, kind: type[Model]) -> Model:
    try:
        return kind.model_validate_json(read_bytes(folder / name, MOST_BYTES))
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"])) or "its JSON"
        raise _refused(folder, f"{name} has an invalid value at {clipped(where)}") from e


def _plan(folder: Path, shape: Json) -> Plan:
    try:
        plan = PLAN.validate_python({name: x for name, x in shape.items() if name != "steps"})
    except (ValidationError, TypeError) as e:
        raise _refused(folder, "its plan is not valid") from e
    if plan.shape() != shape or plan.start or any(name == "grpo" for name, _, _ in plan.stages):
        raise _refused(folder, "its plan is none of a job")
    return plan


def _data(folder: Path) -> TrainingData:
    try:
        return TrainingData.of(json.loads(read_bytes(folder / DATA, MOST_BYTES)))
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise _refused(folder, f"{DATA} is not the data of a training") from e


def _figures(folder: Path, training: TrainingFigures, plan: Plan) -> Json:
    """The figures of a training, which are printed and stored."""
    if training.step != plan.steps or set(training.stages) - {x[0] for x in plan.stages}:
        raise _refused(folder, f"{RESULT} is not of the whole training")
    return training.model_dump()
