"""The state of a training on the device: copied, restored in place, and compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdbench.engine.trainer import Trainer

ALIKE = 1e-2
"""The largest difference of two results of one step, relative to the largest change that the step makes to a tensor.

Above 2**-8: under autocast, gradients of weights are rounded to bf16, where one step may round up and the other down.
"""


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
    """A copy of the state of a training, with its random generators and the numbers that its modules count."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.tensors = {name: value.detach().clone() for name, value in state_of(trainer).items()}
        self._optimized = {parameter for parameter, entries in trainer.optimizer.state.items() if entries}
        self._generators = [(one, one.get_state()) for one in trainer.generators]
        self._images = trainer.take.means.images
        self._numbers = {part: _numbers(part) for part in trainer.modules.modules()}
        average = trainer.student.average
        self._averages = average is not None and average.begun

    def restore(self, *, numbers: bool = True) -> None:
        """Write the copies back, in place. State that did not exist is removed, as the optimiser makes it again.

        ``numbers``: whether the numbers of the modules are restored too.
        """
        now = state_of(self._trainer)
        with torch.no_grad():
            for name, value in self.tensors.items():
                now[name].copy_(value)
        for parameter in set(self._trainer.optimizer.state) - self._optimized:
            del self._trainer.optimizer.state[parameter]
        if numbers:
            self._restore_numbers()
        if "sums" in now and "sums" not in self.tensors:
            now["sums"].zero_()
        for generator, state in self._generators:
            generator.set_state(state)
        self._trainer.take.means.images = self._images
        if self._trainer.student.average is not None:
            self._trainer.student.average.begun = self._averages

    def _restore_numbers(self) -> None:
        for part, kept in self._numbers.items():
            # An attribute that the class has, too, may be new in the instance.
            for name in _numbers(part).keys() - kept.keys():
                delattr(part, name)
            for name, number in kept.items():
                setattr(part, name, number)

    def unlike(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
        """The tensor that differs most between two states after a step from here, and how much; None if all are alike.

        Equal bits are alike, and so are differences below :data:`ALIKE` of what the step changed, which kernels that
        add in no fixed order make. Reads the device once.
        """
        names = [name for name in self.tensors if name in one and name in other]
        ratios = torch.stack([_ratio(self.tensors[name], one[name], other[name]) for name in names]).tolist()
        worst = max(zip(ratios, names, strict=True))
        return None if worst[0] <= ALIKE else f"{worst[1]} differs by {worst[0]:.2g} of its change"


def _numbers(part: nn.Module) -> dict[str, float]:
    """The numbers among a module's attributes: it may count its steps, of which a repeated one must count once."""
    return {name: value for name, value in vars(part).items() if isinstance(value, (int, float))}


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
