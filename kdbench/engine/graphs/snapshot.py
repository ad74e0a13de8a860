"""The state of a training on the device: copied, restored in place, and compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdbench.engine.trainer import Trainer

ALIKE = 1e-3
"""The largest difference of two results of one step, relative to the largest change that the step makes to a tensor."""


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """The tensors that a step changes, by name, not copied: weights, buffers, optimiser, average, clock, sums."""
    found: dict[str, Tensor] = {f"modules.{key}": value for key, value in trainer.modules.named_parameters()}
    found |= {f"modules.{key}": value for key, value in trainer.modules.named_buffers()}
    for place, parameter in enumerate(p for group in trainer.optimizer.param_groups for p in group["params"]):
        entries = trainer.optimizer.state.get(parameter, {})
        found |= {f"optimizer.{place}.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    average = trainer.student.average
    found |= {f"average.{place}": value for place, value in enumerate(average.tensors if average is not None else ())}
    found["clock.step"] = trainer.clock.step
    sums = trainer.take.means.sums
    return found | ({"sums": sums} if sums is not None else {})


class Snapshot:
    """A copy of the state of a training, with its random generators."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.tensors = {name: value.detach().clone() for name, value in state_of(trainer).items()}
        self._generators = [(one, one.get_state()) for one in trainer.generators]
        self._images = trainer.take.means.images
        average = trainer.student.average
        self._averages = average is not None and average.begun

    def restore(self) -> None:
        """Write the copies back, in place. State that did not exist is removed, as the optimiser makes it anew."""
        now = state_of(self._trainer)
        with torch.no_grad():
            for name, value in self.tensors.items():
                now[name].copy_(value)
        if not any(name.startswith("optimizer.") for name in self.tensors):
            self._trainer.optimizer.state.clear()
        if "sums" in now and "sums" not in self.tensors:
            now["sums"].zero_()
        for generator, state in self._generators:
            generator.set_state(state)
        self._trainer.take.means.images = self._images
        if self._trainer.student.average is not None:
            self._trainer.student.average.begun = self._averages

    def unlike(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
        """The tensor that differs most between two states after a step from here, and how much; None if all are alike.

        Equal bits are alike, and so are differences below :data:`ALIKE` of what the step changed, which kernels that
        add in no fixed order make. Reads the device once.
        """
        names = [name for name in self.tensors if name in one and name in other]
        ratios = torch.stack([_ratio(self.tensors[name], one[name], other[name]) for name in names]).tolist()
        worst = max(zip(ratios, names, strict=True))
        return None if worst[0] <= ALIKE else f"{worst[1]} differs by {worst[0]:.2g} of its change"


def _ratio(before: Tensor, one: Tensor, other: Tensor) -> Tensor:
    if not before.numel():
        return torch.zeros((), dtype=torch.float64, device=before.device)
    before, one, other = (value.detach().double() for value in (before, one, other))
    difference = torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, (one - other).abs()).amax()
    change = (one - before).abs().amax()
    # Below the rounding of a float32, a difference says nothing.
    floor = 1e-6 * before.abs().amax() / ALIKE
    ratio = difference / torch.maximum(change, floor)
    return torch.where(difference == 0, 0.0, ratio.nan_to_num(nan=torch.inf))
