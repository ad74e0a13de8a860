"""All hooks of kdbench: parts that a plugin can add, and events that it can receive.

A plugin is a module (or object) whose functions have the decorator ``@kdbench.hookspecs.hookimpl``. Packages
register it in the entry-point group ``kdbench``; a local file is listed in a suite's ``plugins`` or given with
``-p``. All hooks are optional, and accept any subset of the arguments listed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from kdbench.search import Search as Search

if TYPE_CHECKING:
    from kdbench.method import Method
    from kdbench.results import EpochRecord, Failure, TeacherRecord, TeacherResult, TrialResult
    from kdbench.suite.plan import Plan, Trial

hookspec = pluggy.HookspecMarker("kdbench")
hookimpl = pluggy.HookimplMarker("kdbench")


@dataclass(frozen=True)
class Spec:
    """A part that a plugin adds.

    ``target`` is ``package.module:name``, imported only when it is used, so that listing stays fast. A named variant
    is the same target with other settings: ``presets``. Settings are the target's keyword-only arguments, checked
    against their annotations. ``reference`` is the paper, ``summary`` replaces the first line of the docstring.
    """

    name: str
    target: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    summary: str = ""


@dataclass(frozen=True)
class MethodSpec(Spec):
    """A distillation loss: ``target`` is a ``kdbench.method.Method`` class. ``reference`` overrides its ``paper``."""

    search: Mapping[str, Search] = field(default_factory=dict)
    """The values that ``kdbench tune`` tries, by setting; by default the class's ``search``. They do not belong to the
    identity of a trial: a range may change, and results remain valid."""


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A network: ``target(classes=int, image_shape=(channels, height, width), ...)`` returns a
    ``kdbench.models.base.TappedModel``.
    """


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """A data set: ``target`` is a ``kdbench.data.base.Dataset`` class, whose settings are keys of ``[data]``."""

    reading: Sequence[str] = ()
    """Settings that do not change the images, only how they are read; they are not part of the data's identity."""


@dataclass(frozen=True)
class OptimizerSpec(Spec):
    """An optimiser: ``target(groups, *, lr, weight_decay, ...)`` returns a ``torch.optim.Optimizer``.

    ``groups`` are torch's parameter groups, each with its ``weight_decay``; ``lr`` is the rate of the first step.
    """

    decays_all: bool = False
    """Whether biases, normalisations and parameters that a network exempts also decay, as usual for SGD."""
    capturable: bool = False
    """Whether its step reads ``lr`` from a scalar tensor on the device, and waits for nothing: it gets such a tensor in
    its parameter groups, and a CUDA graph can record its step. Otherwise it gets a number before each step.
    """


@dataclass(frozen=True)
class ScheduleSpec(Spec):
    """A learning-rate schedule: ``target(progress, *, epochs, warmup_epochs, lr, ...)`` returns the rate.

    ``progress`` counts epochs of the main stage, with a fraction within an epoch. kdbench computes the warm-up.
    """


@dataclass(frozen=True)
class AugmentationSpec(Spec):
    """An augmentation of whole batches on their device; see ``acts_on`` for its arguments and result."""

    acts_on: Literal["pixels", "size", "blanks", "mixes"] = "pixels"
    """``pixels``: ``target(images, draws, ...)`` maps uint8 images (B, C, H, W) to images of this shape. ``size``: the
    same, but it sets the size of the images and is applied first. ``blanks``: the same for normalised float32 images.
    ``mixes``: ``target(images, labels, draws, ...)`` returns a ``kdbench.data.augment.Mixed``.

    ``draws`` is a ``kdbench.data.augment.Draws`` with the random generators; it must use no others.
    """
    lengths: Sequence[str] = ()
    """Settings that are lengths in pixels: at most the side of the images."""


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric: ``target(logits, labels)``, of shapes (N, C) and (N,), returns a scalar tensor.

    With ``needs_teacher``, it is ``target(logits, labels, teacher_logits)``. It returns None if the metric is not
    defined, such as top-5 with five classes or fewer.
    """

    heading: str = ""
    """Heading of a table's column, without the unit; by default the name."""
    unit: str = ""
    digits: int = 3
    """Number of digits after the decimal point."""
    higher_is_better: bool | None = None
    """None if neither is better."""
    is_share: bool = False
    """Whether ``target`` returns a share of images. It is stored in percent, rounded to a count of images: in float32
    equal counts could differ."""
    needs_teacher: bool = False
    low: float = float("-inf")
    """Smallest possible value; a file with a smaller one is damaged."""
    high: float = float("inf")

    @property
    def column(self) -> str:
        """The heading with its unit."""
        heading = self.heading or self.name
        return f"{heading}, {self.unit}" if self.unit else heading


@dataclass(frozen=True)
class SectionSpec(Spec):
    """A section of the report: ``target(study)`` returns HTML (a ``markupsafe.Markup``), or None to be left out.

    ``study`` is a ``kdbench.report.study.Study``.
    """

    title: str = ""
    after: str = ""
    """The section before it; by default the last."""


@dataclass(frozen=True)
class FigureSpec(Spec):
    """A figure of the report: ``target(study)`` returns a matplotlib ``Figure`` and its caption, or None."""

    section: str = ""
    """The section that contains it."""


@dataclass(frozen=True)
class GoldenSpec:
    """Golden vectors: inputs of losses, with the values and gradients of reference implementations.

    ``target`` is ``package.module:function``. Called with a ``torch.device``, it yields each case's name and, by name
    (``loss``, and a name for each gradient), pairs of float64 tensors: computed on the device, and expected.
    """

    name: str
    target: str


