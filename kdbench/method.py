"""The interface of a distillation loss.

A loss is a class derived from :class:`Method`. It receives the outputs of student and teacher for a
batch (:class:`Output`) and the batch (:class:`Batch`), and returns named, weighted terms. It has no access to
networks, loaders or optimisers. It is a torch module: its parameters and buffers are trained with the
student's optimiser, moved to the device, saved in checkpoints and counted.

Shapes: B batch, C classes, D embedding width; maps are (B, channels, height, width).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from kdbench.errors import Incompatible, PluginError
from kdbench.search import Search

__all__ = [
    "Batch",
    "DataSignature",
    "Fraction",
    "Incompatible",
    "Method",
    "NonNegative",
    "NonNegativeInt",
    "Output",
    "Positive",
    "PositiveInt",
    "Search",
    "Signature",
    "Stage",
    "TapSignature",
    "Terms",
    "make_member",
]

# Ranges for settings. A constructor argument `temperature: Positive = 4.0` is documented and checked.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]

Terms: TypeAlias = Mapping[str, tuple[Tensor, float | Tensor]]
"""Named terms, each (value, weight): scalars. The loss is the sum of value * weight."""


@dataclass(frozen=True)
class TapSignature:
    """The facts of a tap that need no batch: its shape without the batch axis, and its sign.

    ``batch_norm`` is (scale, shift) of the batch normalisation directly before the activation of this
    pre-activation tap, each of shape (channels,), if there is one (the margins of OFD need them).
    """

    shape: tuple[int, ...]
    nonnegative: bool
    batch_norm: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Signature:
    """The facts of a network that a method can use: its taps, and values that need no forward pass."""

    model: str
    family: str
    classes: int
    taps: Mapping[str, TapSignature]
    classifier_weight: Tensor | None = None

    @property
    def stages(self) -> list[str]:
        """The stage taps in order: ``stage1`` .. ``stageN``."""
        return self.select({"stage*"})

    def select(self, reads: Collection[str]) -> list[str]:
        """The taps that ``reads`` names, in network order.

        ``stage*`` is every stage map, ``stage*/pre`` every one before its activation, ``stage-1`` the last
        one (``stage-1/pre`` likewise); anything else is a tap's name. Names that the network does not
        have are left out: a method that needs one must check this in ``setup`` (see :meth:`require`).
        """
        numbers = [int(name[5:]) for name in self.taps if re.fullmatch(r"stage\d+", name)]
        last = max(numbers, default=0)
        wanted = set()
        for read in reads:
            if read in {"stage*", "stage*/pre"}:
                wanted |= {read.replace("*", str(i)) for i in numbers}
            elif read in {"stage-1", "stage-1/pre"}:
                wanted.add(read.replace("-1", str(last)))
            else:
                wanted.add(read)
        return [name for name in self.taps if name in wanted]

    def require(self, read: str, who: str, what: str) -> list[str]:
        """The taps that ``read`` names. Raises :class:`Incompatible` (``who needs what; model has none``) if none."""
        names = self.select({read})
        if not names:
            raise Incompatible(f"{who} needs {what}; {self.model} has none")
        return names


@dataclass(frozen=True)
class DataSignature:
    """The facts of the data that a method can use. ``labels``: (n_train,) class of each training image by index.

    ``labels`` is None in a plan, which does not read the data set.
    """

    classes: int
    n_train: int
    labels: Tensor | None = None


@dataclass(frozen=True)
class Output:
    """The outputs of a network for a batch: float32, also if the network ran in lower precision.

    ``logits``: (B, C). ``taps``: the tensors that the method reads, by name, in network order.
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, tap: str) -> Tensor:
        """A tap by its name; ``stage-1`` is the last stage read."""
        if tap == "stage-1" and self.stages:
            return self.stages[-1]
        if tap not in self.taps:
            seen = ", ".join(self.taps) or "none"
            raise PluginError(f"tap '{tap}' was not read: add it to reads, if the network has it; taps read: {seen}")
        return self.taps[tap]

    @property
    def stages(self) -> list[Tensor]:
        """The stage maps that the method reads, in order, each (B, C_i, H_i, W_i)."""
        return [value for name, value in self.taps.items() if re.fullmatch(r"stage\d+", name)]

    @property
    def pre_activations(self) -> list[Tensor]:
        """The pre-activation stage maps that the method reads, in order, each (B, C_i, H_i, W_i)."""
        return [value for name, value in self.taps.items() if re.fullmatch(r"stage\d+/pre", name)]

    @property
    def embedding(self) -> Tensor:
        """The pooled embedding, (B, D)."""
        return self["embedding"]

    @property
    def dist_logits(self) -> Tensor:
        """The logits of the student's distillation head, (B, C)."""
        return self["dist_logits"]


