"""The recorded steps of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import Tensor

from kdbench.data.feed import Minibatch
from kdbench.engine.graphs.lanes import Lanes, draws_in_turn
from kdbench.engine.graphs.replayed import Recorder, Replayed
from kdbench.engine.graphs.slots import FixedOutputs, Slot
from kdbench.engine.learner import Learner
from kdbench.recipe import batch_sizes

MakeRecorder = Callable[[Sequence[object]], Recorder]
"""Makes what records the steps of one training, or the passes of a teacher; the generators that they draw from."""


class Replays:
    """Fixed memory for the batches of a cohort, and the recorded steps of each learner."""

    def __init__(
        self, make_recorder: MakeRecorder, n_train: int, *, teacher_is_foreign: bool, lanes: Lanes | None = None
    ) -> None:
        """``n_train`` images make an epoch. ``teacher_is_foreign``: whether the teacher's network comes from a
        third-party plugin; it is executed. ``lanes``: where the steps of learners run beside each other; without them,
        one after the other.
        """
        self._lanes = lanes
        self.outputs = FixedOutputs(None if teacher_is_foreign else make_recorder([]))
        """The teacher's outputs in fixed memory."""
        self._make_recorder = make_recorder
        self._slot = Slot()
        self._n_train = n_train
        self._last = -1
        self._steps: dict[str, Replayed] = {}

    def begin_epoch(self, learner: Learner) -> None:
        """``learner`` begins an epoch of its stage."""
        kept = self._steps.get(learner.id)
        if kept is None or kept.step is not learner.trainer.take:
            recorder = self._make_recorder(learner.trainer.generators)
            self._steps[learner.id] = Replayed(learner.trainer, recorder)
            if not learner.trainer.reads_clock:
                self._steps[learner.id].reason = "its optimiser takes the learning rate from the host"
        self._steps[learner.id].begin_epoch()

    def place(self, minibatch: Minibatch) -> Minibatch:
        """Copy a batch to fixed memory, if it has the usual size."""
        if self._slot.minibatch is None:
            size = len(minibatch.labels)
            self._last = batch_sizes(self._n_train, size).count(size) - 1
        return self._slot.put(minibatch)

    def is_fixed(self, minibatch: Minibatch) -> bool:
        """Whether a batch is in fixed memory."""
        return minibatch is self._slot.minibatch

    def take(self, learner: Learner, number: int) -> Callable[[Minibatch, Mapping[str, Tensor] | None], None]:
        """What takes the step ``number`` (from 0) of an epoch."""
        return partial(self._take, self._steps[learner.id], number)

    def _take(self, steps: Replayed, number: int, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        if self.is_fixed(minibatch):
            steps.on_fixed_memory(minibatch, teacher, compared=number == self._last)
        else:
            steps.step(minibatch, teacher)

    def lane(self, learner: Learner) -> AbstractContextManager[None]:
        """The context for a step of a learner."""
        if self._lanes is None:
            return nullcontext()
        return self._lanes.of(learner.id, alone=self._steps[learner.id].draws and draws_in_turn())

    def join(self) -> None:
        """What is begun now waits, on the device, for the steps of all learners."""
        if self._lanes is not None:
            self._lanes.join()

    def wrong(self, learners: Sequence[Learner]) -> list[Learner]:
        """Those of whom a replay was wrong in this epoch."""
        return [learner for learner in learners if learner.active and self._steps[learner.id].wrong]

    def rewind(self, learner: Learner) -> None:
        """Return a learner to the beginning of the epoch, which it repeats, executed."""
        self._steps[learner.id].rewind()

    def reason(self, learner: Learner) -> str | None:
        """Why the steps of a learner's stage are executed; None if they are replayed."""
        kept = self._steps.get(learner.id)
        return kept.reason if kept is not None else None

    def forget(self, learner: Learner) -> None:
        """Free the recordings of a learner that has left."""
        self._steps.pop(learner.id, None)
        if self._lanes is not None:
            self._lanes.forget(learner.id)
