"""One optimiser step of a student, as a function of tensors on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdbench.data.feed import Minibatch
from kdbench.engine.clock import Clock
from kdbench.engine.counters import Counters
from kdbench.engine.device import Precision
from kdbench.engine.outputs import detached, outputs, private
from kdbench.engine.phase import Phase
from kdbench.engine.student import NETWORK, StudentInTraining
from kdbench.engine.terms import Means, weigh
from kdbench.method import Batch, Method, Output
from kdbench.recipe import Recipe


class Step:
    """A step of one stage: forward pass, loss, gradients, update, and sums of the terms.

    Whatever changes from step to step is in tensors: batch, teacher's outputs, rate, epoch, progress, random state,
    momentum, sums. For tensors of the same shape, all calls but the first of a stage execute the same operations with
    the same numbers, so that one call can be recorded and replayed. Nothing waits for the device.
    """

    def __init__(
        self,
        student: StudentInTraining,
        phase: Phase,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        clock: Clock,
        generator: torch.Generator,
        precision: Precision,
        *,
        in_main: bool,
        is_taught: bool,
    ) -> None:
        """``generator`` is the method's. ``in_main``: whether the stage is the main one; ``is_taught``: whether it
        uses the teacher's outputs.
        """
        self.means = Means()
        """The sums of the epoch."""
        self._student = student
        self._phase = phase
        self._optimizer = optimizer
        self._recipe = recipe
        self._clock = clock
        self._generator = generator
        self._precision = precision
        self._is_taught = is_taught
        self._foreign = bool(student.foreign)
        self._remembers = in_main and type(student.method).after_step is not Method.after_step
        self._average = student.average if in_main else None
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # The network of a third party may do anything with its counters.
        self._counters = Counters([] if self._foreign else [student.network, student.method])

    def __call__(self, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        """Take the step on a batch, with the teacher's outputs for it.

        Raises :class:`~kdbench.errors.TrialError` for terms of the wrong form, and any error of the method.
        """
        self._optimizer.zero_grad(set_to_none=True)
        self._clock.tick()
        if self._foreign:
            minibatch = self._copied(minibatch)
        batch = self._batch(minibatch)
        with self._counters.once():
            seen = self._seen(minibatch)
            shown = self._shown(teacher)
            # Losses of stages without the student, or of trainings without a teacher, accept None.
            values, loss = weigh(self._phase.loss(seen, shown, batch))  # type: ignore[arg-type]
        self.means.check(tuple(values))
        self._update(loss)
        if self._remembers and seen is not None:
            with torch.no_grad():
                self._student.method.after_step(detached(seen), shown, batch)  # type: ignore[arg-type]
        self.means.add(loss, values, len(minibatch.labels))

    def _copied(self, minibatch: Minibatch) -> Minibatch:
        """A copy of the batch, into which a third-party plugin may write."""
        shared = {name: value for name, value in vars(minibatch).items() if value is not None}
        if NETWORK not in self._student.foreign:
            del shared["images"]
        return replace(minibatch, **{name: value.clone() for name, value in shared.items()})

    def _batch(self, minibatch: Minibatch) -> Batch:
        epoch, progress = self._clock.epoch, self._clock.progress
        if self._foreign:
            epoch, progress = epoch.clone(), progress.clone()
        return Batch(
            minibatch.labels,
            minibatch.indices,
            epoch,
            progress,
            self._generator,
            minibatch.mixed_labels,
            minibatch.mix,
            self._recipe.label_smoothing,
        )

    def _seen(self, minibatch: Minibatch) -> Output | None:
        if not self._phase.uses_student:
            return None
        reads = self._phase.student_reads
        with self._precision.autocast():
            return outputs(self._student.network(minibatch.images, reads), reads)

    def _shown(self, teacher: Mapping[str, Tensor] | None) -> Output | None:
        if teacher is None or not self._is_taught:
            return None
        shown = outputs(teacher, self._phase.teacher_reads)
        return private(shown) if self._foreign else shown

    def _update(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        if self._recipe.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_grad_norm, foreach=True)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
