"""A sum of several losses.

In a suite: ``{name = "combine", methods = [{name = "crd"}, {name = "kd", ce_weight = 0, kd_weight = 1}]}``.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from kdbench.method import (
    Batch,
    DataSignature,
    Incompatible,
    Method,
    Output,
    Signature,
    Stage,
    Terms,
    make_member,
)
from kdbench_methods import METHODS

LABEL_TERM = "ce"


def first_party(name: str, settings: Mapping[str, Any]) -> Method:
    """A method of this package by its name.

    Raises:
        ValueError: no such method or setting, or a value out of range; the message starts with the key.
    """
    specs = {spec.name: spec for spec in METHODS}
    if name not in specs:
        raise ValueError(f"name: {name!r} is not a method of kdbench; known: {', '.join(sorted(specs))}")
    spec = specs[name]
    module, _, attribute = spec.target.partition(":")
    cls: type[Method] = getattr(importlib.import_module(module), attribute)
    hints = typing.get_type_hints(cls.__init__, include_extras=True) if "__init__" in vars(cls) else {}
    checked = {}
    for key, value in {**spec.presets, **settings}.items():
        if key not in hints or key == "return":
            known = ", ".join(sorted(hints.keys() - {"return"})) or "none"
            raise ValueError(f"{key}: {name} has no such setting; known: {known}")
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(f"{key}: {problem[0].lower()}{problem[1:]}, got {value!r}") from error
    return cls(**checked)


class Combine(Method):
    """The sum of several methods' terms, with the label term once.

    ``methods`` lists the members as in a suite: a name and settings for each. Their terms are named
    ``member.term``. The label term, ``ce``, is the same for all: it is counted once, with the largest weight
    of any member. The members' stages run before the main stage, in the order of the list.
    """

    members_setting = "methods"
    reads = frozenset({"logits"})

    def __init__(self, *, methods: list[dict[str, Any]]) -> None:
        super().__init__()
        if not methods:
            raise ValueError("methods: must name at least one method")
        self.members = nn.ModuleDict()
        for i, table in enumerate(methods):
            settings = dict(table)
            name = settings.pop("name", None)
            if not isinstance(name, str):
                raise ValueError(f"methods[{i}].name: is required")
            try:
                member = make_member(name, settings, first_party)
            except ValueError as error:
                raise ValueError(f"methods[{i}].{error}") from error
            self.members[self._label(name)] = member
        self._unite()

    def _label(self, name: str) -> str:
        """The member's name, with a number if it is repeated. Module names must not contain dots."""
        name = name.replace(".", "_")
        count = sum(label.partition("#")[0] == name for label in self.members)
        return f"{name}#{count + 1}" if count else name

    def _items(self) -> Iterable[tuple[str, Method]]:
        return typing.cast(Iterable[tuple[str, Method]], self.members.items())

    def _unite(self) -> None:
        """Merge the members' requirements, as far as they are known at this point."""
        members = [member for _, member in self._items()]
        self.student_reads = frozenset().union(*(_student_reads(member) for member in members))
        self.teacher_reads = frozenset().union(*(_teacher_reads(member) for member in members))
        self.reads = self.student_reads | self.teacher_reads
        self.needs_teacher = any(member.needs_teacher for member in members)
        self.part_of_student = tuple(
            f"members.{label}.{part}" for label, member in self._items() for part in member.part_of_student
        )
        self.expected_failures = {
            check: reason for member in members for check, reason in member.expected_failures.items()
        }

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Set up all members.

        Raises:
            Incompatible: a member cannot be used with a network, or two members define ``predict``.
        """
        predicting = [label for label, m in self._items() if type(m).predict is not Method.predict]
        if len(predicting) > 1:
            raise Incompatible(f"combine accepts only one method with its own predict, got {' and '.join(predicting)}")
        self.student_taps: dict[str, list[str]] = {}
        self.teacher_taps: dict[str, list[str]] = {}
        for label, member in self._items():
            member.setup(student, teacher, data)
            self.student_taps[label] = student.select(_student_reads(member))
            self.teacher_taps[label] = teacher.select(_teacher_reads(member))
        self._unite()

    def stages(self) -> Sequence[Stage]:
        """All members' stages, in the members' order, named ``member-stage``."""
        return [
            dataclasses.replace(stage, name=_stage_name(label, stage.name), trains=_within(label, stage.trains))
            for label, member in self._items()
            for stage in member.stages()
        ]

    def after_stage(self, name: str) -> None:
        """Call ``after_stage`` of the stage's member."""
        for label, member in self._items():
            for stage in member.stages():
                if _stage_name(label, stage.name) == name:
                    member.after_stage(stage.name)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, if a member learns from the labels, and every other term as ``member.term``."""
        terms: dict[str, tuple[Tensor, float | Tensor]] = {}
        for label, member, s, t in self._views(student, teacher):
            for name, (value, weight) in member(s, t, batch).items():
                if name != getattr(member, "label_term", LABEL_TERM):
                    terms[f"{label}.{name}"] = (value, weight)
                elif LABEL_TERM in terms:
                    terms[LABEL_TERM] = (value, _larger(terms[LABEL_TERM][1], weight))
                else:
                    terms = {LABEL_TERM: (value, weight), **terms}
        return terms

    def after_step(self, student: Output, teacher: Output, batch: Batch) -> None:
        """Call ``after_step`` of every member."""
        for _, member, s, t in self._views(student, teacher):
            member.after_step(s, t, batch)

    def predict(self, student: Output) -> Tensor:
        """The prediction of the member that defines ``predict``, otherwise the class head's logits."""
        for label, member in self._items():
            if type(member).predict is not Method.predict:
                return member.predict(_view(student, self.student_taps[label]))
        return student.logits

    def _views(self, student: Output, teacher: Output) -> Iterable[tuple[str, Method, Output, Output]]:
        """Each member with the outputs that it reads, and no others."""
        for label, member in self._items():
            s = _view(student, self.student_taps[label])
            yield label, member, s, _view(teacher, self.teacher_taps[label])


def _student_reads(member: Method) -> frozenset[str]:
    return member.reads if member.student_reads is None else member.student_reads


def _teacher_reads(member: Method) -> frozenset[str]:
    return member.reads if member.teacher_reads is None else member.teacher_reads


def _view(output: Output, taps: Sequence[str]) -> Output:
    return Output(output.logits, {name: output.taps[name] for name in taps if name in output.taps})


def _stage_name(label: str, stage: str) -> str:
    return f"{label}-{stage}".replace("/", "-")


def _within(label: str, trains: tuple[str, ...]) -> tuple[str, ...]:
    """Names of trained submodules relative to the combination."""
    students = {"student", "student.body"}
    return tuple(part if part in students else f"members.{label}.{part}" for part in trains)


def _larger(a: float | Tensor, b: float | Tensor) -> float | Tensor:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))
    return max(a, b)
