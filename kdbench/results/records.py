"""What the records of a results folder look like. A record that does not is damaged, whatever its checksum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("must name a time zone")
    return value


def _name(value: str) -> str:
    """One that stays below its folder."""
    if not value or value in {".", ".."} or "/" in value or "\0" in value:
        raise ValueError("must be a name without '/'")
    return value


def _share(value: float) -> float:
    if not math.isnan(value) and not 0 <= value <= 1.001:
        raise ValueError("must be from 0 to 1")
    return value


Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Percent = Annotated[float, Ge(0), Le(100)]
Seconds = Annotated[float, Ge(0), Le(1e9)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Moment = Annotated[str, AfterValidator(_moment)]
FileName = Annotated[str, AfterValidator(_name)]
Share = Annotated[float, AfterValidator(_share)]


class _Record(BaseModel):
    """Types are strict (1 is a float, "1" is none); further keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class Stamp(_Record):
    """A file that belongs to a result: SHA-256, size in bytes, time of the last change in ns since 1970."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Count
    mtime_ns: int


class Cost(_Record):
    """``cost`` of a result."""

    seconds: Seconds
    teacher_seconds: Seconds
    extra_epochs: Count
    seconds_per_step: Seconds | None = None
    images_per_second: Annotated[float, Ge(0), Le(1e12)] | None = None
    peak_memory_bytes: Count | None = None
    student_parameters: Count = 0
    trained_parameters: Count = 0
    adapter_parameters: Count = 0


class Learnt(_Record):
    """``teacher`` of a result."""

    key: str
    sha256: str
    top1: Percent
    seconds: Seconds


class Data(_Record):
    """``data`` of a result."""

    name: str
    fingerprint: str
    corrupt: Count | None = None
    classes: Count = 0
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    mean: list[Finite] = []
    std: list[Finite] = []
    n_train: Count = 0
    n_test: Count = 0


class Environment(_Record):
    """``environment`` of a result."""

    device: str


class Best(_Record):
    """``best_on_test`` of a result."""

    epoch: Count
    top1: Percent


class Result(_Record):
    """``result.json``."""

    id: FileName
    status: Literal["done", "diverged"]
    epoch: Count
    stage: str = "main"
    selection: str = "last"
    top1: Percent | None = None
    top5: Percent | None = None
    agreement: Percent | None = None
    validation_top1: Percent | None = None
    nll: Annotated[float, Ge(-1e-3)] | None = None
    ece: Share | None = None
    kl_to_teacher: float | None = None
    best_on_test: Best | None = None
    teacher: Learnt | None = None
    sha256: str | None = None
    cost: Cost
    data: Data
    environment: Environment
    started: Moment | None = None
    finished: Moment
    files: dict[FileName, Stamp]

    @model_validator(mode="after")
    def _is_measured(self) -> Result:
        if self.status == "done" and self.top1 is None:
            raise ValueError("top1: is missing")
        return self


class Epoch(_Record):
    """A line of ``epochs.jsonl``. A loss that diverged is NaN or infinite, and so is what was measured after it."""

    epoch: Annotated[int, Ge(1), Le(10**9)]
    stage: str
    train_loss: float
    seconds: Seconds
    lr: float = 0.0
    terms: dict[str, float] = {}
    top1: Percent | None = None
    top5: Percent | None = None
    agreement: Percent | None = None
    validation_top1: Percent | None = None
    nll: float | None = None
    ece: Share | None = None
    kl_to_teacher: float | None = None


class Trial(_Record):
    """``trial.json``."""

    id: FileName
    teacher: str
    student: str
    method: str
    label: str
    seed: Count
    suite: str = ""
    teacher_key: str = ""
    teacher_model: str = ""
    fingerprint: str = ""
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    plugin: dict[str, str] = {}


class PlannedTrial(_Record):
    """A row of ``plan.json``'s ``trials``."""

    id: FileName
    teacher: str
    student: str
    method: str
    label: str
    seed: Count
    status: str = "pending"
    reason: str = ""


class PlannedTeacher(_Record):
    """A row of ``plan.json``'s ``teachers``."""

    name: str
    key: FileName


class Plan(_Record):
    """``plan.json``."""

    protocol: int
    suite: dict[str, Any] = {}
    path: str | None = ""
    """None for a suite that was given from Python."""
    trials: list[PlannedTrial] = []
    teachers: list[PlannedTeacher] = []


def problem(kind: type[_Record], content: Mapping[str, Any]) -> str:
    """The first thing wrong with a record, as ``top1: Input should be less than or equal to 100``; else empty.

    >>> problem(Epoch, {"epoch": 1, "stage": "main", "train_loss": 0.5, "seconds": -1.0})
    'seconds: Input should be greater than or equal to 0'
    """
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = str(first["msg"]).removeprefix("Value error, ")
        return f"{place}: {what}" if place else what
    return ""
