"""A method under test, run through its stages as in the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdbench.discovery import Offer
from kdbench.discovery import settings as settings_of
from kdbench.engine.outputs import detached
from kdbench.engine.stages import STUDENT, Stages, through
from kdbench.errors import KdbenchError, PluginError
from kdbench.hookspecs import MethodSpec
from kdbench.isolation import seed_globally
from kdbench.method import Method, Output, Terms, set_up
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.testing.bench import Bench, Inputs, output


class CheckFailed(KdbenchError):  # noqa: N818 - an outcome
    """The method fails a check; the message is the reason."""


class CheckSkipped(KdbenchError):  # noqa: N818 - an outcome
    """A check does not apply to the method; the message is the reason."""


@dataclass(frozen=True)
class Examinee:
    """A registered method, with settings for the checks."""

    offer: Offer[MethodSpec]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, offer: Offer[MethodSpec], given: Mapping[str, Any]) -> Examinee:
        """``given`` are settings that differ from the method's defaults.

        Raises:
            PluginError: a setting is unknown, out of range, or required and not given.
        """
        settings, problems = settings_of.resolve(offer.load(), {**offer.spec.presets, **given})
        if problems:
            raise PluginError("\n".join(f"{offer.spec.name}: {key}: {what}" for key, what in problems))
        return cls(offer, settings)

    @property
    def name(self) -> str:
        """Its registered name."""
        return self.offer.spec.name

    @property
    def method_class(self) -> type[Method]:
        """Its class."""
        return cast("type[Method]", self.offer.load())

    def build(self) -> Method:
        """A new instance, before ``setup``."""
        return self.method_class(**self.settings)


@dataclass(frozen=True)
class Step:
    """The result of a method for one step of a stage."""

    stage: str
    terms: Terms
    student: Output | None
    teacher: Output | None
    trained: Mapping[str, nn.Parameter]
    """The method's parameters that this stage trains."""
    trains_student: bool

    @property
    def loss(self) -> Tensor:
        """The weighted sum of the terms.

        Raises:
            CheckFailed: the terms are not named scalars with scalar weights.
        """
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise CheckFailed(f"{self.stage}: must return named terms, got {type(self.terms).__name__}")
        parts = [self._part(name, term) for name, term in self.terms.items()]
        return torch.stack(parts).sum()

    def _part(self, name: Any, term: Any) -> Tensor:
        where = f"{self.stage}: term '{name}'"
        if not isinstance(name, str) or not name:
            raise CheckFailed(f"{self.stage}: a term's name must be a string, got {name!r}")
        if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[0], Tensor)):
            raise CheckFailed(f"{where} must be a pair (value, weight), got {type(term).__name__}")
        value, weight = term
        if value.ndim:
            raise CheckFailed(f"{where} must be a scalar, got shape {tuple(value.shape)}")
        if isinstance(weight, Tensor) and weight.ndim:
            raise CheckFailed(f"{where}: its weight must be a scalar, got shape {tuple(weight.shape)}")
        if not isinstance(weight, Tensor | int | float):
            raise CheckFailed(f"{where}: its weight must be a number, got {type(weight).__name__}")
        product: Tensor = value * weight
        return product

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that may have a gradient: the student's taps that are read, and trained parameters."""
        taps = {"logits": self.student.logits, **self.student.taps} if self.student is not None else {}
        return {**{f"student's {name}": tap for name, tap in taps.items()}, **self.trained}

    def gradients(self, leaves: Mapping[str, Tensor] | None = None) -> dict[str, Tensor | None]:
        """The loss's gradient by name of leaf; None if the loss does not depend on it."""
        leaves = self.leaves if leaves is None else leaves
        loss = self.loss
        if not loss.requires_grad:
            raise CheckFailed(f"{self.stage}: the loss does not depend on anything that is trained")
        found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        return dict(zip(leaves, found, strict=True))


class Subject:
    """A method on one pair of networks."""

    def __init__(self, examinee: Examinee, bench: Bench) -> None:
        self.examinee = examinee
        self.bench = bench

    @property
    def place(self) -> str:
        """The pair: ``teacher:student``."""
        return self.bench.pair

    def method(self, seed: int = 0) -> Method:
        """A new instance after ``setup``, with adapters initialised by ``seed``."""
        # Not torch.manual_seed, which seeds every kind of device and formats the stack for each.
        torch.default_generator.manual_seed(seed)
        method = self.examinee.build()
        set_up(method, self.bench.student, self.bench.teacher, self.bench.data)
        return method

    def steps(self, inputs: Inputs, method: Method | None = None, *, with_teacher: bool = True) -> Iterator[Step]:
        """One step of each stage, the main one last; between them ``after_stage`` is called."""
        stages = self._stages(self.method() if method is None else method)
        for _ in through(stages):
            yield _step(stages, inputs, with_teacher)

    def prepared(self, seed: int = 0) -> Method:
        """A new instance in the main stage: earlier stages are entered and left, but not trained."""
        method = self.method(seed)
        for _ in through(self._stages(method)):
            pass
        return method

    def main_step(self, method: Method, inputs: Inputs) -> Step:
        """A step of the main stage only."""
        return _step(self._stages(method, main_only=True), inputs)

    def _stages(self, method: Method, *, main_only: bool = False) -> Stages:
        # Stages use only the learning rate of the recipe.
        return Stages(method, Parts.of(Recipe(epochs=1)), self.bench.student, self.bench.teacher, main_only=main_only)

    def main_outputs(self, method: Method, inputs: Inputs) -> tuple[Output, Output]:
        """The outputs of student and teacher for the main stage, ``after_step`` and ``predict``."""
        student = method.reads if method.student_reads is None else method.student_reads
        teacher = method.reads if method.teacher_reads is None else method.teacher_reads
        return (
            output(inputs.student, self.bench.student.select(student)),
            output(inputs.teacher, self.bench.teacher.select(teacher)),
        )

    def after_step(self, method: Method, inputs: Inputs) -> None:
        """Call the method's ``after_step`` as the engine does."""
        student, teacher = self.main_outputs(method, inputs)
        with torch.no_grad():
            method.after_step(detached(student), detached(teacher), inputs.batch)


def _step(stages: Stages, inputs: Inputs, with_teacher: bool = True) -> Step:
    """A step of the current stage of ``stages``, without the optimiser."""
    phase = stages.phase
    stages.set_modes()
    student = output(inputs.student, phase.student_reads) if phase.uses_student else None
    teacher = output(inputs.teacher, phase.teacher_reads) if with_teacher else None
    # As in the engine, which seeds each step, for example for dropout.
    seed_globally(0, inputs.batch.labels.device, foreign=False)
    # Losses of stages without the student, or of methods without a teacher, accept None.
    terms = phase.loss(student, teacher, inputs.batch)  # type: ignore[arg-type]
    trained = {name.removeprefix("method."): parameter for name, parameter in stages.trained.items()}
    return Step(phase.name, terms, student, teacher, trained, bool(STUDENT & {*phase.trains}))


def rewound(inputs: Inputs, **changes: Any) -> Inputs:
    """The same inputs with the method's generator reset, and changed fields of the batch."""
    batch = replace(inputs.batch, generator=torch.Generator().manual_seed(0), **changes)
    return replace(inputs, batch=batch)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value (0 if all are 0)."""
    scale = max(a.abs().max().item(), b.abs().max().item()) if a.numel() else 0.0
    difference = (a - b).abs().max().item() if a.numel() else 0.0
    if not math.isfinite(scale):
        return math.inf
    return difference / scale if scale else 0.0
