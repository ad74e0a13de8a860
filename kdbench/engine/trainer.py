"""Trains a student with its method: one optimiser step at a time, one stage after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdbench import isolation
from kdbench.data.feed import Minibatch
from kdbench.engine.device import Precision, Stopwatch
from kdbench.engine.optimizer import begin_momentum, make_optimizer
from kdbench.engine.outputs import detached, outputs, private
from kdbench.engine.phase import Phase
from kdbench.engine.stages import Stages
from kdbench.engine.student import NETWORK, StudentInTraining
from kdbench.engine.terms import Means, weigh
from kdbench.method import Batch, Method, Output
from kdbench.parts import Parts
from kdbench.seeding import derive


class Trainer:
    """The optimiser and the random numbers of one training. Nothing in a step waits for the device."""

    def __init__(
        self,
        student: StudentInTraining,
        stages: Stages,
        parts: Parts,
        *,
        seed: int,
        stream: str,
        device: torch.device,
        steps_per_epoch: int,
    ) -> None:
        """``stages`` are those of the student's method; ``stream`` separates its random numbers from others."""
        self.student = student
        self.stages = stages
        self.modules = stages.modules
        self.progress = stages.progress
        self.parts = parts
        self.recipe = parts.recipe
        self.seed = seed
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        self.precision = Precision.choose(self.recipe.precision, device)
        self._stream = stream
        self._generator = torch.Generator(device=device)
        self._watch = Stopwatch(device)
        self._means = Means()
        self._begin_stage()

    # ---- stages

    @property
    def phase(self) -> Phase:
        """The current stage."""
        return self.stages.phase

    @property
    def in_main(self) -> bool:
        """Whether the current stage is the main stage."""
        return self.stages.in_main

    @property
    def is_taught(self) -> bool:
        """Whether this stage needs the teacher's outputs."""
        return self.student.method.needs_teacher or not self.in_main

    def _begin_stage(self) -> None:
        """Make a new optimiser, and the average at the start of the main stage."""
        spared = {f"network.{name}" for name in self.student.network.no_weight_decay()}
        self.optimizer = make_optimizer(self.parts, self.stages.trained, self.phase.rate(0.0), spared)
        if self.in_main and self.recipe.ema_decay is not None:
            self.student.begin_average(self.recipe.ema_decay)
        if not self.in_main and self.phase.epochs == 0:
            self.leave()  # settings may give a first stage no epochs

    def leave(self) -> None:
        """End the stage and begin the next one that has epochs."""
        self.seed_globally("after", self._stream, self.phase.name)
        self.stages.leave()
        self._begin_stage()

    def begin_epoch(self) -> None:
        """Set the modules' modes and the epoch's randomness."""
        self.stages.set_modes()
        self._generator.manual_seed(derive(self.seed, "method", self.phase.name, self.progress.epoch))
        self._means = Means()

    def follow(self, leader: Trainer) -> None:
        """Copy the state of ``leader`` after an epoch of a stage that both share."""
        for name in self.phase.trains:
            theirs = leader.student.method.get_submodule(name)
            self.student.method.get_submodule(name).load_state_dict(theirs.state_dict())
        self.optimizer.load_state_dict(leader.optimizer.state_dict())
        self._means = leader._means

    # ---- randomness

    def seed_globally(self, *purpose: object) -> None:
        """Seed the global generators, for plugins that do not use ``batch.generator``."""
        foreign = bool(self.student.foreign)
        isolation.seed_globally(derive(self.seed, *purpose), self.device, foreign=foreign)

    def seed_prediction(self) -> None:
        """Seed the predictions of third-party plugins; first-party code draws no random numbers there."""
        if self.student.foreign:
            self.seed_globally("predict", self._stream, self.phase.name, self.progress.epoch)

    # ---- steps

    def step(self, number: int, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        """Step ``number`` (from 0) of the epoch, on a batch and the teacher's outputs for it.

        Raises :class:`~kdbench.errors.TrialError` for terms of the wrong form, and any error of the method.
        """
        phase, epoch = self.phase, self.progress.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(epoch + number / self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        # Not at the first step, in which libraries benchmark algorithms and the optimiser allocates its state.
        measured = (epoch, number) > (0, 0) and number == min(1, self.steps_per_epoch - 1)
        base = _reset_peak(self.device) if self.device.type == "cuda" and measured else None
        self._watch.start()
        # Dropout and drop path draw from the global generator.
        # A stage without the student must be identical for all that share it.
        own = self._stream if phase.uses_student else ""
        self.seed_globally("network", own, phase.name, epoch, number)
        if self.student.foreign:
            minibatch = self._copied(minibatch)
        batch = self._batch(minibatch, number)
        seen = self._seen(minibatch)
        shown = self._shown(teacher)
        # Losses of stages without the student, or of trainings without a teacher, accept None.
        values, loss = weigh(phase.loss(seen, shown, batch))  # type: ignore[arg-type]
        self._means.check(tuple(values))
        self._update(loss)
        if self.in_main and seen is not None and type(self.student.method).after_step is not Method.after_step:
            with torch.no_grad():
                self.student.method.after_step(detached(seen), shown, batch)  # type: ignore[arg-type]
        self._means.add(loss, values, len(minibatch.labels))
        self._watch.stop()
        if base is not None:
            peak = torch.cuda.max_memory_allocated(self.device) - base + self._own_bytes()
            self.progress.peak_memory_bytes = max(self.progress.peak_memory_bytes or 0, peak)

    def _copied(self, minibatch: Minibatch) -> Minibatch:
        """A copy of the batch, into which a third-party plugin may write."""
        shared = {name: value for name, value in vars(minibatch).items() if value is not None}
        if NETWORK not in self.student.foreign:
            del shared["images"]
        return replace(minibatch, **{name: value.clone() for name, value in shared.items()})

    def _batch(self, minibatch: Minibatch, number: int) -> Batch:
        epoch = self.progress.epoch
        progress = epoch + number / self.steps_per_epoch
        return Batch(
            minibatch.labels,
            minibatch.indices,
            torch.full((), float(epoch), device=self.device),
            torch.full((), progress / self.phase.epochs, device=self.device),
            self._generator,
            minibatch.mixed_labels,
            minibatch.mix,
            self.recipe.label_smoothing,
        )

    def _seen(self, minibatch: Minibatch) -> Output | None:
        if not self.phase.uses_student:
            return None
        reads = self.phase.student_reads
        with self.precision.autocast():
            return outputs(self.student.network(minibatch.images, reads), reads)

    def _shown(self, teacher: Mapping[str, Tensor] | None) -> Output | None:
        if teacher is None or not self.is_taught:
            return None
        shown = outputs(teacher, self.phase.teacher_reads)
        return private(shown) if self.student.foreign else shown

    def _update(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        if self.recipe.clip_grad_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_grad_norm, foreach=True)
        begin_momentum(self.optimizer)
        self.optimizer.step()
        if self.student.average is not None:
            self.student.average.update()

    def _own_bytes(self) -> int:
        tensors = [*self.modules.parameters(), *self.modules.buffers()]
        tensors += self.student.average.tensors if self.student.average is not None else []
        tensors += [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    # ---- results

    def lap(self) -> float:
        """Seconds spent in steps since the last call; waits for the device."""
        return self._watch.read()

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def means(self) -> tuple[float, dict[str, float]]:
        """The epoch's mean loss, and each term's by name; reads the device once. Non-finite values are kept."""
        return self._means.read()


def _reset_peak(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
