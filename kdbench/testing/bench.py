"""Inputs for checks: small pairs of networks, their outputs, and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kdbench.discovery import Registry
from kdbench.errors import KdbenchError
from kdbench.method import Batch, DataSignature, Output, Signature
from kdbench.models.base import TappedModel, from_offer, signature
from kdbench.seeding import derive

PAIRS = ("resnet20:resnet8", "wrn_16_2:resnet8", "resnet20:deit_micro")
"""Teacher and student of each pair: equal widths; different widths, with signed maps; two heads."""
FURTHER_PAIRS = ("vgg13:vgg8", "resnet8x4:resnet8", "deit_micro:deit_micro")
"""Used if a method supports none of :data:`PAIRS`."""
CLASSES = 10
IMAGE_SHAPE = (3, 16, 16)
N_TRAIN = 64
BATCH_SIZE = 8
LOGITS = frozenset({"logits", "dist_logits"})

Change = Callable[[str, Tensor], Tensor]
"""Maps a tap's name and values to other values."""


def unchanged(tap: str, values: Tensor) -> Tensor:
    """Return a tap unchanged."""
    return values


@dataclass(frozen=True)
class Inputs:
    """The inputs for a step of a method: all taps of both networks, and the batch.

    The student's taps require gradients but are not leaves, as in training.
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    batch: Batch


def output(taps: Mapping[str, Tensor], names: Sequence[str]) -> Output:
    """The output of a network for a method: only the taps that it reads."""
    return Output(taps["logits"], {name: taps[name] for name in names})


@dataclass
class Bench:
    """A pair of networks for images of 16 pixels in ten classes, and their outputs."""

    teacher_name: str
    student_name: str
    registry: Registry = field(repr=False)

    @classmethod
    def named(cls, pair: str, registry: Registry) -> Bench:
        """The pair ``teacher:student``."""
        names = pair.split(":")
        # torchvision:NAME and timm:NAME contain a colon.
        cuts = [(":".join(names[:i]), ":".join(names[i:])) for i in range(1, len(names))]
        known = [cut for cut in cuts if all(_is_known(name, registry) for name in cut)]
        if len(known) != 1:
            for name in names if len(names) == 2 else ():
                registry.model(name)
            raise KdbenchError(f"--pair {pair}: must be TEACHER:STUDENT")
        return cls(*known[0], registry)

    @property
    def pair(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher_name}:{self.student_name}"

    @property
    def data(self) -> DataSignature:
        """A training set of 64 images of ten classes."""
        return DataSignature(CLASSES, N_TRAIN, torch.arange(N_TRAIN) % CLASSES)

    def network(self, name: str) -> TappedModel:
        """A network by name, always with the same weights."""
        offer = self.registry.model(name)
        torch.manual_seed(derive(0, name))
        return from_offer(offer, classes=CLASSES, image_shape=IMAGE_SHAPE)

    @cached_property
    def student(self) -> Signature:
        """The student's signature."""
        return signature(self.network(self.student_name), self.student_name, IMAGE_SHAPE)

    @cached_property
    def teacher(self) -> Signature:
        """The teacher's signature."""
        return signature(self.network(self.teacher_name), self.teacher_name, IMAGE_SHAPE)

    def images(self, size: int = BATCH_SIZE) -> Tensor:
        """Random images (size, 3, 16, 16)."""
        return torch.randn(size, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(derive(0, "images")))

    def batch(self, size: int = BATCH_SIZE, seed: int = 0) -> Batch:
        """A batch of different training images, in the fourth of ten epochs."""
        generator = torch.Generator().manual_seed(derive(seed, "batch"))
        indices = torch.randperm(N_TRAIN, generator=generator)[:size]
        return Batch(
            labels=indices % CLASSES,
            indices=indices,
            epoch=torch.tensor(3.0),
            progress=torch.tensor(0.3),
            generator=torch.Generator().manual_seed(derive(seed, "method")),
        )

    def made_up(
        self,
        size: int = BATCH_SIZE,
        *,
        change: Change = unchanged,
        seed: int = 0,
        teacher_records: bool = False,
    ) -> Inputs:
        """Outputs drawn from a normal distribution; nonnegative taps have no negative values.

        ``change`` is applied to each tap. ``teacher_records``: the teacher's taps also require gradients.
        """
        student = self._drawn("student", size, seed)
        teacher = self._drawn("teacher", size, seed)
        return Inputs(
            _taps(student, change, records=True), _taps(teacher, change, teacher_records), self.batch(size, seed)
        )

    def real(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """The networks' outputs, computed under autocast to ``dtype`` and converted as in the engine."""
        student = self._outputs(self.student_name, dtype)
        teacher = self._outputs(self.teacher_name, dtype)
        return Inputs(_taps(student, unchanged, records=True), _taps(teacher, unchanged, records=False), self.batch())

    def _drawn(self, who: str, size: int, seed: int) -> Mapping[str, Tensor]:
        key = (who, size, seed)
        if key not in self._draws:
            network = self.student if who == "student" else self.teacher
            self._draws[key] = _draw(network, size, torch.Generator().manual_seed(derive(seed, who)))
        return self._draws[key]

    @cached_property
    def _draws(self) -> dict[tuple[str, int, int], Mapping[str, Tensor]]:
        return {}

    def _outputs(self, name: str, dtype: torch.dtype) -> Mapping[str, Tensor]:
        key = (name, dtype)
        if key not in self._cache:
            network = self.network(name).train()
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
                self._cache[key] = network(self.images(), tuple(network.taps))
        return self._cache[key]

    @cached_property
    def _cache(self) -> dict[tuple[str, torch.dtype], Mapping[str, Tensor]]:
        return {}


def _is_known(name: str, registry: Registry) -> bool:
    try:
        registry.model(name)
    except KdbenchError:
        return False
    return True


def _draw(network: Signature, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    drawn = {}
    for name, tap in network.taps.items():
        values = torch.randn(size, *tap.shape, generator=generator)
        drawn[name] = values.relu() if tap.nonnegative else values
    return drawn


def _taps(taps: Mapping[str, Tensor], change: Change, records: bool) -> dict[str, Tensor]:
    # The engine provides float32 for any precision of the network.
    changed = {name: change(name, values).float() for name, values in taps.items()}
    # Copies: a method that writes to its inputs must not change those of later checks.
    return {name: (v.detach().requires_grad_() if records else v).clone() for name, v in changed.items()}
