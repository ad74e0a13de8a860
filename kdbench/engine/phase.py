"""The phases of a training: the first stages that a method requests, and the main stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kdbench.engine.schedule import learning_rate
from kdbench.errors import PluginError
from kdbench.method import Batch, Method, Output, Signature, Stage, Terms
from kdbench.parts import Parts
from kdbench.results import MAIN


class Position(NamedTuple):
    """A learner's stage and epoch; learners at the same position train in lockstep. First stages come first."""

    main: bool
    stage: int
    epoch: int

    @property
    def stream(self) -> str:
        """The random stream of data order and augmentation; that of the main stage does not depend on first stages."""
        return MAIN if self.main else f"first stage {self.stage}"


@dataclass(frozen=True)
class Phase:
    """One phase of a training: a first stage of the method, or the main stage."""

    name: str
    loss: Callable[[Output, Output, Batch], Terms]
    epochs: int
    rate: Callable[[float], float]
    trains: tuple[str, ...]
    student_reads: tuple[str, ...]
    teacher_reads: tuple[str, ...]
    uses_student: bool


def phases(method: Method, parts: Parts, student: Signature, teacher: Signature) -> list[Phase]:
    """A training's phases in order: the method's first stages, then the main one.

    Raises :class:`~kdbench.errors.PluginError` for a stage that trains something that does not exist.
    """
    found = []
    recipe = parts.recipe
    for stage in method.stages():
        _check(method, stage)
        rate = stage.lr if stage.lr is not None else recipe.lr
        found.append(
            Phase(
                stage.name,
                stage.loss,
                stage.epochs,
                lambda progress, rate=rate: rate,  # type: ignore[misc]
                stage.trains,
                tuple(student.select(stage.reads)) if stage.uses_student else (),
                tuple(teacher.select(stage.reads)),
                stage.uses_student,
            )
        )
    reads = method.reads
    main = Phase(
        MAIN,
        method,
        recipe.epochs,
        lambda progress: learning_rate(parts, progress),
        ("student", "method"),
        tuple(student.select(reads if method.student_reads is None else method.student_reads)),
        tuple(teacher.select(reads if method.teacher_reads is None else method.teacher_reads)),
        uses_student=True,
    )
    return [*found, main]


def _check(method: Method, stage: Stage) -> None:
    for name in stage.trains:
        if name not in {"student", "student.body"} and name not in dict(method.named_modules()):
            raise PluginError(f"stage '{stage.name}' trains '{name}', which is no submodule of the method")
        if name in {"student", "student.body"} and not stage.uses_student:
            raise PluginError(f"stage '{stage.name}' trains the student, but has uses_student = False")
