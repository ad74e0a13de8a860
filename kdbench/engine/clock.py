"""The schedule of a stage on the device: the learning rate and the progress of each step."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.engine.phase import Phase


class Clock:
    """The learning rate, the epoch and the progress of the current step, as scalars in fixed places on the device.

    A step reads them there, and :meth:`tick` is part of the step. So a step is the same operations with the same
    arguments at every time, as a CUDA graph requires.
    """

    def __init__(self, phase: Phase, steps_per_epoch: int, device: torch.device) -> None:
        """Before the first epoch, the rate is that of the first step."""
        self._phase = phase
        self.steps = steps_per_epoch
        # The fused optimisers of torch read a rate of float32 on a GPU, and of any type on a CPU.
        rates = torch.float64 if device.type == "cpu" else torch.float32
        self._rates = torch.full((steps_per_epoch,), phase.rate(0.0), dtype=rates, device=device)
        self._times = torch.zeros(steps_per_epoch, 2, device=device)
        self.step: Tensor = torch.zeros(1, dtype=torch.int64, device=device)
        """The number of the next step of the epoch, (1,)."""
        self._rate = self._rates[:1].clone()
        self._time = torch.zeros(1, 2, device=device)
        self.lr: Tensor = self._rate[0]
        """The learning rate, a scalar: float64 on a CPU, float32 on a GPU."""
        self.epoch: Tensor = self._time[0, 0]
        """The epoch, a float32 scalar that counts from 0."""
        self.progress: Tensor = self._time[0, 1]
        """The share of the stage that has passed, a float32 scalar from 0 to 1."""
        self.rates: list[float] = [phase.rate(0.0)] * steps_per_epoch
        """The learning rates of the epoch, by step."""

    def begin_epoch(self, epoch: int) -> None:
        """Set the tables of an epoch; the next :meth:`tick` is its first step."""
        passed = [epoch + number / self.steps for number in range(self.steps)]
        self.rates = [self._phase.rate(progress) for progress in passed]
        self._rates.copy_(torch.tensor(self.rates, dtype=self._rates.dtype))
        self._times.copy_(torch.tensor([(float(epoch), progress / self._phase.epochs) for progress in passed]))
        self.step.zero_()

    def tick(self) -> None:
        """Go to the next step, on the device."""
        torch.index_select(self._rates, 0, self.step, out=self._rate)
        torch.index_select(self._times, 0, self.step, out=self._time)
        self.step += 1
