"""The teacher's outputs for a cohort: for each batch, and for the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdbench import isolation
from kdbench.data.feed import Feed
from kdbench.engine.evaluate import collect
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.graphs.slots import FixedOutputs
from kdbench.engine.guard import Guard
from kdbench.engine.learner import Learner
from kdbench.errors import TrialError, in_words
from kdbench.seeding import derive


class Lessons:
    """One teacher pass for all learners. If it fails, the learners that use the teacher fail."""

    def __init__(self, teacher: FrozenTeacher, feed: Feed, guard: Guard, leader: Learner) -> None:
        """Precision, device and seed are taken from ``leader``; they are the same for the whole cohort."""
        self.teacher = teacher
        self._feed = feed
        self._guard = guard
        self._precision = leader.trainer.precision
        self._device = leader.trainer.device
        self._seed = leader.trainer.seed
        self._on_test: Tensor | None = None
        self._failed_on_test = False

    def show(
        self,
        images: Tensor,
        reads: Sequence[str],
        learners: Sequence[Learner],
        when: tuple[str, int, int],
        fixed: FixedOutputs | None = None,
    ) -> Mapping[str, Tensor] | None:
        """Its outputs for a batch; None if it fails. ``when``: stage, epoch, step.

        ``fixed``: where the outputs are placed, if the images are in fixed memory.
        """
        teacher = self.teacher
        shown: list[Mapping[str, Tensor]] = []
        # A third-party network may write into the images.
        own = images.clone() if teacher.foreign else images
        self._seed_globally(*when)

        def forward() -> dict[str, Tensor]:
            return teacher(own, reads, self._precision)

        error = self._guard.attempt(
            lambda: shown.append(forward() if fixed is None else fixed.show(images, reads, forward)),
            "the teacher's network",
            thorough=teacher.foreign and (self._guard.watchful or when[-1] == 0),
        )
        if error is None:
            return shown[0]
        why = TrialError(f"its teacher failed: {in_words(error)}")
        for learner in learners:
            if learner.active and learner.trainer.is_taught:
                self._guard.expel(learner, error if isinstance(error, torch.AcceleratorError) else why)
        return None

    def on_test(self) -> Tensor | None:
        """Its logits (N, C) for the test split, computed once; None if it fails."""
        teacher = self.teacher
        if self._on_test is None and not self._failed_on_test:
            found: list[Tensor] = []
            batches = self._feed.evaluate("test")
            predict = lambda: found.append(collect(lambda x: teacher.network(x)["logits"], batches)[0])  # noqa: E731
            self._seed_globally("test")
            error = self._guard.attempt(predict, "the teacher's network", thorough=teacher.foreign)
            if error is None:
                self._on_test = found[0]
            self._failed_on_test = error is not None
        return self._on_test

    def _seed_globally(self, *purpose: object) -> None:
        # A third-party network may draw random numbers, which must not depend on the students.
        if self.teacher.foreign:
            isolation.seed_globally(derive(self._seed, "teacher", *purpose), self._device, foreign=True)
