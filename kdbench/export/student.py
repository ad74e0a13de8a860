"""The exported student: its network, and the submodules of the method that it needs for prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdbench.discovery import Registry
from kdbench.discovery import settings as settings_of
from kdbench.engine.outputs import outputs
from kdbench.errors import ExportError, PluginError
from kdbench.export.find import FinishedTrial
from kdbench.method import DataSignature, Method
from kdbench.models.base import TappedModel, from_offer, signature
from kdbench.resolve import make_method, method_fingerprint

Found = TypeVar("Found")

METHOD = "method."


@dataclass(frozen=True)
class Blueprint:
    """Everything needed to build a student, except its weights."""

    model: str
    classes: int
    image_shape: Sequence[int]
    """(channels, height, width)."""
    method: str
    settings: Mapping[str, Any]
    teacher_model: str
    """The teacher's model; submodules of a method may depend on its shapes."""
    n_train: int
    plugin: Mapping[str, str]
    """Distribution and version of the method."""

    @classmethod
    def of(cls, found: FinishedTrial) -> Blueprint:
        """The blueprint of a finished trial."""
        trial, data = found.trial, found.data
        return cls(
            model=trial.student,
            classes=data.classes,
            image_shape=list(data.image_shape or ()),
            method=trial.method,
            settings=trial.settings,
            teacher_model=trial.teacher_model,
            n_train=data.n_train,
            plugin=trial.plugin.model_dump(),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.image_shape
        return channels, height, width

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which ``Blueprint(**...)`` restores it."""
        return dataclasses.asdict(self)


class Student(nn.Module):
    """A network with a method's prediction: normalised images in, logits out.

    Only the method's submodules that belong to the student are registered, so its adapters are not parameters.
    """

    def __init__(self, network: TappedModel, method: Method, reads: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.part_names = tuple(method.part_of_student)
        self.parts = nn.ModuleList(method.get_submodule(name) for name in self.part_names)
        # A bound method, because torch would register the method object as a submodule.
        self._predict = method.predict
        self.reads = tuple(reads)
        """The taps that the method predicts from; empty if the network's logits are the prediction."""
        self.taught = method.needs_teacher

    @property
    def predicts_by_method(self) -> bool:
        """Whether the method overrides the prediction."""
        return self._predict.__func__ is not Method.predict  # type: ignore[attr-defined]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images (B, channels, height, width)."""
        return self._predict(outputs(self.network(images, self.reads), self.reads))


def build(blueprint: Blueprint, registry: Registry) -> Student:
    """The student in eval mode, before its weights are loaded. Raises :class:`PluginError`."""
    with torch.random.fork_rng(devices=[]):
        network = _network(blueprint.model, blueprint, registry)
        method = _method(blueprint, registry)
        reads: Sequence[str] = ()
        if type(method).predict is not Method.predict:
            student = signature(network, blueprint.model, blueprint.shape)
            teacher_network = _network(blueprint.teacher_model, blueprint, registry)
            teacher = signature(teacher_network, blueprint.teacher_model, blueprint.shape)
            try:
                method.setup(student, teacher, DataSignature(blueprint.classes, blueprint.n_train))
            except Exception as error:
                raise PluginError(f"method '{blueprint.method}' no longer fits its student: {error}") from error
            reads = student.select(method.reads if method.student_reads is None else method.student_reads)
    return Student(network, method, reads).eval().requires_grad_(False)


def _network(name: str, blueprint: Blueprint, registry: Registry) -> TappedModel:
    offer = _still_there(lambda: registry.model(name))
    return from_offer(offer, classes=blueprint.classes, image_shape=blueprint.shape)


def _method(blueprint: Blueprint, registry: Registry) -> Method:
    who = f" ({blueprint.plugin['distribution']} {blueprint.plugin['version']})"
    offer = _still_there(lambda: registry.method(blueprint.method), who)
    cls = offer.load()
    settings, problems = settings_of.resolve(cls, blueprint.settings)
    if problems:
        key, what = problems[0]
        raise PluginError(
            f"method '{blueprint.method}' has changed since the training: {key}: {what}{who and f'; trained by{who}'}"
        )
    return make_method(registry, blueprint.method, settings)


def _still_there(find: Callable[[], Found], who: str = "") -> Found:
    try:
        return find()
    except PluginError as error:
        raise PluginError(f"{error}; install its package{who}, or pass its file with -p") from error


def fingerprint(blueprint: Blueprint, registry: Registry) -> str:
    """The current fingerprint of the method."""
    return method_fingerprint(registry, registry.method(blueprint.method), blueprint.settings)


def state(student: Student) -> dict[str, Tensor]:
    """The weights with the names of ``student.safetensors``: those of the network, and ``method.<part>.<name>``."""
    weights = dict(student.network.state_dict())
    for prefix, module in _parts(student):
        weights |= {prefix + name: value for name, value in module.state_dict().items()}
    return {name: value.detach().contiguous() for name, value in weights.items()}


def load(student: Student, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights of :func:`state`. Raises :class:`ExportError` if they do not match the student."""
    rest = dict(weights)
    try:
        for prefix, module in _parts(student):
            own = [name for name in rest if name.startswith(prefix)]
            module.load_state_dict({name.removeprefix(prefix): rest.pop(name) for name in own})
        student.network.load_state_dict(rest)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{path}: the weights do not match this student: {reason}") from error


def _parts(student: Student) -> Iterator[tuple[str, nn.Module]]:
    """The parts of the method that the student needs for prediction, each with the prefix of its weights' names."""
    return ((f"{METHOD}{name}.", part) for name, part in zip(student.part_names, student.parts, strict=True))
