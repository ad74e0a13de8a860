"""Every hook of kdbench: what a plugin may offer, and what it may listen to.

A plugin is a module (or object) whose functions carry ``@kdbench.hookspecs.hookimpl``. Distributions
register it under the entry-point group ``kdbench``; a local file is named in a suite's ``plugins`` or after
``-p``. All hooks are optional, and take any subset of the arguments listed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kdbench.method import Method
    from kdbench.results import EpochRecord, Failure, TeacherRecord, TeacherResult, TrialResult
    from kdbench.suite.plan import Plan, Trial

hookspec = pluggy.HookspecMarker("kdbench")
hookimpl = pluggy.HookimplMarker("kdbench")


@dataclass(frozen=True)
class MethodSpec:
    """A distillation loss on offer.

    ``target`` is ``package.module:Class``, imported only when needed, so that listing stays fast. A named
    variant is the same class with other settings: ``presets``. ``reference`` overrides the class's ``paper``.
    """

    name: str
    target: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    summary: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """A network on offer.

    ``target`` is ``package.module:function``; called with ``classes`` (int) and ``image_shape``
    ((channels, height, width)) plus ``presets``, it returns a ``kdbench.models.base.TappedModel``.
    """

    name: str
    target: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    summary: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set on offer.

    ``target`` is ``package.module:Class``, a ``kdbench.data.base.Dataset``; its keyword-only constructor
    arguments are the settings of a suite's ``[data]`` table.
    """

    name: str
    target: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    summary: str = ""


@dataclass(frozen=True)
class GoldenSpec:
    """Golden vectors on offer: inputs of losses, with the values and gradients that reference implementations give.

    ``target`` is ``package.module:function``. Called with a ``torch.device``, it yields each case's name and, by name
    (``loss``, and a name for each gradient), pairs of float64 tensors: what the loss gives there, what it should give.
    """

    name: str
    target: str


@dataclass(frozen=True)
class RunInfo:
    """One invocation of ``kdbench run``."""

    invocation: str
    """A name unique to this invocation (UTC time and a random suffix)."""
    output: Path
    """The suite's results folder, ``runs/<suite>``."""
    report: Path
    """The folder of this run's report, ``reports/<suite>`` for a whole suite."""
    tracking_uri: str | None
    """MLflow's store, where one was named on the command line."""
    device: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    chosen: frozenset[str] | None = None
    """Ids of the trials that this invocation is about; None for all."""


@hookspec
def kdbench_methods() -> Sequence[MethodSpec | type[Method]]:  # type: ignore[empty-body]
    """Offer distillation losses. A class itself may be returned; its name is then its ``name`` attribute."""


@hookspec
def kdbench_models() -> Sequence[ModelSpec]:  # type: ignore[empty-body]
    """Offer networks that may be teacher or student."""


@hookspec
def kdbench_datasets() -> Sequence[DatasetSpec]:  # type: ignore[empty-body]
    """Offer data sets."""


@hookspec
def kdbench_golden() -> Sequence[GoldenSpec]:  # type: ignore[empty-body]
    """Offer golden vectors, to which ``kdbench selftest`` holds the losses on a device."""


@hookspec
def kdbench_suite_started(plan: Plan, run: RunInfo) -> None:
    """A run begins; ``plan`` holds all trials, also those done or skipped."""


@hookspec
def kdbench_teacher_started(teacher: TeacherRecord, run: RunInfo) -> None:
    """A teacher begins to be trained; ``teacher`` is the content of its ``teacher.json``."""


@hookspec
def kdbench_teacher_epoch_finished(teacher: TeacherRecord, record: EpochRecord, run: RunInfo) -> None:
    """A teacher in training finished an epoch; ``record`` is its line of ``epochs.jsonl``."""


@hookspec
def kdbench_teacher_finished(teacher: TeacherRecord, result: TeacherResult, run: RunInfo) -> None:
    """A teacher is ready: trained now, or found. ``result`` is its ``result.json``."""


@hookspec
def kdbench_trial_skipped(trial: Trial, reason: str, run: RunInfo) -> None:
    """A method cannot read this pair."""


@hookspec
def kdbench_trial_started(trial: Trial, run: RunInfo) -> None:
    """A trial begins or goes on."""


@hookspec
def kdbench_epoch_finished(trial: Trial, record: EpochRecord, run: RunInfo) -> None:
    """A trial finished an epoch; ``record`` is its line of ``epochs.jsonl``."""


@hookspec
def kdbench_trial_finished(trial: Trial, result: TrialResult, run: RunInfo) -> None:
    """A trial is done or diverged; ``result`` is its ``result.json``."""


@hookspec
def kdbench_trial_failed(trial: Trial, error: Failure, run: RunInfo) -> None:
    """A trial failed; it will be tried again by the next run. ``error`` is its ``error.json``."""


@hookspec
def kdbench_suite_finished(plan: Plan, run: RunInfo, interrupted: bool) -> None:
    """The run ended, and the report stands in ``run.report``."""
