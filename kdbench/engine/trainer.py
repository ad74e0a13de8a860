"""Trains a student with its method: one optimiser step at a time, one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kdbench import isolation
from kdbench.data.feed import Minibatch
from kdbench.engine.clock import Clock
from kdbench.engine.device import Precision, Stopwatch
from kdbench.engine.optimizer import make_optimizer
from kdbench.engine.phase import Phase
from kdbench.engine.stages import Stages
from kdbench.engine.step import Step
from kdbench.engine.student import StudentInTraining
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
        self.reads_clock = parts.optimizer.spec.capturable
        """Whether the optimiser reads the learning rate on the device."""
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
        self._lr = self.phase.rate(0.0)
        self.optimizer = make_optimizer(self.parts, self.stages.trained, self._lr, spared)
        if self.in_main and self.recipe.ema_decay is not None:
            self.student.begin_average(self.recipe.ema_decay)
        self.clock = Clock(self.phase, self.steps_per_epoch, self.device)
        self.take = Step(
            self.student,
            self.phase,
            self.optimizer,
            self.recipe,
            self.clock,
            self._generator,
            self.precision,
            in_main=self.in_main,
            is_taught=self.is_taught,
        )
        """One step on a batch and the teacher's outputs for it, after :meth:`prepare`."""
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
        self.clock.begin_epoch(self.progress.epoch)
        self.take.means.reset()
        if self.reads_clock:
            self._set_rate(self.clock.lr)  # again: a checkpoint replaces it

    def follow(self, leader: Trainer) -> None:
        """Copy the state of ``leader`` after an epoch of a stage that both share."""
        for name in self.phase.trains:
            theirs = leader.student.method.get_submodule(name)
            self.student.method.get_submodule(name).load_state_dict(theirs.state_dict())
        self.optimizer.load_state_dict(leader.optimizer.state_dict())
        self.take.means.follow(leader.take.means)
        self._lr = leader._lr

    # ---- randomness

    def seed_globally(self, *purpose: object) -> None:
        """Seed the global generators, for plugins that do not use ``batch.generator``."""
        foreign = bool(self.student.foreign)
        isolation.seed_globally(derive(self.seed, *purpose), self.device, foreign=foreign)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators on its device that a step draws from: the method's and the global one."""
        return [self._generator, isolation.default_generator(self.device)]

    def seed_prediction(self) -> None:
        """Seed the predictions of third-party plugins; first-party code draws no random numbers there."""
        if self.student.foreign:
            self.seed_globally("predict", self._stream, self.phase.name, self.progress.epoch)

    # ---- steps

    def step(
        self,
        number: int,
        minibatch: Minibatch,
        teacher: Mapping[str, Tensor] | None,
        take: Callable[[Minibatch, Mapping[str, Tensor] | None], None] | None = None,
    ) -> None:
        """Step ``number`` (from 0) of the epoch, on a batch and the teacher's outputs for it.

        ``take`` takes the step in place of :attr:`take`, for example as a replay.

        Raises :class:`~kdbench.errors.TrialError` for terms of the wrong form, and any error of the method.
        """
        epoch = self.progress.epoch
        # Not at the first step, in which libraries benchmark algorithms and the optimiser allocates its state.
        measured = (epoch, number) > (0, 0) and number == min(1, self.steps_per_epoch - 1)
        base = None
        if self.device.type == "cuda" and measured:
            # The gradients of the step before are no part of the base: those of this step take their place.
            self.optimizer.zero_grad(set_to_none=True)
            base = _reset_peak(self.device)
        self._watch.start()
        self.prepare(number)
        (take or self.take)(minibatch, teacher)
        self._watch.stop()
        if base is not None:
            peak = torch.cuda.max_memory_allocated(self.device) - base + self._own_bytes()
            self.progress.peak_memory_bytes = max(self.progress.peak_memory_bytes or 0, peak)

    def prepare(self, number: int) -> None:
        """Set what a step takes from the host: the seed of its random numbers, and the rate of some optimisers."""
        # Dropout and drop path draw from the global generator.
        # A stage without the student must be identical for all that share it.
        own = self._stream if self.phase.uses_student else ""
        self.seed_globally("network", own, self.phase.name, self.progress.epoch, number)
        self._lr = self.clock.rates[number]
        if not self.reads_clock:
            self._set_rate(self._lr)

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

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
        return self._lr

    def means(self) -> tuple[float, dict[str, float]]:
        """The epoch's mean loss, and each term's by name; reads the device once. Non-finite values are kept."""
        return self.take.means.read()


def _reset_peak(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
