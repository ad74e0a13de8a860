"""The steps of one training, recorded once and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from kdbench.data.feed import Minibatch
from kdbench.engine.graphs.snapshot import Snapshot, state_of
from kdbench.engine.graphs.tape import Trace
from kdbench.engine.trainer import Trainer
from kdbench.errors import in_words

WARM_UP = 3
"""Steps of a stage before one is recorded: in the first, libraries choose their algorithms, and the optimiser makes its
state; the operations of the others are compared."""


class Recording(Protocol):
    """Recorded operations."""

    def replay(self) -> None:
        """Execute them again, on the same memory."""


Recorder = Callable[[Callable[[], object]], Recording]
"""Records the operations of an action, and executes them once."""


class Replayed:
    """The steps of a stage: the first ones are executed, one is recorded, later ones are replays of it.

    Only steps on a batch in fixed memory are recorded, once for each place that a batch may have. The last step of an
    epoch that could be replayed is executed as well, and both are compared. If a step cannot be recorded, or a replay
    gives something else, :attr:`reason` says why, and all further steps are executed.
    """

    def __init__(self, trainer: Trainer, recorder: Recorder) -> None:
        self.reason: str | None = None
        """Why steps are executed; None if they are replayed."""
        self.wrong = False
        """Whether a replay gave something else than the step; then the epoch must be repeated, see :meth:`rewind`."""
        self.step = trainer.take
        """The step, executed."""
        self._trainer = trainer
        self._recorder = recorder
        self._executed = 0
        self._usual: Trace | None = None
        self._recordings: dict[int, tuple[Minibatch, Recording]] = {}
        self._beginning: Snapshot | None = None

    @property
    def operations(self) -> int:
        """The number of operations of a step; 0 before one is recorded."""
        return len(self._usual.operations) if self._usual is not None else 0

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers, as far as one was looked at."""
        return self._usual is not None and self._usual.draws

    def begin_epoch(self) -> None:
        """Keep the state, for :meth:`rewind`."""
        self.wrong = False
        self._beginning = Snapshot(self._trainer) if self.reason is None else None

    def rewind(self) -> None:
        """Return to the state at the beginning of the epoch."""
        assert self._beginning is not None
        self._beginning.restore()

    def on_fixed_memory(self, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None, *, compared: bool) -> None:
        """Take a step on a batch that is in the same memory as an earlier one, as are the teacher's outputs for it.

        Then ``minibatch`` is the same object. ``compared``: whether a replay is compared with the step.
        """
        kept = self._recordings.get(id(minibatch))
        if self.reason is not None:
            self.step(minibatch, teacher)
        elif kept is None:
            self._begin(minibatch, teacher)
        elif compared:
            self._compare(kept[1], minibatch, teacher)
        else:
            self._replay(kept[1], minibatch)

    def _begin(self, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        self._executed += 1
        if self._executed == 1:
            self.step(minibatch, teacher)
        elif self._executed <= WARM_UP:
            trace = Trace()
            with trace:
                self.step(minibatch, teacher)
            unlike = self._usual.unlike(trace) if self._usual is not None else None
            self.reason = trace.obstacle or (f"steps differ: {unlike}" if unlike is not None else None)
            self._usual = trace
        else:
            self._record(minibatch, teacher)

    def _record(self, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        before = Snapshot(self._trainer)
        try:
            recording = self._recorder(lambda: self.step(minibatch, teacher))
            self._recordings[id(minibatch)] = minibatch, recording
        except Exception as error:  # noqa: BLE001 - what can be recorded depends on drivers and plugins
            self.reason = f"the step cannot be recorded: {in_words(error)}"
        # Not in the handler: the error's frames hold the memory of the failed recording.
        if self.reason is not None:
            before.restore()
            self.step(minibatch, teacher)

    def _replay(self, recording: Recording, minibatch: Minibatch) -> None:
        recording.replay()
        self.step.means.images += len(minibatch.labels)

    def _compare(self, recording: Recording, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        assert self._usual is not None
        before = Snapshot(self._trainer)
        now = Trace()
        with now:
            self.step(minibatch, teacher)
        executed = Snapshot(self._trainer).tensors
        before.restore(numbers=False)
        self._replay(recording, minibatch)
        unlike = self._usual.unlike(now) or before.unlike(executed, state_of(self._trainer))
        if unlike is not None:
            self.reason, self.wrong = f"a replay is not the step: {unlike}", True
            self._recordings.clear()
