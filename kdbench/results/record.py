"""The records of a results folder: frozen, typed, and checked when they are made and when they are read.

Each file names the version of its format. Files without one are of format 1, in which metrics were not grouped by
split; they are read as well. Those of a later format are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self, TypeVar

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdbench.errors import ResultsError
from kdbench.metrics import HEADLINE, METRICS, problems
from kdbench.status import FINISHED, Status
from kdbench.suite.plan import PROTOCOL, TeacherPlan, Trial, content_hash, part_sources, training_hash, trial_id

FORMAT = 2
MAIN = "main"
"""The stage in which the student is trained with its method, and after which it is evaluated."""


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("must name a time zone")
    return value


def _name(value: str) -> str:
    """One that stays below its folder."""
    if not value or value in {".", ".."} or "/" in value or "\0" in value:
        raise ValueError("must be a name without '/'")
    return value


def _possible(values: dict[str, float]) -> dict[str, float]:
    for problem in problems(values):
        raise ValueError(problem)
    return values


R = TypeVar("R", bound="Record")
Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Percent = Annotated[float, Ge(0), Le(100)]
Seconds = Annotated[float, Ge(0), Le(1e9)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Moment = Annotated[str, AfterValidator(_moment)]
"""UTC, ISO 8601."""
FileName = Annotated[str, AfterValidator(_name)]
Metrics = Annotated[dict[str, float], AfterValidator(_possible)]
"""Values by metric, of one split (:data:`kdbench.metrics.METRICS`)."""
AnyStatus = Annotated[Status, Field(strict=False)]


class Record(BaseModel):
    """Base of all records. Types are strict (1 is a float, "1" is none), and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @classmethod
    def from_format_1(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """The same content in the current format, without unknown keys."""
        return {key: value for key, value in content.items() if key in cls.model_fields}

    def to_json(self) -> dict[str, Any]:
        """What a file holds: the format's version, and what was given when the record was made."""
        return {"format": FORMAT, **self.model_dump(exclude_unset=True)}


class Stamp(Record):
    """A file that belongs to a result."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Count
    """Bytes."""
    mtime_ns: int
    """The last change, in nanoseconds since 1970."""


class Cost(Record):
    """What a training took."""

    seconds: Seconds
    """Of the student's own steps."""
    teacher_seconds: Seconds
    """Its share of the teacher's passes."""
    extra_epochs: Count
    """In stages before the main one."""
    seconds_per_step: Seconds | None = None
    images_per_second: Annotated[float, Ge(0), Le(1e12)] | None = None
    peak_memory_bytes: Count | None = None
    student_parameters: Count = 0
    trained_parameters: Count = 0
    adapter_parameters: Count = 0


class TeacherUsed(Record):
    """The student's teacher."""

    key: str
    sha256: str
    """Of its weights."""
    top1: Percent
    seconds: Seconds
    """That its training took."""
    seed: Count | None = None
    """Of its training; None in results of earlier versions, which did not record it."""


class DataUsed(Record):
    """The images that a training saw."""

    name: str
    fingerprint: str
    corrupt: Count | None = None
    """Images that could not be decoded."""
    classes: Count = 0
    image_shape: Annotated[tuple[Count, Count, Count], Field(strict=False)] | None = None
    """Channels, height, width."""
    mean: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    std: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    n_train: Count = 0
    n_test: Count = 0


class Environment(Record):
    """Where a result was computed."""

    device: str
    precision: str | None = None
    graphs: str | None = None
    """``auto`` if steps were replayed from CUDA graphs; None if all were executed."""
    deterministic: bool | None = None
    """Whether only deterministic algorithms were used; None on a CPU."""
    kdbench: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    python: str | None = None
    platform: str | None = None
    git_commit: str | None = None


class Best(Record):
    """The epoch that is best on the test set. Never a headline."""

    epoch: Count
    top1: Percent


class _Measured(Record):
    """What holds metrics."""

    # A factory, because pydantic copies a default in depth for each of a suite's many epochs.
    metrics: Metrics = Field(default_factory=dict)
    """On the test set."""
    validation: Metrics = Field(default_factory=dict)
    """On the validation split, where the recipe selects by it."""
    unmeasured: dict[str, str] = Field(default_factory=dict)
    """Why a metric of a plugin has no value, by its name."""

    _GROUPED: ClassVar = {name: ("metrics", name) for name in METRICS} | {"validation_top1": ("validation", "top1")}

    @classmethod
    def from_format_1(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics by split; null was a metric without a value."""
        rest = super().from_format_1(content)
        for key, (split, name) in cls._GROUPED.items():
            if content.get(key) is not None:
                rest.setdefault(split, {})[name] = content[key]
        return rest

    @property
    def top1(self) -> float | None:
        """The test accuracy in percent."""
        return self.metrics.get("top1")

    @property
    def validation_top1(self) -> float | None:
        """The accuracy on the validation split in percent."""
        return self.validation.get("top1")


class EpochRecord(_Measured):
    """A line of ``epochs.jsonl``. A loss that diverged is NaN or infinite, and so is what was measured after it."""

    epoch: Annotated[int, Ge(1), Le(10**9)]
    """Counted from 1 within the stage."""
    stage: str
    train_loss: float
    seconds: Seconds
    lr: float = 0.0
    terms: dict[str, float] = Field(default_factory=dict)

    @property
    def in_main(self) -> bool:
        """Whether the stage is the main one."""
        return self.stage == MAIN

    @property
    def diverged(self) -> bool:
        """Whether the loss became NaN or infinite, in training or on the test set."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.metrics.get("nll", 0.0)))


class _Outcome(_Measured):
    """``result.json``: it exists once a training is done or diverged. Metrics are those of ``epoch``."""

    id: FileName
    status: AnyStatus
    epoch: Count
    stage: str = MAIN
    selection: str = "last"
    """How ``epoch`` was chosen, as in the recipe."""
    executed: str | None = None
    """With CUDA graphs: why the steps of the last stage were executed, not replayed."""
    best_on_test: Best | None = None
    cost: Cost
    data: DataUsed
    environment: Environment
    started: Moment | None = None
    finished: Moment
    files: dict[FileName, Stamp] = {}
    """Set by the folder that the result is written to."""

    @model_validator(mode="after")
    def _is_an_outcome(self) -> Self:
        if self.status not in FINISHED:
            raise ValueError(f"status: must be done or diverged, got {self.status}")
        if self.done and not math.isfinite(self.metrics.get(HEADLINE, math.nan)):
            raise ValueError(f"metrics: {HEADLINE} is missing")
        return self

    @property
    def done(self) -> bool:
        """Whether there is a trained network; else it diverged."""
        return self.status is Status.DONE


class TrialResult(_Outcome):
    """``result.json`` of a trial."""

    teacher: TeacherUsed | None = None
    adopted_from: FileName | None = None
    """The trial that was trained, if this one differs from it only in a teacher that its training does not read.

    Weights and costs are those of that training; metrics that compare with the teacher were measured with the own one.
    """

    @property
    def trained_as(self) -> str:
        """The id of the trial whose training gave this result; the cost of each is counted once."""
        return self.adopted_from or self.id


class TeacherResult(_Outcome):
    """``result.json`` of a teacher."""

    sha256: str | None = None
    """Of its weights; None until they were read back."""


class Failure(Record):
    """``error.json``: why the last attempt at a trial failed."""

    id: str
    stage: str
    epoch: Count
    """0 is before the first."""
    type: str
    """Name of the exception's class."""
    message: str
    why: str = ""
    """A readable explanation: the message, and where in a plugin it was raised."""
    traceback: str = ""
    """For debugging."""
    when: Moment | None = None

    @property
    def reason(self) -> str:
        """The best available reason."""
        return self.why or f"{self.type}: {self.message}"


class PluginUsed(Record):
    """The distribution that a method came from."""

    distribution: str = ""
    version: str = ""


class TrialRecord(Record):
    """``trial.json``: what identifies a trial, and what the suite called it when it was trained."""

    id: FileName
    teacher: str
    """The suite's name for it."""
    student: str
    method: str
    label: str
    seed: Count
    protocol: int = 0
    suite: str = ""
    teacher_key: str = ""
    teacher_model: str = ""
    student_source: str = ""
    fingerprint: str = ""
    """Of the method's source."""
    part_sources: dict[str, str] = {}
    """Fingerprints of third parties' parts of the recipe."""
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    plugin: PluginUsed = PluginUsed()

    @classmethod
    def of(cls, trial: Trial) -> TrialRecord:
        """The record of a planned trial."""
        origin = PluginUsed(distribution=trial.origin.distribution, version=trial.origin.version)
        return cls.model_validate(
            plain(trial.identity)
            | {
                "id": trial.id,
                "suite": trial.suite,
                "teacher": trial.teacher.name,
                "teacher_key": trial.teacher.key,
                "teacher_model": trial.teacher.model,
                "label": trial.label,
                "plugin": origin,
            }
        )

    @property
    def pair(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher}:{self.student}"

    @property
    def identity(self) -> dict[str, Any]:
        """:attr:`Trial.identity <kdbench.suite.plan.Trial.identity>`, as the content gives it."""
        names = {"id", "suite", "teacher", "teacher_key", "teacher_model", "label", "plugin"}
        identity = self.model_dump(exclude={*names, "part_sources"})
        return identity | {"teacher": self.teacher_key} | part_sources(self.part_sources)

    @property
    def computed_id(self) -> str:
        """The id that the content gives. It differs from :attr:`id` if the content was changed."""
        return trial_id(self.identity, self.teacher_model)

    @property
    def training(self) -> str:
        """:attr:`Trial.training <kdbench.suite.plan.Trial.training>`, if it is untaught; a record does not say so."""
        return training_hash(self.identity)


class TeacherRecord(Record):
    """``teacher.json``: how a teacher came about."""

    key: FileName
    name: str
    model: str
    data: dict[str, Any] = {}
    recipe: dict[str, Any] | None = None
    """None for given weights."""
    epochs: Count = 0
    weights: str | None = None
    seed: Count = 0
    protocol: int = 0
    """0 in a record that has not all that identifies the teacher; kdbench wrote such records before 0.1.0."""
    weights_sha256: str | None = None
    """Of the file of given weights."""
    model_source: str = ""
    """Fingerprint of the code of a model that a plugin brings."""
    part_sources: dict[str, str] = {}
    """Fingerprints of third parties' parts of the recipe."""

    @classmethod
    def of(cls, plan: TeacherPlan) -> TeacherRecord:
        """The record of a planned teacher."""
        return cls(
            key=plan.key,
            name=plan.name,
            model=plan.model,
            data=plain(dict(plan.data)),
            recipe=plan.recipe.model_dump(mode="json") if plan.recipe else None,
            epochs=plan.recipe.epochs if plan.recipe else 0,
            weights=plan.weights,
            seed=plan.seed,
            protocol=PROTOCOL,
            weights_sha256=plan.weights_sha256,
            model_source=plan.model_source,
            part_sources=dict(plan.part_sources),
        )

    @property
    def computed_key(self) -> str:
        """The key that the content gives. It differs from :attr:`key` if the content was changed.

        It may also differ in a record of protocol 0, for a teacher with given weights or parts of plugins.
        """
        identity = self.model_dump(include={"model", "data", "recipe", "model_source", "seed"})
        identity |= {"protocol": self.protocol or PROTOCOL, "weights": self.weights_sha256 or self.weights}
        return content_hash(identity | part_sources(self.part_sources))

    @property
    def selection(self) -> str:
        """Which epoch is its result, as in a recipe."""
        return str((self.recipe or {}).get("selection", "last"))


def parse(kind: type[R], content: Mapping[str, Any], path: str = "") -> tuple[R | None, str]:
    """A record from a file's content, or the first thing wrong with it, as ``top1: Input should be ...``.

    Raises:
        ResultsError: a later kdbench wrote it: the file at ``path`` may be sound.
    """
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise ResultsError(f"{path}: has format {version}; this kdbench reads formats up to {FORMAT}; update kdbench")
    try:
        known = {key: value for key, value in content.items() if key != "format"}
        return kind.model_validate(kind.from_format_1(known) if version == 1 else known), ""
    except ValidationError as error:
        return None, first_problem(error)


def first_problem(error: ValidationError) -> str:
    """The first thing wrong with a record, in a line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    what = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {what}" if place else what


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists, and keys text."""
    copied: dict[str, Any] = json.loads(json.dumps(content))
    return copied
