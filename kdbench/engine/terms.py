"""The loss terms that a method returns: their weighted sum, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import TrialError


def weigh(terms: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The terms' values by name, and the loss: the sum of value * weight. All are scalars.

    Raises :class:`~kdbench.errors.TrialError` for anything but named scalar tensors with weights.
    """
    if not isinstance(terms, Mapping) or not terms:
        raise TrialError(f"forward must return named terms, got {type(terms).__name__}")
    values: dict[str, Tensor] = {}
    loss = None
    named = {str.__str__(name) if isinstance(name, str) else name: term for name, term in terms.items()}
    for name, term in named.items():
        if not isinstance(name, str):
            raise TrialError(f"forward must name its terms by strings, got a name of type {type(name).__name__}")
        if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[0], Tensor)):
            raise TrialError(f"term '{name}' must be a pair (value, weight), got {type(term).__name__}")
        value, weight = term
        if value.ndim:
            raise TrialError(f"term '{name}' must be a scalar, got shape {tuple(value.shape)}")
        values[name] = value
        loss = value * weight if loss is None else loss + value * weight
    assert loss is not None
    return values, loss


class Means:
    """Means of the loss and of its terms over the images of an epoch, summed on the device in float64."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        """Of the loss and of each term, times the images of its step: float64, on the device."""
        self.images = 0
        """The images so far."""

    def reset(self) -> None:
        """Begin an epoch. The sums stay in the same memory, into which a recorded step adds."""
        self.images = 0
        if self.sums is not None:
            self.sums.zero_()

    def check(self, names: tuple[str, ...]) -> None:
        """Raise :class:`~kdbench.errors.TrialError` if the terms differ from those of the epoch's first step."""
        if self.images and names != self._names:
            raise TrialError(f"terms changed within an epoch from {list(self._names)} to {list(names)}")

    def add(self, loss: Tensor, values: dict[str, Tensor], images: int) -> None:
        """Add a step's loss and terms, which are means over ``images``. Does not wait for the device."""
        read = torch.stack([value.detach() for value in (loss, *values.values())])
        if self.sums is None or self._names != tuple(values):
            self._names = tuple(values)
            self.sums = torch.zeros(len(read), dtype=torch.float64, device=read.device)
        self.sums.add_(read, alpha=images)
        self.images += images

    def follow(self, leader: Means) -> None:
        """Copy the sums of another training."""
        assert leader.sums is not None
        self._names, self.images, self.sums = leader._names, leader.images, leader.sums.clone()

    def read(self) -> tuple[float, dict[str, float]]:
        """The mean loss, and the mean of each term; waits for the device."""
        assert self.sums is not None
        loss, *values = (self.sums / self.images).tolist()
        return loss, dict(zip(self._names, values, strict=True))