@dataclass(frozen=True)
class ExecutorSpec(Spec):
    """Starts the workers of a run: ``target(**settings)`` returns a ``kdbench.run.executor.Executor``."""

    per_cohort: bool = False
    """Whether it gets a job for each cohort, instead of one for each worker."""


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
    """MLflow's store, if one was given on the command line."""
    device: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    chosen: frozenset[str] | None = None
    """Ids of the selected trials of this invocation; None for all."""
    worker: int = 0
    """The number of the process that trains, from 1; 0 if the run has only one."""


@hookspec
def kdbench_methods() -> Sequence[MethodSpec | type[Method]]:  # type: ignore[empty-body]
    """Add distillation losses. A class may be returned directly; its name is then its ``name`` attribute."""


@hookspec
def kdbench_models() -> Sequence[ModelSpec]:  # type: ignore[empty-body]
    """Add networks for teachers and students."""


@hookspec
def kdbench_datasets() -> Sequence[DatasetSpec]:  # type: ignore[empty-body]
    """Add data sets."""


@hookspec
def kdbench_optimizers() -> Sequence[OptimizerSpec]:  # type: ignore[empty-body]
    """Add optimisers, as values of ``recipe.optimizer``."""


@hookspec
def kdbench_schedules() -> Sequence[ScheduleSpec]:  # type: ignore[empty-body]
    """Add learning-rate schedules, as values of ``recipe.schedule``."""


@hookspec
def kdbench_augmentations() -> Sequence[AugmentationSpec]:  # type: ignore[empty-body]
    """Add augmentations, as entries of ``recipe.augmentation``."""


@hookspec
def kdbench_metrics() -> Sequence[MetricSpec]:  # type: ignore[empty-body]
    """Add metrics, as entries of a suite's ``metrics``."""


@hookspec
def kdbench_report_sections() -> Sequence[SectionSpec]:  # type: ignore[empty-body]
    """Add sections of the report, as entries of a suite's ``sections``."""


@hookspec
def kdbench_figures() -> Sequence[FigureSpec]:  # type: ignore[empty-body]
    """Add figures of the report, as entries of a suite's ``figures``."""


@hookspec
def kdbench_executors() -> Sequence[ExecutorSpec]:  # type: ignore[empty-body]
    """Add executors, for ``kdbench run --executor NAME``."""


@hookspec
def kdbench_golden() -> Sequence[GoldenSpec]:  # type: ignore[empty-body]
    """Add golden vectors, with which ``kdbench selftest`` checks the losses on a device."""


@hookspec
def kdbench_suite_started(plan: Plan, run: RunInfo) -> None:
    """A run begins; ``plan`` contains all trials, including finished and skipped ones."""


@hookspec
def kdbench_teacher_started(teacher: TeacherRecord, run: RunInfo) -> None:
    """The training of a teacher begins; ``teacher`` is the content of its ``teacher.json``."""


@hookspec
def kdbench_teacher_epoch_finished(teacher: TeacherRecord, record: EpochRecord, run: RunInfo) -> None:
    """A teacher in training finished an epoch; ``record`` is its line of ``epochs.jsonl``."""


@hookspec
def kdbench_teacher_finished(teacher: TeacherRecord, result: TeacherResult, run: RunInfo) -> None:
    """A teacher is ready: newly trained, or loaded. ``result`` is its ``result.json``."""


@hookspec
def kdbench_trial_skipped(trial: Trial, reason: str, run: RunInfo) -> None:
    """A trial is skipped: its method cannot be used with this pair."""


@hookspec
def kdbench_trial_started(trial: Trial, run: RunInfo) -> None:
    """A trial begins or resumes."""


@hookspec
def kdbench_epoch_finished(trial: Trial, record: EpochRecord, run: RunInfo) -> None:
    """A trial finished an epoch; ``record`` is its line of ``epochs.jsonl``."""


@hookspec
def kdbench_trial_finished(trial: Trial, result: TrialResult, run: RunInfo) -> None:
    """A trial finished or diverged; ``result`` is its ``result.json``."""


@hookspec
def kdbench_trial_failed(trial: Trial, error: Failure, run: RunInfo) -> None:
    """A trial failed; the next run will try it again. ``error`` is its ``error.json``."""


@hookspec
def kdbench_suite_finished(plan: Plan, run: RunInfo, interrupted: bool) -> None:
    """The run ended; its report is in ``run.report``."""


@dataclass(frozen=True)
class Kind:
    """One kind of part that plugins add."""

    name: str
    """Its name in messages."""
    plural: str
    """Its name in ``kdbench list``, and as an attribute of a ``Registry``."""
    spec: type[Spec]
    hook: str


KINDS = (
    Kind("method", "methods", MethodSpec, "kdbench_methods"),
    Kind("model", "models", ModelSpec, "kdbench_models"),
    Kind("data set", "datasets", DatasetSpec, "kdbench_datasets"),
    Kind("optimizer", "optimizers", OptimizerSpec, "kdbench_optimizers"),
    Kind("schedule", "schedules", ScheduleSpec, "kdbench_schedules"),
    Kind("augmentation", "augmentations", AugmentationSpec, "kdbench_augmentations"),
    Kind("metric", "metrics", MetricSpec, "kdbench_metrics"),
    Kind("section", "sections", SectionSpec, "kdbench_report_sections"),
    Kind("figure", "figures", FigureSpec, "kdbench_figures"),
    Kind("executor", "executors", ExecutorSpec, "kdbench_executors"),
)
"""All kinds. A new kind needs a spec, a hook and a row here."""