@dataclass(frozen=True)
class Batch:
    """The batch, which is the same for both networks.

    ``labels``: (B,) class indices. ``indices``: (B,) of each image in the training set. Under mixup or
    cutmix, ``mixed_labels`` (B,) are the second images' classes and ``mix`` the first images' share.
    ``epoch`` counts from 0 and ``progress`` increases from 0 to 1 over the stage; both are scalars on the device,
    so that a ramp does not change the graph. ``generator`` is the method's random generator.
    """

    labels: Tensor
    indices: Tensor
    epoch: Tensor
    progress: Tensor
    generator: torch.Generator
    mixed_labels: Tensor | None = None
    mix: Tensor | None = None
    label_smoothing: float = 0.0

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy in nats of (B, C) logits with the labels, with the recipe's smoothing and mixing."""
        loss = F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)
        if self.mixed_labels is None or self.mix is None:
            return loss
        other = F.cross_entropy(logits, self.mixed_labels, label_smoothing=self.label_smoothing)
        return self.mix * loss + (1 - self.mix) * other


@dataclass(frozen=True)
class Stage:
    """A training stage before the main stage, with a new optimiser and a constant learning rate.

    ``trains`` lists the modules that are trained, in train mode: ``student``, ``student.body`` (the student
    without its classifiers), or names of the method's submodules; all others are frozen and in eval
    mode. ``reads`` are this stage's taps. ``lr`` None is the recipe's base rate. With ``uses_student`` False
    the student is not run and ``loss`` receives None for it; such a stage depends only on teacher and seed
    and is trained once for all students that share them.
    """

    name: str
    loss: Callable[[Output, Output, Batch], Terms]
    epochs: int
    trains: tuple[str, ...]
    reads: frozenset[str]
    lr: float | None = None
    uses_student: bool = True


class Method(nn.Module):
    """Base of every distillation loss.

    Settings are keyword-only constructor arguments with defaults; a suite's table supplies them. Their
    annotations (:data:`Positive`, :data:`Fraction`, ``Literal[...]``) document and restrict their values.
    """

    paper: ClassVar[str] = ""
    """Author, venue, year and link."""
    reads: frozenset[str] = frozenset({"logits"})
    """Taps of both networks (see :meth:`Signature.select`); other taps are not computed or kept."""
    student_reads: frozenset[str] | None = None
    """Taps of the student, if they differ from ``reads``."""
    teacher_reads: frozenset[str] | None = None
    """Taps of the teacher, if they differ from ``reads``."""
    needs_teacher: bool = True
    part_of_student: tuple[str, ...] = ()
    """Submodules that the student uses for prediction; they are exported and counted with it (DeiT's second head)."""
    search: ClassVar[Mapping[str, Search]] = {}
    """The values that ``kdbench tune`` tries, by setting: ``{"weight": Search(low=0.1, high=10, log=True)}``."""
    expected_failures: Mapping[str, str] = {}
    """Conformance checks that the method fails by design, each with the reason."""
    members_setting: ClassVar[str] = ""
    """The setting that lists the methods that this one contains, as tables with ``name`` and settings; see
    :func:`make_member`. Their sources become part of a trial's identity."""

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build adapters. Raise :class:`Incompatible` if the method cannot be used with a network."""

    def stages(self) -> Sequence[Stage]:
        """The stages before the main one; none by default."""
        return ()

    def after_stage(self, name: str) -> None:
        """Called after stage ``name``: freeze or drop modules that the main stage does not train."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The main stage's terms."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def after_step(self, student: Output, teacher: Output, batch: Batch) -> None:
        """Called without gradients after the optimiser's step (used for the memories of CRD)."""

    def predict(self, student: Output) -> Tensor:
        """The logits for evaluation, (B, C): by default those of the class head."""
        return student.logits


MakeMember = Callable[[str, Mapping[str, Any]], Method]
_make_member: ContextVar[MakeMember | None] = ContextVar("make_member", default=None)


def make_member(name: str, settings: Mapping[str, Any], otherwise: MakeMember) -> Method:
    """Make a method that another one contains, before ``setup``: any that is installed or loaded with the suite.

    ``otherwise`` makes it outside of kdbench's runs, for example in a unit test. Raises ``ValueError``
    for an unknown name or a wrong setting; the message starts with the key.
    """
    return (_make_member.get() or otherwise)(name, settings)


@contextmanager
def members_made_by(make: MakeMember) -> Iterator[None]:
    """Context in which :func:`make_member` calls ``make``."""
    token = _make_member.set(make)
    try:
        yield
    finally:
        _make_member.reset(token)


COMMON_TAPS = frozenset(
    {"logits", "embedding", "stem", "dist_logits", "stage*", "stage*/pre", "stage-1", "stage-1/pre"}
)
"""Names that a method may read although a network may not have them."""


def set_up(method: Method, student: Signature, teacher: Signature, data: DataSignature) -> None:
    """Call ``setup`` of ``method``.

    Raises :class:`Incompatible` as its ``setup`` does, and if ``reads`` has a name that is a tap of neither network.
    """
    method.setup(student, teacher, data)
    reads = {*method.reads, *(method.student_reads or ()), *(method.teacher_reads or ())}
    reads |= {read for stage in method.stages() for read in stage.reads}
    for read in sorted(reads - COMMON_TAPS):
        if not student.select({read}) and not teacher.select({read}):
            known = ", ".join(dict.fromkeys([*teacher.taps, *student.taps]))
            raise Incompatible(
                f"reads '{read}', a tap that neither {teacher.model} nor {student.model} has; taps: {known}"
            )
