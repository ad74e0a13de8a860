"""Which trainings read nothing of the teacher: they are the same for all teachers, bit by bit, and are run once.

Data, initial weights and random numbers do not depend on the teacher. A training depends on it in two ways, and in
either of them it is not untaught:

- its method reads the teacher's outputs, or has stages before the main one;
- its method looks at the teacher's taps in ``setup``, for example to build adapters.

Code of third parties may do anything, so that trials with such code are never untaught.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from kdbench.errors import KdbenchError
from kdbench.isolation import restored
from kdbench.method import DataSignature, Signature, set_up
from kdbench.models.shapes import on_meta
from kdbench.resolve.resolver import Resolver
from kdbench.suite.plan import Trial

UNTAUGHT = "untaught"


class _Unread(Signature):
    """Stands for the teacher's signature, and refuses to be read."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise _ReadError(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise _ReadError("all")


class _ReadError(Exception):
    """The teacher's signature was read."""


def depends_on(trial: Trial) -> list[Any]:
    """What the answer of :func:`untaught` depends on, besides networks, data and method."""
    return [trial.recipe.optimizer.name, trial.recipe.schedule.name, dict(trial.part_sources)]


def untaught(resolver: Resolver, trial: Trial) -> str:
    """:data:`UNTAUGHT` if the training reads nothing of the teacher, otherwise empty. Nothing is trained."""
    try:
        with restored(resolver.originals), on_meta():
            method = resolver.method(trial)
            if method.needs_teacher or resolver.foreign_parts(trial):
                return ""
        student = resolver.signature(trial.student)
        with restored(resolver.originals), on_meta():
            data = DataSignature(resolver.facts.classes, resolver.facts.n_train)
            set_up(method, copy.deepcopy(student), _Unread(), data)
            if method.needs_teacher or method.stages():
                return ""
    except (KdbenchError, _ReadError, RuntimeError, ValueError):
        return ""  # it reads the teacher, or will fail when it is trained
    return UNTAUGHT
