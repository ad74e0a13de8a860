"""The record of a plan: what reports read of a suite without loading its file or its plugins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Field

from kdbench.hookspecs import MetricSpec
from kdbench.metrics import METRICS
from kdbench.results.record import AnyStatus, Count, FileName, Record, TrialRecord
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL, Plan, Trial, shown_teacher


class PlannedTrial(Record):
    """A row of ``plan.json``'s ``trials``."""

    id: FileName
    teacher: str
    student: str
    method: str
    label: str
    seed: Count
    status: AnyStatus = Status.PENDING
    reason: str = ""

    @classmethod
    def of(cls, trial: Trial | TrialRecord) -> PlannedTrial:
        """The row of a planned trial, or of one that is found in a folder."""
        row = trial.describe() if isinstance(trial, Trial) else trial.model_dump(include=set(cls.model_fields))
        return cls.model_validate(row)

    @property
    def pair(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher}:{self.student}"


class PlannedTeacher(Record):
    """A row of ``plan.json``'s ``teachers``."""

    name: str
    key: FileName
    model: str = ""
    seed: Count | None = None
    """None in plans of earlier versions."""


class ShownMetric(Record):
    """A row of ``plan.json``'s ``metrics``: what a table needs of a metric that the suite adds, without its plugin."""

    name: str
    heading: str = ""
    unit: str = ""
    digits: Annotated[int, Ge(0), Le(12)] = 3
    higher_is_better: bool | None = None

    @classmethod
    def of(cls, spec: MetricSpec) -> ShownMetric:
        """The row of a metric on offer."""
        row = {name: getattr(spec, name) for name in cls.model_fields}
        return cls(**row | {"heading": spec.heading or spec.name})

    @property
    def spec(self) -> MetricSpec:
        """The metric, as far as a table needs it."""
        return MetricSpec(target="", **dict(self))


class PlanRecord(Record):
    """``plan.json``: what a report reads of a plan."""

    protocol: int
    suite: dict[str, Any] = Field(default_factory=dict)
    """The suite's tables."""
    path: str | None = ""
    """Of the suite's file; None for a suite that was given from Python."""
    overrides: Annotated[tuple[str, ...], Field(strict=False)] = ()
    plugins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Files of the command line."""
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Methods that were given from Python."""
    metrics: Annotated[tuple[ShownMetric, ...], Field(strict=False)] = ()
    """Those that the suite adds to the built-in ones."""
    trials: Annotated[tuple[PlannedTrial, ...], Field(strict=False)] = ()
    teachers: Annotated[tuple[PlannedTeacher, ...], Field(strict=False)] = ()
    report: str | None = None
    """The name of the report's folder."""
    environment: dict[str, Any] = Field(default_factory=dict)
    updated: str = ""

    def shown_teacher(self, teacher: PlannedTeacher) -> str:
        """A teacher for people: its name, with its seed if there are several of this name."""
        several = sum(other.name == teacher.name for other in self.teachers) > 1
        return shown_teacher(teacher.name, teacher.seed if several else None)

    @property
    def shared_teachers(self) -> tuple[str, ...]:
        """The names of which one network teaches the students of several seeds.

        What is said about the students of such a teacher holds for this network only, not for others of its kind.
        """
        networks = Counter(teacher.name for teacher in self.teachers)
        seeds: dict[str, set[int]] = {}
        for trial in self.trials:
            seeds.setdefault(trial.teacher, set()).add(trial.seed)
        return tuple(name for name, count in networks.items() if count == 1 and len(seeds.get(name, ())) > 1)

    @classmethod
    def of(
        cls,
        plan: Plan,
        path: str | None,
        overrides: Sequence[str] = (),
        plugins: Sequence[str] = (),
        classes: Sequence[str] = (),
        metrics: Sequence[MetricSpec] = (),
    ) -> PlanRecord:
        """The record of a plan."""
        return cls(
            protocol=PROTOCOL,
            suite=plan.suite.model_dump(mode="json"),
            path=path,
            overrides=tuple(overrides),
            plugins=tuple(plugins),
            classes=tuple(classes),
            metrics=tuple(map(ShownMetric.of, metrics)),
            trials=tuple(map(PlannedTrial.of, plan.trials)),
            teachers=tuple(PlannedTeacher(name=t.name, key=t.key, model=t.model, seed=t.seed) for t in plan.teachers),
        )


NO_PLAN = PlanRecord(protocol=PROTOCOL)
"""Used by reports of a folder without a plan."""


def taken_names() -> frozenset[str]:
    """What no further metric may be called: the names of records' fields, and of columns that join two of them."""
    fields: set[str] = set()
    waiting: list[type[Record]] = [Record]
    while waiting:
        kind = waiting.pop()
        fields |= set(kind.model_fields)
        waiting += kind.__subclasses__()
    return frozenset(fields | {*METRICS, *_JOINED})


_JOINED = (
    "pair", "validation_top1", "best_on_test_top1", "best_on_test_epoch", "teacher_top1", "teacher_sha256",
    "student_sha256", "plugin_version", "data_fingerprint",
)  # fmt: skip
