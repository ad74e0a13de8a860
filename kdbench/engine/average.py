"""The exponential moving average of a student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Averages a module: ``average = decay * average + (1 - decay) * weights`` after each step, buffers included.

    The average starts as the weights after the first step. ``AveragedModel`` of torch computes the same, but
    counts its steps in a tensor, so that each step would wait for the GPU.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._followed = module.state_dict()  # shares the module's memory
        self._decay = decay
        self.begun = False
        """Whether it has the weights of a step."""
        self._average = {key: value.clone() for key, value in self._followed.items()}
        self._floating = [key for key, value in self._followed.items() if value.is_floating_point()]

    @property
    def tensors(self) -> list[Tensor]:
        """The averaged tensors."""
        return list(self._average.values())

    def update(self) -> None:
        """Add the current weights to the average. Does not wait for the device."""
        followed = [self._followed[key] for key in self._floating]
        average = [self._average[key] for key in self._floating]
        if self.begun:
            torch._foreach_lerp_(average, followed, 1 - self._decay)
        else:
            torch._foreach_copy_(average, followed)
        self.begun = True

    def deployed_state(self) -> dict[str, Tensor]:
        """The module's state with averaged weights; integer entries (counters) are not averaged."""
        return {**self._followed, **{key: self._average[key] for key in self._floating}}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"begun": self.begun, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.begun = state["begun"]
        for key, value in state["average"].items():
            self._average[key].copy_(value)
